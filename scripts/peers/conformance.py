"""Runs the official conformance suite against one server directly and through the tunnel, and compares.

Columns: `direct` (the server's own Streamable HTTP), `server` and `all` (the endpoint of the server and the aggregate,
with one shared process), and with `--isolated` the same two with a process for each session.
"""

import argparse
import json
import os
import re
import subprocess
import sys

import kit
import renamer

PYTHON = kit.PEERS / "python2" / "bin" / "python"
SOURCE = kit.PEERS / "everything" / "examples" / "servers" / "everything-server"
NODE = kit.PEERS / "conformance" / "node_modules"
VERSION = "2025-11-25"
SUITE_SECONDS = 300

# Scenarios that fail with a shared process: a request of the server cannot be related to one client, so the server sees a
# client without capabilities, and its requests are refused. With a process for each session they all pass.
SHARED_DIFFERS = {
    "tools-call-sampling": "the server asks its client for a sample",
    "tools-call-elicitation": "the server asks its user",
    "elicitation-sep1034-defaults": "the server asks its user",
    "elicitation-sep1330-enums": "the server asks its user",
}


def run_suite(url, directory):
    """Runs all scenarios of the version against a server. Returns the failures by name, empty if there are none."""
    argv = [NODE / ".bin" / "node", NODE / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"]
    argv += ["server", "--url", url, "--suite", "all", "--spec-version", VERSION, "-o", directory]
    run = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SUITE_SECONDS)
    outcomes = {}
    for path in directory.glob("*/checks.json"):
        name = re.fullmatch(r"server-(.*)-\d{4}-\d\d-\d\dT.*", path.parent.name)[1]
        checks = json.loads(path.read_text())
        failed = [c for c in checks if c["status"] == "FAILURE"]
        outcomes[name] = "; ".join(f"{c['id']}: {c.get('errorMessage', '?')}" for c in failed)
    kit.need(outcomes, f"the suite did not run: {kit.short(run.stdout[-600:])}")
    return outcomes


def environment():
    """Returns the environment that the server needs."""
    return ["env", f"PYTHONPATH={SOURCE}"]


def direct(world):
    """Starts the server's own endpoint."""
    port = kit.free_port()
    argv = [*environment(), PYTHON, "-B", "-m", "mcp_everything_server", "--port", port]
    server = world.start("direct", argv)
    kit.until(lambda: kit.listens(port) or not server.alive(), 30, f"the server listens; {server.tail()}")
    return {"direct": f"http://localhost:{port}/mcp"}


def tunnel(world, sessions):
    """Starts the two endpoints of a gateway that lead to the server."""
    _, port = world.gateway()
    command = [*environment(), PYTHON, "-B", kit.HERE / "conformance_server.py"]
    flags = ["--sessions", "isolated", "--max-sessions", 64] if sessions == "isolated" else []
    world.register("every", command, port, *flags)
    kit.listed(port, "every_test_simple_text", seconds=60)
    renamed = renamer.serve(port, "every_")
    return {
        f"server {sessions}": f"http://localhost:{port}/servers/every/mcp",
        f"all {sessions}": f"http://localhost:{renamed}/mcp",
    }


def knows_isolated():
    """Whether this binary supports a process for each session."""
    said = subprocess.run([kit.BINARY, "register", "--help"], capture_output=True, text=True)
    return "--sessions" in said.stdout + said.stderr


def bad(columns):
    """Returns the differences that are not permitted: scenario, column and reason."""
    for name, wanted in sorted(columns["direct"].items()):
        if wanted:
            continue
        for column, outcomes in columns.items():
            # A scenario that was not run has not passed.
            why = outcomes.get(name, "not run")
            if why and not (column.endswith(" shared") and name in SHARED_DIFFERS):
                yield f"{name}, {column}: {why}"


def table(columns):
    """Prints one line for each scenario."""
    width = max(map(len, columns["direct"]))
    yield f"{'scenario':{width}}  " + "  ".join(columns)
    for name in sorted(columns["direct"]):
        cells = ["FAIL" if column.get(name, "not run") else "ok" for column in columns.values()]
        note = SHARED_DIFFERS.get(name, "") if "FAIL" in cells else ""
        yield f"{name:{width}}  " + "  ".join(f"{c:{len(t)}}" for c, t in zip(cells, columns, strict=True)) + f"  {note}"
    passed = [sum(not why for why in column.values()) for column in columns.values()]
    yield f"{'passed':{width}}  " + "  ".join(f"{p:<{len(t)}}" for p, t in zip(passed, columns, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isolated", choices=("auto", "always", "never"), default="auto", help="isolated sessions too")
    options = parser.parse_args()
    isolated = options.isolated == "always" or (options.isolated == "auto" and knows_isolated())
    world, code = kit.World(), 1
    try:
        targets = {**direct(world), **tunnel(world, "shared")}
        if isolated:
            targets.update(tunnel(world, "isolated"))
        columns = {}
        for name, url in targets.items():
            directory = world.directory / name.replace(" ", "-")
            columns[name] = run_suite(url, directory)
        print("\n".join(table(columns)))
        failures = list(bad(columns))
        print("\n".join(f"FAIL {failure}" for failure in failures))
        code = 1 if failures or not any(not why for why in columns["direct"].values()) else 0
    except kit.Failed as why:
        print(f"FAIL {why}")
    finally:
        world.close(keep=code != 0)
    return code


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    sys.exit(main())
