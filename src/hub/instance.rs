//! One process of a server: the one that all sessions share, or an isolated instance of one session
//! or principal.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    effect::Effects,
    error::{CallError, Declined},
    key::{InstanceKey, SessionKey},
    link::Link,
    listener::ListenSubscription,
    mux::{Mux, MuxRefused, Pending},
    peers::Responder,
};
use crate::{
    auth::Principal,
    budget::{Account, Charge},
    jsonrpc::{self, tolerant::Unusable},
    limits,
    mcp::{
        self, Era,
        discovery::Question,
        listen_filter::{Filter, Kinds},
        log_level::Level,
        stateless::{Allowed, listen, result::ServerStamp, route},
    },
    queue::{Room, SendError},
    session::{CallDigest, CallId, RoundKey, Shares, share_of},
};

/// The caller of a request, which gets its response.
#[derive(Debug)]
pub enum Caller {
    /// The gateway's own discovery of the server, with what it asks for.
    Discovery(Question),
    /// The gateway's initialization of an isolated instance, which cannot serve before.
    Initialize,
    /// The gateway's own listen, which lasts.
    Listen,
    /// A client's listen, for which a legacy server was asked to report the updates of a resource.
    Subscribe(Box<ListenSubscription>),
    /// Nobody: the request was sent for its effect.
    Ignored,
    /// A client.
    Client(ClientCall),
}

/// A call of a client.
#[derive(Debug)]
pub struct ClientCall {
    /// The client that called.
    pub origin: Origin,
    /// Where the response goes.
    pub responder: Arc<dyn Responder>,
    /// The principal in whose share of the process the call is counted. `None` if the process is
    /// not divided among several principals.
    pub share: Option<Principal>,
    /// How it is sent again with answers of its client. Only for a session at a modern server whose
    /// client can be asked.
    pub repeat: Option<Repeat>,
}

/// How a call of a session is sent again, if its modern server asks the client.
#[derive(Debug)]
pub enum Repeat {
    /// For the first time.
    First(Box<KeptRequest>),
    /// Once more, in these rounds.
    Round(RoundKey),
}

/// A request that is kept to be sent again.
#[derive(Debug)]
pub struct KeptRequest {
    /// The request as it was sent to the server.
    pub text: Arc<str>,
    /// When it arrived.
    pub began: Instant,
    /// Memory charged for it, to the account of the session.
    pub charge: Charge,
}

/// A call whose server asks the client of a session, or has asked it.
#[derive(Clone, Debug)]
pub struct RoundCall {
    /// The process, and the id of the latest request there.
    pub process: InstanceKey,
    /// That id.
    pub upstream_id: u64,
    /// The method.
    pub method: Box<str>,
    /// The client's progress token, raw JSON.
    pub token: Option<Box<str>>,
    /// Timeout for each response.
    pub timeout: Duration,
    /// The session.
    pub session: SessionKey,
    /// The id of the call there.
    pub id: CallId,
    /// Where the response goes.
    pub responder: Arc<dyn Responder>,
}

/// The client that called.
#[derive(Debug)]
pub enum Origin {
    /// The client of a session, with the id of the call in that session.
    Session(SessionKey, CallId),
    /// A client without a session.
    Stateless(Box<StatelessCall>),
}

/// A call without a session.
#[derive(Debug)]
pub struct StatelessCall {
    /// The principal of the client.
    pub principal: Principal,
    /// The id as the client wrote it.
    pub id: Box<str>,
    /// Whether it was sent to the endpoint of all servers.
    pub sees_all: bool,
    /// The lowest level of log messages that it wants; `None`: it wants none.
    pub level: Option<Level>,
    /// What the server may ask its client for.
    pub allowed: Allowed,
    /// The digest of the call, to which a `requestState` in its response is bound.
    pub digest: CallDigest,
}

impl ClientCall {
    /// Returns the id as the client wrote it.
    pub fn id(&self) -> &str {
        match &self.origin {
            Origin::Session(_, id) => id,
            Origin::Stateless(call) => &call.id,
        }
    }

    /// Returns the session that called.
    pub fn session(&self) -> Option<SessionKey> {
        match &self.origin {
            Origin::Session(session, _) => Some(*session),
            Origin::Stateless(_) => None,
        }
    }
}

