#!/usr/bin/env bash
# Loads a gateway with archmesh-loadtest. SIZE is small (default), medium, large or enterprise. With URL=ws://... it loads
# a gateway that is up already; otherwise it starts one of that size on a free port of the loopback and stops it again.
# Arguments go to the load generator. The reports are written to reports/loadtest-SCENARIO-SIZE.json and .html, unless
# --json or --html name other files.
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
    # A closed loop is faster than the message rate limits of people, and /metrics must be read at full house.
    case $size in small) room=200 ;; medium) room=1100 ;; large) room=5100 ;; enterprise) room=10100 ;; esac
    export DEPLOYMENT_SIZE=$size
    start_gateway loadtest-gateway.log target/release/archmesh --environment development --set log.level=warn \
        --set rate_limits.connection_messages_per_second=0 --set rate_limits.user_messages_per_second=0 \
        --set limits.connections_max="$room"
    url=ws://$GATEWAY/ws
fi
# The report's name says what was run: one scenario, several, or the default one.
name='' json='' html='' before=''
for argument in "$@"; do
    case $before in
        --scenario) argument=--scenario=$argument ;;
    esac
    case $argument in
        --scenario=*)
            given=$(basename "${argument#--scenario=}" .toml)
            name=${name:+$name-}$given
            ;;
        --json | --json=*) json=given ;;
        --html | --html=*) html=given ;;
        --list | --help | -h | --version | -V) json=given html=given ;;
    esac
    before=$argument
done
report=reports/loadtest-${name:-fanout}-$size
mkdir -p reports
[ -n "$json" ] || set -- "$@" --json "$report.json"
[ -n "$html" ] || set -- "$@" --html "$report.html"
target/release/archmesh-loadtest --url "$url" --size "$size" "$@"
