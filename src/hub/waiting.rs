//! A stateless call that waits for a process, and how the program that sent it finds it again.

use std::sync::Arc;

use super::{instance::StatelessCall, key::InstanceKey, peers::Responder, request::Named};
use crate::{
    budget::{Account, Charge},
    catalog::UpstreamKey,
    session::Ticket,
};

/// A stateless call that waits until a process of an isolated server is free.
#[derive(Debug)]
pub struct WaitingCall {
    /// The server.
    pub server: UpstreamKey,
    /// The call.
    pub call: StatelessCall,
    /// Where the response goes.
    pub responder: Arc<dyn Responder>,
    /// The account that pays for what is held for it.
    pub account: Account,
    /// The request as it was sent, of [`crate::limits::SPLICE_IN_HUB`] bytes at most.
    pub text: String,
    /// Position of the name that the client used, and the server's own name to put there.
    pub rename: Option<Named>,
    /// The memory that the text takes.
    pub charge: Charge,
}

/// Where a stateless call is, for [`Hub::cancel_stateless`](super::state::Hub::cancel_stateless).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PendingCall {
    /// At a process, under this id.
    At(InstanceKey, u64),
    /// It waits for a process of this server, or has got one since.
    Waiting(UpstreamKey, Ticket),
}
