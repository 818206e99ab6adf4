#!/usr/bin/env bash
# Runs the Autobahn suite against the gateway's diagnostic echo endpoint: all 517 cases on a release build, or with QUICK=1
# the 337 cases of CI on a development build (the permessage-deflate groups are thinned out, no rule is left untested).
# URL=ws://... runs it against an endpoint that is up already. CASES and EXCLUDE narrow the selection.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

exclude=${EXCLUDE:-}
profile=release
if [ "${QUICK:-0}" = 1 ]; then
    profile=dev
    exclude="${exclude:+$exclude,}12.2.*,12.3.*,12.4.*,12.5.*,13.2.*,13.3.*,13.4.*,13.5.*,13.6.*,13.7.*"
fi

scripts/deps-conformance.sh
url=${URL:-}
if [ -z "$url" ]; then
    need_toolchain
    have curl || apt_install "waiting for the gateway" curl
    cargo build --locked --quiet --profile $profile --package archmesh-gateway --bin archmesh
    port=$(free_port)
    mkdir -p "$CACHE"
    log=$CACHE/conformance-gateway.log
    folder=target/${profile/dev/debug}
    "$folder/archmesh" serve --config tests/conformance/gateway.toml --set "listen.public=127.0.0.1:$port" >"$log" 2>&1 &
    gateway=$!
    trap 'kill "$gateway" 2>/dev/null; wait "$gateway" 2>/dev/null || true' EXIT
    if ! await_http "http://127.0.0.1:$port/ready" "$gateway" 30; then
        tail -n 20 "$log" >&2
        die "the gateway did not become ready"
    fi
    url=ws://127.0.0.1:$port/echo
fi

python3 tests/conformance/autobahn.py "$url" --python "$CACHE/autobahn/python" --report reports/autobahn \
    --cases "${CASES:-*}" --exclude "$exclude" --timeout "${TIMEOUT:-1800}"
