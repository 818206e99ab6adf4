#!/usr/bin/env python3
"""Runs the Autobahn suite's fuzzing client against an echo endpoint and prints counts per group of cases.

Exit status: 0 when every case that was asked for was run and none FAILED, was UNIMPLEMENTED or closed in a wrong way,
1 otherwise, 2 when the suite could not be run.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import time

GROUPS = {
    "1": "framing",
    "2": "pings and pongs",
    "3": "reserved bits",
    "4": "opcodes",
    "5": "fragmentation",
    "6": "UTF-8",
    "7": "close",
    "9": "limits and performance",
    "10": "auto-fragmentation",
    "12": "permessage-deflate payloads",
    "13": "permessage-deflate parameters",
}
COLUMNS = ["OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED", "FAILED", "MISSING"]
BAD = {"UNIMPLEMENTED", "FAILED", "MISSING"}
BAD_CLOSE = {"FAILED", "WRONG CODE", "UNCLEAN", "FAILED BY CLIENT"}
AGENT = "archmesh"

# Both run under Python 2.7. The first prints the ids of the cases that a specification selects.
LIST_CASES = """
import json, sys
from autobahntestsuite.case import Cases, CaseCategories, CaseSubCategories
from autobahntestsuite.caseset import CaseSet
cases = CaseSet("websocket", "Case", Cases, CaseCategories, CaseSubCategories)
print(json.dumps(cases.parseSpecCases(json.loads(sys.argv[1]))))
"""
RUN_SUITE = "from autobahntestsuite.wstest import run; run()"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="ws:// or wss:// endpoint that echoes text as text and binary as binary")
    parser.add_argument("--python", required=True, help="Python 2.7 with the suite")
    parser.add_argument("--report", required=True, type=pathlib.Path, help="folder for the report, emptied first")
    parser.add_argument("--cases", default="*", help="patterns, separated by commas")
    parser.add_argument("--exclude", default="", help="patterns, separated by commas")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for the whole run")
    return parser.parse_args()


def run_suite(args, spec_file, log):
    """Runs the suite; says whether it ended in time."""
    command = [args.python, "-W", "ignore", "-c", RUN_SUITE, "-m", "fuzzingclient", "-s", str(spec_file)]
    suite = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=args.report)
    try:
        suite.wait(args.timeout)
        return True
    except subprocess.TimeoutExpired:
        suite.kill()
        suite.wait()
        return False


def verdict(result):
    if result is None:
        return "MISSING", False
    return result["behavior"], result["behaviorClose"] in BAD_CLOSE


def print_table(wanted, results):
    """Prints the counts and returns the lines about bad cases."""
    counts = {}
    bad = []
    for case in wanted:
        behaviour, bad_close = verdict(results.get(case))
        row = counts.setdefault(case.split(".")[0], dict.fromkeys([*COLUMNS, "bad close"], 0))
        row[behaviour] = row.get(behaviour, 0) + 1
        row["bad close"] += bad_close
        if behaviour in BAD or bad_close:
            result = results.get(case, {})
            close = f"{result.get('behaviorClose', '-')}, close code {result.get('remoteCloseCode', '-')}"
            bad.append(f"  {case:9} {behaviour}, close: {close}")
    widths = [max(len(name), 5) for name in [*COLUMNS, "bad close"]]
    header = "  ".join(name.rjust(width) for name, width in zip([*COLUMNS, "bad close"], widths))
    print(f"{'group':34}{'cases':>6}  {header}")
    total = dict.fromkeys([*COLUMNS, "bad close"], 0)
    for group in sorted(counts, key=int):
        row = counts[group]
        print_row(f"{group} {GROUPS.get(group, '')}", row, widths)
        total = {name: total[name] + row[name] for name in total}
    print_row("total", total, widths)
    return bad


def print_row(title, row, widths):
    cells = "  ".join(str(row[name]).rjust(width) for name, width in zip([*COLUMNS, "bad close"], widths))
    print(f"{title:34}{sum(row[name] for name in COLUMNS):>6}  {cells}")


def main():
    args = arguments()
    shutil.rmtree(args.report, ignore_errors=True)
    args.report.mkdir(parents=True)
    args.report = args.report.resolve()
    selection = {
        "cases": [pattern for pattern in args.cases.split(",") if pattern],
        "exclude-cases": [pattern for pattern in args.exclude.split(",") if pattern],
    }
    listing = [args.python, "-W", "ignore", "-c", LIST_CASES, json.dumps(selection)]
    wanted = json.loads(subprocess.run(listing, stdout=subprocess.PIPE, check=True).stdout)
    servers = [{"agent": AGENT, "url": args.url}]
    spec = {"outdir": str(args.report), "servers": servers, "exclude-agent-cases": {}, **selection}
    spec_file = args.report / "spec.json"
    spec_file.write_text(json.dumps(spec, indent=1))

    began = time.monotonic()
    log_file = args.report / "wstest.log"
    with log_file.open("wb") as log:
        in_time = run_suite(args, spec_file, log)
    try:
        results = json.loads((args.report / "index.json").read_text())[AGENT]
    except (OSError, KeyError, ValueError):
        how = "ended" if in_time else f"did not end within {args.timeout:.0f} s"
        print(f"the suite {how} without a report; its last words:\n{log_file.read_text(errors='replace')[-2000:]}")
        return 2
    bad = print_table(wanted, results)
    print(*bad, sep="\n", end="\n" if bad else "")
    print(f"conformance: {len(wanted) - len(bad)} of {len(wanted)} cases passed in {time.monotonic() - began:.0f} s")
    print(f"report: {args.report / 'index.html'}")
    return 1 if bad else 0


sys.exit(main())
