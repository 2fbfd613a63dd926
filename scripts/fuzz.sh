#!/bin/sh
# Builds all fuzz targets of tests/fuzz and runs each for some seconds.
#
#   scripts/fuzz.sh [SECONDS] [TARGET...]     (default: 30 seconds, all targets)
#
# MCPPORT_FUZZ_JOBS: number of targets that run at a time (default 2).
#
# Works with a stable toolchain: code generation flags enable the coverage passes, and the sanitizers, which need a nightly
# toolchain, are off. Overflow checks and debug assertions are on. Needs a C++ compiler for libFuzzer. Seeds are taken from
# tests/vectors; findings are written to tests/fuzz/artifacts.
set -eu

cd "$(dirname "$0")/.."
seconds=${1:-30}
[ $# -eq 0 ] || shift
jobs=${MCPPORT_FUZZ_JOBS:-2}
fuzz=tests/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
all=$(awk '/^\[\[bin\]\]/ { bin = 1; next } /^\[/ { bin = 0 } bin && /^name *=/ { gsub(/.*= *"|".*/, ""); print }' $fuzz/Cargo.toml)
targets=${*:-$all}

flags="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
# With --target, the flags do not apply to build scripts.
RUSTFLAGS="$flags" cargo build --quiet --release --manifest-path $fuzz/Cargo.toml --target "$host"

rustc --edition 2024 -o $fuzz/target/seeds $fuzz/seeds.rs
$fuzz/target/seeds tests/vectors $fuzz/corpus

# Runs one target, with its output in a file. Returns 1 if it failed.
run() {
    mkdir -p "$fuzz/corpus/$1" "$fuzz/artifacts/$1"
    log=$fuzz/target/$1.log
    if ! "$fuzz/target/$host/release/$1" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 \
        -artifact_prefix="$fuzz/artifacts/$1/" -print_final_stats=1 "$fuzz/corpus/$1" >"$log" 2>&1; then
        tail -n 40 "$log"
        echo "fuzz: $1 failed; see $fuzz/artifacts/$1" >&2
        return 1
    fi
    echo "fuzz: $1, $seconds s: $(awk '/number_of_executed_units/ { runs = $2 } / cov: / { covered = $4 }
        END { print runs " runs, coverage " covered }' "$log")"
}

# Waits for the running targets. Sets `failed` if one of them failed.
settle() {
    for pid in $running; do
        wait "$pid" || failed=1
    done
    running=""
}

running="" failed=0 count=0
for target in $targets; do
    run "$target" &
    running="$running $!"
    count=$((count + 1))
    [ $((count % jobs)) -ne 0 ] || settle
done
settle
[ "$failed" -eq 0 ] || exit 1
echo "fuzz: all well"
