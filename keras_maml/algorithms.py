"""Algorithms: points on orthogonal axes, and the names that the field has given to some of them.

| preset | rule | meta-gradient | adapts |
|---|---|---|---|
| `MAML` | `SGD` | `Unrolled` | all |
| `FOMAML` | `SGD` | `FirstOrder` | all |
| `Reptile` | `SGD` | `ParameterDifference` | all |
| `MetaSGD` | `LearnedSGD` | `Unrolled` | all |
| `ANIL` | `SGD` | `Unrolled` | the head |
| `BOIL` | `SGD` | `Unrolled` | all but the head |
| `IMAML` | `ProximalSGD` | `Implicit` | all |
| `CAVIA` | `SGD` | `Unrolled` | the context, from 0 |
| `MAMLPlusPlus` | `LayerwiseSGD` | `MultiStep` | all but normalisation |

| preset | starts from | then |
|---|---|---|
| `ProtoNet` | `PrototypeHead` | |
| `ProtoMAML` | `PrototypeHead` | as `MAML` |
| `R2D2` | `RidgeHead` | |
| `MetaOptNet` | `SVMHead` | |

All presets with inner steps take

- `learning_rate`: size of an inner step, positive; where the loss is a mean over the supports,
- `steps`: inner steps in training, at least 1, and `evaluation_steps`: elsewhere, at least 0, default `steps`,
- `clipnorm`: greatest global norm of an inner gradient, positive, or `None`,

and raise `ValueError` for what is out of range. `head` is the name or the object of a layer. Presets without steps take
the arguments of their start.
"""

import dataclasses
import difflib
from typing import Any

import keras

from keras_maml.arguments import check_flag
from keras_maml.heads import PrototypeHead, RidgeHead, Start, SVMHead, ZeroContext
from keras_maml.learning_rules import SGD, LayerwiseSGD, LearnedSGD, LearningRule, ProximalSGD
from keras_maml.meta_gradients import (
    FirstOrder,
    Implicit,
    MetaGradient,
    MultiStep,
    ParameterDifference,
    Unrolled,
)
from keras_maml.roles import context_parameters, normalization
from keras_maml.selection import Head, exclude, layer_reference


@keras.saving.register_keras_serializable("keras_maml")
@dataclasses.dataclass(frozen=True)
class Algorithm:
    """How a model learns to learn: what moves within a task, how, for how long, and how the outer gradient is taken.

    A value: it holds configuration, and may serve many models. Each `MetaModel` builds its own copy of the parts.

    Args:
        rule: a `LearningRule`, how parameters move within a task.
        meta_gradient: a `MetaGradient`, how the outer gradient is taken.
        steps: number of inner steps in training, at least 1, or 0 with a `start` that depends on the supports.
        evaluation_steps: number of inner steps in `evaluate`, `predict`, `adapt` and exports, at least 0; default
            `steps`.
        layers: what adapts: a layer name or object, `keras_maml.biases`, `normalization`, `lora` or
            `context_parameters`, a sequence of these, `keras_maml.exclude(...)` of them, or a predicate on a variable;
            default everything trainable. What does not adapt is still meta-learned.
        start: a `Start`, such as `keras_maml.PrototypeHead()`: weights that are not meta-learned, but set at the start
            of every task; default none.

    Raises:
        ValueError: if parts cannot be combined, with the reason and the remedy.
    """

    rule: LearningRule
    meta_gradient: MetaGradient
    steps: int
    evaluation_steps: int | None = None
    layers: Any = None
    start: Start | None = None

    def __post_init__(self):
        kinds = {
            "rule": (LearningRule, "such as `SGD()`"),
            "meta_gradient": (MetaGradient, "such as `Unrolled()`"),
            "start": (Start | None, "such as `PrototypeHead()`, or `None`"),
        }
        for name, (kind, example) in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                kind = kind if isinstance(kind, type) else Start
                raise ValueError(f"`{name}` must be a `{kind.__name__}`, {example}. Received: {name}={value!r}.")
        for name, least in (("steps", 0 if self._starts_from_supports else 1), ("evaluation_steps", 0)):
            value = getattr(self, name)
            if name == "evaluation_steps" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}.")
        if isinstance(self.layers, list):
            object.__setattr__(self, "layers", tuple(self.layers))
        self.meta_gradient.check(self.rule, self.layers, self.start)
        if self.rule.learned and self.steps == 0:
            raise ValueError(
                f"With `steps=0` nothing is learned about step sizes. Received: rule={type(self.rule).__name__}. Use a "
                "rule without weights, such as `SGD`, or train with steps."
            )

    def parts(self):
        """Copies with weights of their own: `(rule, meta_gradient, start)`."""
        parts = (self.rule, self.meta_gradient, self.start)
        return tuple(part and type(part).from_config(part.get_config()) for part in parts)

    @property
    def _starts_from_supports(self):
        return self.start is not None and not self.start.constant

    def get_config(self):
        layers = self.layers
        if isinstance(layers, tuple):
            layers = [layer_reference(layer) for layer in layers]
        elif layers is not None:
            layers = layer_reference(layers)
        return {
            "rule": keras.saving.serialize_keras_object(self.rule),
            "meta_gradient": keras.saving.serialize_keras_object(self.meta_gradient),
            "steps": self.steps,
            "evaluation_steps": self.evaluation_steps,
            "layers": layers,
            "start": keras.saving.serialize_keras_object(self.start),
        }

    @classmethod
    def from_config(cls, config):
        config = {k: keras.saving.deserialize_keras_object(v) for k, v in config.items()}
        return cls(**config)


