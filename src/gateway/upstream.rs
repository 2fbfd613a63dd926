//! A registered server, as the rest of the gateway sees it: passes calls on and delivers the
//! responses.
//!
//! The table of pending requests is `hub::mux`. Frames go out through a [`Transport`], which `link`
//! implements.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    session::Session,
    shares::{self, Share, Shares},
};
use crate::{
    budget::{Account, Budget, Charge},
    catalog::UpstreamKey,
    hub::{
        conclusion::{self, Edit},
        error::{CallError, Declined},
        key::InstanceKey,
        mux::{self, Mux, Pending},
        peers::{Responder, Room, Transport},
    },
    jsonrpc::{self, Kind, Malformed, Message, Span, decimal, edit, tolerant::Unusable},
    limits::{self, LOG_GROUPS, LOG_WARNINGS, LinkLimits},
    log_throttle::LogThrottle,
    mcp::{self, compat, log_level::Level},
    metrics::Stats,
    queue::SendError,
    session::{CallId, Run},
    tunnel::frame,
    util,
};

/// The caller of a request, which gets its response.
#[derive(Debug)]
pub enum Caller {
    /// The gateway's own discovery of the server.
    Discovery,
    /// The gateway's initialization of an isolated instance, which cannot serve before.
    Initialize,
    /// Nobody: the request was sent for its effect.
    Ignored,
    /// A session, with the id of the call as the client wrote it, where to respond, and the
    /// principal's share if several principals share the server.
    Session(Arc<Session>, CallId, Arc<dyn Responder>, Option<Share>),
}

/// A call as it is passed to the server: the client's request, and the edits to make in it.
#[derive(Debug)]
pub struct Call<'a> {
    /// The client's request.
    pub message: &'a Message<'a>,
    /// Position of the name that the client used, and the server's own name to put there.
    pub rename: Option<(Span, &'a str)>,
    /// Position of the client's progress token.
    pub token: Option<Span>,
    /// Timeout for the response.
    pub timeout: Duration,
    /// Where the response goes.
    pub responder: Arc<dyn Responder>,
    /// Whether several principals share the server.
    pub several: bool,
    /// Its number in the session, if one was reserved.
    pub number: Option<u64>,
}

/// Returns why a call is not passed on that the link did not take.
fn declined_by_link(refused: SendError) -> Declined {
    match refused {
        SendError::Full => Declined::Link,
        SendError::Memory => Declined::Memory,
        SendError::Closed => Declined::Gone,
    }
}

/// A registered server, or an isolated instance of one.
#[derive(Debug)]
pub struct Upstream {
    key: InstanceKey,
    name: String,
    mux: Mutex<Mux<Caller>>,
    /// Running calls by principal, and (`max`) their limit in total.
    shares: Shares,
    max: usize,
    link: Arc<dyn Transport>,
    /// Largest frame that its edge accepts, in bytes.
    accepts: usize,
    /// The server's `initialize` result, raw JSON. It may change when the server is restarted.
    initialize_result: Mutex<Option<Arc<str>>>,
    /// The current run of its program.
    run: Mutex<Run>,
    /// Whether that result declares tasks.
    tasks: AtomicBool,
    /// The log level requested from the server.
    level: Mutex<RequestedLevel>,
    /// Its isolated instances, if it can have some.
    instances: Option<InstancePool>,
    /// Set if this is an isolated instance.
    instance: Option<IsolatedInstance>,
    /// Throttles log lines about odd messages; shared by all instances behind one link.
    log_throttle: Arc<Mutex<LogThrottle>>,
}

/// The log level requested from a server.
#[derive(Debug, Default)]
struct RequestedLevel {
    level: Option<Level>,
    /// Id of the request for it in the mux.
    request: Option<u64>,
}

/// The isolated instances behind one link.
#[derive(Debug)]
pub struct InstancePool {
    max: u32,
    channels: Mutex<Channels>,
    /// Instances by principal.
    shares: Shares,
    /// Pays for messages that wait for instances to be initialized, all instances together.
    budget: Account,
}

