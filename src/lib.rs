//! mcpport: stdio MCP servers behind NAT, reached over HTTP.
//!
//! One binary holds two programs and the link between them:
//!
//! ```text
//!  MCP clients                   gateway                        register (edge box, behind NAT)
//!  editors, agents --HTTP/SSE--> http -> router -> hub            link -> child's stdin
//!                  <------------ <- hub <- link  <==WebSocket==>  link <- child's stdout
//! ```
//!
//! # The path of one call
//!
//! All tables of the gateway are in the [`hub`], which has one lock. What a call passes in the
//! gateway, and the locks that it takes:
//!
//! ```text
//!  client                        | hub, locked            | link of the server
//!  ------------------------------+------------------------+-------------------------------
//!  gateway::connection           |                        |
//!    http, router                |                        |
//!    gateway::authn (tokens)     |                        |
//!  gateway::endpoint::streamable |                        |
//!    gateway::session ---------->| session                |
//!    jsonrpc                     |                        |
//!    hub::entry, hub::request -->| call                   |
//!                                |   catalog              |
//!                                |   session::Calls       |
//!                                |   instance, mux        |
//!                                |   jsonrpc::edit, link -+-> net::outbox (queue)
//!                                |                        |     net::outbound, net::ws_link
//!                                |                        |                |
//!                                |                        |           the edge
//!                                |                        |                |
//!                                |                        |     net::ws_link, net::outbound
//!                                | frame                <-+- hub::entry, hub::incoming
//!                                |   instance, mux        |
//!  hub::entry, hub::conclusion <-|   session::Calls       |
//!    hub::answer                 |                        |
//!  gateway::responder            |                        |
//!    net::outbox (queue)         |                        |
//!  gateway::endpoint::streamable |                        |
//! ```
//!
//! 1. [`gateway`] accepts the connection ([`net`]). [`http`] parses the request, [`auth`]
//!    identifies the principal, and [`router`] matches the path. The hub returns the session.
//! 2. The message is scanned without parsing its payload ([`jsonrpc`]). Then the hub looks up the
//!    exposed name in the [`catalog`], gives the call a new id ([`hub::mux`]), and queues it as one
//!    frame for the link.
//! 3. [`edge`] writes it to the child's stdin as one line ([`ndjson`]). The response comes back the
//!    same way: the hub finds the caller, and without the lock the client's own id is restored and
//!    the result queued for the caller's stream ([`sse`]), byte for byte as the server wrote it.
//!
//! On the way in the call takes five locks: that of the token table, the hub's twice, and that of
//! each of the two queues. If tokens are configured, it also takes that of the throttle of wrong
//! tokens ([`auth::throttle`]). On the way out it takes two: the hub's, and that of the client's
//! queue.
//!
//! Results pass unchanged, except for resource links that would not lead back to their server
//! ([`mcp::resource_links`]); errors keep code, message and data, and unknown fields pass. Protocol
//! versions 2024-11-05 to 2025-11-25 can be negotiated; requests of 2026-07-28 have no session
//! ([`hub::stateless`]).
//!
//! # Modules
//!
//! A module imports only from lower layers, and from the modules of its own layer that
//! `tests/it/tidy.rs` lists. Layers 0 to 2 are pure: bytes and a time go in, bytes and events come
//! out, and they use no socket, process, clock or randomness. That test reads `src/` and fails on
//! an import from a higher layer, and on a circle of imports among the files of one folder that it
//! does not list.
//!
//! | layer | modules |
//! |---|---|
//! | 5 shell | `main`, [`cli`], [`demo`] |
//! | 4 programs | [`gateway`], [`edge`] (`mcpport register`), [`device`] (none imports another) |
//! | 3 io | [`net`]: sockets, TLS, HTTP and link drivers; [`runtime`]; [`process`]: child processes |
//! | 2 state | [`hub`], [`auth`], [`catalog`], [`session`], [`router`], [`admission`], [`metrics`], [`budget`], [`queue`], [`log_throttle`] |
//! | 1 protocol | [`http`], [`sse`], [`jsonrpc`], [`mcp`], [`ndjson`], [`tunnel`] |
//! | 0 ground | [`limits`], [`config`], [`command`], [`error`], [`secret`], [`util`] |
//!
//! # Five nouns
//!
//! - **session**: one client's MCP session with the gateway, bound to the principal that opened it.
//! - **server** (or *upstream*): one registered stdio MCP server.
//! - **link**: the WebSocket between an edge box and the gateway.
//! - **mux**: the table that gives each request to a server process a new id and routes the
//!   response back.
//! - **catalog**: the tools, prompts and resources of all servers, under the names that clients
//!   see.
//!
//! # Where to start a change
//!
//! | to change | start in |
//! |---|---|
//! | a flag | `cli::args` (syntax), `cli::convert` (combinations), [`config`] (meaning) |
//! | a number | [`limits`], with its reason |
//! | a route or its access rules | [`router`], then `gateway::connection` |
//! | the wire format of the link | [`tunnel`]: its module documentation describes every frame |
//! | how an MCP method is forwarded | [`hub::request`] (its params), [`hub::call`] (where it goes), [`hub::frame`] (the way back); limits of lists: [`mcp`] |
//! | the tools of `device` | `device::tools`, and one file for each subject |
//! | an error message | [`hub::error`] for requests (also: what a client gets when a server is down); [`gateway`] for a 503; otherwise the code that detects the error; [`error`] if it ends the program |
//! | what is kept for a peer that may resume | [`tunnel::resume`] for a link, `session::replay` for an event stream |
//!
//! Decisions go into a pure module, where a table tests them in microseconds; the code that drives
//! them goes into layer 3 or 4.
//!
//! # Tests
//!
//! Unit tests are at the end of each file. `tests/it` is one binary with a module for each subject:
//! the real programs (`harness`), the programs in the test process with limits that the test
//! chooses (`in_process`), a connection that can be cut or frozen (`relay`), the seeded
//! `simulation`, and the architecture rules (`tidy`). `tests/fake` is the stdio server that they
//! run, `tests/vectors` holds literal bytes with the expected verdicts, `tests/fuzz` holds fuzz
//! targets and `tests/bench` benchmarks; `tests/loom` models the threads of the runtime in every
//! order of their steps. `tests/rules.txt` lists what the program promises, and the
//! tests that show each promise.
//!
//! | to run | command |
//! |---|---|
//! | the tests; needs nothing but Rust | `cargo test` |
//! | one subject | `cargo test --test it -- resume` |
//! | more of the simulation; one seed again | `MCPPORT_SEEDS=10000 cargo test simulation`; `MCPPORT_SEED=7 cargo test simulation` |
//! | more of two principals that attack each other; one seed again | `MCPPORT_TENANT_SEEDS=100 cargo test tenants`; `MCPPORT_TENANT_SEED=7 cargo test tenants` |
//! | a thousand cuts of the connection | `MCPPORT_CUTS=1000 cargo test --test it -- link_cuts --nocapture` |
//! | what hostile peers cost | `MCPPORT_FIGURES=1 cargo test --test it -- hostile::figures --nocapture` |
//! | leaks, after ten minutes under load | `scripts/soak.sh` |
//! | the threads of the runtime in every order of steps | `LOOM_MAX_PREEMPTIONS=4 cargo test --release --manifest-path tests/loom/Cargo.toml --test models` |
//! | fuzz targets, 30 s each; needs a C++ compiler | `scripts/fuzz.sh` |
//! | official SDKs and servers, and the Python mcpport; installs them below `target/` | `scripts/peers.sh` |
//! | the official conformance suite | `scripts/conformance.sh` |
//! | units, installer, container | `scripts/check-delivery.sh` |
//! | the benchmark: short; whole; by number of servers and clients; other programs | `cargo bench -- --quick`; `cargo bench`; `cargo bench -- --scale 10000`; `scripts/bench-peers.sh` |
//! | a comparison of two runs of the benchmark | `scripts/bench-compare.sh A.json B.json` |
//! | all of CI; installs what it needs, takes long | `.ci/run` |

