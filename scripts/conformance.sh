#!/usr/bin/env bash
# The official MCP conformance suite through the tunnel, compared with the same server asked directly.
#
#   scripts/conformance.sh [--isolated auto|always|never]
#
# Ends with 1 when a scenario that passes directly does not pass through the tunnel, and no reason for that is on the
# list in scripts/peers/conformance.py. What is missing is installed by package name, in exact versions, into
# MCPPORT_PEERS_DIR (default target/peers). MCPPORT_BIN is the binary under test (default target/release/mcpport).
# Needs Linux, python3 with venv, node 20, npm.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
here=$root/scripts/peers
export MCPPORT_PEERS_DIR=${MCPPORT_PEERS_DIR:-$root/target/peers}
export MCPPORT_BIN=${MCPPORT_BIN:-$root/target/release/mcpport}
[[ -x $MCPPORT_BIN ]] || { echo "no binary at $MCPPORT_BIN: run cargo build --release, or set MCPPORT_BIN" >&2; exit 2; }

# fresh NAME RECIPE: an empty directory, unless one was made from this recipe already.
fresh() {
  local dir=$MCPPORT_PEERS_DIR/$1
  cmp -s "$2" "$dir/recipe" && return 1
  echo "installing $1" >&2
  rm -rf "$dir"
  mkdir -p "$dir"
}

# complete NAME RECIPE: what was installed is complete.
complete() {
  cp "$2" "$MCPPORT_PEERS_DIR/$1/recipe"
}

# The Python SDK, as for the other checks.
if fresh python2 "$here/python2.txt"; then
  python3 -m venv "$MCPPORT_PEERS_DIR/python2"
  "$MCPPORT_PEERS_DIR/python2/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/python2.txt"
  complete python2 "$here/python2.txt"
fi

# Its source distribution, for the server among its examples.
if fresh everything "$here/python2.txt"; then
  version=$(sed -n 's/^mcp==//p' "$here/python2.txt")
  "$MCPPORT_PEERS_DIR/python2/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary mcp \
    --dest "$MCPPORT_PEERS_DIR/everything" "mcp==$version"
  tar -xzf "$MCPPORT_PEERS_DIR/everything/mcp-$version.tar.gz" -C "$MCPPORT_PEERS_DIR/everything" --strip-components=1
  complete everything "$here/python2.txt"
fi

# The suite, and the Node that it wants.
if fresh conformance "$here/conformance.json"; then
  cp "$here/conformance.json" "$MCPPORT_PEERS_DIR/conformance/package.json"
  npm install --prefix "$MCPPORT_PEERS_DIR/conformance" --no-package-lock --no-audit --no-fund --silent
  complete conformance "$here/conformance.json"
fi

exec python3 -B "$here/conformance.py" "$@"