#[derive(Debug, Default)]
struct Channels {
    /// Number of the channel opened last.
    last: u32,
    /// Instances by channel number.
    open: BTreeMap<u32, (Arc<Upstream>, Share)>,
    /// Whether the link is gone; no more channels are opened then.
    ended: bool,
}

impl InstancePool {
    fn channels(&self) -> MutexGuard<'_, Channels> {
        // Each change of the table is complete in itself, so a panic elsewhere does not corrupt it.
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the instance on a channel.
    pub fn get(&self, number: u32) -> Option<Arc<Upstream>> {
        self.channels().open.get(&number).map(|(instance, _)| instance.clone())
    }

    /// Returns all instances.
    pub fn all(&self) -> Vec<Arc<Upstream>> {
        self.channels().open.values().map(|(instance, _)| instance.clone()).collect()
    }

    /// Returns whether there are no instances.
    pub fn is_empty(&self) -> bool {
        self.channels().open.is_empty()
    }

    /// Removes an instance. Returns false if it was removed before.
    pub fn remove(&self, number: u32) -> bool {
        self.channels().open.remove(&number).is_some()
    }

    /// Stops opening channels, since the link is gone. Returns the instances behind it.
    pub fn end(&self) -> Vec<Arc<Upstream>> {
        let mut channels = self.channels();
        channels.ended = true;
        channels.open.values().map(|(instance, _)| instance.clone()).collect()
    }
}

/// Messages, each with its id in the mux if it is a call.
type Waiting = Vec<(Option<u64>, String)>;

/// The data of an isolated instance: a process of the server that serves one session only.
#[derive(Debug)]
pub struct IsolatedInstance {
    /// Its channel on the link.
    pub number: u32,
    /// The session that it serves.
    pub client: Weak<Session>,
    /// The server that it is an instance of.
    pub shared: Weak<Upstream>,
    /// The resources that the session was subscribed to when the instance was created.
    pub subscriptions: Vec<String>,
    /// Messages held until the instance is initialized; `None` once it is, or if the client
    /// initializes it.
    waiting: Mutex<Option<Waiting>>,
    /// The accounts that pay for these messages: the pool's, and that of the session.
    budget: Account,
    account: Account,
    /// Charge for its `initialize` result.
    initialize_result_charge: Mutex<Charge>,
}

impl IsolatedInstance {
    fn charge_initialize_result(&self, bytes: usize) -> bool {
        self.initialize_result_charge.lock().unwrap_or_else(PoisonError::into_inner).resize(bytes)
    }

    /// Holds a message until the instance is initialized. Returns the message if there is no need
    /// to hold it, or `None` if it is held. Fails if [`limits::SERVER_REQUESTS`] messages are held
    /// or an account is empty.
    fn hold(&self, id: Option<u64>, text: String) -> Result<Option<String>, SendError> {
        let mut waiting = self.waiting();
        let Some(waiting) = &mut *waiting else { return Ok(Some(text)) };
        if waiting.len() >= limits::SERVER_REQUESTS || !self.budget.take(text.len()) {
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
        // Each change of the list is complete in itself, so a panic elsewhere does not corrupt it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, held: &Waiting) {
        let bytes = held.iter().map(|(_, text)| text.len()).sum();
        self.budget.give(bytes);
        self.account.give(bytes);
    }
}

impl Drop for IsolatedInstance {
    fn drop(&mut self) {
        let waiting = self.waiting.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        waiting.iter().for_each(|held| self.release(held));
    }
}

impl Upstream {
    /// Creates a server behind a link. `accepts`: the largest frame that its edge accepts, if it
    /// declared one. `instances`: the maximum number of isolated instances, if it supports them.
    pub fn new(
        key: UpstreamKey,
        name: String,
        limits: &LinkLimits,
        link: Arc<dyn Transport>,
        accepts: Option<usize>,
        max_instances: Option<u32>,
    ) -> Arc<Self> {
        let budget = Budget::new(limits.queue_bytes).account();
        let instances = max_instances.map(|max| InstancePool {
            max,
            channels: Mutex::default(),
            shares: Shares::default(),
            budget,
        });
        let accepts = accepts.unwrap_or(usize::MAX);
        Arc::new(Self {
            instances,
            ..Self::bare(InstanceKey::shared(key), name, limits.in_flight, link, accepts)
        })
    }

