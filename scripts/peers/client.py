"""Plays a scenario with the official Python SDK (1.x or 2.x, whichever is installed) and prints the outcomes.

Called with one JSON argument: `target` (`stdio`: words, `sse`: URL and `headers`, or `http`: URL of Streamable HTTP),
`prefix` and `steps`. Prints JSON lines: `{"ready": ...}` once connected, one line for each step, `{"done": true}`.

`mode` of the target is `legacy` (begins with `initialize`; the default but for `sse`), `auto` (the version that the server
prefers) or a version without `initialize`; the 1.x line knows the first alone. With `user`, a name, the client declares
elicitation, sampling and roots, and answers every question in the same way each time. `client.mjs` does the same.
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
MODERN = "2026-07-28"
LEVEL = "io.modelcontextprotocol/logLevel"


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
async def connected(target, on_message, user):
    """Opens an initialized session. Returns it with the server's description."""
    callbacks = {"message_handler": on_message, **(user.callbacks() if user else {})}
    if Client is not None:
        # The old transport is tried with the SDK's default, `auto`, which first sends `server/discover`.
        mode = target.get("mode", "auto" if "sse" in target else "legacy")
        async with Client(transport(target), mode=mode, **callbacks) as session:
            info = session.server_info and plain(session.server_info)
            said = {"serverInfo": info, "capabilities": plain(session.server_capabilities)}
            yield session, {"version": session.protocol_version, "instructions": session.instructions, **said}
    else:
        async with transport(target) as streams, ClientSession(*streams, **callbacks) as session:
            yield session, plain(await session.initialize())


class User:
    """The person and the model behind the client. Each question is remembered, and answered by its form alone."""

    def __init__(self, name):
        self.name = name
        self.asked = []

    def callbacks(self):
        return {
            "elicitation_callback": self.elicit,
            "sampling_callback": self.sample,
            "list_roots_callback": self.roots,
        }

    async def elicit(self, context, params):
        asked = self.remember("elicitation/create", params)
        return types.ElicitResult(action="accept", content=self.filled(asked["requestedSchema"]))

    async def sample(self, context, params):
        asked = self.remember("sampling/createMessage", params)
        text = f"{self.name} read: {asked['messages'][-1]['content'].get('text')}"
        content = {"type": "text", "text": text}
        answer = {"role": "assistant", "content": content, "model": "peer", "stopReason": "endTurn"}
        return types.CreateMessageResult.model_validate(answer)

    async def roots(self, context):
        self.remember("roots/list", None)
        return types.ListRootsResult.model_validate({"roots": [{"uri": "file:///peers", "name": self.name}]})

    def remember(self, method, params):
        """Keeps a question, without what differs between the eras of the protocol. Returns its parameters."""
        asked = plain(params) if params else {}
        kept = {k: v for k, v in asked.items() if k not in ("_meta", "task") and (k, v) != ("mode", "form")}
        self.asked.append({"method": method, "params": kept})
        return asked

    def filled(self, schema):
        """Returns a filled form."""
        return {name: self.value(name, rule) for name, rule in schema["properties"].items()}

    def value(self, name, rule):
        """Returns a value for a field: its default, the first choice, or one by its type."""
        if "default" in rule:
            return rule["default"]
        if rule.get("type") == "array":
            return [self.value(name, {"anyOf": rule["items"].get("anyOf"), "enum": rule["items"].get("enum")})]
        if choice := rule.get("oneOf") or rule.get("anyOf"):
            return choice[0]["const"]
        if choice := rule.get("enum"):
            return choice[0]
        formats = {"email": "peer@example.org", "uri": "https://example.org/", "date": MODERN}
        text = formats.get(rule.get("format"), f"{name} of {self.name}")
        return {"boolean": True, "integer": 7, "number": 1.5}.get(rule.get("type"), text)


