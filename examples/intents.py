"""Can a text classifier learn intents of a domain that it has never seen, from 1 or 5 examples of each?

Meta-trains on the intents of five domains of CLINC150 and judges on those of three others, 5 intents a task:

    python examples/intents.py --directory clinc150            # the folder of data_full.json and domains.json
    python examples/intents.py --directory clinc150 --net lstm --shots 5

The net and a step size for each of its weights are meta-learned (Meta-SGD, Li et al. 2017, arXiv:1707.09835), with one
inner step in training and three at test. Two rivals judge the same tasks: the same net trained from scratch on the
supports of each task, and nearest centroids of the meta-learned net's own representations, before adaptation. Learning
rate and steps of the former, representation and distance of the latter are the best on tasks of the validation domains.

Every word has a bin by its hash, so there is no vocabulary that could know the words of test domains, and words that
training never saw are told apart all the same.
"""

import argparse
import pathlib
import re
import time
import zlib

import keras
import numpy as np

import keras_maml

BINS = 8191  # of words; a prime
WORDS = 16  # of a query; 95 % of the training queries have at most 14, what is beyond is cut off
WAYS = 5
NETS = ("embedding", "lstm")
# Tasks a batch and outer steps; see README.md here for what was compared on validation domains.
TASKS = {"embedding": 16, "lstm": 8}
ITERATIONS = {"embedding": 1500, "lstm": 1000}
# Learning rates and steps of training from scratch, of which the best on validation tasks is taken.
FROM_SCRATCH = [(rate, steps) for rate in (0.3, 1.0, 3.0, 10.0) for steps in (10, 50, 200)]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", required=True, help="folder of data_full.json and domains.json of CLINC150")
    parser.add_argument("--net", nargs="+", choices=NETS, default=NETS)
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5], help="support examples of an intent")
    parser.add_argument("--iterations", type=int, default=None, help=f"outer steps; default {ITERATIONS}")
    parser.add_argument("--evaluation-tasks", type=int, default=600, help="test tasks, 15 queries an intent each")
    parser.add_argument("--output-dir", type=pathlib.Path, default=None, help="for SavedModels, cards, pictures")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def vectorize(texts):
    """Bins of words, `(n, WORDS)`; 0 is padding."""
    bins = np.zeros((len(texts), WORDS), "int32")
    for row, text in zip(bins, texts, strict=True):
        words = re.findall(r"[a-z0-9']+", text.lower())[:WORDS]
        row[: len(words)] = [1 + zlib.crc32(word.encode()) % (BINS - 1) for word in words]
    return bins


def build_model(net):
    model = keras.Sequential([keras.Input((WORDS,), dtype="int32"), keras.layers.Embedding(BINS, 64, mask_zero=True)])
    if net == "embedding":
        model.add(keras.layers.GlobalAveragePooling1D())
        model.add(keras.layers.Dense(64, activation="tanh"))
    else:
        model.add(keras.layers.Dropout(0.5))
        model.add(keras.layers.LSTM(64))
    model.add(keras.layers.Dense(WAYS, name="head"))
    return model


def compiled(model, algorithm, iterations=1):
    meta_model = keras_maml.MetaModel(model, algorithm)
    schedule = keras.optimizers.schedules.CosineDecay(3e-3, iterations, alpha=0.01)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    meta_model.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"])
    return meta_model


def accuracies(predict, episodes):
    """Share of right predictions in each task."""
    return np.concatenate([(predict(x).argmax(-1) == y.numpy()).mean(1) for x, y in episodes])


def from_scratch(net, validation):
    """Name and `MetaModel` of the untrained net, with the rate and steps that are best on validation tasks."""
    learners = {}
    for rate, steps in FROM_SCRATCH:
        keras.utils.set_random_seed(0)
        learner = compiled(build_model(net), keras_maml.MAML(learning_rate=rate, evaluation_steps=steps))
        learners[f"from scratch, rate {rate:g}, {steps} steps"] = learner
    name, _ = best({name: learner.predict_on_batch for name, learner in learners.items()}, validation)
    return name, learners[name]


def best(candidates, validation):
    """Name and function of what is best on validation tasks."""
    return max(candidates.items(), key=lambda candidate: accuracies(candidate[1], validation).mean())


def nearest_centroid(model, validation):
    """Nearest centroids of the meta-learned net's representations."""
    words = keras.layers.GlobalAveragePooling1D()(model.layers[0].output)
    outputs = {"mean word vectors": words, "features": model.layers[-2].output}
    candidates = {}
    for name, output in outputs.items():
        representation = keras.Model(model.inputs, output)
        candidates[f"centroids of {name}, Euclidean"] = centroids(representation, cosine=False)
        candidates[f"centroids of {name}, cosine"] = centroids(representation, cosine=True)
    return best(candidates, validation)


