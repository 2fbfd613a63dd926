"""The everything-server of the Python SDK's source distribution, over stdio instead of HTTP."""

import logging
import sys

from mcp_everything_server.server import mcp

logging.basicConfig(stream=sys.stderr)
mcp.run("stdio")
