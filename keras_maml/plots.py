"""Pictures of what a few-shot learner does: adaptation, tasks, curves, episodes, learned step sizes.

All take `ax`, matplotlib axes to draw into; by default they make a figure of their own. They return the axes, of which
`axes.figure.savefig("picture.png")` writes a file. Nothing of pyplot is touched, so that they work without a screen; in
a notebook the figure shows once `%matplotlib inline` was called.
"""

import keras
import numpy as np

from keras_maml.axes import GREY, axes_for, count_of, finish, frame, legend, scale, shortened, square, step_ticks
from keras_maml.episodes import panels
from keras_maml.episodes.inspecting import domain_names, read_batches
from keras_maml.episodes.plotting import picture, tasks_of
from keras_maml.evaluation import check_steps
from keras_maml.learning_rules import LayerwiseSGD, LearnedSGD
from keras_maml.reports import EpisodeReport

WORSE, BETTER = panels.SUPPORT, panels.QUERY
COLOURS = ["#2a628f", "#c44536", "#3a7d44", "#b9770e", "#6c4a9e", "#2b2b2b", "#c2569b", "#1d9a9a"]
MARKERS = "osD^vPX"  # one less than colours, so that pairs of both repeat late
STYLES = ["-", "--", ":", "-."]
POINTS = 200  # of a curve
DPI = 200  # of an episode that is drawn into given axes