/// A server's description of itself, from its response to `initialize` or `server/discover`.
#[derive(Clone, Debug)]
pub struct Initialized {
    /// The result of `initialize`, raw JSON. That of a modern server is made from the one of
    /// `server/discover`.
    pub result: Arc<str>,
    /// Its protocol version.
    pub version: Arc<str>,
    /// The era of that version.
    pub era: Era,
    /// Its name and version, for results.
    pub stamp: Arc<ServerStamp>,
    /// Whether it takes `resources/subscribe`, if it is a legacy server.
    pub takes_subscriptions: bool,
    /// The lists whose changes it reports.
    pub changing: Kinds,
    /// Whether it declares tasks.
    tasks: bool,
}

impl Initialized {
    /// Parses a result of `initialize`.
    pub fn read(result: &str) -> Self {
        let version = mcp::version_of(result).unwrap_or_default();
        Self {
            result: result.into(),
            era: mcp::era(&version).unwrap_or(Era::Legacy),
            version: (*version).into(),
            stamp: Arc::new(ServerStamp::of(result)),
            takes_subscriptions: is_true(result, ["capabilities", "resources", "subscribe"]),
            changing: Kinds::ALL
                .iter()
                .filter(|kind| is_true(result, ["capabilities", kind.capability(), "listChanged"]))
                .collect(),
            tasks: declares(result, "tasks"),
        }
    }

    /// Returns whether the server declares a capability.
    pub fn declares(&self, capability: &str) -> bool {
        declares(&self.result, capability)
    }

    /// Returns whether the server offers a method of MCP. Some servers have tools without declaring
    /// it.
    pub fn offers(&self, method: &str) -> bool {
        match route::legacy_capability(method) {
            None => false,
            Some("tools") => true,
            Some(capability) => self.declares(capability),
        }
    }
}

fn declares(result: &str, capability: &str) -> bool {
    matches!(jsonrpc::find(result, 0..result.len(), &["capabilities", capability]), Ok(Some(_)))
}

fn is_true(result: &str, path: [&str; 3]) -> bool {
    let found = jsonrpc::find(result, 0..result.len(), &path);
    found.is_ok_and(|found| found.is_some_and(|span| &result[span] == "true"))
}

/// A process of a server.
#[derive(Debug)]
pub struct Instance {
    key: InstanceKey,
    mux: Mux<Caller>,
    /// Running calls by principal, and (`max`) their limit in total.
    shares: Shares,
    max: usize,
    initialized: Option<Initialized>,
    /// The log level last requested from it, and the id of the request.
    level: Option<(Level, u64)>,
    /// The call for which a modern process may send log messages: they do not say to which call
    /// they belong, so there is one at a time.
    level_slot: Option<u64>,
    /// Set if this is an isolated instance.
    isolated: Option<Isolated>,
}

/// Messages, each with its id in the mux if it is a call.
type Held = Vec<(Option<u64>, String)>;

/// Whom an isolated instance serves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Owner {
    /// The session of a client.
    Session(SessionKey),
    /// A principal: any number of its calls without a session.
    Principal,
    /// One call without a session at a time. Its client may be asked this.
    Lease(Allowed),
}

/// What only an isolated instance has.
#[derive(Debug)]
pub struct Isolated {
    /// Whom it serves.
    pub owner: Owner,
    /// The principal of its clients.
    pub principal: Principal,
    /// The resources that the session was subscribed to when the instance was created.
    pub subscriptions: Vec<String>,
    /// Messages held until the instance is initialized; `None` once it is, or if the client
    /// initializes it.
    held: Option<Held>,
    /// Memory charged for these messages: to the account of all instances behind the link, and to
    /// that of the owner.
    held_charges: [Charge; 2],
    /// Charge for its `initialize` result.
    initialize_result_charge: Charge,
}

impl Isolated {
    /// Describes the instance of an owner whose bytes `account` pays for; `all` is the account of
    /// all instances behind the link. With `subscriptions`, the resources that the session is
    /// subscribed to, the gateway initializes the instance, and messages to it are held until
    /// [`Instance::on_initialized`]. Without, the client initializes it, or its era has no
    /// `initialize`.
    pub fn new(
        (owner, principal): (Owner, Principal),
        all: &Account,
        account: &Account,
        subscriptions: Option<Vec<String>>,
    ) -> Self {
        let held = subscriptions.is_some().then(Vec::new);
        Self {
            owner,
            principal,
            subscriptions: subscriptions.unwrap_or_default(),
            held,
            held_charges: [all.charge(), account.charge()],
            initialize_result_charge: account.charge(),
        }
    }

