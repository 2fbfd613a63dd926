//! Every number of the program, each with its reason. Nothing else in `src/` invents a bound.
//!
//! The structs are plain data, so that a test can shrink a limit and reach it in milliseconds.

use std::time::Duration;

/// Kibibyte, in bytes.
const KIB: usize = 1024;
/// Mebibyte, in bytes.
const MIB: usize = 1024 * KIB;

/// All limits of one running program.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// The HTTP front.
    pub http: HttpLimits,
    /// Client sessions.
    pub session: SessionLimits,
    /// The link between edge and gateway.
    pub link: LinkLimits,
    /// What a server may offer.
    pub catalog: CatalogLimits,
    /// Child processes at the edge.
    pub child: ChildLimits,
    /// The built-in server about the box.
    pub device: DeviceLimits,
    /// Guessing of tokens.
    pub guess: GuessLimits,
    /// Bytes of what the gateway keeps.
    pub memory: MemoryLimits,
}

/// Bounds of what the gateway keeps in memory for all its peers together.
#[derive(Clone, Debug)]
pub struct MemoryLimits {
    /// Bytes in all (`--max-memory`); see [`MAX_MEMORY`].
    pub bytes: usize,
    /// No more than half of the memory that the process may use.
    pub by_machine: bool,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self { bytes: MAX_MEMORY, by_machine: true }
    }
}

/// Bounds of the HTTP/1.1 server.
#[derive(Clone, Debug)]
pub struct HttpLimits {
    /// Bytes of a request head. 16 KiB is what other servers allow; larger heads are attacks or cookies.
    pub head_bytes: usize,
    /// Header fields in one head. MCP clients send about ten.
    pub fields: usize,
    /// Bytes of the request target. Session ids are short.
    pub target_bytes: usize,
    /// Time from the first byte of a head to its end, whatever the drip.
    pub head_time: Duration,
    /// Idle time between two requests of one connection.
    pub keep_alive: Duration,
    /// Requests on one connection, so that no connection lives for ever.
    pub requests: u32,
    /// Bytes of a request body. What the official SDKs accept.
    pub body_bytes: usize,
    /// Time for a whole body.
    pub body_time: Duration,
    /// Bytes per second that a body must bring, once `body_grace` has passed.
    pub body_floor: usize,
    /// Time before `body_floor` is asked for.
    pub body_grace: Duration,
    /// Bytes of chunk extensions in one body, all together; they carry nothing.
    pub chunk_extension_bytes: usize,
    /// Bytes of trailers; they are dropped.
    pub trailer_bytes: usize,
    /// Bytes of an unread body that are read away after an early answer, so that the client sees the answer.
    pub drain_bytes: usize,
    /// Time for that.
    pub drain_time: Duration,
    /// Bytes that one read asks for; also what an idle connection keeps. A usual POST fits in one read.
    pub read_bytes: usize,
    /// Bytes that one read asks for while a large body comes in, so that a megabyte needs few reads.
    pub read_burst: usize,
    /// Bytes of a read that only waits for the peer's end (event streams, running calls), so that it costs little.
    pub watch_bytes: usize,
    /// Time that a write to a client may make no progress.
    pub write_stall: Duration,
    /// Connections in all. 90 KiB at worst each, 90 MiB; beside them the one message that is under way on each, which a
    /// peer that does not read pins for `write_stall` at most.
    pub connections: usize,
    /// Connections from one IPv4 address or one IPv6 /64 network. A household of clients has a dozen each.
    pub connections_per_address: usize,
    /// Connections from loopback, all together: a proxy on this machine speaks for everybody.
    pub connections_from_loopback: usize,
    /// Connections that have sent no request that is let in. One more pushes out the oldest, so it only has to hold
    /// those that speak: 200 edges that come back within a second, and their handshakes.
    pub connections_unauthenticated: usize,
    /// Connections that are told at one time that there is no place for them; others are closed without a word.
    pub turned_away: usize,
    /// TLS handshake, off the accept loop.
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
            turned_away: 64,
            tls_handshake: Duration::from_secs(10),
        }
    }
}

