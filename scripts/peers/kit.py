"""Shared by the checks: programs in their own process groups, free ports, waiting with a deadline."""

import asyncio
import contextlib
import ctypes
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import mcp_sse

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PEERS = pathlib.Path(os.environ.get("MCPPORT_PEERS_DIR") or ROOT / "target" / "peers").resolve()
BINARY = str(pathlib.Path(os.environ.get("MCPPORT_BIN") or ROOT / "target" / "release" / "mcpport").resolve())
ORIGINAL = str(PEERS / "original" / "bin" / "mcpport")
MODULES = PEERS / "node" / "node_modules"

# The environment of every child process, so that its output does not depend on who started it.
PLAIN = ["env", "-i", f"PATH={os.environ['PATH']}", f"HOME={os.environ.get('HOME', '/')}", "LANG=C.UTF-8"]

FILE_SERVER = [*PLAIN, "node", str(MODULES / "@modelcontextprotocol/server-filesystem/dist/index.js")]
EVERYTHING = [*PLAIN, "node", str(MODULES / "@modelcontextprotocol/server-everything/dist/index.js")]
EVERYTHING_OLD = [*PLAIN, "node", str(MODULES / "server-everything-old/dist/index.js")]
TIME_SERVER = [*PLAIN, str(PEERS / "servers/bin/mcp-server-time"), "--local-timezone", "UTC"]
GIT_SERVER = [*PLAIN, "GIT_CONFIG_GLOBAL=/dev/null", str(PEERS / "servers/bin/mcp-server-git")]
FETCH_SERVER = [*PLAIN, str(PEERS / "servers/bin/mcp-server-fetch"), "--allow-private-ips"]
SDK_SERVER = [*PLAIN, str(PEERS / "python2/bin/python"), "-B", str(HERE / "sdk_server.py")]


def fixture(python):
    """Returns the command of the everything-server in the source distribution of the Python SDK of an environment."""
    source = PEERS / f"everything-{python}" / "examples/servers/everything-server"
    binary = str(PEERS / python / "bin" / "python")
    return [*PLAIN, f"PYTHONPATH={source}", binary, "-B", str(HERE / "conformance_server.py")]


def fake(name, *flags):
    """Returns the command of the test server."""
    return [sys.executable, str(HERE / "fake_server.py"), name, *flags]


class Failed(Exception):
    """A failed check, with the reason."""


def need(truth, why):
    """Fails the check unless `truth`."""
    if not truth:
        raise Failed(why)


def need_equal(found, wanted, what):
    """Fails the check unless both are equal."""
    if found != wanted:
        raise Failed(f"{what}: got {short(found)}, wanted {short(wanted)}")


def short(value, room=300):
    """Formats a value for a message of one line."""
    text = value if isinstance(value, str) else repr(value)
    text = text.replace("\n", "\\n")
    return text if len(text) <= room else f"{text[:room]}... ({len(text)} characters)"


