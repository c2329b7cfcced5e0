#!/usr/bin/env bash
# Runs every test: unit, documentation, integration, and the interop tests with real peers.
#
#   tests/run.sh [NAME]...     NAME filters, as cargo test takes them
#
# For Debian 12, as root or with sudo. What is missing is installed first: a C compiler, the four
# foreign clients and the tracker from Debian, libtorrent from PyPI into a virtual environment under
# target/. Nothing is left running, nothing is enabled, and a second run installs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'tests/run.sh: %s\n' "$*" >&2; }

if [ "$(id -u)" = 0 ]; then
    as_root() { "$@"; }
else
    as_root() { sudo -n "$@"; }
fi

# program:package
needed=(
    cc:gcc make:make pkg-config:pkg-config curl:curl ip:iproute2
    transmission-daemon:transmission-daemon transmission-remote:transmission-cli
    qbittorrent-nox:qbittorrent-nox aria2c:aria2 opentracker:opentracker openssl:openssl
)
packages=()
for pair in "${needed[@]}"; do
    command -v "${pair%%:*}" >/dev/null || packages+=("${pair#*:}")
done
python=/usr/bin/python3
[ -x "$python" ] && "$python" -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3 python3-venv)

# Packages must not start the services that they bring: Debian asks this file before it does.
policy=/usr/sbin/policy-rc.d
forbid_services() {
    [ -e "$policy" ] && return
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 0755 "$policy"
    trap 'as_root rm -f "$policy"' EXIT
}
if [ "${#packages[@]}" -gt 0 ]; then
    say "installing ${packages[*]}"
    forbid_services
    as_root apt-get -qq update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
        "${packages[@]}" >/dev/null
    # The trap only covers what ends too early.
    if [ -n "$(trap -p EXIT)" ]; then
        as_root rm -f "$policy"
        trap - EXIT
    fi
fi

venv=target/interop-venv
requirements=tests/interop/requirements.txt
if ! cmp -s "$requirements" "$venv/installed.txt"; then
    say "installing $(grep -v '^#' "$requirements" | tr '\n' ' ')into $venv"
    rm -rf "$venv"
    mkdir -p target
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$requirements"
    cp "$requirements" "$venv/installed.txt"
fi

command -v cargo >/dev/null || {
    say "there is no cargo: install Rust with https://rustup.rs, then run this again"
    exit 1
}

# Two workers, sixteen peers and a handful of clients: more files than some shells allow.
ulimit -n "$(ulimit -Hn)" 2>/dev/null || true

exec cargo test --locked --no-fail-fast -- "$@"
