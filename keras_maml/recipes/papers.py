"""Recipes: model, algorithm, compile and episode arguments of published experiments.

**The loss of the reference.** The code of Finn et al. divides the cross-entropy of an example by the shots and adds up
over the examples: its inner loss is `ways` times a mean. A library that takes means has to take

```
learning_rate = ways * published rate        # 2.0 for 0.4 at 5 ways and 0.1 at 20; 0.05 for 0.01 on mini-ImageNet
```

and the outer loss is a sum over all queries divided by the shots, `factor = ways * queries / shots` times a mean. Adam
does not see a factor, but its epsilon and a clip of gradients do: both are divided by it here.
"""

import dataclasses
from typing import Any

import keras

from keras_maml.algorithms import Algorithm, MAMLPlusPlus
from keras_maml.heads import PrototypeHead
from keras_maml.layers import per_step_normalization
from keras_maml.learning_rules import SGD, Adam
from keras_maml.meta_gradients import ParameterDifference, Unrolled
from keras_maml.recipes.networks import conv4, curve_net
from keras_maml.selection import exclude

ANTONIOU = 'Antoniou et al. 2019, "How to train your MAML", arXiv:1810.09502'
FINN = 'Finn et al. 2017, "Model-agnostic meta-learning for fast adaptation of deep networks", arXiv:1703.03400'
NICHOL = 'Nichol et al. 2018, "On first-order meta-learning algorithms", arXiv:1803.02999'
SNELL = 'Snell et al. 2017, "Prototypical networks for few-shot learning", arXiv:1703.05175'
TURNED = "A task may have one character in two orientations as two classes; there each has one orientation a task."


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """A published experiment. Functions of this module make it anew, with fresh weights, at every call.

    Args:
        model: a `keras.Model`.
        algorithm: an `Algorithm`.
        compile: arguments of `MetaModel.compile`.
        data: arguments of the function of `keras_maml.datasets` that reads the splits, beside the folder.
        episodes: arguments of training episodes but for the seed: of `keras_maml.episodes.from_arrays`, or of
            `keras_maml.datasets.sinusoid`.
        test_episodes: the same for the test.
        iterations: outer steps.
        steps: numbers of inner steps that were judged, for `keras_maml.evaluate_episodes`.
        published: `{metric: {steps: (value, half the width of its 95 % interval or None)}}`, accuracies as shares of 1.
        source: author, year, title, arXiv number.
        differs: what is not as published, or is not known, a tuple of sentences.
    """

    model: keras.Model
    algorithm: Algorithm
    compile: dict[str, Any]
    data: dict[str, Any]
    episodes: dict[str, Any]
    test_episodes: dict[str, Any]
    iterations: int
    steps: tuple
    published: dict[str, dict]
    source: str
    differs: tuple = ()


def omniglot_5way_1shot_maml():
    """MAML on Omniglot, 5-way 1-shot: Finn et al. 2017, arXiv:1703.03400, table 1."""
    return _omniglot_maml(5, 1, (0.987, 0.004))


def omniglot_5way_5shot_maml():
    """MAML on Omniglot, 5-way 5-shot: Finn et al. 2017, arXiv:1703.03400, table 1."""
    return _omniglot_maml(5, 5, (0.999, 0.001))


def omniglot_20way_1shot_maml():
    """MAML on Omniglot, 20-way 1-shot: Finn et al. 2017, arXiv:1703.03400, table 1."""
    return _omniglot_maml(20, 1, (0.958, 0.003))


def omniglot_20way_5shot_maml():
    """MAML on Omniglot, 20-way 5-shot: Finn et al. 2017, arXiv:1703.03400, table 1."""
    return _omniglot_maml(20, 5, (0.989, 0.002))


def omniglot_5way_1shot_maml_plus_plus():
    """MAML++ on Omniglot, 5-way 1-shot: 99.47 % in Antoniou et al. 2019, arXiv:1810.09502, table 1."""
    return _omniglot_maml_plus_plus(5, 0.9947)


def omniglot_20way_1shot_maml_plus_plus():
    """MAML++ on Omniglot, 20-way 1-shot: 97.65 % in Antoniou et al. 2019, arXiv:1810.09502, table 1."""
    return _omniglot_maml_plus_plus(20, 0.9765)


def mini_imagenet_5way_1shot_maml():
    """MAML on mini-ImageNet, 5-way 1-shot: Finn et al. 2017, arXiv:1703.03400, table 1."""
    return _mini_imagenet_maml(1, (0.4870, 0.0184))


