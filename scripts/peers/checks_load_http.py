"""The load of `checks_load.py` over Streamable HTTP, with log levels and subscriptions of each session.

Each of 8 clients has a session at `/mcp` and one at each `/servers/<name>/mcp`, all at the same time, each with an open GET
stream and several concurrent POSTs. Each session has its own log level and subscriptions. The calls determine the
notifications that each session must get; it must get exactly these, each once.
"""

import asyncio
import collections
import contextlib
import functools
import json
import time

import kit
import mcp_http
import mcp_sse
from checks_load import Asker
from checks_raw import result
from fake_server import COMMON, LEVELS
from kit import fake, need, need_equal

# Resources of each server: those that sessions subscribe to for a whole phase, one that they subscribe to and unsubscribe
# from all the time, and one whose update (the fence) is the last of a phase.
STEADY, VOLATILE, FENCE = range(4), 4, 5


class Session(Asker):
    """One session of a load. At `/mcp` it sees all servers, elsewhere one, under its own names."""

    KINDS = {"echo": 30, "sleep": 20, "progress": 20, "fail": 5, "error": 5, "log": 8, "touch": 8, "toggle": 4}

    def __init__(self, number, client, servers, seed, alone):
        super().__init__(number, client, servers, seed)
        self.alone = alone
        self.level = None
        self.wanted = set()
        # Its actions: (server, level, text) and (server, URI, text).
        self.said, self.touched = [], []
        # Texts of its own touches whose updates it must get for the volatile resource.
        self.heard = []
        self.toggling = {server: asyncio.Lock() for server in servers}

    def tool(self, server, name):
        return name if self.alone else f"{server}_{name}"

    async def look(self):
        """Finds the URIs under which it sees the resources."""
        listed = (await self.client.request("resources/list"))["resources"]
        self.uris = {tuple(resource["name"].split(" ")): resource["uri"] for resource in listed}
        for server in self.servers:
            for uri in self.steady(server):
                need((server, uri) in self.uris, f"resource {uri} of {server} is not listed")

    def steady(self, server):
        """Returns the server's URIs to subscribe to for a whole phase."""
        return [*(f"{server}://{n}" for n in STEADY), COMMON]

    async def wish(self, server, uri, wanted):
        """Subscribes or unsubscribes."""
        method = "resources/subscribe" if wanted else "resources/unsubscribe"
        need_equal(await self.client.request(method, {"uri": self.uris[server, uri]}), {}, method)

    async def settle(self):
        """Chooses a random level and subscriptions, and clears the records."""
        self.said, self.touched, self.heard = [], [], []
        self.client.logs.clear()
        self.client.updates.clear()
        self.level = self.dice.randrange(len(LEVELS))
        wanted = {(s, uri) for s in self.servers for uri in self.steady(s) if self.dice.random() < 0.5}
        wanted |= {(server, f"{server}://{FENCE}") for server in self.servers}
        changed = [(key, key in wanted) for key in sorted(wanted ^ self.wanted)]
        self.wanted = wanted
        level = self.client.request("logging/setLevel", {"level": LEVELS[self.level]})
        await asyncio.gather(level, *(self.wish(*key, is_wanted) for key, is_wanted in changed))

    # Kinds of calls

    async def log(self, server, id, text, level=None):
        level = self.dice.randrange(len(LEVELS)) if level is None else level
        self.said.append((server, level, text))
        answer = await self.ask(server, id, "log", level=LEVELS[level], text=text)
        need_equal(answer.get("result"), result(f"{server}:{text}"), "log")

    async def touch(self, server, id, text, uri=None):
        uri = uri or self.dice.choice(self.steady(server))
        self.touched.append((server, uri, text))
        answer = await self.ask(server, id, "touch", uri=uri, text=text)
        need_equal(answer.get("result"), result(f"{server}:{text}"), "touch")

    async def toggle(self, server, id, text):
        """Subscribes and unsubscribes, as others do at the same time: it gets the updates of changes in between."""
        uri = f"{server}://{VOLATILE}"
        async with self.toggling[server]:
            await self.wish(server, uri, True)
            self.heard.append((self.uris[server, uri], f"{text} within"))
            await self.touch(server, id, f"{text} within", uri)
            await self.wish(server, uri, False)
            await self.touch(server, self.client.mint(), f"{text} after", uri)

    # The end of a phase

    async def fence(self, text):
        """Sends the fence: nothing follows it on any stream that gets it."""
        for server in self.servers:
            await self.log(server, self.client.mint(), text, len(LEVELS) - 1)
            await self.touch(server, self.client.mint(), text, f"{server}://{FENCE}")

    async def until_fenced(self, text):
        """Waits for the fences of all servers."""

        async def wait():
            while True:
                self.client.news.clear()
                logs = sum(message["data"] == text for message in self.client.logs)
                updates = sum(update["_meta"]["text"] == text for update in self.client.updates)
                if min(logs, updates) >= len(self.servers):
                    return
                await self.client.news.wait()

        try:
            await asyncio.wait_for(wait(), 10)
        except TimeoutError:
            raise kit.Failed(f"{self} never heard {text!r}; its stream: {self.client.ended or 'open'}") from None

    def judge(self, authors):
        """Checks that it got exactly the subscribed messages of the authors."""
        wanted = [
            (LEVELS[level], server, text)
            for author in authors
            for server, level, text in author.said
            if server in self.servers and level >= self.level
        ]
        found = [(message["level"], message["logger"], message["data"]) for message in self.client.logs]
        need_same(found, wanted, f"log messages to {self}, which wants {LEVELS[self.level]}")
        wanted = [
            (self.uris[server, uri], text)
            for author in authors
            for server, uri, text in author.touched
            if (server, uri) in self.wanted
        ]
        # Whether it gets others' changes of the volatile resource depends on timing. It must get its own.
        others = {
            (self.uris[server, uri], text)
            for author in authors
            for server, uri, text in author.touched
            if author is not self and server in self.servers and uri == f"{server}://{VOLATILE}"
        }
        found = [(update["uri"], update["_meta"]["text"]) for update in self.client.updates]
        matter_of_time = [update for update in found if update in others]
        need_same(matter_of_time, set(matter_of_time), f"volatile updates to {self}")
        need_same([u for u in found if u not in others], wanted + self.heard, f"updates to {self}")
        need_equal(self.client.strays, [], f"messages to {self} that nobody asked for")
        need(self.client.ended is None, f"the stream of {self}: {self.client.ended}")

    def __str__(self):
        return f"session {self.number} ({self.client.endpoint})"


