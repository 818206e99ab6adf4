#!/usr/bin/env bash
# Measures the gateway beside the servers that users would pick instead and writes the tables and the chart of
# docs/performance.md. Arguments go to gateway-peers (see --help); with any, the documentation is left alone unless --docs
# is among them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_toolchain
scripts/deps-peers.sh
cargo build --locked --release --bins --package archmesh-gateway --package gateway-loadtest --package gateway-peers
mkdir -p reports
if [ $# = 0 ]; then
    set -- --json reports/peers.json --docs
fi
exec target/release/gateway-peers "$@"
