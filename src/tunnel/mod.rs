//! The link between an edge box and the gateway: what its frames mean, and the machines at its two ends.
//!
//! # The wire
//!
//! A link is a WebSocket on `/mcp/register`. Every text frame is one JSON object; binary frames are refused.
//! The token, if the gateway wants one, is in the `Authorization` field of the upgrade request.
//!
//! 1. Edge to gateway, at once: `{"jsonrpc":"2.0","id":ID,"method":"register","params":{"name":NAME,"version":VERSION,
//!    "capabilities":{"mcpport":{}}}}`. `ID` is the server's identity, `NAME` what clients see. An older form has `name`
//!    and `id` at the top level. No id: the gateway mints one. No name: `server-ID`.
//! 2. Gateway to edge: `{"status":"received","id":ID,"message":TEXT}`, or `{"status":"error","message":TEXT}` and a close.
//!    To an edge that offered `mcpport` the frame has `"capabilities":{"mcpport":{}}` as well.
//! 3. The gateway is the server's MCP client: `initialize`, `notifications/initialized`, `tools/list` (all pages).
//! 4. From then on each frame is one JSON-RPC message, in both directions.
//!
//! An edge that can give each client session a process of its own says so in step 1 by
//! `"mcpport":{"sessions":{"max":M}}`, and a gateway that will make use of it answers in step 2 with
//! `"mcpport":{"sessions":{}}`. Then there are channels beside the shared process; their frames are in [`frame`].
//! At most M of them are open at a time, all of them end with the link, and the shared process serves for listing
//! what the server offers.
//!
//! Who registers with the id of a server whose link is alive has to answer a WebSocket ping before step 2, and takes over
//! then: a frame may be long under way, and its sender gone.
//!
//! Each end may tell the largest frame that it accepts, in bytes and with everything that stands in it: `"message_bytes":N`
//! in `mcpport`, in step 1 what the edge accepts, in step 2 what the gateway accepts. Our ends send no larger one to an end
//! that told it, but fail the request that the message belongs to ([`oversize`]). A value that is no whole number from 1 on
//! tells nothing, and a frame that is too large all the same ends the link (close code 1009).
//!
//! A conversation may outlive its connection where both ends say so in the same two steps: see [`resume`].
//!
//! A frame with a `status` member and without `method`, `result` and `error` is a *status frame*: it is meant for the edge
//! program itself and never reaches a child. To an edge that did not offer `mcpport` none is sent after the first answer,
//! because the original program hands every later frame to its child; ours is told `{"status":"registered",...}` when its
//! tools are listed, and `{"status":"error",...}` when they cannot be.
//!
//! A link can live longer than the edge's server. When the server ends, the edge answers what it left unanswered with an
//! error (-32603) that says how it ended, and until it is back each further request at once with -31002; only
//! `initialize` waits. The edge initializes the new one itself and then has the gateway list again: it sends
//! `{"status":"restarted"}` to a gateway that has answered its `mcpport` offer, and to any gateway
//! `notifications/tools/list_changed`, and those for prompts and resources where the server declares them. At
//! `restarted` our gateway begins its conversation anew, from `initialize` on, which the edge answers for the server;
//! and it asks again for the subscriptions and log levels of its clients.
//!
//! An edge that is asked to stop while calls run keeps the link until they are answered, for a limited time, and answers each
//! further request with -31002 and "the edge is stopping"; it closes a channel that is opened meanwhile with that reason. A
//! gateway need not know of this.
//!
//! The gateway marks a response that refuses an upgrade by the field `Mcpport-Refusal: unauthorized` (or another word for
//! the status). An edge that runs without a terminal, or was registered before, takes a refusal without that mark for the
//! word of a proxy: it tries again, and keeps what may be resumed.
//!
//! | close code | meaning |
//! |---|---|
//! | 1000, 1001 | the sender stops |
//! | 1002, 1007, 1009 | the peer broke the WebSocket protocol, sent no UTF-8, sent too much |
//! | 1008 | the peer broke the rules above, or flooded |
//! | 1013 | the peer does not read; the gateway has no memory for a large frame; to a registration: there is no room at present, or the server was too slow |
//! | 4001 | another link with the same id took over |
//! | 4403 | the name or the id belongs to another server, or the token is not for this name |
//! | 4429 | the same id took over too often; wait a minute |
//!
//! Neighbours: `net::ws_link` moves the frames; `gateway` and `edge` own the two ends.

pub mod frame;
pub mod frame_header;
pub mod handshake;
pub mod heartbeat;
pub mod oversize;
pub mod resume;

/// Field of the responses by which our gateway refuses an upgrade: it tells the edge that no proxy in between wrote them.
pub const REFUSAL: &str = "Mcpport-Refusal";
/// Close code: there is no room for the server at present, or its name is kept for another that may come back.
pub const CLOSE_LATER: u16 = 1013;
/// Close code: another link with the same id took over.
pub const CLOSE_REPLACED: u16 = 4001;
/// Close code: the registration was refused.
pub const CLOSE_REFUSED: u16 = 4403;
/// Close code: the same id took over its own living link too often.
pub const CLOSE_TOO_OFTEN: u16 = 4429;
