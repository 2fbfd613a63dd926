//! A registered server, as the rest of the gateway sees it: calls go in, answers find their client.
//!
//! The table of who waits for what is `hub::mux`; the link is behind a queue. `link` owns the other end.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    link::ResumeHandle,
    responder::{NO_MEMORY, Responder},
    session::Session,
    shares::{self, Share, Shares},
};
use crate::{
    hub::mux::{self, Mux, Pending},
    jsonrpc::{self, Kind, Malformed, Message, Span, decimal, edit, tolerant::Unusable},
    limits::{self, LOG_GROUPS, LOG_WARNINGS, LinkLimits},
    log_throttle::LogThrottle,
    mcp::{self, compat, log_level::Level},
    metrics::Stats,
    net::{
        budget::{Account, Budget, Charge},
        outbox::{SendError, Sender},
        ws_link::CloseReason,
    },
    session::{self, CallId, Run},
    tunnel::frame,
    util,
};

/// Who waits for an answer.
#[derive(Debug)]
pub enum Caller {
    /// The gateway's own conversation with the server.
    Discovery,
    /// A process of a client's own, which cannot serve before it is initialized.
    Initialize,
    /// Nobody: it was asked so that something happens.
    Ignored,
    /// A client, with its own id for the request, raw, and its principal's place where several share the server.
    Session(Arc<Session>, CallId, Responder, Option<Share>),
}

/// A call as it goes to the server: what the client sent, and what has to be changed in it.
#[derive(Debug)]
pub struct Call<'a> {
    /// The client's request.
    pub message: &'a Message<'a>,
    /// Where the client's name for something stands, and the server's own name for it.
    pub rename: Option<(Span, &'a str)>,
    /// Where the client's progress token stands.
    pub token: Option<Span>,
    /// How long the answer may take.
    pub timeout: Duration,
    /// Where the answer goes.
    pub responder: Responder,
    /// Several principals share the server.
    pub several: bool,
    /// Its number in the session, if that was reserved.
    pub number: Option<u64>,
}

/// Why a call is not passed on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Declined {
    /// The client may not begin it.
    Client(session::CallRefused),
    /// The server has too many calls under way.
    Server,
    /// The client's principal has as many calls under way as it may where several share the server.
    ServerShare,
    /// The client's principal has as many processes of it as it may where several share them.
    SessionsShare,
    /// As many sessions have a process of it as may.
    Sessions,
    /// Too much waits for the session's process to be initialized.
    Starting,
    /// So many bytes, of which the server's edge accepts only so many in one frame.
    TooLarge(usize, usize),
    /// The link does not keep up.
    Link,
    /// The budget of bytes is used up.
    Memory,
    /// The link is gone.
    Gone,
}

impl Declined {
    fn by_link(refused: SendError) -> Self {
        match refused {
            SendError::Full => Self::Link,
            SendError::Memory => Self::Memory,
            SendError::Closed => Self::Gone,
        }
    }
}

/// One registered server.
#[derive(Debug)]
pub struct Upstream {
    name: String,
    mux: Mutex<Mux<Caller>>,
    /// Calls under way by principal, and how many there may be in all.
    shares: Shares,
    max: usize,
    link: Sender<CloseReason>,
    /// Largest frame that its edge accepts, in bytes.
    accepts: usize,
    /// The server's answer to `initialize`, raw. A server that is started anew gives another.
    initialize_result: Mutex<Option<Arc<str>>>,
    /// The run of its program.
    run: Mutex<Run>,
    /// It said there that calls can be tasks.
    tasks: AtomicBool,
    /// The log level that it was asked for.
    level: Mutex<RequestedLevel>,
    /// Where it can be asked for after a drop.
    resume_handle: Option<ResumeHandle>,
    /// How many sessions can have a process of their own.
    instances: Option<InstancePool>,
    /// It is such a process.
    instance: Option<IsolatedInstance>,
    /// Limits how often its odd messages are logged; of all processes of one link together.
    log_throttle: Arc<Mutex<LogThrottle>>,
}

/// The log level that a server was asked for.
#[derive(Debug, Default)]
struct RequestedLevel {
    level: Option<Level>,
    /// The request for it, by the id of the mux.
    asked: Option<u64>,
}

