"""The demo, and the built-in device server."""

import asyncio
import functools
import json
import signal

import kit
from checks_sdk import SDKS, difference, play, sse
from kit import BINARY, need, need_equal, short


def demo_once(world):
    """`demo --once` exits with 0 after a call, and prints its result."""
    demo = world.start("demo", [BINARY, "demo", "--once"])
    need_equal(demo.exit(30), 0, f"exit code; {demo.tail()}")
    need("/mcp" in demo.log(), f"no address shown; {demo.tail()}")
    need("tools/call" in demo.log() or "_system" in demo.log(), f"no call shown; {demo.tail()}")
    world.need_no_strangers("after demo --once")


def demo_serves(world):
    """`demo --port` serves until Ctrl-C."""
    port = kit.free_port()
    demo = world.start("demo", [BINARY, "demo", "--port", port])
    kit.until(lambda: kit.listens(port) or not demo.alive(), 20, f"the demo listens; {demo.tail()}")

    async def go():
        async with kit.client(port) as client:
            names = await client.tools()
            if not any(name.endswith("_system") for name in names):
                await asyncio.wait_for(client.changed.wait(), 10)
                names = await client.tools()
            (name,) = [name for name in names if name.endswith("_system")]
            need((await client.call(name))["content"], "an empty answer of the device")

    asyncio.run(go())
    need_equal(demo.stop(signal.SIGINT), 0, f"exit code after Ctrl-C; {demo.tail()}")
    world.need_no_strangers("after the demo")


def arguments(tool):
    """Returns the required arguments of a tool: the first allowed value, or a plain one."""
    schema = tool["inputSchema"]
    plain = {"string": "x", "integer": 1, "number": 1, "boolean": True, "array": [], "object": {}}
    made = {}
    for name in schema.get("required", []):
        rule = schema["properties"][name]
        made[name] = rule.get("enum", [rule.get("default", plain.get(rule.get("type"), "x"))])[0]
    return made


def devices(world, sdk):
    """Calls every tool of `mcpport device`, with an SDK that checks structured content against the schema."""
    _, port = world.gateway()
    command = [BINARY, "device"]
    (tools,) = play(world, sdk, {"stdio": command}, [{"list": True}])
    need(len(tools) >= 4, f"few tools: {[tool['name'] for tool in tools]}")
    need(all(tool.get("outputSchema") for tool in tools), "a tool without outputSchema")
    calls = [{"call": tool["name"], "args": arguments(tool)} for tool in tools]
    listing = [{"await_tool": tools[0]["name"]}, {"list": True}]
    out = play(world, sdk, sse(port), listing + calls, "device_", lambda: world.register("device", command, port))
    found, wanted = (json.dumps(x, sort_keys=True) for x in (out[1], tools))
    need(found == wanted, f"tools: {difference(found, wanted)}")
    refused = [check_call(call, outcome) for call, outcome in zip(calls, out[2:], strict=True)]
    return f"{len(tools)} tools, isError from: {' '.join(filter(None, refused)) or 'none'}"


def check_call(call, outcome):
    """Checks a result with text and structure. Returns the name if the tool failed (this machine may lack something)."""
    need("result" in outcome, f"{call}: {short(outcome)}")
    result = outcome["result"]
    need(result["content"], f"{call}: no content")
    if result.get("isError"):
        return call["call"]
    need(isinstance(result.get("structuredContent"), dict), f"{call}: no structured content in {short(result)}")
    return None


CHECKS = {
    "demo-once": (demo_once, 60),
    "demo-serves": (demo_serves, 60),
    **{f"devices-{sdk}": (functools.partial(devices, sdk=sdk), 60) for sdk in SDKS},
}
