"""A small server with the official Python SDK 2.x, over stdio: what the everything-servers cannot show.

It reports the calls that were cancelled and those that were confirmed, and announces changes of a resource.
"""

import asyncio
import json

from mcp.server.mcpserver import Context, MCPServer
from mcp.types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult

WATCHED = "peers://watched"

server = MCPServer(name="sdk", version="1")
cancelled: list[str] = []
confirmed: list[str] = []
SURE = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}


@server.tool(structured_output=False)
async def sleep(text: str, ms: int, ctx: Context) -> str:
    """Reports progress, then sleeps; remembers the text if it is cancelled."""
    await ctx.report_progress(progress=1, total=2, message="asleep")
    try:
        await asyncio.sleep(ms / 1000)
    except asyncio.CancelledError:
        cancelled.append(text)
        raise
    return text


@server.tool(name="cancelled", structured_output=False)
def list_cancelled() -> str:
    """Returns the texts of the cancelled calls."""
    return json.dumps(cancelled)


@server.tool(structured_output=False)
async def confirm(text: str, ctx: Context) -> str | InputRequiredResult:
    """Asks once, then remembers the text."""
    if ctx.request_state is None:
        question = ElicitRequest(params=ElicitRequestFormParams(message=f"Sure of {text}?", requested_schema=SURE))
        return InputRequiredResult(input_requests={"sure": question}, request_state="asked")
    confirmed.append(text)
    return f"confirmed {text}"


@server.tool(name="confirmed", structured_output=False)
def list_confirmed() -> str:
    """Returns the texts of the confirmed calls."""
    return json.dumps(confirmed)


@server.tool(structured_output=False)
async def touch(ctx: Context) -> str:
    """Announces that the resource changed."""
    await ctx.notify_resource_updated(WATCHED)
    return "touched"


@server.resource(WATCHED)
def watched() -> str:
    """A resource that can be watched."""
    return "watched"


server.run("stdio")
