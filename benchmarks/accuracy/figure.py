"""Accuracy on validation tasks against seconds of training."""

STYLES = ("-", "--", ":", "-.")


def draw(suite, runs, path):
    """A line for each row: the mean over its seeds.

    Args:
        suite: a `Suite`.
        runs: `{row: {seed: run}}`.
        path: of the PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(runs, key=lambda name: -_points(runs[name])[-1][1])
    for number, name in enumerate(ordered):
        seconds, accuracies = zip(*_points(runs[name]), strict=True)
        # Ten colours: beyond them the lines change.
        style = STYLES[number // 10 % len(STYLES)]
        label = f"{suite.rows[name].title if name in suite.rows else name} ({100 * accuracies[-1]:.1f})"
        values = [100 * value for value in accuracies]
        if seconds[-1] == 0:  # nothing was trained
            axes.axhline(values[0], color="black", linestyle=":", linewidth=1, label=label)
        else:
            width = 2.5 if name == suite.reference else 1.3
            axes.plot(seconds, values, style, color=f"C{number % 10}", linewidth=width, marker=".", label=label)
    axes.set(
        xscale="log",
        xlabel="seconds of training",
        ylabel="accuracy on validation tasks, %",
        title=suite.title,
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), title="at the end, %")
    figure.savefig(path, dpi=120)


def _points(seeds):
    """`[(seconds, accuracy)]`, means over the seeds at each moment that all of them reached."""
    curves = [run["curve"] for run in seeds.values()]
    moments = zip(*curves, strict=False)
    return [tuple(sum(p[key] for p in points) / len(points) for key in ("seconds", "accuracy")) for points in moments]
