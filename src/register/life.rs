//! The life of one link: frames from the gateway to the child, and what both ends say about the registration.
//!
//! What becomes of a frame or a line is decided by `tunnel::edge`.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{server::noise, sessions::Sessions};
use crate::{
    config::RegisterConfig,
    jsonrpc::{self, Message},
    limits::LinkLimits,
    net::{
        link::{self, Ended, Farewell, Peer, Socket},
        queue::{self, Refused, Sender},
    },
    text,
    tunnel::{
        CLOSE_REFUSED, CLOSE_REPLACED, CLOSE_TOO_OFTEN,
        channel::{self, Frame},
        edge::{Down, Edge, Up},
        handshake::{Registration, Status},
    },
};

/// How an attempt or a life ended.
#[derive(Debug)]
pub enum Outcome {
    /// The line or the gateway went away: try again.
    Lost(String),
    /// The gateway will not have us as we are.
    Refused(String),
    /// The gateway will not have us now: wait for long, however new we are.
    NotNow(String),
    /// We are stopping.
    Stopped,
}

/// What the tasks of the edge share.
#[derive(Debug)]
pub struct State {
    edge: Mutex<Shared>,
    child: Sender<()>,
    sessions: Arc<Sessions>,
}

#[derive(Debug, Default)]
struct Shared {
    edge: Edge,
    link: Option<Sender<Farewell>>,
    /// The present link is registered.
    registered: bool,
    /// Some link was.
    was_registered: bool,
    leaving: bool,
}

impl State {
    /// The state around a child that reads from this queue, and the sessions that have a process of their own.
    pub fn new(child: Sender<()>, sessions: Arc<Sessions>) -> Arc<Self> {
        Arc::new(Self { edge: Mutex::default(), child, sessions })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // The state is sound between any two statements, so a panic elsewhere does not spoil it.
        self.edge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the gateway has us at present.
    pub fn is_registered(&self) -> bool {
        self.lock().registered
    }

    /// Whether the gateway ever had us.
    pub fn was_registered(&self) -> bool {
        self.lock().was_registered
    }

    /// A line came from the child: passes it on, as soon as the link has room.
    pub async fn said(&self, line: &str) {
        let (up, link) = {
            let mut shared = self.lock();
            (shared.edge.from_child(line), shared.link.clone())
        };
        match (up, link) {
            (Up::Gateway(frame), Some(link)) => {
                if link.send_wait(frame).await.is_err() {
                    log::debug!("a message of the server came too late for its link");
                }
            }
            (Up::Gateway(_), None) => log::debug!("a message of the server found no link"),
            (Up::Stale, _) => log::debug!("an answer to an earlier link is dropped"),
            (Up::Noise, _) => noise(line),
        }
    }

    /// Ends the present link with a farewell, and all that would follow.
    pub fn leave(&self, reason: &str) {
        let mut shared = self.lock();
        shared.leaving = true;
        if let Some(link) = &shared.link {
            link.end(Farewell::new(1001, reason));
        }
    }

    /// Whether a link is up.
    pub fn is_linked(&self) -> bool {
        self.lock().link.is_some()
    }

    /// A link comes up. False when we are leaving.
    fn link_up(&self, link: Sender<Farewell>) -> bool {
        let mut shared = self.lock();
        shared.link = Some(link);
        !shared.leaving
    }

    /// The link is gone: the child need not go on with what nobody waits for, and sessions have nobody to serve.
    fn link_down(&self) {
        self.sessions.close_all();
        let lines = {
            let mut shared = self.lock();
            shared.link = None;
            shared.registered = false;
            shared.edge.disconnected()
        };
        for line in lines {
            // A child that does not read will not read this either.
            let _ = self.child.send(line);
        }
    }
}

/// Registers over a fresh connection, and carries frames until the link ends.
pub async fn live(socket: Socket, state: &Arc<State>, config: &RegisterConfig) -> Outcome {
    let limits = &config.limits.link;
    let (sender, mut receiver) = queue::bounded(limits.queue_messages, limits.queue_bytes);
    // The queue is empty, so the first frame fits.
    let _ = sender.send(Registration::frame(&config.id, &config.name, config.sessions));
    if !state.link_up(sender.clone()) {
        return Outcome::Stopped;
    }
    let mut life = Life {
        state: state.clone(),
        link: sender,
        limits,
        born: Instant::now(),
        answered: false,
        ours: false,
        isolated: false,
        opened: 0,
        wants_sessions: config.sessions.is_some(),
        refusal: None,
    };
    let ended = link::drive(socket, &mut receiver, &mut life, limits).await;
    state.link_down();
    life.outcome(ended, config)
}

/// Our end of the link.
struct Life<'a> {
    state: Arc<State>,
    link: Sender<Farewell>,
    limits: &'a LinkLimits,
    born: Instant,
    /// The gateway has spoken.
    answered: bool,
    /// It will say when the registration is complete.
    ours: bool,
    /// It gives client sessions a process of their own.
    isolated: bool,
    /// Number of the last channel.
    opened: u32,
    /// We offered that.
    wants_sessions: bool,
    /// Why the gateway says it will not have us.
    refusal: Option<String>,
}

