"""How the outer gradient of one task is taken. Each estimator's class holds its difference and nothing else.

An estimator sees a `Task`, never Keras, `tf.data` or labels. With `L` the loss on the queries, `phi(theta)` the
parameters after adaptation:

| estimator | outer gradient |
|---|---|
| `Unrolled` | `d L(phi(theta)) / d theta`, through every inner step or the last ones |
| `FirstOrder` | the same with the inner gradients taken for constants |
| `MultiStep` | of a weighted sum of the losses after every inner step |
| `ParameterDifference` | `theta - phi` |
| `Implicit` | `(I + H / strength)^-1 grad L(phi)`, H the Hessian of the support loss at phi |
| `EvolutionStrategies` | from values of `L(phi(theta + noise))` alone |
| `SharpnessAware` | that of another estimator, where a small step uphill leads |
"""

from keras_maml.meta_gradients.base import MetaGradient, TaskResult
from keras_maml.meta_gradients.unrolled import FirstOrder, Unrolled
from keras_maml.meta_gradients.multi_step import MultiStep
from keras_maml.meta_gradients.difference import ParameterDifference
from keras_maml.meta_gradients.implicit import Implicit
from keras_maml.meta_gradients.evolution import EvolutionStrategies
from keras_maml.meta_gradients.sharpness import SharpnessAware
