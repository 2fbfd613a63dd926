"""Official clients that are pinned to 2026-07-28, or choose it, at servers of both eras of the protocol."""

import functools
import json
import os
import re
import subprocess
import sys

import kit
from checks_endpoints import DOCUMENT, ask
from checks_endpoints import same as without_times
from checks_endpoints import steps as everything_steps
from checks_sdk import finish, need_same, play, start, text_of
from eras import (
    ASKING,
    MODERN,
    MODES,
    PINNED,
    USER,
    WATCHED,
    across_eras,
    asking_steps,
    at_aggregate,
    at_all,
    call,
    cancel_steps,
    change_steps,
    compared,
    fixture_steps,
    log_steps,
    register,
    served,
    within_era,
    without_token,
)
from kit import BINARY, EVERYTHING, FILE_SERVER, fake, fixture, need, need_equal, short

MODERN_SDKS = ("python2", "ts2", "rmcp")


def new_fixture(world, sdk, sessions):
    """The newer everything-server: both sides speak 2026-07-28."""
    steps = [
        # Before a client has seen the list it cannot know that this argument must be in a header too: it is told so, and
        # tries again by itself, but for rmcp.
        *(call("test_x_mcp_header", region="Łódź 🦀") for _ in range(sdk != "rmcp")),
        *fixture_steps(),
        call("test_x_mcp_header", region="Łódź 🦀"),
        call("test_x_mcp_header", region=" =?base64?="),
        call("json_schema_2020_12_tool", name="n"),
        {"discover": True},
        ask("resources/read", uri="test://none"),
        *asking_steps(),
        call("test_sampling", prompt="asked the old way"),
        call("test_elicitation", message="asked the old way"),
        {"asked": True},
        call("test_logging_tool"),
        {"silence": "notifications/message"},
        *log_steps(),
        *change_steps(),
        call("test_trigger_tool_change"),
        {"silence": "notifications/tools/list_changed"},
    ]

    def same(text):
        return within_era(without_token(text))

    flags = (*PINNED, "--sessions", sessions)
    return compared(world, sdk, "new", fixture("python2"), steps, same, *flags, tool="test_simple_text")


def old_fixture(world, sdk, sessions):
    """The older everything-server, which begins with `initialize`. Its tools ask their client if each has a process."""
    steps = [*fixture_steps(), ask("resources/read", uri="test://none")]
    if sessions == "isolated":
        steps += [
            call("test_sampling", prompt="which?"),
            {"asked": True},
            call("test_elicitation", message="what?"),
            {"asked": True},
            call("test_elicitation_sep1034_defaults"),
            {"asked": True},
            call("test_elicitation_sep1330_enums"),
            {"asked": True},
            {"parallel": [call("test_elicitation", message=f"question {n}") for n in range(3)]},
            {"asked": True},
            *log_steps(),
        ]

    def same(text):
        return across_eras(without_token(text))

    flags = ("--sessions", sessions)
    user = USER if sessions == "isolated" else None
    command = fixture("python1")
    return compared(world, sdk, "old", command, steps, same, *flags, speaks="legacy", tool="test_simple_text", user=user)


def everything(world, sdk, sessions):
    """server-everything, which begins with `initialize`: all that clients of that era see, but what 2026-07-28 removed."""
    removed = ("ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe")
    steps = [step for step in everything_steps() if step.get("ask") not in removed and "told" not in step]
    steps = [step for step in steps if "await_tool" not in step and "toggle" not in step.get("call", "")]
    if sessions == "shared":
        steps += [
            {"listen": {"uris": [DOCUMENT]}},
            call("toggle-subscriber-updates"),
            {"told": "notifications/resources/updated"},
            call("toggle-subscriber-updates"),
            {"unlisten": [DOCUMENT]},
        ]
    else:
        # Which process has the subscriptions of a client without a session is left open.
        steps += [
            # It asks for roots by itself, a moment after it was started: whichever call comes then carries the question.
            call("get-roots-list"),
            call("trigger-sampling-request", prompt="which?", maxTokens=7),
            call("trigger-elicitation-request"),
            {"asked": True},
        ]

    def same(text):
        out = json.loads(text)
        if isinstance(out, list):
            # It asks each process for the roots once. A process outlives a client without a session, and calls side by side
            # have several; one that carries the question misses the progress until its client returns.
            out = [each for each in out if not (isinstance(each, dict) and each.get("method") == "roots/list")]
            for each in out:
                if isinstance(each, dict) and sessions == "isolated":
                    each.pop("progress", None)
            text = json.dumps(out, sort_keys=True, ensure_ascii=False)
        return across_eras(without_times(text))

    flags = ("--sessions", sessions)
    user = USER if sessions == "isolated" else None
    return compared(world, sdk, "every", EVERYTHING, steps, same, *flags, speaks="legacy", tool="echo", user=user)