/// The processes of single sessions behind one link.
#[derive(Debug)]
pub struct InstancePool {
    max: u32,
    channels: Mutex<Channels>,
    /// Processes by principal.
    shares: Shares,
    /// Bytes that may wait for processes to be initialized, all together.
    budget: Account,
}

#[derive(Debug, Default)]
struct Channels {
    /// Number of the last one.
    last: u32,
    /// The processes by the number of their channel.
    open: BTreeMap<u32, (Arc<Upstream>, Share)>,
    /// The link is gone: none is opened any more.
    ended: bool,
}

impl InstancePool {
    fn channels(&self) -> MutexGuard<'_, Channels> {
        // Each change of the table is complete in itself, so a panic elsewhere does not spoil it.
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process on a channel.
    pub fn get(&self, number: u32) -> Option<Arc<Upstream>> {
        self.channels().open.get(&number).map(|(process, _)| process.clone())
    }

    /// All processes.
    pub fn all(&self) -> Vec<Arc<Upstream>> {
        self.channels().open.values().map(|(process, _)| process.clone()).collect()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.channels().open.is_empty()
    }

    /// Forgets a process. False: it was forgotten before.
    pub fn remove(&self, number: u32) -> bool {
        self.channels().open.remove(&number).is_some()
    }

    /// The link is gone. Gives the processes that were behind it.
    pub fn end(&self) -> Vec<Arc<Upstream>> {
        let mut channels = self.channels();
        channels.ended = true;
        channels.open.values().map(|(process, _)| process.clone()).collect()
    }
}

/// Messages, each with the id of the request that it is.
type Waiting = Vec<(Option<u64>, String)>;

/// What makes a process one of a session's own.
#[derive(Debug)]
pub struct IsolatedInstance {
    /// Its channel of the link.
    pub number: u32,
    /// Whose it is.
    pub client: Weak<Session>,
    /// The server that it is a process of.
    pub shared: Weak<Upstream>,
    /// The resources that its client wanted to hear of when it began.
    pub subscriptions: Vec<String>,
    /// What waits until it is initialized: with the id of the mux, if it is a call.
    waiting: Mutex<Option<Waiting>>,
    /// Where the bytes of that come from: the share of its server, and the budget of its client.
    budget: Account,
    account: Account,
    /// For its answer to `initialize`.
    greeting: Mutex<Charge>,
}

impl IsolatedInstance {
    fn pay_greeting(&self, bytes: usize) -> bool {
        self.greeting.lock().unwrap_or_else(PoisonError::into_inner).resize(bytes)
    }

    /// Takes a message in to wait. It comes back where none has to, any more; `None`: it waits.
    fn hold(&self, id: Option<u64>, text: String) -> Result<Option<String>, SendError> {
        let mut waiting = self.waiting();
        let Some(waiting) = &mut *waiting else { return Ok(Some(text)) };
        if waiting.len() >= limits::ASKS || !self.budget.take(text.len()) {
            return Err(SendError::Full);
        }
        if !self.account.take(text.len()) {
            self.budget.give(text.len());
            return Err(SendError::Memory);
        }
        waiting.push((id, text));
        Ok(None)
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        // Each change of the list is complete in itself, so a panic elsewhere does not spoil it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, waited: &Waiting) {
        let bytes = waited.iter().map(|(_, text)| text.len()).sum();
        self.budget.give(bytes);
        self.account.give(bytes);
    }
}

impl Drop for IsolatedInstance {
    fn drop(&mut self) {
        let waiting = self.waiting.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        waiting.iter().for_each(|waited| self.give_back(waited));
    }
}

impl Upstream {
    /// A server behind a link, of which so many sessions can have a process of their own.
    /// `accepts`: the largest frame that its edge accepts, if it told that. `resume_handle`: where it can be asked for after a drop.
    pub fn new(
        name: String,
        limits: &LinkLimits,
        link: Sender<CloseReason>,
        accepts: Option<usize>,
        sessions: Option<u32>,
        berth: Option<ResumeHandle>,
    ) -> Arc<Self> {
        let room = Budget::new(limits.queue_bytes).account();
        let sessions = sessions.map(|most| InstancePool {
            max: most,
            channels: Mutex::default(),
            shares: Shares::default(),
            budget: room,
        });
        let accepts = accepts.unwrap_or(usize::MAX);
        Arc::new(Self {
            resume_handle: berth,
            instances: sessions,
            ..Self::bare(name, limits.in_flight, link, accepts)
        })
    }

