"""Can a text classifier learn intents of a domain that it has never seen, from 1 or 5 examples of each?

Meta-trains on the intents of five domains of CLINC150 and judges on those of three others, 5 intents a task:

    python examples/intents.py --directory clinc150            # the folder of data_full.json and domains.json
    python examples/intents.py --directory clinc150 --net lstm --shots 5

Beside the meta-learned net it judges, on the same tasks, the same net trained from scratch on the supports of each
task (the best of some learning rates and numbers of steps, chosen on the two validation domains) and nearest centroids
on the meta-learned net's own features. Every word has a bin by its hash, so there is no vocabulary that could know the
words of test domains, and words that training never saw are told apart all the same.
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
WORDS = 20  # of a query; 99 % of them have at most 19
WAYS = 5
NETS = ("embedding", "lstm")
# Inner learning rate, inner steps in training and in evaluation, by net; see README.md here for what was compared.
SETTINGS = {"embedding": (1.0, 3, 5), "lstm": (0.5, 3, 5)}
# Learning rates and steps of training from scratch, of which the best on validation tasks is taken.
FROM_SCRATCH = [(rate, steps) for rate in (0.3, 1.0, 3.0) for steps in (10, 50)]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", required=True, help="folder of data_full.json and domains.json of CLINC150")
    parser.add_argument("--net", nargs="+", choices=NETS, default=NETS)
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5], help="support examples of an intent")
    parser.add_argument("--iterations", type=int, default=1000, help="outer steps of each net and number of shots")
    parser.add_argument("--evaluation-tasks", type=int, default=600, help="test tasks, 15 queries an intent each")
    parser.add_argument("--output-dir", type=pathlib.Path, default=None, help="for SavedModels")
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
        model.add(keras.layers.Dense(64, activation="relu"))
    else:
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
    """The untrained net with the learning rate and steps that are best on validation tasks."""
    candidates = []
    for rate, steps in FROM_SCRATCH:
        keras.utils.set_random_seed(0)
        learner = compiled(build_model(net), keras_maml.MAML(learning_rate=rate, evaluation_steps=steps))
        accuracy = accuracies(learner.predict_on_batch, validation).mean()
        candidates.append((accuracy, f"rate {rate}, {steps} steps", learner))
    return max(candidates, key=lambda candidate: candidate[0])[1:]


def nearest_centroid(model):
    """A function from episodes to scores: negative distances to the mean features of each intent's supports."""
    features = keras.Model(model.inputs, model.layers[-2].output)

    def flat(x):
        return features.predict_on_batch(np.reshape(x, (-1, WORDS))).reshape(*x.shape[:2], -1)

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
    fixed = keras_maml.episodes.fixed
    tests = {
        "intents of three domains": make_episodes(splits["test"], shots, 20, fixed(arguments.evaluation_tasks)),
        "of one domain": make_episodes(splits["test"], shots, 20, fixed(arguments.evaluation_tasks), within=True),
    }
    validation = make_episodes(splits["validation"], shots, 20, fixed(100))
    train = make_episodes(splits["train"], shots, 16, arguments.seed, queries=5)

    rate, steps, evaluation_steps = SETTINGS[net]
    algorithm = keras_maml.MAML(learning_rate=rate, steps=steps, evaluation_steps=evaluation_steps)
    meta_model = compiled(build_model(net), algorithm, arguments.iterations)
    print(f"{net}, {WAYS}-way {shots}-shot; tasks run by {meta_model.explain_task_mapping()}")
    epochs = max(1, min(5, arguments.iterations // 50))
    begin = time.perf_counter()
    meta_model.fit(
        train, epochs=epochs, steps_per_epoch=arguments.iterations // epochs, validation_data=validation, verbose=2
    )
    print(f"  {arguments.iterations} outer steps in {time.perf_counter() - begin:.0f} s")

    how, scratch = from_scratch(net, validation)
    for name, test in tests.items():
        print(f"  {arguments.evaluation_tasks} test tasks, {name}:")
        report(f"MAML, {evaluation_steps} steps", accuracies(meta_model.predict_on_batch, test))
        report(f"from scratch, {how}", accuracies(scratch.predict_on_batch, test))
        report("nearest centroid, features before adaptation", accuracies(nearest_centroid(meta_model.model), test))
    if arguments.output_dir:
        meta_model.export(str(arguments.output_dir / f"{net}_{shots}_shot"))


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
