#!/usr/bin/env bash
# Runs every target of shards/core/fuzz for FUZZ_SECONDS (default 10) seconds each. FUZZ_TARGET=name runs one.
#
# It needs neither cargo-fuzz nor a nightly toolchain: the coverage passes that libFuzzer steers by are in every rustc.
# What a nightly would add, address sanitizing, finds nothing in a crate that forbids unsafe code.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_toolchain
have c++ || apt_install "libFuzzer, which is C++" g++
seconds=${FUZZ_SECONDS:-10}
folder=shards/core/fuzz
[ -f $folder/Cargo.toml ] || die "there is no $folder/Cargo.toml"
mapfile -t targets < <(sed -n 's/^path = "fuzz_targets\/\(.*\)\.rs"$/\1/p' $folder/Cargo.toml | sort)
[ -z "${FUZZ_TARGET:-}" ] || targets=("$FUZZ_TARGET")
[ ${#targets[@]} -gt 0 ] || die "$folder/Cargo.toml names no target"

# With --target the flags reach the targets only, not build scripts and macros, which have no coverage runtime.
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="--cfg fuzzing -Cdebug-assertions -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
say "building ${#targets[@]} fuzz targets"
cargo build --quiet --release --target "$host" --manifest-path $folder/Cargo.toml --bins

mkdir -p $folder/artifacts
for target in "${targets[@]}"; do
    corpus=$folder/corpus/$target
    mkdir -p "$corpus"
    # libFuzzer writes what it finds into the first folder; the seeds are only read.
    inputs=("$corpus")
    [ ! -d "$folder/seeds/$target" ] || inputs+=("$folder/seeds/$target")
    say "fuzzing $target for $seconds s"
    "$folder/target/$host/release/$target" -max_total_time="$seconds" -verbosity=0 -timeout=10 -rss_limit_mb=2048 \
        -artifact_prefix="$folder/artifacts/$target-" "${inputs[@]}"
done
echo "make fuzz: ${#targets[@]} targets ran $seconds s each without a finding"
