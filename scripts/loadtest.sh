#!/usr/bin/env bash
# Loads a gateway with archmesh-loadtest. SIZE is small (default), medium, large or enterprise. With URL=ws://... it loads
# a gateway that is up already; otherwise it starts one of that size on a free port of the loopback and stops it again.
# Arguments go to the load generator.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

size=${SIZE:-small}
case $size in
    small | medium | large | enterprise) ;;
    *) die "unknown SIZE $size: small, medium, large or enterprise" ;;
esac

# The generator holds one descriptor per connection, and so does the gateway.
ulimit -Sn "$(ulimit -Hn)"
need_toolchain
cargo build --locked --release --package gateway-loadtest
url=${URL:-}
if [ -z "$url" ]; then
    cargo build --locked --release --package archmesh-gateway --bin archmesh
    export DEPLOYMENT_SIZE=$size
    start_gateway loadtest-gateway.log target/release/archmesh --config config/dev.toml --set log.level=warn
    url=ws://$GATEWAY/ws
fi
target/release/archmesh-loadtest --url "$url" --size "$size" "$@"