/// Bounds of client sessions.
#[derive(Clone, Debug)]
pub struct SessionLimits {
    /// Sessions in all.
    pub sessions: usize,
    /// Sessions of one principal, where there are several: half of all. Whoever runs wild leaves the others as much as
    /// he takes, and a farm of agents with one token has room. With one token, or none, there is nobody to leave it to.
    pub per_principal: usize,
    /// A session of the Streamable transport ends when it was not used for so long.
    pub idle: Duration,
    /// After so long without use a session may have to make room for another of the same principal. Longer than people pause
    /// within a piece of work is not needed: a client whose session is gone opens another.
    pub spare: Duration,
    /// Sent events of one session that are kept for a client that comes back to a broken stream.
    pub replay_messages: usize,
    /// Bytes of them.
    pub replay_bytes: usize,
    /// Broken streams of one session that wait for their client.
    pub parked: usize,
    /// How long a client is asked to wait before it comes back to a stream.
    pub retry: Duration,
    /// Resources that one session may be subscribed to.
    pub subscriptions: usize,
    /// Messages in one batch (protocol version 2025-03-26).
    pub batch: usize,
    /// Bytes of the answers to one batch; the first may have more. They wait until all are there, and small requests can have
    /// large answers.
    pub batch_bytes: usize,
    /// Messages that wait for one client to read them.
    pub queue_messages: usize,
    /// Bytes that wait for one client to read them; a single larger message is still taken when nothing waits.
    pub queue_bytes: usize,
    /// Bytes of answers that may wait beyond that: several large results at a time, to a client that reads. All of it comes
    /// from the budget of the gateway.
    pub queue_burst: usize,
    /// Bytes of messages that are written to a client at a time, at least one message; they are in memory twice then.
    pub write_bytes: usize,
    /// Calls of one session that wait for an answer.
    pub in_flight: usize,
    /// A comment goes out on a silent event stream this often, so that proxies keep it open.
    pub keep_alive: Duration,
    /// The answer to a POST becomes an event stream when nothing has come for so long. Most calls are done by then; the usual
    /// patience of a proxy is a minute.
    pub silence: Duration,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            sessions: 512,
            per_principal: 256,
            idle: Duration::from_secs(30 * 60),
            spare: Duration::from_secs(60),
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
            silence: Duration::from_secs(15),
        }
    }
}

/// Bounds of guessing tokens.
#[derive(Clone, Debug)]
pub struct GuessLimits {
    /// Wrong tokens in `window` from one address; a person who mistypes needs three.
    pub failures: usize,
    /// See `failures`. Ten a minute are five million in a year: nothing against a token of 64 random bits.
    pub window: Duration,
    /// Addresses that are remembered; at most 400 bytes each. An attack from more of them is not stopped by counting.
    pub addresses: usize,
    /// How often a full table is looked through for what is over, at most.
    pub sweep: Duration,
}

impl Default for GuessLimits {
    fn default() -> Self {
        Self { failures: 10, window: Duration::from_secs(60), addresses: 1024, sweep: Duration::from_secs(1) }
    }
}