    /// The state common to a server and to a session's process of it: nothing is known or asked so far.
    fn bare(name: String, most: usize, link: Sender<CloseReason>, accepts: usize) -> Self {
        Self {
            name,
            mux: Mutex::new(Mux::new(most)),
            shares: Shares::default(),
            max: most,
            link,
            accepts,
            initialize_result: Mutex::default(),
            run: Mutex::default(),
            tasks: AtomicBool::default(),
            level: Mutex::default(),
            resume_handle: None,
            instances: None,
            instance: None,
            log_throttle: Arc::default(),
        }
    }

    /// A process of a session's own. `subscriptions`: the gateway initializes it, and no call is sent to it before
    /// [`Upstream::ready`]; these resources its client wants to hear of. Without: the client does all that.
    ///
    /// # Errors
    /// [`Declined`]: there are as many as there may be, or the link takes no more.
    pub fn spawn_instance(
        self: &Arc<Self>,
        isolation: &InstancePool,
        client: &Arc<Session>,
        most: usize,
        several: bool,
        wishes: Option<Vec<String>>,
    ) -> Result<Arc<Self>, Declined> {
        let mut channels = isolation.channels();
        if channels.ended {
            return Err(Declined::Gone);
        }
        if channels.open.len() >= isolation.max as usize {
            return Err(Declined::Sessions);
        }
        let each = shares::limit(isolation.max as usize, several);
        let share = isolation.shares.take(client.principal(), each).ok_or(Declined::SessionsShare)?;
        let number = channels.last.checked_add(1).ok_or(Declined::Gone)?;
        self.link.send(frame::open(number)).map_err(Declined::by_link)?;
        channels.last = number;
        let account = client.account().clone();
        let (client, shared) = (Arc::downgrade(client), Arc::downgrade(self));
        let waiting = Mutex::new(wishes.is_some().then(Vec::new));
        let wishes = wishes.unwrap_or_default();
        let (room, greeting) = (isolation.budget.clone(), Mutex::new(account.charge()));
        let private = IsolatedInstance {
            number,
            client,
            shared,
            subscriptions: wishes,
            waiting,
            budget: room,
            account,
            greeting,
        };
        let bare = Self::bare(self.name.clone(), most, self.link.clone(), self.accepts);
        let forked = Self { instance: Some(private), log_throttle: self.log_throttle.clone(), ..bare };
        let forked = Arc::new(forked);
        channels.open.insert(number, (forked.clone(), share));
        Ok(forked)
    }

    /// Where it can be asked for after a drop, if it can come back.
    pub fn resume_handle(&self) -> Option<&ResumeHandle> {
        self.resume_handle.as_ref()
    }

    /// The processes of single sessions, where there can be some.
    pub fn instance_pool(&self) -> Option<&InstancePool> {
        self.instances.as_ref()
    }

    /// What makes it a session's own.
    pub fn instance(&self) -> Option<&IsolatedInstance> {
        self.instance.as_ref()
    }

    /// Sends a message to the server. One that its edge does not accept is dropped, with a log line.
    ///
    /// # Errors
    /// [`SendError`]: the link does not keep up, or is gone.
    pub fn send(&self, text: String) -> Result<(), SendError> {
        if self.is_too_large(&text) { Ok(()) } else { self.send_call(None, text) }
    }

    /// Bytes of a message in its frame, where these are more than the edge accepts.
    pub fn excess(&self, text: &str) -> Option<Declined> {
        let overhead = self.instance.as_ref().map_or(0, |private| frame::overhead(private.number));
        let bytes = text.len() + overhead;
        (bytes > self.accepts).then_some(Declined::TooLarge(bytes, self.accepts))
    }