    /// Returns the account of its owner.
    pub fn account(&self) -> &Account {
        self.initialize_result_charge.account()
    }

    /// Holds a message until the instance is initialized. Returns the message if there is no need
    /// to hold it, or `None` if it is held.
    ///
    /// # Errors
    /// [`SendError::Full`]: [`limits::SERVER_REQUESTS`] messages are held, or the instances behind
    /// the link hold too many bytes. [`SendError::Memory`]: the session's account cannot pay.
    fn hold(&mut self, id: Option<u64>, text: String) -> Result<Option<String>, SendError> {
        let Some(held) = &mut self.held else { return Ok(Some(text)) };
        let [all, account] = &mut self.held_charges;
        let before = all.bytes();
        if held.len() >= limits::SERVER_REQUESTS || !all.resize(before + text.len()) {
            return Err(SendError::Full);
        }
        if !account.resize(before + text.len()) {
            // Shrinking a charge never fails.
            let _ = all.resize(before);
            return Err(SendError::Memory);
        }
        held.push((id, text));
        Ok(None)
    }

    /// Returns the bytes of the messages that are held, for the tests.
    ///
    /// # Errors
    /// A different number of bytes is charged.
    pub fn held_bytes(&self) -> Result<usize, String> {
        let held = self.held.iter().flatten().map(|(_, text)| text.len()).sum();
        match self.held_charges.iter().all(|charge| charge.bytes() == held) {
            true => Ok(held),
            false => Err(format!("{held} bytes are held, and charged as {:?}", self.held_charges)),
        }
    }

    /// Stops holding messages, and returns those that were held.
    fn release(&mut self) -> Held {
        self.held_charges.iter_mut().for_each(|charge| charge.resize_anyway(0));
        self.held.take().unwrap_or_default()
    }
}

/// A request that is being added to an instance.
pub struct NewCall<'a> {
    /// Its caller.
    pub caller: Caller,
    /// The method.
    pub method: &'a str,
    /// The client's progress token, raw JSON.
    pub token: Option<&'a str>,
    /// Timeout for the response.
    pub timeout: Duration,
}

impl Instance {
    /// Creates a process, before initialization, for at most `max` calls at a time.
    pub fn new(key: InstanceKey, max: usize, isolated: Option<Isolated>) -> Self {
        let (mux, shares) = (Mux::new(max), Shares::default());
        Self { key, mux, shares, max, initialized: None, level: None, level_slot: None, isolated }
    }

    /// Returns its key.
    pub fn key(&self) -> InstanceKey {
        self.key
    }

    /// Returns what only an isolated instance has, if this is one.
    pub fn isolated(&self) -> Option<&Isolated> {
        self.isolated.as_ref()
    }

    /// Returns its pending requests.
    pub fn mux(&self) -> &Mux<Caller> {
        &self.mux
    }

    /// Returns the response to `initialize`, or `None` before there is one.
    pub fn initialized(&self) -> Option<&Initialized> {
        self.initialized.as_ref()
    }

    /// Returns whether the server declares a capability.
    pub fn has(&self, capability: &str) -> bool {
        self.initialized.as_ref().is_some_and(|initialized| initialized.declares(capability))
    }

    /// Returns whether the process is known to speak the stateless protocol.
    pub fn is_modern(&self) -> bool {
        self.initialized.as_ref().is_some_and(|initialized| initialized.era == Era::Modern)
    }

    /// Returns whether the process is shared by clients and declares tasks.
    pub fn has_tasks(&self) -> bool {
        self.isolated.is_none() && self.initialized.as_ref().is_some_and(|initialized| initialized.tasks)
    }

    /// Stores what is known of another process of the same server, which needs no `initialize`.
    pub fn initialize_as(&mut self, known: &Initialized) {
        self.initialized = Some(known.clone());
    }

