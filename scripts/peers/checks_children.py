"""No process that a register starts outlives it, however it ends."""

import asyncio
import json
import shlex
import signal
import time

import kit
from kit import fake, need, need_equal, short

# Time from closing the child's input to SIGKILL, with room for a busy machine.
END_SECONDS = 9


def started(world, name, command, port, *flags):
    """Starts a register, and waits until its server is listed."""
    edge = world.register(name, command, port, *flags)
    kit.listed(port, f"{name}_echo")
    need(world.strangers(), "no child is running")
    return edge


def ended(world, edge, number, code=0):
    """Stops a register: checks the exit code, and that no process is left."""
    begun = time.monotonic()
    found = edge.stop(number, END_SECONDS)
    if code is not None:
        need_equal(found, code, f"exit code after signal {number}; {edge.tail()}")
    world.need_no_strangers(f"after signal {number}")
    return time.monotonic() - begun


def normal_stop(world):
    """SIGINT and SIGTERM with a server that exits when its input ends."""
    _, port = world.gateway()
    for number in (signal.SIGINT, signal.SIGTERM):
        edge = started(world, f"stop{int(number)}", fake("x"), port)
        seconds = ended(world, edge, number)
        need(seconds < 3, f"a willing child took {seconds:.1f} s")


def stubborn(world):
    """Children that ignore signals and the end of their input."""
    _, port = world.gateway()
    for name, command in {
        "deaf": fake("x", "--stubborn"),
        "shell": f"sh -c {shlex.quote('trap : TERM INT; ' + shlex.join(fake('x', '--stubborn')) + '; sleep 777')}",
    }.items():
        ended(world, started(world, name, command, port), signal.SIGTERM)
    edge = started(world, "hurry", fake("x", "--stubborn"), port)
    edge.kill(signal.SIGTERM)
    kit.until(lambda: edge.log(), 1, "word of the stop")
    seconds = ended(world, edge, signal.SIGTERM, code=None)
    return f"second signal: {seconds:.1f} s"


def shell(world):
    """Whole process groups: `sleep 777 & sleep 777`, with and without a server among them."""
    _, port = world.gateway()
    for number, command in enumerate(("sh -c 'sleep 777 & sleep 777'", "sleep 777 & sleep 777")):
        edge = world.register(f"mute{number}", command, port)
        kit.until(lambda: sum("sleep 777" in line for line in world.strangers().values()) >= 2, 10, "both sleeps run")
        ended(world, edge, signal.SIGTERM)
    line = f"sleep 777 & sleep 778 & {shlex.join(fake('x'))}"
    ended(world, started(world, "group", line, port), signal.SIGINT)


def npx(world):
    """The command of "First call" in the README, with a pinned version: npx, a shell and node in between."""
    versions = json.loads((kit.HERE / "package.json").read_text())["dependencies"]
    package = "@modelcontextprotocol/server-filesystem"
    _, port = world.gateway()
    edge = world.register("file", f"npx -y {package}@{versions[package]} ./", port)
    kit.listed(port, "file_read_text_file", seconds=60)
    names = " ".join(world.strangers().values())
    need("npx" in names or "npm" in names, f"npx does not run: {short(names)}")
    ended(world, edge, signal.SIGINT)


def gateway_killed(world):
    """SIGKILL of the gateway: the child survives, is registered again, and ends with its register."""
    gateway, port = world.gateway()
    edge = started(world, "one", fake("x"), port)
    before = set(world.strangers())
    need_equal(gateway.stop(signal.SIGKILL), -9, "the gateway's end")
    world.gateway(port=port)
    kit.listed(port, "one_echo", seconds=20)
    need_equal(set(world.strangers()), before, "the children after the gateway came back")
    second = world.programs[-1]
    second.stop(signal.SIGKILL)
    edge.wait_log("(?i)connect|gateway")
    need(edge.alive(), f"the register ended with its gateway; {edge.tail()}")
    ended(world, edge, signal.SIGTERM)


def edge_killed(world):
    """SIGKILL of the register itself: a server that reads its input notices the end."""
    _, port = world.gateway()
    edge = started(world, "one", fake("x"), port)
    edge.stop(signal.SIGKILL)
    world.need_no_strangers("after SIGKILL of the register", 5)


def no_start(world):
    """Registers that exit by themselves leave no process either."""
    _, port = world.gateway("--auth-token", "right")
    for where in (kit.free_port(), port):
        edge = world.register("none", fake("x", "--stubborn"), where, "--require-gateway")
        need_equal(edge.exit(END_SECONDS + 12), 1, f"exit code; {edge.tail()}")
        world.need_no_strangers("after a register that could not connect")
    flags = ["--header", "Authorization: Bearer right", "--restart", "never"]
    edge = world.register("none", "/no/such/command --at-all", port, *flags)
    need_equal(edge.exit(15), 1, f"exit code with a command that is not there; {edge.tail()}")
    need("/no/such/command" in edge.log(), f"the command is not named; {edge.tail()}")


def many(world, runs=200, at_once=8):
    """Runs of register, in turn and concurrently; the gateway forgets each of them."""
    gateway, port = world.gateway()
    started(world, "warm", fake("x"), port).stop()
    kit.listed(port, gone=("warm_echo",))
    files, memory = kit.descriptors(gateway.pid), kit.resident_kib(gateway.pid)

    async def round(client, number):
        names = [f"run{number}x{n}" for n in range(at_once)]
        edges = [world.register(name, fake(name), port) for name in names]
        tools = [f"{name}_echo" for name in names]
        await client.until_listed(*tools)
        for edge in edges:
            edge.kill(signal.SIGTERM)
        await client.until_listed(gone=tools)
        for edge in edges:
            need_equal(edge.exit(5), 0, f"exit code; {edge.tail()}")
        world.need_no_strangers("after a round", 3)

    async def go():
        async with kit.client(port) as client:
            for number in range(runs // at_once):
                await round(client, number)
            need_equal(await client.tools(), ["list_servers"], "tools at the end")

    asyncio.run(go())
    world.need_no_strangers("at the end")
    kit.until(lambda: kit.descriptors(gateway.pid) <= files + 2, 5, f"open files of the gateway are {files} again")
    return f"{runs} runs, gateway {memory} KiB before, {kit.resident_kib(gateway.pid)} KiB after"


CHECKS = {
    "children-stop": (normal_stop, 60),
    "children-stubborn": (stubborn, 90),
    "children-shell": (shell, 90),
    "children-npx": (npx, 100),
    "children-gateway-killed": (gateway_killed, 60),
    "children-edge-killed": (edge_killed, 60),
    "children-no-start": (no_start, 60),
    "children-200": (many, 240),
}
