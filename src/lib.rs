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
//! # One call
//!
//! 1. [`gateway`] takes the connection ([`net`]); [`http`] makes bytes a request, [`auth`] says whose it is, [`router`] what it is
//!    about.
//! 2. The [`session`] is found, the message read around its payload ([`jsonrpc`]), the exposed name looked up in the
//!    [`catalog`].
//! 3. The mux ([`hub::mux`]) gives the call an id of its own; it goes out as one frame on the link.
//! 4. [`edge`] writes it to the child as one line ([`ndjson`]). The answer comes the same way back: the mux finds who waits,
//!    the client's own id is put back, and the result goes out on its stream ([`sse`]) as the bytes that the server wrote.
//!
//! # Modules
//!
//! A module imports only from lower layers, and from the neighbours in its own layer that `tests/it/tidy.rs` lists.
//! Layers 0 to 2 are pure: bytes and a time go in, bytes and events come out; no socket, process, clock or randomness
//! is named there. That test reads `src/` and fails when an import goes up.
//!
//! | layer | modules |
//! |---|---|
//! | 5 shell | `main`, [`cli`], [`demo`] |
//! | 4 programs | [`gateway`], [`edge`] (`mcpport register`), [`device`] (none imports another) |
//! | 3 io | [`net`]: sockets, TLS, drivers of HTTP and of the link; [`runtime`]: executor, reactor, signals; [`process`]: child processes |
//! | 2 state | [`hub`], [`auth`], [`catalog`], [`session`], [`router`], [`admission`], [`metrics`], [`log_throttle`] |
//! | 1 protocol | [`http`], [`sse`], [`jsonrpc`], [`mcp`], [`ndjson`], [`tunnel`] |
//! | 0 ground | [`limits`], [`config`], [`command`], [`error`], [`secret`], [`util`] |
//!
//! # Five nouns
//!
//! - **session**: one client's conversation with the gateway, bound to who opened it.
//! - **server** (or *upstream*): one registered stdio MCP server.
//! - **link**: the WebSocket between an edge box and the gateway.
//! - **mux**: the table that gives each request on a link an id of its own and finds its way back.
//! - **catalog**: what all servers offer, under the names that clients see.
//!
//! # Where a change begins
//!
//! | to change | begin in |
//! |---|---|
//! | a flag | `cli::args` (what is typed), `cli::convert` (what goes together), [`config`] (what it means); README, "Flags" |
//! | a number | [`limits`], with its reason |
//! | a route or who may take it | [`router`], then `gateway::connection` |
//! | the wire format of the link | [`tunnel`]: its front page describes every frame |
//! | how a method of MCP is passed on | `gateway::dispatch` and `gateway::forward`; what a list may hold: [`mcp`] |
//! | what `device` tells | `device::tools`, and a file for each subject |
//! | what a person reads when it goes wrong | where it is found out; [`error`] for what ends the program |
//!
//! Decisions go into a pure module, where a table tests them in microseconds; what drives them goes into layer 3 or 4.
//!
//! # Tests
//!
//! Unit tests stand at the foot of the files. `tests/it` is one binary with a module for each subject: the real programs
//! (`harness`), the programs in this process with limits of the test's choice (`in_process`), a connection that is cut or frozen (`relay`),
//! the seeded `simulation`, and the architecture rules (`tidy`). `tests/fake` is the server behind them, `tests/vectors` holds literal
//! bytes with their verdicts, `tests/fuzz` and `tests/bench` what their names say. How to run them: README, "Contributing".

pub mod admission;
pub mod auth;
pub mod catalog;
pub mod cli;
pub mod command;
pub mod config;
pub mod demo;
pub mod device;
pub mod edge;
pub mod error;
pub mod gateway;
pub mod http;
pub mod hub;
pub mod jsonrpc;
pub mod limits;
pub mod log_throttle;
pub mod mcp;
pub mod metrics;
pub mod ndjson;
pub mod net;
pub mod process;
pub mod router;
pub mod runtime;
pub mod secret;
pub mod session;
pub mod sse;
pub mod tunnel;
pub mod util;
