#!/usr/bin/env bash
# Checks mcpport against real peers: official SDK clients, real servers, and the Python mcpport.
#
#   scripts/peers.sh [NAME ...]     runs all checks, or those whose names begin with NAME
#   scripts/peers.sh --list         lists the names
#
# Missing packages are installed, in exact versions, into MCPPORT_PEERS_DIR (default target/peers).
# MCPPORT_BIN is the binary under test (default target/release/mcpport). Needs Linux, python3 with venv, node 20, npm,
# cargo, git.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
here=$root/scripts/peers
export MCPPORT_PEERS_DIR=${MCPPORT_PEERS_DIR:-$root/target/peers}
export MCPPORT_BIN=${MCPPORT_BIN:-$root/target/release/mcpport}

# shellcheck source=scripts/peers/install.sh
source "$here/install.sh"

if [[ ${1:-} != --list ]]; then
  [[ -x $MCPPORT_BIN ]] || { echo "no binary at $MCPPORT_BIN: run cargo build --release, or set MCPPORT_BIN" >&2; exit 2; }
  mkdir -p "$MCPPORT_PEERS_DIR"
  for name in python1 python2 original servers; do venv "$name"; done
  for name in python1 python2; do sources "everything-$name" "$name" mcp; done
  packages node package.json
  # Only the checks with the Rust SDK need it, and it takes minutes to build.
  if [[ $# -eq 0 || " $* " == *" modern-rmcp"* || " $* " == *" modern "* ]]; then program rmcp; fi
fi
exec python3 -B "$here/run.py" "$@"