// Lints for code only (Cargo.toml, clippy.toml). The build without tests is checked too.
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::expect_used,
        clippy::panic,
        clippy::too_many_lines,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

pub mod admission;
pub mod auth;
pub mod budget;
pub mod catalog;
pub mod cli;
pub mod command;
pub mod config;
pub mod demo;
#[allow(clippy::disallowed_methods, reason = "reads the clock: measures the load between two readings")]
pub mod device;
#[allow(
    clippy::disallowed_methods,
    reason = "reads the clock: drives the link and the child; its pure files deny it"
)]
pub mod edge;
pub mod error;
#[allow(clippy::disallowed_methods, reason = "reads the clock: drives connections and links")]
pub mod gateway;
pub mod http;
pub mod hub;
pub mod jsonrpc;
pub mod limits;
pub mod log_throttle;
pub mod mcp;
pub mod metrics;
pub mod ndjson;
#[allow(clippy::disallowed_methods, reason = "reads the clock: sockets have deadlines")]
pub mod net;
#[allow(clippy::disallowed_methods, reason = "reads the clock: waits for processes have deadlines")]
pub mod process;
pub mod queue;
pub mod router;
#[allow(clippy::disallowed_methods, reason = "reads the clock: the reactor has timers")]
pub mod runtime;
pub mod secret;
pub mod session;
pub mod sse;
pub mod tunnel;
pub mod util;