def plot_adaptation(reports, metric=None, ax=None):
    """Draws the mean of a metric over the tasks against inner steps, with its 95 % interval.

        report = keras_maml.evaluate_episodes(meta_model, episodes, steps=(0, 1, 2, 5, 10))
        keras_maml.plot_adaptation({"MAML": report, "pretrained": baseline}).figure.savefig("adaptation.png")

    Tasks that are not finite are left out, tasks that diverged count; the picture says how many there are. Where means
    differ by more than a factor of 100, their axis is logarithmic.

    Args:
        reports: an `EpisodeReport`, or a dict of them by label.
        metric: what to draw, of all reports; default the first compiled metric that all have, else the loss.
        ax: axes to draw into; default those of a new figure. The legend stands beside them if the figure has a layout
            that makes room for it, such as "constrained", else inside.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is no report, or one without the metric.
    """
    labelled = reports if isinstance(reports, dict) else {"": reports}
    _check_reports(reports, labelled)
    metric = _default_metric(labelled.values()) if metric is None else metric
    rows = {label: [report.summary(metric, k) for k in report.steps] for label, report in labelled.items()}
    notes = [_notes_on(row, report.tasks) for row, report in zip(rows.values(), labelled.values(), strict=True)]
    labels = ["\n".join([str(label), *note]) for label, note in zip(rows, notes, strict=True)]
    several = len(rows) > 1
    axes = axes_for(ax, 6.0, 3.8, labels if several else ())
    handles = []
    for number, row in enumerate(rows.values()):
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 4}
        style["linestyle"] = STYLES[number // len(COLOURS) % len(STYLES)]
        # Where one task is left, the margin is infinite, and matplotlib draws no bar.
        steps, means, margins = ([getattr(s, name) for s in row] for name in ("steps", "mean", "margin"))
        handles.append(axes.errorbar(steps, means, margins, capsize=3, linewidth=1.4, **style))
    step_ticks(axes, sorted({k for report in labelled.values() for k in report.steps}))
    scale(axes, [s.mean for row in rows.values() for s in row], "y")
    tasks = sorted({report.tasks for report in labelled.values()})
    of = f"mean of {count_of(*tasks, 'task')}" if len(tasks) == 1 else "mean over tasks"
    interval = ", 95 % interval" if tasks[-1] > 1 else ""
    finish(axes, "inner steps", f"{metric}\n{of}{interval}", [] if several else notes[0])
    if several:
        legend(axes, handles, labels)
    return axes


def plot_tasks(report, metric=None, steps=None, ax=None):
    """Draws each task as a point: a metric before adaptation to the right, after it upwards.

    Tasks on the diagonal did not change. The legend counts those that got better and worse, or, where it is not known
    which side is better, those that rose and fell. Points of several tasks are larger. Tasks that are not finite before
    or after are left out, and counted.

    Args:
        report: an `EpisodeReport` of at least two numbers of steps.
        metric: what to draw; default the first compiled metric, else the loss.
        steps: a number of steps to compare the first one with, or a pair; default the first and the last.
        ax: axes to draw into; default those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the report lacks the metric or the steps, or if both numbers of steps are the same.
    """
    if not isinstance(report, EpisodeReport):
        raise ValueError(f"`report` must be an `EpisodeReport`. Received: {type(report).__name__}.")
    metric = _default_metric([report]) if metric is None else metric
    before, after = _pair(report, steps)
    x, y = report.of(metric, before), report.of(metric, after)
    finite = np.isfinite(x) & np.isfinite(y) & ~report.non_finite(before) & ~report.non_finite(after)
    spots, counts = np.unique(np.stack([x, y], 1)[finite], axis=0, return_counts=True)
    axes = axes_for(ax, 4.8, 4.8)
    area = np.maximum(counts * min(14.0, 400.0 / counts.max(initial=1)), 5.0)
    handles, labels = [], []
    for name, colour, marker, chosen in _sides(report.directions.get(metric), *spots.T):
        axes.scatter(*spots[chosen].T, area[chosen], colour, marker=marker, alpha=0.6, linewidth=0, zorder=3)
        handles.append(axes.plot([], [], marker, color=colour, markersize=5)[0])
        labels.append(f"{name}: {count_of(counts[chosen].sum(), 'task')}")
    notes = [f"{(~finite).sum()} of {count_of(len(finite), 'task')} not finite, left out"] * (not finite.all())
    notes += ["Larger points are several tasks"] * bool((counts > 1).any())
    square(axes, spots)
    finish(axes, f"{metric} {_when(before)}", f"{metric} {_when(after)}", notes)
    legend(axes, handles, labels, beside=False)
    return axes


def plot_regression_task(meta_model, episode_batch, task=0, steps=None, ax=None):
    """Draws the curve that a learner predicts before and after it adapts to one task, with supports and queries.

        keras_maml.plot_regression_task(meta_model, episodes, steps=(1, 5, 10))

    Batch normalisation by the statistics of the examples sees those of the curve.

    Args:
        meta_model: a `MetaModel` with a loss, whose inputs are one number each.
        episode_batch: `(x, y)` or `(x, y, sample_weight)`, or a dataset of such batches, of which the first is taken;
            of targets of several numbers the first is drawn.
        task: which task of the batch, from 0.
        steps: numbers of inner steps, one or several, a curve each; default the algorithm's `evaluation_steps`.
        ax: axes to draw into; default those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if inputs are not one number, the model is no regression, adaptation ends in weights that are not
            finite, or arguments are out of range.
    """
    (found,) = read_batches(episode_batch, 1)
    _check_task(task, found)
    leaves = [keras.tree.flatten(part.x) for part in (found.support, found.query)]
    if len(leaves[0]) != 1 or leaves[0][0][0, 0].size != 1 or leaves[0][0].dtype.kind not in "fiu":
        shapes = [leaf.shape for leaf in leaves[0]]
        raise ValueError(
            "A curve is drawn for inputs of one number: support_x (T, S, 1) or (T, S). Received: support_x of shape "
            f"{' and '.join(map(str, shapes))}. See `plot_tasks` for what adaptation does to any task."
        )
    (shown,) = tasks_of(found, [leaf for (leaf,) in leaves], [task])
    every = sorted({0, *check_steps(meta_model._evaluation_steps if steps is None else steps)})
    x = np.concatenate([shown.support.x, shown.query.x])
    grid = np.linspace(x.min(), x.max(), POINTS).astype(x.dtype).reshape(POINTS, *x.shape[1:])
    curves = [_curve(meta_model, found.support, found.weights.get("support_weight"), task, k, grid) for k in every]
    axes = axes_for(ax, 6.0, 4.0, [_when(k) for k in every])
    panels.draw_points(axes, shown)
    for number, (k, curve) in enumerate(zip(every, curves, strict=True)):
        shade = 1 - number / len(every)
        style = {"color": (0.1, 0.25 + 0.55 * shade, 0.15 + 0.3 * shade)} if k else {"color": GREY, "linestyle": "--"}
        axes.plot(grid.ravel(), curve, linewidth=1.6, label=_when(k), **style)
    frame(axes, np.concatenate([shown.support.values, shown.query.values]), np.concatenate(curves))
    finish(axes, axes.get_xlabel(), axes.get_ylabel(), [shown.title])
    legend(axes, *axes.get_legend_handles_labels())
    return axes


def plot_episode(batch, task=0, decode=None, names=None, ax=None):
    """Draws one task of an episode batch, supports beside queries: one task of `keras_maml.episodes.plot`.

    Args:
        batch: `(x, y)` or `(x, y, sample_weight)`; or a dataset of such batches, of which the first is taken.
        task: which task of the batch, from 0.
        decode, names: words of tokens and names of labels, as for `keras_maml.episodes.plot`.
        ax: axes that the finished picture is put into, as an image that is scaled to fit; default a new figure of the
            size that the task needs, of lines and letters.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is no such task, and as `keras_maml.episodes.plot` does.
    """
    (found,) = read_batches(batch, 1)
    _check_task(task, found)
    figure = picture(found, [task], domain_names(batch), decode, names)
    if ax is None:
        return figure.axes[0]
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.dpi = DPI
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    ax.imshow(np.asarray(canvas.buffer_rgba()), interpolation="antialiased")
    ax.axis("off")
    return ax


def plot_learned_rates(meta_model, ax=None):
    """Draws the inner learning rates that a learner has learned.

    Of a rule with a rate for every weight (`MetaSGD`, `LearnedSGD`): for each variable a box from the lower to the
    upper quartile of its rates, with the median, and whiskers from 5 % to 95 %. Of a rule with a rate for every
    variable and step (`LayerwiseSGD`): a line for each variable. A dashed line is where all of them started.

    Args:
        meta_model: a `MetaModel` whose rule learns rates.
        ax: axes to draw into; default those of a new figure. The legend stands beside them if the figure has a layout
            that makes room for it, such as "constrained", else inside.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the rule learns no rates, or if the model is not built yet.
    """
    rule = meta_model.rule
    if not isinstance(rule, LearnedSGD):
        raise ValueError(
            "Rates are learned by `LearnedSGD` (as in `keras_maml.MetaSGD`) and `LayerwiseSGD`. Received: a MetaModel "
            f"whose rule is `{type(rule).__name__}`."
        )
    if not rule.built:
        raise ValueError(
            f"Model '{meta_model.model.name}' is not built yet, so that there are no rates. Call the MetaModel on an "
            "episode first, or give the model a `keras.Input`."
        )
    variables = zip(meta_model.model.trainable_variables, meta_model.mask, strict=True)
    paths = [variable.path for variable, adapts in variables if adapts]
    rates = [rate.numpy().ravel() for rate in rule.learned_rates()]
    draw = _rates_by_step if isinstance(rule, LayerwiseSGD) else _rates_by_variable
    return draw(ax, paths, rates, rule.learning_rate)


def _rates_by_variable(ax, paths, rates, start):
    axes = axes_for(ax, 6.5, 1.0 + 0.26 * len(paths))
    finite = [rate[np.isfinite(rate)] for rate in rates]
    lost = sum(map(len, rates)) - sum(map(len, finite))
    places = range(len(paths))
    box, median = {"facecolor": "#c9d8e6", "edgecolor": BETTER}, {"color": WORSE, "linewidth": 1.6}
    line = {"color": BETTER}
    look = {"boxprops": box, "medianprops": median, "whiskerprops": line, "capprops": line, "patch_artist": True}
    how = {"orientation": "horizontal", "widths": 0.6, "showfliers": False, "manage_ticks": False}
    axes.boxplot(finite, positions=places, whis=(5, 95), **how, **look)
    axes.axvline(start, color=GREY, linestyle="--", linewidth=1)
    axes.set_ylim(len(paths) - 0.5, -0.5)  # the first layer on top
    notes = [f"{count_of(lost, 'rate')} not finite, left out"] * bool(lost)
    finish(axes, f"inner learning rate (all started at {start:g})", "", notes)
    axes.set_yticks(places, [shortened(path) for path in paths], parse_math=False)
    axes.grid(visible=False, axis="y")
    return axes


def _rates_by_step(ax, paths, rates, start):
    labels = [shortened(path) for path in paths]
    axes = axes_for(ax, 6.0, 3.8, labels)
    steps = range(1, len(rates[0]) + 1)
    handles, layers = [], {}  # layers: how many variables of each are drawn
    for path, rate in zip(paths, rates, strict=True):
        layer = path.rpartition("/")[0]
        layers[layer] = within = layers.get(layer, -1) + 1
        number = list(layers).index(layer)
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[within % len(STYLES)]}
        handles += axes.plot(steps, rate, marker=MARKERS[number % len(MARKERS)], markersize=4, **style)
    axes.axhline(start, color=GREY, linestyle="--", linewidth=1)
    step_ticks(axes, steps)
    finish(axes, "inner step", f"inner learning rate (all started at {start:g})", [])
    legend(axes, handles, labels)
    return axes


