//! All limits of the program, each with its reason. No other file in `src/` defines one.
//!
//! The structs are plain data, so that a test can lower a limit and reach it in milliseconds.

use std::time::Duration;

/// Kibibyte, in bytes.
const KIB: usize = 1024;
/// Mebibyte, in bytes.
const MIB: usize = 1024 * KIB;

/// All limits of one running program.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// HTTP server.
    pub http: HttpLimits,
    /// Client sessions.
    pub session: SessionLimits,
    /// The link between edge and gateway.
    pub link: LinkLimits,
    /// Listings of a server.
    pub catalog: CatalogLimits,
    /// Child processes at the edge.
    pub child: ChildLimits,
    /// The built-in device server.
    pub device: DeviceLimits,
    /// Wrong tokens.
    pub guess: GuessLimits,
    /// Memory budget of the gateway.
    pub memory: MemoryLimits,
    /// Stateless requests (MCP, from 2026-07-28 on), and servers that speak them.
    pub stateless: StatelessLimits,
}

/// Limits of the memory that the gateway uses for all its peers together.
#[derive(Clone, Debug)]
pub struct MemoryLimits {
    /// Total bytes (`--max-memory`); see [`MAX_MEMORY`].
    pub bytes: usize,
    /// Lower the budget to half of the memory that the process may use, if that is less. Not below
    /// the start of [`MEMORY`].
    pub by_machine: bool,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self { bytes: MAX_MEMORY, by_machine: true }
    }
}

/// Limits of the HTTP/1.1 server.
#[derive(Clone, Debug)]
pub struct HttpLimits {
    /// Bytes of a request head. Other servers allow 16 KiB; larger heads are attacks or cookies.
    pub head_bytes: usize,
    /// Header fields in one request head. MCP clients send about ten.
    pub fields: usize,
    /// Bytes of the request target. Session ids are short.
    pub target_bytes: usize,
    /// Time from the first byte of a request head to its end, even if bytes keep arriving.
    pub head_time: Duration,
    /// Idle time between two requests on one connection.
    pub keep_alive: Duration,
    /// Requests on one connection, so that no connection stays open forever.
    pub requests: u32,
    /// Bytes of a request body. The official SDKs accept as much.
    pub body_bytes: usize,
    /// Time for a whole request body.
    pub body_time: Duration,
    /// Bytes per second at which a body must arrive, once `body_grace` has passed.
    pub body_floor: usize,
    /// Time before `body_floor` applies.
    pub body_grace: Duration,
    /// Bytes of chunk extensions in one body, in total; they carry no data.
    pub chunk_extension_bytes: usize,
    /// Bytes of trailer fields; they are dropped.
    pub trailer_bytes: usize,
    /// Bytes of an unread body that are read and discarded after an early response. Closing with
    /// unread bytes could reset the connection before the client reads the response.
    pub drain_bytes: usize,
    /// Time for reading those bytes.
    pub drain_time: Duration,
    /// Bytes requested by one read, and the buffer that an idle connection keeps. A typical POST
    /// fits in one read.
    pub read_bytes: usize,
    /// Bytes requested by one read while a large body arrives, so that a megabyte needs few reads.
    pub read_burst: usize,
    /// Bytes of a read that only waits for the peer to close (event streams, running calls). Small,
    /// because each of these connections keeps such a buffer.
    pub watch_bytes: usize,
    /// Time that a write to a client may make no progress.
    pub write_stall: Duration,
    /// Total connections. Each takes at most 90 KiB, together 90 MiB, plus the one message in
    /// transit on each, which a peer that does not read holds for `write_stall` at most.
    pub connections: usize,
    /// Connections from one IPv4 address or one IPv6 /64 network. A household of clients has about
    /// a dozen each.
    pub connections_per_address: usize,
    /// Connections from loopback, in total: a proxy on this machine forwards the connections of all
    /// clients.
    pub connections_from_loopback: usize,
    /// Connections that have not yet sent an authenticated request. One more evicts the oldest, so
    /// the limit only has to hold those that are about to: 200 edges that reconnect within a
    /// second, with their handshakes.
    pub connections_unauthenticated: usize,
    /// Rejected connections that are sent a 503 or 429 response at the same time. Beyond that, and
    /// with TLS, connections are closed without a response.
    pub rejecting: usize,
    /// Time for the TLS handshake, which runs outside the accept loop.
    pub tls_handshake: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            head_bytes: 16 * KIB,
            fields: HTTP_FIELDS,
            target_bytes: 4 * KIB,
            head_time: Duration::from_secs(10),
            keep_alive: Duration::from_secs(30),
            requests: 1000,
            body_bytes: 4 * MIB,
            body_time: Duration::from_secs(30),
            body_floor: KIB,
            body_grace: Duration::from_secs(5),
            chunk_extension_bytes: 256,
            trailer_bytes: KIB,
            drain_bytes: 64 * KIB,
            drain_time: Duration::from_secs(2),
            read_bytes: 4 * KIB,
            read_burst: 64 * KIB,
            watch_bytes: 256,
            write_stall: Duration::from_secs(30),
            connections: 1024,
            connections_per_address: 128,
            connections_from_loopback: 1024,
            connections_unauthenticated: 256,
            rejecting: 64,
            tls_handshake: Duration::from_secs(10),
        }
    }
}

