"""An MCP client over the 2024-11-05 transport, on bare sockets.

It keeps the received bytes unchanged, and records unexpected messages in `strays`, so that a check can notice a duplicate or
misrouted message that an SDK would ignore.
"""

import asyncio
import json


class HttpError(Exception):
    """The server responded with an unexpected status."""

    def __init__(self, status, body=b""):
        super().__init__(f"HTTP status {status}: {body[:200]!r}")
        self.status = status


class McpError(Exception):
    """The response was an error object."""

    def __init__(self, error):
        super().__init__(json.dumps(error))
        self.error = error


async def read_head(reader):
    """Returns status and header fields (lower-case names)."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    fields = {}
    for line in rest:
        name, found, value = line.partition(":")
        if found:
            fields[name.lower()] = value.strip()
    return int(first.split(" ")[1]), fields


async def read_body(reader, fields):
    """Yields pieces of a body as they arrive."""
    if "chunked" in fields.get("transfer-encoding", "").lower():
        while True:
            size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
            piece = await reader.readexactly(size)
            await reader.readexactly(2)
            if not size:
                return
            yield piece
    elif "content-length" in fields:
        yield await reader.readexactly(int(fields["content-length"]))
    else:
        while piece := await reader.read(1 << 16):
            yield piece


def head(method, target, host, headers, length=None):
    """Returns the bytes of a request head."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if length is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {length}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def fetch(port, method, target, headers=(), body=None, host="127.0.0.1"):
    """Sends one request over a new connection. Returns status, fields and body."""
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 24)
    try:
        fields = [("Connection", "close"), *headers]
        length = None if body is None else len(body)
        writer.write(head(method, target, f"{host}:{port}", fields, length) + (body or b""))
        status, found = await read_head(reader)
        data = b"" if status == 101 else b"".join([piece async for piece in read_body(reader, found)])
        return status, found, data
    finally:
        writer.close()


