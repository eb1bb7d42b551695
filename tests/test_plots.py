import math
import pathlib
import sys

import keras
import numpy as np
import pytest
from handmade import RANDOM, classes, episode, thumbnails, vectors, words

import keras_maml
from keras_maml import EpisodeReport, MetaModel, axes
from keras_maml.learning_rules import SGD, LayerwiseSGD, LearnedSGD
from keras_maml.meta_gradients import Unrolled

FigureCanvasAgg = pytest.importorskip("matplotlib.backends.backend_agg").FigureCanvasAgg
from matplotlib.figure import Figure  # noqa: E402

LONG = "$\\frac$ a net that was trained on all of the classes at once, then given a new head"


def report(steps=(0, 5), directions=("down", "up"), **values):
    """Of rows `(tasks, steps)` by metric; a loss that is not given is 1 throughout."""
    values = {name: np.asarray(rows, "float64") for name, rows in values.items()}
    rows = next(iter(values.values()))
    values = {"loss": values.pop("loss", np.ones_like(rows)), **values}
    directions = {name: directions[name != "loss"] for name in values}
    return EpisodeReport(values, tuple(steps), values["loss"][:, 0], {}, np.arange(len(rows)), directions)


def bars(container):
    """`(steps, means, margins)` of what `errorbar` drew."""
    line, _, (segments,) = container
    ends = np.array([segment[:, 1] for segment in segments.get_segments()])
    return line.get_xdata(), line.get_ydata().astype(float), (ends[:, 1] - ends[:, 0]) / 2


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def title_of(ax):
    return ax.get_title(loc="left")


def drawn_by(ax):
    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    return canvas.get_renderer()


def test_adaptation_shows_means_and_intervals():
    # Accuracies 0.1, 0.2, 0.3: deviation 0.1, and t of 2 degrees of freedom at 0.975 is 4.30265.
    ax = keras_maml.plot_adaptation(report((0, 1, 5), accuracy=[[0.1, 0.5, 0.9], [0.2, 0.5, 0.9], [0.3, 0.5, 0.6]]))
    steps, means, margins = bars(ax.containers[0])
    np.testing.assert_array_equal(steps, [0, 1, 5])
    np.testing.assert_allclose(means, [0.2, 0.5, 0.8])
    np.testing.assert_allclose(margins, np.array([0.1, 0, math.sqrt(0.03)]) * 4.30265 / math.sqrt(3), rtol=1e-5)
    assert ax.get_xlabel() == "inner steps"
    assert ax.get_ylabel() == "accuracy\nmean of 3 tasks, 95 % interval"
    assert ax.get_xticks().tolist() == [0, 1, 5]
    assert ax.get_legend() is None and title_of(ax) == "" and ax.get_yscale() == "linear"


def test_one_task_has_no_interval():
    ax = keras_maml.plot_adaptation(report(accuracy=[[0.2, 0.7]]), "loss")
    assert ax.get_ylabel() == "loss\nmean of 1 task"
    np.testing.assert_array_equal(ax.containers[0][0].get_ydata(), [1, 1])
    drawn_by(ax)
    assert ax.get_ylim()[0] > 0.9 and ax.get_ylim()[1] < 1.1


def test_adaptation_says_what_means_hide():
    losses = np.tile([1.0, 0.5], (20, 1))
    losses[:3, 1], losses[3, 1] = np.nan, 1e6
    bad = report(loss=losses, accuracy=np.full((20, 2), 0.5))
    assert title_of(keras_maml.plot_adaptation(bad)).splitlines() == [
        "3 of 20 tasks not finite after 5 steps, left out",
        "1 of 20 tasks diverged after 5 steps",
    ]
    good = report(loss=np.tile([1.0, 0.5], (9, 1)), recall=np.full((9, 2), 0.5))
    ax = keras_maml.plot_adaptation({"bad": bad, "good": good})  # the loss is what both have
    assert ax.get_ylabel() == "loss\nmean over tasks, 95 % interval"
    assert ax.get_yscale() == "log" and title_of(ax) == ""
    first, second = legend_of(ax)
    assert "bad\n3 of 20 tasks not finite" in first and "1 of 20 tasks diverged" in first
    assert second == "good"
    means = [container[0].get_ydata()[1] for container in ax.containers]
    np.testing.assert_allclose(means, [(16 * 0.5 + 1e6) / 17, 0.5])
    lost = keras_maml.plot_adaptation(report(loss=np.full((4, 2), np.nan), accuracy=np.ones((4, 2))))
    assert title_of(lost).startswith("4 of 4 tasks not finite before adaptation")
    drawn_by(lost)