    /// Creates the state common to a server and an isolated instance, before initialization.
    fn bare(key: InstanceKey, name: String, max: usize, link: Arc<dyn Transport>, accepts: usize) -> Self {
        Self {
            key,
            name,
            mux: Mutex::new(Mux::new(max)),
            shares: Shares::default(),
            max,
            link,
            accepts,
            initialize_result: Mutex::default(),
            run: Mutex::default(),
            tasks: AtomicBool::default(),
            level: Mutex::default(),
            instances: None,
            instance: None,
            log_throttle: Arc::default(),
        }
    }

    /// Creates an isolated instance, and opens its channel. With `subscriptions`, the resources
    /// that the session is subscribed to, the gateway initializes the instance, and messages to it
    /// are held until [`Upstream::on_initialized`]. Without, the client initializes it.
    ///
    /// # Errors
    /// [`Declined`]: a limit on instances is reached, or the link takes no more.
    pub fn spawn_instance(
        self: &Arc<Self>,
        pool: &InstancePool,
        client: &Arc<Session>,
        max: usize,
        several: bool,
        subscriptions: Option<Vec<String>>,
    ) -> Result<Arc<Self>, Declined> {
        let mut channels = pool.channels();
        if channels.ended {
            return Err(Declined::Gone);
        }
        if channels.open.len() >= pool.max as usize {
            return Err(Declined::Instances);
        }
        let each = shares::limit(pool.max as usize, several);
        let share = pool.shares.take(client.principal(), each).ok_or(Declined::InstancesShare)?;
        let number = channels.last.checked_add(1).ok_or(Declined::Gone)?;
        self.link.send(frame::open(number), Room::Normal).map_err(declined_by_link)?;
        channels.last = number;
        let account = client.account().clone();
        let (client, shared) = (Arc::downgrade(client), Arc::downgrade(self));
        let waiting = Mutex::new(subscriptions.is_some().then(Vec::new));
        let subscriptions = subscriptions.unwrap_or_default();
        let (budget, initialize_result_charge) = (pool.budget.clone(), Mutex::new(account.charge()));
        let isolated = IsolatedInstance {
            number,
            client,
            shared,
            subscriptions,
            waiting,
            budget,
            account,
            initialize_result_charge,
        };
        let key = InstanceKey { channel: Some(number), ..self.key };
        let bare = Self::bare(key, self.name.clone(), max, self.link.clone(), self.accepts);
        let instance = Self { instance: Some(isolated), log_throttle: self.log_throttle.clone(), ..bare };
        let instance = Arc::new(instance);
        channels.open.insert(number, (instance.clone(), share));
        Ok(instance)
    }

    /// Returns its isolated instances, if it can have some.
    pub fn instance_pool(&self) -> Option<&InstancePool> {
        self.instances.as_ref()
    }

    /// Returns the data of an isolated instance, if this is one.
    pub fn instance(&self) -> Option<&IsolatedInstance> {
        self.instance.as_ref()
    }

    /// Sends a message to the server, or holds it while an isolated instance is being initialized.
    /// A message that is too large for the edge is dropped, with a log line.
    ///
    /// # Errors
    /// [`SendError`]: the link does not keep up or is gone, or memory is used up.
    pub fn send(&self, now: Instant, text: String) -> Result<(), SendError> {
        if self.is_too_large(now, &text) { Ok(()) } else { self.send_call(now, None, text) }
    }

    /// Returns [`Declined::TooLarge`] if a message in its frame is larger than the edge accepts.
    pub fn excess(&self, text: &str) -> Option<Declined> {
        let overhead = self.instance.as_ref().map_or(0, |instance| frame::overhead(instance.number));
        let bytes = text.len() + overhead;
        (bytes > self.accepts).then_some(Declined::TooLarge(bytes, self.accepts))
    }

