//! The state of the gateway, and all decisions about its messages, without IO: pure, no socket, no
//! clock and no lock.
//!
//! [`Hub`](state::Hub) owns all tables. The program that owns the hub locks it for each
//! [`entry`]; the time is an argument, and what the hub wants done comes back as
//! [`Effects`](effect::Effects).
//!
//! What the hub uses, in the order in which one uses the other:
//! - [`key`]: keys of sessions and server processes. [`peers`]: traits of what carries messages to
//!   clients and edges. [`effect`]: what an entry leaves to be done.
//! - [`error`]: why a request is refused or fails, with the code and the text of each reason.
//! - [`request`] and [`incoming`]: parsed messages of clients and servers.
//! - [`mux`]: gives each request to a process its own id, and matches responses to callers.
//! - [`listener`]: a listen while it is opened.
//! - [`link`], [`instance`], [`upstream`], [`session`]: a server's link, one of its processes, the
//!   whole server, and a client's session. [`conclusion`]: a response on its way to the client.
//! - [`state`]: the tables.
//!
//! What the hub does, each file using those before it:
//! - `tick`: timers. `fanout`: notifications to several sessions. `tasks`: who may see which task.
//! - `subscribe`: subscriptions and log levels. `lifecycle`: how sessions, instances and servers
//!   begin and end. `lease`, with [`waiting`]: processes of principals, for clients without a
//!   session. [`park`]: what their servers ask these clients. `own`, with [`server_list`]: requests
//!   that the gateway answers itself.
//! - `rounds`: questions of modern servers to the clients of sessions.
//! - [`call`], [`stateless`] and `notify`: messages of clients. [`answer`]: responses to them.
//!   [`listen`]: what clients listen to. `discover` and [`frame`]: messages of servers.
//!   [`registration`]: new servers.
//! - [`entry`]: the two ways in. `check`: whether the tables agree, for tests.

pub mod answer;
pub mod call;
mod check;
pub mod conclusion;
mod discover;
pub mod effect;
pub mod entry;
pub mod error;
pub mod fanout;
pub mod frame;
pub mod incoming;
pub mod instance;
pub mod key;
mod lease;
mod lifecycle;
pub mod link;
pub mod listen;
pub mod listener;
pub mod mux;
mod notify;
mod own;
pub mod park;
pub mod peers;
pub mod registration;
pub mod request;
mod rounds;
pub mod server_list;
pub mod session;
pub mod state;
pub mod stateless;
mod subscribe;
mod tasks;
mod tick;
pub mod upstream;
pub mod waiting;