    /// Whether a message that nobody waits for has to be dropped. Logs that.
    fn is_too_large(&self, text: &str) -> bool {
        let Some(Declined::TooLarge(bytes, most)) = self.excess(text) else { return false };
        let what = format!(
            "is not sent a message of {bytes} bytes: its edge accepts at most {most} (see --max-message-bytes at register)"
        );
        self.complain(Instant::now(), "too_large", &what);
        true
    }

    fn send_call(&self, id: Option<u64>, text: String) -> Result<(), SendError> {
        match &self.instance {
            None => self.link.send(text),
            Some(private) => private.hold(id, text)?.map_or(Ok(()), |text| self.send_now(text)),
        }
    }

    /// Whether what is sent waits for the process to be initialized.
    fn is_starting(&self) -> bool {
        self.instance.as_ref().is_some_and(|private| private.waiting().is_some())
    }

    /// Sends a message to the server, whether it is initialized or not. One that its edge does not accept is dropped, with
    /// a log line.
    ///
    /// # Errors
    /// [`SendError`]: the link does not keep up, or is gone.
    pub fn send_now(&self, text: String) -> Result<(), SendError> {
        if self.is_too_large(&text) { Ok(()) } else { self.link.send(self.frame(text)) }
    }

    /// Sends a message of which a process gets one in its life, and cannot do without.
    fn send_once(&self, text: String) {
        // Whoever finds that the link is gone ends the process.
        let _ = self.link.send_unbounded(self.frame(text));
    }

    fn frame(&self, text: String) -> String {
        match &self.instance {
            Some(private) => frame::message(private.number, &text),
            None => text,
        }
    }

    /// The process has answered `initialize`: it is told so, then `first`, then what waited.
    pub fn ready(&self, first: Vec<String>, stats: &Stats) {
        let Some(private) = &self.instance else { return };
        self.send_once(jsonrpc::notification("notifications/initialized", None));
        first.into_iter().for_each(|text| self.send_once(text));
        let lost: Vec<u64> = {
            // Held until all is sent, so that nothing overtakes what waited.
            let mut waiting = private.waiting();
            let waited = waiting.take().unwrap_or_default();
            private.give_back(&waited);
            waited.into_iter().filter_map(|(id, text)| self.send_now(text).err().and(id)).collect()
        };
        for pending in lost.into_iter().filter_map(|id| self.mux().close(id)) {
            let why = format!("the link to server '{}' does not keep up", self.name);
            fail(pending, jsonrpc::BUSY, &why, stats);
        }
    }

    /// Tells the edge that a session needs its process no more.
    pub fn close_channel(&self, reason: &str) {
        if let Some(private) = &self.instance {
            // There is one for each channel, and without it the process would stay as long as the link.
            let _ = self.link.send_unbounded(frame::close(private.number, reason));
        }
    }

    /// The name it registered with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The queue towards the edge.
    pub fn link(&self) -> &Sender<CloseReason> {
        &self.link
    }

