"""An MCP client over Streamable HTTP (2025-03-26 to 2025-11-25), on bare sockets.

As strict as `mcp_sse.py`, and stricter: a response and progress may only arrive on the POST of their request, and no event
id may arrive twice. Everything else is recorded in `strays`.
"""

import asyncio
import contextlib
import json

import mcp_sse
from mcp_sse import HttpError, read_body, read_head

BOTH = ("Accept", "application/json, text/event-stream")


async def events(reader, fields):
    """Yields the events of a stream as (id, data), each with one line of data; none for comments and `retry`."""
    rest, id, data = b"", None, None
    async for piece in read_body(reader, fields):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].removeprefix(b" ").rstrip(b"\r")
            elif line.startswith(b"id:"):
                id = line[3:].strip()
            elif not line.rstrip(b"\r") and data is not None:
                yield id, data
                data = None


class Lane:
    """A kept-alive connection for one POST at a time."""

    def __init__(self):
        self.writer = None

    async def begin(self, client, body):
        """Sends a POST. Returns status and header fields of the response."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(client.host, client.port, limit=1 << 24)
        host = f"{client.host}:{client.port}"
        self.writer.write(mcp_sse.head("POST", client.endpoint, host, [BOTH, *client.headers], len(body)) + body)
        return await read_head(self.reader)

    def close(self):
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class Client(mcp_sse.Client):
    """One session, with any number of concurrent POSTs."""

    def __init__(self, host, port, headers):
        super().__init__(host, port, headers, 0)
        self.lanes = []
        self.logs = []
        self.updates = []
        # Set at each log message and update.
        self.news = asyncio.Event()
        self.event_ids = set()
        self.writer = None

    @classmethod
    async def connect(cls, port, path="/mcp", host="127.0.0.1", headers=()):
        """Does the handshake, and opens the stream of messages that belong to no request."""
        self = cls(host, port, headers)
        self.endpoint = path
        await self.greet()
        await self.open_stream()
        return self

    async def open_stream(self):
        """Sends GET over a new connection."""
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port, limit=1 << 24)
        fields = [("Accept", "text/event-stream"), *self.headers]
        self.writer.write(mcp_sse.head("GET", self.endpoint, f"{self.host}:{self.port}", fields))
        status, found = await asyncio.wait_for(read_head(self.reader), 10)
        if status != 200:
            raise HttpError(status)
        self.task = asyncio.create_task(self.read_stream(found))

    async def read_stream(self, fields):
        """Handles the messages of the stream, until it ends."""
        try:
            async for id, data in events(self.reader, fields):
                self.event(id, data, None)
            self.ended = "the stream ended"
        except (OSError, asyncio.IncompleteReadError) as error:
            self.ended = repr(error)

    def event(self, id, data, asked):
        """Handles one event of the stream that `asked` (a request's id as JSON) opened."""
        if id is not None and id in self.event_ids:
            self.strays.append({"repeated event": id.decode()})
        self.event_ids.add(id)
        # An event without data only carries an id to resume from.
        if data:
            self.arrived(data, asked)

    def arrived(self, raw, asked):
        """Handles one message."""
        message = json.loads(raw)
        method, params = message.get("method"), message.get("params") or {}
        kept = {"notifications/message": self.logs, "notifications/resources/updated": self.updates}.get(method)
        if kept is not None:
            kept.append(params)
            self.news.set()
        elif method is None and json.dumps(message.get("id")) != asked:
            self.strays.append({"not its own POST": asked, **message})
        elif method == "notifications/progress" and json.dumps(params.get("progressToken")) != asked:
            self.strays.append({"not its own POST": asked, **message})
        else:
            self.take(message, raw)

    async def post(self, message):
        """Sends one message, and handles all messages of its response."""
        lane = self.lanes.pop() if self.lanes else Lane()
        try:
            status, fields = await lane.begin(self, json.dumps(message).encode())
            await self.answered(lane, status, fields, message)
        except BaseException:
            lane.close()
            raise
        if fields.get("connection", "").lower() == "close":
            lane.close()
        self.lanes.append(lane)

    async def answered(self, lane, status, fields, message):
        """Returns the response to a POST."""
        asked = json.dumps(message["id"]) if "id" in message else None
        if status == 200 and message.get("method") == "initialize" and "mcp-session-id" in fields:
            self.headers.append(("Mcp-Session-Id", fields["mcp-session-id"]))
        if status == 200 and fields.get("content-type", "").startswith("text/event-stream"):
            async for id, data in events(lane.reader, fields):
                self.event(id, data, asked)
            return
        body = b"".join([piece async for piece in read_body(lane.reader, fields)])
        if status != (202 if asked is None else 200):
            raise HttpError(status, body)
        if asked is not None:
            self.arrived(body, asked)

    async def exchange(self, method, params=None, id=None, seconds=30):
        """As with the other transport, but no response arrives after the end of its POST."""
        id = self.mint() if id is None else id
        future = self.waiting[json.dumps(id)] = asyncio.get_running_loop().create_future()
        try:
            request = {"jsonrpc": "2.0", "id": id, "method": method, "params": params or {}}
            await asyncio.wait_for(self.post(request), seconds)
            if not future.done():
                raise ConnectionError(f"the POST of request {id} ended without its answer")
            return future.result()
        finally:
            self.waiting.pop(json.dumps(id), None)

    async def greet(self, version="2025-11-25"):
        """Sends initialize and initialized; each later request names the version."""
        client = {"name": "peers", "version": "1"}
        params = {"protocolVersion": version, "capabilities": {}, "clientInfo": client}
        self.welcome = await self.request("initialize", params)
        self.headers.append(("MCP-Protocol-Version", self.welcome["protocolVersion"]))
        await self.notify("notifications/initialized")

    async def close(self):
        """Ends the session."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await mcp_sse.fetch(self.port, "DELETE", self.endpoint, self.headers, host=self.host)
        for lane in self.lanes:
            lane.close()
        if self.writer:
            self.writer.close()
        if self.task:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
