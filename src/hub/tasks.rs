//! Tasks (MCP 2025-11-25) at the endpoint of a server shared by several clients: only the principal
//! that created a task can query it, see it in lists and receive its notifications. The table of
//! owners is in `session`.
//!
//! A task that the gateway did not see created is available to anyone who knows its id, as without
//! a gateway. A task whose owner may have been forgotten is not, if several principals have client
//! tokens. Neither is shown in lists or notifications to any of several principals.

use super::{
    conclusion::{Edit, Tasks},
    error::CallError,
    key::SessionKey,
    state::Hub,
};
use crate::{
    auth::Principal,
    catalog::UpstreamKey,
    jsonrpc::Message,
    session::{Run, TaskOwner},
};

impl Hub {
    /// Returns whether a session may query a task of a shared server.
    pub(super) fn may_have_task(&self, session: SessionKey, server: UpstreamKey, id: &str) -> bool {
        let principal = self.clients.get(&session).map(|session| session.principal);
        match self.run(server).map(|run| self.tasks.owner(run, id)) {
            Some(TaskOwner::Known(owner)) => Some(owner) == principal,
            Some(TaskOwner::Unknown) => true,
            Some(TaskOwner::Forgotten) | None => !self.tokens.have_several_clients(),
        }
    }

    /// Returns whether a task is shown to a principal, in lists and notifications.
    pub(super) fn may_see_task(&self, principal: Principal, server: UpstreamKey, id: Option<&str>) -> bool {
        match id.zip(self.run(server)).map(|(id, run)| self.tasks.owner(run, id)) {
            Some(TaskOwner::Known(owner)) => owner == principal,
            _ => !self.tokens.have_several_clients(),
        }
    }

    fn run(&self, server: UpstreamKey) -> Option<Run> {
        self.upstreams.get(&server).map(|upstream| upstream.run)
    }

    /// Records or checks the tasks that a response of a shared server mentions. Returns the changes
    /// to make in it.
    ///
    /// # Errors
    /// The response is about a task of another principal: the request may have been sent before the
    /// gateway knew the owner of this id.
    pub(super) fn settle_tasks(
        &mut self,
        session: SessionKey,
        server: UpstreamKey,
        tasks: Tasks,
        answer: &Message<'_>,
    ) -> Result<Vec<Edit>, CallError> {
        let Some(principal) = self.clients.get(&session).map(|session| session.principal) else {
            return Ok(Vec::new());
        };
        match tasks {
            Tasks::Unnamed => {}
            Tasks::Created(id) => {
                if let Some(run) = self.run(server) {
                    self.tasks.begin(run, &id, principal);
                }
            }
            Tasks::About(id) if self.may_have_task(session, server, &id) => {}
            Tasks::About(_) => return Err(CallError::TaskNotFound),
            Tasks::Listed(list) => {
                return Ok(list.only(answer.text(), |id| self.may_see_task(principal, server, id)));
            }
        }
        Ok(Vec::new())
    }
}
