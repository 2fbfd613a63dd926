"""Official clients over Streamable HTTP and at the endpoints of one server: every feature of server-everything.

Each client must see the same through the gateway as directly.
"""

import functools
import re

from checks_sdk import SDKS, everything_steps, need_same, play, without_clock
from kit import EVERYTHING, listed, need

DOCUMENT = "demo://resource/static/document/features.md"
TEXT, BLOB = (f"demo://resource/dynamic/{kind}/7" for kind in ("text", "blob"))
DEPARTMENT = {"ref": {"type": "ref/prompt", "name": "completable-prompt"}, "argument": {"name": "department", "value": "E"}}
TEMPLATE = {"type": "ref/resource", "uri": "demo://resource/dynamic/text/{resourceId}"}


def ask(method, **params):
    """Returns a step that sends a request."""
    return {"ask": method, "params": params}


def steps():
    """Requests other than tool calls, after all tools. Files in `gzip` stay in the server's list, so they come last."""
    tools = everything_steps()
    zipped = [step for step in tools if "gzip-file-as-resource" in str(step)]
    return [
        *(step for step in tools if step not in zipped),
        ask("resources/list"),
        ask("resources/templates/list"),
        ask("resources/read", uri=DOCUMENT),
        ask("resources/read", uri=TEXT),
        ask("resources/read", uri=BLOB),
        ask("resources/read", uri="demo://resource/dynamic/text/nobody"),
        ask("prompts/list"),
        ask("prompts/get", name="simple-prompt"),
        ask("prompts/get", name="args-prompt", arguments={"city": "Łódź", "state": "🦀"}),
        ask("prompts/get", name="args-prompt"),
        ask("prompts/get", name="resource-prompt", arguments={"resourceType": "Text", "resourceId": "3"}),
        ask("completion/complete", **DEPARTMENT),
        ask("completion/complete", ref=TEMPLATE, argument={"name": "resourceId", "value": "3"}),
        ask("ping"),
        ask("resources/subscribe", uri=DOCUMENT),
        {"call": "toggle-subscriber-updates"},
        {"told": "notifications/resources/updated"},
        {"call": "toggle-subscriber-updates"},
        ask("resources/unsubscribe", uri=DOCUMENT),
        ask("logging/setLevel", level="debug"),
        {"call": "toggle-simulated-logging"},
        {"told": "notifications/message"},
        {"call": "toggle-simulated-logging"},
        *zipped,
    ]


def same(out):
    """Returns an outcome without times, and without the version in the SDK's words."""
    return re.sub(r'("blob": ")[A-Za-z0-9+/=]+', r"\1then", without_clock(out)) if "dynamic/blob" in out else without_clock(out)


def endpoints(port):
    """Returns each endpoint, and whether it shows the server under its own names."""
    base = f"http://localhost:{port}"
    return {
        "all": ({"http": f"{base}/mcp"}, False),
        "server": ({"http": f"{base}/servers/every/mcp"}, True),
        "server-sse": ({"sse": f"{base}/servers/every/sse"}, True),
    }


def check(world, sdk, endpoint, sessions="shared"):
    """Runs the same steps against the server and at one endpoint of a gateway."""
    _, port = world.gateway()
    world.register("every", EVERYTHING, port, "--sessions", sessions)
    listed(port, "every_echo", seconds=30)
    target, own = endpoints(port)[endpoint]
    played = [*([{"welcome": True}] if own else []), *steps()]
    direct = play(world, sdk, {"stdio": [str(word) for word in EVERYTHING]}, played, seconds=120)
    through = play(world, sdk, target, played, "" if own else "every_", seconds=120)
    unfit = [step for step, out in zip(played, direct, strict=True) if isinstance(out, dict) and "sdk" in out.get("error", {})]
    need(len(unfit) <= 1, f"{sdk} could not ask: {unfit}")
    need_same(sdk, played, direct, through, same)
    return f"{len(played)} steps equal"


CHECKS = {
    f"endpoints-{sdk}-{name}": (functools.partial(check, sdk=sdk, endpoint=name), 240)
    for sdk in SDKS
    for name in ("all", "server", "server-sse")
}

CHECKS |= {
    f"isolated-{sdk}-{name}": (functools.partial(check, sdk=sdk, endpoint=name, sessions="isolated"), 240)
    for sdk in SDKS
    for name in ("all", "server")
}
