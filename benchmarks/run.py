"""How fast is a meta-step, beside what else there is?

Checks every implementation's meta-gradient against float64, races those that are right, interleaved, measures memory,
prints tables as they come and writes results.json and results.png (and to outputs/benchmarks.log what libraries say):

    python -m benchmarks.run                                     # make benchmark
    python -m benchmarks.run --rows omniglot_pooled_t8_k1 --implementations keras_maml torch_loop --no-memory
    python -m benchmarks.run --rows none --memory                # the memory tables alone

`python -m benchmarks.run --list` names rows and implementations.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile

from benchmarks import check, memory, race, report
from benchmarks.implementations import ENTRIES
from benchmarks.processes import ROOT, Failed, Process
from benchmarks.rows import ROWS

HERE = pathlib.Path(__file__).parent


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name rows and implementations, and end")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=[*ROWS, "none"], metavar="ROW")
    parser.add_argument("--implementations", nargs="+", default=list(ENTRIES), choices=list(ENTRIES), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5, help="bursts of each implementation, in turn")
    parser.add_argument("--burst-seconds", type=float, default=0.5, help="length of a burst of meta-steps")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure memory too")
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=True, help="check gradients first")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has PyTorch and JAX")
    parser.add_argument("--output-dir", type=pathlib.Path, default=HERE)
    parser.add_argument("--update-readme", action="store_true", help="put the tables into README.md here")
    return parser.parse_args()


def list_names():
    for name, row in ROWS.items():
        print(f"{name:26} {row.title}")
    print()
    for name, entry in ENTRIES.items():
        print(f"{name:26} {entry.description}")


def run_rows(arguments, log):
    rows = [name for name in arguments.rows if name != "none"]
    peers = ("torch", "jax")

    def start(name, threads=None):
        theirs = name in ENTRIES and ENTRIES[name].packages[0] in peers
        return Process(name, arguments.peer_python if theirs else sys.executable, log, threads)

    verdicts = {
        row: {name: {"status": "not checked"} for name in arguments.implementations if ENTRIES[name].applies(ROWS[row])}
        for row in rows
    }
    if arguments.check and rows:
        print(f"checking meta-gradients of {len(arguments.implementations)} implementations in {len(rows)} rows ...")
        with tempfile.TemporaryDirectory() as folder:
            # Two processes at a time, so one thread each: nothing is timed.
            one_thread = lambda name: start(name, threads=1)  # noqa: E731
            verdicts = check.check_all(rows, arguments.implementations, one_thread, pathlib.Path(folder))
    results = {}
    for name in rows:
        right = [n for n, verdict in verdicts[name].items() if n in ENTRIES and _races(verdict)]
        timed, gflops = race.race(name, right, start, arguments.rounds, arguments.burst_seconds)
        results[name] = _row(name, verdicts[name], timed, gflops)
        print(f"\n{report.text(results[name])}", flush=True)
    return results


def _races(verdict):
    return verdict["status"] in ("right", "not checked")


def _row(name, verdicts, timed, gflops):
    row = ROWS[name]
    implementations = {}
    for implementation, verdict in verdicts.items():
        result = {**verdict, **timed.get(implementation, {})}
        if result.get("milliseconds"):
            result |= race.summary(result["milliseconds"])
        elif "reason" in result and _races(verdict):
            result["status"] = "not possible"
        implementations[implementation] = result
    peak = statistics.median(gflops)
    return {
        "title": row.title,
        "gflop": row.flops() / 1e9,
        "peak_gflops": gflops,
        "floor_ms": row.flops() / peak / 1e6,
        "implementations": implementations,
    }


def settle_floors(rows):
    """All floors by the median of the whole run's peaks, which one busy moment does not move."""
    peaks = [gflops for row in rows.values() for gflops in row["peak_gflops"]]
    if not peaks:
        return {}
    peak = race.summary(peaks)
    for row in rows.values():
        row["floor_ms"] = 1000 * row["gflop"] / peak["median"]
    return peak


def versions_of(rows):
    found = {}
    for row in rows.values():
        for result in row["implementations"].values():
            found |= result.pop("versions", {})
    return dict(sorted(found.items()))


def warn_if_busy():
    load, cores = os.getloadavg()[0], os.cpu_count()
    if load > 0.5:
        print(
            f"WARNING: the load of this machine was {load:.1f} in the last minute, on {cores} cores. PyTorch suffers "
            "most from others; ratios to it are only worth something on a quiet machine."
        )
    return load


def processor():
    """Name of the processor, where the system tells it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main():
    arguments = parse()
    if arguments.list:
        list_names()
        return
    load = warn_if_busy()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    log_path = ROOT / "outputs" / "benchmarks.log"  # what the frameworks print
    log_path.parent.mkdir(exist_ok=True)
    with open(log_path, "w") as log:
        try:
            rows = run_rows(arguments, log)
        except Failed as failure:
            raise SystemExit(f'{failure}\nThe reference needs PyTorch: pip install "keras-maml[benchmarks]".') from None
        tables = memory.measure(log) if arguments.memory else []
    for table in tables:
        print(f"\n{report.memory_text(table)}")
    results = {
        "date": datetime.date.today().isoformat(),
        "machine": {"cores": os.cpu_count(), "processor": processor(), "system": platform.platform()},
        "load_before": load,
        "settings": {"rounds": arguments.rounds, "burst_seconds": arguments.burst_seconds},
        "peak_gflops": settle_floors(rows),
        "versions": versions_of(rows),
        "rows": rows,
        "memory": tables,
    }
    path = arguments.output_dir / "results.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwrote {path}")
    if rows:
        report.plot(results, arguments.output_dir / "results.png")
    if arguments.update_readme:
        report.update(HERE / "README.md", report.markdown(results))


if __name__ == "__main__":
    main()
