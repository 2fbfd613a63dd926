"""Official clients that begin with `initialize`, at servers that run in the era of 2026-07-28."""

import functools

import kit
from checks_endpoints import ask
from checks_sdk import need_same, play, text_of
from eras import (
    MODERN,
    PINNED,
    USER,
    WATCHED,
    asking_steps,
    at_aggregate,
    at_all,
    call,
    cancel_steps,
    change_steps,
    fixture_steps,
    log_steps,
    served,
)
from kit import fixture, need_equal

LEGACY_SDKS = ("python1", "ts1")


def bridged_steps():
    """What a client that begins with `initialize` sees at a server without it as at one with it."""
    return [
        *fixture_steps(),
        ask("resources/read", uri="test://none"),
        ask("ping"),
        ask("resources/subscribe", uri="test://watched-resource"),
        ask("resources/unsubscribe", uri="test://watched-resource"),
        ask("logging/setLevel", level="info"),
    ]


def bridged_new_steps():
    """What such a client can only see at a server of 2026-07-28: its questions become requests to the client."""
    return [
        *asking_steps(),
        call("test_sampling", prompt="asked the old way"),
        call("test_elicitation", message="asked the old way"),
        call("test_x_mcp_header", region="Łódź 🦀"),
        {"asked": True},
        *log_steps(),
        *change_steps(),
    ]


def bridged(world, sdk, way):
    """The newer everything-server, run in the era of 2026-07-28, and clients that begin with `initialize`."""
    sessions = "isolated" if way == "isolated" else "shared"
    command = fixture("python2")
    words = [str(word) for word in command]
    steps, new_steps = bridged_steps(), bridged_new_steps()
    if way in ("all", "sse"):
        steps = at_all(steps, ["new"])
    wanted = play(world, sdk, {"stdio": words}, steps, user=USER)
    wanted += play(world, "python2", {"stdio": words, "mode": MODERN}, new_steps, user=USER)
    port = served(world, "new", command, *PINNED, "--sessions", sessions, tool="test_simple_text")
    base = f"http://localhost:{port}"
    target, prefix = {
        "all": ({"http": f"{base}/mcp"}, "new_"),
        "sse": ({"sse": f"{base}/sse"}, "new_"),
        "server": ({"http": f"{base}/servers/new/mcp"}, ""),
        "isolated": ({"http": f"{base}/servers/new/mcp"}, ""),
    }[way]
    played = [*steps, *new_steps]
    found = play(world, sdk, target, played, prefix, user=USER)
    pairs = [(step, one, other) for step, one, other in zip(played, wanted, found, strict=True) if not agreement(step)]
    need_same(sdk, *(list(column) for column in zip(*pairs, strict=True)), functools.partial(at_aggregate, name="new"))
    return f"{len(pairs)} steps equal"


def agreement(step):
    """Whether a step's outcome is of one era only."""
    return bool({"listen", "unlisten", "level"} & step.keys())


def bridged_changes(world, sdk, way):
    """Cancellations and changed resources, at a server of 2026-07-28, for a client that begins with `initialize`."""
    port = served(world, "sdk", kit.SDK_SERVER, *PINNED, tool="touch")
    target = {"sse": f"http://localhost:{port}/sse"} if way == "sse" else {"http": f"http://localhost:{port}/mcp"}
    steps = [
        {"listen": {"uris": [WATCHED]}},
        *(step for _ in range(3) for step in (call("touch"), {"told": "notifications/resources/updated"})),
        {"unlisten": [WATCHED]},
        *cancel_steps("stop me"),
    ]
    out = play(world, sdk, target, steps, "sdk_")
    told = [one for step, one in zip(steps, out, strict=True) if "told" in step]
    need_equal(told, [WATCHED] * 3, "changed resources")
    need_equal(text_of(out[-1]), "goes on", "answer after the cancellation")

CHECKS = {
    f"bridged-{sdk}-{way}": (functools.partial(bridged, sdk=sdk, way=way), 240)
    for sdk in LEGACY_SDKS
    for way in ("all", "sse", "server", "isolated")
}
CHECKS |= {
    f"bridged-{sdk}-changes-{way}": (functools.partial(bridged_changes, sdk=sdk, way=way), 120)
    for sdk in LEGACY_SDKS
    for way in ("all", "sse")
}