def _check_reports(reports, labelled):
    wrong = {k: type(report).__name__ for k, report in labelled.items() if not isinstance(report, EpisodeReport)}
    if wrong or not labelled:
        came = (wrong or "an empty dict") if isinstance(reports, dict) else type(reports).__name__
        raise ValueError(f"`reports` must be an `EpisodeReport`, or a dict of them by label. Received: {came}.")


def _default_metric(reports):
    first, *others = reports
    shared = [name for name in first.metrics if all(name in other.metrics for other in others)]
    return next((name for name in shared if name != "loss"), "loss")


def _when(steps):
    return "before adaptation" if steps == 0 else f"after {count_of(steps, 'step')}"


def _notes_on(row, tasks):
    """What a mean hides, for the number of steps where it hides most."""
    notes = []
    for key, words in (("non_finite", "not finite {}, left out"), ("diverged", "diverged {}")):
        worst = max(row, key=lambda summary: getattr(summary, key))
        count = getattr(worst, key)
        if count:
            notes.append(f"{count} of {count_of(tasks, 'task')} {words.format(_when(worst.steps))}")
    return notes


def _pair(report, steps):
    """Two numbers of steps of a report."""
    first, last = report.steps[0], report.steps[-1]
    pair = (first, last) if steps is None else tuple(steps) if isinstance(steps, tuple | list) else (first, steps)
    if len(pair) != 2 or pair[0] == pair[1]:
        raise ValueError(
            f"Two different numbers of steps are compared. Received: steps={steps!r}, of a report after "
            f"{list(report.steps)} steps. Pass a pair of them, or evaluate with `steps=(0, 5)`."
        )
    return pair


