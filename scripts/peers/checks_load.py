"""Many clients and servers: each response reaches its caller once and unchanged."""

import asyncio
import contextlib
import json
import random
import time

import kit
from checks_raw import result
from kit import fake, need, need_equal


class Asker:
    """One client of a load, with its own random numbers."""

    # The kinds of calls, and their share in percent.
    KINDS = {"echo": 40, "sleep": 30, "progress": 20, "fail": 5, "error": 5}

    def __init__(self, number, client, servers, seed):
        self.number, self.client, self.servers = number, client, servers
        self.dice = random.Random(seed * 1000 + number)
        self.sent = dict.fromkeys(servers, 0)
        self.slowest = 0.0

    async def one(self):
        """Makes one call of a random kind to a random server; any other response than its own fails the check."""
        server = self.dice.choice(self.servers)
        kind = self.dice.choices(list(self.KINDS), list(self.KINDS.values()))[0]
        id = self.client.mint()
        text = f"client {self.number} call {id} {self.dice.random()}"
        begun = time.monotonic()
        await getattr(self, kind)(server, id, text)
        self.slowest = max(self.slowest, time.monotonic() - begun)

    def tool(self, server, name):
        """Returns the name of a server's tool at this client's endpoint."""
        return f"{server}_{name}"

    async def ask(self, server, id, kind, **arguments):
        """Returns the whole response; the progress token is the id, as in every SDK."""
        self.sent[server] += 1
        params = {"name": self.tool(server, kind), "arguments": arguments, "_meta": {"progressToken": id}}
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
        """From now on, progress for this call is unexpected."""
        del self.client.progress[json.dumps(id)]


async def storm(port, clients, servers, calls, in_flight, seed):
    """Spreads calls over clients that keep `in_flight` calls running each. Returns the slowest time in seconds."""
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
            # A duplicate or late message is on the stream before the response to this.
            for server in servers:
                await asker.echo(server, asker.client.mint(), "the end")
            need_equal(asker.client.strays, [], f"messages to client {asker.number} that nobody asked for")
        for server in servers:
            count = int(await askers[0].client.text(f"{server}_count"))
            need_equal(count, sum(asker.sent[server] for asker in askers), f"calls that reached {server}")
        return max(asker.slowest for asker in askers)


def under_load(world, clients, servers, calls, in_flight, seed=1):
    """Starts servers and runs the load."""
    gateway, port = world.gateway()
    names = [f"server{n}" for n in range(servers)]
    for name in names:
        world.register(name, fake(name), port)
    kit.listed(port, *(f"{name}_echo" for name in names))
    begun = time.monotonic()
    slowest = asyncio.run(storm(port, clients, names, calls, in_flight, seed))
    need(slowest < 10, f"the slowest call took {slowest:.1f} s")
    seconds, memory = time.monotonic() - begun, kit.resident_kib(gateway.pid)
    return f"{calls} calls in {seconds:.1f} s, slowest {slowest * 1000:.0f} ms, gateway {memory} KiB"


def load_8x4(world):
    """8 clients, 4 servers, 10 000 mixed calls out of order."""
    return under_load(world, 8, 4, 10_000, 8)


def load_32(world):
    """32 clients with 4 calls in flight each."""
    return under_load(world, 32, 2, 6_400, 4)


CHECKS = {
    "load-8x4": (load_8x4, 180),
    "load-32": (load_32, 180),
}
