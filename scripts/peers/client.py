"""Plays a scenario with the official Python SDK (1.x or 2.x, whichever is installed) and prints the outcomes.

Called with one JSON argument: `target` (`stdio`: words, `sse`: URL and `headers`, or `http`: URL of Streamable HTTP),
`prefix` and `steps`. Prints JSON lines: `{"ready": ...}` once connected, one line for each step, `{"done": true}`. `client.mjs` does the same.
"""

import asyncio
import contextlib
import json
import os
import sys

from mcp import ClientSession, StdioServerParameters, types
from mcp.client.sse import sse_client
from mcp.client.stdio import stdio_client
from pydantic import AnyUrl

try:
    from mcp.client.streamable_http import streamable_http_client
except ImportError:
    # The version that the Python mcpport needs has another name for it; with that one only SSE is played.
    streamable_http_client = None

try:
    from mcp.client import Client
except ImportError:
    Client = None

STEP_SECONDS = 60


def say(**line):
    """Prints one line of the transcript."""
    print(json.dumps(line), flush=True)


def plain(model):
    """Returns a result as received, without added defaults."""
    return model.model_dump(mode="json", by_alias=True, exclude_unset=True)


def transport(target):
    """Opens the transport to the server."""
    if "sse" in target:
        return sse_client(target["sse"], headers=target.get("headers"))
    if "http" in target:
        return http_client(target["http"])
    command, *arguments = target["stdio"]
    return stdio_client(StdioServerParameters(command=command, args=arguments), errlog=open(os.devnull, "w"))


@contextlib.asynccontextmanager
async def http_client(url):
    """Opens Streamable HTTP; the 1.x SDK also returns the session's id."""
    async with streamable_http_client(url) as streams:
        yield streams[:2]


@contextlib.asynccontextmanager
async def connected(target, on_message):
    """Opens an initialized session. Returns it with the server's description."""
    if Client is not None:
        # The default mode first tries `server/discover`. A direct server must use the same protocol version.
        mode = "legacy" if "stdio" in target else "auto"
        async with Client(transport(target), mode=mode, message_handler=on_message) as session:
            said = {"serverInfo": plain(session.server_info), "capabilities": plain(session.server_capabilities)}
            yield session, {"version": session.protocol_version, "instructions": session.instructions, **said}
    else:
        async with transport(target) as streams, ClientSession(*streams, message_handler=on_message) as session:
            yield session, plain(await session.initialize())


