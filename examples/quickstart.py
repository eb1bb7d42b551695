"""Can a network learn to draw any sine wave from ten of its points, in one gradient step?

Meta-trains on sine waves of random amplitude and phase (Finn et al. 2017, arXiv:1703.03400), prints the error on 600
new waves before and after adaptation, draws one of them, exports a SavedModel, and has a second process, which has
TensorFlow but not keras_maml, load that file and adapt to the same wave:

    python examples/quickstart.py
"""

import argparse
import json
import pathlib
import subprocess
import sys

import keras

import keras_maml

SECOND_PROCESS = """
import json, sys
sys.modules["keras_maml"] = None                         # importing it would fail
import tensorflow as tf
learner = tf.saved_model.load(sys.argv[1])
task = json.load(open(sys.argv[2]))
serve = learner.signatures["serving_default"]
outputs = serve(**{name: tf.constant(values, tf.float32) for name, values in task.items() if name != "query_y"})
error = tf.reduce_mean(tf.square(outputs["predictions"] - tf.constant(task["query_y"])))
print(f"{float(error):.4f}")
"""


def build_model():
    return keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(40, activation="relu"),
            keras.layers.Dense(40, activation="relu"),
            keras.layers.Dense(1),
        ]
    )


def draw(path, meta_model, episodes, all_steps):
    try:
        axes = keras_maml.plot_regression_task(meta_model, episodes, steps=[k for k in all_steps if k])
    except ImportError as error:
        print(f"No plot: {error}")
        return
    axes.figure.savefig(path, dpi=120)
    print(f"plot: {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=10_000, help="outer steps; 70000 as in the paper")
    parser.add_argument("--output-dir", type=pathlib.Path, default=pathlib.Path("outputs/quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(arguments.seed)

    # 1. Meta-train: 25 waves a batch, 10 support and 10 query points each.
    episodes = keras_maml.datasets.sinusoid(shots=10, queries=10, tasks=25, seed=arguments.seed)
    meta_model = keras_maml.MetaModel(build_model(), keras_maml.MAML(learning_rate=0.01, steps=1), log_before=True)
    at_once = min(500, arguments.iterations)
    meta_model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="mse", steps_per_execution=min(100, at_once))
    epochs = arguments.iterations // at_once
    meta_model.fit(episodes, steps_per_epoch=at_once, epochs=epochs, verbose=2 if epochs <= 20 else 0)

    # 2. Judge on 600 new waves.
    all_steps = (0, 1, 5, 10)
    test = keras_maml.datasets.sinusoid(shots=10, queries=200, tasks=100, seed=keras_maml.episodes.fixed(600))
    report = keras_maml.evaluate_episodes(meta_model, test, tasks=600, steps=all_steps, verbose=0)
    print("\nQuery error (mean square) on 600 new waves, 10 support points each:")
    print("                    median     mean")
    for steps in all_steps:
        name = "before adaptation" if steps == 0 else f"after {steps:2d} step{'s' if steps > 1 else ''}"
        row = report.summary("loss", steps)
        print(f"{name:18s} {row.median:7.3f}  {row.mean:7.3f}")

    # 3. Look at one wave.
    x, y = next(iter(test.as_numpy_iterator()))
    task = {name: values[0] for name, values in x.items()} | {"query_y": y[0]}
    draw(arguments.output_dir / "adaptation.png", meta_model, (x, y), all_steps)

    # 4. Ship adaptation itself.
    exported = arguments.output_dir / "saved_model"
    meta_model.export(exported)
    (arguments.output_dir / "task.json").write_text(json.dumps({k: v.tolist() for k, v in task.items()}))
    served = subprocess.run(
        [sys.executable, "-c", SECOND_PROCESS, exported, arguments.output_dir / "task.json"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    print(f"SavedModel: {exported}")
    print(f"error on that wave after 1 step, here:                                 {report.of('loss', 1)[0]:.4f}")
    print(f"error on that wave after 1 step, served by a process without keras_maml: {served}")


if __name__ == "__main__":
    main()