    /// Stores the response to `initialize`. Returns whether it differs from the previous one.
    ///
    /// # Errors
    /// [`SendError::Memory`]: this is an isolated instance, and its owner's account cannot pay for
    /// it.
    pub fn set_initialized(&mut self, initialized: Initialized) -> Result<bool, SendError> {
        if self.initialized.as_ref().is_some_and(|known| known.result == initialized.result) {
            return Ok(false);
        }
        if let Some(isolated) = &mut self.isolated
            && !isolated.initialize_result_charge.resize(initialized.result.len())
        {
            return Err(SendError::Memory);
        }
        self.initialized = Some(initialized);
        Ok(true)
    }

    // Pending requests. A call leaves the mux only through these, which give its share back.

    /// Takes a share for one more call of a principal, if several principals share the process.
    ///
    /// # Errors
    /// [`Declined::ServerShare`]: the principal has its share already.
    pub fn take_share(&mut self, principal: Principal, several: bool) -> Result<Option<Principal>, Declined> {
        // An isolated instance serves one client only.
        if !several || self.isolated.is_some() {
            return Ok(None);
        }
        let taken = self.shares.take(principal, share_of(self.max, several));
        if taken { Ok(Some(principal)) } else { Err(Declined::ServerShare) }
    }

    /// Adds a call, and returns its id.
    ///
    /// # Errors
    /// [`Declined`]: too many requests are pending, or the link is gone.
    pub fn open(&mut self, now: Instant, call: NewCall<'_>) -> Result<u64, Declined> {
        let share = match &call.caller {
            Caller::Client(call) => call.share,
            _ => None,
        };
        let opened = self.mux.open(now, call.caller, call.method, call.token, call.timeout);
        opened.map_err(|refused| {
            share.into_iter().for_each(|principal| self.shares.give(principal));
            match refused {
                MuxRefused::Busy => Declined::Server,
                MuxRefused::Gone => Declined::Gone,
            }
        })
    }

    /// Returns whether the shares match the pending calls, of which there are `calls`. For the
    /// tests.
    pub fn has_right_shares(&self, calls: usize) -> bool {
        let mut shares = Shares::default();
        for (_, pending) in self.mux.all() {
            if let Caller::Client(ClientCall { share: Some(principal), .. }) = &pending.caller {
                let _ = shares.take(*principal, usize::MAX);
            }
        }
        shares == self.shares && calls <= self.max
    }

    /// Adds a request of the gateway's own, and returns its id, or `None` if the link is gone.
    pub fn open_own(&mut self, now: Instant, caller: Caller, method: &str, timeout: Duration) -> Option<u64> {
        self.mux.open_own(now, caller, method, timeout).ok()
    }

    /// Keeps the request of a pending call, to send it again.
    pub fn keep(&mut self, id: u64, kept: KeptRequest) {
        if let Some(Pending { caller: Caller::Client(call), .. }) = self.mux.get_mut(id) {
            call.repeat = Some(Repeat::First(Box::new(kept)));
        }
    }

    /// Adds a listen of the gateway's own, and returns its id, or `None` if the link is gone.
    pub fn open_listen(&mut self, now: Instant) -> Option<u64> {
        self.mux.open_lasting(now, Caller::Listen, "subscriptions/listen").ok()
    }

    /// Listens to changes of lists of an isolated instance, as long as it lasts.
    pub fn listen(&mut self, link: &Link, now: Instant, kinds: Kinds, fx: &mut Effects<'_>) {
        if let Some(id) = self.open_listen(now) {
            let params = listen::request_params(&Filter::of_kinds(kinds));
            self.send_once(link, jsonrpc::request(&id.to_string(), "subscriptions/listen", &params), fx);
        }
    }

    /// Removes a listen of the gateway's own. Returns false if there is none with this id.
    pub fn close_listen(&mut self, id: u64) -> bool {
        let is_listen = self.mux.get(id).is_some_and(|pending| matches!(pending.caller, Caller::Listen));
        is_listen && self.mux.close(id).is_some()
    }

    /// Removes all listens of the gateway's own.
    pub fn close_lasting(&mut self) {
        self.mux.close_lasting();
    }

    /// Removes a request.
    pub fn close(&mut self, id: u64) -> Option<Pending<Caller>> {
        let closed = self.mux.close(id)?;
        self.give_back(&closed);
        Some(closed)
    }