def device(world, sdk):
    """`mcpport device`, in the era of 2026-07-28: its reports change, so their form is compared."""
    names = ("system", "disks", "network")
    steps = [
        {"list": True},
        {"discover": True},
        *(call(name) for name in names),
        call("processes", count=3),
        call("nothing"),
        ask("prompts/list"),
        ask("prompts/get", name="diagnose", arguments={"symptom": "zażółć 🦀"}),
        ask("resources/list"),
        ask("resources/templates/list"),
        ask("resources/read", uri="device://summary"),
        ask("resources/read", uri="device://nothing"),
    ]

    def same(text):
        out = json.loads(text)
        content = out.get("result", {}).get("structuredContent") if isinstance(out, dict) else None
        if content is None:
            return within_era(re.sub(r'("mimeType": "text/markdown", "text": ")[^"]+', r"\1page", text))
        need(out["result"]["content"], f"no text in {short(out)}")
        return json.dumps({**out, "result": {"structuredContent": sorted(content), "others": sorted(out["result"])}})

    return compared(world, sdk, "device", [BINARY, "device"], steps, same, *PINNED, tool="system")


def filesystem(world, sdk):
    """server-filesystem, which begins with `initialize` and asks for roots if the client has some: here it has not."""
    folder = world.directory / "files"
    kept, made = folder / "kept", folder / "made"

    def prepare():
        folder.mkdir(exist_ok=True)
        made.unlink(missing_ok=True)
        kept.write_text("first\nzażółć gęślą jaźń 🦀\nlast\n")
        os.utime(kept, (1_700_000_000, 1_600_000_000))

    steps = [
        {"list": True},
        call("list_allowed_directories"),
        call("list_directory", path=str(folder)),
        call("read_text_file", path=str(kept), head=2),
        call("write_file", path=str(made), content='один\r\n\t"два" \u2028\\ 🦀\0'),
        call("read_text_file", path=str(made)),
        call("edit_file", path=str(kept), edits=[{"oldText": "last", "newText": "end"}]),
        call("read_text_file", path=str(folder / "none")),
        call("read_text_file", path="/etc/passwd"),
        call("read_text_file", wrong=1),
        {"parallel": [call("read_text_file", path=str(kept), head=n) for n in range(1, 9)]},
    ]
    prepare()
    command = [*FILE_SERVER, folder]
    return compared(
        world, sdk, "file", command, steps, across_eras, speaks="legacy", tool="read_file", prepare=prepare, user=None
    )


def time_server(world, sdk):
    """mcp-server-time, in the era of 2026-07-28."""
    steps = [
        {"list": True},
        {"discover": True},
        call("convert_time", source_timezone="UTC", time="12:34", target_timezone="Asia/Tokyo"),
        call("convert_time", source_timezone="UTC", time="25:99", target_timezone="Asia/Tokyo"),
        call("get_current_time", timezone="Mars/Olympus"),
        call("get_current_time"),
        call("nothing"),
    ]

    def same(text):
        return within_era(re.sub(r"\d{4}-\d\d-\d\d", "date", re.sub(r"\w+day", "today", text)))

    return compared(world, sdk, "time", kit.TIME_SERVER, steps, same, *PINNED, tool="convert_time")


def git_server(world, sdk):
    """mcp-server-git, in the era of 2026-07-28. It has no `subscriptions/listen`."""
    folder = world.directory / "repository"
    identity = ["-c", "user.name=peer", "-c", "user.email=peer@example.org"]
    dates = {"GIT_AUTHOR_DATE": "2026-07-28T00:00:00Z", "GIT_COMMITTER_DATE": "2026-07-28T00:00:00Z"}

    def git(*words):
        subprocess.run(
            ["git", *identity, *words], cwd=folder, check=True, capture_output=True, env={**os.environ, **dates}, timeout=30
        )

    def prepare():
        if not folder.exists():
            folder.mkdir()
            git("init", "--initial-branch", "main")
            (folder / "a.txt").write_text("one\n")
            git("add", "a.txt")
            git("commit", "--message", "First, zażółć 🦀")
        git("reset", "--hard", "HEAD")
        (folder / "a.txt").write_text("one\ntwo\n")

    prepare()
    at = {"repo_path": str(folder)}
    steps = [
        {"list": True},
        {"discover": True},
        call("git_status", **at),
        call("git_diff_unstaged", **at),
        call("git_add", **at, files=["a.txt"]),
        call("git_diff_staged", **at),
        call("git_reset", **at),
        call("git_log", **at),
        call("git_show", **at, revision="HEAD"),
        call("git_show", **at, revision="none"),
        call("git_status", repo_path="/"),
        call("git_status"),
        call("nothing"),
    ]
    command = [*kit.GIT_SERVER, "--repository", folder]
    return compared(world, sdk, "git", command, steps, within_era, *PINNED, tool="git_status", prepare=prepare)


