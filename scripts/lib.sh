# shellcheck shell=bash
# Shared by the other scripts; sourced, never run. It moves to the top of the repository and gives them words for
# "say it, then install it, and only when it is missing". Everything installed locally lives under .cache/.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
CACHE=$PWD/.cache
export CACHE

say() { printf '==> %s\n' "$*" >&2; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# as_root COMMAND...: as root directly, else through sudo, else a sentence that says what to do.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "this needs root and there is no sudo; run as root once: $*"
    fi
}

# apt_install REASON PACKAGE...: installs Debian packages after saying so. Callers check first whether they are missing.
apt_install() {
    local reason=$1
    shift
    have apt-get || die "$reason: please install the equivalent of these Debian packages: $*"
    say "installing Debian packages for $reason: $*"
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends)
    # The lists are read again only when they are missing or older than the packages they name.
    if ! as_root "${install[@]}" "$@" >/dev/null 2>&1; then
        as_root apt-get update -qq >/dev/null
        as_root "${install[@]}" "$@" >/dev/null
    fi
}

# fresh STAMP INPUT...: whether STAMP was written for exactly these input files.
fresh() {
    local stamp=$CACHE/$1
    shift
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(cat "$@" | sha256sum)" ]
}

# mark STAMP INPUT...: remembers that the work for these input files is done.
mark() {
    local stamp=$CACHE/$1
    shift
    mkdir -p "$CACHE"
    cat "$@" | sha256sum >"$stamp"
}

# need_toolchain: the Rust toolchain must be there; a C compiler for the bundled C parts is installed when missing.
need_toolchain() {
    have cargo || die "cargo is not installed; install the Rust toolchain (1.94 or newer) first"
    local missing=()
    have cc || missing+=(gcc libc6-dev)
    have make || missing+=(make)
    [ ${#missing[@]} = 0 ] || apt_install "compiling the C parts of the TLS and io_uring libraries" "${missing[@]}"
}

# need_python: Python 3 with the venv module.
need_python() {
    if ! have python3 || ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install "Python clients and test tools" python3 python3-venv
    fi
}

# free_port: prints a TCP port of the loopback that is free at this moment.
free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# start_gateway LOG BINARY ARGUMENT...: starts `archmesh serve` on a free port of the loopback, waits until it is ready,
# and stops it when the script ends. GATEWAY is then its address without scheme.
start_gateway() {
    local log=$CACHE/$1 binary=$2
    shift 2
    need_python
    have curl || apt_install "waiting for the gateway" curl
    mkdir -p "$CACHE"
    GATEWAY=127.0.0.1:$(free_port)
    "$binary" serve --listen "$GATEWAY" "$@" >"$log" 2>&1 &
    GATEWAY_PID=$!
    trap 'kill "$GATEWAY_PID" 2>/dev/null; wait "$GATEWAY_PID" 2>/dev/null || true' EXIT
    local end=$((SECONDS + 30))
    until curl --silent --fail --max-time 2 --output /dev/null "http://$GATEWAY/ready"; do
        if ! kill -0 "$GATEWAY_PID" 2>/dev/null || [ $SECONDS -ge $end ]; then
            tail -n 20 "$log" >&2
            die "the gateway did not become ready (log: $log)"
        fi
        sleep 0.1
    done
}
