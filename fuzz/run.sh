#!/usr/bin/env bash
# Fuzzes with libFuzzer, on stable Rust.
#
#   fuzz/run.sh [SECONDS] [TARGET]...     SECONDS (60) for each TARGET (all), one after the other
#   fuzz/run.sh --list                    names all targets
#   fuzz/run.sh --keep [TARGET]...        puts what was found new into fuzz/corpus, as little as does
#   fuzz/run.sh --try TARGET FILE...      runs single inputs, to see what they break
#
# Needs cargo and a C++ compiler. Inputs come from the seeds in fuzz/targets, fuzz/corpus and
# fuzz/crashes; new ones are gathered in target/fuzz/corpus. An input that breaks something is
# written to target/fuzz/found/TARGET, with the output of its run beside it. Exits with 1 if there
# is one.
set -euo pipefail
cd "$(dirname "$0")/.."

out=target/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
program=$out/build/$host/release/fuzz

say() { printf 'fuzz/run.sh: %s\n' "$*" >&2; }

build() {
    say "building $program"
    # Coverage counters, comparisons, and every check that a debug build has. A target triple is
    # named, so that build scripts and macros of dependencies are left alone.
    local flags=(
        -Cpasses=sancov-module
        -Cllvm-args=-sanitizer-coverage-level=4
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
        -Cllvm-args=-sanitizer-coverage-pc-table
        -Cllvm-args=-sanitizer-coverage-trace-compares
        --cfg fuzzing -Cdebug-assertions -Coverflow-checks
    )
    RUSTFLAGS="${flags[*]}" CARGO_TARGET_DIR=$out/build cargo build --quiet --locked --release \
        --manifest-path fuzz/Cargo.toml --target "$host" ${FUZZ_JOBS:+-j "$FUZZ_JOBS"}
}

all() { FUZZ_TARGET=list "$program" 2>/dev/null; }

# Checks names; without any, all of them.
targets() {
    if [ $# = 0 ]; then
        all
        return
    fi
    local name
    for name; do
        all | grep -E "^$name [0-9]+$" || { say "there is no target $name"; exit 2; }
    done
}

# What libFuzzer is told in any case: no input may take 10 s or 1 GiB.
common=(-timeout=10 -rss_limit_mb=1024 -print_final_stats=1)

fuzz() {
    local name=$1 len=$2 seconds=$3 work=$out/corpus/$1 found=$out/found/$1
    mkdir -p "$work" "$found" "fuzz/corpus/$name"
    FUZZ_TARGET=$name FUZZ_SEEDS=$work "$program" 2>/dev/null
    local known=("fuzz/corpus/$name")
    [ -d "fuzz/crashes/$name" ] && known+=("fuzz/crashes/$name")
    FUZZ_TARGET=$name "$program" "${common[@]}" -max_len="$len" -max_total_time="$seconds" \
        -artifact_prefix="$found/" "$work" "${known[@]}" >"$found/log" 2>&1
}

# A figure of libFuzzer's last words.
figure() { sed -n "s/^stat::$1: *//p" "$2" | tail -n 1; }

case ${1:-} in
--list)
    build
    all | cut -d ' ' -f 1
    ;;
--try)
    build
    name=${2:?names no target}
    shift 2
    FUZZ_TARGET=$name exec "$program" "${common[@]}" "$@"
    ;;
--keep)
    build
    shift
    targets "$@" | while read -r name len; do
        work=$out/corpus/$name kept=$out/kept/$name
        rm -rf "$kept"
        mkdir -p "$work" "$kept" "fuzz/corpus/$name"
        # What differs only in how often it does the same is not worth a file.
        FUZZ_TARGET=$name "$program" -set_cover_merge=1 -use_counters=0 "${common[@]}" -max_len="$len" \
            "$kept" "$work" "fuzz/corpus/$name" </dev/null >"$out/merge.log" 2>&1 ||
            { say "merging $name failed, see $out/merge.log"; exit 1; }
        rm -rf "fuzz/corpus/$name"
        mv "$kept" "fuzz/corpus/$name"
        printf '%-20s %5d files %8d bytes\n' "$name" "$(find "fuzz/corpus/$name" -type f | wc -l)" \
            "$(cat "fuzz/corpus/$name"/* | wc -c)"
    done
    ;;
*)
    seconds=60
    if [[ ${1:-} =~ ^[0-9]+$ ]]; then
        seconds=$1
        shift
    fi
    build
    wanted=$(targets "$@")
    bad=0
    printf '%-20s %12s %8s %7s %7s  %s\n' target runs runs/s MiB inputs verdict
    while read -r name len; do
        [ -t 2 ] && printf '%s: %s s\r' "$name" "$seconds" >&2
        verdict=clean
        fuzz "$name" "$len" "$seconds" </dev/null || { verdict="BROKEN: $out/found/$name" bad=1; }
        log=$out/found/$name/log
        printf '%-20s %12s %8s %7s %7s  %s\n' "$name" "$(figure number_of_executed_units "$log")" \
            "$(figure average_exec_per_sec "$log")" "$(figure peak_rss_mb "$log")" \
            "$(find "$out/corpus/$name" -type f | wc -l)" "$verdict"
    done <<<"$wanted"
    exit "$bad"
    ;;
esac
