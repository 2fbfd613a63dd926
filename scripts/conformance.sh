#!/usr/bin/env bash
# Runs the official MCP conformance suite through the tunnel and directly against the same server, and compares the results.
#
#   scripts/conformance.sh [--revision R] [--fixture VERSION] [--column NAME] [--era ERA] [--verbose]
#
# Without arguments everything is run; --help lists revisions, fixtures and columns. For one column alone:
#
#   scripts/conformance.sh --revision 2026-07-28 --fixture 2.3.0 --column shared --era modern
#
# Exits with 1 if a scenario passes directly but not through the tunnel, unless scripts/peers/conformance.py lists a reason
# for it, and if a listed one passes. Missing packages are installed, in exact versions, into MCPPORT_PEERS_DIR (default
# target/peers). MCPPORT_BIN is the binary under test (default target/release/mcpport).
# Needs Linux, python3 with venv, node 20, npm.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
here=$root/scripts/peers
export MCPPORT_PEERS_DIR=${MCPPORT_PEERS_DIR:-$root/target/peers}
export MCPPORT_BIN=${MCPPORT_BIN:-$root/target/release/mcpport}

# shellcheck source=scripts/peers/install.sh
source "$here/install.sh"

if [[ ${1:-} != --help ]]; then
  [[ -x $MCPPORT_BIN ]] || { echo "no binary at $MCPPORT_BIN: run cargo build --release, or set MCPPORT_BIN" >&2; exit 2; }
  mkdir -p "$MCPPORT_PEERS_DIR"
  # Both lines of the Python SDK, and the source distributions with their everything-servers.
  for name in python1 python2; do
    venv "$name"
    sources "everything-$name" "$name" mcp
  done
  # The suite, and the Node version that it needs.
  packages conformance conformance.json
fi
exec python3 -B "$here/conformance.py" "$@"