/// Limits of client sessions.
#[derive(Clone, Debug)]
pub struct SessionLimits {
    /// Total sessions.
    pub sessions: usize,
    /// Sessions of one principal, where there are several: half of all sessions. One runaway
    /// principal leaves half to the others, and a farm of agents with one token still has room.
    /// With one token or none, nobody else needs the rest.
    pub per_principal: usize,
    /// Idle time after which a session of the Streamable HTTP transport ends.
    pub idle: Duration,
    /// Idle time after which a session may be evicted for a new one of the same principal. It need
    /// not be longer than a person's pause in the middle of work: a client whose session is gone
    /// opens a new one.
    pub evictable_after: Duration,
    /// Sent events of one session that are kept for a client that resumes a broken stream.
    pub replay_messages: usize,
    /// Bytes of those events.
    pub replay_bytes: usize,
    /// Broken streams of one session that wait for their client.
    pub parked: usize,
    /// Delay that a client is asked to wait before it resumes a stream (the `retry` field of SSE).
    pub retry: Duration,
    /// Resource subscriptions of one session.
    pub subscriptions: usize,
    /// Messages in one batch (protocol version 2025-03-26).
    pub batch: usize,
    /// Bytes of the responses to one batch; the first response may exceed it. Responses wait until
    /// all are there, and small requests can have large responses.
    pub batch_bytes: usize,
    /// Messages queued for one client.
    pub queue_messages: usize,
    /// Bytes queued for one client. A single larger message is accepted when the queue is empty.
    pub queue_bytes: usize,
    /// Bytes of responses that may be queued in addition: several large results at once, for a
    /// client that reads. All of it counts against the memory budget of the gateway.
    pub queue_burst: usize,
    /// Bytes of messages written to a client at a time, but at least one message. They are in
    /// memory twice while they are written.
    pub write_bytes: usize,
    /// Pending calls of one session.
    pub in_flight: usize,
    /// Interval of comments on a silent event stream, so that proxies keep it open.
    pub keep_alive: Duration,
    /// Time without a message after which the response to a POST becomes an event stream. Most
    /// calls are done by then, and proxies usually time out after a minute.
    pub stream_after: Duration,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            sessions: 512,
            per_principal: 256,
            idle: Duration::from_secs(30 * 60),
            evictable_after: Duration::from_secs(60),
            replay_messages: 256,
            replay_bytes: MIB,
            parked: 8,
            retry: Duration::from_secs(1),
            subscriptions: 256,
            batch: 64,
            batch_bytes: 8 * MIB,
            queue_messages: 256,
            queue_bytes: 640 * KIB,
            queue_burst: 16 * MIB,
            write_bytes: 64 * KIB,
            in_flight: 64,
            keep_alive: Duration::from_secs(15),
            stream_after: Duration::from_secs(15),
        }
    }
}

/// Limits of stateless requests (MCP, from 2026-07-28 on): of what is kept for a principal without a
/// session, and of the servers that speak the version.
#[derive(Clone, Debug)]
pub struct StatelessLimits {
    /// Time without an answer to `server/discover` after which a server gets `initialize` too. The
    /// clients of the SDKs wait as long.
    pub probe_silence: Duration,
    /// Open listens (`subscriptions/listen`) of one principal. Each takes a connection.
    pub listens: usize,
    /// Open listens of all principals; the SDKs allow a server as many.
    pub listens_all: usize,
    /// Resources that one listen may name, each of [`URI_BYTES`] at most. Several listens are as good
    /// as the [`SessionLimits::subscriptions`] of a session.
    pub listen_uris: usize,
    /// Bytes of URIs and task ids in the gateway's own listen at a server: a quarter of what one
    /// message may have.
    pub listen_bytes: usize,
    /// Time for a server to acknowledge a listen. Clients wait for it.
    pub listen_ack: Duration,
    /// Resources and tasks that nobody listens to any more, at which the gateway's own listen at a
    /// server is replaced. A client that listens again must not cost a request each time.
    pub listen_shrink: usize,
    /// Time after which it is replaced because of fewer.
    pub listen_shrink_after: Duration,
    /// First delay after a server refused or ended a listen; it doubles each time.
    pub listen_backoff: Duration,
    /// Longest such delay.
    pub listen_backoff_cap: Duration,
    /// Refused listens in a row after which the next one waits, even if a resource may have been the
    /// reason.
    pub listen_failures: u32,
    /// Processes of an isolated server for one principal and the same client capabilities, of which
    /// each call holds one.
    pub lease_per_key: usize,
    /// Calls that wait for such a process.
    pub lease_waiting: usize,
    /// Time that they wait. Shorter than the timeout of any client.
    pub lease_wait: Duration,
    /// Questions of a legacy server that a client gets at a time. Each is one for a person or a model.
    pub inputs: usize,
    /// Time that the first question waits for others of the same server.
    pub join_inputs: Duration,
    /// Questions that a legacy server may ask while no call runs. Servers ask one, for the roots.
    pub outside_inputs: usize,
    /// Time that they wait for a call.
    pub outside_time: Duration,
    /// Calls of one principal that wait at their server for the client's answers; then the oldest is
    /// given up. Each holds a process.
    pub parked: usize,
    /// Such calls of all principals.
    pub parked_all: usize,
    /// Time for which they wait. A person answers within it.
    pub parked_time: Duration,
    /// Questions of a modern server, in one result, for the client of a session.
    pub round_inputs: usize,
    /// Results of one call with such questions. The clients of the SDKs stop there too.
    pub rounds: usize,
    /// Time from the begin of a call to its last answer.
    pub round_time: Duration,
    /// Bytes of a request that is kept to be sent again with the answers. Longer ones are not kept,
    /// since most are answered without a question.
    pub round_bytes: usize,
    /// Bytes of the state that a server gives to a client with its questions. More than those of any
    /// SDK.
    pub state_bytes: usize,
    /// Time for which a client may cache a list. Servers say when one changes, but a client that does
    /// not listen learns of it only then.
    pub ttl_cap: Duration,
    /// Time after which such a state expires: a person answers within it. The server may set less.
    pub state_time: Duration,
}

