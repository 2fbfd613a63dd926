"""Official clients over `/sse`: a server looks the same through the gateway and directly."""

import functools
import json
import os
import re
import shutil

from kit import EVERYTHING, FILE_SERVER, HERE, MODULES, PEERS, TIME_SERVER, fake, need, need_equal, short, until

SDKS = ("python1", "python2", "ts1", "ts2")


def player(sdk, scenario):
    """Returns the command that plays a scenario with one SDK."""
    if sdk.startswith("ts"):
        return ["node", HERE / "client.mjs", json.dumps({**scenario, "sdk": sdk[2:], "modules": str(MODULES)})]
    if sdk == "rmcp":
        return [PEERS / "rmcp" / "debug" / "peers-rmcp", json.dumps(scenario)]
    return [PEERS / sdk / "bin" / "python", "-B", HERE / "client.py", json.dumps(scenario)]


def play(world, sdk, target, steps, prefix="", when_ready=None, seconds=90, user=None):
    """Plays a scenario. Returns the outcome of each step."""
    program = start(world, sdk, target, steps, prefix, user)
    until(lambda: "\n" in program.output() or not program.alive(), 30, f"{sdk} connected; {program.tail()}")
    if when_ready and program.alive():
        when_ready()
    return finish(program, sdk, steps, seconds)


def start(world, sdk, target, steps, prefix="", user=None):
    """Starts a client that plays a scenario."""
    scenario = {"target": target, "prefix": prefix, "steps": steps, "user": user}
    return world.start(f"client-{sdk}", player(sdk, scenario))


def finish(program, sdk, steps, seconds=90):
    """Waits for a client to end. Returns the outcome of each step."""
    program.exit(seconds)
    lines = [json.loads(line) for line in program.output().split("\n") if line]
    need(lines and lines[-1].get("done"), f"{sdk} broke off at {next_step(steps, lines)}: {program.tail()}")
    return [line["out"] for line in lines if "out" in line]


def next_step(steps, lines):
    """Returns the step without an outcome, for a message."""
    done = sum("out" in line for line in lines)
    return short(steps[done]) if done < len(steps) else "the end"


def sse(port, **more):
    """Returns the target for a gateway."""
    return {"sse": f"http://localhost:{port}/sse", **more}


def compare(world, sdk, name, command, steps, prepare=lambda: None, same=lambda text: text):
    """Plays the same steps against the server and through the gateway; the outcomes must be equal.

    The server is used in the era of the client: one that speaks both adds members to its results in the other.
    """
    prepare()
    direct = play(world, sdk, {"stdio": [str(word) for word in command]}, steps)
    prepare()
    gateway, port = world.gateway()
    begin = lambda: world.register(name, command, port, "--era", "legacy")  # noqa: E731
    through = play(world, sdk, sse(port), steps, f"{name}_", begin)
    need_same(sdk, steps, direct, through, same)
    return f"{len(steps)} steps equal"


def need_same(sdk, steps, direct, through, same):
    """Asserts that all outcomes are equal, after `same`."""
    for step, wanted, found in zip(steps, direct, through, strict=True):
        if sdk.startswith("ts"):
            need_same_start(step, wanted, found)
        wanted, found = (same(json.dumps(out, sort_keys=True, ensure_ascii=False)) for out in (wanted, found))
        need(found == wanted, f"{short(json.dumps(step), 120)}: {difference(found, wanted)}")


def need_same_start(step, wanted, found):
    """Takes the progress out of two outcomes.

    The TypeScript SDK forgets progress that comes in one read with the answer: what it did not forget must agree.
    """
    pairs = zip(wanted, found, strict=False) if isinstance(wanted, list) else [(wanted, found)]
    for one, other in pairs:
        if isinstance(one, dict) and isinstance(other, dict):
            lists = sorted((out.pop("progress", []) for out in (one, other)), key=len)
            need_equal(lists[1][: len(lists[0])], lists[0], f"progress of {short(step, 120)}")


def difference(found, wanted):
    """Returns the first difference of two transcripts."""
    at = len(os.path.commonprefix([found, wanted]))
    found, wanted = (short(text[max(0, at - 40) :], 160) for text in (found, wanted))
    return f"through the gateway ...{found}, directly ...{wanted}"


# The server of "First call" in the README.


