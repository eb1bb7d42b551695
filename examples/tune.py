"""Which inner learning rate, and how many inner steps? A search with KerasTuner.

Every trial meta-trains the net of `quickstart.py` on sine waves (Finn et al. 2017, arXiv:1703.03400) from the same
initial weights, for the same number of outer steps, and is judged on the same 200 validation waves. Prints the trials,
the best settings, and a report of their model on 600 other waves, which had no say in the choice:

    python examples/tune.py

Needs KerasTuner: `pip install "keras-maml[tuner]"`.
"""

import argparse
import pathlib
import sys

import keras
import quickstart

import keras_maml
from keras_maml.episodes import fixed


def build_meta_model(hp):
    """What KerasTuner calls for every trial, with the settings to try."""
    keras.utils.set_random_seed(0)
    algorithm = keras_maml.MAML(
        learning_rate=hp.Float("learning_rate", 0.001, 0.1, sampling="log"),
        steps=hp.Int("steps", 1, 5),
    )
    meta_model = keras_maml.MetaModel(quickstart.build_model(), algorithm)
    meta_model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="mse", steps_per_execution=50)
    meta_model.optimizer.build(meta_model.trainable_variables)  # so that it is loaded with the weights of the best
    return meta_model


def print_trials(trials):
    print("learning rate  steps  validation loss  best epoch")
    for trial in trials:
        learning_rate, steps = (trial.hyperparameters.get(name) for name in ("learning_rate", "steps"))
        judged = f"{trial.score:15.3f}  {trial.best_step + 1:10d}" if trial.status == "COMPLETED" else "     not finite"
        print(f"{learning_rate:13.4f}  {steps:5d}  {judged}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--iterations", type=int, default=2000, help="outer steps of a trial, at least 200")
    parser.add_argument("--evaluation-tasks", type=int, default=600, help="waves of the report, a multiple of 100")
    parser.add_argument("--output-dir", type=pathlib.Path, default=pathlib.Path("outputs/tune"))
    arguments = parser.parse_args()
    try:
        import keras_tuner
    except ImportError:
        sys.exit('KerasTuner is missing. Install it by `pip install "keras-maml[tuner]"`.')

    # 1. Search: 4 epochs a trial, of which the best one counts.
    train = keras_maml.datasets.sinusoid(shots=10, queries=10, tasks=25, seed=0)
    validation = keras_maml.datasets.sinusoid(shots=10, queries=100, tasks=100, seed=fixed(200))
    tuner = keras_tuner.RandomSearch(
        build_meta_model,
        objective=keras_tuner.Objective("val_loss", direction="min"),
        max_trials=arguments.trials,
        max_consecutive_failed_trials=arguments.trials,  # a learning rate at which adaptation diverges is a result too
        seed=0,
        directory=arguments.output_dir,
        project_name="trials",
        overwrite=True,
    )
    tuner.search(train, steps_per_epoch=arguments.iterations // 4, epochs=4, validation_data=validation, verbose=2)

    # 2. Look at the trials.
    trials = tuner.oracle.trials.values()
    finite = [trial for trial in trials if trial.status == "COMPLETED"]
    print(f"\n{len(trials)} trials of {arguments.iterations} outer steps, judged on 200 validation waves:")
    print_trials([*sorted(finite, key=lambda trial: trial.score), *(t for t in trials if t not in finite)])
    (best,) = tuner.get_best_hyperparameters(1)
    print(f"\nbest: learning_rate={best.get('learning_rate'):.4f}, steps={best.get('steps')}\n")

    # 3. Judge the best on waves that neither training nor the search saw.
    (meta_model,) = tuner.get_best_models(1)
    others = fixed(arguments.evaluation_tasks, seed=1)
    test = keras_maml.datasets.sinusoid(shots=10, queries=100, tasks=100, seed=others)
    print(keras_maml.evaluate_episodes(meta_model, test, tasks=None, steps=(0, 1, 5, 10), verbose=0))


if __name__ == "__main__":
    main()