class Player:
    """Plays steps against one session."""

    def __init__(self, prefix, user):
        self.prefix, self.user = prefix, user
        self.changed = asyncio.Event()
        self.told_queue = asyncio.Queue()
        self.log_level = None
        self.listening = contextlib.AsyncExitStack()

    @property
    def modern(self):
        """Whether the connection is one without `initialize`."""
        return Client is not None and self.session.protocol_version == MODERN

    async def on_message(self, message):
        """Records that the list of tools changed, and keeps all notifications for `told`."""
        message = getattr(message, "root", message)
        if type(message).__name__ == "ToolListChangedNotification":
            self.changed.set()
        if hasattr(message, "method"):
            self.told_queue.put_nowait((message.method, plain(message.params) if message.params else {}))

    async def play(self, step):
        """Plays one step. Returns its outcome."""
        kinds = {"ask", "asked", "await_tool", "cancel", "call", "discover", "level", "list", "listen", "logs", "parallel"}
        kinds |= {"silence", "told", "unlisten", "until", "until_tool", "version", "welcome"}
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
        if self.log_level and self.modern:
            more["meta"] = {LEVEL: self.log_level}
        try:
            name = self.prefix + step["call"]
            out = {"result": plain(await self.session.call_tool(name, step.get("args", {}), **more))}
        except Exception as error:
            out = {"error": describe(error)}
        return {**out, "progress": progress} if progress else out

    async def welcome(self, step):
        """Returns the server's description."""
        return self.said

    async def version(self, step):
        """Returns the negotiated version of the protocol."""
        return self.said.get("version") or self.said["protocolVersion"]

    async def discover(self, step):
        """Returns the answer to `server/discover`."""
        return await self.session.session.send_discover(MODERN)

    async def told(self, step):
        """Waits for a notification; returns the URI of an update."""
        return (await self.notification(step["told"])).get("uri")

    async def logs(self, step):
        """Waits for log messages and returns them."""
        return [await self.notification("notifications/message") for _ in range(step["logs"])]

    async def silence(self, step):
        """Waits a moment; returns the number of notifications of a kind."""
        await asyncio.sleep(0.3)
        heard = [self.told_queue.get_nowait() for _ in range(self.told_queue.qsize())]
        return sum(method == step["silence"] for method, _ in heard)

    async def notification(self, wanted):
        """Waits for a notification, and drops those before it. Returns its parameters."""
        while True:
            method, params = await self.told_queue.get()
            if method == wanted:
                return params

    async def asked(self, step):
        """Returns the different questions since the last such step, in one order."""
        unique = {json.dumps(question, sort_keys=True): question for question in self.user.asked}
        self.user.asked.clear()
        return [unique[key] for key in sorted(unique)]

    async def level(self, step):
        """Asks for log messages: of each call from now on, or of the session."""
        self.log_level = step["level"]
        if not self.modern:
            await self.session.set_logging_level(self.log_level)

    async def listen(self, step):
        """Asks for changes, in the way of the era. Returns what the server agreed to, if it says so."""
        kinds, uris = step["listen"].get("kinds", []), step["listen"].get("uris", [])
        if not self.modern:
            for uri in uris:
                await self.session.subscribe_resource(uri if Client else AnyUrl(uri))
            return None
        changes = {f"{kind}_list_changed": True for kind in kinds}
        opened = self.session.listen(**changes, resource_subscriptions=uris)
        return plain((await self.listening.enter_async_context(opened)).honored)

    async def unlisten(self, step):
        """Ends what `listen` steps began; `unlisten` is the list of their URIs."""
        for uri in [] if self.modern else step["unlisten"]:
            await self.session.unsubscribe_resource(uri if Client else AnyUrl(uri))
        await self.listening.aclose()

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
        """Returns a list in the order of the gateway's, prompts without the prefix; other servers' prompts are left out."""
        for kind, key in (("prompts", "name"), ("resources", "uri"), ("resourceTemplates", "uriTemplate")):
            if kind in result:
                result[kind] = sorted(result[kind], key=lambda item: item[key])
        if "prompts" in result:
            mine = [item for item in result["prompts"] if item["name"].startswith(self.prefix)]
            result["prompts"] = [{**item, "name": item["name"].removeprefix(self.prefix)} for item in mine]
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
    user = User(scenario["user"]) if scenario.get("user") else None
    player = Player(scenario.get("prefix", ""), user)
    async with connected(scenario["target"], player.on_message, user) as (session, welcome):
        player.session, player.said = session, welcome
        say(ready=welcome)
        async with player.listening:
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