impl Default for StatelessLimits {
    fn default() -> Self {
        Self {
            probe_silence: Duration::from_secs(10),
            listens: 32,
            listens_all: 1024,
            listen_uris: 64,
            listen_bytes: MIB,
            listen_ack: Duration::from_secs(2),
            listen_shrink: 16,
            listen_shrink_after: Duration::from_secs(60),
            listen_backoff: Duration::from_secs(1),
            listen_backoff_cap: Duration::from_secs(60),
            listen_failures: 5,
            lease_per_key: 4,
            lease_waiting: 64,
            lease_wait: Duration::from_secs(10),
            inputs: INPUT_REQUESTS,
            join_inputs: Duration::from_millis(50),
            outside_inputs: 4,
            outside_time: Duration::from_secs(10),
            parked: 64,
            parked_all: 256,
            parked_time: Duration::from_secs(5 * 60),
            round_inputs: 8,
            rounds: 10,
            round_time: Duration::from_secs(10 * 60),
            round_bytes: 256 * KIB,
            state_bytes: 64 * KIB,
            ttl_cap: Duration::from_secs(30),
            state_time: Duration::from_secs(10 * 60),
        }
    }
}

/// Limits of wrong tokens, against guessing.
#[derive(Clone, Debug)]
pub struct GuessLimits {
    /// Wrong tokens from one address in `window`. A person who mistypes needs three.
    pub failures: usize,
    /// The window for `failures`. Ten guesses a minute are five million a year: nothing against a
    /// token of 64 random bits.
    pub window: Duration,
    /// Addresses in the table, each at most 400 bytes. Counting cannot stop an attack from more
    /// addresses.
    pub addresses: usize,
    /// Minimum time between two scans of a full table for expired entries.
    pub sweep: Duration,
}

impl Default for GuessLimits {
    fn default() -> Self {
        Self { failures: 10, window: Duration::from_secs(60), addresses: 1024, sweep: Duration::from_secs(1) }
    }
}

