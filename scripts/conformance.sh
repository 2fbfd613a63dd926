#!/usr/bin/env bash
# Runs the official MCP conformance suite through the tunnel and directly against the same server, and compares the results.
#
#   scripts/conformance.sh [--isolated auto|always|never]
#
# Exits with 1 if a scenario passes directly but not through the tunnel, unless scripts/peers/conformance.py lists a reason
# for it. Missing packages are installed, in exact versions, into MCPPORT_PEERS_DIR (default target/peers).
# MCPPORT_BIN is the binary under test (default target/release/mcpport).
# Needs Linux, python3 with venv, node 20, npm.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
here=$root/scripts/peers
export MCPPORT_PEERS_DIR=${MCPPORT_PEERS_DIR:-$root/target/peers}
export MCPPORT_BIN=${MCPPORT_BIN:-$root/target/release/mcpport}
[[ -x $MCPPORT_BIN ]] || { echo "no binary at $MCPPORT_BIN: run cargo build --release, or set MCPPORT_BIN" >&2; exit 2; }

# fresh NAME RECIPE: creates an empty directory. Returns 1 if one was already created from this recipe.
fresh() {
  local dir=$MCPPORT_PEERS_DIR/$1
  cmp -s "$2" "$dir/recipe" && return 1
  echo "installing $1" >&2
  rm -rf "$dir"
  mkdir -p "$dir"
}

# complete NAME RECIPE: marks an installation as complete.
complete() {
  cp "$2" "$MCPPORT_PEERS_DIR/$1/recipe"
}

# The Python SDK, as for the other checks.
if fresh python2 "$here/python2.txt"; then
  python3 -m venv "$MCPPORT_PEERS_DIR/python2"
  "$MCPPORT_PEERS_DIR/python2/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/python2.txt"
  complete python2 "$here/python2.txt"
fi

# Its source distribution, for its example server.
if fresh everything "$here/python2.txt"; then
  version=$(sed -n 's/^mcp==//p' "$here/python2.txt")
  "$MCPPORT_PEERS_DIR/python2/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary mcp \
    --dest "$MCPPORT_PEERS_DIR/everything" "mcp==$version"
  tar -xzf "$MCPPORT_PEERS_DIR/everything/mcp-$version.tar.gz" -C "$MCPPORT_PEERS_DIR/everything" --strip-components=1
  complete everything "$here/python2.txt"
fi

# The suite, and the Node version that it needs.
if fresh conformance "$here/conformance.json"; then
  cp "$here/conformance.json" "$MCPPORT_PEERS_DIR/conformance/package.json"
  npm install --prefix "$MCPPORT_PEERS_DIR/conformance" --no-package-lock --no-audit --no-fund --silent
  complete conformance "$here/conformance.json"
fi

exec python3 -B "$here/conformance.py" "$@"
