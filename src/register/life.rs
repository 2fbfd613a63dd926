//! The life of one link: frames from the gateway to the child, and what both ends say about the registration.
//!
//! What becomes of a frame or a line is decided by `tunnel::edge`.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{server::Heard, sessions::Sessions};
use crate::{
    config::RegisterConfig,
    jsonrpc::{self, Kind, Message},
    limits::LinkLimits,
    net::{
        link::{self, Ended, Farewell, Peer, Socket},
        queue::{self, Refused, Sender},
    },
    text,
    tunnel::{
        CLOSE_REFUSED, CLOSE_REPLACED,
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
    /// We are stopping.
    Stopped,
}

/// What the tasks of the edge share.
#[derive(Debug)]
pub struct State {
    edge: Mutex<Shared>,
    sessions: Arc<Sessions>,
}

#[derive(Debug, Default)]
struct Shared {
    edge: Edge,
    /// What the child reads from.
    child: Option<Sender<()>>,
    /// How many children there were, this one counted.
    generation: u64,
    link: Option<Sender<Farewell>>,
    /// The present link is registered.
    registered: bool,
    /// Some link was.
    was_registered: bool,
    leaving: bool,
}

impl State {
    /// The state before there is a child or a link, and the sessions that have a process of their own.
    pub fn new(sessions: Arc<Sessions>) -> Arc<Self> {
        Arc::new(Self { edge: Mutex::default(), sessions })
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

    /// Whether the child takes requests at present.
    pub fn is_served(&self) -> bool {
        self.lock().edge.is_up()
    }

    /// Whether this child still has to answer the `initialize` that it was started anew with.
    pub fn is_greeting(&self, generation: u64) -> bool {
        let shared = self.lock();
        shared.generation == generation && shared.edge.is_greeting()
    }

    /// The number of the present child; another one than that of a moment ago means that it was started anew.
    fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// A child is started, and reads from this queue. Gives its number.
    pub fn child_up(&self, input: Sender<()>) -> u64 {
        let mut shared = self.lock();
        if let Some(hello) = shared.edge.child_back() {
            // The queue is empty.
            let _ = input.send(hello);
        }
        shared.child = Some(input);
        shared.generation += 1;
        shared.generation
    }

    /// The child has ended: the gateway gets the answers that it left out. See [`Edge::child_gone`].
    pub fn child_down(&self, why: &str, due: Option<Instant>) {
        let mut shared = self.lock();
        shared.child = None;
        for frame in shared.edge.child_gone(why, due) {
            // Small, no more than the gateway asked, and it must not lose them.
            if let Some(link) = &shared.link {
                let _ = link.send_anyway(frame);
            }
        }
    }

    /// A line came from a child: passes it on, as soon as the link has room.
    pub async fn said(&self, generation: u64, line: &str) -> Heard {
        let (up, link) = {
            let mut shared = self.lock();
            if shared.generation != generation {
                log::debug!("a line of an earlier process is dropped");
                return Heard::Message;
            }
            let mut up = shared.edge.from_child(line);
            if let (Up::Ready { lines, .. }, Some(child)) = (&mut up, &shared.child) {
                for line in lines.drain(..) {
                    // Bounded by what may be held, and sent before anything can overtake it.
                    let _ = child.send_anyway(line);
                }
            }
            (up, shared.link.clone())
        };
        let frames = match up {
            Up::Gateway(frame) => vec![frame],
            Up::Ready { frames, .. } => {
                log::info!("the server is initialized again");
                frames
            }
            Up::Stale => {
                log::debug!("an answer to an earlier link is dropped");
                Vec::new()
            }
            Up::Refused => return Heard::End("it refused to be initialized again"),
            Up::Noise => return Heard::Noise,
        };
        for frame in frames {
            let Some(link) = &link else {
                log::debug!("a message of the server found no link");
                break;
            };
            if link.send_wait(frame).await.is_err() {
                log::debug!("a message of the server came too late for its link");
            }
        }
        Heard::Message
    }

    /// A frame came from the gateway. What is for the child is given to it (`None`), or answered when it takes nothing.
    fn came(&self, now: Instant, frame: &str) -> Option<Down> {
        let mut shared = self.lock();
        let (line, child) = match (shared.edge.from_gateway(now, frame), &shared.child) {
            (Down::Child(line), Some(child)) => (line, child),
            (other, _) => return Some(other),
        };
        let (code, why, line) = match child.offer(line) {
            Ok(()) => return None,
            Err((Refused::Full, line)) => (jsonrpc::BUSY, "the server does not read its input", line),
            Err((Refused::Closed, line)) => (jsonrpc::DOWN, "the server has ended", line),
        };
        log::warn!("a message for the server is turned away: {why}");
        let message = Message::read(&line).ok().filter(|message| message.kind() == Kind::Request)?;
        // The gateway knows the request under the id that it came with; the edge puts that back.
        match shared.edge.from_child(&jsonrpc::error(message.id()?, code, why)) {
            Up::Gateway(frame) => Some(Down::Gateway(frame)),
            _ => None,
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
        let mut shared = self.lock();
        shared.link = None;
        shared.registered = false;
        for line in shared.edge.disconnected() {
            // A child that does not read will not read this either.
            let _ = shared.child.as_ref().map(|child| child.send(line));
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
        child: state.generation(),
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
    /// The child that there was when it began.
    child: u64,
}

impl Peer for Life<'_> {
    fn frame(&mut self, now: Instant, frame: &str) -> Result<(), Farewell> {
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
        match self.state.came(now, frame) {
            None | Some(Down::Child(_) | Down::Held) => self.spoken_for(),
            Some(Down::Gateway(frame)) => {
                // What the gateway asks and does not read must not pile up here.
                self.link.send(frame).map_err(does_not_read)?;
                self.spoken_for();
            }
            Some(Down::Status(status)) => self.status(&status),
            Some(Down::Drop(why)) => log::debug!("dropped {why}"),
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
            (Ended::ByPeer(why), _) if why.code == CLOSE_REPLACED => Outcome::Refused(format!(
                "another program registered at {gateway} with our id and took over; see --server-id"
            )),
            (_, Some(reason)) => {
                let why = format!("the gateway at {gateway} gave the server up: {}", text::show(&reason));
                // What a server could not do that had ended meanwhile, the next one may.
                let same = self.state.is_served() && self.state.generation() == self.child;
                if same { Outcome::Refused(why) } else { Outcome::Lost(why) }
            }
            (ended, None) => Outcome::Lost(format!("link to {gateway}: {ended}")),
        }
    }
}