/// Limits of the link.
#[derive(Clone, Debug)]
pub struct LinkLimits {
    /// Bytes of one message, which is one frame.
    pub message_bytes: usize,
    /// Time that a large frame waits for memory at the gateway before its link is closed. Responses
    /// to clients that do not read are dropped in less than three times this time.
    pub memory_wait: Duration,
    /// Bytes of the WebSocket library's read buffer. Its default takes 128 KiB for each link.
    pub read_buffer: usize,
    /// Bytes of the WebSocket library's write buffer.
    pub write_buffer: usize,
    /// Messages queued for writing.
    pub queue_messages: usize,
    /// Bytes queued for writing.
    pub queue_bytes: usize,
    /// Time that a write to the link may make no progress.
    pub write_stall: Duration,
    /// Time from the first byte of a message before `message_floor` applies.
    pub message_time: Duration,
    /// Bytes per second at which a message must arrive after that: a large message on a slow line
    /// passes, a drip does not. `message_bytes` limits how long a series of fragments can go on.
    /// The same rate applies to acknowledgements.
    pub message_floor: usize,
    /// Control frames in `control_window`.
    pub control_frames: u32,
    /// The window for `control_frames`.
    pub control_window: Duration,
    /// Time without any received frame after which a ping is sent.
    pub ping_every: Duration,
    /// Time without any received frame after which the peer is considered dead.
    pub dead_after: Duration,
    /// Time from the upgrade to the register frame.
    pub register_time: Duration,
    /// Bytes of the register frame.
    pub register_bytes: usize,
    /// Total links.
    pub links: usize,
    /// Pending calls on one link.
    pub in_flight: usize,
    /// Time for the peer to read our close frame.
    pub close_time: Duration,
    /// Bytes that are read and discarded during `close_time`: frames that were in transit when the
    /// close frame was sent.
    pub close_bytes: usize,
    /// Time to connect and upgrade, at the edge.
    pub connect_time: Duration,
    /// First reconnect delay, before jitter.
    pub backoff_base: Duration,
    /// Longest reconnect delay.
    pub backoff_cap: Duration,
    /// Longest reconnect delay after the gateway refused the edge (401, 403): a person has to
    /// change the token.
    pub backoff_refused: Duration,
    /// Duration of a link that resets the backoff.
    pub backoff_reset: Duration,
    /// How long a link session outlives its connection (`--resume-window`); zero disables
    /// resumption. Most address changes and router restarts are over by then, and few clients wait
    /// longer.
    pub resume_window: Duration,
    /// Longest reconnect delay while a link session waits to be resumed.
    pub resume_retry: Duration,
    /// Time that the gateway adds to the window: an edge whose network returns just in time may be
    /// in a reconnect delay, and then has to connect.
    pub resume_grace: Duration,
    /// Frames that are sent and not yet acknowledged.
    pub resume_messages: usize,
    /// Bytes of those frames. A single larger frame is sent once all frames before it are
    /// acknowledged.
    pub resume_bytes: usize,
    /// Received frames after which an acknowledgement is sent: one small frame for many.
    pub ack_every: u64,
    /// Received bytes after which an acknowledgement is sent; well below `resume_bytes`, the peer's
    /// limit for bytes in flight.
    pub ack_bytes: usize,
    /// Time after which an acknowledgement is sent, so that the sender of an idle link keeps no
    /// frames.
    pub ack_after: Duration,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self {
            message_bytes: 4 * MIB + FRAME_EXTRA,
            memory_wait: Duration::from_secs(10),
            read_buffer: 8 * KIB,
            write_buffer: 16 * KIB,
            queue_messages: 256,
            queue_bytes: 8 * MIB,
            write_stall: Duration::from_secs(10),
            message_time: Duration::from_secs(30),
            message_floor: KIB,
            control_frames: 100,
            control_window: Duration::from_secs(10),
            ping_every: Duration::from_secs(15),
            dead_after: Duration::from_secs(45),
            register_time: Duration::from_secs(10),
            register_bytes: 64 * KIB,
            links: 256,
            in_flight: 256,
            close_time: Duration::from_secs(1),
            close_bytes: 64 * KIB,
            connect_time: Duration::from_secs(10),
            backoff_base: Duration::from_millis(500),
            backoff_cap: Duration::from_secs(30),
            backoff_refused: Duration::from_secs(300),
            backoff_reset: Duration::from_secs(30),
            resume_window: Duration::from_secs(30),
            resume_retry: Duration::from_secs(4),
            resume_grace: Duration::from_secs(5),
            resume_messages: 1024,
            resume_bytes: 8 * MIB,
            ack_every: 64,
            ack_bytes: 256 * KIB,
            ack_after: Duration::from_secs(1),
        }
    }
}

/// Limits of what one server may list.
#[derive(Clone, Debug)]
pub struct CatalogLimits {
    /// Items of one kind (tools, prompts…) of one server; see [`LIST_ITEMS`].
    pub items: usize,
    /// Bytes of all descriptions of one kind from one server.
    pub bytes: usize,
    /// Pages fetched for one listing; see [`LIST_ITEMS_PER_PAGE`].
    pub pages: usize,
    /// Characters of a server's name.
    pub server_name: usize,
    /// Characters of a tool's or a prompt's own name.
    pub tool_name: usize,
    /// Characters of a resource's URI.
    pub uri: usize,
    /// Characters of a name that a client sees; several model APIs reject longer ones.
    pub exposed_name: usize,
    /// Minimum time between two listings that a server triggers with list-changed notifications.
    pub list_pause: Duration,
    /// Longest delay before a failed listing is retried: a broken server costs next to nothing, and
    /// one that is repaired without a notification is listed within minutes. The first delay is
    /// `list_pause`; it doubles each time.
    pub list_retry_cap: Duration,
}

impl Default for CatalogLimits {
    fn default() -> Self {
        Self {
            items: LIST_ITEMS,
            bytes: 4 * MIB,
            pages: LIST_ITEMS.div_ceil(LIST_ITEMS_PER_PAGE),
            server_name: 64,
            tool_name: 128,
            uri: 2048,
            exposed_name: 64,
            list_pause: Duration::from_secs(1),
            list_retry_cap: Duration::from_secs(300),
        }
    }
}

/// Limits of a child process at the edge.
#[derive(Clone, Debug)]
pub struct ChildLimits {
    /// Bytes of one line on the child's stdout: as large as one message may be.
    pub line_bytes: usize,
    /// Bytes of one stderr line that are logged.
    pub stderr_line: usize,
    /// Stderr lines that are logged in one second; further lines are only counted.
    pub stderr_lines: u32,
    /// Messages queued for the child's stdin.
    pub queue_messages: usize,
    /// Time that a write to the child's stdin may make no progress.
    pub write_stall: Duration,
    /// First delay from the end of a server to its restart; it doubles each time. Long enough for a
    /// dependency of the server to come back, short enough to go unnoticed after a single crash.
    pub restart_base: Duration,
    /// Longest restart delay: a server that never runs costs next to nothing, and one that is
    /// repaired is back in a minute.
    pub restart_cap: Duration,
    /// Run time of a server that resets the restart delay.
    pub restart_reset: Duration,
    /// Time for a restarted server to answer `initialize`; it may have to be downloaded first.
    pub initialize_time: Duration,
    /// How long to drain an exited child's pipes before its calls fail: they must fail within a
    /// second.
    pub drain_time: Duration,
    /// Time for a server that closed its stdin or stdout to exit.
    pub pipe_grace: Duration,
    /// Time from closing stdin to SIGTERM.
    pub term_after: Duration,
    /// Time from closing stdin to SIGKILL.
    pub kill_after: Duration,
}

