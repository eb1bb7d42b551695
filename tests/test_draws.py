import itertools

import numpy as np
import tensorflow as tf
from chi_square import check_uniform

from keras_maml import episodes
from keras_maml.episodes import draws as random


class TestUniform:
    def test_equals_split_mix_64(self):
        mask, increment = 2**64 - 1, 0x9E3779B97F4A7C15

        def mix(bits):
            bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & mask
            bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & mask
            return bits ^ bits >> 31

        # The published stream of state 1234567 begins so.
        stream = [mix(1234567 + n * increment & mask) for n in (1, 2)]
        assert stream == [6457827717110365317, 3203168211198807973]

        seed, indices = 2**62 + 12345, [0, 1, 2**40 + 3]
        state = [mix(mix(seed) + increment * index & mask) for index in indices]
        bits = [[mix(s + increment * (n + 1) & mask) for s in state] for n in range(6)]
        expected = np.array([[(b >> 11) / 2**53 for b in row] for row in bits])
        np.testing.assert_array_equal(episodes.uniform(seed, indices, 6), expected)
        np.testing.assert_array_equal(episodes.uniform(seed, indices, 2, first=4), expected[4:])

    def test_is_uniform_over_episodes_over_draws_and_over_seeds(self):
        over_episodes = episodes.uniform(0, np.arange(50_000), 1)[0]
        over_draws = episodes.uniform(0, [0], 50_000)[:, 0]
        over_seeds = tf.function(tf.map_fn)(
            lambda seed: episodes.uniform(seed, [0], 1)[0, 0],
            tf.range(20_000),
            fn_output_signature=tf.float64,
        )
        for draws in (over_episodes, over_draws, over_seeds):
            check_uniform(np.histogram(draws, 50, (0, 1))[0])
            check_uniform(np.histogram(draws * 2**20 % 1, 50, (0, 1))[0])  # the lower bits
            check_uniform(np.histogram2d(draws[:-1], draws[1:], 20, [(0, 1)] * 2)[0])

    def test_episodes_and_draws_do_not_repeat_each_other(self):
        # 300 * 300 numbers of 53 bits: two alike once in 2 million.
        draws = episodes.uniform(0, np.arange(300), 300).numpy()
        assert len(np.unique(draws)) == draws.size


class TestWithoutReplacement:
    def test_every_ordered_draw_has_one_code(self):
        # Draw j falls in one of size - j equal parts of [0, 1): 5 * 4 * 3 codes, 60 ordered draws.
        codes = np.array(list(itertools.product(range(5), range(4), range(3))))
        draws = (codes + 0.5) / [5, 4, 3]
        picks = random.without_replacement(tf.constant(draws.T), 5).numpy().T
        assert sorted(map(tuple, picks)) == sorted(itertools.permutations(range(5), 3))

    def test_sizes_may_differ_and_the_last_number_is_in_reach(self):
        sizes = np.array([3, 1000, 2**40 + 1])
        greatest = tf.fill((3, 3), tf.constant(1 - 2.0**-53, tf.float64))
        picks = random.without_replacement(greatest, sizes).numpy()
        np.testing.assert_array_equal(picks, [sizes - 1, sizes - 2, sizes - 3])
