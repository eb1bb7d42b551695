"""Random numbers that belong to an episode: a counter-based generator, for all episodes of a batch at once.

A generator with state, or one stateless draw for a whole batch, would tie an episode to its batch. TensorFlow's
stateless operations take one seed a call, so they would need a call an episode.
"""

import math

import numpy as np
import tensorflow as tf

# Numbers of the first draws of what must not disturb each other: the support of an episode does not change with the
# number of queries, nor its examples with how many classes it may have.
SUPERCLASS = 2**33
COUNTS = 2**34
DOMAIN = 2**35
LAYERS = 2**40


def uniform(seed, index, draws, first=0):
    """Uniform numbers of every episode.

        draw[n] = mix(mix(mix(seed) + g * index) + g * (n + 1)) / 2**64

    with `mix` the finaliser of SplitMix64 and `g` its increment: an episode reads the stream of SplitMix64 that starts
    at the hash of its seed and index. A draw does not depend on how many are asked for.

    Args:
        seed: integer scalar, not negative.
        index: `(T,)`, integers, not negative: the episodes.
        draws: how many numbers an episode.
        first: number of the first draw, for draws that are apart from others.

    Returns:
        `(draws, T)`, `float64` in `[0, 1)`, multiples of `2**-53`.

    References:
        - Steele et al. 2014, "Fast splittable pseudorandom number generators", OOPSLA
    """
    bits = random_bits(seed, index, draws, first)
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(11, tf.uint64)), tf.float64) * 2.0**-53


def random_bits(seed, index, draws, first=0):
    """The same numbers before they are divided: `(draws, T)`, `uint64`."""
    increment = tf.constant(0x9E3779B97F4A7C15, tf.uint64)
    number = tf.range(first + 1, first + 1 + draws, dtype=tf.int64)
    state = _mix(tf.cast(seed, tf.uint64))
    state = _mix(state + increment * tf.cast(index, tf.uint64))
    return _mix(state + increment * tf.cast(number, tf.uint64)[:, None])


def normal(seed, index, draws, first=0):
    """Standard normal numbers of every episode, by Box and Muller, from two uniform draws each.

        normal[n] = sqrt(-2 log(1 - uniform[2 n])) cos(2 pi uniform[2 n + 1])

    Args:
        seed: see `uniform`, and so `index`.
        draws: how many numbers an episode.
        first: number of the first uniform draw.

    Returns:
        `(draws, T)`, `float64`.
    """
    pairs = uniform(seed, index, 2 * draws, first)
    radius = tf.sqrt(-2 * tf.math.log1p(-pairs[::2]))  # 1 - u: log of 0 would be infinite
    return radius * tf.cos(2 * math.pi * pairs[1::2])


def without_replacement(draws, size):
    """Different numbers out of `0 .. size - 1`, from `(k, ...)` uniform draws and `(...)` sizes.

    Draw `j` picks one of the `size - j` numbers that are left, counted from 0. From the last draw back, a number at or
    above pick `i` becomes one more when `i` is put back. Exact in `k` small steps; sorting random keys would need one
    key for every example of a class. Where a size is below `k`, the first `size` picks hold.
    """
    k = draws.shape[0]
    taken = np.arange(k, dtype="float64").reshape((k,) + (1,) * (draws.shape.rank - 1))
    left = tf.maximum(tf.cast(size, tf.float64) - taken, 1.0)
    codes = tf.cast(draws * left, tf.int64)
    picks = codes[-1:]
    for i in reversed(range(k - 1)):
        earlier = codes[i : i + 1]
        picks = tf.concat([earlier, picks + tf.cast(picks >= earlier, tf.int64)], 0)
    return picks


def _mix(bits):
    def fold(bits, shift):
        return tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, np.uint64(shift)))

    bits = fold(bits, 30) * tf.constant(0xBF58476D1CE4E5B9, tf.uint64)
    bits = fold(bits, 27) * tf.constant(0x94D049BB133111EB, tf.uint64)
    return fold(bits, 31)