impl Default for ChildLimits {
    fn default() -> Self {
        Self {
            line_bytes: 4 * MIB,
            stderr_line: 2 * KIB,
            stderr_lines: 100,
            queue_messages: 256,
            write_stall: Duration::from_secs(30),
            restart_base: Duration::from_secs(1),
            restart_cap: Duration::from_secs(60),
            restart_reset: Duration::from_secs(60),
            initialize_time: TOOL_TIME,
            drain_time: Duration::from_millis(500),
            pipe_grace: Duration::from_secs(2),
            term_after: Duration::from_secs(2),
            kill_after: Duration::from_secs(5),
        }
    }
}

/// Header fields in one request head, whatever [`HttpLimits::fields`] says: the size of a table on
/// the stack.
pub const HTTP_FIELDS: usize = 64;
/// Limits of the built-in device server (`mcpport device`).
#[derive(Clone, Debug)]
pub struct DeviceLimits {
    /// Bytes of one line on stdin: the same as one message elsewhere in the program.
    pub line_bytes: usize,
    /// Bytes of `params` that are parsed into a tree; real ones have a few hundred.
    pub params_bytes: usize,
    /// Bytes of one kernel text file (mount table, counters). A busy container host has some
    /// hundred KiB of mounts.
    pub text_bytes: usize,
    /// Entries in one list: file systems, interfaces, addresses, temperatures.
    pub entries: usize,
    /// Processes that are examined; each costs two small files and 100 bytes.
    pub processes: usize,
    /// Maximum number of processes in one result.
    pub top: u64,
    /// Default number of processes in one result.
    pub top_default: u64,
    /// Time over which processor use is measured. The kernel counts in units of ten milliseconds,
    /// so this gives steps of 2 %.
    pub cpu_window: Duration,
    /// The kernel's unit of processor time, in ticks per second. Its user-space interface fixes
    /// this value on all platforms that we build for.
    pub cpu_ticks: u32,
    /// Maximum number of log file lines in one result.
    pub log_lines: u64,
    /// Default number of log file lines in one result.
    pub log_lines_default: u64,
    /// Bytes read from the end of a log file.
    pub log_bytes: usize,
    /// Bytes of the receive buffer for the kernel's list of addresses; the kernel fills the buffer
    /// that it is offered.
    pub netlink_bytes: usize,
    /// Time to wait for one part of that list; the kernel answers from memory.
    pub netlink_time: Duration,
}

impl Default for DeviceLimits {
    fn default() -> Self {
        Self {
            line_bytes: 4 * MIB,
            params_bytes: 64 * KIB,
            text_bytes: MIB,
            entries: 256,
            processes: 32 * KIB,
            top: 100,
            top_default: 10,
            cpu_window: Duration::from_millis(500),
            cpu_ticks: 100,
            log_lines: 500,
            log_lines_default: 50,
            log_bytes: 64 * KIB,
            netlink_bytes: 16 * KIB,
            netlink_time: Duration::from_secs(1),
        }
    }
}

/// Size of the largest message that is copied while the hub is locked, in bytes: copying it takes
/// less time than to enter the hub a second time.
pub const SPLICE_IN_HUB: usize = 4 << 10;

