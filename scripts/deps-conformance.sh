#!/usr/bin/env bash
# Installs the Autobahn suite into .cache/autobahn. It runs on Python 2.7 only, which is taken from, in this order:
# PYTHON27, pyenv, PATH, the packages of Debian 11, unpacked below .cache/autobahn without installing them. At the end
# .cache/autobahn/python runs that interpreter with the suite.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

folder=$CACHE/autobahn
inputs=(tests/conformance/requirements.txt scripts/deps-conformance.sh)
if [ -x "$folder/python" ] && fresh autobahn.stamp "${inputs[@]}"; then exit; fi

# Packages of Debian 11 that make a Python 2.7 with TLS and C headers, whatever the system has.
debian_packages=(python2.7 python2.7-minimal libpython2.7-minimal libpython2.7-stdlib libpython2.7 libpython2.7-dev
    libssl1.1 libffi7)

find_python27() {
    local candidate
    for candidate in "${PYTHON27:-}" "$HOME"/.pyenv/versions/2.7*/bin/python2.7 "$(command -v python2.7 || true)"; do
        # A pyenv shim may be in PATH without an interpreter behind it.
        if [ -x "$candidate" ] && "$candidate" -c 'import ctypes, ssl, zlib' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# The mirror that apt uses already, in one-line or deb822 form, without the security archive.
debian_mirror() {
    grep -rhoE '^(deb|URIs:).*' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null |
        grep -oE 'https?://[^ ]+/debian/?( |$)' | grep -v security | head -n 1 | tr -d ' ' || true
}

unpack_debian_python27() {
    local mirror apt=$folder/apt keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mirror=$(debian_mirror)
    if ! have apt-get || ! have dpkg-deb || [ -z "$mirror" ] || [ ! -f $keyring ]; then
        die "the Autobahn suite needs Python 2.7; install one (pyenv install 2.7.18) or name it in PYTHON27"
    fi
    say "unpacking Python 2.7 from packages of Debian 11 into .cache/autobahn (not into the system)"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    echo "deb [signed-by=$keyring] $mirror bullseye main" >"$apt/sources.list"
    : >"$apt/status"
    local options=(-o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o "Dir::State::status=$apt/status" -o APT::Sandbox::User=)
    apt-get "${options[@]}" -qq update
    (cd "$apt" && apt-get "${options[@]}" -qq download "${debian_packages[@]}")
    local package
    for package in "$apt"/*.deb; do dpkg-deb --extract "$package" "$folder/debian"; done
    rm -rf "$apt"
}

rm -rf "$folder"
mkdir -p "$folder"
need_python
libraries=
if ! python27=$(find_python27); then
    unpack_debian_python27
    python27=$folder/debian/usr/bin/python2.7
    libraries=$(find "$folder/debian" -name 'libssl.so*' -printf '%h\n' -quit)
    export LD_LIBRARY_PATH=$libraries C_INCLUDE_PATH=$folder/debian/usr/include/python2.7:$folder/debian/usr/include
fi
have cc || apt_install "compiling the suite's masking and JSON helpers" gcc libc6-dev

say "installing the Autobahn suite from PyPI into .cache/autobahn, on $python27"
# virtualenv 20.15.1 is the last one that makes environments for Python 2.7; it runs on Python 3 and brings a fitting pip.
python3 -m venv "$folder/virtualenv"
"$folder/virtualenv/bin/pip" install --quiet --disable-pip-version-check 'virtualenv==20.15.1'
"$folder/virtualenv/bin/virtualenv" --quiet --no-download --python "$python27" "$folder/venv"
PYTHONWARNINGS=ignore "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-python-version-warning \
    --no-deps --requirement tests/conformance/requirements.txt
{
    echo '#!/bin/sh'
    if [ -n "$libraries" ]; then printf 'export LD_LIBRARY_PATH=%q\n' "$libraries"; fi
    printf 'exec %q "$@"\n' "$folder/venv/bin/python"
} >"$folder/python"
chmod +x "$folder/python"
"$folder/python" -W ignore -c 'from autobahntestsuite.wstest import run'
mark autobahn.stamp "${inputs[@]}"
