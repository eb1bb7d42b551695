"""Starts with the same values in every task."""

import keras
import tensorflow as tf

from keras_maml.heads.base import Start
from keras_maml.roles import context_parameters
from keras_maml.selection import find_head, flatten_layers


@keras.saving.register_keras_serializable("keras_maml")
class ZeroHead(Start):
    """The weights of the output layer, the last one that has any, are 0 before the first step.

    Which class of a task has which number is chance: a meta-learned output layer could only prefer some numbers.

    References:
        - Kao et al. 2022, "MAML is a noisy contrastive learner in classification", arXiv:2106.15367
    """

    constant = True

    def resets(self, model):
        return find_head(model).trainable_variables

    def __call__(self, task, params):
        return task.reset(params, [tf.zeros_like(params[i]) for i in task.learner.reset])


@keras.saving.register_keras_serializable("keras_maml")
class ZeroContext(ZeroHead):
    """The context of every `layers.ContextParameters` is 0 before the first step, and not meta-learned.

    What a learned start of the context would add, the weights that read it can learn as well.

    References:
        - Zintgraf et al. 2019, "Fast context adaptation via meta-learning", arXiv:1810.03642
    """

    def resets(self, model):
        return context_parameters.variables(model, flatten_layers(model))
