"""Which algorithm learns to draw sine waves best, and from how few points?

Repeats the regression experiment of Finn et al. 2017 (arXiv:1703.03400, section 5.1): 25 waves a batch, 10 support and
10 query points, a net of two layers of 40, inner learning rate 0.01, Adam at 0.001. Prints, over 600 new waves, the
mean and median of the query errors after 1, 5 and 10 steps with 5, 10 and 20 support points, and how many waves
diverged:

    python examples/sinusoid.py --algorithm maml --iterations 70000 --seeds 3
"""

import argparse

import keras
import numpy as np
import quickstart

import keras_maml

PRESETS = {"maml": keras_maml.MAML, "fomaml": keras_maml.FOMAML, "metasgd": keras_maml.MetaSGD}
ALL_STEPS = (1, 5, 10)
DIVERGED = 100.0  # mean square; the variance of the largest wave is 12.5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=PRESETS, default="maml")
    parser.add_argument("--steps", type=int, default=1, help="inner steps in training")
    parser.add_argument("--iterations", type=int, default=5000, help="outer steps")
    parser.add_argument("--seeds", type=int, default=1, help="number of runs")
    arguments = parser.parse_args()

    results = {}
    for seed in range(arguments.seeds):
        keras.utils.set_random_seed(seed)
        train = keras_maml.datasets.sinusoid(shots=10, queries=10, tasks=25, seed=seed)
        algorithm = PRESETS[arguments.algorithm](learning_rate=0.01, steps=arguments.steps)
        meta_model = keras_maml.MetaModel(quickstart.build_model(), algorithm)
        meta_model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="mse", steps_per_execution=100)
        meta_model.fit(train, steps_per_epoch=arguments.iterations, epochs=1, verbose=0)
        for shots in (5, 10, 20):
            fixed = keras_maml.episodes.fixed(600)
            test = keras_maml.datasets.sinusoid(shots=shots, queries=100, tasks=100, seed=fixed)
            report = keras_maml.evaluate_episodes(meta_model, test, tasks=600, steps=ALL_STEPS, verbose=0)
            for steps in ALL_STEPS:
                row = report.summary("loss", steps)
                lost = int((report.of("loss", steps) > DIVERGED).sum()) + row.non_finite
                results.setdefault((shots, steps), []).append((row.mean, row.median, lost))

    name = f"{arguments.algorithm}, {arguments.steps} step{'s' if arguments.steps > 1 else ''} in training"
    print(f"{name}, {arguments.iterations} iterations, 600 waves; median over {arguments.seeds} seeds [each seed]")
    print("supports  steps  mean error                 median error               diverged")
    for (shots, steps), runs in results.items():
        mean, median, diverged = zip(*runs, strict=True)
        print(f"{shots:8d}  {steps:5d}  {_describe(mean):25s}  {_describe(median):25s}  {list(diverged)}")
    print(f"\nThe last of these reports:\n\n{report}")


def _describe(values):
    return f"{np.median(values):.2f} [{', '.join(f'{value:.2f}' for value in values)}]"


if __name__ == "__main__":
    main()
