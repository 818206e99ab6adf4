#!/usr/bin/env bash
# Installs the foreign clients and tools of the end-to-end tests (tests/it): only what is missing, and says so first.
#
# The tests find them by environment variables, and without these at the places in brackets:
#   ARCHMESH_TEST_PYTHON   Python with PyPI `websockets` [.cache/venv/bin/python]
#   ARCHMESH_TEST_NODE     Node.js; npm `ws` is in tests/clients/node_modules [node in PATH]
#   CHROMIUM               a Chromium or Chrome binary [chromium, chromium-browser or google-chrome in PATH]
#   PROMTOOL               promtool, from the Debian package `prometheus` [promtool in PATH, .cache/bin/promtool]
#   CURL                   curl [curl in PATH]
#   REDIS_SERVER           redis-server [redis-server in PATH, .cache/bin/redis-server]
#   POSTGRES_BIN           folder of initdb, postgres and psql [the newest in /usr/lib/postgresql, PATH]
#   HAPROXY, NGINX         the balancers [in PATH, .cache/bin]
# `deps-test.sh --env` prints these as shell exports.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

find_chromium() {
    local name
    for name in "${CHROMIUM:-chromium}" chromium chromium-browser google-chrome google-chrome-stable; do
        command -v "$name" 2>/dev/null && return
    done
    return 1
}

