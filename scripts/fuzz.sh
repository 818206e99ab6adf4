#!/usr/bin/env bash
# Runs every target of shards/core/fuzz for FUZZ_SECONDS (default 10) seconds each. FUZZ_TARGET=name runs one.
#
# With cargo-fuzz and a nightly toolchain the targets are built with sanitizer coverage, the real fuzzing. Without them
# each target is built on the stable toolchain and libFuzzer feeds it without coverage guidance: blind, but anywhere.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_toolchain
seconds=${FUZZ_SECONDS:-10}
folder=shards/core/fuzz
[ -f $folder/Cargo.toml ] || die "there is no $folder/Cargo.toml"
have c++ || apt_install "libFuzzer, which is C++" g++
mapfile -t targets < <(find $folder/fuzz_targets -name '*.rs' -printf '%f\n' | sed 's/\.rs$//' | sort)
[ -z "${FUZZ_TARGET:-}" ] || targets=("$FUZZ_TARGET")

guided=false
if have cargo-fuzz && cargo +nightly --version >/dev/null 2>&1; then guided=true; fi
$guided || say "no cargo-fuzz with a nightly toolchain: running without coverage guidance"

for target in "${targets[@]}"; do
    say "fuzzing $target for $seconds s"
    corpus=$folder/corpus/$target
    seeds=$folder/seeds/$target
    mkdir -p "$corpus" $folder/artifacts
    folders=("$corpus")
    [ ! -d "$seeds" ] || folders+=("$seeds")
    options=(-max_total_time="$seconds" -print_final_stats=0 -verbosity=0 -artifact_prefix="$folder/artifacts/$target-")
    if $guided; then
        cargo +nightly fuzz run --fuzz-dir $folder "$target" "${folders[@]}" -- "${options[@]}"
    else
        cargo run --quiet --manifest-path $folder/Cargo.toml --bin "$target" -- "${options[@]}" "${folders[@]}"
    fi
done
echo "make fuzz: ${#targets[@]} targets ran $seconds s each without a finding"
