#!/bin/sh
# Lets release binaries run for a while under clients and edges that come and go and a line that is cut, and checks that
# nothing is left: descriptors, memory, processes, entries of tables.
#
#   scripts/soak.sh [SECONDS]     (default: 600)
set -eu

cd "$(dirname "$0")/.."
cargo build --quiet --locked --release
cargo build --quiet --locked --example fake-server
MCPPORT_BIN=$PWD/target/release/mcpport MCPPORT_SOAK=${1:-600} \
    cargo test --quiet --locked --test it -- --exact soak::nothing_is_left_after_many_cycles --nocapture
