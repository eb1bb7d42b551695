"""Do layers that never adapt make the gradient steps of the others better?

Puts a matrix between the adapted layers of the net of `quickstart.py`. It is meta-learned, but within a task it stays
as it is, so that it is free to learn how the inner gradients should be bent: warp layers (Flennerhag et al. 2020,
arXiv:1909.00025), or, right behind a product, a T-Net (Lee and Choi 2018, arXiv:1801.05558). Three learners, trained
with one inner step, are compared on the same 600 new waves; in the second of them the same matrices adapt too:

    python examples/warp_layers.py
"""

import argparse

import keras

import keras_maml

STEPS = (0, 1, 5)


def build_model(warp):
    """The net of `quickstart.py`; `warp`: with a matrix, at first the identity, behind each hidden layer."""
    model = keras.Sequential([keras.Input((1,))])
    for number in (1, 2):
        model.add(keras.layers.Dense(40, activation="relu"))
        if warp:
            options = {"use_bias": False, "kernel_initializer": "identity"}
            model.add(keras.layers.Dense(40, name=f"warp_{number}", **options))
    model.add(keras.layers.Dense(1))
    return model


def algorithm(layers=None):
    rule, estimator = keras_maml.learning_rules.SGD(0.01), keras_maml.meta_gradients.Unrolled()
    return keras_maml.Algorithm(rule, estimator, steps=1, evaluation_steps=max(STEPS), layers=layers)


LEARNERS = {
    "MAML": (False, None),
    "with more matrices, which adapt too": (True, None),
    "with warp layers": (True, keras_maml.exclude("warp_1", "warp_2")),
}


def train_and_judge(warp, layers, iterations, seed):
    keras.utils.set_random_seed(seed)
    meta_model = keras_maml.MetaModel(build_model(warp), algorithm(layers))
    at_once = next(n for n in (100, 50, 20, 10, 1) if iterations % n == 0)
    meta_model.compile(keras.optimizers.Adam(1e-3), loss="mse", steps_per_execution=at_once)
    train = keras_maml.datasets.sinusoid(shots=10, queries=10, tasks=25, seed=seed)
    meta_model.fit(train, steps_per_epoch=iterations, verbose=0)
    test = keras_maml.datasets.sinusoid(shots=10, queries=100, tasks=100, seed=keras_maml.episodes.fixed(600))
    return keras_maml.evaluate_episodes(meta_model, test, tasks=600, steps=STEPS, verbose=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=10_000, help="outer steps")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    print(f"Query error (mean square) after {', '.join(map(str, STEPS))} steps; median, mean and its 95 % interval")
    reports = {}
    for name, (warp, layers) in LEARNERS.items():
        reports[name] = train_and_judge(warp, layers, arguments.iterations, arguments.seed)
        rows = [reports[name].summary("loss", steps) for steps in STEPS]
        cells = "   ".join(f"{row.median:.3f} {row.mean:.3g} +- {row.margin:.2g}" for row in rows)
        print(f"{name:36s} {cells}", flush=True)
    print(f"\nWith warp layers minus MAML, wave by wave:\n{reports['with warp layers'].compare(reports['MAML'])}")


if __name__ == "__main__":
    main()
