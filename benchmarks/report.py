"""Tables and a plot of what `run.py` measured. Ratios are of medians, within one row of one run."""

from benchmarks.implementations import ENTRIES, OURS

HEADINGS = ("implementation", "ms a meta-step", "keras_maml faster", "x floor", "first step s", "peak MB", "error")
START, END = "<!-- table: begin -->", "<!-- table: end -->"


def lines_of_row(row):
    """The cells of every implementation in one row of `results.json`, ours first, then from fast to slow."""

    def order(item):
        name, result = item
        return name != OURS, result.get("median", float("inf"))

    return [_cells(row, name, result) for name, result in sorted(row["implementations"].items(), key=order)]


def _cells(row, name, result):
    title = ENTRIES[name].title if name in ENTRIES else name
    error = f"{result['error']:.0e}" if "error" in result else ""
    if "median" not in result:
        what = f"{result['status']}: {result['reason']}" if "reason" in result else result["status"]
        return (title, _short(what, 60), "", "", "", "", error)
    ours = row["implementations"].get(OURS, {}).get("median")
    return (
        title,
        f"{_number(result['median'])} [{_number(result['min'])}, {_number(result['max'])}]",
        f"{result['median'] / ours:.2f} x" if ours and name != OURS else "",
        f"{result['median'] / row['floor_ms']:.2f}",
        f"{result['first_step_s']:.1f}",
        f"{result['peak_mb']:.0f} (+{result['growth_mb']:.0f})",
        error,
    )


def _number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _short(text, length):
    return text if len(text) <= length else text[: length - 3] + "..."


def text(row):
    """A row for the terminal."""
    table = [HEADINGS, *lines_of_row(row)]
    widths = [max(len(line[i]) for line in table) for i in range(len(HEADINGS))]
    formatted = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    return "\n".join([_title(row), *(f"  {line}".rstrip() for line in formatted)])


def _title(row):
    return f"{row['title']}: floor {_number(row['floor_ms'])} ms ({row['gflop']:.3g} GFLOP)"


def markdown(results):
    """All of a run's tables."""
    peak, machine = results["peak_gflops"], results["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    parts = [
        f"{machine['cores']} cores ({machine['processor']}), matmul peak {peak['median']:.0f} GFLOP/s "
        f"[{peak['min']:.0f}, {peak['max']:.0f}], {results['settings']['rounds']} rounds. {versions}."
    ]
    for row in results["rows"].values():
        lines = [HEADINGS, ["---"] * len(HEADINGS), *lines_of_row(row)]
        table = "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
        parts.append(f"**{_title(row)}**\n\n{table}")
    for table in results["memory"]:
        parts.append(f"**Memory: {table['title']}**\n\n{memory_markdown(table)}")
    return "\n\n".join(parts) + "\n"


def memory_lines(table):
    """Headings, then a line for each variant: MB above the process before the model, by setting."""
    headings = ["MB", *(f"{table['axis']}={value}" for value in table["values"])]
    lines = [
        [name, *(f"{point['growth_mb']:.0f}" if "growth_mb" in point else "failed" for point in points)]
        for name, points in table["variants"].items()
    ]
    return [headings, *lines]


def memory_markdown(table):
    headings, *lines = memory_lines(table)
    return "\n".join("| " + " | ".join(line) + " |" for line in [headings, ["---"] * len(headings), *lines])


def memory_text(table):
    lines = memory_lines(table)
    width = max(len(line[0]) for line in lines)
    body = ["  " + line[0].ljust(width) + "".join(cell.rjust(8) for cell in line[1:]) for line in lines]
    return "\n".join([f"Memory: {table['title']}", *body])


def update(path, table, begin=START, end=END):
    """Puts a table between the two marks of a Markdown file."""
    before, found, rest = path.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path} must have a line '{begin}' and, after it, one '{end}'.")
    path.write_text(f"{before}{begin}\n{table}{end}{after}")


def plot(results, path):
    """Medians of every row, as multiples of keras_maml's, on a logarithmic axis; the floor is a grey bar."""
    from matplotlib.figure import Figure

    rows = [row for row in results["rows"].values() if "median" in row["implementations"].get(OURS, {})]
    figure = Figure(figsize=(9, 1.5 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        ours = row["implementations"][OURS]["median"]
        axes.plot([row["floor_ms"] / ours], [place], "|", color="grey", markersize=14, label="floor")
        for index, name in enumerate(ENTRIES):
            result = row["implementations"].get(name, {})
            if "median" in result:
                style = "o" if name == OURS else "Xs^vDPp*<>"[index]
                axes.plot([result["median"] / ours], [place], style, color=f"C{index}", label=ENTRIES[name].title)
    axes.set(xscale="log", xlabel="time of a meta-step, keras_maml = 1", yticks=range(len(rows)))
    axes.set_yticklabels([row["title"] for row in rows], fontsize="small")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    labelled = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(labelled.values(), labelled.keys(), fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)