/// Memory budget of the gateway in bytes, unless `--max-memory` is set: half of the smallest VPS
/// sold (512 MiB), and at most half of the memory that the process may use.
///
/// The budget covers queued messages and those being written, request bodies, incoming frames of
/// links (from 16 KiB on, once their header announces them) with the buffers that they leave
/// behind, frames kept for resumption, the lists and `initialize` results of servers, the
/// `initialize` params and subscriptions of sessions, and events kept for replay.
///
/// Outside the budget the process uses at most: 16 MiB for program and tables; for each connection
/// 11 KiB while it is idle (19 KiB with TLS, 23 and 31 KiB as a link) and 70 KiB (90 KiB with TLS)
/// while a body of up to 64 KiB arrives, all measured; and, for each thread, three copies of the
/// largest message while it is forwarded, 12 MiB. Under `ulimit -v`, a build against glibc needs
/// `MALLOC_ARENA_MAX=1`, since glibc reserves 64 MiB of addresses for each thread.
pub const MAX_MEMORY: usize = 256 * MIB;
/// Allowed values of `--max-memory` in bytes: less cannot hold two messages of the usual size and
/// the reserve.
pub const MEMORY: std::ops::RangeInclusive<usize> = 16 * MIB..=2048 * MIB;
/// Bytes that an item of a list takes besides its texts: the structures that hold it, its exposed
/// name, the index.
pub const ITEM_BYTES: usize = 256;
/// Largest amount in bytes that may be taken from the reserve of a budget: most calls are smaller,
/// and still pass when large ones are refused.
pub const BUDGET_SMALL: usize = 16 * KIB;
/// Divisor for the reserve of a budget: one part in this many is kept free for small amounts.
pub const BUDGET_RESERVE: usize = 8;
/// Bytes that a subscription takes besides its URIs: the id of its request, and its entries in
/// three tables.
pub const SUBSCRIPTION_BYTES: usize = 384;
/// Pauses before a call is sent again to a server that asked nothing and wants its state back, one
/// after the other. The clients of the SDKs wait as long.
pub const ROUND_PAUSES: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(200)];
/// The pause after these.
pub const ROUND_PAUSE_LONGEST: Duration = Duration::from_millis(250);
/// Pause before a call is sent again whose client has agreed to visit a URL, so that it has time to.
pub const ROUND_PAUSE_URL: Duration = Duration::from_secs(1);
/// Bytes that a question of a server takes besides its text and its id.
pub const INPUT_BYTES: usize = 256;
/// Interval at which a frame that waits for memory tries again.
pub const LINK_MEMORY_RETRY: Duration = Duration::from_millis(50);
/// Time without a large frame after which the buffers of a link are released: consecutive large
/// responses can reuse them. While more than half of the budget is taken, they are released at
/// once.
pub const LINK_SHRINK: Duration = Duration::from_secs(1);
/// Allowed values of `--max-message-bytes`: the least is what a registration needs, the most is
/// what a small box can hold a few times.
pub const MESSAGE_BYTES: std::ops::RangeInclusive<usize> = 64 * KIB..=256 * MIB;
/// Bytes that a frame on a link may have besides its message.
pub const FRAME_EXTRA: usize = 64 * KIB;
/// Largest value of any flag that sets a count: common systems limit the descriptors of one process
/// to this number.
pub const COUNT: usize = 1_000_000;
/// Descriptors of the gateway besides those of its connections: standard streams, listeners, logs,
/// and some spare ones.
pub const DESCRIPTORS_EXTRA: usize = 64;
/// Nesting depth of JSON values, as in other parsers. Each level takes one bit of a `u128`.
pub const JSON_DEPTH: u32 = 128;
/// Default of `--timeout-rpc`: timeout for requests to a server other than tool calls.
pub const RPC_TIME: Duration = Duration::from_secs(10);
/// Default of `--timeout-run-tool`: timeout for tool calls, since tools may run for a while.
pub const TOOL_TIME: Duration = Duration::from_secs(120);
/// Total time for a call whose server keeps sending progress, each of which restarts its timeout.
/// An hour is longer than clients wait, and it frees the slot of a call whose server reports
/// progress forever. A longer `--timeout-run-tool` takes precedence.
pub const CALL_LONGEST: Duration = Duration::from_secs(60 * 60);
/// Time for the demo's call, from its first connection on: even a slow box starts a process in this
/// time.
pub const DEMO_TIME: Duration = Duration::from_secs(30);
/// Interval at which the demo asks for the tools again if the gateway announces no changes.
pub const DEMO_POLL: Duration = Duration::from_millis(100);
/// Frames of one link that are handled before other tasks run. While a server floods its link, each
/// step of another call waits for one such burst, and the switch costs less than one frame.
pub const LINK_BURST: usize = 16;
/// Number of times that a blocked write is retried in [`LinkLimits::write_stall`], even if the
/// socket is not reported writable: the system reports that only when much of the buffer is free,
/// and a slow line makes progress before.
pub const STALL_RETRIES: u32 = 4;
/// Longest name of an unknown environment variable for which a similar known name is suggested.
/// Flags are a third as long.
pub const VARIABLE_NAME: usize = 80;
/// Bytes of a server's id. A UUID has 36; some people use host names.
pub const SERVER_ID: usize = 128;
/// Graceful stop: time for running calls to end. Together with [`DRAIN`] it is as long as service
/// managers wait before they kill.
pub const DRAIN_CALLS: Duration = Duration::from_secs(8);
/// Interval at which a stopping edge checks for running calls, and for processes that were killed.
pub const DRAIN_POLL: Duration = Duration::from_millis(20);
/// Graceful stop: time for streams and links to end after the calls.
pub const DRAIN: Duration = Duration::from_secs(2);
/// Time for the task of a lost link to hand its session over to the new link; both tasks run in the
/// same process.
pub const CLAIM: Duration = Duration::from_secs(2);
/// Longest resume window that an edge accepts from a gateway; after a longer absence the session
/// is a new one.
pub const RESUME_LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes of a path prefix in `X-Forwarded-Prefix` or `--public-url`.
pub const PREFIX: usize = 256;
/// Bytes of a file with tokens or header fields: some ten thousand of them.
pub const TEXT_FILE: u64 = MIB as u64;
/// Characters of a principal's label, and of a server name with `*` to which a token is bound: the
/// same as for a server's name.
pub const RULE_NAME: usize = 64;
/// Times that one server may take over its own live link in [`TAKEOVER_WINDOW`]. A person restarts
/// a server less often, and two programs with the same id would take over from each other forever.
pub const TAKEOVERS: usize = 5;
/// The window for [`TAKEOVERS`].
pub const TAKEOVER_WINDOW: Duration = Duration::from_secs(60);
/// Bytes of untrusted text in one log line.
pub const LOG_TEXT: usize = 256;
/// Open requests that the edge remembers, to cancel them when the link is lost and to answer them
/// when the server ends. Four times the number that our gateway has in flight.
pub const EDGE_OPEN: usize = 1024;
/// Frames held at the edge until a restarted server is initialized: as many as a link has calls.
pub const EDGE_HELD: usize = 256;
/// Bytes of those frames: as many as the queue of a running server holds.
pub const EDGE_HELD_BYTES: usize = 8 * MIB;
/// Messages taken from one JSON array that a server sends; more than it has requests in flight.
pub const BATCH_PARTS: usize = 1024;
/// Bytes kept from the end of an overlong line, where the id of the response may be.
pub const ANSWER_END: usize = KIB;
/// Bytes of a client's request id or progress token; both are kept while the call runs.
pub const ID_BYTES: usize = 256;
/// Bytes of the method of a client's request; it is kept while the call runs. Real ones have about
/// thirty.
pub const METHOD_BYTES: usize = 256;
/// Bytes of the combined instructions of all servers that a client receives.
pub const INSTRUCTIONS: usize = 16 * KIB;
/// Minimum share of those bytes for one server, with its heading: a few lines. Servers for which no
/// such share is left are counted and not shown.
pub const INSTRUCTIONS_PART: usize = 256;
/// Reserved capacity of a link's queue, in messages, for those that this end creates itself:
/// responses in place of a server, and requests of the gateway. Several times the number of calls
/// that a gateway can have in flight.
pub const RESERVED_MESSAGES: usize = 1024;
/// Reserved capacity in bytes; such messages are small.
pub const RESERVED_BYTES: usize = MIB;
/// Delay before a long-lived task continues after a panic: a task that panics every time must not
/// use up a processor or fill the log.
pub const PANIC_PAUSE: Duration = Duration::from_secs(1);
/// Sessions of one principal that are examined for one to evict. The others are examined when the
/// next session is refused.
pub const EVICTION_SCAN: usize = 64;
/// Minimum time between two list-changed notifications of one kind to all clients. A person does
/// not notice the delay, and a storm of registrations is over in a few of them.
pub const CHANGES_PAUSE: Duration = Duration::from_millis(500);
/// Clients or servers that a loop over all of them handles before other tasks run: less than a
/// millisecond of work.
pub const YIELD_EVERY: usize = 64;
/// Interval of the check for idle sessions.
pub const SWEEP: Duration = Duration::from_secs(30);
/// Default of `--max-sessions`: processes for isolated sessions at one edge.
pub const MAX_SESSIONS: u32 = 32;
/// Default port of the gateway (`--port`), the same as in the Python program.
pub const PORT: u16 = 8765;
/// Largest number of threads that a flag may set: more than the processors of any machine that this
/// is for.
pub const THREADS: usize = 64;
/// Pending server-to-client requests of one client.
pub const SERVER_REQUESTS: usize = 64;
/// Tasks of one principal whose owner is remembered, 150 bytes each; a server seldom keeps more at
/// a time.
pub const TASKS_PER_PRINCIPAL: usize = 256;
/// Tasks of all principals whose owner is remembered: 64 principals at their limit, in 3 MiB.
pub const TASKS_ALL: usize = 16 * KIB;
/// Bytes of each part of a client's `initialize` params that is kept, to pass it to the isolated
/// processes of its session.
pub const CLIENT_INFO_BYTES: usize = 64 * KIB;
/// Subscriptions requested at a time from a server that has come back: enough for a line with high
/// latency, few compared to its calls.
pub const SUBSCRIBES_IN_FLIGHT: usize = 16;
/// Interval of the timeout check for calls of isolated sessions.
pub const CHANNEL_TICK: Duration = Duration::from_secs(1);
/// Bytes of the reason in a close frame: 125 for a control frame (RFC 6455, section 5.5) less two
/// for the code.
pub const CLOSE_REASON: usize = 123;
/// Default of `--max-list-items`: items of one kind listed for one server. Servers that expose a
/// file tree or a database as resources have thousands, and descriptions of 1 KiB each fit
/// [`CatalogLimits::bytes`].
pub const LIST_ITEMS: usize = 4096;
/// Smallest page that a server is expected to send of a long list; it sets the limit of pages.
/// Servers send 10 items and more.
pub const LIST_ITEMS_PER_PAGE: usize = 8;
/// Bytes of one page of a list sent to clients; well below what they accept as one event (1 MiB).
pub const LIST_PAGE: usize = 256 * KIB;
/// Connections that the kernel queues until they are accepted: a burst of reconnecting edges must
/// fit.
pub const BACKLOG: i32 = 1024;
/// Events that one poll of the reactor returns; the next poll returns the rest. More descriptors
/// than are busy at a time, in 3 KiB.
pub const EVENTS: usize = 256;
/// Time that an idle thread busy-polls, while that pays: as long as a call through both programs
/// takes when each of its steps must wake a thread. An event that takes longer is not worth a busy
/// processor.
pub const BUSY_POLL: Duration = Duration::from_micros(100);
/// Duration of a busy-poll wait that shows that other threads used the processor after this one
/// yielded: a slice of the scheduler is some milliseconds.
pub const BUSY_POLL_STALL: Duration = Duration::from_millis(1);
/// Waits spent asleep after busy polling did not pay, before it is tried again. Two tries take 0.2
/// ms, which is little compared to this many waits that were each too long.
pub const BUSY_POLL_REST: u32 = 32;
/// The same after repeated failures or stalls: fewer than one in a thousand waits is busy-polled.
pub const BUSY_POLL_REST_LONGEST: u32 = 4096;
/// Idle time of a TCP connection before it is probed. Event streams send a comment more often, so
/// this is for idle connections and silent clients. A laptop that sleeps for less keeps its
/// connection.
pub const TCP_KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Time between two probes.
pub const TCP_PROBE_EVERY: Duration = Duration::from_secs(10);
/// Unanswered probes after which the peer is dead: a minute after its last sign of life, together
/// with the two values above.
pub const TCP_PROBES: u32 = 3;
/// Time after which unacknowledged data ends a TCP connection. Twice the longest time that a write
/// may make no progress ([`HttpLimits::write_stall`]): a live peer that does not read is
/// disconnected by that limit first, with a reason, and a dead one is detected as soon as by
/// probes. The kernel's default is about 15 minutes.
pub const TCP_UNACKNOWLEDGED: Duration = Duration::from_secs(60);
/// Attempts to find one port number that is free for both IPv4 and IPv6.
pub const BIND_TRIES: u32 = 16;
/// First delay after a failed accept; it doubles up to [`ACCEPT_PAUSE_LONGEST`].
pub const ACCEPT_PAUSE_FIRST: Duration = Duration::from_millis(1);
/// Longest delay after failed accepts: descriptors become free when connections end.
pub const ACCEPT_PAUSE_LONGEST: Duration = Duration::from_secs(1);
/// Servers named in the error for an ambiguous name or URI.
pub const AMBIGUOUS_SERVERS: usize = 8;
/// Bytes of the URI in a request at the aggregate endpoint, where it is looked up and matched
/// against all templates. RFC 9110, section 4.1, recommends to support at least this length.
pub const URI_BYTES: usize = 8000;
/// Bytes that one look-up of a URI compares with templates of the same beginning: about a thousand
/// templates for a usual URI, and a tenth of a millisecond.
pub const TEMPLATE_WORK: usize = 16 * URI_BYTES;
/// Parameters of one tool that a client repeats in header fields; each is one field of every call.
pub const HEADER_PARAMS: usize = 16;
/// Nested objects between a tool's arguments and a parameter that is repeated in a header field.
pub const HEADER_PARAM_DEPTH: usize = 8;
/// Questions that a server may ask in one result; each is one for a person or a model.
pub const INPUT_REQUESTS: usize = 16;
/// Tools named in the log when descriptions in one list changed; a list can hold hundreds, and
/// change often.
pub const LOG_CHANGES: usize = 16;
/// Bytes of log lines queued until stderr is read: about 2 500 usual lines, enough for the restart
/// of a log collector at a busy time.
pub const LOG_BUFFER: usize = 256 * KIB;
/// Stack of the log writer thread, in bytes; it only writes these lines.
pub const LOG_STACK: usize = 64 * KIB;
/// Delay after stderr did not accept a line, which happens if another program has made it
/// non-blocking.
pub const LOG_RETRY: Duration = Duration::from_millis(20);
/// Time at exit to write the queued log lines; a reader that hangs gets no more.
pub const LOG_FLUSH: Duration = Duration::from_secs(1);
/// Window of the log throttle, in which [`LogLimit`] counts the lines that peers can cause at will.
pub const LOG_EVERY: Duration = Duration::from_secs(1);
/// Limits on the log lines of one kind that peers may cause in [`LOG_EVERY`].
#[derive(Clone, Copy, Debug)]
pub struct LogLimit {
    /// Lines about one source: a link, a client or an address.
    pub source: u32,
    /// Lines about all sources together.
    pub all: u32,
}

