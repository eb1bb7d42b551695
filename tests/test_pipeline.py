import itertools

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


def indices(dataset):
    return [int(index) for batch in dataset for index in batch]


def plain(**arguments):
    return episodes.from_function(lambda seed, index: index, **arguments)


class TestFixed:
    def test_is_a_set_of_its_own(self):
        def read(tasks, seed, **arguments):
            pairs = lambda seed, index: tf.stack([seed + 0 * index, index], 1)  # noqa: E731
            dataset = episodes.from_function(pairs, tasks, seed, **arguments)
            return np.concatenate([batch.numpy() for batch in dataset])

        whole = read(5, episodes.fixed(20))
        np.testing.assert_array_equal(whole[:, 1], np.arange(20))
        np.testing.assert_array_equal(read(4, episodes.fixed(20)), whole)
        np.testing.assert_array_equal(read(5, episodes.fixed(10)), whole[:10])
        others = [read(5, seed, batches=1)[0, 0] for seed in (0, 1)]
        fixed = [read(5, episodes.fixed(20, seed=seed))[0, 0] for seed in (0, 1)]
        assert others == [0, 1] and fixed[0] != fixed[1] and min(fixed) > 2**32

    def test_has_a_length(self):
        dataset = plain(tasks=5, seed=episodes.fixed(20))
        assert dataset.cardinality() == 4
        assert indices(dataset) == indices(dataset) == list(range(20))

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"tasks": 6, "seed": episodes.fixed(20)}, "tasks=6, batches=None"),
            ({"tasks": 5, "seed": episodes.fixed(20), "batches": 4}, "Leave `batches` out"),
            ({"tasks": 10, "seed": episodes.fixed(20), "shard": (2, 3)}, "nothing is left for worker 2 of 3"),
        ],
    )
    def test_errors(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            plain(**arguments)
        with pytest.raises(ValueError, match="`n` must be"):
            episodes.fixed(0)


class TestShards:
    @pytest.mark.parametrize("block", [1, 8])
    def test_are_disjoint_and_complete(self, block):
        parts = [indices(plain(tasks=3, seed=0, batches=8, block=block, shard=(worker, 4))) for worker in range(4)]
        assert sorted(itertools.chain(*parts)) == list(range(8 * 4 * 3))
        assert parts[1][:6] == [3, 4, 5, 15, 16, 17]

    def test_of_a_fixed_set_are_complete_where_they_differ_in_length(self):
        parts = [indices(plain(tasks=2, seed=episodes.fixed(20), shard=(worker, 4))) for worker in range(4)]
        assert [len(part) for part in parts] == [6, 6, 4, 4]
        assert sorted(itertools.chain(*parts)) == list(range(20))

    def test_go_on_from_a_start(self):
        part = indices(plain(tasks=3, seed=0, start=12, batches=2, shard=(1, 2)))
        assert part == [15, 16, 17, 21, 22, 23]

    def test_of_tf_distribute(self):
        strategy = tf.distribute.MirroredStrategy(["CPU:0"])
        dataset = strategy.distribute_datasets_from_function(
            lambda context: plain(
                tasks=3, seed=0, batches=4, shard=(context.input_pipeline_id, context.num_input_pipelines)
            )
        )
        assert indices(dataset) == list(range(12))

    @pytest.mark.parametrize("arguments", [{"batches": 16}, {"batches": 12, "block": 8}, {"block": 8}])
    def test_of_tf_data_service_do_not_overlap(self, arguments):
        service = tf.data.experimental.service
        dispatcher = service.DispatchServer()
        config = service.WorkerConfig(dispatcher_address=dispatcher.target.split("://")[1])
        workers = [service.WorkerServer(config) for _ in range(2)]
        dataset = plain(tasks=4, seed=0, **arguments)
        shared = dataset.apply(service.distribute(service.ShardingPolicy.DYNAMIC, dispatcher.target))
        seen = indices(shared.take(300))  # of an endless one so many that both workers give some
        count = 4 * arguments.get("batches", 300)
        assert len(workers) == 2 and len(seen) == count
        assert len(set(seen)) == count
        if "batches" in arguments:
            assert set(seen) == set(range(count))

    @pytest.mark.parametrize(
        "shard, message",
        [
            (3, r"`shard` must be \(worker, count\)"),
            ((2, 2), r"`shard\[1\]` must be an integer of at least 3"),
            ((-1, 2), r"`shard\[0\]` must be an integer of at least 0"),
        ],
    )
    def test_errors(self, shard, message):
        with pytest.raises(ValueError, match=message):
            plain(tasks=2, shard=shard)


class TestCheckpoint:
    @pytest.mark.parametrize("seed", [0, None])
    def test_an_iterator_goes_on_exactly(self, seed, tmp_path):
        def make():
            return episodes.from_arrays(np.arange(60), np.arange(60) % 6, 3, 1, 2, tasks=4, seed=seed)

        iterator = iter(make())
        for _ in range(11):  # within a block
            next(iterator)
        path = tf.train.Checkpoint(iterator=iterator).save(str(tmp_path / "state"))
        expected = [next(iterator) for _ in range(9)]
        other = iter(make())
        tf.train.Checkpoint(iterator=other).restore(path).assert_consumed()
        for element in expected:
            tf.nest.map_structure(np.testing.assert_array_equal, next(other), element)


@pytest.mark.parametrize("block", [1, 4])
def test_a_function_must_give_a_row_for_each_index(block):
    with pytest.raises(ValueError, match="must give `\\(T, ...\\)` for .* indices"):
        episodes.from_function(lambda seed, index: tf.zeros((7, 2)), tasks=3, block=block)
