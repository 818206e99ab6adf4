#!/usr/bin/env bash
# Faults without end for three nodes and a real Redis in four layouts, in an order that CHAOS_SEED decides; the checker is the
# test's own. CHAOS_LAYOUT=single|sentinel|redis_cluster|independent runs one of them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_toolchain
scripts/deps-test.sh
eval "$(scripts/deps-test.sh --env)"
export CHAOS_FAULTS=${CHAOS_FAULTS:-100}
exec cargo test --package archmesh-gateway --test it -- --nocapture --test-threads 1 "chaos::${CHAOS_LAYOUT:-}"