    /// Returns whether a message is too large for the edge, and logs that. For messages without a
    /// caller that could be answered with an error.
    fn is_too_large(&self, now: Instant, text: &str) -> bool {
        let Some(Declined::TooLarge(bytes, max)) = self.excess(text) else { return false };
        let what = format!(
            "was not sent a message of {bytes} bytes: its edge accepts at most {max} (see --max-message-bytes at register)"
        );
        self.warn_throttled(now, "too_large", &what);
        true
    }

    fn send_call(&self, now: Instant, id: Option<u64>, text: String) -> Result<(), SendError> {
        match &self.instance {
            None => self.link.send(text, Room::Normal),
            Some(instance) => instance.hold(id, text)?.map_or(Ok(()), |text| self.send_now(now, text)),
        }
    }

    /// Returns whether messages are held until the instance is initialized.
    fn is_starting(&self) -> bool {
        self.instance.as_ref().is_some_and(|instance| instance.waiting().is_some())
    }

    /// Sends a message to the server, whether it is initialized or not. A message that is too large
    /// for the edge is dropped, with a log line.
    ///
    /// # Errors
    /// [`SendError`]: the link does not keep up or is gone, or memory is used up.
    pub fn send_now(&self, now: Instant, text: String) -> Result<(), SendError> {
        if self.is_too_large(now, &text) { Ok(()) } else { self.link.send(self.frame(text), Room::Normal) }
    }

    /// Sends a message regardless of the queue's limits: one that an instance gets at most once and
    /// cannot do without.
    fn send_once(&self, text: String) {
        // Fails only if the link is gone, which ends the instance anyway.
        let _ = self.link.send(self.frame(text), Room::Unbounded);
    }

    fn frame(&self, text: String) -> String {
        match &self.instance {
            Some(instance) => frame::message(instance.number, &text),
            None => text,
        }
    }

    /// Handles a successful `initialize` of the instance: sends `notifications/initialized`, then
    /// `first`, then the held messages. Held calls that the link does not take fail.
    pub fn on_initialized(&self, now: Instant, first: Vec<String>, stats: &Stats) {
        let Some(instance) = &self.instance else { return };
        self.send_once(jsonrpc::notification("notifications/initialized", None));
        first.into_iter().for_each(|text| self.send_once(text));
        let lost: Vec<u64> = {
            // Hold the lock until all are sent, so that no message overtakes the held ones.
            let mut waiting = instance.waiting();
            let held = waiting.take().unwrap_or_default();
            instance.release(&held);
            held.into_iter().filter_map(|(id, text)| self.send_now(now, text).err().and(id)).collect()
        };
        for pending in lost.into_iter().filter_map(|id| self.mux().close(id)) {
            fail(pending, &CallError::declined(Declined::Link, &self.name), stats);
        }
    }

    /// Closes the instance's channel: the edge ends the process.
    pub fn close_channel(&self, reason: &str) {
        if let Some(instance) = &self.instance {
            // Ignores the queue's limits: there is one such frame per channel, and without it the
            // process would run as long as the link.
            let _ = self.link.send(frame::close(instance.number, reason), Room::Unbounded);
        }
    }

    /// Returns its key.
    pub fn key(&self) -> InstanceKey {
        self.key
    }

    /// Returns the name that the server registered with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what carries frames to its edge.
    pub fn link(&self) -> &Arc<dyn Transport> {
        &self.link
    }

