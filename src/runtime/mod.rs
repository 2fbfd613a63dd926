//! The async runtime: a few threads that poll tasks, and one poller for all sockets and pipes.
//!
//! - [`executor`]: runs tasks. [`tasks`]: a scope that cancels its tasks when dropped.
//!   [`task_tracker`]: counts tasks. [`pacer`]: lets many tasks take turns. [`shutdown`]: tells all
//!   of them to stop.
//! - [`reactor`]: waits for events of the system. [`handoff`]: which thread does that, and how the
//!   others sleep. [`async_fd`]: sockets and pipes registered with it.
//! - [`notify`]: wake flags, so that a future that was not woken is not polled. [`sync`]: the
//!   primitives of this and of `handoff`, which a test replaces.
//! - [`busy_poll`]: decides when an idle thread stays awake for a moment.
//! - [`lock`]: a mutex that a panic does not poison.
//! - [`signals`]: SIGTERM, SIGINT and SIGHUP as a future.

pub mod async_fd;
pub mod busy_poll;
pub mod executor;
pub mod handoff;
pub mod lock;
pub mod notify;
pub mod pacer;
pub mod reactor;
pub mod shutdown;
pub mod signals;
pub mod sync;
pub mod task_tracker;
pub mod tasks;