# Debian keeps the programs of the server out of PATH, in a folder of their version.
find_postgres() {
    local folder
    for folder in "${POSTGRES_BIN:-}" $(printf '%s\n' /usr/lib/postgresql/*/bin | sort --version-sort --reverse) \
        "$(dirname "$(command -v postgres || true)")"; do
        if [ -x "$folder/initdb" ] && [ -x "$folder/postgres" ] && [ -x "$folder/psql" ]; then
            echo "$folder"
            return
        fi
    done
    return 1
}

print_env() {
    printf 'export ARCHMESH_TEST_PYTHON=%q\n' "$CACHE/venv/bin/python"
    printf 'export ARCHMESH_TEST_NODE=%q\n' "$(command -v node)"
    printf 'export CHROMIUM=%q\n' "$(find_chromium)"
    printf 'export PROMTOOL=%q\n' "$(command -v promtool || echo "$CACHE/bin/promtool")"
    printf 'export CURL=%q\n' "$(command -v curl)"
    printf 'export REDIS_SERVER=%q\n' "$(command -v redis-server || echo "$CACHE/bin/redis-server")"
    printf 'export POSTGRES_BIN=%q\n' "$(find_postgres)"
    printf 'export HAPROXY=%q\n' "$(command -v haproxy || echo "$CACHE/bin/haproxy")"
    printf 'export NGINX=%q\n' "$(command -v nginx || echo "$CACHE/bin/nginx")"
}

install_system_packages() {
    local missing=()
    have curl || missing+=(curl)
    find_chromium >/dev/null || missing+=(chromium)
    have node || missing+=(nodejs)
    have npm || missing+=(npm)
    [ ${#missing[@]} = 0 ] || apt_install "the end-to-end tests" "${missing[@]}"
}

# promtool alone: installing the package would start a Prometheus server on machines with systemd.
install_promtool() {
    if have promtool || [ -x "$CACHE/bin/promtool" ]; then return; fi
    have dpkg-deb || die "the metrics test needs promtool; please install Prometheus"
    say "unpacking promtool from the Debian package prometheus into .cache/bin"
    local folder
    folder=$(mktemp -d)
    (
        cd "$folder"
        apt-get download -qq -o APT::Sandbox::User= prometheus 2>/dev/null ||
            { as_root apt-get update -qq && apt-get download -qq -o APT::Sandbox::User= prometheus; }
        dpkg-deb --extract prometheus_*.deb .
    )
    install -D "$folder/usr/bin/promtool" "$CACHE/bin/promtool"
    rm -rf "$folder"
}

# The server is the program of redis-tools under another name; installing the package redis-server would start one on
# machines with systemd.
install_redis() {
    if have redis-server || [ -x "$CACHE/bin/redis-server" ]; then return; fi
    have redis-check-rdb || apt_install "the cluster tests" redis-tools
    mkdir -p "$CACHE/bin"
    ln -sf "$(command -v redis-check-rdb)" "$CACHE/bin/redis-server"
}

# The server's package would make and start a cluster, unless the settings of the package below it say otherwise. Settings that
# somebody has already are left alone. The client comes with the server.
install_postgres() {
    local settings=/etc/postgresql-common/createcluster.conf
    if find_postgres >/dev/null; then return; fi
    if [ ! -e "$settings" ]; then
        apt_install "the tests of the database" postgresql-common
        as_root sed --in-place 's/^#create_main_cluster = .*/create_main_cluster = false/' "$settings"
    fi
    apt_install "the tests of the database" postgresql
    find_postgres >/dev/null || die "the tests of the database need initdb, postgres and psql in one folder, POSTGRES_BIN"
}

# install_balancer PACKAGE: the program alone, with the libraries that the system lacks; installing the package would start
# a server on machines with systemd.
install_balancer() {
    local name=$1 folder packages
    if have "$name" || [ -x "$CACHE/bin/$name" ]; then return; fi
    have dpkg-deb || die "the tests of load balancers need $name; please install it"
    say "unpacking $name from its Debian package into .cache/$name"
    [ -n "$(missing_packages "$name")" ] || as_root apt-get update -qq
    mapfile -t packages < <(missing_packages "$name")
    folder=$(mktemp -d)
    (
        cd "$folder"
        apt-get download -qq -o APT::Sandbox::User= "${packages[@]}" 2>/dev/null ||
            { as_root apt-get update -qq && apt-get download -qq -o APT::Sandbox::User= "${packages[@]}"; }
        for package in *.deb; do dpkg-deb --extract "$package" .; done
        mkdir libraries
        find . -path ./libraries -prune -o -name '*.so.*' -exec cp --no-dereference --target-directory=libraries {} +
    )
    mkdir -p "$CACHE/$name" "$CACHE/bin"
    cp --recursive --no-dereference "$folder/libraries" "$folder/usr/sbin/$name" "$CACHE/$name/"
    rm -rf "$folder"
    cat >"$CACHE/bin/$name" <<EOF
#!/bin/sh
here=\$(dirname "\$(readlink -f "\$0")")/../$name
LD_LIBRARY_PATH=\$here/libraries exec "\$here/$name" "\$@"
EOF
    chmod +x "$CACHE/bin/$name"
    "$CACHE/bin/$name" -v >/dev/null 2>&1 || die "$CACHE/bin/$name does not run; please install $name"
}

# missing_packages PACKAGE: the package and those of its libraries that are not installed.
missing_packages() {
    apt-get install --simulate --no-install-recommends "$1" 2>/dev/null |
        awk -v name="$1" '/^Inst / && ($2 == name || $2 ~ /^lib/) { print $2 }'
}

install_node_clients() {
    local inputs=(tests/clients/package.json tests/clients/package-lock.json)
    if [ -d tests/clients/node_modules/ws ] && fresh npm.stamp "${inputs[@]}"; then return; fi
    say "installing the npm package ws into tests/clients/node_modules"
    (cd tests/clients && npm ci --silent --no-audit --no-fund)
    mark npm.stamp "${inputs[@]}"
}

install_python_clients() {
    local inputs=(tests/clients/requirements.txt)
    if [ -x "$CACHE/venv/bin/python" ] && fresh pip.stamp "${inputs[@]}"; then return; fi
    say "installing the PyPI package websockets into .cache/venv"
    python3 -m venv --clear "$CACHE/venv"
    "$CACHE/venv/bin/pip" install --quiet --disable-pip-version-check --requirement tests/clients/requirements.txt
    mark pip.stamp "${inputs[@]}"
}

if [ "${1:-}" = --env ]; then
    print_env
    exit
fi
need_python
install_system_packages
install_promtool
install_redis
install_postgres
install_balancer haproxy
install_balancer nginx
install_node_clients
install_python_clients
