#!/bin/sh
# Builds all fuzz targets of tests/fuzz and runs each for some seconds.
#
#   scripts/fuzz.sh [SECONDS] [TARGET...]     (default: 30 seconds, all targets)
#
# Works with a stable toolchain: the coverage passes are asked for by plain code generation flags, and the
# sanitizers, which want a nightly, are left out; overflow checks and debug assertions are on. Needs a C++
# compiler for libFuzzer. Seeds come from tests/vectors; a finding is left in tests/fuzz/artifacts.
set -eu

cd "$(dirname "$0")/.."
seconds=${1:-30}
[ $# -eq 0 ] || shift
fuzz=tests/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
all=$(awk '/^\[\[bin\]\]/ { bin = 1; next } /^\[/ { bin = 0 } bin && /^name *=/ { gsub(/.*= *"|".*/, ""); print }' $fuzz/Cargo.toml)
targets=${*:-$all}

flags="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
# With --target the flags do not reach build scripts.
RUSTFLAGS="$flags" cargo build --quiet --release --manifest-path $fuzz/Cargo.toml --target "$host"

rustc --edition 2024 -o $fuzz/target/seeds $fuzz/seeds.rs
$fuzz/target/seeds tests/vectors $fuzz/corpus

for target in $targets; do
    mkdir -p "$fuzz/corpus/$target" "$fuzz/artifacts/$target"
    echo "fuzz: $target, $seconds s"
    log=$fuzz/target/$target.log
    if ! "$fuzz/target/$host/release/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 \
        -artifact_prefix="$fuzz/artifacts/$target/" -print_final_stats=1 "$fuzz/corpus/$target" >"$log" 2>&1; then
        tail -n 40 "$log"
        echo "fuzz: $target failed; see $fuzz/artifacts/$target" >&2
        exit 1
    fi
    grep -E 'inline 8-bit|stat::number_of_executed_units|DONE' "$log"
done
echo "fuzz: all well"
