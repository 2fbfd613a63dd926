//! The protocol of the link between an edge and the gateway: its frames, and the state machines at
//! both ends.
//!
//! # The wire
//!
//! A link is a WebSocket on `/mcp/register`. Every text frame is one JSON object, except the
//! channel frames ([`frame`]) and acknowledgements ([`resume`]); binary frames are refused. If the
//! gateway requires a token, it is in the `Authorization` field of the upgrade request.
//!
//! 1. Edge to gateway, at once:
//!    `{"jsonrpc":"2.0","id":ID,"method":"register","params":{"name":NAME,"version":VERSION,
//!    "capabilities":{"mcpport":{}}}}`. `ID` is the server's id, `NAME` the name shown to clients.
//!    An older form has `name` and `id` at the top level. Without an id the gateway generates one.
//!    Without a name it uses `server-ID`.
//! 2. Gateway to edge: `{"status":"received","id":ID,"message":TEXT}`, or
//!    `{"status":"error","message":TEXT}` and a close. To an edge that offered `mcpport` the frame
//!    has `"capabilities":{"mcpport":{}}` as well.
//! 3. The gateway is the server's MCP client: `initialize`, `notifications/initialized`,
//!    `tools/list` (all pages).
//! 4. From then on each frame is one JSON-RPC message, in both directions.
//!
//! An edge that can run one process per client session offers that in step 1 by
//! `"mcpport":{"sessions":{"max":M}}`, and a gateway that will use it answers in step 2 with
//! `"mcpport":{"sessions":{}}`. The link then carries channels beside the shared process; [`frame`]
//! describes their frames. At most M channels are open at a time, all of them end with the link,
//! and the shared process is used for listing the server's tools, prompts and resources.
//!
//! An edge offers `"mcpport":{"era":PIN}` in step 1, where PIN is `auto`, `legacy` or `modern`
//! (`register --era`). A gateway that sends such an edge's server `server/discover` in place of
//! `initialize`, or before it, answers in step 2 with `"mcpport":{"era":{}}`. The edge then reports
//! each restart of a server that has got requests, also of one that was never initialized.
//!
//! If a link with the same id is alive, the new edge has to answer a WebSocket ping before step 2,
//! and then replaces the old link: the registration may have been delayed in transit, and its
//! sender may be gone.
//!
//! Each end may announce the size of the largest frame that it accepts, in bytes and including
//! everything in the frame: `"message_bytes":N` in `mcpport`, in step 1 for the edge, in step 2 for
//! the gateway. Our ends send no larger frame to an end that announced a limit, but fail the
//! request that the message belongs to ([`oversize`]). A value that is not a whole number from 1
//! sets no limit. A frame that is too large all the same ends the link (close code 1009).
//!
//! A link session may outlive its connection if both ends agree on that in the same two steps: see
//! [`resume`].
//!
//! A frame with a `status` member and without `method`, `result` and `error` is a *status frame*:
//! it is meant for the edge program itself and never reaches a child. An edge that did not offer
//! `mcpport` gets none after the first answer, because the original edge program passes every later
//! frame to its child. Our edge gets `{"status":"registered",...}` when its tools are listed, and
//! `{"status":"error",...}` when they cannot be listed.
//!
//! A link can outlive the edge's server. When the server ends, the edge answers its open requests
//! with an error (-32603) that says how it ended, with the data `{"exited":true}`. Until the server
//! is back, the edge answers each further request at once with -31002; only `initialize` waits, and
//! `server/discover` of a server that was never initialized. The edge initializes the new
//! server itself and then makes the gateway list again: it sends `{"status":"restarted"}` to a
//! gateway that has accepted its `mcpport` offer, and to any gateway
//! `notifications/tools/list_changed`, and those for prompts and resources if the server declares
//! them. On `restarted` our gateway repeats discovery from `initialize` on, which the edge answers
//! for the server, and renews the subscriptions and log levels of its clients.
//!
//! An edge that is stopped while calls run keeps the link until they are answered, for a limited
//! time. It answers each further request with -31002 and "the edge is stopping", and closes a
//! channel that is opened meanwhile with that reason. This needs no support in the gateway.
//!
//! The gateway marks a response that refuses an upgrade with the field `Mcpport-Refusal:
//! unauthorized` (or another word for the status). An edge that runs without a terminal, or was
//! registered before, assumes that a refusal without that field comes from a proxy: it tries again,
//! and keeps a session that may be resumed.
//!
//! | close code | meaning |
//! |---|---|
//! | 1000, 1001 | the sender stops |
//! | 1002, 1007, 1009 | the peer broke the WebSocket protocol, sent invalid UTF-8, or sent too large a frame |
//! | 1008 | the peer broke the rules above, or flooded |
//! | 1013 | the peer does not read; or the gateway has no memory for a large frame; as the answer to a registration: no capacity at present, or the server was too slow |
//! | 4001 | another link with the same id took over |
//! | 4403 | the name or the id belongs to another server, or the token is not for this name |
//! | 4429 | the same id took over too often; wait a minute |
//!
//! Related modules: `net::ws_link` transports the frames; `gateway` and `edge` implement the two
//! ends.

pub mod close;
pub mod first_frame;
pub mod frame;
pub mod frame_header;
pub mod handler;
pub mod handshake;
pub mod heartbeat;
pub mod link_timers;
pub mod outbound;
pub mod oversize;
pub mod resume;

/// Response header field by which our gateway marks a refused upgrade. It tells the edge that the
/// response is not from a proxy in between.
pub const REFUSAL: &str = "Mcpport-Refusal";
/// Close code: no capacity for the server at present, or its name is reserved for a lost server
/// that may come back.
pub const CLOSE_LATER: u16 = 1013;
/// Close code: another link with the same id took over.
pub const CLOSE_REPLACED: u16 = 4001;
/// Close code: the registration was refused.
pub const CLOSE_REFUSED: u16 = 4403;
/// Close code: the same id took over its own living link too often.
pub const CLOSE_TOO_OFTEN: u16 = 4429;