def test_reports_differ_by_colour_and_marker():
    ax = keras_maml.plot_adaptation({i: report(accuracy=np.full((3, 2), i / 20)) for i in range(20)})
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line, *_ in ax.containers}
    assert len(looks) == 20
    assert legend_of(ax) == [str(i) for i in range(20)]


@pytest.mark.parametrize(
    "steps, named",
    [
        ((0, 1, 5, 10), [0, 1, 5, 10]),
        ((3,), [3]),
        # Numbers must be a twentieth of the axis apart, 5 of 100 here; the last is always named.
        ((0, 1, 2, 5, 10, 97, 100), [0, 5, 10, 100]),
    ],
)
def test_ticks(steps, named):
    ax = Figure().subplots()
    axes.step_ticks(ax, steps)
    assert ax.get_xticks().tolist() == named
    assert ax.get_xticks(minor=True).tolist() == [k for k in steps if k not in named]


def test_tasks_are_points_before_and_after():
    accuracy = [[0.2, 0.8], [0.2, 0.8], [0.2, 0.8], [0.5, 0.4], [0.6, 0.6], [0.3, 0.9], [0.1, 0.2]]
    loss = np.ones((7, 2))
    loss[5, 1] = np.inf
    ax = keras_maml.plot_tasks(report(loss=loss, accuracy=accuracy))
    better, worse, unchanged = ax.collections
    np.testing.assert_array_equal(better.get_offsets(), [[0.1, 0.2], [0.2, 0.8]])
    assert better.get_sizes()[1] == 3 * better.get_sizes()[0]  # three tasks
    np.testing.assert_array_equal(worse.get_offsets(), [[0.5, 0.4]])
    np.testing.assert_array_equal(unchanged.get_offsets(), [[0.6, 0.6]])
    assert legend_of(ax) == ["better: 4 tasks", "worse: 1 task", "unchanged: 1 task"]
    assert title_of(ax) == "1 of 7 tasks not finite, left out\nLarger points are several tasks"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("accuracy before adaptation", "accuracy after 5 steps")
    assert ax.get_xlim() == ax.get_ylim() and ax.get_xlim()[0] < 0.1 and ax.get_xlim()[1] > 0.8
    diagonal = next(line for line in ax.lines if line.get_linestyle() == "--")
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())


def test_which_side_is_better_depends_on_the_metric():
    losses = report((1, 2, 5), loss=[[1, 9, 3], [2, 9, 1], [1, 9, 2]])
    assert legend_of(keras_maml.plot_tasks(losses)) == ["better: 1 task", "worse: 2 tasks"]
    unknown = report(directions=("down", None), score=[[1, 3], [2, 1], [1, 2]])
    assert legend_of(keras_maml.plot_tasks(unknown)) == ["rose: 2 tasks", "fell: 1 task"]
    for steps in (2, (1, 2)):
        ax = keras_maml.plot_tasks(losses, steps=steps)
        assert legend_of(ax) == ["better: 0 tasks", "worse: 3 tasks"]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("loss after 1 step", "loss after 2 steps")


def test_tasks_far_apart_or_none():
    ax = keras_maml.plot_tasks(report(loss=[[1, 1e9], [2, 0.5]]))
    assert ax.get_xscale() == ax.get_yscale() == "log" and ax.get_xlim() == ax.get_ylim()
    none = keras_maml.plot_tasks(report(loss=np.full((3, 2), np.nan)))
    assert title_of(none) == "3 of 3 tasks not finite, left out"
    drawn_by(none)


def line(weight=3.0, rate=0.25, shape=(1,)):
    """A learner whose prediction is weight * x."""
    inputs = keras.Input(shape)
    model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(keras.ops.reshape(inputs, (-1, 1))))
    model.set_weights([np.array([[weight]])])
    meta_model = MetaModel(model, keras_maml.MAML(rate, 1, evaluation_steps=2))
    meta_model.compile(loss="mse")
    return meta_model


def waves(queries=(-2.0, 4.0), shape=(1,), **more):
    """Two tasks of a support (1, 1), the second with queries on y = x."""
    points = np.array(queries).reshape(1, -1, *shape).astype("float32")
    x = {"support_x": np.ones((2, 1, *shape), "float32"), "support_y": np.ones((2, 1, 1), "float32")}
    x["query_x"] = np.concatenate([points + 1, points])
    return x | more, x["query_x"].reshape(2, -1, 1)


