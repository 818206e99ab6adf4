#!/usr/bin/env bash
# Runs the Autobahn suite against the gateway's diagnostic echo endpoint: all 517 cases on a release build, or with
# QUICK=1 the 337 cases of CI on a development build (fewer sizes and parameters of permessage-deflate).
# URL=ws://... runs it against an endpoint that is up already, BINARY=path with a gateway that is built already. CASES and EXCLUDE
# narrow the selection.
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
    binary=${BINARY:-}
    if [ -z "$binary" ]; then
        need_toolchain
        cargo build --locked --quiet --profile $profile --package archmesh-gateway --bin archmesh
        binary=target/${profile/dev/debug}/archmesh
    fi
    start_gateway conformance-gateway.log "$binary" --config tests/conformance/gateway.toml
    url=ws://$GATEWAY/echo
fi

python3 tests/conformance/autobahn.py "$url" --python "$CACHE/autobahn/python" --report reports/autobahn \
    --cases "${CASES:-*}" --exclude "$exclude" --timeout "${TIMEOUT:-1800}"
