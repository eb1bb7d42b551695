"""Judging a few-shot learner on many tasks, after several numbers of inner steps at once."""

import math
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_maml import inputs
from keras_maml.episode_model import Untracked
from keras_maml.episodes.inspecting import domain_names
from keras_maml.metrics import MetricsOfTasks
from keras_maml.protocols import protocol, sizes_of_tasks
from keras_maml.reports import EpisodeReport


def evaluate_episodes(meta_model, episodes, tasks=600, steps=(0, 1, 5, 10), verbose="auto"):
    """Judges a `MetaModel` task by task, after several numbers of inner steps.

        test = keras_maml.episodes.from_arrays(x, labels, 5, 1, 15, tasks=20, seed=keras_maml.episodes.fixed(600))
        report = keras_maml.evaluate_episodes(meta_model, test)
        print(report)

    Each task is adapted once, to the greatest of `steps`; the others are stations on the way. Dropout is off, nothing
    is written into the model. Memory does not grow with the number of tasks. Runs as `meta_model.predict` would: under
    its `tf.distribute` strategy.

    Args:
        meta_model: a compiled `MetaModel`.
        episodes: a `tf.data.Dataset` or `keras.utils.PyDataset` of batches `(x, y)` or `(x, y, sample_weight)`, or one
            such batch.
        tasks: number of tasks, at least 2: the first ones of `episodes`; `None`: all, of a dataset that has an end.
        steps: numbers of inner steps, at least 0.
        verbose: whether a progress bar shows: "auto", 0, 1 or 2, as for `predict`.

    Returns:
        An `EpisodeReport`. A warning says so if tasks diverge after more steps than the model was trained with, as
        those of `MetaSGD` may: learned step sizes are right for as many steps as they were learned with.

    Raises:
        ValueError: for arguments out of range, malformed episodes, or too few of them.
    """
    report = Evaluator(meta_model, steps).report(episodes, tasks, verbose)
    _warn_of_divergence(report, meta_model.algorithm.steps)
    return report


def _warn_of_divergence(report, trained):
    sound = np.isfinite(report.loss_before)
    for steps in report.steps:
        lost = int((report.diverged(steps) | (report.non_finite(steps) & sound)).sum())
        if steps > trained and lost:
            warnings.warn(
                f"{lost} of {report.tasks} tasks diverged within {steps} inner steps, and the model was trained with "
                f"{trained}: a mean over them says little, look at the median. Evaluate with fewer steps "
                "(`evaluation_steps=`), or train with more `steps`, `clipnorm=10` or a smaller learning rate.",
                stacklevel=3,
            )
            return


