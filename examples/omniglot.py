"""How well does a few-shot learner read characters of alphabets that it has never seen?

Meta-trains on 1,100 characters of Omniglot, each turned by 0, 90, 180 and 270 degrees, and judges on 423 others. The
last line is the test accuracy over `--evaluation-tasks` tasks, with a 95 % interval:

    python examples/omniglot.py --data-dir ~/tensorflow_datasets
    python examples/omniglot.py --algorithm anil --ways 20 --output-dir runs/anil

Net, tasks a batch and split are those of Finn et al. 2017 (arXiv:1703.03400): four convolutions of stride 2 with 64
filters, batch normalisation by the statistics of the very batch (transductive), 32 tasks a batch at 5 ways and 16 at
20. Other than there: the inner learning rate is smaller, the outer one larger and falling along a cosine, and training
tasks have `--queries` queries a class.
"""

import argparse
import pathlib
import time

import keras
import numpy as np

import keras_maml

# Inner learning rates for a mean cross-entropy, inner steps in training and in evaluation. The reference sums its loss
# over the ways * shots supports, so that its rates of 0.4 and 0.1 would be 2.0 here: too much for short training.
# Those of MAML at 5 ways were compared (see README.md here); the others are untuned starting points.
SETTINGS = {
    "maml": (keras_maml.MAML, {5: (0.4, 1, 3), 20: (0.4, 1, 3)}),
    "fomaml": (keras_maml.FOMAML, {5: (0.5, 3, 5), 20: (0.5, 5, 5)}),
    "reptile": (keras_maml.Reptile, {5: (0.1, 10, 20), 20: (0.1, 10, 20)}),
    "metasgd": (keras_maml.MetaSGD, {5: (1.0, 1, 1), 20: (1.0, 1, 1)}),
    "anil": (keras_maml.ANIL, {5: (2.0, 5, 5), 20: (2.0, 5, 5)}),
    "boil": (keras_maml.BOIL, {5: (1.0, 1, 1), 20: (1.0, 1, 1)}),
    "imaml": (keras_maml.IMAML, {5: (0.2, 10, 10), 20: (0.2, 10, 10)}),
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=SETTINGS, default="maml")
    parser.add_argument("--ways", type=int, default=5, help="classes of a task")
    parser.add_argument("--shots", type=int, default=1, help="support examples a class")
    parser.add_argument("--queries", type=int, default=5, help="query examples a class, in training")
    parser.add_argument("--iterations", type=int, default=4000, help="outer steps")
    parser.add_argument("--evaluation-tasks", type=int, default=600, help="test tasks, 15 queries a class each")
    parser.add_argument("--data-dir", default=None, help="folder of tensorflow-datasets; downloads into it if need be")
    parser.add_argument("--output-dir", type=pathlib.Path, default=None, help="for curve, log and SavedModel")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def build_model(ways):
    model = keras.Sequential([keras.Input((28, 28, 1), dtype="uint8"), keras.layers.Rescaling(1 / 255)])
    for _ in range(4):
        model.add(keras.layers.Conv2D(64, 3, strides=2, padding="same"))
        model.add(keras.layers.BatchNormalization())
        model.add(keras.layers.ReLU())
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(ways, name="head"))
    return model


def draw_curve(history, path, title):
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print('No curve: matplotlib is missing. Install it by `pip install "keras-maml[plots]"`.')
        return
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(history["iteration"], history["accuracy"], label="training characters")
    axes.plot(history["iteration"], history["val_accuracy"], label="validation characters")
    axes.set(xlabel="outer steps", ylabel="query accuracy after adaptation", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main():
    arguments = parse()
    keras.utils.set_random_seed(arguments.seed)
    ways, shots = arguments.ways, arguments.shots
    preset, by_ways = SETTINGS[arguments.algorithm]
    rate, steps, evaluation_steps = by_ways[5 if ways < 12 else 20]
    tasks = 32 if ways < 12 else 16
    keras_maml.set_threads(tasks)

    splits = keras_maml.datasets.omniglot(arguments.data_dir)
    sizes = dict(ways=ways, shots=shots)
    train = keras_maml.episodes.from_arrays(
        *splits["train"], queries=arguments.queries, tasks=tasks, seed=arguments.seed, **sizes
    )
    validation = keras_maml.episodes.from_arrays(
        *splits["validation"], queries=5, tasks=tasks, seed=1, batches=max(1, 320 // tasks), **sizes
    )
    test_tasks = min(20, arguments.evaluation_tasks)
    test = keras_maml.episodes.from_arrays(
        *splits["test"],
        queries=15,
        tasks=test_tasks,
        seed=2,
        **sizes,
    )

    algorithm = preset(learning_rate=rate, steps=steps, evaluation_steps=evaluation_steps)
    meta_model = keras_maml.MetaModel(build_model(ways), algorithm)
    schedule = keras.optimizers.schedules.CosineDecay(4e-3, arguments.iterations, alpha=0.01)
    optimizer = keras.optimizers.Adam(schedule)
    if arguments.algorithm == "reptile":  # its outer step is a share of the way to phi, not a gradient
        optimizer = keras.optimizers.SGD(keras.optimizers.schedules.PolynomialDecay(1.0, arguments.iterations, 0.0))
    meta_model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    print(f"Tasks of a batch run by {meta_model.explain_task_mapping()}")

    epochs = max(1, min(20, arguments.iterations // 100))
    begin = time.perf_counter()
    history = meta_model.fit(
        train,
        epochs=epochs,
        steps_per_epoch=arguments.iterations // epochs,
        validation_data=validation,
        verbose=2,
    ).history
    seconds = time.perf_counter() - begin

    all_steps = sorted({0, steps, evaluation_steps, 2 * evaluation_steps})
    report = keras_maml.evaluate_episodes(meta_model, test, arguments.evaluation_tasks, all_steps, verbose=0)
    row = report.summary("accuracy", evaluation_steps)
    name = algorithm_name(preset)
    title = f"Omniglot {ways}-way {shots}-shot {name}"
    if arguments.output_dir:
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        history["iteration"] = [(i + 1) * (arguments.iterations // epochs) for i in range(epochs)]
        np.savetxt(
            arguments.output_dir / "history.csv",
            np.column_stack(list(history.values())),
            delimiter=",",
            header=",".join(history),
            comments="",
            fmt="%.6g",
        )
        draw_curve(history, arguments.output_dir / "curve.png", title)
        meta_model.export(arguments.output_dir / "saved_model")
        meta_model.card(report, arguments.output_dir / "saved_model", episodes=train)
    print(f"{arguments.iterations} outer steps with validation took {seconds:.0f} s.")
    print(f"\n{report}\n")
    print(
        f"{title}: test accuracy {100 * row.mean:.1f} +- {100 * row.margin:.1f} % "
        f"({row.tasks} tasks, {evaluation_steps} steps, transductive BN)"
    )


def algorithm_name(preset):
    return {"MetaSGD": "Meta-SGD", "IMAML": "iMAML"}.get(preset.__name__, preset.__name__)


if __name__ == "__main__":
    main()