@pytest.mark.parametrize("shape", [(1,), ()])
def test_regression_curves(shape):
    # Loss (w - 1)^2, gradient 2 (w - 1): from 3, a step of 0.25 goes half the way to 1: w = 2, 1.5.
    ax = keras_maml.plot_regression_task(line(shape=shape), waves(shape=shape), task=1, steps=(1, 2))
    curves = {curve.get_label(): curve.get_xydata() for curve in ax.lines}
    for label, weight in (("before adaptation", 3.0), ("after 1 step", 2.0), ("after 2 steps", 1.5)):
        x, y = curves[label].T
        assert len(x) >= 100 and (x.min(), x.max()) == (-2, 4)
        np.testing.assert_allclose(y, weight * x, rtol=1e-5)
    np.testing.assert_array_equal(curves["supports"], [[1, 1]])
    np.testing.assert_array_equal(curves["queries"], [[-2, -2], [4, 4]])
    assert legend_of(ax) == ["supports", "queries", "before adaptation", "after 1 step", "after 2 steps"]
    assert title_of(ax) == "task 2 of 2: 1 supports, 2 queries"


def test_regression_after_the_steps_of_evaluation_or_none():
    assert legend_of(keras_maml.plot_regression_task(line(), waves()))[2:] == ["before adaptation", "after 2 steps"]
    assert legend_of(keras_maml.plot_regression_task(line(), waves(), steps=0))[2:] == ["before adaptation"]


def test_wild_curves_leave_the_points_to_be_seen():
    # The weight after 29 steps of 10 is 1 + 2 * (-19)^29 = -2e37, of which the product with 40 is beyond float32.
    for steps in (9, 29):
        ax = keras_maml.plot_regression_task(line(rate=10.0), waves((-2.0, 40.0)), task=1, steps=steps)
        low, high = ax.get_ylim()
        assert -2 - 2 * 42 < low < -2 and 40 < high < 40 + 2 * 42
    axes.frame(ax, np.array([0.0, 1.0]), np.array([np.nan, 0.5, np.inf]))
    np.testing.assert_allclose(ax.get_ylim(), (-0.06, 1.06))


def test_padding_is_neither_drawn_nor_learned_from():
    x, y = waves(queries=(-2.0, 4.0, 99.0))
    x["support_x"] = np.concatenate([x["support_x"], np.full((2, 1, 1), 50.0, "float32")], 1)
    x["support_y"] = np.concatenate([x["support_y"], np.full((2, 1, 1), -7.0, "float32")], 1)
    x["support_weight"] = np.array([[1.0, 0.0]] * 2, "float32")
    ax = keras_maml.plot_regression_task(line(), (x, y, np.array([[1.0, 1.0, 0.0]] * 2)), task=1, steps=1)
    curves = {curve.get_label(): curve.get_xydata() for curve in ax.lines}
    np.testing.assert_array_equal(curves["supports"], [[1, 1]])
    np.testing.assert_allclose(curves["after 1 step"][-1], [4, 8])


def test_episode_is_one_task_of_the_batch():
    images = RANDOM.random((40, 5, 5, 1)).astype("float32")
    dataset = keras_maml.episodes.from_arrays(images, np.arange(40) % 4, 2, 1, 3, tasks=3, seed=0)
    names = ["ant", "bee", "cat", "dog"]
    ax = keras_maml.plot_episode(dataset, task=2, names=names)
    x, _ = next(iter(dataset))
    supports = sorted(image[-1].sum() for image in thumbnails(ax.figure) if image[0] < 1)
    np.testing.assert_allclose(supports, np.sort(x["support_x"].numpy()[2].sum((1, 2, 3))), rtol=1e-6)
    assert words(ax.figure) == ["task 3 of 3: 2 supports, 6 queries", "supports", "queries", "ant", "bee"]
    given = Figure().subplots()
    assert keras_maml.plot_episode(dataset, task=2, names=names, ax=given) is given
    (picture,) = given.get_images()
    width, height = ax.figure.get_size_inches()
    rows, columns, _ = picture.get_array().shape
    assert columns / rows == pytest.approx(width / height, abs=0.01)
    assert np.asarray(picture.get_array())[..., :3].std() > 10 and not given.axison


def net(algorithm):
    layers = [keras.layers.Dense(3, name="body"), keras.layers.Dense(1, name="head")]
    model = keras.Sequential([keras.Input((7,)), *layers])
    meta_model = MetaModel(model, algorithm)
    meta_model.compile(loss="mse")
    return meta_model