def MAML(learning_rate=0.01, steps=5, evaluation_steps=None, clipnorm=None):
    """Model-agnostic meta-learning (Finn et al. 2017, arXiv:1703.03400): through every step of gradient descent."""
    return Algorithm(SGD(learning_rate, clipnorm), Unrolled(), steps, evaluation_steps)


def FOMAML(learning_rate=0.01, steps=5, evaluation_steps=None, clipnorm=None):
    """First-order MAML (Finn et al. 2017, arXiv:1703.03400): about half the work, no second derivatives."""
    return Algorithm(SGD(learning_rate, clipnorm), FirstOrder(), steps, evaluation_steps)


def Reptile(learning_rate=0.01, steps=5, evaluation_steps=None, clipnorm=None, data="support"):
    """Reptile (Nichol et al. 2018, arXiv:1803.02999): moves theta towards phi. `data="episode"` as in the paper."""
    return Algorithm(SGD(learning_rate, clipnorm), ParameterDifference(data), steps, evaluation_steps)


def MetaSGD(learning_rate=0.01, steps=1, evaluation_steps=None, clipnorm=None):
    """Meta-SGD (Li et al. 2017, arXiv:1707.09835): MAML that learns a step size for every weight too."""
    return Algorithm(LearnedSGD(learning_rate, clipnorm), Unrolled(), steps, evaluation_steps)


def ANIL(learning_rate=0.01, steps=5, evaluation_steps=None, clipnorm=None, head=None):
    """Almost no inner loop (Raghu et al. 2020, arXiv:1909.09157): only the head adapts, by default the last layer
    with weights."""
    layers = (Head() if head is None else head,)
    return Algorithm(SGD(learning_rate, clipnorm), Unrolled(), steps, evaluation_steps, layers)


def BOIL(learning_rate=0.01, steps=5, evaluation_steps=None, clipnorm=None, head=None):
    """Body only in the inner loop (Oh et al. 2021, arXiv:2008.08882): all but the head adapts, by default as for
    `ANIL`."""
    layers = exclude(Head() if head is None else head)
    return Algorithm(SGD(learning_rate, clipnorm), Unrolled(), steps, evaluation_steps, layers)


def IMAML(learning_rate=0.01, steps=30, evaluation_steps=None, clipnorm=None, strength=2.0, iterations=2):
    """Implicit MAML (Rajeswaran et al. 2019, arXiv:1909.04630): memory does not grow with steps.

    `strength` pulls phi towards theta, `iterations` are those of conjugate gradients. It learns if steps come near the
    minimum, `steps * learning_rate * strength` about 1, and with few iterations if they do not: see `Implicit`."""
    rule = ProximalSGD(learning_rate, strength, clipnorm)
    return Algorithm(rule, Implicit(iterations), steps, evaluation_steps)


def CAVIA(learning_rate=1.0, steps=2, evaluation_steps=None, clipnorm=None):
    """Fast context adaptation (Zintgraf et al. 2019, arXiv:1810.03642): only the context of
    `layers.ContextParameters` adapts, from 0; all else is shared by all tasks."""
    rule, start = SGD(learning_rate, clipnorm), ZeroContext()
    return Algorithm(rule, Unrolled(), steps, evaluation_steps, layers=context_parameters, start=start)