/// Warnings about an event that repeats.
pub const LOG_WARNINGS: LogLimit = LogLimit { source: 1, all: 100 };
/// Lines that come in groups: a bad list causes several remarks, several calls time out together,
/// and nobody reads hundreds of lines.
pub const LOG_GROUPS: LogLimit = LogLimit { source: 20, all: 100 };
/// Events of a link (registered, lists, reconnecting, resumed, gone). A server reports each of its
/// four kinds of lists at most twice in a second, and when a whole fleet reconnects at once, each
/// server is logged.
pub const LOG_LINK_EVENTS: LogLimit = LogLimit { source: 8, all: 1000 };
/// Sources of one kind that are remembered from earlier windows.
pub const LOG_SOURCES: usize = 256;
/// Time to send a TLS close alert and close; a peer that does not read gets no more. Also the time
/// that killed processes have to end.
pub const CLOSE: Duration = Duration::from_secs(2);
/// Bytes that a line reader requests with one read, and the initial size of its buffer.
pub const LINE_READ: usize = 8 * KIB;
/// Bytes of the buffer that a line reader keeps after a long line; the rest is freed.
pub const LINE_KEPT: usize = 64 * KIB;
/// Bytes that are read and discarded after a refused TLS handshake, so that the client sees the
/// alert and not a reset.
pub const LINGER: usize = 16 * KIB;
/// Time without an answer after which a connection attempt is joined by one to the next address of
/// the name (RFC 8305, section 5).
pub const DIAL_STAGGER: Duration = Duration::from_millis(250);
