"""What SDKs hide: bytes, ids, requests of servers, cancellations and losses, as a client on bare sockets sees them."""

import asyncio
import json
import time

import kit
import mcp_sse
from fake_server import VERBATIM, VERSIONS
from kit import fake, need, need_equal, short


def result(text):
    """Returns a result with one text."""
    return {"content": [{"type": "text", "text": text}]}


def raw_versions(world):
    """Each version of the 2024-2025 protocols is accepted as offered; any other is answered with the newest of them."""
    _, port = world.gateway()

    async def go():
        for offered in (*VERSIONS, "2026-07-28", "0.1.0", "2024-11-06"):
            async with kit.client(port, greet=False) as client:
                begun = time.monotonic()
                try:
                    await client.request("server/discover", {"_meta": {}})
                except mcp_sse.McpError as error:
                    need_equal(error.error["code"], -32601, "code for server/discover")
                else:
                    raise kit.Failed("server/discover got a result over the old transport")
                need(time.monotonic() - begun < 1, "server/discover was answered late")
                await client.greet(offered)
                wanted = offered if offered in VERSIONS else VERSIONS[-1]
                need_equal(client.welcome["protocolVersion"], wanted, f"version for {offered}")
                need_equal(client.welcome["capabilities"].get("tools"), {"listChanged": True}, "capability tools")
                need_equal(await client.request("ping"), {}, "answer to ping")
                need_equal(await client.tools(), ["list_servers"], "tools of an empty gateway")

    asyncio.run(go())


def one_server(world, go):
    """Runs `go(port)` with the test server registered as `own`."""
    _, port = world.gateway()
    world.register("own", fake("own"), port)
    kit.listed(port, "own_echo")
    return asyncio.run(go(port))


def raw_bytes(world):
    """Results pass byte for byte, and ids are returned as they were written."""

    async def go(port):
        async with kit.client(port) as client:
            for index, wanted in enumerate(VERBATIM):
                params = {"name": "own_verbatim", "arguments": {"index": index}}
                _, raw = await client.exchange("tools/call", params)
                need(wanted.encode() in raw, f"wanted {wanted!r} within {raw!r}")
            numbers, texts = ["0", "-7", "9007199254740993", "9223372036854775807"], ["", "0", "\\u0061 \\ud83e\\udd80"]
            for written in [*numbers, *(f'"{text}"' for text in texts)]:
                await echoed(client, written)

    async def echoed(client, written):
        future = client.waiting[json.dumps(json.loads(written))] = asyncio.get_running_loop().create_future()
        call = '{"jsonrpc":"2.0","method":"tools/call","params":{"name":"own_echo","arguments":{"text":"t"}},"id":%s}'
        await client.post((call % written).encode())
        message, raw = await asyncio.wait_for(future, 10)
        need_equal(message.get("result"), result("own:t"), f"answer to id {written}")
        need(written.encode() in raw, f"id {written} came back as {raw[:120]!r}")

    return one_server(world, go)


def raw_questions(world):
    """A shared server that sends requests to "the client": ping is answered, all others get -32601."""

    async def go(port):
        async with kit.client(port) as client:
            answer = json.loads(await client.text("own_ask", method="ping"))
            need_equal(answer.get("result"), {}, "answer to the server's ping")
            for method in ("roots/list", "sampling/createMessage", "elicitation/create", "server/own"):
                answer = json.loads(await client.text("own_ask", method=method))
                need_equal(answer.get("error", {}).get("code"), -32601, f"code for the server's {method}")
            need_equal(client.strays, [], "messages that nobody asked for")

    return one_server(world, go)


def raw_cancel(world):
    """Two clients use the same id at one server; cancelling one call does not affect the other."""

    async def go(port):
        async with kit.client(port) as one, kit.client(port) as other:
            first = asyncio.create_task(one.exchange("tools/call", sleep("first", 60_000), id=7))
            second = asyncio.create_task(other.exchange("tools/call", sleep("second", 1_500), id=7))
            for client in (one, other):
                await until_progress(client)
            await one.notify("notifications/cancelled", {"requestId": 8, "reason": "an id that nobody uses"})
            await one.notify("notifications/cancelled", {"requestId": 7, "reason": "no longer wanted"})
            message, _ = await second
            need_equal(message.get("result"), result("own:second"), "the other client's answer")
            need_equal(await one.text("own_cancelled"), '["first"]', "what was cancelled")
            need(not first.done(), "a cancelled call was answered")
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)

        async with kit.client(port) as gone, kit.client(port) as stays:
            lost = asyncio.create_task(gone.exchange("tools/call", sleep("left alone", 60_000)))
            await until_progress(gone)
            await gone.close()
            await asyncio.gather(lost, return_exceptions=True)
            await until_text(stays, "own_cancelled", '["first", "left alone"]')

    def sleep(text, ms):
        return {"name": "own_sleep", "arguments": {"ms": ms, "text": text}, "_meta": {"progressToken": 0}}

    async def until_progress(client):
        seen = asyncio.Event()
        client.progress["0"] = lambda _: seen.set()
        if any(stray.get("method") == "notifications/progress" for stray in client.strays):
            seen.set()
        await asyncio.wait_for(seen.wait(), 10)

    return one_server(world, go)


async def until_text(client, name, wanted, seconds=10):
    """Repeats a call until it returns the wanted text."""
    end = time.monotonic() + seconds
    while (found := await client.text(name)) != wanted:
        need(time.monotonic() < end, f"{name} still says {short(found)}, wanted {short(wanted)}")
        await asyncio.sleep(0.05)


def raw_gone(world):
    """A server that crashes or leaves: waiting calls fail at once with its name, its tools disappear, the other stays."""
    _, port = world.gateway("--resume-window", "0")
    leaving = world.register("leaving", fake("leaving"), port)
    world.register("crashing", fake("crashing"), port)
    world.register("staying", fake("staying"), port)
    kit.listed(port, "leaving_echo", "crashing_echo", "staying_echo")

    async def go():
        async with kit.client(port) as client:
            await client.tools()
            waiting = asyncio.create_task(client.call("crashing_sleep", ms=60_000, text="x"))
            await client.text("crashing_count")
            begun = time.monotonic()
            for call in (client.call("crashing_crash"), waiting):
                await failed(call, "crashing")
            need(time.monotonic() - begun < 2, "calls to a server that crashed failed late")
            waiting = asyncio.create_task(client.call("leaving_sleep", ms=60_000, text="x"))
            await client.text("leaving_count")
            begun = time.monotonic()
            leaving.kill(9)
            await failed(waiting, "leaving")
            names = await client.until_listed("staying_echo", gone=("leaving_echo",), seconds=3)
            need(time.monotonic() - begun < 2, "a server that left was noticed late")
            need("leaving_echo" not in names, "tools of a server that left are listed")
            need_equal(await client.text("staying_echo", text="still"), "staying:still", "the other server")

    async def failed(call, name):
        try:
            answer = await call
        except mcp_sse.McpError as error:
            need(name in error.error["message"], f"the error does not name {name}: {error}")
        else:
            raise kit.Failed(f"{name} is gone and yet answered {short(answer)}")

    return asyncio.run(go())


CHECKS = {
    "raw-versions": (raw_versions, 60),
    "raw-bytes": (raw_bytes, 60),
    "raw-questions": (raw_questions, 60),
    "raw-cancel": (raw_cancel, 60),
    "raw-gone": (raw_gone, 60),
}
