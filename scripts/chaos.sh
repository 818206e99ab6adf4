#!/usr/bin/env bash
# CHAOS_FAULTS (100) faults each for three nodes and a real Redis in six layouts, in an order that CHAOS_SEED decides; the checker
# is the test's own. CHAOS_LAYOUT=single|sentinel|redis_cluster|independent|haproxy|namespaces runs one of them. Sentinel, Redis
# Cluster and independent servers run half of them behind HAProxy; haproxy is the single server behind it. namespaces needs
# root: the kernel drops the packets between nodes and Redis there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_toolchain
scripts/deps-test.sh
eval "$(scripts/deps-test.sh --env)"
export CHAOS_FAULTS=${CHAOS_FAULTS:-100}
ignored=()
if [ "$(id -u)" = 0 ]; then
    missing=()
    have iptables || missing+=(iptables)
    have ip || missing+=(iproute2)
    [ ${#missing[@]} = 0 ] || apt_install "network partitions" "${missing[@]}"
    ignored=(--include-ignored)
else
    say "not root: the run with network namespaces is left out"
fi
exec cargo test --package archmesh-gateway --test it -- --nocapture --test-threads 1 "${ignored[@]}" "chaos::${CHAOS_LAYOUT:-}"
