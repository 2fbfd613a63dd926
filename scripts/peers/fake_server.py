"""A stdio MCP server in plain Python, with tools that real servers lack: slow, large, odd and failing ones.

Several run concurrently under different names; every response contains the name, so that a misrouted one is noticed.
"""

import heapq
import itertools
import json
import os
import select
import signal
import sys
import time

VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")

# Results that would change if a parser rebuilt numbers, escapes, order or unknown members.
VERBATIM = (
    '{"content":[],"structuredContent":{"z":1.0,"a":1e2,"big":12345678901234567890,"neg":-0.0}}',
    '{ "content" : [ ] , "b":2,"a":1, "nobody/knows": {"deep":[[[[null]]]]} }',
    '{"content":[{"type":"text","text":"\\u0061\\u00e9\\ud83d\\ude00\\/\\u2028"}],"_meta":{"k":"v"}}',
    '{"content":[{"type":"text","text":"zażółć 🦀 \u2028 \u0085 data: x"}],"isError":false}',
    '{"content":[{"type":"future","x":[1,2,{"y":null}]}],"isError":true,"resultType":"complete"}',
    # Valid JSON that several SDKs cannot parse: only for clients that compare bytes.
    '{"content":[{"type":"text","text":"\\ud800"}]}',
)

# Log levels, from the most to the least verbose.
LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")

# A URI that all servers with `--offers` have, and the number of their own ones.
COMMON = "common://note"
RESOURCES = 6

TEXT = {"type": "string"}
NUMBER = {"type": "number"}


def tool(name, description="", **properties):
    """Returns one entry of tools/list."""
    schema = {"type": "object", "properties": properties}
    return {"name": name, "description": description or name, "inputSchema": schema}


