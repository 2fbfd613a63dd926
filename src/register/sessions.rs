//! A process of its own for each client session (`--sessions isolated`): opened and closed by the gateway, one channel
//! of the link each, and none of them longer than the link.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_lite::future;

use super::server::{Outlet, Server};
use crate::{
    config::RegisterConfig,
    jsonrpc::{self, Kind, Message},
    net::{
        exec::{self, Crew, Switch, Thrown},
        link::Farewell,
        queue::{Refused, Sender},
    },
    tunnel::channel,
};

/// All channels of the present link.
#[derive(Debug)]
pub struct Sessions {
    config: RegisterConfig,
    open: Mutex<HashMap<u32, Open>>,
    crew: Crew,
}

#[derive(Debug)]
struct Open {
    input: Sender<()>,
    /// Dropping it ends the process.
    _stop: Switch,
}

impl Sessions {
    /// No session so far.
    pub fn new(config: &RegisterConfig) -> Arc<Self> {
        Arc::new(Self { config: config.clone(), open: Mutex::default(), crew: Crew::new() })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u32, Open>> {
        // Each change of the table is complete in itself, so a panic elsewhere does not spoil it.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The gateway opens a channel: starts a process, or says why not.
    pub fn start(self: &Arc<Self>, number: u32, link: &Sender<Farewell>) {
        let most = self.config.sessions.unwrap_or_default() as usize;
        // A process that is being ended counts until it is gone.
        if self.crew.len() >= most || self.open().contains_key(&number) {
            return refuse(number, "the edge runs as many sessions as it may (--max-sessions)", link);
        }
        let outlet = Outlet::Channel(number, link.clone());
        let server = match Server::start(&self.config, outlet) {
            Ok(server) => server,
            Err(fault) => return refuse(number, &fault.to_string(), link),
        };
        let (stop, stopped) = exec::switch();
        self.open().insert(number, Open { input: server.input(), _stop: stop });
        let (sessions, link, badge) = (self.clone(), link.clone(), self.crew.badge());
        let life = async move {
            let _held = badge;
            sessions.live(number, server, stopped, &link).await;
        };
        exec::spawn_guarded(life, || log::error!("a session ended in a panic; the others go on"));
    }

    async fn live(&self, number: u32, mut server: Server, stopped: Thrown, link: &Sender<Farewell>) {
        let ended = async { Some(server.ended().await) };
        let stopped = async {
            stopped.wait().await;
            None
        };
        let ended = future::or(stopped, ended).await;
        let exit = server.stop(&self.config.limits.child).await;
        self.open().remove(&number);
        let Some(why) = ended else { return };
        let why = why.map_or_else(|| exit.to_string(), str::to_owned);
        log::info!("the process of session {number} ended by itself: {why}");
        let _ = link.send_wait(channel::close(number, &why)).await;
    }

    /// A message for a session's process.
    pub fn message(&self, number: u32, text: &str, link: &Sender<Farewell>) {
        let Some(input) = self.open().get(&number).map(|open| open.input.clone()) else { return };
        let Ok(message) = Message::read(text) else { return };
        let busy = match input.send(message.splice(&[])) {
            Ok(()) => return,
            Err(Refused::Full) => "the server does not read its input",
            Err(Refused::Closed) => "the server has ended",
        };
        log::warn!("a message for session {number} is turned away: {busy}");
        if let (Kind::Request, Some(id)) = (message.kind(), message.id()) {
            let _ = link.send(channel::message(number, &jsonrpc::error(id, jsonrpc::BUSY, busy)));
        }
    }

    /// The gateway closes a channel: its process is ended.
    pub fn close(&self, number: u32) {
        self.open().remove(&number);
    }

    /// The link is gone, and all sessions with it.
    pub fn close_all(&self) {
        self.open().clear();
    }

    /// Waits until no process is left.
    pub async fn gone(&self) {
        self.crew.gone().await;
    }
}

fn refuse(number: u32, why: &str, link: &Sender<Farewell>) {
    log::warn!("session {number} is not started: {why}");
    // A link that is full is about to end.
    let _ = link.send(channel::close(number, why));
}