    /// Returns the server's `initialize` result, raw JSON, or `None` before there is one.
    pub fn initialize_result(&self) -> Option<Arc<str>> {
        self.initialize_result.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stores the server's `initialize` result. Returns whether it differs from the previous one.
    ///
    /// # Errors
    /// [`SendError::Memory`]: this is an isolated instance, and the session's account cannot pay
    /// for it.
    pub fn set_initialize_result(&self, result: &str) -> Result<bool, SendError> {
        let mut initialize_result = self.initialize_result.lock().unwrap_or_else(PoisonError::into_inner);
        if initialize_result.as_deref() == Some(result) {
            return Ok(false);
        }
        if self.instance.as_ref().is_some_and(|instance| !instance.charge_initialize_result(result.len())) {
            return Err(SendError::Memory);
        }
        *initialize_result = Some(result.into());
        self.tasks.store(declares(result, "tasks"), Ordering::Relaxed);
        Ok(true)
    }

    /// Returns whether the server declares a capability.
    pub fn has(&self, capability: &str) -> bool {
        self.initialize_result().is_some_and(|result| declares(&result, capability))
    }

    /// Returns whether the server is shared by clients and declares tasks.
    pub fn has_tasks(&self) -> bool {
        self.instance.is_none() && self.tasks.load(Ordering::Relaxed)
    }

    /// Returns the current run of its program. Tasks are bound to a run.
    pub fn run(&self) -> Run {
        *self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the run, when its program was restarted. Returns the previous run.
    pub fn set_run(&self, run: Run) -> Run {
        std::mem::replace(&mut *self.run.lock().unwrap_or_else(PoisonError::into_inner), run)
    }

    /// Logs a response or progress notification without a pending request: at most one line per
    /// second, with a count of those left out.
    pub fn log_unmatched(&self, now: Instant, message: &Message<'_>) {
        let (kind, what) = describe_unmatched(message);
        self.warn_throttled(now, kind, &what);
    }

    /// Logs a response that cannot be used, throttled likewise.
    pub fn log_unusable(&self, now: Instant, answer: &Unusable) {
        self.warn_throttled(now, "unusable", &format!("sent an invalid response: {}", answer.why));
    }

    /// Logs a message with a member that some parsers take for a JSON-RPC member, throttled
    /// likewise.
    pub fn log_twin(&self, now: Instant) {
        let what = "sent a member whose name differs only in case from a JSON-RPC member; removed it";
        self.warn_throttled(now, "twin", what);
    }

    /// Counts and logs text that is not a message. Text with a duplicate member was probably meant
    /// to be a message, so it gets a warning.
    pub fn on_noise(&self, now: Instant, malformed: Option<Malformed>, stats: &Stats) {
        stats.unmatched.add();
        match malformed {
            Some(why @ Malformed::Duplicate) => {
                self.warn_throttled(now, "duplicate", &format!("sent an invalid message: {}", why.reason()));
            }
            _ => log::debug!("server '{}' sent a frame that is not a message", self.name),
        }
    }

    fn warn_throttled(&self, now: Instant, kind: &'static str, what: &str) {
        let mut log_throttle = self.log_throttle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left_out) = log_throttle.due(now, kind, "", LOG_WARNINGS) {
            log::warn!("server '{}' {what}{left_out}", self.name);
        }
    }

    /// Logs a request that timed out: throttled, with a count of those left out.
    fn log_expired(&self, now: Instant, method: &str, seconds: f64) {
        let mut log_throttle = self.log_throttle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left_out) = log_throttle.due(now, "no_answer", "", LOG_GROUPS) {
            let method = util::escape::show(method);
            log::info!("server '{}' did not respond to {method} within {seconds} s{left_out}", self.name);
        }
    }

    /// Returns the table of pending requests.
    pub fn mux(&self) -> MutexGuard<'_, Mux<Caller>> {
        // Each change of the table is complete in itself, so a panic elsewhere does not corrupt it.
        self.mux.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of pending requests, including those of its isolated instances.
    pub fn pending(&self) -> usize {
        let instances = self.instances.iter().flat_map(InstancePool::all);
        self.mux().len() + instances.map(|instance| instance.mux().len()).sum::<usize>()
    }

