"""An outer gradient without derivatives: towards the adapted parameters."""

import keras

from keras_maml.meta_gradients.base import MetaGradient, TaskResult


@keras.saving.register_keras_serializable("keras_maml")
class ParameterDifference(MetaGradient):
    """Moves towards the adapted parameters: `theta - phi` in place of a gradient.

    Args:
        data: what phi of the outer update is adapted on: `"support"`, or `"episode"` for supports and queries
            together, as in the paper. The loss and the predictions always come from adapting on the supports alone.

    References:
        - Nichol et al. 2018, "On first-order meta-learning algorithms", arXiv:1803.02999
    """

    differentiates = False
    second_order = False

    def __init__(self, data="support", **kwargs):
        super().__init__(**kwargs)
        if data not in ("support", "episode"):
            raise ValueError(f"`data` must be 'support' or 'episode'. Received: data={data!r}.")
        self.data = data

    def __call__(self, task, variables):
        ((params, state),) = task.iterates(variables, stop_gradients=True)
        loss, predictions, state = task.loss(params, state, on="query")
        if self.data == "episode":
            ((params, state),) = task.iterates(
                variables, stop_gradients=True, data="episode", stream=1
            )
        # Only adapting weights are meta-learned here, and they are all of the model's but for those of a start.
        difference = [
            None if i in task.unreached else theta - params[i]
            for i, theta in zip(task.learner.learned, variables, strict=True)
        ]
        return TaskResult(loss, predictions, difference, state)

    def get_config(self):
        return {**super().get_config(), "data": self.data}
