"""How parameters move within one task: pure functions from parameters and gradients to new parameters.

With `p` a parameter, `g` the gradient of the support loss, `rate` the learning rate:

| rule | a step | meta-learns |
|---|---|---|
| `SGD` | `p - rate * g` | |
| `Momentum` | `p - rate * v`, v a velocity | |
| `ProximalSGD` | `p - rate * (g + strength * (p - p_0))` | |
| `Adam`, `AdamW`, `RMSprop`, `Adagrad` | `p - rate * g` over the root of the squares of g | |
| `LearnedSGD` | `p - rate * g` | a rate for every weight |
| `LayerwiseSGD` | `p - rate * g` | a rate for every variable and step |
| `MetaCurvature` | `p - rate * M(g)` | M, a matrix for every axis of a variable |
| `ALFA` | `keep * p - rate * g` | a net from p and g to keep and rate, factors of every variable and step |

Every rule starts anew in every task. Rules without learned rates also take a
`keras.optimizers.schedules.LearningRateSchedule`, read at the number of the inner step.
"""

from keras_maml.learning_rules.base import LearningRule
from keras_maml.learning_rules.descent import SGD, Momentum, ProximalSGD
from keras_maml.learning_rules.adaptive import Adagrad, Adam, AdamW, RMSprop
from keras_maml.learning_rules.learned import LayerwiseSGD, LearnedSGD
from keras_maml.learning_rules.meta_curvature import MetaCurvature
from keras_maml.learning_rules.alfa import ALFA
