//! Input and output: everything that touches a socket, a process, a signal or a timer, for the programs above.
//!
//! Nothing in here parses a protocol: bytes go to the pure rooms (`http`, `jsonrpc`, `ndjson`, `tunnel`) and come from them.
//!
//! - [`listen`]: listening sockets and an accept loop that survives a full descriptor table.
//! - [`stream`]: one connection, plain or TLS.
//! - [`tls`]: certificates and keys from files, both sides of the handshake, and its errors in plain words.
//! - [`web`]: an HTTP connection: the machine in `http` over a stream.
//! - [`child`]: a stdio server as a child process in its own process group.
//! - [`link`]: the WebSocket between edge and gateway, driven by one task. [`queue`]: what feeds its writer, bounded.
//! - [`budget`]: bytes of all that is kept in memory for peers, shared out among principals.
//! - [`exec`]: the executor. [`reactor`]: how its threads wait for the system, and [`spin`]: when they stay awake.
//!   [`source`]: sockets and pipes over that.
//! - [`group`]: tasks that end with whoever they work for. [`bell`]: waits that are not disturbed. [`random`]: ids and
//!   jitter.
//! - [`log_writer`]: the log's way to stderr, off the executor.
//! - [`clock`]: the time of day. [`process`]: what others see of this process. [`machine`]: how much memory it
//!   may use. [`signals`]: requests to stop. [`deadline`]: waiting with a limit.
//!   [`text_file`]: small files that people write.

pub mod bell;
pub mod budget;
pub mod child;
pub mod clock;
pub mod deadline;
pub mod exec;
pub mod group;
pub mod link;
pub mod listen;
pub mod log_writer;
pub mod machine;
pub mod process;
pub mod queue;
pub mod random;
pub mod reactor;
pub mod signals;
pub mod source;
pub mod spin;
pub mod stream;
pub mod text_file;
pub mod tls;
pub mod web;