def MAMLPlusPlus(
    learning_rate=0.1,
    steps=5,
    evaluation_steps=None,
    clipnorm=None,
    multi_step_share=0.1,
    first_order_share=0.5,
    adapt_normalization=False,
):
    """MAML++ (Antoniou et al. 2019, arXiv:1810.09502): MAML made to train fast and stably, by six parts.

    Here are the loss of every step, with weights annealed to the last one over `multi_step_share` of the run (the
    paper: 10 of 100 epochs), first-order gradients for `first_order_share` of it (50 of 100), and a learned rate for
    every variable and step. `None` switches a share off. Normalisation layers do not adapt within a task, as with the
    authors, unless `adapt_normalization`; they are meta-learned. The other parts are in the model, weights and moving
    moments of normalisation for each step, and in `compile`, the cosine:

    ```python
    model = keras_maml.layers.per_step_normalization(model, steps=5)
    meta_model = keras_maml.MetaModel(model, keras_maml.MAMLPlusPlus(0.1, steps=5))
    rate = keras.optimizers.schedules.CosineDecay(1e-3, decay_steps=50_000, alpha=0.01)    # to 1e-5
    meta_model.compile(keras.optimizers.Adam(rate), loss=..., metrics=["accuracy"])
    meta_model.fit(train, steps_per_epoch=500, epochs=100)
    ```

    Shares are of the `epochs` of one call of `fit` (of several: `keras_maml.callbacks.Anneal`); a training loop of your
    own calls `meta_model.meta_gradient.anneal(share)`."""
    check_flag("adapt_normalization", adapt_normalization)
    shares = {"first_order_share": first_order_share}
    meta_gradient = Unrolled(**shares) if multi_step_share is None else MultiStep(multi_step_share, **shares)
    layers = None if adapt_normalization else exclude(normalization)
    return Algorithm(LayerwiseSGD(learning_rate, clipnorm), meta_gradient, steps, evaluation_steps, layers)


def ProtoNet(distance="euclidean", scale=None):
    """Prototypical networks (Snell et al. 2017, arXiv:1703.05175): the nearest mean of a class."""
    return _without_steps(PrototypeHead(distance, scale))


def ProtoMAML(learning_rate=0.01, steps=5, evaluation_steps=None, clipnorm=None, distance="euclidean", scale=None):
    """Proto-MAML (Triantafillou et al. 2020, arXiv:1903.03096): MAML whose output layer starts from prototypes."""
    start = PrototypeHead(distance, scale)
    return Algorithm(SGD(learning_rate, clipnorm), Unrolled(), steps, evaluation_steps, start=start)


def R2D2(regularization=1.0, scale=10.0, learned=True):
    """R2-D2 (Bertinetto et al. 2019, arXiv:1805.08136): ridge regression of the labels, its settings learned."""
    return _without_steps(RidgeHead(regularization, scale, learned=learned))


def MetaOptNet(C=0.1, scale=10.0, learned=True, iterations=15):
    """MetaOptNet-SVM (Lee et al. 2019, arXiv:1904.03758): a support vector machine, differentiated at its solution."""
    return _without_steps(SVMHead(C, scale, learned, iterations))


def _without_steps(start):
    return Algorithm(SGD(), Unrolled(), steps=0, start=start)


PRESETS = {
    "maml": MAML,
    "fomaml": FOMAML,
    "reptile": Reptile,
    "metasgd": MetaSGD,
    "anil": ANIL,
    "boil": BOIL,
    "imaml": IMAML,
    "cavia": CAVIA,
    "mamlplusplus": MAMLPlusPlus,
    "protonet": ProtoNet,
    "protomaml": ProtoMAML,
    "r2d2": R2D2,
    "metaoptnet": MetaOptNet,
}


def get(algorithm):
    """An `Algorithm`, from itself or from the lower-case name of a preset with its default settings."""
    if isinstance(algorithm, Algorithm):
        return algorithm
    if isinstance(algorithm, str) and algorithm in PRESETS:
        return PRESETS[algorithm]()
    hint = ""
    if isinstance(algorithm, str):
        close = difflib.get_close_matches(algorithm.lower().replace("_", "").replace("-", ""), PRESETS, 1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
    elif algorithm in PRESETS.values():
        hint = f" Call the preset: `{algorithm.__name__}()`."
    raise ValueError(
        f"`algorithm` must be an `Algorithm` or one of {sorted(PRESETS)}. Received: algorithm={algorithm!r}.{hint}"
    )
