//! Network I/O: listeners, streams, TLS, and the drivers of HTTP connections and links.
//!
//! Nothing here parses a protocol: bytes pass to and from the pure modules (`http`, `jsonrpc`,
//! `tunnel`).
//!
//! - [`listener`]: listening sockets, and an accept loop that survives running out of file
//!   descriptors.
//! - [`stream`]: one connection, plain TCP or TLS.
//! - [`tls`]: certificates and keys from files, both sides of the handshake, readable errors.
//! - [`http_conn`]: drives the state machine of an HTTP connection (`http::conn`) over a stream.
//! - [`ws_link`]: drives the WebSocket between edge and gateway, one task per link.
//! - [`drain`]: reads what a peer still sends before its connection is closed.
//! - [`outbound`]: the outgoing side of a link, over one or more connections.
//! - [`outbox`]: the bounded queue of outgoing messages in front of a writer.
//! - [`idle`]: the registry of bytes held for absent clients, evicted when memory is needed.
//! - [`timeout`]: waits with a time limit.
//! - [`random`]: ids and jitter.
//! - [`clock`]: the time of day.
//! - [`machine`]: how much memory the process may use.
//! - [`logger`]: a bounded buffer between the log and stderr, written by its own thread.
//! - [`text_file`]: small hand-written files (tokens, header fields).

pub mod clock;
pub mod drain;
pub mod http_conn;
pub mod idle;
pub mod listener;
pub mod logger;
pub mod machine;
pub mod outbound;
pub mod outbox;
pub mod random;
pub mod stream;
pub mod text_file;
pub mod timeout;
pub mod tls;
pub mod ws_link;