    /// The server's answer to `initialize`, raw; `None` before it came.
    pub fn initialize_result(&self) -> Option<Arc<str>> {
        self.initialize_result.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers the server's answer to `initialize`. True: it is another one than before.
    ///
    /// # Errors
    /// [`SendError::Memory`]: it comes from a process of a session's own, and the session has no memory for it.
    pub fn greeted(&self, result: &str) -> Result<bool, SendError> {
        let mut greeting = self.initialize_result.lock().unwrap_or_else(PoisonError::into_inner);
        if greeting.as_deref() == Some(result) {
            return Ok(false);
        }
        if self.instance.as_ref().is_some_and(|private| !private.pay_greeting(result.len())) {
            return Err(SendError::Memory);
        }
        *greeting = Some(result.into());
        self.tasks.store(declares(result, "tasks"), Ordering::Relaxed);
        Ok(true)
    }

    /// Whether the server declares a capability.
    pub fn has(&self, capability: &str) -> bool {
        self.initialize_result().is_some_and(|result| declares(&result, capability))
    }

    /// Whether clients share it, and it declares tasks.
    pub fn has_tasks(&self) -> bool {
        self.instance.is_none() && self.tasks.load(Ordering::Relaxed)
    }

    /// The run of its program, to which its tasks are bound.
    pub fn run(&self) -> Run {
        *self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its program runs anew. Returns the run before.
    pub fn set_run(&self, run: Run) -> Run {
        std::mem::replace(&mut *self.run.lock().unwrap_or_else(PoisonError::into_inner), run)
    }

    /// Logs an answer or progress that belongs to no open request: at most once a second, with a count.
    pub fn log_stray(&self, now: Instant, message: &Message<'_>) {
        let (kind, what) = strayed(message);
        self.complain(now, kind, &what);
    }

    /// Logs an answer that cannot be used, in the same way.
    pub fn log_unusable(&self, now: Instant, answer: &Unusable) {
        self.complain(now, "unusable", &format!("sent an answer that cannot be used: {}", answer.why));
    }

    /// Logs a message with a member that some readers take for one of JSON-RPC, in the same way.
    pub fn log_twin(&self, now: Instant) {
        let what = "sent a member whose name differs only in case from one of JSON-RPC; it is left out";
        self.complain(now, "twin", what);
    }

    /// Logs a frame that is no message. One in which a member stands twice was meant to be one.
    pub fn log_noise(&self, now: Instant, frame: &str) {
        match Message::read(frame) {
            Err(why @ Malformed::Duplicate) => {
                self.complain(now, "duplicate", &format!("sent what is no message: {}", why.reason()));
            }
            _ => log::debug!("server '{}' sent a frame that is no message", self.name),
        }
    }

    fn complain(&self, now: Instant, kind: &'static str, what: &str) {
        let mut oddities = self.log_throttle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left_out) = oddities.due(now, kind, "", LOG_WARNINGS) {
            log::warn!("server '{}' {what}{left_out}", self.name);
        }
    }

    /// Logs a request that was not answered in time: a bounded number in a second, with a count.
    fn log_expired(&self, now: Instant, method: &str, seconds: f64) {
        let mut oddities = self.log_throttle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left_out) = oddities.due(now, "no_answer", "", LOG_GROUPS) {
            let method = util::escape::show(method);
            log::info!("server '{}' did not answer {method} in {seconds} s{left_out}", self.name);
        }
    }

    /// The table of pending requests.
    pub fn mux(&self) -> MutexGuard<'_, Mux<Caller>> {
        // Each change of the table is complete in itself, so a panic elsewhere does not spoil it.
        self.mux.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many requests wait for its answer, or for that of a process of a session's own.
    pub fn under_way(&self) -> usize {
        let own = self.instances.iter().flat_map(InstancePool::all);
        self.mux().len() + own.map(|process| process.mux().len()).sum::<usize>()
    }

    /// Passes a client's call on under an id of the mux.
    ///
    /// # Errors
    /// [`Declined`]; nothing was sent then.
    pub fn call(
        self: &Arc<Self>,
        now: Instant,
        client: &Arc<Session>,
        call: &Call<'_>,
    ) -> Result<(), Declined> {
        let text = call.message.text();
        let id = call.message.id().unwrap_or_default();
        let token = call.token.clone().map(|span| &text[span]);
        let (call_id, upstream_id) = {
            // Held until the call is in both tables, so that its answer cannot come in between.
            let mut calls = client.calls();
            let number = call.number.unwrap_or_else(|| calls.reserve());
            let call_id =
                calls.may_begin_as(number, id, call.responder.stream_key()).map_err(Declined::Client)?;
            let share = self.call_share(client, call.several)?;
            let caller = Caller::Session(client.clone(), call_id.clone(), call.responder.clone(), share);
            let opened = self.mux().open(now, caller, call.message.method(), token, call.timeout);
            let upstream_id = opened.map_err(|refused| match refused {
                mux::MuxRefused::Busy => Declined::Server,
                mux::MuxRefused::Gone => Declined::Gone,
            })?;
            calls.begin(&call_id, self.clone(), upstream_id);
            (call_id, upstream_id)
        };
        // Where nobody else is served, no token can be anybody else's.
        let token = call.token.clone().filter(|_| self.instance.is_none());
        let text = edit::request(call.message, upstream_id, call.rename.clone(), token);
        let declined = {
            // Held until the call is queued: whoever takes it out of the table to cancel it queues that behind it.
            let mut mux = self.mux();
            if mux.get(upstream_id).is_none() {
                // Cancelled meanwhile, or failed with the link: it is answered.
                return Ok(());
            }
            let sent = match self.excess(&text) {
                Some(declined) => Err(declined),
                None => self.send_call(Some(upstream_id), text).map_err(Declined::by_link),
            };
            let Err(declined) = sent else { return Ok(()) };
            mux.close(upstream_id);
            declined
        };
        client.calls().end(&call_id);
        let starting = declined == Declined::Link && self.is_starting();
        Err(if starting { Declined::Starting } else { declined })
    }