class Player:
    """Plays steps against one session."""

    def __init__(self, prefix):
        self.prefix = prefix
        self.changed = asyncio.Event()
        self.told_queue = asyncio.Queue()

    async def on_message(self, message):
        """Records that the list of tools changed, and keeps all notifications for `told`."""
        message = getattr(message, "root", message)
        if type(message).__name__ == "ToolListChangedNotification":
            self.changed.set()
        if hasattr(message, "method"):
            self.told_queue.put_nowait((message.method, plain(message.params) if message.params else {}))

    async def play(self, step):
        """Plays one step. Returns its outcome."""
        kinds = {"ask", "await_tool", "cancel", "call", "list", "parallel", "told", "until", "until_tool", "welcome"}
        (kind,) = set(step) & kinds
        return await asyncio.wait_for(getattr(self, kind)(step), STEP_SECONDS)

    async def tools(self):
        """Returns all tools whose name begins with the prefix, without it, sorted by name as the gateway lists them."""
        tools, cursor = [], None
        while True:
            more = {"cache_mode": "bypass"} if Client else {}
            page = await self.session.list_tools(**({"cursor": cursor} if cursor else {}), **more)
            tools += [plain(tool) for tool in page.tools]
            cursor = getattr(page, "nextCursor", None) or getattr(page, "next_cursor", None)
            if not cursor:
                break
        tools = [tool for tool in tools if tool["name"].startswith(self.prefix)]
        tools = [{**tool, "name": tool["name"].removeprefix(self.prefix)} for tool in tools]
        return sorted(tools, key=lambda tool: tool["name"])

    async def await_tool(self, step):
        """Waits for a tool by notifications alone."""
        while True:
            self.changed.clear()
            if step["await_tool"] in [tool["name"] for tool in await self.tools()]:
                return None
            await self.changed.wait()

    async def until_tool(self, step):
        """Lists until a tool is there: for gateways without list-changed notifications."""
        while step["until_tool"] not in [tool["name"] for tool in await self.tools()]:
            await asyncio.sleep(0.2)

    async def list(self, step):
        return await self.tools()

    async def call(self, step):
        """Calls a tool, with progress and logs."""
        progress = []

        async def on_progress(done, total, message):
            progress.append([done, total, message])
            if "reached" in step:
                step["reached"].set()

        more = {"progress_callback": on_progress} if step.get("progress") else {}
        try:
            name = self.prefix + step["call"]
            out = {"result": plain(await self.session.call_tool(name, step.get("args", {}), **more))}
        except Exception as error:
            out = {"error": describe(error)}
        return {**out, "progress": progress} if progress else out

    async def welcome(self, step):
        """Returns the server's description."""
        return self.said

    async def told(self, step):
        """Waits for a notification; returns the URI of an update."""
        while True:
            method, params = await self.told_queue.get()
            if method == step["told"]:
                return params.get("uri")

    async def ask(self, step):
        """Sends any request other than a call, by the SDK's method for it."""
        method, params = step["ask"], step.get("params", {})
        uri = params.get("uri") if Client else params.get("uri") and AnyUrl(params["uri"])
        fresh = {"cache_mode": "bypass"} if Client else {}
        ways = {
            "completion/complete": lambda s: s.complete(self.reference(params["ref"]), params["argument"]),
            "logging/setLevel": lambda s: s.set_logging_level(params["level"]),
            "ping": lambda s: s.send_ping(),
            "prompts/get": lambda s: s.get_prompt(self.prefix + params["name"], params.get("arguments")),
            "prompts/list": lambda s: s.list_prompts(**fresh),
            "resources/list": lambda s: s.list_resources(**fresh),
            "resources/read": lambda s: s.read_resource(uri, **fresh),
            "resources/subscribe": lambda s: s.subscribe_resource(uri),
            "resources/templates/list": lambda s: s.list_resource_templates(**fresh),
            "resources/unsubscribe": lambda s: s.unsubscribe_resource(uri),
        }
        try:
            return self.bare(plain(await ways[method](self.session)))
        except Exception as error:
            return {"error": describe(error)}

    def reference(self, ref):
        """Returns the reference to complete."""
        if ref["type"] == "ref/prompt":
            return types.PromptReference(type="ref/prompt", name=self.prefix + ref["name"])
        return types.ResourceTemplateReference(type="ref/resource", uri=ref["uri"])

    def bare(self, result):
        """Returns a list in the order of the gateway's, prompts without the prefix."""
        for kind, key in (("prompts", "name"), ("resources", "uri"), ("resourceTemplates", "uriTemplate")):
            if kind in result:
                items = sorted(result[kind], key=lambda item: item[key])
                result[kind] = [{**i, "name": i["name"].removeprefix(self.prefix)} if kind == "prompts" else i for i in items]
        return result

    async def parallel(self, step):
        return await asyncio.gather(*(self.call(one) for one in step["parallel"]))

    async def cancel(self, step):
        """Cancels a call after its first progress."""
        reached = asyncio.Event()
        # Private, but this SDK has no other way to get the id for the cancellation.
        id = getattr(self.session, "_request_id", None)
        task = asyncio.create_task(self.call({**step["cancel"], "progress": True, "reached": reached}))
        await reached.wait()
        if Client is None:
            params = types.CancelledNotificationParams(requestId=id, reason="no longer wanted")
            note = types.CancelledNotification(method="notifications/cancelled", params=params)
            await self.session.send_notification(types.ClientNotification(note))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def until(self, step):
        """Repeats a call until it returns the wanted text."""
        while True:
            out = await self.call({"call": step["until"], "args": step.get("args", {})})
            if out.get("result", {}).get("content", [{}])[0].get("text") == step["text"]:
                return None
            await asyncio.sleep(0.05)


def describe(error):
    """Returns an error response, or the SDK's own error."""
    inner = getattr(error, "error", None)
    if inner is not None and hasattr(inner, "code"):
        return plain(inner)
    return {"sdk": f"{type(error).__name__}: {error}"}


async def main():
    scenario = json.loads(sys.argv[1])
    player = Player(scenario.get("prefix", ""))
    async with connected(scenario["target"], player.on_message) as (session, welcome):
        player.session, player.said = session, welcome
        say(ready=welcome)
        for step in scenario["steps"]:
            say(out=await player.play(step))
        say(done=True)


def innermost(error):
    """Returns the error inside a task group's exception."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


try:
    asyncio.run(main())
except BaseException as error:
    error = innermost(error)
    say(broken=f"{type(error).__name__}: {error}")
    sys.exit(1)