def test_rates_of_every_weight_are_boxes():
    meta_model = net(keras_maml.MetaSGD(0.1, 1))
    # Of 0 to 20 the median is 10, the quartiles 5 and 15, and 1 and 19 are at 5 and 95 %.
    meta_model.rule.rates[0].assign(np.arange(21.0).reshape(7, 3))
    meta_model.rule.rates[1].assign([0.0, 7.0, np.nan])
    ax = keras_maml.plot_learned_rates(meta_model)
    paths = [label.get_text() for label in ax.get_yticklabels()]
    assert [path.split("/", 1)[1] for path in paths] == ["body/kernel", "body/bias", "head/kernel", "head/bias"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top
    box = ax.patches[0].get_path().vertices
    np.testing.assert_allclose((box[:, 0].min(), box[:, 0].max()), (5, 15))
    drawn = {tuple(curve.get_xdata()) for curve in ax.lines}
    assert {(10, 10), (5, 1), (15, 19), (3.5, 3.5)} <= drawn  # medians of two variables, whiskers of the first
    assert title_of(ax) == "1 rate not finite, left out"
    assert ax.get_xlabel() == "inner learning rate (all started at 0.1)"


def test_rates_that_are_kept_positive_are_drawn_as_they_act():
    meta_model = net(keras_maml.Algorithm(LayerwiseSGD(0.1, positive=True), Unrolled(), 2, layers=("head",)))
    meta_model.rule.rates[0].assign([0.0, 1.0])  # log 2 and log(1 + e) = 1.313262
    kernel, bias, _ = keras_maml.plot_learned_rates(meta_model).lines
    np.testing.assert_allclose(kernel.get_ydata(), [np.log(2), 1.313262], rtol=1e-6)
    np.testing.assert_allclose(bias.get_ydata(), [0.1] * 2, rtol=1e-5)


def test_rates_of_every_step_are_lines_of_what_adapts():
    meta_model = net(keras_maml.Algorithm(LayerwiseSGD(0.1), Unrolled(), 3, layers=("head",)))
    meta_model.rule.rates[0].assign([0.1, 0.2, 0.4])
    ax = keras_maml.plot_learned_rates(meta_model)
    kernel, bias, start = ax.lines
    np.testing.assert_allclose(kernel.get_xydata(), [[1, 0.1], [2, 0.2], [3, 0.4]])
    np.testing.assert_allclose(bias.get_ydata(), [0.1] * 3)
    np.testing.assert_allclose(start.get_ydata(), 0.1)
    assert [label.split("/", 1)[1] for label in legend_of(ax)] == ["head/kernel", "head/bias"]
    assert ax.get_xticks().tolist() == [1, 2, 3]
    assert kernel.get_color() == bias.get_color() and kernel.get_linestyle() != bias.get_linestyle()


def test_variables_of_a_layer_share_a_colour_under_any_name():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="a_long_name" * 5), keras.layers.Dense(1)])
    meta_model = MetaModel(model, keras_maml.Algorithm(LayerwiseSGD(), Unrolled(), 2))
    *lines, _ = keras_maml.plot_learned_rates(meta_model).lines
    first, second, third, fourth = (curve.get_color() for curve in lines)
    assert first == second != third == fourth
    assert [curve.get_linestyle() for curve in lines] == ["-", "--"] * 2


def test_long_paths_keep_their_end():
    assert axes.shortened("a/kernel") == "a/kernel"
    path = "a_net_of_a_name_of_very_many_letters/block/dense/kernel"
    assert len(axes.shortened(path)) == axes.LABEL and axes.shortened(path).endswith("s/block/dense/kernel")


def pictures():
    accuracy = RANDOM.random((30, 4))
    several = {LONG + str(i): report((0, 1, 5, 10), accuracy=accuracy * i / 9) for i in range(1, 10)}
    deep = keras.Sequential([keras.Input((2,))])
    for i in range(14):
        deep.add(keras.layers.Dense(2, name=f"a_layer_whose_name_has_very_many_letters_{i}"))
    learned = [keras_maml.MetaSGD(), keras_maml.Algorithm(LayerwiseSGD(), Unrolled(), 3)]
    return {
        "several": lambda ax: keras_maml.plot_adaptation(several, ax=ax),
        "one": lambda ax: keras_maml.plot_adaptation(several[LONG + "1"], ax=ax),
        "tasks": lambda ax: keras_maml.plot_tasks(several[LONG + "1"], ax=ax),
        "curve": lambda ax: keras_maml.plot_regression_task(line(), waves(), steps=range(7), ax=ax),
        "rates": lambda ax: keras_maml.plot_learned_rates(MetaModel(deep, learned[0]), ax=ax),
        "rates by step": lambda ax: keras_maml.plot_learned_rates(MetaModel(deep, learned[1]), ax=ax),
        "episode": lambda ax: keras_maml.plot_episode(episode(vectors, classes), ax=ax),
    }


