#!/usr/bin/env bash
# Runs the benchmark with other programs beside mcpport, all under the same load in the same run.
#
#   scripts/bench-peers.sh [OPTIONS of cargo bench]
#
# The peers are the Python mcpport, which has a tunnel too, and bridges from stdio to HTTP, which have none: supergateway,
# two programs named mcp-proxy (npm and PyPI), and the Rust bridges rmcp-proxy and mcpway. Missing packages are installed,
# in exact versions, into MCPPORT_PEERS_DIR (default target/peers). Needs python3 with venv, node 20, npm, and some minutes to
# build the Rust bridges the first time.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Read by install.sh.
# shellcheck disable=SC2034
here=$root/scripts/peers
export MCPPORT_PEERS_DIR=${MCPPORT_PEERS_DIR:-$root/target/peers}
mkdir -p "$MCPPORT_PEERS_DIR"

# shellcheck source=scripts/peers/install.sh
source "$root/scripts/peers/install.sh"
venv original
venv proxy
packages proxies proxies.json
crate rmcp-proxy 0.1.3
crate mcpway 0.2.1

# Each peer: its name, transport, prefix of its tools, then its commands. See tests/bench/peers.rs.
description=$MCPPORT_PEERS_DIR/bench
node_modules=$MCPPORT_PEERS_DIR/proxies/node_modules
cat >"$description" <<END
peer python-mcpport sse /sse echo_
run $MCPPORT_PEERS_DIR/original/bin/mcpport gateway --host 127.0.0.1 --port {port}
run $MCPPORT_PEERS_DIR/original/bin/mcpport register --stdio "{echo}" --gateway-url ws://127.0.0.1:{port}/mcp/register --server-name echo --port 0

peer supergateway-sse sse /sse -
run node $node_modules/supergateway/dist/index.js --stdio "{echo}" --port {port} --logLevel none

peer supergateway-mcp mcp /mcp -
run node $node_modules/supergateway/dist/index.js --stdio "{echo}" --outputTransport streamableHttp --stateful --port {port} --logLevel none

peer mcp-proxy-npm mcp /mcp -
run node $node_modules/mcp-proxy/dist/bin/mcp-proxy.mjs --host 127.0.0.1 --port {port} -- {echo}

peer mcp-proxy-pypi mcp /mcp -
run $MCPPORT_PEERS_DIR/proxy/bin/mcp-proxy --port {port} -- {echo}

peer rmcp-proxy sse /sse -
run $MCPPORT_PEERS_DIR/rust/bin/mcp-proxy --sse-port {port} -- {echo}

peer mcpway-sse sse /sse -
run $MCPPORT_PEERS_DIR/rust/bin/mcpway --stdio "{echo}" --output-transport sse --port {port} --log-level none

peer mcpway-mcp mcp /mcp -
run $MCPPORT_PEERS_DIR/rust/bin/mcpway --stdio "{echo}" --output-transport streamable-http --port {port} --log-level none
END
cd "$root"
exec cargo bench --locked -- --peers "$description" "$@"