    /// Passes a client's call on, under an id of the mux.
    ///
    /// # Errors
    /// [`Declined`]; nothing was sent then.
    pub fn call(&self, now: Instant, client: &Arc<Session>, call: &Call<'_>) -> Result<(), Declined> {
        let text = call.message.text();
        let id = call.message.id().unwrap_or_default();
        let token = call.token.clone().map(|span| &text[span]);
        let (call_id, upstream_id) = {
            // Hold the lock until the call is in both tables, so that its response cannot arrive in
            // between.
            let mut calls = client.calls();
            let number = call.number.unwrap_or_else(|| calls.reserve());
            let call_id =
                calls.may_begin_as(number, id, call.responder.stream_key()).map_err(Declined::Session)?;
            let share = self.call_share(client, call.several)?;
            let caller = Caller::Session(client.clone(), call_id.clone(), call.responder.clone(), share);
            let opened = self.mux().open(now, caller, call.message.method(), token, call.timeout);
            let upstream_id = opened.map_err(|refused| match refused {
                mux::MuxRefused::Busy => Declined::Server,
                mux::MuxRefused::Gone => Declined::Gone,
            })?;
            calls.begin(&call_id, self.key, upstream_id);
            (call_id, upstream_id)
        };
        // An isolated instance serves one client only, so its progress tokens are unique as they
        // are.
        let token = call.token.clone().filter(|_| self.instance.is_none());
        let text = edit::request(call.message, upstream_id, call.rename.clone(), token);
        let declined = {
            // Hold the lock until the call is queued: a cancellation takes it out of the table
            // first, so it is queued behind the call.
            let mut mux = self.mux();
            if mux.get(upstream_id).is_none() {
                // Cancelled or failed with the link meanwhile, and therefore already answered.
                return Ok(());
            }
            let sent = match self.excess(&text) {
                Some(declined) => Err(declined),
                None => self.send_call(now, Some(upstream_id), text).map_err(declined_by_link),
            };
            let Err(declined) = sent else { return Ok(()) };
            mux.close(upstream_id);
            declined
        };
        client.calls().end(&call_id);
        let starting = declined == Declined::Link && self.is_starting();
        Err(if starting { Declined::Starting } else { declined })
    }

    /// Takes a share for one more call of the client's principal, if several principals share the
    /// server.
    fn call_share(&self, client: &Session, several: bool) -> Result<Option<Share>, Declined> {
        // An isolated instance serves one client only.
        if !several || self.instance.is_some() {
            return Ok(None);
        }
        let share = self.shares.take(client.principal(), shares::limit(self.max, several));
        share.map(Some).ok_or(Declined::ServerShare)
    }

    /// Sends the server a request and ignores the response.
    pub fn send_request(&self, now: Instant, method: &str, params: &str, timeout: Duration) {
        if let Some(request) = self.request(now, method, params, timeout) {
            // A request that could not be sent is removed from the table at its timeout.
            let _ = self.send_now(now, request);
        }
    }

    /// Registers a request whose response is ignored, and returns its text.
    pub fn request(&self, now: Instant, method: &str, params: &str, timeout: Duration) -> Option<String> {
        let id = self.mux().open(now, Caller::Ignored, method, None, timeout).ok()?;
        Some(jsonrpc::request(&id.to_string(), method, params))
    }

    /// Subscribes to a resource at the server. Returns false if the link does not keep up.
    pub fn subscribe(&self, now: Instant, uri: &str, timeout: Duration) -> bool {
        let method = "resources/subscribe";
        // This fails only if the link is gone, and all subscriptions with it.
        let Ok(id) = self.mux().open_own(now, Caller::Ignored, method, timeout) else { return true };
        let params = uri_params(uri);
        let sent = self.send_now(now, jsonrpc::request(&id.to_string(), method, &params));
        let sent = !matches!(sent, Err(SendError::Full | SendError::Memory));
        if !sent {
            self.mux().close(id);
        }
        sent
    }

    /// Requests log messages from this level on from the server; see [`Upstream::level_request`].
    pub fn send_level(&self, now: Instant, level: Level, timeout: Duration) {
        if let Some(request) = self.level_request(now, level, timeout) {
            // A request that could not be sent is removed from the table at its timeout.
            let _ = self.send_now(now, request);
        }
    }

