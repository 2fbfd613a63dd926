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
//!
//! # Two pollers
//!
//! A process has a second poller, that of `async-io`, on a thread named `async-io`. It serves
//! timers, signals, ends of child processes (pidfds) and connects, and wakes our threads. Only what
//! happens for every call was moved to [`reactor`]. The second poller stays, because there is
//! little to gain (measured on x86-64, release build with glibc):
//!
//! | cost of the second poller | gateway | register |
//! |---|---|---|
//! | system calls per `tools/call` | 0 of 6 | 0 of 6 |
//! | its thread's system calls in 200 calls of one client | 15 of 1 200 | 7 of 1 200 |
//! | system calls while idle, of both threads | 2.3 per second | 1.3 per second |
//! | its thread's CPU time in 500 calls, with the start | 0.23 ms of 16 ms | 0.27 ms of 14 ms |
//! | resident memory: stacks and allocator arena, at most | 24 KiB of 4.7 MiB | 24 KiB of 4.7 MiB |
//! | descriptors: epoll, eventfd, timerfd | 3 | 3 |
//! | code of `async-io`, `polling` and `async-signal` | 15 KB of 3.7 MB | the same program |
//!
//! Removing it would take timers of our own, ordered by time and shared by all threads, for the ten
//! files that use `smol::Timer`; connecting and pidfds on [`async_fd`]; and a signal handler that
//! writes to a pipe. `async-io` would still be built, since `smol` and `async-signal` depend on it.
//! Timers in our poller would also make each wait look up the next one, on the path of every call,
//! which today has none.

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
