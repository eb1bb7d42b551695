import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_maml import episodes


class TestFromFunction:
    @pytest.mark.parametrize("block", [1, 2, 8])
    def test_a_batch_is_computed_from_its_indices(self, block):
        dataset = episodes.from_function(
            lambda seed, index: {"index": index, "pair": tf.stack([index, seed + 0 * index], 1)},
            tasks=3,
            seed=9,
            batches=3,
            start=5,
            block=block,
        )
        indices = np.arange(5, 14).reshape(3, 3)
        assert len(dataset) == 3
        for element, index in zip(dataset, indices, strict=True):
            np.testing.assert_array_equal(element["index"], index)
            np.testing.assert_array_equal(element["pair"], np.stack([index, [9, 9, 9]], 1))

    @pytest.mark.parametrize("block", [1, 8])
    def test_without_a_seed_every_iterator_has_one_of_its_own(self, block):
        dataset = episodes.from_function(
            lambda seed, index: seed + 0 * index, tasks=2, batches=20, block=block
        )
        seeds = []
        for _ in range(3):
            tf.random.set_seed(0)  # not asked
            keras.utils.set_random_seed(0)
            seen = np.unique([element.numpy() for element in dataset])
            assert len(seen) == 1 and seen[0] >= 0
            seeds.append(seen[0])
        assert len(set(seeds)) == 3

    def test_block_must_be_positive(self):
        with pytest.raises(ValueError, match="`block` must be"):
            episodes.from_function(lambda seed, index: index, tasks=2, block=0)
