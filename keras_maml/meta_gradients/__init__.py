"""How the outer gradient of one task is taken."""

from keras_maml.meta_gradients.estimators import FirstOrder
from keras_maml.meta_gradients.estimators import Implicit
from keras_maml.meta_gradients.estimators import MetaGradient
from keras_maml.meta_gradients.estimators import ParameterDifference
from keras_maml.meta_gradients.estimators import TaskResult
from keras_maml.meta_gradients.estimators import Unrolled
from keras_maml.meta_gradients.multi_step import MultiStep