def mini_imagenet_5way_5shot_maml():
    """MAML on mini-ImageNet, 5-way 5-shot: Finn et al. 2017, arXiv:1703.03400, table 1."""
    return _mini_imagenet_maml(5, (0.6311, 0.0092))


def sinusoid_maml():
    """MAML on sine waves, one inner step on 10 points: Finn et al. 2017, arXiv:1703.03400, section 5.1.

    `published` is of 5 support points, table 2 there; for it pass `shots=5` to the test episodes.
    """
    initializer = keras.initializers.TruncatedNormal(stddev=0.01)
    return Recipe(
        model=curve_net(40, initializer),
        algorithm=Algorithm(SGD(0.01), Unrolled(), steps=1, evaluation_steps=10),
        compile={"optimizer": keras.optimizers.Adam(1e-3, epsilon=1e-8), "loss": "mse"},
        data={},
        episodes={"shots": 10, "queries": 10, "tasks": 25},
        test_episodes={"shots": 10, "queries": 100, "tasks": 100},
        iterations=70_000,
        steps=(1, 5, 10),
        published={"loss": {1: (0.67, None), 5: (0.38, None), 10: (0.35, None)}},
        source=FINN,
        differs=(
            "Test waves have 100 queries, there as many as supports: less noise, the same mean.",
            "The inner rate is that of the paper; the published command line leaves it at 0.001.",
        ),
    )


def omniglot_1shot_prototypical():
    """A prototypical network on Omniglot, 1-shot, trained on 60 ways: Snell et al. 2017, arXiv:1703.05175, table 1.

    `published` is of 5-way tasks; at 20 ways (`test_episodes | {"ways": 20}`) it is 96.0 %.
    """
    return _omniglot_prototypical(1, 0.988)


def omniglot_5shot_prototypical():
    """A prototypical network on Omniglot, 5-shot, trained on 60 ways: Snell et al. 2017, arXiv:1703.05175, table 1.

    `published` is of 5-way tasks; at 20 ways (`test_episodes | {"ways": 20}`) it is 98.9 %.
    """
    return _omniglot_prototypical(5, 0.997)


def omniglot_5way_1shot_reptile():
    """Reptile on Omniglot, 5-way 1-shot, transductive: Nichol et al. 2018, arXiv:1803.02999, table 2 and appendix A."""
    return Recipe(
        model=conv4((28, 28, 1), 5, averaged=False),
        algorithm=Algorithm(Adam(1e-3, beta_1=0.0, epsilon=1e-16), ParameterDifference(), 3, evaluation_steps=5),
        compile={
            "optimizer": keras.optimizers.SGD(keras.optimizers.schedules.PolynomialDecay(1.0, 100_000, 0.0)),
            **_classification(),
        },
        data={"split": (1200, 0, 423), "rotated": ("train",)},
        episodes={"ways": 5, "shots": 15, "queries": 1, "tasks": 10},
        test_episodes={"ways": 5, "shots": 1, "queries": 1, "tasks": 20},
        iterations=100_000,
        steps=(5,),
        published={"accuracy": {5: (0.9768, 0.0004)}},
        source=NICHOL,
        differs=(
            "Each of the three inner steps takes all 75 supports; there it takes 25 of them, each once.",
            "Adam starts from moments of 0 in every task; there its moments stay from task to task.",
            "Ink is 255 on a ground of 0; there the other way round.",
            "In training each task has a query a class, which only its metrics see.",
        ),
    )


def _classification():
    return {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "metrics": ["accuracy"]}


def _optimizer(factor, clip=None):
    """Adam as the reference has it, for a loss that is a `factor` smaller."""
    # TensorFlow 1 adds 1e-8 where Keras adds 1e-7, to the same root.
    clip = None if clip is None else clip / factor
    return keras.optimizers.Adam(1e-3, epsilon=1e-8 / factor, clipvalue=clip)


def _maml(learning_rate, steps, evaluation_steps):
    # The shifts of the normalisation stand outside the inner loop of the reference: learned, not adapted.
    layers = exclude(*(f"normalization_{number}" for number in range(1, 5)))
    return Algorithm(SGD(learning_rate), Unrolled(), steps, evaluation_steps, layers)


