//! Network input and output: listeners, streams, TLS, and the drivers of HTTP connections and links.
//!
//! Nothing here parses a protocol: bytes go to the pure modules (`http`, `jsonrpc`, `tunnel`) and come from them.
//!
//! - [`listener`]: listening sockets, and an accept loop that survives a full descriptor table.
//! - [`stream`]: one connection, plain or TLS.
//! - [`tls`]: certificates and keys from files, both sides of the handshake, and its errors in plain words.
//! - [`http_conn`]: drives the state machine of an HTTP connection (`http::conn`) over a stream.
//! - [`ws_link`]: the WebSocket between edge and gateway, driven by one task. [`outbox`]: the bounded queue in front of its
//!   writer.
//! - [`budget`]: the budget of bytes for all that is buffered for peers, shared out among principals.
//! - [`timeout`]: waiting with a limit. [`random`]: ids and jitter. [`clock`]: the time of day.
//!   [`machine`]: how much memory the process may use.
//! - [`logger`]: a bounded buffer between the log and stderr, written by a thread of its own.
//! - [`text_file`]: small files that people write (tokens, header fields).

pub mod budget;
pub mod clock;
pub mod http_conn;
pub mod listener;
pub mod logger;
pub mod machine;
pub mod outbox;
pub mod random;
pub mod stream;
pub mod text_file;
pub mod timeout;
pub mod tls;
pub mod ws_link;