    /// A place for one more call of a client's principal, where several principals share the server.
    fn call_share(&self, client: &Session, several: bool) -> Result<Option<Share>, Declined> {
        // A process of a session's own serves nobody else.
        if !several || self.instance.is_some() {
            return Ok(None);
        }
        let share = self.shares.take(client.principal(), shares::limit(self.max, several));
        share.map(Some).ok_or(Declined::ServerShare)
    }

    /// Asks the server for something without waiting for the answer.
    pub fn tell(&self, now: Instant, method: &str, params: &str, patience: Duration) {
        if let Some(request) = self.request(now, method, params, patience) {
            // A request that does not get through is forgotten at its time.
            let _ = self.send_now(request);
        }
    }

    /// A request whose answer nobody waits for, to be sent.
    pub fn request(&self, now: Instant, method: &str, params: &str, patience: Duration) -> Option<String> {
        let id = self.mux().open(now, Caller::Ignored, method, None, patience).ok()?;
        Some(jsonrpc::request(&id.to_string(), method, params))
    }

    /// Asks the server to tell of changes of a resource. False: the link does not keep up.
    pub fn subscribe(&self, now: Instant, own: &str, patience: Duration) -> bool {
        let method = "resources/subscribe";
        // Without room for anything the server is gone, and all wishes with it.
        let Ok(id) = self.mux().open_own(now, Caller::Ignored, method, patience) else { return true };
        let params = uri_params(own);
        let sent = self.send_now(jsonrpc::request(&id.to_string(), method, &params));
        let sent = !matches!(sent, Err(SendError::Full | SendError::Memory));
        if !sent {
            self.mux().close(id);
        }
        sent
    }

    /// Asks the server for log messages from a level; see [`Upstream::level_request`].
    pub fn tell_level(&self, now: Instant, level: Level, patience: Duration) {
        if let Some(request) = self.level_request(now, level, patience) {
            // A request that does not get through is forgotten at its time.
            let _ = self.send_now(request);
        }
    }

    /// A request for log messages from a level, unless the server was asked for that last. While one is under way there is
    /// no other: however often clients change their minds, their wishes take the place of one call. Whoever hears the
    /// answer asks for what is wanted by then.
    pub fn level_request(&self, now: Instant, level: Level, patience: Duration) -> Option<String> {
        let mut wanted = self.level();
        let waits = wanted.asked.is_some_and(|id| self.mux().get(id).is_some());
        if waits || wanted.level == Some(level) {
            return None;
        }
        let method = "logging/setLevel";
        let id = self.mux().open_own(now, Caller::Ignored, method, patience).ok()?;
        *wanted = RequestedLevel { level: Some(level), asked: Some(id) };
        let params = format!("{{\"level\":\"{}\"}}", level.name());
        Some(jsonrpc::request(&id.to_string(), method, &params))
    }

    /// The server was started anew, and knows of no log level.
    pub fn forget_level(&self) {
        *self.level() = RequestedLevel::default();
    }

    fn level(&self) -> MutexGuard<'_, RequestedLevel> {
        // It is replaced whole, so a panic elsewhere does not spoil it.
        self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to initialize a process of a session's own.
    pub fn greet(&self, now: Instant, params: &str, patience: Duration) {
        if let Ok(id) = self.mux().open_own(now, Caller::Initialize, "initialize", patience) {
            self.send_once(jsonrpc::request(&id.to_string(), "initialize", params));
        }
    }

