"""Schedules of outer gradient estimators: what share of the run has passed."""

import math
import warnings

import keras

from keras_maml.arguments import check_whole

PARTS = 100  # of a run, the number of epochs of MAML++


class Anneal(keras.callbacks.Callback):
    """Tells the model's `MetaGradient`, at the begin of every epoch, what share of the run has passed.

    ```
    meta_model.meta_gradient.anneal(epoch / epochs)
    ```

    A run of fewer than 100 epochs is told so within epochs too, 100 times in all or a few more, so that schedules act
    in a run of one long epoch as in one of many. That needs the length of an epoch: `steps_per_epoch`, or a dataset of
    known size.

    `fit` adds this callback by itself where the estimator anneals, so that it is needed only for another number of
    epochs: of a run that several calls of `fit` make, say, each with its `initial_epoch`. Without it each call is a
    whole run, and a warning says that the schedule goes back. What is resumed, by `initial_epoch` or
    `BackupAndRestore`, goes on as if it had not been interrupted. After the last epoch the estimator is at its end.

    Args:
        epochs: number of epochs of the whole run, at least 1; default that of `fit`.

    Raises:
        ValueError: for a number out of range, or a model that is no `MetaModel`.
    """

    def __init__(self, epochs=None):
        super().__init__()
        if epochs is not None:
            check_whole(1, epochs=epochs)
        self.epochs = epochs
        self._epoch, self._part = None, None

    def on_train_begin(self, logs=None):
        self._epoch = None
        estimator = getattr(self.model, "meta_gradient", None)
        if estimator is None:
            raise ValueError(f"`Anneal` is for a `MetaModel`. Received: a model of class {type(self.model).__name__}.")
        if estimator.anneals and self._epochs() * self._parts() == 1:
            warnings.warn(
                f"`{type(estimator).__name__}` anneals as the run goes on, and this run has one epoch, of one step or "
                "of unknown length: it stays at its beginning. Pass `steps_per_epoch`, or `Anneal(epochs=...)` if the "
                "run goes on in other calls of `fit`.",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch, logs=None):
        if self._epoch is None:
            self._warn_if_back(epoch)
        self._epoch, self._part = epoch, None
        self._anneal(0)

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 >= self._epochs() and self._epochs() * self._parts() > 1:
            self._tell(1.0)

    def on_train_batch_begin(self, batch, logs=None):
        parts = self._parts()
        self._anneal(batch * parts // self.params["steps"] if parts > 1 else 0)

    def _anneal(self, part):
        if part != self._part:
            self._part = part
            self._tell(min((self._epoch + part / self._parts()) / self._epochs(), 1.0))

    def _tell(self, share):
        self.model.meta_gradient.anneal(share)
        self.model.meta_gradient.progress = share

    def _warn_if_back(self, epoch):
        estimator = self.model.meta_gradient
        # Within an epoch it may: what is resumed begins at an epoch.
        if estimator.anneals and estimator.progress is not None and estimator.progress >= (epoch + 1) / self._epochs():
            here, there = 100 * epoch / self._epochs(), 100 * estimator.progress
            warnings.warn(
                f"The schedule of `{type(estimator).__name__}` goes back: it had come to {there:.0f} % of a run, and "
                f"this call of `fit` begins at {here:.0f} %. If these calls are one run, pass "
                "`callbacks=[keras_maml.callbacks.Anneal(epochs)]` with the epochs of all of them, and "
                "`initial_epoch=`.",
                stacklevel=2,
            )

    def _parts(self):
        """How often the estimator is told in an epoch."""
        return max(min(math.ceil(PARTS / self._epochs()), self.params.get("steps") or 1), 1)

    def _epochs(self):
        return self.params["epochs"] if self.epochs is None else self.epochs


def with_annealing(meta_model, callbacks, epochs):
    """The callbacks of `fit`, with an `Anneal` where the estimator anneals and none is there.

    Args:
        meta_model: the `MetaModel`.
        callbacks: what `fit` was given: a list, one callback, a `CallbackList` or `None`.
        epochs: of this call of `fit`.

    Raises:
        ValueError: for a `CallbackList` without `Anneal`.
    """
    if not meta_model.meta_gradient.anneals:
        return callbacks
    whole = isinstance(callbacks, keras.callbacks.CallbackList)
    listed = callbacks.callbacks if whole else callbacks if isinstance(callbacks, list | tuple) else [callbacks]
    if any(isinstance(callback, Anneal) for callback in listed):
        return callbacks
    if whole:
        raise ValueError(
            f"`{type(meta_model.meta_gradient).__name__}` anneals, and the `CallbackList` has no "
            "`keras_maml.callbacks.Anneal`. Put one into it, or pass `callbacks` as a list, to which `fit` adds one."
        )
    return [*(callback for callback in listed if callback is not None), Anneal(epochs)]