    /// Returns a `logging/setLevel` request, unless this level is the one last requested or a
    /// request is pending. With at most one pending, clients that change their level often take the
    /// room of one call only. When it is answered, `forward` requests the level wanted by then.
    pub fn level_request(&self, now: Instant, level: Level, timeout: Duration) -> Option<String> {
        let mut wanted = self.level();
        let waits = wanted.request.is_some_and(|id| self.mux().get(id).is_some());
        if waits || wanted.level == Some(level) {
            return None;
        }
        let method = "logging/setLevel";
        let id = self.mux().open_own(now, Caller::Ignored, method, timeout).ok()?;
        *wanted = RequestedLevel { level: Some(level), request: Some(id) };
        let params = format!("{{\"level\":\"{}\"}}", level.name());
        Some(jsonrpc::request(&id.to_string(), method, &params))
    }

    /// Forgets the requested log level: a restarted server does not know it.
    pub fn forget_level(&self) {
        *self.level() = RequestedLevel::default();
    }

    fn level(&self) -> MutexGuard<'_, RequestedLevel> {
        // Replaced as a whole, so a panic elsewhere does not corrupt it.
        self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends `initialize` to an isolated instance.
    pub fn send_initialize(&self, now: Instant, params: &str, timeout: Duration) {
        if let Ok(id) = self.mux().open_own(now, Caller::Initialize, "initialize", timeout) {
            self.send_once(jsonrpc::request(&id.to_string(), "initialize", params));
        }
    }