def until(condition, seconds, what):
    """Waits until `condition()` is truthy and returns it."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failed(f"not within {seconds} s: {what}")
        time.sleep(0.02)


def free_port():
    """Returns a free port."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port):
    """Whether a program accepts connections on this loopback port."""
    with contextlib.closing(socket.socket()) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Program:
    """A running program, with its output in two files."""

    def __init__(self, name, argv, directory, env):
        self.name, self.argv = name, argv
        self.paths = [directory / f"{name}.out", directory / f"{name}.err"]
        with open(self.paths[0], "wb") as out, open(self.paths[1], "wb") as err:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd=directory, start_new_session=True
            )

    @property
    def pid(self):
        return self.process.pid

    def output(self):
        """Returns all of stdout."""
        return self.paths[0].read_text(errors="replace")

    def log(self):
        """Returns all of its output, stdout first."""
        return "".join(path.read_text(errors="replace") for path in self.paths)

    def tail(self):
        """Returns the end of its output, for messages."""
        return f"{self.name} said: {short(self.log()[-600:].strip() or '(nothing)', 700)}"

    def alive(self):
        return self.process.poll() is None

    def wait_log(self, pattern, seconds=15):
        """Waits until a line matches."""
        return until(lambda: re.search(pattern, self.log()), seconds, f"/{pattern}/ printed; {self.tail()}")

    def exit(self, seconds=15):
        """Waits until it exits. Returns the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} still runs after {seconds} s; {self.tail()}") from None

    def kill(self, number):
        self.process.send_signal(number)

    def stop(self, number=signal.SIGTERM, seconds=15):
        """Sends a signal and waits. Returns the exit code."""
        self.kill(number)
        return self.exit(seconds)


class World:
    """The programs of one check."""

    def __init__(self):
        # Become the parent of orphans, so that none can hide from `strangers`.
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="mcpport-peers-"))
        self.programs = []

    def start(self, name, argv, env=None):
        """Starts a program."""
        name = f"{len(self.programs):03}-{name}"
        full = {k: v for k, v in os.environ.items() if not k.startswith(("MCPPORT_", "MCP_GATEWAY_"))}
        program = Program(name, [str(a) for a in argv], self.directory, {**full, **(env or {})})
        self.programs.append(program)
        return program

    def gateway(self, *flags, port=None, binary=BINARY, env=None):
        """Starts a gateway and waits until it accepts connections. Returns program and port."""
        port = port or free_port()
        program = self.start("gateway", [binary, "gateway", "--port", port, *flags], env)
        until(lambda: listens(port) or not program.alive(), 20, f"gateway listens; {program.tail()}")
        need(program.alive(), f"the gateway ended: {program.tail()}")
        return program, port

    def register(self, name, command, port, *flags, binary=BINARY, env=None, host="localhost"):
        """Starts a register; `command` is a list of words or a command line."""
        line = command if isinstance(command, str) else shlex.join(map(str, command))
        argv = [binary, "register", "--stdio", line, "--server-name", name]
        if port:
            argv += ["--gateway-url", f"ws://{host}:{port}/mcp/register"]
        return self.start(f"register-{name}", [*argv, *flags], env)

    def strangers(self):
        """Returns the live descendants that are neither programs nor their known parents: pid to command line."""
        mine = {p.pid for p in self.programs}
        return {pid: line for pid, line in descendants().items() if pid not in mine}

    def need_no_strangers(self, what, seconds=1):
        """Asserts that no process of a program is left."""
        end = time.monotonic() + seconds
        while (left := self.strangers()) and time.monotonic() < end:
            time.sleep(0.02)
        need(not left, f"{what}: left over {short(left)}")

    def close(self, keep=False):
        """Ends everything that was started, by process id."""
        for program in reversed(self.programs):
            if program.alive():
                program.kill(signal.SIGTERM)
        end = time.monotonic() + 5
        while descendants() and time.monotonic() < end:
            time.sleep(0.02)
        kill_all(descendants())
        for program in self.programs:
            program.exit(5)
        if keep:
            print(f"  logs: {self.directory}", file=sys.stderr)
        else:
            shutil.rmtree(self.directory, ignore_errors=True)


def processes():
    """Returns all processes: pid to (parent, state)."""
    table = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = pathlib.Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()
                table[int(entry)] = (int(fields[1]), fields[0])
    return table


def descendants(root=None):
    """Returns the live processes below `root` (default: this process): pid to command line."""
    table, found, edge = processes(), {}, {root or os.getpid()}
    while edge:
        edge = {pid for pid, (parent, _) in table.items() if parent in edge and pid not in found}
        found.update(dict.fromkeys(edge))
    return {pid: command_line(pid) for pid in found if table[pid][1] not in "ZX"}


def kill_all(pids):
    """Kills processes."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def command_line(pid):
    """Returns the command line of a process."""
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def descriptors(pid):
    """Returns the number of open files of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_kib(pid):
    """Returns the resident memory of a process."""
    return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1])


@contextlib.asynccontextmanager
async def client(port, **options):
    """Opens a raw client, and closes it at the end."""
    connected = await mcp_sse.Client.connect(port, **options)
    try:
        yield connected
    finally:
        await connected.close()


def listed(port, *tools, gone=(), seconds=20, **options):
    """Waits until tools are listed, by notifications, with its own client."""

    async def wait():
        async with client(port, **options) as watcher:
            return await watcher.until_listed(*tools, gone=gone, seconds=seconds)

    return asyncio.run(wait())
