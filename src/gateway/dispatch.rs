//! Gives a client's message to the hub, independent of the transport.

use std::{sync::Arc, time::Instant};

use futures_lite::future;

use super::{session::Session, state::Gateway};
use crate::{
    hub::{
        entry::{self, Enter, ServersWanted},
        peers::Responder,
        server_list::ServerList,
    },
    jsonrpc::{self, Message},
    runtime::executor,
};

/// Handles one message of a client. A request gets exactly one response, through `responder`, or
/// none if the client cancels it on the 2024-11-05 transport.
pub fn dispatch(
    gateway: &Arc<Gateway>,
    session: &Session,
    message: &Message<'_>,
    responder: &Arc<dyn Responder>,
) {
    let wanted = entry::message(&**gateway, Instant::now(), session.client(), message, responder);
    if let Some(wanted) = wanted {
        list_servers(gateway.clone(), wanted, responder.clone());
    }
}

/// Answers a call of the tool `list_servers` when there are many servers. Builds the list in steps,
/// so that the hub is not locked for long.
fn list_servers(gateway: Arc<Gateway>, wanted: ServersWanted, responder: Arc<dyn Responder>) {
    let ServersWanted { viewer, id } = wanted;
    let (watching, failed, its_id) = (gateway.clone(), responder.clone(), id.clone());
    let listing = async move {
        let mut list = ServerList::new(viewer);
        while gateway.enter(|hub, _| hub.add_servers(&mut list)) {
            future::yield_now().await;
        }
        responder.finish(jsonrpc::result(&id, &list.result()), &gateway.stats);
    };
    executor::spawn_guarded(listing, move || {
        watching.stats.panics.add();
        let text = "internal error in the gateway";
        failed.finish(jsonrpc::error(&its_id, jsonrpc::INTERNAL_ERROR, text), &watching.stats);
    });
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, thread};

    use super::*;
    use crate::{
        auth::Principal,
        cli::{self, Command, Environment},
        gateway::Bound,
        hub::{registration::NewUpstream, session::Scope},
        limits::SPLICE_IN_HUB,
        net::outbox,
        tunnel::close::CloseReason,
    };

    fn gateway() -> Arc<Gateway> {
        let typed = ["gateway", "--port", "0", "--host", "127.0.0.1"].map(str::to_owned);
        match cli::parse(&typed, &Environment::default()) {
            Ok(Command::Gateway(config, _)) => Bound::new(*config).unwrap().gateway,
            other => panic!("{other:?}"),
        }
    }

    /// Registers a server named `s`, and returns the frames that it is sent.
    fn register(gateway: &Gateway) -> outbox::Receiver<CloseReason> {
        let limits = &gateway.config.limits.link;
        let (queue, frames) = outbox::bounded(limits.queue_messages, limits.queue_bytes);
        let new = NewUpstream {
            id: "id".into(),
            name: "s".into(),
            principal: Principal::ANONYMOUS,
            account: gateway.account(Principal::ANONYMOUS),
            transport: Arc::new(queue),
            accepts: None,
            max_instances: None,
            reads_status_frames: false,
            resume_token: None,
            era: None,
        };
        gateway.enter(|hub, fx| hub.register(Instant::now(), new, fx)).unwrap();
        frames
    }

    /// With several threads, a client may cancel a call over another connection while the text for
    /// the server is being made, between two entries into the hub.
    #[test]
    fn a_cancellation_never_overtakes_its_call() {
        let gateway = gateway();
        let mut frames = register(&gateway);
        let scope = Scope::Server("s".into());
        let (guard, _stream) = Session::begin(&gateway, "id".into(), Principal::ANONYMOUS, scope, true);
        let session = guard.session();
        // Large, so that making the text takes a while.
        let padding = "x".repeat(64 * SPLICE_IN_HUB);
        let text = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"t","padding":"{padding}"}}}}"#
        );
        let call = Message::read(&text).unwrap();
        let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
        let cancel = Message::read(cancel).unwrap();
        let pending = || gateway.enter(|hub, _| hub.servers(Principal::ANONYMOUS, None)[0].calls);
        let at_rest = pending();
        for _ in 0..50 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    while pending() == at_rest {
                        thread::yield_now();
                    }
                    dispatch(&gateway, session, &cancel, &session.responder());
                });
                dispatch(&gateway, session, &call, &session.responder());
            });
            assert_eq!(pending(), at_rest);
            let mut sent = VecDeque::new();
            future::block_on(frames.take(&mut sent));
            let cancelled = sent.iter().position(|frame| frame.contains("notifications/cancelled"));
            let called = sent.iter().position(|frame| frame.contains("tools/call"));
            // A call that was cancelled before it was queued is never sent.
            assert!(called < cancelled, "the cancellation is first: {called:?} {cancelled:?}");
        }
    }
}
