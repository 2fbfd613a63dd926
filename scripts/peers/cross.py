"""Tests a binary for another architecture against the native one, in both directions, over TLS, with a token.

    cross.py BINARY TARGET MACHINE CERTIFICATES HOW

BINARY was built for TARGET and can be executed here (`cross-test.sh` arranges that). MACHINE is the expected `uname -m`.
CERTIFICATES is the output directory of `generate-certs.sh`. HOW describes the execution for the reader: emulated.
"""

import http.client
import json
import pathlib
import platform
import re
import secrets
import ssl
import sys
import time

import kit
from kit import need, need_equal, short

# Emulation on a machine that also builds is slow, but bounded.
SECONDS = 60
TOKEN = secrets.token_hex(16)
VERSION = "2025-06-18"


class Client:
    """A client over Streamable HTTP and TLS, one request at a time."""

    def __init__(self, port, certificates):
        context = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
        self.connection = http.client.HTTPSConnection("localhost", port, timeout=SECONDS, context=context)
        self.fields = {
            "Accept": "application/json, text/event-stream",
            "Authorization": f"Bearer {TOKEN}",
            "Content-Type": "application/json",
        }
        self.last = 0
        hello = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "cross", "version": "1"}}
        self.ask("initialize", hello)
        self.fields["MCP-Protocol-Version"] = VERSION
        self.post({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def post(self, message):
        """Returns the body of a response, or the data of an event stream."""
        self.connection.request("POST", "/mcp", json.dumps(message), self.fields)
        response = self.connection.getresponse()
        body = response.read().decode()
        need(response.status in (200, 202), f"{message['method']}: {response.status} {short(body)}")
        if session := response.getheader("Mcp-Session-Id"):
            self.fields["Mcp-Session-Id"] = session
        if (response.getheader("Content-Type") or "").startswith("text/event-stream"):
            return [line.removeprefix("data:").strip() for line in body.splitlines() if line.startswith("data:")]
        return [body] if body else []

    def ask(self, method, params):
        """Returns the result of a request."""
        self.last += 1
        said = self.post({"jsonrpc": "2.0", "id": self.last, "method": method, "params": params})
        answers = [json.loads(text) for text in said if text.strip()]
        (answer,) = [answer for answer in answers if answer.get("id") == self.last]
        need("result" in answer, f"{method}: {short(answer)}")
        return answer["result"]


def demo(world, binary, machine, certificates):
    """Gateway, register, device and client, all in the binary."""
    shown = world.start("demo", [binary, "demo", "--once", *server(certificates), *trust(certificates)])
    need_equal(shown.exit(SECONDS), 0, f"exit code; {shown.tail()}")
    need(re.search(r"gateway +https://", shown.log()), f"no TLS; {shown.tail()}")
    need(re.search(rf"host: .*\b{machine}\b", shown.log()), f"no call on {machine}; {shown.tail()}")


def through(world, gateway_binary, edge_binary, machine, certificates):
    """Registers `device` by one binary at the gateway of the other, and calls it."""
    flags = ["--ssl-enabled", *server(certificates), "--auth-token", TOKEN]
    gateway = world.start("gateway", [gateway_binary, "gateway", "--port", "0", *flags])
    port = int(gateway.wait_log(r"listening on https://127\.0\.0\.1:(\d+)", SECONDS)[1])
    argv = [edge_binary, "register", "--stdio", f"'{edge_binary}' device", "--server-name", "box"]
    argv += ["--gateway-url", f"wss://localhost:{port}/mcp/register", *trust(certificates)]
    edge = world.start("register", argv, {"MCPPORT_HEADER": f"Authorization: Bearer {TOKEN}"})
    gateway.wait_log("server 'box' offers", SECONDS)
    client = Client(port, certificates)
    names = [tool["name"] for tool in client.ask("tools/list", {})["tools"]]
    need("box_system" in names, f"tools: {names}")
    result = client.ask("tools/call", {"name": "box_system", "arguments": {}})
    text = result["content"][0]["text"]
    need(re.search(rf"\b{machine}\b", text), f"no call on {machine}: {short(text)}")
    client.connection.close()
    need_equal(edge.stop(seconds=SECONDS), 0, f"exit code; {edge.tail()}")
    need_equal(gateway.stop(seconds=SECONDS), 0, f"exit code; {gateway.tail()}")


def server(certificates):
    """Returns the flags that present a certificate."""
    return ["--ssl-keyfile", certificates / "server.key", "--ssl-certfile", certificates / "server.crt"]


def trust(certificates):
    """Returns the flags that verify it."""
    return ["--ssl-ca-cert", certificates / "ca.crt"]


def main():
    """Runs all checks in turn, with a line for each; the first failure ends the run."""
    binary, target, machine, certificates, how = sys.argv[1:]
    certificates = pathlib.Path(certificates).resolve()
    world = kit.World()
    runs = [
        (f"{how}: demo --once over TLS", demo, (binary, machine)),
        (f"{how} register and device, native gateway: called over TLS", through, (kit.BINARY, binary, machine)),
        (
            f"{how} gateway, native register and device: called over TLS",
            through,
            (binary, kit.BINARY, platform.machine()),
        ),
    ]
    try:
        for what, run, arguments in runs:
            began = time.monotonic()
            run(world, *arguments, certificates)
            print(f"ok {target}, {what} ({time.monotonic() - began:.1f} s)", flush=True)
        world.need_no_strangers(machine)
    except (kit.Failed, OSError, http.client.HTTPException, ValueError) as why:
        world.close(keep=True)
        sys.exit(f"FAIL {target}, {what}: {why}")
    world.close()


main()