class Evaluator:
    """Makes reports on one model, and compiles the evaluation once.

    Args:
        meta_model: a compiled `MetaModel`.
        steps: numbers of inner steps, at least 0.
    """

    def __init__(self, meta_model, steps=(0, 1, 5, 10)):
        # A name for the check that `meta_model` is one, which would import in a circle.
        if not hasattr(meta_model, "meta_gradients"):
            raise ValueError(f"`meta_model` must be a `MetaModel`. Received: {type(meta_model).__name__}.")
        meta_model._assert_compile_called("evaluate_episodes")
        self.meta_model = meta_model
        self.steps = check_steps(steps)
        self._judge = None

    def report(self, episodes, tasks=600, verbose="auto"):
        """An `EpisodeReport`; arguments as for `evaluate_episodes`."""
        episodes, batch, batches = self.check(episodes, tasks)
        if self._judge is None:
            with self.meta_model.distribute_strategy.scope():
                self._judge = _Judge(self.meta_model, self.steps)
                self._judge.build_metrics(*batch)
        found = self._judge.predict(episodes, steps=batches, verbose=verbose)
        came = len(found["episodes"])
        if tasks is not None and came < tasks:
            raise ValueError(_too_few(tasks, came))
        found = tf.nest.map_structure(lambda values: values[:tasks], found)
        columns = [self._judge.stations.index(k) for k in self.steps]
        values = {name: rows[:, columns].astype("float64") for name, rows in found["values"].items()}
        domains = None
        if "domain" in found:
            domains = tuple(_domain(d, domain_names(episodes)) for d in found["domain"].tolist())
        return EpisodeReport(
            values=values,
            steps=self.steps,
            loss_before=found["values"]["loss"][:, 0].astype("float64"),
            protocol=protocol(self.meta_model, episodes, self.steps, found["sizes"]),
            episodes=found["episodes"],
            directions={"loss": "down", **self._judge.metrics_of_tasks.directions()},
            domains=domains,
        )

    def check(self, episodes, tasks):
        """`(episodes, first batch, number of batches)`, after a look at the first."""
        whole = isinstance(tasks, int | np.integer) and not isinstance(tasks, bool) and tasks >= 2
        if tasks is not None and not whole:
            raise ValueError(f"`tasks` must be an integer of at least 2, or None. Received: tasks={tasks!r}.")
        if isinstance(episodes, tuple | list):
            # tf.data would make one tensor of a list.
            parts = tuple(_tuples(part) for part in episodes if part is not None)
            episodes = tf.data.Dataset.from_tensors(parts)
        if not isinstance(episodes, tf.data.Dataset | keras.utils.PyDataset):
            raise ValueError(
                "`episodes` must be a `tf.data.Dataset` or a `keras.utils.PyDataset` of episode batches, or one batch "
                f"`(x, y)`. Received: {type(episodes).__name__}."
            )
        length = _length(episodes)
        if tasks is None and length == math.inf:
            raise ValueError("`episodes` never ends, and tasks=None. Pass `tasks=`, or make it with `batches=`.")
        batch = None
        if length != 0:
            batch = next(iter(episodes.take(1)), None) if isinstance(episodes, tf.data.Dataset) else episodes[0]
        if batch is None:
            raise ValueError("`episodes` holds no batch. Expected batches `(x, y)` of episodes.")
        x, y, sample_weight = batch = keras.utils.unpack_x_y_sample_weight(batch)
        if y is None:
            raise ValueError("The episodes have no `query_y`, so there is nothing to judge by. Expected `(x, y)`.")
        with self.meta_model.distribute_strategy.scope():  # of which the weights of an unbuilt model are
            self.meta_model._prepare(x, y, sample_weight)
        each = len(tf.nest.flatten(x)[0])
        if tasks is None:
            return episodes, batch, None
        if length is not None and length * each < tasks:
            raise ValueError(_too_few(tasks, length * each))
        return episodes, batch, -(-int(tasks) // each)


class _Judge(keras.Model):
    """A Keras model whose `predict` gives what each task was worth."""

    def __init__(self, meta_model, steps):
        super().__init__(name="judge")
        self._meta_model = Untracked(meta_model)
        self.stations = tuple(sorted({0, *steps}))
        self.metrics_of_tasks = MetricsOfTasks(*meta_model._asked_metrics.value)
        self.built = True
        # Several steps at once, as `steps_per_execution` asks for in `fit`, would be as many copies of the graph here.
        # The mapping compiles what is worth it; metrics of tasks have shapes that XLA does not take.
        self.compile(run_eagerly=meta_model.run_eagerly, jit_compile=False)

    def build_metrics(self, x, y, sample_weight=None):
        """Makes the state of the metrics, from the base model's predictions for one task."""
        meta_model = self._meta_model.value
        first = lambda t: tf.convert_to_tensor(t)[:1]  # noqa: E731
        query_x = tf.nest.map_structure(lambda t: _as_input(first(t)[0], meta_model.compute_dtype), x["query_x"])
        with keras.StatelessScope():  # a layer may count its calls
            predictions = meta_model.model(query_x)
        predictions = tf.nest.map_structure(lambda t: t[tf.newaxis], predictions)
        y = tf.nest.map_structure(first, y)
        self.metrics_of_tasks.build(y, predictions, None if sample_weight is None else first(sample_weight))

    def predict_step(self, data):
        """Judges a batch: `(T, stations)` for each metric."""
        meta_model = self._meta_model.value
        x, y, sample_weight = inputs.unpack(data)
        meta_model._prepare(x, y, sample_weight)
        *others, last = self.stations

        def one_task(task, variables):
            stacked = {}
            for k, (params, state) in zip(
                self.stations, task.iterates(variables, at=self.stations, stop_gradients=True), strict=True
            ):
                loss, predictions, _ = task.loss(params, state, on="query")
                ending = "" if k == last else f"_{k}"
                stacked |= {f"predictions{ending}": predictions, f"loss{ending}": loss}
            return stacked, (), ()

        stacked = meta_model._run(one_task, x, y, sample_weight, copies=tuple(map(str, others)))[0]
        rows = []
        for ending in [*(f"_{k}" for k in others), ""]:
            of_tasks = self.metrics_of_tasks(y, stacked[f"predictions{ending}"], sample_weight)
            rows.append({"loss": tf.cast(stacked[f"loss{ending}"], tf.float64), **of_tasks})
        result = {
            "values": {name: tf.stack([row[name] for row in rows], 1) for name in rows[0]},
            "episodes": fingerprints(
                (x["support_x"], x["support_y"], x.get("support_weight")), (x["query_x"], y, sample_weight)
            ),
            "sizes": sizes_of_tasks(x, y, sample_weight),
        }
        return result | ({"domain": x["domain"]} if "domain" in x else {})


def fingerprints(*structures):
    """A number for each task, `(T,)` `int64`, that is the same for the same episode and most likely for no other.

    ```
    number = sum of (code[i] + 1) * odd[i] modulo 2**64
    ```

    over all elements of the task, with an odd number that belongs to the place of the element: so that one element of
    another value always makes another number.

    Args:
        *structures: nested structures of tensors `(T, ...)`; `None` is passed over.
    """

    def of_task(leaves):
        total = tf.constant(0, tf.int64)
        for number, leaf in enumerate(leaves):
            codes = tf.reshape(_codes(leaf), [-1])
            place = tf.range(tf.size(codes, tf.int64)) + number * 2**32
            place = (place * 0x5851F42D4C957F2D) | 1
            place = tf.bitwise.bitwise_xor(place, tf.bitwise.right_shift(place, tf.constant(29, tf.int64)))
            place = (place * 0x14057B7EF767814F) | 1
            total += tf.reduce_sum((codes + 1) * place)
        return total

    # Task by task: the codes of a batch take eight times the memory of its images in bytes.
    leaves = [leaf for leaf in tf.nest.flatten(structures) if leaf is not None]
    return tf.map_fn(of_task, leaves, parallel_iterations=1, fn_output_signature=tf.int64)


def _codes(leaf):
    if leaf.dtype == tf.string:
        return tf.strings.to_hash_bucket_fast(leaf, 2**62)
    if leaf.dtype.is_floating:  # in float32, so that a copy in float64 is the same episode
        return tf.cast(tf.bitcast(tf.cast(leaf, tf.float32), tf.int32), tf.int64)
    return tf.cast(leaf, tf.int64)


def check_steps(steps):
    """Numbers of inner steps as an ascending tuple.

    Raises:
        ValueError: if they are not.
    """
    steps = steps.tolist() if isinstance(steps, np.ndarray) else steps
    listed = list(steps) if isinstance(steps, tuple | list | range | set) else [steps]
    if not listed or any(isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 0 for k in listed):
        raise ValueError(f"`steps` must be numbers of inner steps, integers of at least 0. Received: steps={steps!r}.")
    return tuple(sorted({int(k) for k in listed}))


def _as_input(tensor, dtype):
    return tf.cast(tensor, dtype) if tensor.dtype.is_floating else tensor


def _too_few(tasks, came):
    return (
        f"`episodes` gave {came} tasks, and tasks={tasks} were asked for: it ends there, or has batches of fewer tasks "
        f"than its first. Pass `tasks={came}`, `tasks=None` for all of them, or a dataset of more batches, all of one "
        "size."
    )


def _length(episodes):
    """Number of batches, `math.inf` for a dataset that never ends, `None` where it is unknown."""
    if isinstance(episodes, tf.data.Dataset):
        length = int(episodes.cardinality())
        return {tf.data.INFINITE_CARDINALITY: math.inf, tf.data.UNKNOWN_CARDINALITY: None}.get(length, length)
    return math.inf if episodes.num_batches is None else episodes.num_batches


def _domain(domain, names):
    """The name of a domain: of a mixture's number, or what else the episodes carry."""
    if isinstance(domain, bytes):
        return domain.decode()
    known = isinstance(domain, int) and 0 <= domain < len(names)
    return str(names[domain]) if known else f"domain {domain}"


def _tuples(structure):
    if isinstance(structure, dict):
        return {key: _tuples(value) for key, value in structure.items()}
    if isinstance(structure, tuple | list) and any(hasattr(leaf, "shape") for leaf in tf.nest.flatten(structure)):
        return tuple(_tuples(value) for value in structure)
    return structure
