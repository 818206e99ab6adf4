#!/usr/bin/env bash
# Where the gateway's CPU time goes under a scenario of the load generator: records one shard with perf and draws a flame
# graph. SCENARIO is a scenario's name (fanout), SECONDS_RECORDED how long is recorded (5), OUT the file
# (reports/flamegraph-SCENARIO.svg). Needs permission to use perf (root, or kernel.perf_event_paranoid at 1 or less).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

scenario=${SCENARIO:-fanout}
recorded=${SECONDS_RECORDED:-5}
out=${OUT:-reports/flamegraph-$scenario.svg}

need_toolchain
have perf || apt_install "recording where CPU time goes" linux-perf
inferno=$CACHE/inferno/bin
if [ ! -x "$inferno/inferno-flamegraph" ]; then
    say "installing inferno (draws flame graphs) into .cache/"
    cargo install --quiet --locked --root "$CACHE/inferno" inferno
fi
ulimit -Sn "$(ulimit -Hn)"
cargo build --locked --release --package gateway-loadtest
cargo build --locked --release --package archmesh-gateway --bin archmesh

mkdir -p "$(dirname "$out")"
export DEPLOYMENT_SIZE=medium
# The gateway inherits its core from this shell, so it has one shard.
taskset -cp 0 $$ >/dev/null
start_gateway flamegraph-gateway.log target/release/archmesh --environment development --set log.level=warn \
    --set rate_limits.connection_messages_per_second=0 --set rate_limits.user_messages_per_second=0 \
    --set limits.connections_max=1100
taskset -cp 1 $$ >/dev/null
target/release/archmesh-loadtest --url "ws://$GATEWAY/ws" --size medium --scenario "$scenario" --quiet \
    --connections 1000 --channels 1 --duration "$((recorded + 4))s" "$@" >"$CACHE/flamegraph-loadtest.log" 2>&1 &
load=$!
until curl --silent "http://$GATEWAY/metrics" | awk '/^archmesh_publications_total/ {n += $2} END {exit n < 1}'; do
    kill -0 "$load" 2>/dev/null || die "the load ended early (log: $CACHE/flamegraph-loadtest.log)"
    sleep 0.2
done
perf record --quiet --pid "$GATEWAY_PID" --event cpu-clock --freq 499 --call-graph dwarf,4096 \
    --output "$CACHE/flamegraph.perf" -- sleep "$recorded"
wait "$load" || true
perf script --no-inline --input "$CACHE/flamegraph.perf" 2>/dev/null |
    "$inferno/inferno-collapse-perf" |
    "$inferno/inferno-flamegraph" --title "archmesh-gateway: $scenario" --minwidth 0.3 >"$out"
say "flame graph: $out"