impl Peer for Life<'_> {
    fn frame(&mut self, _now: Instant, frame: &str) -> Result<(), Farewell> {
        self.answered = true;
        let frame = match channel::read(frame) {
            Frame::Plain(frame) => frame,
            _ if !self.isolated => return Err(Farewell::new(1008, "a channel that was not agreed on")),
            Frame::Message(number, text) => {
                return self.state.sessions.message(number, text, &self.link).map_err(does_not_read);
            }
            Frame::Open(number) if number <= self.opened => {
                return Err(Farewell::new(1008, "the number of a channel was used before"));
            }
            Frame::Open(number) => {
                self.opened = number;
                return self.state.sessions.start(number, &self.link).map_err(does_not_read);
            }
            Frame::Close(number, _) => {
                self.state.sessions.close(number);
                return Ok(());
            }
        };
        let down = self.state.lock().edge.from_gateway(frame);
        match down {
            Down::Child(line) => self.hand_down(line),
            Down::Gateway(frame) => {
                // What the gateway asks and does not read must not pile up here.
                self.link.send(frame).map_err(does_not_read)?;
                self.spoken_for();
            }
            Down::Status(status) => self.status(&status),
            Down::Drop(why) => log::debug!("dropped {why}"),
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        (!self.answered).then(|| self.born + self.limits.register_time)
    }

    fn tick(&mut self, _now: Instant) -> Result<(), Farewell> {
        Err(Farewell::new(1008, "the gateway did not answer the registration"))
    }
}

fn does_not_read(_: Refused) -> Farewell {
    Farewell::new(1013, "the gateway does not read")
}

impl Life<'_> {
    fn hand_down(&self, line: String) {
        self.spoken_for();
        let (busy, line) = match self.state.child.offer(line) {
            Ok(()) => return,
            Err((Refused::Full, line)) => ("the server does not read its input", line),
            Err((Refused::Closed, line)) => ("the server has ended", line),
        };
        log::warn!("a message for the server is turned away: {busy}");
        if let Ok(message) = Message::read(&line)
            && let (jsonrpc::Kind::Request, Some(id)) = (message.kind(), message.id())
        {
            // The gateway knows the request under the id that it came with; the edge puts that back.
            let error = jsonrpc::error(id, jsonrpc::BUSY, busy);
            if let Up::Gateway(frame) = self.state.lock().edge.from_child(&error) {
                let _ = self.link.send(frame);
            }
        }
    }

    /// A gateway that sends us MCP has taken us, as far as we can know; ours says it when it has.
    fn spoken_for(&self) {
        if !self.ours {
            self.registered();
        }
    }

    fn registered(&self) {
        let mut shared = self.state.lock();
        shared.registered = true;
        shared.was_registered = true;
    }

    fn status(&mut self, status: &Status) {
        self.ours |= status.ours;
        self.isolated |= self.wants_sessions && status.sessions;
        if self.wants_sessions && !self.isolated && status.status == "received" {
            log::warn!("the gateway does not know isolated sessions; all clients share one process");
        }
        let message = text::show(&status.message);
        match status.status.as_str() {
            "error" => self.refusal = Some(status.message.clone()),
            "registered" => {
                self.registered();
                log::info!("registered: {message}");
            }
            other => log::debug!("the gateway says {}: {message}", text::show(other)),
        }
    }

    fn outcome(self, ended: Ended, config: &RegisterConfig) -> Outcome {
        let gateway = config.gateway.authority();
        let leaving = self.state.lock().leaving;
        match (ended, self.refusal) {
            _ if leaving => Outcome::Stopped,
            (Ended::ByPeer(why), refusal) if why.code == CLOSE_REFUSED => {
                let reason = refusal.unwrap_or(why.reason);
                Outcome::Refused(format!(
                    "the gateway at {gateway} refuses the registration: {}",
                    text::show(&reason)
                ))
            }
            (Ended::ByPeer(why), refusal) if why.code == CLOSE_TOO_OFTEN => {
                let reason = refusal.unwrap_or(why.reason);
                Outcome::NotNow(format!("the gateway at {gateway} puts us off: {}", text::show(&reason)))
            }
            (Ended::ByPeer(why), _) if why.code == CLOSE_REPLACED => Outcome::Refused(format!(
                "another program registered at {gateway} with our id and took over; see --server-id"
            )),
            (_, Some(reason)) => Outcome::Refused(format!(
                "the gateway at {gateway} gave the server up: {}",
                text::show(&reason)
            )),
            (ended, None) => Outcome::Lost(format!("link to {gateway}: {ended}")),
        }
    }
}
