"""Tokens and payloads appear in no output at DEBUG, whichever way they were passed."""

import asyncio
import json
import re

import kit
import mcp_sse
from kit import BINARY, fake, free_port, need, need_equal, short

# Marks are `canary` and a word; the word shows in a failure which way it leaked.
DEBUG = ["--log-level", "DEBUG", "--debug"]
UPGRADE = (
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
)
GREETING = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}


def bearer(token):
    """Returns header fields with a token."""
    return [("Authorization", f"Bearer {token}")]


def header(token):
    """Returns flags of a register with a token."""
    return ["--header", f"Authorization: Bearer {token}"]


def need_silence(world, detailed=True):
    """Asserts that no program printed a mark, though each logged at DEBUG."""
    for program in world.programs if detailed else ():
        if program.argv[0] == BINARY and program.process.returncode != 2:
            need("[DEBUG]" in program.log(), f"nothing was logged at DEBUG, so silence proves little; {program.tail()}")
    found = [
        f"{program.name}: {line.strip()}"
        for program in world.programs
        for line in program.log().splitlines()
        if "canary" in line.lower() or "Y2FuYXJ5" in line
    ]
    need(not found, f"{len(found)} lines with a canary, the first: {short(found[0]) if found else ''}")


def canary_accepted(world):
    """Valid tokens, by flag, file and environment, used by clients and edges."""
    path = world.directory / "tokens"
    path.write_text("canary-file\n")
    env = {"MCP_GATEWAY_AUTH_TOKENS": "canary-original,canary-second"}
    gateway, port = world.gateway("--auth-token", "canary-flag", "--auth-token-file", path, *DEBUG, env=env)
    other, other_port = world.gateway(*DEBUG, env={"MCPPORT_AUTH_TOKEN": "canary-env"})
    level = ["--log-level", "DEBUG"]
    secret = ["--header", "X-Secret: canary-field", "--header", "Cookie: canary-cookie"]
    world.register("flag", fake("flag"), port, *level, *header("canary-flag"), *secret)
    world.register("file", fake("file"), port, *level, *header("canary-file"))
    world.register("env", fake("env"), other_port, *level, env={"MCPPORT_HEADER": "Authorization: Bearer canary-env"})
    for token, where, tools in (
        ("canary-flag", port, ("flag_echo", "file_echo")),
        ("canary-file", port, ("flag_echo",)),
        ("canary-original", port, ("flag_echo",)),
        ("canary-second", port, ("flag_echo",)),
        ("canary-env", other_port, ("env_env",)),
    ):
        kit.listed(where, *tools, headers=bearer(token))
    asyncio.run(use(port, other_port))
    need_silence(world)


async def use(port, other_port):
    """Calls with secret payloads, including errors and noise."""
    async with kit.client(port, headers=bearer("canary-flag")) as client:
        need_equal(await client.text("flag_echo", text="canary-payload"), "flag:canary-payload", "echo")
        await client.call("flag_fail", text="canary-failure")
        await client.text("flag_noise")
        for call in (
            client.call("flag_error", code=-1, message="canary-error"),
            client.call("canary-tool", x="canary-x"),
        ):
            try:
                await call
            except mcp_sse.McpError:
                continue
            raise kit.Failed("an error was wanted")
        await client.notify("notifications/other", {"a": "canary-notification"})
        await post_quietly(client, b'{"jsonrpc":"2.0","id":1,"params":"canary-broken')
        await post_quietly(client, b'{"jsonrpc":"2.0","id":"canary-id","method":"other/method","params":["canary"]}')
    async with kit.client(other_port, headers=bearer("canary-env")) as client:
        told = json.loads(await client.text("env_env"))
        leaks = [name for name, value in told.items() if "canary" in value]
        need(not leaks, f"the child's environment holds the token, in {leaks}")


async def post_quietly(client, body):
    """Posts a request that may be refused."""
    try:
        await client.post(body)
    except mcp_sse.HttpError:
        pass


