#!/usr/bin/env bash
# Builds the gateway in release and runs it in the foreground. Everything after the tier goes to `archmesh serve`.
# BINARY=path runs a gateway that is built already.
#   run.sh dev          development environment: loopback, no TLS, a built-in key (config/dev.toml)
#   run.sh enterprise   production environment, enterprise tier; with the Redis of the configuration (REDIS_URL, REDIS_HOST,
#                       --set redis.url=..., a file), or a private one
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

tier=${1:?dev or enterprise}
shift

# A secret made once, kept for the next start; readable by the owner only.
secret() {
    local file=$CACHE/$1
    if [ ! -s "$file" ]; then
        mkdir -p "$CACHE"
        (umask 077 && head -c 48 /dev/urandom | base64 -w 0 >"$file")
    fi
    cat "$file"
}

# What production refuses to guess is made up here, and said: this is for trying the tier out on one machine.
enterprise_environment() {
    export ENVIRONMENT=${ENVIRONMENT:-production} DEPLOYMENT_SIZE=${DEPLOYMENT_SIZE:-enterprise}
    if [ -z "${ENABLE_SSL:-}" ]; then
        if [ -n "${SSL_CERT_PATH:-}" ] && [ -n "${SSL_KEY_PATH:-}" ]; then
            export ENABLE_SSL=true
        else
            say "no SSL_CERT_PATH and SSL_KEY_PATH: serving without TLS (ENABLE_SSL=false)"
            export ENABLE_SSL=false
        fi
    fi
    if [ -z "${JWT_SECRET:-}${JWT_PUBLIC_KEY_PATH:-}${JWT_JWKS_URL:-}" ]; then
        say "no JWT_SECRET, JWT_PUBLIC_KEY_PATH or JWT_JWKS_URL: using .cache/enterprise-jwt-secret, made here"
        JWT_SECRET=$(secret enterprise-jwt-secret)
        export JWT_SECRET
    fi
    if [ -z "${API_KEY:-}" ]; then
        say "no API_KEY: using .cache/enterprise-api-key, made here"
        API_KEY=$(secret enterprise-api-key)
        export API_KEY
    fi
}

# answers_as PORT PID: whether the Redis on that port of the loopback is this process. Somebody else may listen there.
answers_as() {
    local line
    exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
    printf 'INFO server\r\nQUIT\r\n' >&3
    while IFS= read -r -t 2 line <&3; do
        if [ "$line" = "process_id:$2"$'\r' ]; then
            exec 3>&-
            return 0
        fi
    done
    exec 3>&-
    return 1
}

# Starts a Redis of its own, without persistence, for as long as the gateway runs. The gateway's own view of its configuration
# says whether there is one already.
private_redis() {
    if "$binary" config print "$@" 2>/dev/null | grep '^redis\.url ' >/dev/null; then
        return
    fi
    if ! have redis-server; then
        say "no redis.url (REDIS_URL, REDIS_HOST), and no redis-server here: this node is alone"
        return
    fi
    redis_folder=$(mktemp -d)
    local port
    for _ in $(seq 20); do
        port=$((20000 + RANDOM % 20000))
        # In a session of its own, so that an interrupt reaches the gateway alone, which drains first.
        setsid redis-server --port "$port" --bind 127.0.0.1 --save '' --appendonly no --dir "$redis_folder" \
            --loglevel warning >"$redis_folder/log" 2>&1 &
        redis_pid=$!
        for _ in $(seq 200); do
            kill -0 "$redis_pid" 2>/dev/null || break
            if answers_as "$port" "$redis_pid" 2>/dev/null; then
                export REDIS_URL=redis://127.0.0.1:$port
                say "no redis.url (REDIS_URL, REDIS_HOST): a private redis-server runs at $REDIS_URL until the gateway ends"
                return
            fi
            sleep 0.05
        done
        kill "$redis_pid" 2>/dev/null || true
    done
    die "redis-server does not start; set REDIS_URL, or see $redis_folder/log"
}

# Runs the gateway beside the private Redis, which ends after it.
serve_beside_redis() {
    "$binary" serve "$@" &
    local gateway=$! status=0
    trap 'kill -TERM "$gateway" 2>/dev/null || true' INT TERM
    trap 'kill -HUP "$gateway" 2>/dev/null || true' HUP
    # A signal ends a wait early, the gateway goes on until it has drained.
    while kill -0 "$gateway" 2>/dev/null; do
        status=0
        wait "$gateway" || status=$?
    done
    kill "$redis_pid" 2>/dev/null || true
    wait "$redis_pid" 2>/dev/null || true
    rm -rf "$redis_folder"
    exit "$status"
}

# Every connection is a descriptor; the soft limit is often far below what the process may have.
ulimit -Sn "$(ulimit -Hn)"

binary=${BINARY:-}
if [ -z "$binary" ]; then
    need_toolchain
    say "building in release (the first time takes minutes)"
    cargo build --locked --release --package archmesh-gateway --bin archmesh
    binary=target/release/archmesh
fi
case $tier in
    dev) exec "$binary" serve --config config/dev.toml "$@" ;;
    enterprise)
        enterprise_environment
        private_redis "$@"
        if [ -n "${redis_pid:-}" ]; then
            serve_beside_redis "$@"
        fi
        exec "$binary" serve "$@"
        ;;
    *) die "unknown tier $tier: dev or enterprise" ;;
esac
