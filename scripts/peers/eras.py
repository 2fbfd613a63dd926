"""What the checks of both eras of the protocol share: 2026-07-28, which has no `initialize`, and the versions before it.

Steps that clients of either era play, and the comparison of their outcomes. Each answer is compared with what the server
says when it is asked directly: in the client's era if it speaks that, else in its own, and then without the members that
only one era has.
"""

import json
import re
import time

import kit
from checks_endpoints import ask
from checks_endpoints import same as without_times
from checks_sdk import need_same, play
from kit import need, need_equal

MODERN = "2026-07-28"
# Both ways in which a client comes to speak the newest version: told to, and by asking the server.
MODES = (MODERN, "auto")

USER = "Łucja"
# The resource of the small server.
WATCHED = "peers://watched"

STAMPS = ("resultType", "ttlMs", "cacheScope")
RESERVED = "io.modelcontextprotocol/"
# What servers of the older era say of a resource that is not there; Python 1.x says 0 of all that went wrong.
NOT_FOUND = {-32002: -32602, 0: -32602}


def without_era(item):
    """Returns an outcome without what only one era has.

    That are stamps, reserved `_meta`, the support of tasks, and the form of the error for an unknown resource.
    """
    if isinstance(item, list):
        return [without_era(one) for one in item]
    if not isinstance(item, dict):
        return item
    kept = {key: without_era(value) for key, value in item.items() if key not in STAMPS}
    if isinstance(kept.get("_meta"), dict):
        kept["_meta"] = {key: value for key, value in kept["_meta"].items() if not key.startswith(RESERVED)}
    if isinstance(kept.get("execution"), dict):
        kept["execution"].pop("taskSupport", None)
    if isinstance(kept.get("error"), dict):
        kept["error"]["code"] = NOT_FOUND.get(kept["error"].get("code"), kept["error"].get("code"))
        if isinstance(data := kept["error"].get("data"), dict) and data.keys() == {"uri"}:
            del kept["error"]["data"]
    return {key: value for key, value in kept.items() if key not in ("_meta", "execution") or value}


def across_eras(text):
    """Does the same to a transcript; one SDK also writes the code into its message."""
    for code, other in NOT_FOUND.items():
        text = text.replace(f"MCP error {code}: ", f"MCP error {other}: ")
    return json.dumps(without_era(json.loads(text)), sort_keys=True, ensure_ascii=False)


def within_era(text):
    """Returns a transcript with the time to live as the gateway limits it."""
    return re.sub(r'"ttlMs": (\d+)', lambda found: f'"ttlMs": {min(int(found[1]), 30_000)}', text)


def without_token(text):
    """Returns a transcript without a progress token, which one tool of the everything-servers returns as its text."""
    return re.sub(r'("(?:text|result)": )"(?:\d+|None)"', r'\1"token"', text)


def served(world, name, command, *flags, tool):
    """Registers a server with a gateway of its own. Returns the gateway's port once the server is listed."""
    _, port = world.gateway()
    register(world, name, command, port, *flags, tool=tool)
    return port


def register(world, name, command, port, *flags, tool):
    """Registers a server, and waits until it is listed."""
    edge = world.register(name, command, port, *flags)
    time.sleep(0.3)
    need(edge.alive(), f"register ended: {edge.tail()}")
    try:
        kit.listed(port, f"{name}_{tool}", seconds=60)
    except kit.Failed as why:
        raise kit.Failed(f"{why}; {edge.tail()}") from None


# Until a server is asked for its era, only this lets it run in the era of 2026-07-28.
PINNED = ("--era", "modern")


def compared(world, sdk, name, command, steps, same, *flags, speaks=MODERN, tool, prepare=lambda: None, user=USER):
    """Plays steps directly in the era that the server `speaks`, and through the gateway in each mode."""
    prepare()
    direct = play(world, sdk, {"stdio": [str(word) for word in command], "mode": speaks}, steps, user=user)
    port = served(world, name, command, *flags, tool=tool)
    for mode in MODES:
        prepare()
        target = {"http": f"http://localhost:{port}/servers/{name}/mcp", "mode": mode}
        version, *through = play(world, sdk, target, [{"version": True}, *steps], user=user)
        need_equal(version, MODERN, f"version in mode {mode}")
        need_same(sdk, steps, *(without_agreement(out, steps, speaks) for out in (direct, through)), same)
    return f"{len(steps)} steps equal, pinned and chosen"


def without_agreement(outcomes, steps, speaks):
    """Returns outcomes without the answers to `listen`, if only one of the two eras has such answers."""
    if speaks == MODERN:
        return outcomes
    return [None if "listen" in step else out for step, out in zip(steps, outcomes, strict=True)]