def need_same(found, wanted, what):
    """Checks that both contain the same messages equally often."""
    found, wanted = collections.Counter(found), collections.Counter(wanted)
    more, less = found - wanted, wanted - found
    differs = f"{more.total()} too many {list(more)[:2]}, {less.total()} missing {list(less)[:2]}"
    need(not more and not less, f"{what}: {differs}")


async def need_wishes(sessions, isolated):
    """Checks that each process has the lowest level, and the subscriptions, of its sessions."""
    for session in sessions:
        for server in session.servers:
            listeners = [session] if isolated else [other for other in sessions if server in other.servers]
            level = LEVELS[min(listener.level for listener in listeners)]
            wanted = {uri for listener in listeners for name, uri in listener.wanted if name == server}
            text = await session.client.text(session.tool(server, "wishes"))
            session.sent[server] += 1
            need_equal(json.loads(text), [level, sorted(wanted)], f"what {server} knows of {session}")


async def need_counts(sessions, isolated):
    """Checks that every call reached its process once."""
    for session in sessions:
        for server in session.servers:
            counted = [session] if isolated else [other for other in sessions if server in other.servers]
            found = int(await session.client.text(session.tool(server, "count")))
            need_equal(found, sum(one.sent[server] for one in counted), f"calls of {session} that reached {server}")
            session.sent[server] += 1


