#!/usr/bin/env bash
# Builds the gateway in release and runs it in the foreground. Everything after the tier goes to `archmesh serve`.
#   run.sh dev          development environment: loopback, no TLS, a built-in key (config/dev.toml)
#   run.sh enterprise   production environment, enterprise tier, on this one node
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

# Every connection is a descriptor; the soft limit is often far below what the process may have.
ulimit -Sn "$(ulimit -Hn)"

need_toolchain
say "building in release (the first time takes minutes)"
cargo build --locked --release --package archmesh-gateway --bin archmesh
case $tier in
    dev) exec target/release/archmesh serve --config config/dev.toml "$@" ;;
    enterprise)
        enterprise_environment
        exec target/release/archmesh serve "$@"
        ;;
    *) die "unknown tier $tier: dev or enterprise" ;;
esac