def call(tool, /, **arguments):
    """Returns a step that calls a tool."""
    return {"call": tool, "args": arguments}


def cancel_steps(text, before=()):
    """A call that is given up after its first progress, and one that is not. `before`: texts of earlier such calls."""
    return [
        {"cancel": {"call": "sleep", "args": {"ms": 60_000, "text": text}}},
        {"until": "cancelled", "text": json.dumps([*before, text])},
        {"call": "sleep", "args": {"ms": 5, "text": "goes on"}},
    ]


ARGUMENT = {"name": "arg1", "value": "t"}
ASKING = "test_input_required_result"
UPDATES = {"kinds": ["tools", "prompts", "resources"], "uris": ["test://watched-resource"]}


def fixture_steps():
    """Requests that both everything-servers answer without asking."""
    return [
        {"list": True},
        call("test_simple_text"),
        call("test_image_content"),
        call("test_audio_content"),
        call("test_embedded_resource"),
        call("test_multiple_content_types"),
        call("test_error_handling"),
        call("nothing"),
        call("test_elicitation"),
        {"call": "test_tool_with_progress", "progress": True},
        {"parallel": [call("test_tool_with_progress"), *(call("test_simple_text") for _ in range(7))]},
        ask("resources/list"),
        ask("resources/templates/list"),
        ask("resources/read", uri="test://static-text"),
        ask("resources/read", uri="test://static-binary"),
        ask("resources/read", uri="test://template/ł 7/data"),
        ask("prompts/list"),
        ask("prompts/get", name="test_simple_prompt"),
        ask("prompts/get", name="test_prompt_with_arguments", arguments={"arg1": "zażółć", "arg2": "🦀"}),
        ask("prompts/get", name="test_prompt_with_embedded_resource", arguments={"resourceUri": "test://x"}),
        ask("prompts/get", name="test_prompt_with_image"),
        ask("completion/complete", ref={"type": "ref/prompt", "name": "test_prompt_with_arguments"}, argument=ARGUMENT),
        ask("completion/complete", ref={"type": "ref/resource", "uri": "test://template/{id}/data"}, argument=ARGUMENT),
    ]


def log_steps():
    """A tool's log messages. Without a level there are none."""
    return [
        {"level": "debug"},
        call("test_tool_with_logging"),
        {"logs": 3},
    ]


def asking_steps():
    """Tools and a prompt of the newer everything-server that ask their client, in all forms and in several rounds."""
    return [
        call(f"{ASKING}_elicitation"),
        {"asked": True},
        call(f"{ASKING}_sampling"),
        {"asked": True},
        call(f"{ASKING}_list_roots"),
        {"asked": True},
        call(f"{ASKING}_request_state"),
        call(f"{ASKING}_multiple_inputs"),
        {"asked": True},
        call(f"{ASKING}_multi_round"),
        {"asked": True},
        call(f"{ASKING}_tampered_state"),
        call("test_streaming_elicitation"),
        call("test_missing_capability"),
        {"asked": True},
        ask("prompts/get", name=f"{ASKING}_prompt"),
        {"asked": True},
        {"parallel": [call(f"{ASKING}_multi_round") for _ in range(8)]},
        {"asked": True},
    ]


def change_steps():
    """Changes of lists."""
    return [
        {"listen": UPDATES},
        call("test_trigger_tool_change"),
        {"told": "notifications/tools/list_changed"},
        call("test_trigger_prompt_change"),
        {"told": "notifications/prompts/list_changed"},
        {"unlisten": UPDATES["uris"]},
    ]


def at_all(steps, servers):
    """Returns the steps that the endpoint of all servers does not answer by itself.

    Unknown names are its own matter, and lists of resources hold those of all servers.
    """
    own = [call("nothing"), ask("resources/read", uri="test://none")]
    lists = ("resources/list", "resources/templates/list") if len(servers) > 1 else ()
    return [step for step in steps if step not in own and step.get("ask") not in lists]


def at_aggregate(text, name):
    """Returns a transcript without what differs at the endpoint of all servers.

    Lists have its own time to live, tools have no marks for headers, and a question names the server that asks.
    """
    out = json.loads(without_token(without_times(text)).replace(f'"[{name}] ', '"'))
    for tool in out if isinstance(out, list) else []:
        for rule in tool.get("inputSchema", {}).get("properties", {}).values():
            rule.pop("x-mcp-header", None)
    return across_eras(json.dumps(out, sort_keys=True, ensure_ascii=False))