def _omniglot_maml(ways, shots, published):
    rate, steps, evaluation_steps, tasks = (0.4, 1, 3, 32) if ways == 5 else (0.1, 5, 5, 16)
    head = keras.initializers.RandomNormal(stddev=1.0)
    return Recipe(
        model=conv4((28, 28, 1), ways, scale=False, head_initializer=head),
        algorithm=_maml(ways * rate, steps, evaluation_steps),
        compile={"optimizer": _optimizer(ways), **_classification()},
        data={"split": (1100, 100, 423), "rotated": ("train", "validation", "test")},
        episodes={"ways": ways, "shots": shots, "queries": shots, "tasks": tasks},
        test_episodes={"ways": ways, "shots": shots, "queries": shots, "tasks": 20},
        iterations=60_000,
        steps=(evaluation_steps,),
        published={"accuracy": {evaluation_steps: published}},
        source=FINN,
        differs=(
            "The published code trains for 40,000 iterations, the paper says 60,000.",
            "Drawings are resized by a Lanczos kernel; PIL took the nearest pixel there.",
            TURNED,
            "Which characters are in which split was drawn at random there, and here.",
        ),
    )


def _omniglot_maml_plus_plus(ways, published):
    # This code takes means over the queries, as ours does: no rate has to be changed.
    net = {"pooled": True, "averaged": False, "negative_slope": 0.01, "momentum": 0.9, "epsilon": 1e-5}
    iterations = 50_000
    rate = keras.optimizers.schedules.CosineDecay(1e-3, iterations, alpha=0.01)
    return Recipe(
        model=per_step_normalization(conv4((28, 28, 1), ways, **net), steps=5),
        algorithm=MAMLPlusPlus(0.1, steps=5),
        compile={"optimizer": keras.optimizers.Adam(rate, epsilon=1e-8), **_classification()},
        data={"split": (1150, 50, 423), "rotated": ("train",)},
        episodes={"ways": ways, "shots": 1, "queries": 1, "tasks": 8},
        test_episodes={"ways": ways, "shots": 1, "queries": 1, "tasks": 20},
        iterations=iterations,
        steps=(5,),
        published={"accuracy": {5: (published, None)}},
        source=ANTONIOU,
        differs=(
            "Published is an ensemble of the five best checkpoints; here is one model.",
            "As in the paper, gradients are of first order for half of the run; the published settings leave that off.",
            "As in the paper, queries of an evaluation are normalised by the moving moments of their step; the "
            "published code takes those of the batch.",
            "Ink is 255 on a ground of 0; there the other way round.",
            TURNED,
            "Which characters are in which split was drawn at random there, and here.",
        ),
    )


def _mini_imagenet_maml(shots, published):
    return Recipe(
        model=conv4((84, 84, 3), 5, filters=32, pooled=True, averaged=False, scale=False),
        algorithm=_maml(5 * 0.01, 5, 10),
        compile={"optimizer": _optimizer(5 * 15 / shots, clip=10.0), **_classification()},
        data={},
        episodes={"ways": 5, "shots": shots, "queries": 15, "tasks": 4},
        test_episodes={"ways": 5, "shots": shots, "queries": shots, "tasks": 20},
        iterations=60_000,
        steps=(10,),
        published={"accuracy": {10: published}},
        source=FINN,
        differs=(
            "A test task has as many queries as supports, as in the published code; the paper gives no number.",
            "5-shot batches have 4 tasks, as in the published code; the paper has 2.",
        ),
    )


def _omniglot_prototypical(shots, published):
    halving = keras.optimizers.schedules.ExponentialDecay(1e-3, 2000, 0.5, staircase=True)
    return Recipe(
        model=conv4((28, 28, 1), 60, pooled=True, averaged=False, statistics="moving"),
        algorithm=Algorithm(SGD(), Unrolled(), steps=0, start=PrototypeHead()),
        compile={"optimizer": keras.optimizers.Adam(halving, epsilon=1e-8), **_classification()},
        data={"split": (1200, 0, 423), "rotated": ("train", "test")},
        episodes={"ways": 60, "shots": shots, "queries": 5, "tasks": 1},
        test_episodes={"ways": 5, "shots": shots, "queries": 15, "tasks": 20},
        iterations=20_000,
        steps=(0,),
        published={"accuracy": {0: (published, None)}},
        source=SNELL,
        differs=(
            "20,000 iterations: the paper gives the halving of the rate every 2,000 and no end; its code stops when "
            "validation does not get better for 20,000.",
            "In training, supports and queries are normalised each by their own moments; there by those of both.",
            "Characters are split at random; there by the lists of Vinyals et al. 2016.",
        ),
    )
