#!/bin/sh
# Builds seedring and starts it on embedded defaults. For Debian with a current Rust (rustup), as
# root or with sudo. Arguments go to `seedring run`.
set -eu
cd "$(dirname "$0")/.."

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# Cron and some containers set no HOME; cargo and the server's state have their place below it.
if [ -z "${HOME:-}" ]; then
    HOME=$(getent passwd "$(id -u)" | cut -d: -f6)
    if [ -z "$HOME" ]; then
        echo "quickstart: this user has no home directory: set HOME" >&2
        exit 2
    fi
    export HOME
fi

# SQLite and the cryptography are compiled in: they want a C compiler.
if ! command -v cc >/dev/null 2>&1; then
    as_root apt-get update
    as_root apt-get install -y --no-install-recommends gcc libc6-dev
fi
if ! command -v cargo >/dev/null 2>&1; then
    # rustup puts cargo here; a shell that was open before does not know yet.
    PATH="${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH"
fi
if ! command -v cargo >/dev/null 2>&1; then
    echo "quickstart: there is no cargo: install Rust with https://rustup.rs" >&2
    exit 1
fi
cargo build --release --locked
mkdir -p watch downloads
if [ "$#" = 0 ]; then
    set -- --watch watch --downloads downloads
fi
exec target/release/seedring run "$@"
