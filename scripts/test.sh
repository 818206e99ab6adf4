#!/usr/bin/env bash
# All tests of the workspace: installs what they need, runs them, ends with a summary. Arguments go to the test runner.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_toolchain
scripts/deps-test.sh
eval "$(scripts/deps-test.sh --env)"

began=$SECONDS
status=0
if have cargo-nextest; then
    runner="cargo nextest"
    # Most of them wait most of the time.
    threads=$(($(nproc) * 3 / 2))
    # It is among what the tests of the workspace are built with.
    export LOADTEST_BINARY=target/debug/archmesh-loadtest
    cargo nextest run --workspace --no-fail-fast --test-threads "$threads" "$@" || status=$?
    # nextest leaves documentation examples to cargo.
    cargo test --workspace --doc --quiet || status=$?
else
    runner="cargo test"
    cargo test --workspace --no-fail-fast "$@" || status=$?
fi

if [ "$status" = 0 ]; then
    echo "make test: every test passed ($runner, $((SECONDS - began)) s)"
else
    echo "make test: FAILED ($runner, status $status, $((SECONDS - began)) s); the failing tests are named above" >&2
fi
exit "$status"
