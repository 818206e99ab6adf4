#!/usr/bin/env python3
"""Prints the benchmarks that ran since a moment beside their baseline, and keeps baselines.

usage: bench_table.py CRITERION_FOLDER SINCE_UNIX_SECONDS [--save]

Criterion writes what it measured last to `<benchmark>/new/`. A baseline is a copy of that in `<benchmark>/base-line/`:
made when a benchmark has none, or for all with --save. Ratios are now / baseline; one is marked when the confidence
intervals of both are more than 5 % apart, which is about the noise of a quiet machine.
"""

import json
import shutil
import sys
from pathlib import Path

BASELINE = "base-line"
FILES = ("benchmark.json", "estimates.json")
NOISE = 1.05


def read(folder):
    """(estimate, low, high) in nanoseconds: the slope where criterion has one, else the mean; per element where a
    benchmark counts elements, else per iteration."""
    throughput = json.loads((folder / "benchmark.json").read_text()).get("throughput") or {}
    estimates = json.loads((folder / "estimates.json").read_text())
    best = estimates.get("slope") or estimates["mean"]
    interval, count = best["confidence_interval"], throughput.get("Elements", 1)
    return best["point_estimate"] / count, interval["lower_bound"] / count, interval["upper_bound"] / count


def time_text(nanoseconds):
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}" if nanoseconds < 1000 * size else f"{nanoseconds / size:.0f} {unit}"
    return f"{nanoseconds:.3g} ns"


def verdict(now, base):
    if now[1] > base[2] * NOISE:
        return "slower"
    if now[2] * NOISE < base[1]:
        return "faster"
    return ""


def save(new, baseline):
    baseline.mkdir(exist_ok=True)
    for name in FILES:
        shutil.copyfile(new / name, baseline / name)


def row(new, save_all):
    identity = json.loads((new / "benchmark.json").read_text())
    baseline, now = new.parent / BASELINE, read(new)
    known = all((baseline / name).is_file() for name in FILES)
    cells = [identity["full_id"], "-", time_text(now[0]), "-", "saved"]
    if known:
        base = read(baseline)
        ratio = f"{now[0] / base[0]:.2f}"
        cells = [identity["full_id"], time_text(base[0]), cells[2], ratio, verdict(now, base)]
    if save_all or not known:
        save(new, baseline)
    return cells


def main():
    folder, since, save_all = Path(sys.argv[1]), float(sys.argv[2]), "--save" in sys.argv[3:]
    ran = [path for path in folder.rglob("new/estimates.json") if path.stat().st_mtime >= since]
    if not ran:
        sys.exit("error: no benchmark ran; is FILTER a part of a benchmark's name?")
    rows = sorted(row(path.parent, save_all) for path in ran)
    rows.insert(0, ["benchmark", "baseline", "now", "ratio", ""])
    widths = [max(len(cells[column]) for cells in rows) for column in range(4)]
    print("\nTime per iteration, or per element where a benchmark counts elements:")
    for name, *values, mark in rows:
        columns = [value.rjust(width) for value, width in zip(values, widths[1:])]
        print("  ".join([name.ljust(widths[0]), *columns, mark]).rstrip())
    slower = [cells[0] for cells in rows if cells[4] == "slower"]
    if slower:
        print(f"{len(slower)} slower than the baseline. SAVE=1 makes this run the baseline.")


if __name__ == "__main__":
    main()
