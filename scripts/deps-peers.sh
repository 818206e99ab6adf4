#!/usr/bin/env bash
# Installs the servers that the gateway is compared with (make bench-peers) into .cache/peers: npm packages, a Python
# environment, and nginx with nchan, unpacked from Debian packages and not installed, so that no service starts.
# A server that cannot be installed is left out of the comparison.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

servers=$PWD/loadtest/peers/servers
peers=$CACHE/peers
mkdir -p "$peers"

install_npm_servers() {
    local inputs=("$servers/package.json" "$servers/package-lock.json")
    if [ -d "$peers/npm/node_modules" ] && fresh peers-npm.stamp "${inputs[@]}"; then return; fi
    local missing=()
    have node || missing+=(nodejs)
    have npm || missing+=(npm)
    [ ${#missing[@]} = 0 ] || apt_install "the compared servers of npm" "${missing[@]}"
    say "installing the npm packages bun, ws and a build of uWebSockets.js into .cache/peers/npm (150 MB)"
    mkdir -p "$peers/npm"
    cp "${inputs[@]}" "$peers/npm/"
    (cd "$peers/npm" && npm ci --silent --ignore-scripts --no-audit --no-fund)
    mark peers-npm.stamp "${inputs[@]}"
}

install_python_servers() {
    local inputs=("$servers/requirements.txt")
    if [ -x "$peers/venv/bin/uvicorn" ] && fresh peers-pip.stamp "${inputs[@]}"; then return; fi
    need_python
    say "installing FastAPI, uvicorn and socketify into .cache/peers/venv"
    python3 -m venv --clear "$peers/venv"
    "$peers/venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$servers/requirements.txt"
    mark peers-pip.stamp "${inputs[@]}"
}

# unpack MARK PACKAGE...: unpacks Debian packages into .cache/peers/debian, unless the file MARK is there.
unpack() {
    local mark=$1
    shift
    local packages=("$@")
    if [ -e "$peers/debian/$mark" ]; then return; fi
    have dpkg-deb || die "${packages[*]}: these are Debian packages and this is no Debian"
    say "unpacking the Debian packages ${packages[*]} into .cache/peers/debian"
    local folder
    folder=$(mktemp -d)
    (
        cd "$folder"
        apt-get download -qq -o APT::Sandbox::User= "${packages[@]}" 2>/dev/null ||
            { as_root apt-get update -qq && apt-get download -qq -o APT::Sandbox::User= "${packages[@]}"; }
        mkdir -p "$peers/debian"
        for package in *.deb; do dpkg-deb --extract "$package" "$peers/debian"; done
    )
    rm -rf "$folder"
}

# nchan insists on this folder, which the package's own installation would have made.
prepare_nginx() {
    if [ -d /var/lib/nginx ]; then return; fi
    say "making the folder /var/lib/nginx for nginx with nchan"
    as_root mkdir -p /var/lib/nginx
}

have taskset || apt_install "pinning servers to a core" util-linux
install_npm_servers
install_python_servers || say "FastAPI and socketify could not be installed: left out"
(unpack "usr/lib/$(uname -m)-linux-gnu/libuv.so.1" libuv1) || say "libuv could not be unpacked: socketify is left out"
(unpack usr/sbin/nginx nginx libnginx-mod-nchan libhiredis0.14 && prepare_nginx) ||
    say "nginx could not be unpacked: left out"