class Poster:
    """A kept-alive connection for POSTs, one after the other."""

    def __init__(self, host, port):
        self.host, self.port = host, port
        self.writer = None
        self.lock = asyncio.Lock()

    async def post(self, target, headers, body):
        async with self.lock:
            if self.writer is None:
                self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
            self.writer.write(head("POST", target, f"{self.host}:{self.port}", headers, len(body)) + body)
            status, fields = await read_head(self.reader)
            answer = b"".join([piece async for piece in read_body(self.reader, fields)])
            if fields.get("connection", "").lower() == "close":
                self.close()
            if status != 202:
                raise HttpError(status, answer)

    def close(self):
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class Client:
    """One session. Ids count from 0, like those of every other client."""

    def __init__(self, host, port, headers, posters):
        self.host, self.port, self.headers = host, port, list(headers)
        self.posters = [Poster(host, port) for _ in range(posters)]
        self.turn = 0
        self.next_id = 0
        self.waiting = {}
        self.progress = {}
        self.strays = []
        self.list_changes = 0
        self.changed = asyncio.Event()
        self.ended = None
        self.task = None

    @classmethod
    async def connect(cls, port, path="/sse", host="127.0.0.1", headers=(), posters=1, greet=True):
        """Opens the stream, reads the endpoint and does the handshake."""
        self = cls(host, port, headers, posters)
        self.reader, self.writer = await asyncio.open_connection(host, port, limit=1 << 24)
        fields = [("Accept", "text/event-stream"), *self.headers]
        self.writer.write(head("GET", path, f"{host}:{port}", fields))
        status, found = await asyncio.wait_for(read_head(self.reader), 10)
        if status != 200:
            self.writer.close()
            raise HttpError(status)
        endpoint = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self.listen(found, endpoint))
        self.endpoint = await asyncio.wait_for(endpoint, 10)
        if greet:
            await self.greet()
        return self

    async def greet(self, version="2025-11-25"):
        """Sends initialize and initialized."""
        client = {"name": "peers", "version": "1"}
        params = {"protocolVersion": version, "capabilities": {}, "clientInfo": client}
        self.welcome = await self.request("initialize", params)
        await self.notify("notifications/initialized")

    async def listen(self, fields, endpoint):
        """Reads events until the stream ends."""
        rest = b""
        try:
            async for piece in read_body(self.reader, fields):
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    self.line(line.rstrip(b"\r"), endpoint)
            self.ended = "the stream ended"
        except (OSError, asyncio.IncompleteReadError) as error:
            self.ended = repr(error)
        finally:
            for future in [*self.waiting.values(), endpoint]:
                if not future.done():
                    future.set_exception(ConnectionError(self.ended or "closed"))
                    # Recorded here, because nobody may be waiting any more.
                    future.exception()

    def line(self, line, endpoint):
        """Handles one line of the event stream; an event here never has two data lines."""
        if line.startswith(b"event:"):
            self.event = line[6:].strip()
        elif line.startswith(b"data:"):
            data = line[5:].removeprefix(b" ")
            if getattr(self, "event", b"message") == b"endpoint":
                endpoint.set_result(data.decode())
            else:
                self.message(data)
        elif not line:
            self.event = b"message"

    def message(self, raw):
        """Passes one message to its waiting caller."""
        self.take(json.loads(raw), raw)

    def take(self, message, raw):
        """The same, for a parsed message."""
        method, params = message.get("method"), message.get("params") or {}
        if method is None:
            future = self.waiting.pop(json.dumps(message.get("id")), None)
            if future is None or future.done():
                self.strays.append(message)
            else:
                future.set_result((message, raw))
        elif method == "notifications/tools/list_changed":
            self.list_changes += 1
            self.changed.set()
        elif method == "notifications/progress" and json.dumps(params.get("progressToken")) in self.progress:
            self.progress[json.dumps(params["progressToken"])](params)
        else:
            self.strays.append(message)

    async def post(self, message):
        """Sends one message."""
        self.turn += 1
        poster = self.posters[self.turn % len(self.posters)]
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        await poster.post(self.endpoint, self.headers, body)

    async def notify(self, method, params=None):
        await self.post({"jsonrpc": "2.0", "method": method, "params": params or {}})

    def mint(self):
        """Returns the next id."""
        self.next_id += 1
        return self.next_id - 1

    async def exchange(self, method, params=None, id=None, seconds=30):
        """Sends a request. Returns the whole response and its bytes."""
        id = self.mint() if id is None else id
        key = json.dumps(id)
        future = self.waiting[key] = asyncio.get_running_loop().create_future()
        try:
            await self.post({"jsonrpc": "2.0", "id": id, "method": method, "params": params or {}})
            return await asyncio.wait_for(future, seconds)
        finally:
            self.waiting.pop(key, None)

    async def request(self, method, params=None, id=None, seconds=30):
        """Sends a request. Returns its result, or raises McpError."""
        message, _ = await self.exchange(method, params, id, seconds)
        if "error" in message:
            raise McpError(message["error"])
        return message["result"]

    async def call(self, name, seconds=30, **arguments):
        """Calls a tool."""
        return await self.request("tools/call", {"name": name, "arguments": arguments}, seconds=seconds)

    async def text(self, name, seconds=30, **arguments):
        """Calls a tool that returns one text."""
        result = await self.call(name, seconds, **arguments)
        return result["content"][0]["text"]

    async def tools(self):
        """Returns the names of all tools."""
        names, cursor = [], None
        while True:
            page = await self.request("tools/list", {"cursor": cursor} if cursor else {})
            names += [tool["name"] for tool in page["tools"]]
            cursor = page.get("nextCursor")
            if cursor is None:
                return names

    async def until_listed(self, *wanted, gone=(), seconds=20):
        """Waits, by list_changed notifications alone, until tools are listed (and others are not)."""

        async def wait():
            while True:
                self.changed.clear()
                names = await self.tools()
                if set(wanted) <= set(names) and not set(gone) & set(names):
                    return names
                await self.changed.wait()

        return await asyncio.wait_for(wait(), seconds)

    async def close(self):
        """Ends the session."""
        for poster in self.posters:
            poster.close()
        self.writer.close()
        if self.task:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
