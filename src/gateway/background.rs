//! The tasks that run beside the connections: timeouts, idle sessions, notifications of changed
//! lists, and the end of running calls at a stop.

use std::{sync::Arc, time::Instant};

use futures_lite::future;
use smol::Timer;

use super::state::Gateway;
use crate::{
    hub::{entry::Enter, fanout::ListNotice},
    limits,
    net::timeout,
};

/// Handles the timeouts of the hub, forever.
pub async fn expire(gateway: Arc<Gateway>) {
    loop {
        let step = async {
            let due = gateway.enter(|hub, _| hub.deadline());
            future::or(gateway.deadline_changed.wait(), timeout::until(due)).await;
            gateway.enter(|hub, fx| hub.tick(Instant::now(), fx));
            future::yield_now().await;
        };
        gateway.step("handling timeouts", step).await;
    }
}

/// Ends idle sessions, forever.
pub async fn close_idle_sessions(gateway: Arc<Gateway>) {
    loop {
        let step = async {
            Timer::after(limits::SWEEP.min(gateway.config.limits.session.idle)).await;
            gateway.enter(|hub, fx| hub.close_idle_sessions(Instant::now(), fx));
        };
        gateway.step("ending idle sessions", step).await;
    }
}

/// Sends `list_changed` notifications to the sessions of the aggregate endpoint, forever. Changes
/// are coalesced and sent to a few clients at a time, so that a burst of registrations costs each
/// client only a few notifications.
pub async fn notify_list_changes(gateway: Arc<Gateway>) {
    loop {
        let step = async {
            let due = gateway.enter(|hub, _| hub.list_notices_due());
            future::or(gateway.lists_changed.wait(), timeout::until(due)).await;
            for notice in gateway.enter(|hub, _| hub.take_list_notices(Instant::now())) {
                send(&gateway, notice).await;
            }
        };
        gateway.step("notifying clients of changed lists", step).await;
    }
}

async fn send(gateway: &Gateway, (streams, notification): ListNotice) {
    for chunk in streams.chunks(limits::YIELD_EVERY) {
        chunk.iter().for_each(|stream| stream.notice(&notification, &gateway.stats));
        future::yield_now().await;
    }
}

/// Waits up to [`limits::DRAIN_CALLS`] until the running calls are answered, then fails the rest,
/// so that each client gets an error before its stream ends.
pub async fn finish_calls(gateway: &Gateway) {
    if timeout::within(limits::DRAIN_CALLS, gateway.running.wait_idle()).await.is_ok() {
        return;
    }
    while gateway.enter(|hub, fx| hub.fail_calls("the gateway is stopping", fx)) {
        future::yield_now().await;
    }
}