    /// Tells the server to stop working on a request. `notification` is the client's own, with the place of its
    /// request id; without one, the reason.
    pub fn cancel(&self, upstream_id: u64, notification: Result<(&Message<'_>, Span), &str>, stats: &Stats) {
        let Some(pending) = self.mux().close(upstream_id) else { return };
        let text = match notification {
            Ok((message, span)) => edit::cancellation(message, span, upstream_id),
            Err(reason) => edit::cancelled(upstream_id, reason),
        };
        // The server is to stop in any case; what is too large is what the client adds to that.
        let text = match self.excess(&text) {
            Some(_) => edit::cancelled(upstream_id, "the client cancelled the request"),
            None => text,
        };
        // A link that is full or gone forgets the request by itself.
        let _ = self.send(text);
        if let Caller::Session(_, id, reply, _) = pending.caller {
            reply.cancelled(&id, stats);
        }
    }

    /// The server's answer to a request cannot be used: whoever waits for it is told. Where the answer does not say which
    /// request it is for, it can only be for the one that is open. Returns the caller that is not told here.
    pub fn fail_unusable(&self, answer: &Unusable, stats: &Stats) -> Option<Caller> {
        let pending = {
            let mut mux = self.mux();
            let id = answer.id.as_deref().map_or_else(|| mux.only(), decimal);
            mux.close(id?)?
        };
        if matches!(pending.caller, Caller::Discovery | Caller::Initialize) {
            return Some(pending.caller);
        }
        let text = format!("the answer of server '{}' cannot be used: {}", self.name, answer.why);
        fail(pending, jsonrpc::INTERNAL_ERROR, &text, stats);
        None
    }

    /// The link is gone: everybody who waits is told.
    pub fn fail_all(&self, reason: &str, stats: &Stats) {
        let pending = self.mux().drain();
        for pending in pending {
            let text = format!("server '{}' went away: {reason}", self.name);
            fail(pending, jsonrpc::INTERNAL_ERROR, &text, stats);
        }
    }

    /// Fails the requests whose time is up, and tells the server to stop. Those of the conversation are handed back.
    pub fn expire(&self, now: Instant, stats: &Stats) -> Vec<Pending<Caller>> {
        let mut expired = Vec::new();
        self.mux().tick(now, &mut expired);
        let mut own = Vec::new();
        for (id, pending) in expired {
            let seconds = pending.timeout.as_secs_f64();
            self.log_expired(now, &pending.method, seconds);
            if &*pending.method != "initialize" {
                let _ = self.send(edit::cancelled(id, "no answer in time"));
            }
            if matches!(pending.caller, Caller::Discovery | Caller::Initialize) {
                own.push(pending);
            } else {
                let text = format!("server '{}' did not answer within {seconds} s", self.name);
                fail(pending, jsonrpc::TIMED_OUT, &text, stats);
            }
        }
        own
    }
}

/// Gives an answer to who waits for it, under the client's own id and with these changes.
pub fn deliver(
    pending: Pending<Caller>,
    message: &Message<'_>,
    mut edits: Vec<(Span, String)>,
    stats: &Stats,
) {
    if let Caller::Session(client, ..) = &pending.caller
        && !edits.is_empty()
        && compat::concerns(&client.info().version)
    {
        // What is put in words must be in words as it was changed.
        edits.sort_unstable_by_key(|(span, _)| span.start);
        let changes: Vec<(Span, &str)> =
            edits.iter().map(|(span, new)| (span.clone(), new.as_str())).collect();
        let text = message.splice(&changes);
        if let Ok(changed) = Message::read(&text) {
            return deliver(pending, &changed, Vec::new(), stats);
        }
    }
    if let Caller::Session(client, id, reply, _share) = pending.caller {
        let asked = client.calls().end(&id).map(|(upstream, _)| upstream);
        if let (Some(result), "initialize") = (message.result(), &*pending.method) {
            if asked.as_ref().is_some_and(|process| process.greeted(result).is_err()) {
                stats.memory_refusals.add();
                let error = jsonrpc::error(&id, jsonrpc::BUSY, NO_MEMORY);
                return reply.finish(error, stats);
            }
            client.initialized(&mcp::version_of(result).unwrap_or_default());
        }
        let edits = edits.into_iter().chain(fit(&client, asked.as_deref(), &pending.method, message));
        reply.finish(edited(message, &id, edits.collect()), stats);
    }
}

/// What is logged about an answer or progress that belongs to no open request.
fn strayed(message: &Message<'_>) -> (&'static str, String) {
    match message.id() {
        Some(id) => {
            ("stray_answer", format!("answered a request that is not open: id {}", util::escape::show(id)))
        }
        None if message.kind() == Kind::Response => {
            ("stray_error", "sent an error that names no request".into())
        }
        None => ("stray_progress", "sent progress of a request that is not open".into()),
    }
}

/// Whether an answer to `initialize` declares a capability.
fn declares(greeting: &str, capability: &str) -> bool {
    matches!(jsonrpc::find(greeting, 0..greeting.len(), &["capabilities", capability]), Ok(Some(_)))
}

/// The params of a request about one resource.
pub fn uri_params(uri: &str) -> String {
    format!("{{\"uri\":{}}}", jsonrpc::quote(uri))
}

/// What must be changed for the client's version: types of content that it does not know.
fn fit(
    client: &Session,
    asked: Option<&Upstream>,
    method: &str,
    message: &Message<'_>,
) -> Vec<(Span, String)> {
    let version = client.info().version.clone();
    let greeting = asked.filter(|_| compat::concerns(&version)).and_then(Upstream::initialize_result);
    let server = greeting.and_then(|greeting| mcp::version_of(&greeting));
    server.map(|server| compat::edits(method, &version, &server, message)).unwrap_or_default()
}

/// An answer under the client's id, with changes.
fn edited(message: &Message<'_>, id: &str, mut edits: Vec<(Span, String)>) -> String {
    let Some(span) = message.id_span().filter(|_| !edits.is_empty()) else { return message.with_id(id) };
    edits.push((span, id.to_owned()));
    edits.sort_unstable_by_key(|(span, _)| span.start);
    let edits: Vec<(Span, &str)> = edits.iter().map(|(span, new)| (span.clone(), new.as_str())).collect();
    message.splice(&edits)
}

/// Fails a request with an error of ours.
pub fn fail(pending: Pending<Caller>, code: i64, text: &str, stats: &Stats) {
    if let Caller::Session(client, id, reply, _share) = pending.caller {
        client.calls().end(&id);
        reply.finish(jsonrpc::error(&id, code, text), stats);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, thread};

    use futures_lite::future;

    use super::*;
    use crate::{auth::Principal, gateway::session::Scope, limits::Limits, net::outbox};

    /// With several threads a client may cancel a call over another connection while it is being rewritten.
    #[test]
    fn a_cancellation_never_overtakes_its_call() {
        let limits = Limits::default();
        let (link, mut frames) = outbox::bounded(limits.link.queue_messages, limits.link.queue_bytes);
        let upstream = Upstream::new("s".into(), &limits.link, link, None, None, None);
        let (outbox, _) = outbox::bounded(1, 1);
        let owner = (Principal::ANONYMOUS, Budget::new(limits.memory.bytes).account());
        let client = Session::new("id".into(), owner, Scope::All, false, outbox, &limits.session);
        // Large, so that rewriting it takes a while.
        let padding = "x".repeat(limits.link.queue_bytes / 8);
        let text = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"t","padding":"{padding}"}}}}"#
        );
        let message = Message::read(&text).unwrap();
        let stats = Stats::default();
        let (sender, _answers) = outbox::bounded(limits.link.queue_messages, limits.link.queue_bytes);
        let reply = Responder::stream(sender, 0);
        for _ in 0..50 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    loop {
                        let ended = client.calls().cancel("1");
                        if let Some((server, id)) = ended {
                            return server.cancel(id, Err("test"), &stats);
                        }
                        thread::yield_now();
                    }
                });
                let patience = limits::TOOL_TIME;
                let call = Call {
                    message: &message,
                    rename: None,
                    token: None,
                    timeout: patience,
                    responder: reply.clone(),
                    several: false,
                    number: None,
                };
                upstream.call(Instant::now(), &client, &call).unwrap();
            });
            let mut sent = VecDeque::new();
            future::block_on(frames.take(&mut sent));
            let cancelled = sent.iter().position(|frame| frame.contains("notifications/cancelled"));
            let called = sent.iter().position(|frame| frame.contains("tools/call"));
            assert!(called < cancelled, "the cancellation is first: {called:?} {cancelled:?}");
        }
    }
}