class Server:
    """The state of one run: listed tools, due responses, cancelled calls."""

    def __init__(self, name, stubborn, offers):
        self.name = name
        self.stubborn = stubborn
        self.offers = offers
        self.level = "info"
        self.subscribed = set()
        self.due = []
        self.order = itertools.count()
        self.running = {}
        self.cancelled = []
        self.calls = 0
        self.asked = {}
        self.tools = [
            tool("echo", "Says it again: zażółć 🦀", text=TEXT),
            tool("big", "A long text", bytes=NUMBER),
            tool("sleep", "Answers late", ms=NUMBER, text=TEXT),
            tool("fail", "Answers with isError", text=TEXT),
            tool("error", "Answers with a JSON-RPC error", code=NUMBER, message=TEXT, data={}),
            tool("progress", "Tells of steps", steps=NUMBER, ms=NUMBER, text=TEXT),
            tool("crash", "Ends the process without an answer"),
            tool("list_changed", "Offers one tool more", tool=TEXT),
            tool("cancelled", "Texts of the calls that were cancelled"),
            tool("count", "Calls so far, this one left out"),
            tool("verbatim", "A result of odd bytes", index=NUMBER),
            tool("env", "The environment of this process"),
            tool("noise", "Says nonsense on stdout and stderr first"),
            tool("ask", "Asks the client something", method=TEXT),
            tool("pid", "The id of this process"),
        ]
        if offers:
            self.tools += [
                tool("touch", "Says that a resource changed", uri=TEXT, text=TEXT),
                tool("log", "Writes a log message", level=TEXT, text=TEXT),
                tool("wishes", "Level and subscriptions that this process was told of"),
            ]

    # Input

    def message(self, message):
        """Handles one message from the client."""
        method, params = message.get("method"), message.get("params") or {}
        if method is None:
            self.answered(message)
        elif "id" not in message:
            self.notification(method, params)
        elif method == "initialize":
            self.result(message["id"], self.greeting(params))
        elif method == "ping":
            self.result(message["id"], {})
        elif method == "tools/list":
            self.result(message["id"], {"tools": self.tools})
        elif method == "tools/call":
            self.call(message["id"], params)
        elif self.offers and (handler := getattr(self, f"offer_{method.replace('/', '_')}", None)):
            self.result(message["id"], handler(params))
        else:
            self.error(message["id"], -32601, f"no method {method}")

    def greeting(self, params):
        """Returns the result of initialize."""
        asked = params.get("protocolVersion")
        more = {"resources": {"subscribe": True}, "logging": {}} if self.offers else {}
        return {
            "protocolVersion": asked if asked in VERSIONS else VERSIONS[-1],
            "capabilities": {"tools": {"listChanged": True}, **more},
            "serverInfo": {"name": self.name, "version": "1"},
        }

    def notification(self, method, params):
        """Forgets a cancelled call, which is never answered."""
        if method == "notifications/cancelled":
            text = self.running.pop(key(params.get("requestId")), None)
            if text is not None:
                self.cancelled.append(text)

    def answered(self, message):
        """Handles the client's response to our request: passes it to the call that waits for it."""
        waiting = self.asked.pop(message.get("id"), None)
        if waiting is not None:
            self.text(waiting, json.dumps({k: v for k, v in message.items() if k in ("result", "error")}))

    def call(self, id, params):
        """Starts one tool."""
        name, arguments = params.get("name"), params.get("arguments") or {}
        token = (params.get("_meta") or {}).get("progressToken")
        handler = getattr(self, f"tool_{name}", None)
        if handler is None:
            known = any(t["name"] == name for t in self.tools)
            return self.text(id, "added") if known else self.error(id, -32602, f"no tool {name}")
        handler(id, arguments, token)
        self.calls += 1

    # Features of a server with `--offers`, besides tools

    def offer_resources_list(self, params):
        """Its own resources, and one that all servers have under the same URI."""
        uris = [*(f"{self.name}://{n}" for n in range(RESOURCES)), COMMON]
        return {"resources": [{"uri": uri, "name": f"{self.name} {uri}"} for uri in uris]}

    def offer_resources_templates_list(self, params):
        return {"resourceTemplates": []}

    def offer_resources_read(self, params):
        return {"contents": [{"uri": params["uri"], "text": f"{self.name}:{params['uri']}"}]}

    def offer_resources_subscribe(self, params):
        self.subscribed.add(params["uri"])
        return {}

    def offer_resources_unsubscribe(self, params):
        self.subscribed.discard(params["uri"])
        return {}

    def offer_logging_setLevel(self, params):
        self.level = params["level"]
        return {}

    def tool_touch(self, id, arguments, token):
        uri, text = arguments["uri"], arguments["text"]
        if uri in self.subscribed:
            self.tell("resources/updated", {"uri": uri, "_meta": {"text": text}})
        self.text(id, f"{self.name}:{text}")

    def tool_log(self, id, arguments, token):
        level, text = arguments["level"], arguments["text"]
        if LEVELS.index(level) >= LEVELS.index(self.level):
            self.tell("message", {"level": level, "logger": self.name, "data": text})
        self.text(id, f"{self.name}:{text}")

    def tool_wishes(self, id, arguments, token):
        self.text(id, json.dumps([self.level, sorted(self.subscribed)]))

    # Tools

    def tool_echo(self, id, arguments, token):
        self.text(id, f"{self.name}:{arguments.get('text')}")

    def tool_big(self, id, arguments, token):
        size, unit = int(arguments["bytes"]), f"{self.name}-0123456789"
        self.text(id, (unit * (size // len(unit) + 1))[:size])

    def tool_sleep(self, id, arguments, token):
        self.running[key(id)] = arguments.get("text")
        self.progress(token, 0, 1, f"{self.name}:{arguments.get('text')}:started")
        self.later(arguments["ms"] / 1000, lambda: self.finish(id, arguments))

    def tool_fail(self, id, arguments, token):
        self.text(id, f"{self.name}:{arguments.get('text')}", isError=True)

    def tool_error(self, id, arguments, token):
        self.error(id, arguments.get("code"), arguments.get("message"), arguments.get("data"))

    def tool_progress(self, id, arguments, token):
        steps, pause = int(arguments["steps"]), arguments.get("ms", 0) / 1000
        self.running[key(id)] = arguments.get("text")
        for step in range(1, steps + 1):
            says = f"{self.name}:{arguments.get('text')}:{step}"
            self.later(pause * step, lambda step=step, says=says: self.step(id, token, step, steps, says))
        self.later(pause * steps, lambda: self.finish(id, arguments))

    def tool_crash(self, id, arguments, token):
        os._exit(3)

    def tool_list_changed(self, id, arguments, token):
        self.tools.append(tool(arguments["tool"]))
        self.send({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        self.text(id, "changed")

    def tool_cancelled(self, id, arguments, token):
        self.text(id, json.dumps(self.cancelled))

    def tool_count(self, id, arguments, token):
        self.text(id, str(self.calls))

    def tool_verbatim(self, id, arguments, token):
        self.line(f'{{"jsonrpc":"2.0","id":{json.dumps(id)},"result":{VERBATIM[int(arguments["index"])]}}}')

    def tool_env(self, id, arguments, token):
        self.text(id, json.dumps(dict(os.environ), sort_keys=True))

    def tool_noise(self, id, arguments, token):
        self.line("this is not JSON")
        self.line('{"neither": "request nor answer"}')
        self.line("")
        sys.stderr.write("noise with \x1b[31mcolour\x1b[0m\r and \x07 bell\n")
        sys.stderr.flush()
        self.text(id, f"{self.name}:after the noise")

    def tool_ask(self, id, arguments, token):
        question = f"{self.name}-{next(self.order)}"
        self.asked[question] = id
        self.send({"jsonrpc": "2.0", "id": question, "method": arguments["method"]})

    def tool_pid(self, id, arguments, token):
        self.text(id, str(os.getpid()))

    # Output

    def finish(self, id, arguments):
        """Responds, unless the call was cancelled."""
        if self.running.pop(key(id), None) is not None:
            self.text(id, f"{self.name}:{arguments.get('text')}")

    def step(self, id, token, step, steps, says):
        if key(id) in self.running:
            self.progress(token, step, steps, says)

    def progress(self, token, step, steps, says):
        if token is not None:
            self.tell("progress", {"progressToken": token, "progress": step, "total": steps, "message": says})

    def tell(self, kind, params):
        """Sends a notification."""
        self.send({"jsonrpc": "2.0", "method": f"notifications/{kind}", "params": params})

    def text(self, id, text, **more):
        self.result(id, {"content": [{"type": "text", "text": text}], **more})

    def result(self, id, result):
        self.send({"jsonrpc": "2.0", "id": id, "result": result})

    def error(self, id, code, message, data=None):
        error = {"code": code, "message": message}
        if data is not None:
            error["data"] = data
        self.send({"jsonrpc": "2.0", "id": id, "error": error})

    def send(self, message):
        self.line(json.dumps(message, ensure_ascii=False, separators=(",", ":")))

    def line(self, text):
        sys.stdout.buffer.write(text.encode() + b"\n")

    def later(self, seconds, action):
        heapq.heappush(self.due, (time.monotonic() + seconds, next(self.order), action))

    # The loop

    def run(self):
        """Reads lines and sends what is due, until the input ends."""
        pending = b""
        while True:
            sys.stdout.buffer.flush()
            now = time.monotonic()
            while self.due and self.due[0][0] <= now:
                heapq.heappop(self.due)[2]()
            sys.stdout.buffer.flush()
            wait = max(0, self.due[0][0] - time.monotonic()) if self.due else None
            if not select.select([0], [], [], wait)[0]:
                continue
            chunk = os.read(0, 1 << 16)
            if not chunk:
                return self.linger()
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                if line.strip():
                    self.message(json.loads(line))

    def linger(self):
        """Handles the end of the input; a stubborn server stays."""
        while self.stubborn:
            signal.pause()


def key(id):
    """Returns a request id as a table key: `1` and `"1"` differ."""
    return json.dumps(id)


def main():
    name, stubborn = sys.argv[1], "--stubborn" in sys.argv
    if stubborn:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
    if "--stderr" in sys.argv:
        sys.stderr.write(f"{name} is up\n")
        sys.stderr.flush()
    Server(name, stubborn, "--offers" in sys.argv).run()


if __name__ == "__main__":
    main()
