"""Runs the commands and parses the snippets of the README."""

import json
import os
import re

import kit
from checks_sdk import play
from kit import BINARY, MODULES, PEERS, ROOT, need, need_equal, short

# The port that the README's snippets name.
PORT = 8765

# The bridge of the Claude Desktop snippet, in the version that is checked.
BRIDGE, BRIDGE_VERSION = "mcp-remote", "0.15.1"

FILE_SERVER = "@modelcontextprotocol/server-filesystem"


def snippets(language):
    """Returns the code blocks of one language, including those in lists."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in blocks]


def snippet(language, *having):
    """Returns the only snippet that contains all of these."""
    found = [block for block in snippets(language) if all(part in block for part in having)]
    need_equal(len(found), 1, f"{language} snippets with {having}")
    return found[0]


def settings():
    """Returns the configuration snippets for VS Code, Cursor and Claude Desktop."""
    found = [json.loads(block) for block in snippets("json")]
    need_equal(len(found), 3, "JSON snippets")
    code = [entry["servers"]["mcpport"] for entry in found if "servers" in entry]
    cursor, claude = (entry["mcpServers"]["mcpport"] for entry in found if "mcpServers" in entry)
    return *code, cursor, claude


def parse(world):
    """The configuration snippets are JSON in the form that each program reads, with the same URL."""
    code, cursor, claude = settings()
    url = f"http://localhost:{PORT}/mcp"
    need_equal(code["type"], "http", "type of the server for VS Code")
    need_equal([code["url"], cursor["url"]], [url] * 2, "addresses")
    need_equal(claude["args"].count(url), 1, f"mentions of {url}")
    # Each placeholder in a snippet is defined in the same snippet, or is an environment variable.
    (asked,) = (entry["inputs"] for entry in map(json.loads, snippets("json")) if "inputs" in entry)
    need_equal(code["headers"]["Authorization"], f"Bearer ${{input:{asked[0]['id']}}}", "token for VS Code")
    need(all("${%s}" % name in claude["args"][-1] for name in claude["env"]), f"env: {claude['env']}")
    for headers in (code["headers"], cursor["headers"]):
        need(headers["Authorization"].startswith("Bearer "), f"headers: {headers}")
    need(all(isinstance(word, str) for word in [claude["command"], *claude["args"]]), f"command: {claude}")


def quick_start(world):
    """Starts gateway and server of "First call", in a directory with one file."""
    tools = world.directory / "bin"
    tools.mkdir()
    (tools / "mcpport").symlink_to(BINARY)
    (world.directory / "found-by-snippet.txt").write_text("here\n")
    versions = json.loads((kit.HERE / "package.json").read_text())["dependencies"]
    register = snippet("sh", "mcpport register", FILE_SERVER)
    pinned = register.replace(FILE_SERVER, f"{FILE_SERVER}@{versions[FILE_SERVER]}")
    env = {"PATH": f"{tools}:{os.environ['PATH']}"}
    gateway = "mcpport gateway\n"
    need(gateway in snippets("sh"), "the README has no block `mcpport gateway`")
    program = world.start("gateway", ["sh", "-c", f"exec {gateway}"], env)
    kit.until(lambda: kit.listens(PORT) or not program.alive(), 20, f"the gateway listens; {program.tail()}")
    need(program.alive(), f"the gateway ended: {program.tail()}")
    world.start("register", ["sh", "-c", f"exec {pinned}"], env)
    kit.listed(PORT, "file_list_directory", seconds=60)


def clients(world):
    """Starts the snippets for the SDKs. Returns the programs by name."""
    python = world.directory / "snippet.py"
    python.write_text(snippet("python", "streamable_http_client"))
    script = world.directory / "snippet.mjs"
    script.write_text(snippet("js", "StreamableHTTPClientTransport"))
    (world.directory / "node_modules").symlink_to(MODULES)
    started = {sdk: world.start(sdk, [PEERS / sdk / "bin" / "python", python]) for sdk in ("python1", "python2")}
    return {**started, "ts1": world.start("ts1", ["node", script])}


def bridge(world):
    """Runs the Claude Desktop snippet as a stdio server of an SDK client."""
    *_, claude = settings()
    need_equal(claude["args"].count(BRIDGE), 1, f"mentions of {BRIDGE}")
    arguments = [f"{BRIDGE}@{BRIDGE_VERSION}" if word == BRIDGE else word for word in claude["args"]]
    # It caches data about servers; keep that in the directory of this check.
    env = {"MCP_REMOTE_CONFIG_DIR": world.directory, **claude["env"]}
    command = ["env", *(f"{name}={value}" for name, value in env.items()), claude["command"], *arguments]
    (tools,) = play(world, "ts1", {"stdio": command}, [{"list": True}])
    names = [tool["name"] for tool in tools]
    need("file_list_directory" in names and "list_servers" in names, f"tools through {BRIDGE}: {short(names)}")
    return len(names)


def run(world):
    """Runs "First call", the SDK snippets and the bridge."""
    if kit.listens(PORT):
        return f"skipped: port {PORT} is taken"
    quick_start(world)
    started = clients(world)
    tools = bridge(world)
    for name, program in started.items():
        need_equal(program.exit(30), 0, f"exit code of the snippet with {name}; {program.tail()}")
        for wanted in ("file_list_directory", "found-by-snippet.txt"):
            need(wanted in program.output(), f"{name} printed no {wanted}; {program.tail()}")
    return f"{' '.join(started)}, {tools} tools through {BRIDGE}"


CHECKS = {
    "readme-json": (parse, 20),
    "readme-run": (run, 150),
}