def file_server(world, sdk):
    """Returns server-filesystem as `file`."""
    folder, kept = world.directory / "files", world.directory / "files" / "kept"

    def prepare():
        for entry in folder.iterdir() if folder.exists() else ():
            if entry != kept:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "zażółć 🦀.txt").write_text("first\nzażółć gęślą jaźń 🦀\nlast\n")
        (folder / "dot.png").write_bytes(bytes(range(256)))
        if not kept.exists():
            kept.write_text("this file stays as it is\n")
            os.utime(kept, (1_700_000_000, 1_600_000_000))

    paths = {"sub": str(folder / "sub"), "text": str(folder / "sub" / "zażółć 🦀.txt")}
    steps = [
        {"await_tool": "read_text_file"},
        {"list": True},
        {"call": "list_allowed_directories"},
        {"call": "list_directory", "args": {"path": str(folder)}},
        {"call": "list_directory_with_sizes", "args": {"path": str(folder), "sortBy": "size"}},
        {"call": "directory_tree", "args": {"path": str(folder)}},
        {"call": "get_file_info", "args": {"path": str(kept)}},
        {"call": "read_text_file", "args": {"path": paths["text"]}},
        {"call": "read_text_file", "args": {"path": paths["text"], "head": 2}},
        {"call": "read_file", "args": {"path": str(kept)}},
        {"call": "read_media_file", "args": {"path": str(folder / "dot.png")}},
        {"call": "read_multiple_files", "args": {"paths": [paths["text"], str(folder / "none")]}},
        {"call": "create_directory", "args": {"path": str(folder / "new")}},
        {"call": "write_file", "args": {"path": str(folder / "new" / "ü"), "content": 'один\r\n\t"два" \u2028\\ 🦀\0'}},
        {"call": "read_text_file", "args": {"path": str(folder / "new" / "ü")}},
        {
            "call": "edit_file",
            "args": {"path": paths["text"], "edits": [{"oldText": "last", "newText": "end"}], "dryRun": False},
        },
        {"call": "move_file", "args": {"source": paths["text"], "destination": str(folder / "moved")}},
        {"call": "search_files", "args": {"path": str(folder), "pattern": "**/m*"}},
        {"call": "read_text_file", "args": {"path": str(folder / "none")}},
        {"call": "read_text_file", "args": {"path": "/etc/passwd"}},
        {"call": "read_text_file", "args": {"wrong": 1}},
        {"parallel": [{"call": "read_text_file", "args": {"path": str(kept), "head": n}} for n in range(1, 9)]},
    ]
    # Reading a file changes its access time; only that is left out of the server's report.
    times = functools.partial(re.sub, r"accessed: [^\\]*", "accessed: then")
    return compare(world, sdk, "file", [*FILE_SERVER, folder], steps, prepare, times)


def everything_steps():
    """Calls each tool of server-everything that needs nothing of the client."""
    text, zipped = 'zażółć 🦀 \u2028 "quoted" \\ \t end', {"name": "x.gz", "data": "data:text/plain,hello"}
    long = "trigger-long-running-operation"
    return [
        {"await_tool": "echo"},
        {"list": True},
        {"call": "echo", "args": {"message": text}},
        {"call": "get-sum", "args": {"a": 1.5, "b": -3}},
        {"call": "get-tiny-image"},
        *(
            {"call": "get-annotated-message", "args": {"messageType": t, "includeImage": t == "error"}}
            for t in ("error", "debug")
        ),
        {"call": "get-env"},
        {"call": "get-resource-links", "args": {"count": 4}},
        {"call": "get-resource-reference", "args": {"resourceType": "Text", "resourceId": 3}},
        {"call": "get-resource-reference", "args": {"resourceType": "Blob", "resourceId": 4}},
        {"call": "get-resource-reference", "args": {"resourceType": "Text", "resourceId": -1}},
        {"call": "get-structured-content", "args": {"location": "Chicago"}},
        {"call": "gzip-file-as-resource", "args": {**zipped, "outputType": "resource"}},
        {"call": "gzip-file-as-resource", "args": {**zipped, "outputType": "resourceLink"}},
        {"call": long, "args": {"duration": 0.5, "steps": 4}, "progress": True},
        {"parallel": [{"call": long, "args": {"duration": 0.6, "steps": n}, "progress": True} for n in (2, 3, 5)]},
        {"call": long, "args": {"duration": 0.1, "steps": 2}},
        {"call": "get-sum", "args": {"a": "not a number"}},
        {"call": "echo"},
        *({"call": "toggle-subscriber-updates"} for _ in range(2)),
        *({"call": "toggle-simulated-logging"} for _ in range(2)),
    ]


def everything(world, sdk):
    """Returns server-everything as `every`."""
    return compare(world, sdk, "every", EVERYTHING, everything_steps(), same=without_clock)


def without_clock(out):
    """Removes the time of day from responses of server-everything."""
    return re.sub(r"\d{1,2}:\d{2}:\d{2}( [AP]M)?", "now", without_blob_time(out))