def canary_refused(world):
    """Wrong tokens, in every place where a client may put one, and at every path."""
    _, port = world.gateway("--auth-token", "right", *DEBUG)
    world.register("own", fake("own"), port, *header("right"), "--log-level", "DEBUG")
    kit.listed(port, "own_echo", headers=bearer("right"))
    for number, flags in enumerate((header("canary-wrong"), ["--header", "Authorization: canary-bare"])):
        edge = world.register(f"no{number}", fake("no"), port, *flags, "--log-level", "DEBUG", "--require-gateway")
        need_equal(edge.exit(20), 1, f"exit code of a refused register; {edge.tail()}")
        need("401" in edge.log(), f"no word of 401; {edge.tail()}")
    asyncio.run(knock(port))
    for number, url in enumerate(
        (
            f"ws://canary-user:canary-password@localhost:{port}/mcp/register",
            f"ws://localhost:{port}/mcp/register?token=canary-query",
            f"ws://localhost:{port}/mcp/register?token=canary%20query#canary-fragment",
            f"http://canary-user:canary-password@localhost:{port}/canary",
            "ws://canary-user:canary-password@localhost:port/canary",
            f"ws://canary-user@localhost:{free_port()}/mcp/register?canary",
        )
    ):
        flags = ["--gateway-url", url, "--log-level", "DEBUG", "--require-gateway"]
        edge = world.register(f"url{number}", fake("no"), None, *flags)
        need(edge.exit(20) in (1, 2), f"exit code with {url}: {edge.process.returncode}; {edge.tail()}")
    need_silence(world)


async def knock(port):
    """Requests that must be answered with 401, 400 where they are not even well-formed, 429 when it is too much, and
    404 at a path that does not exist, whoever asks."""
    async with kit.client(port, headers=bearer("right")) as client:
        session = client.endpoint
        body = json.dumps({"jsonrpc": "2.0", "id": 5, "method": "tools/list", "params": {"x": "canary-body"}}).encode()
        fields = (
            bearer("canary-wrong"),
            bearer("canary-one canary-two"),
            [("Authorization", "Basic Y2FuYXJ5OmNhbmFyeQ==")],
            [("Authorization", "canary-bare")],
            [*bearer("canary-wrong"), *bearer("right")],
            [("Cookie", "token=canary-cookie")],
            [("X-Api-Key", "canary-key")],
        )
        for field in fields:
            for method, path, more, data in (
                ("GET", "/sse", (), None),
                ("GET", "/sse?token=canary-query", (), None),
                ("POST", session, (("Content-Type", "application/json"),), body),
                ("POST", "/messages?session_id=canary-session&token=canary-query", (), body),
                ("GET", "/mcp/register", UPGRADE, None),
                ("GET", "/mcp/register?token=canary-query", UPGRADE, None),
                ("GET", "/canary-path", (), None),
            ):
                status, _, answer = await mcp_sse.fetch(port, method, path, [*field, *more], data)
                allowed = (404,) if path == "/canary-path" else (400, 401, 429)
                need(status in allowed, f"{status} for {method} {path} with {field}")
                need(b"canary" not in answer.lower(), f"the answer repeats it: {answer!r}")
        need_equal(await client.text("own_echo", text="still"), "own:still", "the session of the right token")


def canary_files(world):
    """Errors that end a program name the file, not its content."""
    path = world.directory / "not-a-key"
    path.write_text("-----BEGIN PRIVATE KEY-----\ncanary-key\n-----END PRIVATE KEY-----\n")
    tls = ["--ssl-enabled", "--ssl-keyfile", path, "--ssl-certfile", path]
    for flags in (tls, ["--auth-token", "canary-flag", "--port", "99999"], ["--auth-token=canary-flag", "--nonsense"]):
        program = world.start("gateway", [BINARY, "gateway", "--port", free_port(), *flags])
        need(program.exit(10) in (1, 2), f"exit code {program.process.returncode} with {flags}")
        lines = [line for line in program.log().splitlines() if line.strip()]
        need(lines and not re.search("panicked", program.log()), f"no clear line; {program.tail()}")
    need_silence(world, detailed=False)


CHECKS = {
    "canary-accepted": (canary_accepted, 60),
    "canary-refused": (canary_refused, 60),
    "canary-files": (canary_files, 30),
}
