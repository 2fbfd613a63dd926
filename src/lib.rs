//! mcpport: stdio MCP servers behind NAT, reached over HTTP.
//!
//! One binary holds two programs and the link between them:
//!
//! ```text
//!  MCP clients                   gateway                        register (edge box, behind NAT)
//!  editors, agents --HTTP/SSE--> http -> session -> router        link -> child's stdin
//!                  <------------ <- mux <- link  <==WebSocket==>  link <- child's stdout
//! ```
//!
//! # The rooms
//!
//! A room imports only from the floors below it, and from a few neighbours on its own that `tests/it/tidy.rs`
//! lists. Floors 0 to 2 are pure: bytes and a time go in, bytes and events come out; no socket, process, clock
//! or randomness is named there. That test reads `src/` and fails when an import climbs.
//!
//! | floor | rooms |
//! |---|---|
//! | 5 shell | `main`, [`cli`], [`demo`] |
//! | 4 programs | [`gateway`], [`register`], [`device`] (none imports another) |
//! | 3 io | [`net`]: sockets, TLS, the WebSocket link, child processes, signals, deadlines |
//! | 2 state | [`auth`], [`session`], [`catalog`], [`router`], [`stats`], [`visits`] |
//! | 1 protocol | [`http`], [`sse`], [`jsonrpc`], [`mcp`], [`ndjson`], [`tunnel`] |
//! | 0 ground | [`limits`], [`config`], [`command`], [`fault`], [`secret`], [`text`] |
//!
//! # Five nouns
//!
//! - **session**: one client's conversation with the gateway, bound to who opened it.
//! - **server** (or *upstream*): one registered stdio MCP server.
//! - **link**: the WebSocket between an edge box and the gateway.
//! - **mux**: the table that gives each request on a link an id of its own and finds its way back.
//! - **catalog**: what all servers offer, under the names that clients see.

pub mod auth;
pub mod catalog;
pub mod cli;
pub mod command;
pub mod config;
pub mod demo;
pub mod device;
pub mod fault;
pub mod gateway;
pub mod http;
pub mod jsonrpc;
pub mod limits;
pub mod mcp;
pub mod ndjson;
pub mod net;
pub mod register;
pub mod router;
pub mod secret;
pub mod session;
pub mod sse;
pub mod stats;
pub mod text;
pub mod tunnel;
pub mod visits;
