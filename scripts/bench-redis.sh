#!/usr/bin/env bash
# What one redis-server gives for the gateway's own write script (src/broker/lua): publications per second, with history and two
# subscribers to every channel, as two nodes have. Redis is pinned to one core, redis-benchmark and the subscribers to another.
#
#   scripts/bench-redis.sh [publications per call...]      default: 1 8 64
#
# FOLDER=path takes the scripts from another folder, to compare two versions of them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

FOLDER=${FOLDER:-src/broker/lua}
CHANNELS=${CHANNELS:-100}
SECONDS_EACH=${SECONDS_EACH:-5}
BATCHES=("${@:-1 8 64}")
read -ra BATCHES <<<"${BATCHES[*]}"

work=$(mktemp -d)
port=$((20000 + RANDOM % 20000))
children=()
finish() {
    kill "${children[@]}" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

taskset -c 1 redis-server --port "$port" --save '' --appendonly no --dir "$work" >"$work/redis.log" &
children+=($!)
redis=$!
ask() { redis-cli -p "$port" "$@"; }

# wait_for WHAT COMMAND...: until the command succeeds, or an error after ten seconds.
wait_for() {
    local what=$1
    shift
    for _ in $(seq 200); do
        if "$@"; then return; fi
        sleep 0.05
    done
    die "never: $what"
}
answers() { [ "$(ask PING 2>/dev/null)" = PONG ]; }
is_heard() { [ "$(ask PUBSUB NUMSUB 'bench:{c0}' | tail -1)" = 2 ]; }
wait_for "redis-server answers" answers

script=$(printf "local RUN, PUBLISH = 'run', 'PUBLISH'\n%s\n%s" "$(cat "$FOLDER/stream.lua")" "$(cat "$FOLDER/write.lua")")
hash=$(ask SCRIPT LOAD "$script")
for _ in 1 2; do
    taskset -c 0 bash -c "exec 3<>/dev/tcp/127.0.0.1/$port
        printf 'SUBSCRIBE%s\r\n' \"\$(printf ' bench:{c%d}' \$(seq 0 $((CHANNELS - 1))))\" >&3
        exec cat <&3 >/dev/null" &
    children+=($!)
done
wait_for "both subscribers listen" is_heard

payload=$(printf 'x%.0s' $(seq 256))
printf '%22s %16s %16s %22s\n' 'publications per call' 'calls/s' 'publications/s' 'CPU of Redis each, us'
for batch in "${BATCHES[@]}"; do
    keys=() arguments=(12345678 86400000 1800000000000)
    for n in $(seq "$batch"); do
        keys+=("bench:{c$((n % CHANNELS))}:meta" "bench:{c$((n % CHANNELS))}:stream")
        arguments+=(p "$payload" 100 3600000 0)
    done
    calls=$((200000 * SECONDS_EACH / batch / 10 + 1))
    before=$(awk '{print $14 + $15}' "/proc/$redis/stat")
    rate=$(taskset -c 0 redis-benchmark -p "$port" -n "$calls" -c 8 -P 2 --csv \
        evalsha "$hash" "${#keys[@]}" "${keys[@]}" "${arguments[@]}" | tail -1 | cut -d'"' -f4)
    after=$(awk '{print $14 + $15}' "/proc/$redis/stat")
    awk -v batch="$batch" -v rate="$rate" -v calls="$calls" -v ticks=$((after - before)) -v hz="$(getconf CLK_TCK)" \
        'BEGIN { printf "%22d %16.0f %16.0f %22.1f\n", batch, rate, rate * batch, ticks / hz * 1e6 / calls / batch }'
done