/// Bounds of the link.
#[derive(Clone, Debug)]
pub struct LinkLimits {
    /// Bytes of one message, which is one frame.
    pub message_bytes: usize,
    /// Time that a large frame waits for memory at the gateway before its link is closed. Answers to clients that do not read are
    /// dropped or given up in less than three times that.
    pub memory_wait: Duration,
    /// Read buffer of the WebSocket library (its default pins 128 KiB for each link).
    pub read_buffer: usize,
    /// Write buffer of the WebSocket library.
    pub write_buffer: usize,
    /// Messages that wait to be written.
    pub queue_messages: usize,
    /// Bytes that wait to be written.
    pub queue_bytes: usize,
    /// Time that a write to the link may make no progress.
    pub write_stall: Duration,
    /// From the first byte of a message on, time before `message_floor` is asked for.
    pub message_time: Duration,
    /// Bytes per second that a message must bring after that: a large one over a slow line passes, a drip does not. How
    /// long fragments without end can go on is bounded by the bytes of a message. Acknowledgements may be as slow.
    pub message_floor: usize,
    /// Control frames in `control_window`.
    pub control_frames: u32,
    /// The window for `control_frames`.
    pub control_window: Duration,
    /// A ping goes out when nothing was heard for this long.
    pub ping_every: Duration,
    /// The peer is dead when nothing was heard for this long.
    pub dead_after: Duration,
    /// From the upgrade to the register frame.
    pub register_time: Duration,
    /// Bytes of the register frame.
    pub register_bytes: usize,
    /// Links in all.
    pub links: usize,
    /// Calls that wait for an answer on one link.
    pub in_flight: usize,
    /// Time for the peer to read our goodbye.
    pub farewell: Duration,
    /// Bytes that are read away meanwhile: what was on its way when we said it.
    pub farewell_bytes: usize,
    /// Connecting and upgrading, at the edge.
    pub connect_time: Duration,
    /// First reconnect delay, before jitter.
    pub backoff_base: Duration,
    /// Longest reconnect delay.
    pub backoff_cap: Duration,
    /// Longest reconnect delay after the gateway refused us (401, 403): a token has to be changed by a person.
    pub backoff_refused: Duration,
    /// A life this long starts the backoff afresh.
    pub backoff_reset: Duration,
    /// How long a conversation outlives its connection (`--resume-window`); zero: not at all. Most changes of address
    /// and restarts of a router are over by then, and few clients wait longer.
    pub resume_window: Duration,
    /// Longest pause between two attempts as long as a conversation waits to be resumed.
    pub resume_retry: Duration,
    /// What the gateway adds to the window: an edge whose line is back just in time may be in a pause, and has to connect.
    pub resume_grace: Duration,
    /// Frames that are sent and not acknowledged.
    pub resume_messages: usize,
    /// Bytes of them; a single larger frame is still sent when all before it are acknowledged.
    pub resume_bytes: usize,
    /// Frames after which an acknowledgement is sent: one small frame for many.
    pub ack_every: u64,
    /// Bytes after which one is sent; well below what the peer may have under way.
    pub ack_bytes: usize,
    /// Time after which one is sent, so that an idle link keeps nothing.
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
            farewell: Duration::from_secs(1),
            farewell_bytes: 64 * KIB,
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

/// Bounds of what one server may offer.
#[derive(Clone, Debug)]
pub struct CatalogLimits {
    /// Items of one kind (tools, prompts…) of one server; see [`LIST_ITEMS`].
    pub items: usize,
    /// Bytes of all descriptions of one kind of one server.
    pub bytes: usize,
    /// Pages that are followed in one listing; see [`LIST_ITEMS_PER_PAGE`].
    pub pages: usize,
    /// Characters of a server's name.
    pub server_name: usize,
    /// Characters of a tool's or a prompt's own name.
    pub tool_name: usize,
    /// Characters of a resource's URI.
    pub uri: usize,
    /// Characters of a name that a client sees; several model APIs refuse more.
    pub exposed_name: usize,
    /// Pause between two listings that a server asks for by saying that a list changed.
    pub list_pause: Duration,
    /// Longest pause before a list that failed is asked for again: a broken server costs next to nothing, and one that is
    /// repaired without a word is listed within minutes. The first pause is the one above; it doubles each time.
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

/// Bounds of a child process at the edge.
#[derive(Clone, Debug)]
pub struct ChildLimits {
    /// Bytes of one line on the child's stdout; what one message may have.
    pub line_bytes: usize,
    /// Bytes of a stderr line that are logged.
    pub stderr_line: usize,
    /// Lines of stderr that are logged in one second; the rest is counted.
    pub stderr_lines: u32,
    /// Messages that wait for the child to read them.
    pub queue_messages: usize,
    /// Time that a write to the child's stdin may make no progress.
    pub write_stall: Duration,
    /// From the end of a server that is started again to the next start, the first time; it doubles each time. Long enough
    /// for what a server depends on to come back, short enough not to be noticed after a single crash.
    pub restart_base: Duration,
    /// Longest such time: a server that never runs costs next to nothing, and one that is repaired is back in a minute.
    pub restart_cap: Duration,
    /// A life this long starts that afresh.
    pub restart_reset: Duration,
    /// A server that was started anew has this long to answer `initialize`; it may have to be downloaded first.
    pub greet_time: Duration,
    /// Time to read what a server that has ended left in its pipes, before its calls are failed: they must be within a
    /// second.
    pub last_words: Duration,
    /// A server that closes its stdin or stdout has this long to end by itself.
    pub pipe_grace: Duration,
    /// From closing stdin to SIGTERM.
    pub term_after: Duration,
    /// From closing stdin to SIGKILL.
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
            greet_time: TOOL_TIME,
            last_words: Duration::from_millis(500),
            pipe_grace: Duration::from_secs(2),
            term_after: Duration::from_secs(2),
            kill_after: Duration::from_secs(5),
        }
    }
}