def centroids(features, cosine):
    """A function from episodes to scores: negative distances to the mean features of each intent's supports."""

    def flat(x):
        values = features.predict_on_batch(np.reshape(x, (-1, WORDS))).reshape(*x.shape[:2], -1)
        return values / np.linalg.norm(values, axis=-1, keepdims=True) if cosine else values

    def predict(x):
        one_hot = np.eye(WAYS)[x["support_y"].numpy()]  # (T, S, ways)
        centroids = np.einsum("tsw,tsf->twf", one_hot, flat(x["support_x"])) / one_hot.sum(1)[..., None]
        return -np.square(flat(x["query_x"])[:, :, None] - centroids[:, None]).sum(-1)

    return predict


def report(name, shares):
    interval = 1.96 * shares.std(ddof=1) / np.sqrt(len(shares))
    print(f"  {name:48s} {100 * shares.mean():5.1f} +- {100 * interval:.1f} %", flush=True)


def make_episodes(part, shots, tasks, seed, queries=15, within=None):
    texts, intents, domains = part
    within = domains if within else None
    return keras_maml.episodes.from_text(
        texts, intents, vectorize, ways=WAYS, shots=shots, queries=queries, tasks=tasks, seed=seed, within=within
    )


def run(net, shots, splits, arguments):
    keras.utils.set_random_seed(arguments.seed)
    fixed = keras_maml.episodes.fixed(arguments.evaluation_tasks)  # the same tasks for every learner
    tests = {
        "intents of three new domains": make_episodes(splits["test"], shots, 20, fixed),
        "intents of one new domain": make_episodes(splits["test"], shots, 20, fixed, within=True),
    }
    validation = make_episodes(splits["validation"], shots, 20, keras_maml.episodes.fixed(100))
    train = make_episodes(splits["train"], shots, TASKS[net], arguments.seed, queries=5)

    iterations = arguments.iterations or ITERATIONS[net]
    algorithm = keras_maml.MetaSGD(learning_rate=1.0, steps=1, evaluation_steps=3)
    meta_model = compiled(build_model(net), algorithm, iterations)
    print(f"{net}, {WAYS}-way {shots}-shot; tasks run by {meta_model.explain_task_mapping()}")
    epochs = max(1, min(5, iterations // 50))
    begin = time.perf_counter()
    meta_model.fit(
        train, epochs=epochs, steps_per_epoch=iterations // epochs, validation_data=validation, verbose=2
    )
    print(f"  {iterations} outer steps in {time.perf_counter() - begin:.0f} s")

    scratch, scratch_learner = from_scratch(net, validation)
    rivals = [(scratch, scratch_learner.predict_on_batch), nearest_centroid(meta_model.model, validation)]
    for name, test in tests.items():
        print(f"  {arguments.evaluation_tasks} test tasks, {name}:")
        for learner, predict in [("meta-learned, 3 steps", meta_model.predict_on_batch), *rivals]:
            report(learner, accuracies(predict, test))
    learners = {"meta-learned": meta_model, scratch.rpartition(",")[0]: scratch_learner}
    test, steps = tests["intents of three new domains"], (0, 1, 2, 3, 5, 10)
    reports = {
        name: keras_maml.evaluate_episodes(learner, test, arguments.evaluation_tasks, steps, verbose=0)
        for name, learner in learners.items()
    }
    print(f"\n{reports['meta-learned']}\n\nmeta-learned after 3 steps, less from scratch after 10:")
    print(reports["meta-learned"].compare(reports[scratch.rpartition(",")[0]], steps=[(3, 10)]))
    if arguments.output_dir:
        folder = arguments.output_dir / f"{net}_{shots}_shot"
        meta_model.export(folder)
        meta_model.card(reports["meta-learned"], folder, episodes=train)
        draw(folder / "adaptation.png", reports, f"CLINC150, {WAYS} new intents, {shots} of each")


def draw(path, reports, title):
    try:
        axes = keras_maml.plot_adaptation(reports)
    except ImportError as error:
        print(f"No plot: {error}")
        return
    axes.set_title(title, fontsize=10)
    axes.figure.savefig(path, dpi=90)


def main():
    arguments = parse()
    keras_maml.set_threads(tasks=16)
    splits = keras_maml.datasets.clinc150(arguments.directory)
    for name, (_, intents, domains) in splits.items():
        print(f"{name}: {len(np.unique(intents))} intents of {', '.join(np.unique(domains))}")
    for net in arguments.net:
        for shots in arguments.shots:
            run(net, shots, splits, arguments)


if __name__ == "__main__":
    main()