    /// Cancels a request at the server. `notification`: the client's own with the position of its
    /// request id, or else the reason.
    pub fn cancel(
        &self,
        now: Instant,
        upstream_id: u64,
        notification: Result<(&Message<'_>, Span), &str>,
        stats: &Stats,
    ) {
        let Some(pending) = self.mux().close(upstream_id) else { return };
        let text = match notification {
            Ok((message, span)) => edit::cancellation(message, span, upstream_id),
            Err(reason) => edit::cancelled(upstream_id, reason),
        };
        // The server must stop in any case. Only what the client added can make it too large, so
        // leave that out.
        let text = match self.excess(&text) {
            Some(_) => edit::cancelled(upstream_id, "the client cancelled the request"),
            None => text,
        };
        // Best effort: if the link is full, the server's late response is dropped as a stray.
        let _ = self.send(now, text);
        if let Caller::Session(_, id, responder, _) = pending.caller {
            responder.cancelled(&id, stats);
        }
    }

    /// Fails the request whose response cannot be used. A response without an id is matched with
    /// the only pending request, if there is exactly one. The caller of a discovery or
    /// initialization is returned instead of failed.
    pub fn fail_unusable(&self, answer: &Unusable, stats: &Stats) -> Option<Caller> {
        let pending = {
            let mut mux = self.mux();
            let id = answer.id.as_deref().map_or_else(|| mux.only(), decimal);
            mux.close(id?)?
        };
        if matches!(pending.caller, Caller::Discovery | Caller::Initialize) {
            return Some(pending.caller);
        }
        let why = CallError::InvalidResponse { server: self.name.clone(), why: answer.why };
        fail(pending, &why, stats);
        None
    }

    /// Fails all pending requests, since the link is gone.
    pub fn fail_all(&self, reason: &str, stats: &Stats) {
        let pending = self.mux().drain();
        let why = CallError::Disconnected { server: self.name.clone(), reason: reason.to_owned() };
        for pending in pending {
            fail(pending, &why, stats);
        }
    }

    /// Fails the requests that timed out and cancels them at the server. Those of discovery and
    /// initialization are returned instead of failed.
    pub fn expire(&self, now: Instant, stats: &Stats) -> Vec<Pending<Caller>> {
        let mut expired = Vec::new();
        self.mux().tick(now, &mut expired);
        let mut gateway_requests = Vec::new();
        for (id, pending) in expired {
            let seconds = pending.timeout.as_secs_f64();
            self.log_expired(now, &pending.method, seconds);
            if &*pending.method != "initialize" {
                let _ = self.send(now, edit::cancelled(id, "the request timed out"));
            }
            if matches!(pending.caller, Caller::Discovery | Caller::Initialize) {
                gateway_requests.push(pending);
            } else {
                let why = CallError::TimedOut { server: self.name.clone(), after: pending.timeout };
                fail(pending, &why, stats);
            }
        }
        gateway_requests
    }
}

/// Delivers a response from `upstream` to its caller, under the client's own id and with these
/// edits.
pub fn deliver(
    now: Instant,
    upstream: &Upstream,
    pending: Pending<Caller>,
    message: &Message<'_>,
    edits: Vec<Edit>,
    stats: &Stats,
) {
    let Caller::Session(client, id, responder, _share) = pending.caller else { return };
    let asked = client.calls().end(&id).map(|_| upstream);
    if let (Some(result), "initialize") = (message.result(), &*pending.method) {
        if asked.is_some_and(|instance| instance.set_initialize_result(result).is_err()) {
            stats.memory_refusals.add();
            return responder.finish(CallError::NoMemory.rpc().response(&id), stats);
        }
        client.initialized(now, &mcp::version_of(result).unwrap_or_default());
    }
    let versions = versions(&client, asked);
    let versions = versions.as_ref().map(|(client, server)| (client.as_str(), server.as_str()));
    responder.finish(conclusion::response(message, &id, &pending.method, edits, versions), stats);
}

/// Returns the versions of a client and of the server that it asked, if they can make a difference
/// to a response.
fn versions(client: &Session, asked: Option<&Upstream>) -> Option<(String, String)> {
    let version = {
        let info = client.info();
        compat::concerns(&info.version).then(|| info.version.clone())
    };
    let (version, result) = (version?, asked?.initialize_result()?);
    Some((version, mcp::version_of(&result)?))
}

/// Returns the log kind and text for a response or progress notification without a pending request.
fn describe_unmatched(message: &Message<'_>) -> (&'static str, String) {
    match message.id() {
        Some(id) => {
            ("stray_answer", format!("sent a response to an unknown request: id {}", util::escape::show(id)))
        }
        None if message.kind() == Kind::Response => {
            ("stray_error", "sent an error response without an id".into())
        }
        None => ("stray_progress", "sent progress for an unknown request".into()),
    }
}

/// Returns whether an `initialize` result declares a capability.
fn declares(initialize_result: &str, capability: &str) -> bool {
    matches!(
        jsonrpc::find(initialize_result, 0..initialize_result.len(), &["capabilities", capability]),
        Ok(Some(_))
    )
}

/// Returns the params of a request about one resource.
pub fn uri_params(uri: &str) -> String {
    format!("{{\"uri\":{}}}", jsonrpc::quote(uri))
}

/// Fails a request with an error from the gateway.
pub fn fail(pending: Pending<Caller>, why: &CallError, stats: &Stats) {
    if let Caller::Session(client, id, responder, _share) = pending.caller {
        client.calls().end(&id);
        responder.finish(why.rpc().response(&id), stats);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, thread};

    use futures_lite::future;

    use super::*;
    use crate::{
        auth::Principal, catalog::Catalog, gateway::responder::StreamResponder, hub::session::Scope,
        limits::Limits, net::outbox, runtime::task_tracker::TaskTracker,
    };

    /// With several threads, a client may cancel a call over another connection while the call is
    /// being rewritten.
    #[test]
    fn a_cancellation_never_overtakes_its_call() {
        let limits = Limits::default();
        let (link, mut frames) = outbox::bounded(limits.link.queue_messages, limits.link.queue_bytes);
        let mut catalog = Catalog::<()>::new(&[], &limits.catalog);
        let upstream = Upstream::new(catalog.reserve(), "s".into(), &limits.link, Arc::new(link), None, None);
        let (outbox, _) = outbox::bounded(1, 1);
        let outbox = StreamResponder::new(outbox, 0, &TaskTracker::new());
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
        let responder = Arc::new(StreamResponder::new(sender, 0, &TaskTracker::new()));
        for _ in 0..50 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    loop {
                        let ended = client.calls().cancel("1");
                        if let Some((_, id)) = ended {
                            return upstream.cancel(Instant::now(), id, Err("test"), &stats);
                        }
                        thread::yield_now();
                    }
                });
                let timeout = limits::TOOL_TIME;
                let call = Call {
                    message: &message,
                    rename: None,
                    token: None,
                    timeout,
                    responder: responder.clone(),
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
