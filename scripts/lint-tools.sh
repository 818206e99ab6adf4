#!/usr/bin/env bash
# Installs the lint tools that are no part of the toolchain, when they are missing.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_toolchain
have shellcheck || apt_install "the script check" shellcheck
for tool in cargo-machete cargo-deny; do
    if have "$tool"; then
        say "$tool is installed"
    else
        say "compiling $tool with cargo install (some minutes)"
        cargo install --locked --quiet "$tool"
    fi
done