def without_blob_time(out):
    """Removes the time of day from the base64 of the blob resource."""
    return re.sub(r'("blob": ")[A-Za-z0-9+/=]+', r"\1then", out) if "demo://resource/dynamic/blob" in out else out


def time_server(world, sdk):
    """Returns mcp-server-time as `time`."""
    steps = [
        {"await_tool": "convert_time"},
        {"list": True},
        {"call": "get_current_time", "args": {"timezone": "Asia/Kathmandu"}},
        {"call": "convert_time", "args": {"source_timezone": "UTC", "time": "12:34", "target_timezone": "Asia/Tokyo"}},
        {"call": "convert_time", "args": {"source_timezone": "UTC", "time": "25:99", "target_timezone": "Asia/Tokyo"}},
        {"call": "get_current_time", "args": {"timezone": "Mars/Olympus"}},
        {"call": "get_current_time"},
    ]

    def same(out):
        out = re.sub(r"\w+day", "today", re.sub(r"\d{4}-\d\d-\d\d", "date", out))
        return re.sub(r"T\d\d:\d\d:\d\d", "Tnow", out) if "Kathmandu" in out else out

    return compare(world, sdk, "time", TIME_SERVER, steps, same=same)


def own_server(world, sdk):
    """The test server as `own`: large, failing, odd and changing responses, and progress of equal concurrent calls."""
    # Python's 2.x client closes its stream at an event of more than 1 MiB, from any server.
    large = 1_000_000 if sdk == "python2" else 1 << 20
    steps = [
        {"await_tool": "echo"},
        {"list": True},
        {"call": "echo", "args": {"text": "zażółć 🦀 \u2028 \x7f \u0000 data: x\r\n\r\nevent: y"}},
        {"call": "big", "args": {"bytes": large}},
        {"call": "fail", "args": {"text": "as asked"}},
        {"call": "error", "args": {"code": -32007, "message": "zażółć", "data": {"a": [1, None, "🦀"]}}},
        {"call": "error", "args": {"code": 42, "message": ""}},
        *({"call": "verbatim", "args": {"index": n}} for n in range(5)),
        {"call": "noise"},
        {"call": "progress", "args": {"steps": 20, "ms": 1, "text": "one"}, "progress": True},
        {
            "parallel": [
                {"call": "progress", "args": {"steps": 10, "ms": 3, "text": f"call {n}"}, "progress": True}
                for n in range(8)
            ]
        },
        {"parallel": [{"call": "sleep", "args": {"ms": 200 - 20 * n, "text": f"{n}"}} for n in range(8)]},
        {"call": "list_changed", "args": {"tool": "extra"}},
        {"await_tool": "extra"},
        {"call": "extra"},
        {"list": True},
    ]
    return compare(world, sdk, "own", fake("own"), steps)


def gateway_part(world, sdk):
    """The gateway's own responses, and a cancellation that reaches the right one of two servers."""
    gateway, port = world.gateway()

    def start():
        for name in ("a", "b"):
            world.register(name, fake(name), port)

    steps = [
        {"await_tool": "a_echo"},
        {"await_tool": "b_echo"},
        {"call": "a_nothing"},
        {"call": "nobody_echo"},
        {"cancel": {"call": "a_sleep", "args": {"ms": 60_000, "text": "stop me"}}},
        {"until": "a_cancelled", "text": '["stop me"]'},
        {"call": "b_cancelled"},
        {"call": "b_sleep", "args": {"ms": 5, "text": "goes on"}},
        {"call": "list_servers"},
    ]
    out = play(world, sdk, sse(port), steps, when_ready=start)
    for unknown in out[2:4]:
        need_equal(unknown.get("error", {}).get("code"), -32602, "error code for an unknown tool")
    need_equal(text_of(out[6]), "[]", "calls that were cancelled at the other server")
    need_equal(text_of(out[7]), "b:goes on", "answer after the cancellation")
    servers = [json.loads(item["text"]) for item in out[8]["result"]["content"]]
    need_equal(sorted(server["name"] for server in servers), ["a", "b"], "names in list_servers")
    need(all(server["tools_count"] == 15 and server["id"] for server in servers), f"list_servers: {short(servers)}")


def text_of(out):
    """Returns the only text of a result."""
    need("result" in out, f"a result was wanted: {short(out)}")
    return out["result"]["content"][0]["text"]


PARTS = {"file": file_server, "every": everything, "time": time_server, "own": own_server, "gateway": gateway_part}

CHECKS = {
    f"sdk-{sdk}-{part}": (functools.partial(check, sdk=sdk), 150) for sdk in SDKS for part, check in PARTS.items()
}
