"""A small HTTP proxy that hides the prefix of the aggregate, so that a suite which calls `echo` finds `every_echo`.

It changes the names of tools and prompts in requests and in their `Mcp-Name`, and in lists that are returned as JSON.
Everything else, including event streams, passes unchanged. A client that closes its connection closes the gateway's too.
"""

import base64
import contextlib
import http.client
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAMED = ("tools/call", "prompts/get")
HOPS = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}


def serve(port, prefix):
    """Starts a proxy to a loopback port in a thread. Returns its own port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            """Logs nothing."""

        def relay(self):
            body = renamed(self.rfile.read(int(self.headers.get("Content-Length") or 0)), prefix)
            fields = {k: v for k, v in self.headers.items() if k.lower() not in HOPS}
            for key in fields:
                if key.lower() == "mcp-name" and self.headers.get("Mcp-Method") in NAMED:
                    fields[key] = renamed_value(fields[key], prefix)
            # The suite tests with foreign hosts; its own hosts are allowed.
            fields["Host"] = self.headers.get("Host", "").replace(f":{self.server.server_port}", f":{port}")
            upstream = http.client.HTTPConnection("127.0.0.1", port)
            try:
                upstream.request(self.command, self.path, body or None, fields)
                threading.Thread(target=self.watch, args=(upstream.sock,), daemon=True).start()
                self.answer(upstream.getresponse())
            except (OSError, http.client.HTTPException):
                self.close_connection = True
            finally:
                upstream.close()

        def watch(self, upstream):
            """Ends a request at the gateway when its client closes the connection; the next request ends the wait too."""
            with contextlib.suppress(OSError):
                if not self.connection.recv(1, socket.MSG_PEEK):
                    upstream.shutdown(socket.SHUT_RDWR)

        def answer(self, answer):
            stream = answer.getheader("Content-Type", "").startswith("text/event-stream")
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOPS:
                    self.send_header(name, value)
            if not stream:
                body = stripped(answer.read(), prefix)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return
            self.close_connection = True
            self.send_header("Connection", "close")
            self.end_headers()
            while piece := answer.read1(65536):
                self.wfile.write(piece)
                self.wfile.flush()

        do_GET = do_POST = do_DELETE = relay

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def renamed(body, prefix):
    """Returns a request with the exposed name."""
    try:
        message = json.loads(body)
        params = message["params"]
        method = message["method"]
    except (ValueError, KeyError, TypeError):
        return body
    if method in NAMED and "name" in params:
        params["name"] = prefix + params["name"]
    elif method == "completion/complete" and params.get("ref", {}).get("type") == "ref/prompt":
        params["ref"]["name"] = prefix + params["ref"]["name"]
    else:
        return body
    return json.dumps(message).encode()


def renamed_value(value, prefix):
    """Returns the value of `Mcp-Name` with the exposed name."""
    value = value.strip(" \t")
    if value.startswith("=?base64?") and value.endswith("?="):
        with contextlib.suppress(ValueError):
            name = base64.b64decode(value[9:-2], validate=True).decode()
            return f"=?base64?{base64.b64encode((prefix + name).encode()).decode()}?="
    return prefix + value


def stripped(body, prefix):
    """Returns a list under the server's own names, without the other servers' items."""
    try:
        message = json.loads(body)
        result = message["result"]
        kind = next(kind for kind in ("tools", "prompts") if kind in result)
    except (ValueError, KeyError, TypeError, StopIteration):
        return body
    items = [item for item in result[kind] if item["name"].startswith(prefix)]
    result[kind] = [{**item, "name": item["name"].removeprefix(prefix)} for item in items]
    return json.dumps(message).encode()