def fetch_server(world, sdk):
    """mcp-server-fetch, in the era of 2026-07-28, with a web server on this machine."""
    pages = world.directory / "pages"
    pages.mkdir()
    (pages / "robots.txt").write_text("User-agent: *\nDisallow: /secret\n")
    (pages / "page.txt").write_text("zażółć gęślą jaźń 🦀\n" * 400)
    (pages / "secret").write_text("secret")
    port = kit.free_port()
    web = [sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1", "--directory", pages]
    world.start("web", web)
    kit.until(lambda: kit.listens(port), 20, "the web server listens")
    base = f"http://127.0.0.1:{port}"
    steps = [
        {"list": True},
        {"discover": True},
        call("fetch", url=f"{base}/page.txt", raw=True),
        call("fetch", url=f"{base}/page.txt", raw=True, max_length=50, start_index=10),
        call("fetch", url=f"{base}/none", raw=True),
        call("fetch", url=f"{base}/secret", raw=True),
        call("fetch", url="no URL"),
        call("nothing"),
        ask("prompts/list"),
        ask("prompts/get", name="fetch", arguments={"url": f"{base}/page.txt"}),
        ask("prompts/get", name="fetch"),
    ]
    return compared(world, sdk, "fetch", kit.FETCH_SERVER, steps, within_era, *PINNED, tool="fetch")


def cancels(world, sdk):
    """A client that gives up a call closes its response, and the server is told, of either era."""
    port = served(world, "new", kit.SDK_SERVER, *PINNED, tool="sleep")
    register(world, "old", fake("old"), port, tool="sleep")
    for place, mode in enumerate(MODES):
        for name in ("new", "old"):
            target = {"http": f"http://localhost:{port}/servers/{name}/mcp", "mode": mode}
            out = play(world, sdk, target, [{"version": True}, *cancel_steps(mode, MODES[:place])])
            need_equal(out[0], MODERN, f"version at {name} in mode {mode}")
            need(text_of(out[-1]).endswith("goes on"), f"{name} after the cancellation: {short(out[-1])}")


def watches(world, sdk):
    """A client hears of a resource while it listens, and no longer."""
    steps = [
        {"list": True},
        ask("resources/read", uri=WATCHED),
        {"listen": {"uris": [WATCHED]}},
        *(step for _ in range(3) for step in (call("touch"), {"told": "notifications/resources/updated"})),
        {"unlisten": [WATCHED]},
        call("touch"),
        {"silence": "notifications/resources/updated"},
    ]
    return compared(world, sdk, "sdk", kit.SDK_SERVER, steps, within_era, *PINNED, tool="touch")


def listens(world, sdk):
    """A client may listen at a server that announces nothing, and refuses to be listened to: mcp-server-time."""
    port = served(world, "time", kit.TIME_SERVER, *PINNED, tool="convert_time")
    steps = [{"version": True}, {"listen": {"kinds": ["tools", "prompts"]}}, {"list": True}, {"unlisten": []}]
    for mode in MODES:
        target = {"http": f"http://localhost:{port}/servers/time/mcp", "mode": mode}
        version, agreed, tools, _ = play(world, sdk, target, steps)
        need_equal(version, MODERN, f"version in mode {mode}")
        need(isinstance(agreed, dict) and tools, f"agreed to {short(agreed)}, listed {short(tools)}")


def aggregate(world, sdk):
    """Servers of both eras at the endpoint of all servers, which a client of 2026-07-28 sees as one."""
    servers = {
        "new": (fixture("python2"), MODERN, PINNED, "test_simple_text"),
        "time": (kit.TIME_SERVER, MODERN, PINNED, "convert_time"),
        "every": (EVERYTHING, "legacy", (), "echo"),
    }
    convert = call("convert_time", source_timezone="UTC", time="12:34", target_timezone="Asia/Tokyo")
    tools = [step for step in everything_steps() if "call" in step and "gzip" not in str(step) and "toggle" not in str(step)]
    lists = [{"list": True}, ask("prompts/list")]
    steps = {
        "new": [*lists, *at_all(fixture_steps(), servers), *asking_steps()],
        "time": [{"list": True}, convert],
        "every": [*lists, *tools],
    }
    _, port = world.gateway()
    for name, (command, _, flags, tool) in servers.items():
        register(world, name, command, port, *flags, tool=tool)
    for name, (command, speaks, _, _) in servers.items():
        mine = steps[name]
        # A shared process of the older era has no client to ask, and shows no tools that need one.
        user = USER if speaks == MODERN else None
        direct = play(world, sdk, {"stdio": [str(word) for word in command], "mode": speaks}, mine, user=user)
        for mode in MODES:
            target = {"http": f"http://localhost:{port}/mcp", "mode": mode}
            version, *through = play(world, sdk, target, [{"version": True}, *mine], f"{name}_", user=user)
            need_equal(version, MODERN, f"version in mode {mode}")
            need_same(sdk, mine, direct, through, functools.partial(at_aggregate, name=name))
    late = [{"listen": {"kinds": ["tools"]}}, {"await_tool": "late_echo"}, {"unlisten": []}]
    target = {"http": f"http://localhost:{port}/mcp", "mode": MODERN}
    play(world, sdk, target, late, when_ready=lambda: world.register("late", fake("late"), port))


def two_clients(world, sdk, other):
    """Two clients of one process are asked at once, in several rounds: each answer reaches its own call."""
    port = served(world, "new", fixture("python2"), *PINNED, tool="test_simple_text")
    steps = [{"parallel": [call(f"{ASKING}_multi_round") for _ in range(8)]} for _ in range(4)]
    target = {"http": f"http://localhost:{port}/servers/new/mcp", "mode": MODERN}
    clients = {user: (kind, start(world, kind, target, steps, user=user)) for user, kind in (("Ann", sdk), ("Bob", other))}
    for user, (kind, program) in clients.items():
        for outcomes in finish(program, kind, steps):
            texts = {text_of(out) for out in outcomes}
            need_equal(texts, {f"name of {user} likes color of {user}."}, f"answers to {user}")


def found(world):
    """Without `--era` the gateway finds the era of each process, also that of a server that speaks both."""
    _, port = world.gateway()
    base = f"http://localhost:{port}/servers"
    both = fixture("python2")
    register(world, "shared", both, port, tool="test_simple_text")
    register(world, "isolated", both, port, "--sessions", "isolated", tool="test_simple_text")
    register(world, "old", EVERYTHING, port, tool="echo")
    register(world, "device", [BINARY, "device"], port, tool="system")
    question = call(f"{ASKING}_elicitation")
    steps = {"shared": question, "isolated": question, "old": call("echo", message="m"), "device": call("system")}
    for name, step in steps.items():
        target = {"http": f"{base}/{name}/mcp", "mode": MODERN}
        (out,) = play(world, "python2", target, [step], user=USER)
        need(not out.get("result", {"isError": True}).get("isError"), f"{name}: {short(out)}")
        if step == question:
            need_equal(text_of(out), f"Hello, name of {USER}!", f"answer of {name}")
    # A session has a process of its own, begun with `initialize`: there the tool can ask in the old way.
    (out,) = play(world, "python1", {"http": f"{base}/isolated/mcp"}, [call("test_elicitation", message="m")], user=USER)
    need("action=accept" in text_of(out), f"a tool that asks in the old way, in a session: {short(out)}")


SERVERS = {
    "new-shared": functools.partial(new_fixture, sessions="shared"),
    "new-isolated": functools.partial(new_fixture, sessions="isolated"),
    "old-shared": functools.partial(old_fixture, sessions="shared"),
    "old-isolated": functools.partial(old_fixture, sessions="isolated"),
    "every-shared": functools.partial(everything, sessions="shared"),
    "every-isolated": functools.partial(everything, sessions="isolated"),
    "device": device,
    "file": filesystem,
    "time": time_server,
    "git": git_server,
    "fetch": fetch_server,
    "cancel": cancels,
    "watch": watches,
    "listen": listens,
    "all": aggregate,
}

CHECKS = {
    f"modern-{sdk}-{name}": (functools.partial(check, sdk=sdk), 240) for sdk in MODERN_SDKS for name, check in SERVERS.items()
}
CHECKS["modern-found"] = (found, 120)
CHECKS["modern-two-clients"] = (functools.partial(two_clients, sdk="python2", other="ts2"), 120)
