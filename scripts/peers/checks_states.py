"""The state of a question, which a client of 2026-07-28 returns with its answer, is good for its own call alone."""

import json
import urllib.error
import urllib.request

import kit
from checks_sdk import text_of
from eras import MODERN, PINNED, RESERVED
from kit import need_equal, short


class Raw:
    """Sends single requests of 2026-07-28, as one principal."""

    def __init__(self, port, name, token):
        self.url = f"http://127.0.0.1:{port}/servers/{name}/mcp"
        self.token = token

    def call(self, tool, arguments, **more):
        """Calls a tool. Returns the response."""
        meta = {f"{RESERVED}protocolVersion": MODERN, f"{RESERVED}clientCapabilities": {"elicitation": {}}}
        params = {"name": tool, "arguments": arguments, "_meta": meta, **more}
        fields = {
            "Accept": "application/json, text/event-stream",
            "Authorization": f"Bearer {self.token}",
            "Content-Type": "application/json",
            "MCP-Protocol-Version": MODERN,
            "Mcp-Method": "tools/call",
            "Mcp-Name": tool,
        }
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
        request = urllib.request.Request(self.url, body, fields)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refused:
            return json.load(refused)

    def asked(self, text):
        """Calls the tool that asks. Returns the state of the question."""
        result = self.call("confirm", {"text": text}).get("result", {})
        need_equal(result.get("resultType"), "input_required", f"kind of {short(result)}")
        return result["requestState"]

    def answered(self, text, state, tool="confirm"):
        """Answers the question. Returns the response."""
        answers = {"sure": {"action": "accept", "content": {"sure": True}}}
        return self.call(tool, {"text": text}, inputResponses=answers, requestState=state)


def states(world):
    """The state of a question is good for its own call alone: of one principal, one tool, one process, unaltered."""
    tokens = ("--auth-token", "client@ann:A", "--auth-token", "client@bob:B", "--auth-token", "register:R")
    _, port = world.gateway(*tokens)
    ann, bob = Raw(port, "sdk", "A"), Raw(port, "sdk", "B")
    edge = world.register("sdk", kit.SDK_SERVER, port, *PINNED, "--header", "Authorization: Bearer R")
    kit.listed(port, "sdk_confirm", seconds=60, headers=[("Authorization", "Bearer A")])

    def need_refused(answer, what):
        need_equal(answer.get("error", {}).get("code"), -32602, f"code for {what}: {short(answer)}")

    def confirmed():
        return ann.call("confirmed", {}).get("result", {}).get("content", [{}])[0].get("text")

    state = ann.asked("one")
    need_refused(bob.answered("one", state), "the state of another principal")
    middle = len(state) // 2
    changed = "A" if state[middle] != "A" else "B"
    need_refused(ann.answered("one", state[:middle] + changed + state[middle + 1 :]), "an altered state")
    need_refused(ann.answered("one", state + "x"), "a state with something behind it")
    need_refused(ann.answered("one", state, tool="touch"), "the state of another tool")
    need_refused(ann.answered("two", state), "the state of other arguments")
    need_equal(confirmed(), "[]", "what was executed")
    need_equal(text_of(ann.answered("one", state)), "confirmed one", "answer to the right state")
    kept = ann.asked("three")
    kit.kill_all(kit.descendants(edge.pid))
    kit.until(lambda: confirmed() == "[]", 30, "a new process answers")
    need_refused(ann.answered("three", kept), "the state of an earlier process")
    need_equal(confirmed(), "[]", "what the new process executed")


CHECKS = {"modern-states": (states, 120)}
