"""The Python mcpport 0.1.4 at the other end of the link, in both directions, with and without tokens."""

import functools
import time

import kit
from checks_sdk import play, sse, text_of
from kit import BINARY, EVERYTHING_OLD, ORIGINAL, need, need_equal, until

BEARER = "Authorization: Bearer "


def steps(name, notified=True):
    """A client lists the tools of an old server and calls two of them."""
    return [
        {"await_tool" if notified else "until_tool": f"{name}_echo"},
        {"list": True},
        {"call": f"{name}_echo", "args": {"message": "through zażółć 🦀"}},
        {"call": f"{name}_add", "args": {"a": 2, "b": 40}},
    ]


def need_works(outcomes, name):
    """Checks the outcomes of `steps`."""
    names = [tool["name"] for tool in outcomes[1]]
    for tool in ("echo", "add", "longRunningOperation", "getTinyImage"):
        need(f"{name}_{tool}" in names, f"{name}_{tool} is not among {names}")
    need_equal(text_of(outcomes[2]), "Echo: through zażółć 🦀", "answer of echo")
    need_equal(text_of(outcomes[3]), "The sum of 2 and 40 is 42.", "answer of add")


def auth(token):
    """Returns flags of a gateway, fields of a client and flags of a register."""
    if not token:
        return [], {}, []
    return ["--auth-token", token], {"Authorization": f"Bearer {token}"}, ["--header", BEARER + token]


def old_edge(world, token=None):
    """The Python `register` at our gateway, without the ten seconds that its own gateway sleeps."""
    gateway_flags, fields, register_flags = auth(token)
    _, port = world.gateway(*gateway_flags)
    edge = world.register("old", EVERYTHING_OLD, port, *register_flags, binary=ORIGINAL)
    edge.wait_log("Sending registration request", 20)
    begun = time.monotonic()
    kit.listed(port, "old_echo", headers=list(fields.items()))
    seconds = time.monotonic() - begun
    need(seconds < 4.5, f"it took {seconds:.1f} s from the registration to the listing")
    need_works(play(world, "python1", sse(port, headers=fields), steps("old")), "old")
    need(edge.alive(), f"the edge ended: {edge.tail()}")
    return f"listed {seconds:.1f} s after its registration"


def old_gateway(world, token=None):
    """Our `register` at the Python gateway, with the SDK client of its time."""
    gateway_flags, fields, register_flags = auth(token)
    _, port = world.gateway("--host", "127.0.0.1", *gateway_flags, binary=ORIGINAL)
    edge = world.register("new", EVERYTHING_OLD, port, *register_flags, host="127.0.0.1")
    need_works(play(world, "original", sse(port, headers=fields), steps("new", notified=False)), "new")
    need(edge.alive(), f"the edge ended: {edge.tail()}")


def refused(world, gateway, register):
    """A register with a wrong token is refused, with the reason."""
    _, port = world.gateway("--host", "127.0.0.1", "--auth-token", "right", binary=gateway)
    edge = world.register(
        "no", EVERYTHING_OLD, port, "--header", BEARER + "wrong", "--require-gateway", binary=register, host="127.0.0.1"
    )
    status = "401" if gateway == BINARY else "403"
    until(lambda: status in edge.log() or not edge.alive(), 20, f"the edge hears {status}; {edge.tail()}")
    if register == BINARY:
        need_equal(edge.exit(), 1, "exit code of a register whose token was refused")
    need(status in edge.log(), f"no word of {status}; {edge.tail()}")
    fields = {"Authorization": "Bearer right"}
    sdk = "python1" if gateway == BINARY else "original"
    (tools,) = play(world, sdk, sse(port, headers=fields), [{"list": True}])
    need_equal([tool["name"] for tool in tools], ["list_servers"], "tools after a refused registration")


CHECKS = {
    "compat-old-edge": (old_edge, 60),
    "compat-old-edge-token": (functools.partial(old_edge, token="T0ken-for-both"), 60),
    "compat-old-edge-refused": (functools.partial(refused, gateway=BINARY, register=ORIGINAL), 60),
    "compat-old-gateway": (old_gateway, 90),
    "compat-old-gateway-token": (functools.partial(old_gateway, token="T0ken-for-both"), 90),
    "compat-old-gateway-refused": (functools.partial(refused, gateway=ORIGINAL, register=BINARY), 60),
}