@pytest.mark.parametrize("name", pictures())
def test_nothing_is_cut_and_no_legend_hides_a_line(name):
    draw = pictures()[name]
    ax = draw(None)
    renderer = drawn_by(ax)
    whole, box = ax.figure.bbox, ax.get_tightbbox(renderer)
    assert box.x0 > -1 and box.y0 > -1 and box.x1 < whole.x1 + 1 and box.y1 < whole.y1 + 1
    assert ax.get_window_extent().width > 0.3 * whole.width
    legend = ax.get_legend()
    if legend is not None and name != "tasks":
        assert legend.get_window_extent(renderer).x0 >= ax.get_window_extent(renderer).x1
    figure = Figure()
    given = figure.subplots()
    assert draw(given) is given and len(figure.axes) == 1
    assert given.get_legend() is None or given.get_window_extent().overlaps(given.get_legend().get_window_extent())
    drawn_by(given)


def test_pyplot_is_not_touched_nor_matplotlib_before_it_is_needed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would fail
    ax = keras_maml.plot_adaptation(report(accuracy=[[0.5, 0.6]]))
    ax.figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    for module in ("plots.py", "axes.py", "episodes/panels.py"):
        source = (pathlib.Path(keras_maml.__file__).parent / module).read_text()
        exec(compile(source, module, "exec"), {"__name__": "copy"})


def test_errors_on_reports():
    one = report((5,), accuracy=[[0.5], [0.6]])
    for wrong in ({}, {"a": 3}, [one]):
        with pytest.raises(ValueError, match="`reports` must be an `EpisodeReport`, or a dict of them"):
            keras_maml.plot_adaptation(wrong)
    with pytest.raises(ValueError, match=r"has the metrics \['loss', 'accuracy'\]. Received: metric='f1'"):
        keras_maml.plot_adaptation(one, "f1")
    with pytest.raises(ValueError, match=r"Two different numbers .* after \[5\] steps"):
        keras_maml.plot_tasks(one)
    with pytest.raises(ValueError, match=r"values after \[0, 5\] steps. Received: steps=3"):
        keras_maml.plot_tasks(report(accuracy=[[0.5, 0.6]]), steps=3)
    with pytest.raises(ValueError, match="`report` must be an `EpisodeReport`. Received: dict"):
        keras_maml.plot_tasks({"a": one})


def test_errors_on_tasks():
    for task in (2, -1, True, 0.0):
        with pytest.raises(ValueError, match="`task` must be an integer from 0 to 1, as the batch has 2 tasks"):
            keras_maml.plot_regression_task(line(), waves(), task=task)
    with pytest.raises(ValueError, match="from 0 to 2"):
        keras_maml.plot_episode(episode(vectors, classes), task=3)
    with pytest.raises(ValueError, match=r"inputs of one number: .* support_x of shape \(3, 6, 4\)"):
        keras_maml.plot_regression_task(line(), episode(vectors, classes))
    logits = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
    classifier = MetaModel(logits, inner_loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="for regression. Received: predictions of 3 numbers for targets of 1 number"):
        keras_maml.plot_regression_task(classifier, episode(lambda n: np.ones((n, 1), "float32"), classes))
    with pytest.raises(ValueError, match="`steps` must be numbers of inner steps"):
        keras_maml.plot_regression_task(line(), waves(), steps=-1)


def test_errors_on_rates():
    with pytest.raises(ValueError, match="learned by `LearnedSGD` .* whose rule is `SGD`"):
        keras_maml.plot_learned_rates(net(keras_maml.Algorithm(SGD(0.1), Unrolled(), 1)))
    unbuilt = MetaModel(keras.Sequential([keras.layers.Dense(1)]), keras_maml.Algorithm(LearnedSGD(), Unrolled(), 1))
    with pytest.raises(ValueError, match="is not built yet"):
        keras_maml.plot_learned_rates(unbuilt)


def test_matplotlib_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "keras-maml[plots]"'.replace("[", r"\[").replace("]", r"\]")):
        keras_maml.plot_adaptation(report(accuracy=[[0.5, 0.6]]))