def _sides(direction, before, after):
    """`(name, colour, marker, which tasks)` of those that changed to one side, to the other, or not."""
    rose, fell = ("rose", BETTER, "o", after > before), ("fell", WORSE, "o", after < before)
    if direction is not None:
        better, worse = (rose, fell) if direction == "up" else (fell, rose)
        rose, fell = ("better", BETTER, "o", better[-1]), ("worse", WORSE, "o", worse[-1])
    equal = after == before
    return [rose, fell] + [("unchanged", GREY, "s", equal)] * bool(equal.any())


def _check_task(task, found):
    if isinstance(task, bool) or not isinstance(task, int | np.integer) or not 0 <= task < found.tasks:
        raise ValueError(
            f"`task` must be an integer from 0 to {found.tasks - 1}, as the batch has {count_of(found.tasks, 'task')}. "
            f"Received: task={task!r}."
        )


def _curve(meta_model, support, weight, task, steps, grid):
    """The first number of the predictions on a grid, after so many steps."""
    x, y = (keras.tree.map_structure(lambda leaf: leaf[task], part) for part in (support.x, support.y))
    weight = None if weight is None else weight[task]
    learner = meta_model.adapt(x, y, steps=steps, support_weight=weight)
    predictions = learner(keras.tree.map_structure(lambda leaf: keras.ops.convert_to_tensor(grid), x), training=False)
    predictions = keras.ops.convert_to_numpy(keras.tree.flatten(predictions)[0])
    target = support.targets[task][0]
    if predictions[0].size != target.size:
        raise ValueError(
            f"A curve is drawn for regression. Received: predictions of {count_of(predictions[0].size, 'number')} for "
            f"targets of {count_of(target.size, 'number')}."
        )
    return predictions.reshape(len(grid), -1)[:, 0].astype("float64")