/// Header fields in one head, whatever [`HttpLimits::fields`] says: the size of a table on the stack.
pub const HTTP_FIELDS: usize = 64;
/// Bounds of the built-in server about the box (`mcpport device`).
#[derive(Clone, Debug)]
pub struct DeviceLimits {
    /// Bytes of one line on stdin: what one message may have anywhere else in the program.
    pub line_bytes: usize,
    /// Bytes of `params`, before a tree is built from them; real ones have a few hundred.
    pub params_bytes: usize,
    /// Bytes of one kernel text (mount table, counters); a busy container host has some hundred KiB of mounts.
    pub text_bytes: usize,
    /// Entries of one list: file systems, interfaces, addresses, temperatures.
    pub entries: usize,
    /// Processes that are looked at; each costs two small files and 100 bytes.
    pub processes: usize,
    /// Processes that one answer may show.
    pub top: u64,
    /// Processes that an answer shows unless asked otherwise.
    pub top_default: u64,
    /// Time over which processor use is measured: ten milliseconds is the kernel's unit, so this gives steps of 2 %.
    pub cpu_window: Duration,
    /// The kernel's unit of processor time, in 1/s. Fixed in its interface to programs on all that we build for.
    pub cpu_ticks: u32,
    /// Lines that one answer may show of a log file.
    pub log_lines: u64,
    /// Lines of a log file unless asked otherwise.
    pub log_lines_default: u64,
    /// Bytes that are read from the end of a log file.
    pub log_bytes: usize,
    /// Receive buffer for the kernel's list of addresses; it fills what it is offered.
    pub netlink_bytes: usize,
    /// Time that one part of that list may take; it comes from memory.
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

/// Bytes that the gateway keeps for clients and servers, unless `--max-memory` says otherwise: half of the smallest VPS that is
/// sold (512 MiB), and half of what the process may use where that is less. It covers messages that wait or are being written, request bodies, frames of links that come in (from 16 KiB
/// on, from the moment that they are announced) with the buffers that they leave behind,
/// frames kept for resumption, lists and answers to `initialize` of servers, what sessions say of themselves and subscribe to, and
/// events kept for replay. What the process has beside it is, at most: program and tables 16 MiB; for each connection 11 KiB while
/// it is idle (19 KiB with TLS, 23 and 31 KiB as a link) and 70 KiB (90 KiB with TLS) while a body of up to 64 KiB comes in, all
/// measured; and, for each thread, three copies of the largest message while it is passed on, 12 MiB.
pub const MAX_MEMORY: usize = 256 * MIB;
/// Bytes that `--max-memory` may ask for: less does not hold two messages of the usual size and what is kept free beside them.
pub const MEMORY: std::ops::RangeInclusive<usize> = 16 * MIB..=2048 * MIB;
/// Bytes that an item of a list takes beside its texts: the structures that hold it, its exposed name, the index.
pub const ITEM_BYTES: usize = 256;
/// Bytes of an amount that may be taken from the last part of a budget: most calls are smaller, and pass where large ones are
/// refused.
pub const BUDGET_SMALL: usize = 16 * KIB;
/// The part of a budget that is kept free for small amounts: one in so many.
pub const BUDGET_RESERVE: usize = 8;
/// Bytes that a subscription takes beside its URIs: the id of its request, and its places in three tables.
pub const SUBSCRIPTION_BYTES: usize = 384;
/// How often a frame that waits for memory looks for it.
pub const LINK_MEMORY_LOOK: Duration = Duration::from_millis(50);
/// The buffers of a link that has carried no large frame for so long are given back: large answers that follow each other find
/// them still there. While more than half of the budget is taken they are given back at once.
pub const LINK_SHRINK: Duration = Duration::from_secs(1);
/// Bytes of one message that `--max-message-bytes` may ask for: what a registration has, and what a small box still holds
/// a few of.
pub const MESSAGE_BYTES: std::ops::RangeInclusive<usize> = 64 * KIB..=256 * MIB;
/// What a frame on a link has beside its message.
pub const FRAME_EXTRA: usize = 64 * KIB;
/// Most of anything countable that a flag may ask for: descriptors of one process end there on common systems.
pub const COUNT: usize = 1_000_000;
/// Descriptors of the gateway beside those of its connections: standard streams, sockets, logs, and some to spare.
pub const DESCRIPTORS_EXTRA: usize = 64;
/// Nesting of JSON values; what other parsers allow. One bit each in a `u128`.
pub const JSON_DEPTH: u32 = 128;
/// Time for an answer of a server, unless `--timeout-rpc` says otherwise.
pub const RPC_TIME: Duration = Duration::from_secs(10);
/// Time for a tool call, unless `--timeout-run-tool` says otherwise; tools may work for a while.
pub const TOOL_TIME: Duration = Duration::from_secs(120);
/// Time for a call whose server keeps sending progress, which starts `--timeout-run-tool` anew each time: an hour is beyond
/// what clients wait for, and a server that reports progress for ever gives the call's place back. A longer
/// `--timeout-run-tool` rules.
pub const CALL_LONGEST: Duration = Duration::from_secs(60 * 60);
/// Time for the demo's call, from its first connection on: a slow box still starts a process in this time.
pub const DEMO_TIME: Duration = Duration::from_secs(30);
/// Frames of one link that are handled in one go before other tasks get their turn. A call waits for such a turn at each
/// of its steps while a server floods, and a turn costs less than one frame.
pub const LINK_BURST: usize = 16;
/// How often in [`LinkLimits::write_stall`] a write that waits is tried anyway: the system says that there is room when
/// there is much, and a slow line makes progress before.
pub const STALL_LOOKS: u32 = 4;
/// Longest name of an environment variable for which a likely one is looked for. Flags are a third as long.
pub const VARIABLE_NAME: usize = 80;
/// Bytes of a server's identity. A UUID has 36; people give host names.
pub const SERVER_ID: usize = 128;
/// Graceful stop: time for running calls to end. With [`DRAIN`] it is what service managers wait before they kill.
pub const DRAIN_CALLS: Duration = Duration::from_secs(8);
/// Graceful stop of an edge: how often to look whether calls still run.
pub const DRAIN_LOOK: Duration = Duration::from_millis(20);
/// Graceful stop: time for streams and links to end after the calls.
pub const DRAIN: Duration = Duration::from_secs(2);
/// Time for the task of a lost link to hand its conversation to the new one; it is asked on the same machine.
pub const CLAIM: Duration = Duration::from_secs(2);
/// Longest time for which an edge keeps what a gateway says it waits for; who is away for longer begins anew.
pub const RESUME_LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes of a path prefix in `X-Forwarded-Prefix` or `--public-url`.
pub const PREFIX: usize = 256;
/// Bytes of a file with tokens or header fields; some ten thousand of them.
pub const TEXT_FILE: u64 = MIB as u64;
/// Characters of a principal's label, and of a server name with `*` to which a token is bound: those of a server's name.
pub const RULE_NAME: usize = 64;
/// Times that one server may take over its own living link in [`TAKEOVER_WINDOW`]; a person restarts less often, and two
/// programs that fight over one id go on for ever.
pub const TAKEOVERS: usize = 5;
/// See [`TAKEOVERS`].
pub const TAKEOVER_WINDOW: Duration = Duration::from_secs(60);
/// Bytes of foreign text in one log line.
pub const LOG_TEXT: usize = 256;
/// Requests of a gateway that the edge remembers, to cancel them when the link is lost and to answer them when the
/// server ends. Four times what our gateway has under way.
pub const EDGE_OPEN: usize = 1024;
/// Frames that wait at the edge until a server that was started anew is initialized: as many as a link has calls.
pub const EDGE_HELD: usize = 256;
/// Bytes of them: as much as may wait for a server that runs.
pub const EDGE_HELD_BYTES: usize = 8 * MIB;
/// Messages that are taken out of one array that a server answers with; more than it was asked things at a time.
pub const BATCH_PARTS: usize = 1024;
/// Bytes that are kept of the end of a line that is too long, where the id of the answer may stand.
pub const ANSWER_END: usize = KIB;
/// Bytes of a client's request id or progress token; they are kept while the call runs.
pub const ID_BYTES: usize = 256;
/// Bytes of a method that a client asks for; it is kept while the call runs. Real ones have thirty.
pub const METHOD_BYTES: usize = 256;
/// Bytes of the instructions of all servers, put together for one client.
pub const INSTRUCTIONS: usize = 16 * KIB;
/// Bytes of the least share of them that a server gets with its heading: some lines. More servers than have room for that are
/// counted, and not shown.
pub const INSTRUCTIONS_PART: usize = 256;
/// Messages that an end of a link may put into its queue beyond those that it carries for others: answers in the place of a
/// server, and what a gateway asks of its own. As many as a gateway can have under way, several times.
pub const OWN_MESSAGES: usize = 1024;
/// Bytes of them; such messages are small.
pub const OWN_BYTES: usize = MIB;
/// Pause after a panic in a task that goes on: one that panics each time must not take a processor or fill the log.
pub const PANIC_PAUSE: Duration = Duration::from_secs(1);
/// Sessions of one principal that are looked at to find one that makes room for another. More have their turn with the next
/// session that is refused.
pub const ROOM_LOOKS: usize = 64;
/// Pause between two notices to all clients that lists of one kind changed: a person does not notice it, and a storm of
/// registrations is over in a few of them.
pub const CHANGES_PAUSE: Duration = Duration::from_millis(500);
/// Clients or servers that one step of a walk through all of them takes before other tasks get their turn: less than a
/// millisecond.
pub const PIECE: usize = 64;
/// How often idle sessions are looked for.
pub const SWEEP: Duration = Duration::from_secs(30);
/// Processes for isolated sessions at one edge, unless `--max-sessions` says otherwise.
pub const MAX_SESSIONS: u32 = 32;
/// Port of the gateway, unless `--port` says otherwise. The one of the Python program.
pub const PORT: u16 = 8765;
/// Threads that a flag may ask for: more than the processors of any machine that this is for.
pub const THREADS: usize = 64;
/// Requests of a server that wait for one client's answer.
pub const ASKS: usize = 64;
/// Tasks of one principal whose owner is remembered; a server seldom keeps more at a time. 150 bytes each.
pub const TASKS: usize = 256;
/// Tasks of all principals whose owner is remembered: 64 principals with all that one may have, in 3 MiB.
pub const TASKS_ALL: usize = 16 * KIB;
/// Bytes of what a client says of itself in `initialize`, to be said to the processes of its own.
pub const CLIENT_FACTS: usize = 64 * KIB;
/// Subscriptions that a server which is back is asked for at a time: enough for a far line, few beside its calls.
pub const WISHES: usize = 16;
/// How often the calls of isolated sessions are looked at for their deadlines.
pub const CHANNEL_TICK: Duration = Duration::from_secs(1);
/// Bytes that a close frame has for its reason (RFC 6455, section 5.5, less two for the code).
pub const CLOSE_REASON: usize = 123;
/// Items of one kind of one server that are listed, unless `--max-list-items` says otherwise: servers that expose a file tree
/// or a database as resources have thousands, and 1 KiB of description each fits the bytes of a list.
pub const LIST_ITEMS: usize = 4096;
/// Items that a server sends in one page at least, where its list is long; it sets the limit of pages. Servers send 10 and more.
pub const LIST_ITEMS_PER_PAGE: usize = 8;
/// Bytes of one page of a list; well below what clients take as one event (1 MiB).
pub const LIST_PAGE: usize = 256 * KIB;
/// Connections that the kernel holds for us until we accept them: a burst of reconnecting edges must fit.
pub const BACKLOG: i32 = 1024;
/// Descriptors whose news one turn of the reactor brings; what is more comes with the next. More than run hot at a time, in 3 KiB.
pub const EVENTS: usize = 256;
/// A thread that has nothing to do stays awake so long, while that pays: what a call through both programs takes when every
/// step of it must wake a thread. Whoever is not heard of until then is no longer worth a processor.
pub const BUSY_POLL: Duration = Duration::from_micros(100);
/// A wait that lasts so long all the same was others' doing, who were let run first: a slice of the scheduler is some milliseconds.
pub const SPIN_STALL: Duration = Duration::from_millis(1);
/// Waits that are spent asleep, where staying awake did not pay, before it is tried again. Two tries are 0.2 ms, which is little
/// beside so many waits that were each too long.
pub const SPIN_REST: u32 = 32;
/// And where it has not paid again and again, or others were in the way: one in a thousand.
pub const SPIN_REST_LONGEST: u32 = 4096;
/// A connection on which nothing was sent or received for so long is probed. Event streams send a comment more often, so
/// this is for idle connections and silent clients; a laptop that slept for less is not bothered.
pub const TCP_KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Pause between two probes.
pub const TCP_PROBE_EVERY: Duration = Duration::from_secs(10);
/// Probes without an answer after which the peer is dead: a minute after the last sign of life, together with the above.
pub const TCP_PROBES: u32 = 3;
/// What is sent and not acknowledged for so long ends the connection. Twice the longest time for which a write may make no
/// progress ([`HttpLimits::write_stall`]): a peer that is there and does not read is told why by us, one that is not is
/// gone as soon as by probes. The kernel's own patience is about 15 minutes.
pub const TCP_UNACKNOWLEDGED: Duration = Duration::from_secs(60);
/// Attempts to find one port number that is free in IPv4 and in IPv6.
pub const BIND_TRIES: u32 = 16;
/// First pause after a failed accept; it doubles up to [`ACCEPT_PAUSE_LONGEST`].
pub const ACCEPT_PAUSE_FIRST: Duration = Duration::from_millis(1);
/// Longest pause after failed accepts: descriptors come back when connections end.
pub const ACCEPT_PAUSE_LONGEST: Duration = Duration::from_secs(1);
/// Servers that are named in the error for a name or a URI that several of them can mean.
pub const AMBIGUOUS_SERVERS: usize = 8;
/// Bytes of the URI in a request at the aggregate, where it is looked up and matched with all templates: what RFC 9110,
/// section 4.1, recommends to support.
pub const URI_BYTES: usize = 8000;
/// Bytes that one look-up of a URI compares with templates that begin as it does: a thousand of them with a usual URI, and a
/// tenth of a millisecond.
pub const TEMPLATE_WORK: usize = 16 * URI_BYTES;
/// Tools of one list whose descriptions changed that are named in the log; a list can hold hundreds, and change often.
pub const LOG_CHANGES: usize = 16;
/// Bytes of log lines that wait for stderr to be read; about 2 500 usual lines, a restart of a log collector at a busy time.
pub const LOG_BUFFER: usize = 256 * KIB;
/// Stack of the thread that writes them; it does nothing else.
pub const LOG_STACK: usize = 64 * KIB;
/// Pause after stderr would not take a line, where another program has made it non-blocking.
pub const LOG_RETRY: Duration = Duration::from_millis(20);
/// Time at exit for log lines to be written; a reader that hangs gets no more.
pub const LOG_FLUSH: Duration = Duration::from_secs(1);
/// Window of the log throttle: a warning that an address can cause at will is logged at most this often.
pub const LOG_EVERY: Duration = Duration::from_secs(1);
/// Log lines of one kind that peers may cause in [`LOG_EVERY`].
#[derive(Clone, Copy, Debug)]
pub struct LogLimit {
    /// About one source: a link, a client or an address.
    pub source: u32,
    /// About all sources together.
    pub all: u32,
}

/// Warnings about one event that repeats.
pub const LOG_WARNINGS: LogLimit = LogLimit { source: 1, all: 100 };
/// Lines that come in groups: a bad list has some remarks, several calls time out together, and hundreds help nobody.
pub const LOG_GROUPS: LogLimit = LogLimit { source: 20, all: 100 };
/// Steps in the life of a link (registers, offers, reconnecting, back, gone). A server says twice in a second what it offers
/// at most, of four kinds; and when a whole fleet returns at once, each server is logged.
pub const LOG_LIFE: LogLimit = LogLimit { source: 8, all: 1000 };
/// Links and addresses of one kind that are remembered from former windows.
pub const LOG_SOURCES: usize = 256;
/// Time to send a TLS farewell and close; a peer that does not read gets no more.
pub const CLOSE: Duration = Duration::from_secs(2);
/// Bytes that a line reader offers to one read, and starts with.
pub const LINE_READ: usize = 8 * KIB;
/// Bytes that a line reader keeps after a long line; more goes back to the system.
pub const LINE_KEPT: usize = 64 * KIB;
/// Bytes that are read away after a TLS refusal, so that the client sees the alert and not a reset.
pub const LINGER: usize = 16 * KIB;
/// A connect attempt that is silent for this long gets company by the next address of the name (RFC 8305, section 5).
pub const DIAL_STAGGER: Duration = Duration::from_millis(250);