    /// Removes all requests, and takes no more. Returns them in the order in which they began.
    pub fn drain(&mut self) -> Vec<Pending<Caller>> {
        let drained = self.mux.drain();
        drained.iter().for_each(|pending| self.give_back(pending));
        drained
    }

    /// Removes the requests that timed out, and returns them with their ids.
    pub fn tick(&mut self, now: Instant) -> Vec<(u64, Pending<Caller>)> {
        let mut expired = Vec::new();
        self.mux.tick(now, &mut expired);
        expired.iter().for_each(|(_, pending)| self.give_back(pending));
        expired
    }

    /// Removes the request whose response cannot be used. A response without an id is matched with
    /// the only pending request, if there is exactly one.
    pub fn close_unusable(&mut self, answer: &Unusable) -> Option<Pending<Caller>> {
        let id = answer.id.as_deref().map_or_else(|| self.mux.only(), jsonrpc::decimal);
        self.close(id?)
    }

    /// Restarts the timeout of a request after progress.
    pub fn progressed(&mut self, now: Instant, id: u64) {
        self.mux.progressed(now, id);
    }

    /// Lets a request wait for its client to return, until then: see [`Mux::suspend`]. Returns the
    /// call, if its client was not away already.
    pub fn suspend(&mut self, id: u64, until: Instant) -> Option<ClientCall> {
        if !self.mux.suspend(id, until) {
            return None;
        }
        match mem::replace(&mut self.mux.get_mut(id)?.caller, Caller::Ignored) {
            Caller::Client(call) => Some(call),
            _ => None,
        }
    }

    /// Gives a suspended request to a client that has returned, with its progress token (raw JSON).
    /// Returns false if it is not suspended.
    pub fn rejoin(&mut self, now: Instant, id: u64, call: ClientCall, token: Option<&str>) -> bool {
        self.mux.rejoin(id, now, Caller::Client(call), token).is_ok()
    }

    /// Returns the request that is answered on this stream.
    pub fn find_stream(&self, stream: usize) -> Option<u64> {
        self.mux
            .find(|caller| matches!(caller, Caller::Client(call) if call.responder.stream_key() == stream))
    }

    /// Reserves the log messages of the process for a call. Returns false if another pending call
    /// has them.
    pub fn take_level_slot(&mut self, id: u64) -> bool {
        if self.level_slot.is_some_and(|holder| self.mux.get(holder).is_some()) {
            return false;
        }
        self.level_slot = Some(id);
        true
    }

    /// Returns the call for which the process may send log messages.
    pub fn logged_call(&self) -> Option<&ClientCall> {
        match &self.mux.get(self.level_slot?)?.caller {
            Caller::Client(call) => Some(call),
            _ => None,
        }
    }

    fn give_back(&mut self, pending: &Pending<Caller>) {
        if let Caller::Client(ClientCall { share: Some(principal), .. }) = &pending.caller {
            self.shares.give(*principal);
        }
    }

    // Messages to the process.

    /// Sends a message, or holds it while an isolated instance is being initialized. A message that
    /// is too large for the edge is dropped, with a log line.
    ///
    /// # Errors
    /// [`SendError`]: the link does not keep up or is gone, or memory is used up.
    pub fn send(
        &mut self,
        link: &mut Link,
        now: Instant,
        text: String,
        fx: &mut Effects<'_>,
    ) -> Result<(), SendError> {
        if link.is_too_large(now, self.key.channel, &text, fx) {
            return Ok(());
        }
        self.send_call(link, None, text, fx)
    }

    /// Sends a call that is not too large, or holds it while an isolated instance is being
    /// initialized. `id`: its id in the mux.
    ///
    /// # Errors
    /// [`SendError`]: the link does not keep up or is gone, or memory is used up.
    pub fn send_call(
        &mut self,
        link: &Link,
        id: Option<u64>,
        text: String,
        fx: &mut Effects<'_>,
    ) -> Result<(), SendError> {
        let text = match &mut self.isolated {
            None => Some(text),
            Some(isolated) => isolated.hold(id, text)?,
        };
        match text {
            Some(text) => link.queue(self.key.channel, text, Room::Normal, fx),
            None => Ok(()),
        }
    }

    /// Returns whether messages are held until the instance is initialized.
    pub fn is_starting(&self) -> bool {
        self.isolated.as_ref().is_some_and(|isolated| isolated.held.is_some())
    }

