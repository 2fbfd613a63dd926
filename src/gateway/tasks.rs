//! Tasks (MCP 2025-11-25) at the endpoint of a server shared by several clients: only the principal
//! that created a task can query it, see it in lists and receive its notifications. The table of
//! owners is in `session`.
//!
//! A task that the gateway did not see created is available to anyone who knows its id, as without
//! a gateway. A task whose owner may have been forgotten is not, if several principals have client
//! tokens. Neither is shown in lists or notifications to any of several principals.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, reason = "pure: time is an argument"))]

use super::{Gateway, upstream::Upstream};
use crate::{auth::Principal, session::TaskOwner};

impl Gateway {
    /// Returns whether a principal may query a task of a shared server.
    pub fn may_have_task(&self, principal: Principal, upstream: &Upstream, id: &str) -> bool {
        let owner = self.tasks().owner(upstream.run(), id);
        match owner {
            TaskOwner::Known(owner) => owner == principal,
            TaskOwner::Unknown => true,
            TaskOwner::Forgotten => !self.authn.tokens().have_several_clients(),
        }
    }

    /// Returns whether a task is shown to a principal, in lists and notifications.
    pub fn may_see_task(&self, principal: Principal, upstream: &Upstream, id: Option<&str>) -> bool {
        match id.map(|id| self.tasks().owner(upstream.run(), id)) {
            Some(TaskOwner::Known(owner)) => owner == principal,
            _ => !self.authn.tokens().have_several_clients(),
        }
    }
}
