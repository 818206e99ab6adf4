#!/usr/bin/env bash
# Runs the benchmarks and compares them with the baseline of this machine in target/criterion. The first run of a benchmark
# is its baseline; SAVE=1 makes this run the new one. BENCH=name runs one file of benches/, FILTER=text the benchmarks
# whose names hold it. Arguments go to criterion; without any, each benchmark gets a second to warm up and three to measure.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_toolchain
have python3 || apt_install "the table of the benchmarks" python3
options=(--locked --package archmesh-gateway)
if [ -n "${BENCH:-}" ]; then
    [ -f "benches/$BENCH.rs" ] || die "there is no benches/$BENCH.rs; BENCH is the name of a file in benches/"
    options+=(--bench "$BENCH")
fi
[ $# -gt 0 ] || set -- --warm-up-time 1 --measurement-time 3
started=$(date +%s)
cargo bench "${options[@]}" -- --noplot "$@" ${FILTER:+"$FILTER"}
python3 scripts/bench_table.py target/criterion "$started" ${SAVE:+--save}