    /// Sends `initialize` to an isolated instance.
    pub fn send_initialize(
        &mut self,
        link: &Link,
        now: Instant,
        (params, timeout): (&str, Duration),
        fx: &mut Effects<'_>,
    ) {
        if let Some(id) = self.open_own(now, Caller::Initialize, "initialize", timeout) {
            self.send_once(link, jsonrpc::request(&id.to_string(), "initialize", params), fx);
        }
    }

    /// Handles a successful `initialize` of the instance: sends `notifications/initialized`, then
    /// `first`, then the held messages. Returns the held calls that the link did not take.
    pub fn on_initialized(
        &mut self,
        link: &mut Link,
        now: Instant,
        first: Vec<String>,
        fx: &mut Effects<'_>,
    ) -> Vec<Pending<Caller>> {
        let Some(isolated) = &mut self.isolated else { return Vec::new() };
        let held = isolated.release();
        self.send_once(link, jsonrpc::notification("notifications/initialized", None), fx);
        first.into_iter().for_each(|text| self.send_once(link, text, fx));
        let mut lost = Vec::new();
        for (id, text) in held {
            if link.send(now, self.key.channel, text, fx).is_err() {
                lost.extend(id.and_then(|id| self.close(id)));
            }
        }
        lost
    }

    /// Sends a message regardless of the queue's limits: one that an instance gets at most once and
    /// cannot do without.
    fn send_once(&self, link: &Link, text: String, fx: &mut Effects<'_>) {
        // Fails only if the link is gone, which ends the instance anyway.
        let _ = link.queue(self.key.channel, text, Room::Unbounded, fx);
    }

    /// Returns a request whose response is ignored, or `None` if too many are pending.
    pub fn request(&mut self, now: Instant, method: &str, params: &str, timeout: Duration) -> Option<String> {
        let id = self.open(now, NewCall { caller: Caller::Ignored, method, token: None, timeout }).ok()?;
        Some(jsonrpc::request(&id.to_string(), method, params))
    }

    /// Subscribes to a resource. Returns false if the link does not keep up.
    pub fn subscribe(
        &mut self,
        link: &mut Link,
        now: Instant,
        (caller, uri, timeout): (Caller, &str, Duration),
        fx: &mut Effects<'_>,
    ) -> bool {
        let method = "resources/subscribe";
        // This fails only if the link is gone, and all subscriptions with it.
        let Some(id) = self.open_own(now, caller, method, timeout) else { return true };
        let request = jsonrpc::request(&id.to_string(), method, &uri_params(uri));
        let sent = link.send(now, self.key.channel, request, fx);
        let sent = !matches!(sent, Err(SendError::Full | SendError::Memory));
        if !sent {
            self.close(id);
        }
        sent
    }

    /// Returns a `logging/setLevel` request, unless this level is the one last requested or such a
    /// request is pending. At most one is pending, however often clients change their level. When
    /// it is answered, the level wanted by then is requested.
    pub fn level_request(&mut self, now: Instant, level: Level, timeout: Duration) -> Option<String> {
        if let Some((requested, id)) = self.level
            && (requested == level || self.mux.get(id).is_some())
        {
            return None;
        }
        let method = "logging/setLevel";
        let id = self.open_own(now, Caller::Ignored, method, timeout)?;
        self.level = Some((level, id));
        let params = format!("{{\"level\":\"{}\"}}", level.name());
        Some(jsonrpc::request(&id.to_string(), method, &params))
    }

    /// Forgets the requested log level: a restarted server does not know it.
    pub fn forget_level(&mut self) {
        self.level = None;
    }
}

/// Returns the params of a request about one resource.
pub fn uri_params(uri: &str) -> String {
    format!("{{\"uri\":{}}}", jsonrpc::quote(uri))
}

/// Returns the reason for a call that the link did not accept.
pub fn declined_by_link(refused: SendError) -> Declined {
    match refused {
        SendError::Full => Declined::Link,
        SendError::Memory => Declined::Memory,
        SendError::Closed => Declined::Gone,
    }
}

/// Returns the error for a pending request whose server is gone.
pub fn disconnected(server: &str, reason: &str) -> CallError {
    CallError::Disconnected { server: server.to_owned(), reason: reason.to_owned() }
}
