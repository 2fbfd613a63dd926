"""Many clients, many servers: every answer goes to who asked, once, as it was written."""

import asyncio
import contextlib
import json
import random
import time

import kit
import mcp_sse
from fake_server import VERBATIM
from kit import fake, need, need_equal, short


class Asker:
    """One client of a load, with its own dice."""

    def __init__(self, number, client, servers, seed):
        self.number, self.client, self.servers = number, client, servers
        self.dice = random.Random(seed * 1000 + number)
        self.sent = dict.fromkeys(servers, 0)
        self.slowest = 0.0

    async def one(self):
        """One call of a random kind to a random server; anything but its own answer fails the check."""
        server = self.dice.choice(self.servers)
        kind = self.dice.choices(("echo", "sleep", "progress", "fail", "error"), (40, 30, 20, 5, 5))[0]
        self.sent[server] += 1
        id = self.client.mint()
        text = f"client {self.number} call {id} {self.dice.random()}"
        begun = time.monotonic()
        await getattr(self, kind)(server, id, text)
        self.slowest = max(self.slowest, time.monotonic() - begun)

    async def ask(self, server, id, kind, **arguments):
        """The whole answer; the progress token is the id, as it is in every SDK."""
        params = {"name": f"{server}_{kind}", "arguments": arguments, "_meta": {"progressToken": id}}
        message, _ = await self.client.exchange("tools/call", params, id=id, seconds=60)
        return message

    async def echo(self, server, id, text):
        answer = await self.ask(server, id, "echo", text=text)
        need_equal(answer.get("result"), result(f"{server}:{text}"), "echo")

    async def sleep(self, server, id, text):
        steps = self.listen(id)
        answer = await self.ask(server, id, "sleep", text=text, ms=self.dice.randrange(20))
        self.hush(id)
        need_equal(answer.get("result"), result(f"{server}:{text}"), "sleep")
        need_equal(steps, [f"{server}:{text}:started"], "progress of sleep")

    async def progress(self, server, id, text):
        steps, count = self.listen(id), self.dice.randrange(1, 5)
        answer = await self.ask(server, id, "progress", text=text, steps=count, ms=self.dice.randrange(4))
        self.hush(id)
        need_equal(answer.get("result"), result(f"{server}:{text}"), "progress")
        need_equal(steps, [f"{server}:{text}:{n}" for n in range(1, count + 1)], "steps of progress")

    async def fail(self, server, id, text):
        answer = await self.ask(server, id, "fail", text=text)
        need_equal(answer.get("result"), {**result(f"{server}:{text}"), "isError": True}, "fail")

    async def error(self, server, id, text):
        answer = await self.ask(server, id, "error", code=-32050, message=text, data=[id, text])
        need_equal(answer.get("error"), {"code": -32050, "message": text, "data": [id, text]}, "error")

    def listen(self, id):
        """Collects the progress of one call."""
        steps = []
        self.client.progress[json.dumps(id)] = lambda params: steps.append(params["message"])
        return steps

    def hush(self, id):
        """From here on progress for this call is a stray."""
        del self.client.progress[json.dumps(id)]


def result(text):
    """Result of one text."""
    return {"content": [{"type": "text", "text": text}]}


async def storm(port, clients, servers, calls, in_flight, seed):
    """`calls` calls, spread over clients that keep `in_flight` going each; the slowest and the calls for each server."""
    async with contextlib.AsyncExitStack() as stack:
        askers = []
        for number in range(clients):
            client = await stack.enter_async_context(kit.client(port, posters=in_flight))
            askers.append(Asker(number, client, servers, seed))
        left = iter(range(calls))

        async def worker(asker):
            for _ in left:
                await asker.one()

        await asyncio.gather(*(worker(asker) for asker in askers for _ in range(in_flight)))
        for asker in askers:
            # What was sent twice or late is on the stream before the answer to this.
            for server in servers:
                await asker.client.text(f"{server}_echo", text="the end")
                asker.sent[server] += 1
            need_equal(asker.client.strays, [], f"messages to client {asker.number} that nobody asked for")
        for server in servers:
            count = int(await askers[0].client.text(f"{server}_count"))
            need_equal(count, sum(asker.sent[server] for asker in askers), f"calls that reached {server}")
        return max(asker.slowest for asker in askers)


def under_load(world, clients, servers, calls, in_flight, seed=1):
    """Starts servers and lets the storm loose."""
    gateway, port = world.gateway()
    names = [f"server{n}" for n in range(servers)]
    for name in names:
        world.register(name, fake(name), port)
    kit.listed(port, *(f"{name}_echo" for name in names))
    begun = time.monotonic()
    slowest = asyncio.run(storm(port, clients, names, calls, in_flight, seed))
    need(slowest < 10, f"the slowest call took {slowest:.1f} s")
    seconds = time.monotonic() - begun
    return f"{calls} calls in {seconds:.1f} s, slowest {slowest * 1000:.0f} ms, gateway {kit.resident_kib(gateway.pid)} KiB"


def load_8x4(world):
    """8 clients, 4 servers, 10 000 mixed calls out of order."""
    return under_load(world, 8, 4, 10_000, 8)


def load_32(world):
    """32 clients with 4 calls in flight each."""
    return under_load(world, 32, 2, 6_400, 4)


def one_server(world, go):
    """Runs `go(port)` with the test server registered as `own`."""
    _, port = world.gateway()
    world.register("own", fake("own"), port)
    kit.listed(port, "own_echo")
    return asyncio.run(go(port))


def raw_bytes(world):
    """Results pass byte for byte, ids come back as they were written."""

    async def go(port):
        async with kit.client(port) as client:
            for index, wanted in enumerate(VERBATIM):
                params = {"name": "own_verbatim", "arguments": {"index": index}}
                _, raw = await client.exchange("tools/call", params)
                need(wanted.encode() in raw, f"wanted {wanted!r} within {raw!r}")
            ids = ["0", '"0"', '""', "2147483648", "9007199254740993", "9223372036854775807", '"\\u0061 \\ud83e\\udd80"', "-7"]
            for written in ids:
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
    """A shared server that asks "the client": ping is answered, the rest gets -32601."""

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
    """Two clients use the same id at one server; cancelling one call leaves the other alone."""

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
    """Repeats a call until it answers what is wanted."""
    end = time.monotonic() + seconds
    while (found := await client.text(name)) != wanted:
        need(time.monotonic() < end, f"{name} still says {short(found)}, wanted {short(wanted)}")
        await asyncio.sleep(0.05)


def raw_gone(world):
    """A server that dies or leaves: waiting calls fail at once and name it, its tools go, the other one stays."""
    _, port = world.gateway()
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
    "raw-bytes": (raw_bytes, 60),
    "raw-questions": (raw_questions, 60),
    "raw-cancel": (raw_cancel, 60),
    "raw-gone": (raw_gone, 60),
    "load-8x4": (load_8x4, 180),
    "load-32": (load_32, 180),
}
