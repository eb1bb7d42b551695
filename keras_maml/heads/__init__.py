"""Where a task starts: weights that are not meta-learned, but set at the start of every task.

| start | the weights of the output layer before the first step |
|---|---|
| `ZeroHead` | 0 |
| `PrototypeHead` | from the mean of each class's support features |
| `RidgeHead` | those of ridge regression on the support features |
| `SVMHead` | those of a support vector machine on the support features |

`ZeroContext` sets the context of `layers.ContextParameters` to 0, and leaves the output layer alone.

What a start sets is not meta-learned: it gets no outer gradient, and the optimizer does not see it. It adapts from
there as `Algorithm(layers=...)` says. The output layer has as many units in every task: where an episode has fewer
classes, the others are classes without supports. For more classes see `MetaModel.with_ways`.
"""

from keras_maml.heads.base import ComputedHead
from keras_maml.heads.base import Start
from keras_maml.heads.base import started
from keras_maml.heads.constant import ZeroContext
from keras_maml.heads.constant import ZeroHead
from keras_maml.heads.prototypes import PrototypeHead
from keras_maml.heads.ridge import RidgeHead
from keras_maml.heads.svm import SVMHead
