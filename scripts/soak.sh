#!/bin/sh
# Runs release binaries for a while with clients and edges that connect and disconnect and a link that is cut, and checks that
# nothing leaks: descriptors, memory, processes, table entries.
#
#   scripts/soak.sh [SECONDS]     (default: 600)
set -eu

cd "$(dirname "$0")/.."
cargo build --quiet --locked --release
cargo build --quiet --locked --example fake-server
MCPPORT_BIN=$PWD/target/release/mcpport MCPPORT_SOAK=${1:-600} \
    cargo test --quiet --locked --test it -- --exact soak::nothing_is_left_after_many_cycles --nocapture