async def phase(sessions, calls, isolated, number):
    """Calls from all sessions at once; afterwards each must have got exactly its own messages."""
    await asyncio.gather(*(session.settle() for session in sessions))
    left = iter(range(calls))

    async def worker(session):
        for _ in left:
            await session.one()

    workers = [worker(session) for session in sessions for _ in range(2 if session.alone else 8)]
    await asyncio.gather(*workers)
    # A shared process notifies all sessions with one fence.
    fences = sessions if isolated else sessions[:1]
    text = f"the end of phase {number}"
    await asyncio.gather(*(session.fence(text) for session in fences))
    await asyncio.gather(*(session.until_fenced(text) for session in sessions))
    for session in sessions:
        session.judge([session] if isolated else sessions)
    await need_wishes(sessions, isolated)
    return sum(len(session.client.logs) + len(session.client.updates) for session in sessions)


async def storm(port, clients, servers, calls, isolated, seed):
    """Opens the sessions and runs their calls. Returns the slowest call in seconds, and the number of notifications."""
    async with contextlib.AsyncExitStack() as stack:

        async def session(number, path, names, alone):
            client = await mcp_http.Client.connect(port, path)
            stack.push_async_callback(client.close)
            return Session(number, client, names, seed, alone)

        endpoints = [("/mcp", servers, False), *((f"/servers/{name}/mcp", [name], True) for name in servers)]
        endpoints = [endpoint for _ in range(clients) for endpoint in endpoints]
        sessions = await asyncio.gather(*(session(number, *endpoint) for number, endpoint in enumerate(endpoints)))
        await asyncio.gather(*(session.look() for session in sessions))
        heard = [await phase(sessions, calls // 2, isolated, number) for number in range(2)]
        await need_counts(sessions, isolated)
        if isolated:
            await need_full(port, servers)
        return max(session.slowest for session in sessions), sum(heard)


async def need_full(port, servers):
    """A session over the limit gets an error that names the flag."""
    client = await mcp_http.Client.connect(port)
    for server in servers:
        try:
            await client.text(f"{server}_echo", text="too many")
        except mcp_sse.McpError as error:
            need("--max-sessions" in error.error["message"], f"the error names no flag: {error}")
        else:
            raise kit.Failed(f"{server} takes a session too many")
    await client.close()


def load(world, isolated, clients=8, count=4, calls=10_000, seed=1):
    """Starts servers and runs the load."""
    gateway, port = world.gateway()
    servers = [f"server{n}" for n in range(count)]
    # Each client has one session that sees all servers, and one for each: two processes of each server.
    flags = ["--sessions", "isolated", "--max-sessions", 2 * clients] if isolated else []
    for name in servers:
        world.register(name, fake(name, "--offers"), port, *flags)
    kit.listed(port, *(f"{name}_wishes" for name in servers))
    processes = len(world.strangers())
    begun = time.monotonic()
    slowest, heard = asyncio.run(storm(port, clients, servers, calls, isolated, seed))
    need(slowest < 10, f"the slowest call took {slowest:.1f} s")
    seconds, memory = time.monotonic() - begun, kit.resident_kib(gateway.pid)
    kit.until(lambda: len(world.strangers()) <= processes, 10, "the processes of the sessions are gone")
    asyncio.run(need_forgotten(port, servers))
    return (
        f"{calls} calls by {clients * (1 + count)} sessions in {seconds:.1f} s, slowest {slowest * 1000:.0f} ms, "
        f"{heard} log messages and updates, gateway {memory} KiB"
    )


async def need_forgotten(port, servers):
    """Checks that no subscription is left."""
    client = await mcp_http.Client.connect(port)
    for server in servers:
        _, subscribed = json.loads(await client.text(f"{server}_wishes"))
        need_equal(subscribed, [], f"subscriptions at {server} after all sessions")
    await client.close()


CHECKS = {
    "load-8x4-http": (functools.partial(load, isolated=False), 180),
    "load-8x4-isolated": (functools.partial(load, isolated=True), 180),
}
