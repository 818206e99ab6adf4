#!/usr/bin/env bash
# Everything that is judged without running the product. Stops at the first thing that is wrong.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_toolchain
step() {
    say "$*"
    "$@"
}

step cargo fmt --all --check
step cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
RUSTDOCFLAGS="-D warnings" step cargo doc --workspace --no-deps --locked --quiet
# The whole workspace, so that nothing is compiled anew that the tests have compiled.
step cargo test --workspace --locked --quiet --test tidy
if have shellcheck; then
    step shellcheck scripts/*.sh .ci/run
else
    say "shellcheck is not installed: skipped (Debian package shellcheck)"
fi
if have cargo-machete; then
    step cargo machete
else
    say "cargo-machete is not installed: skipped (make lint-tools)"
fi
if have cargo-deny; then
    # Advisories need the network and are checked by `make audit`.
    step cargo deny --offline check --hide-inclusion-graph bans licenses sources
else
    say "cargo-deny is not installed: skipped (make lint-tools)"
fi
echo "make lint: clean"
