//! Flags that change a limit. Limits without a flag keep their default from `limits`.

use std::ops::RangeInclusive;

use super::{
    args::{GatewayArgs, RegisterArgs},
    values::number,
};
use crate::{
    error::FatalError,
    limits::{COUNT, FRAME_EXTRA, LIST_ITEMS_PER_PAGE, Limits, MEMORY, MESSAGE_BYTES, MemoryLimits},
    util,
};

/// Builds the limits of a gateway.
///
/// # Errors
/// A usage error that names the flag.
pub fn gateway(args: &GatewayArgs) -> Result<Limits, FatalError> {
    let mut limits = Limits::default();
    let (http, session, link) = (&mut limits.http, &mut limits.session, &mut limits.link);
    set(&mut http.connections, "--max-connections", &args.max_connections)?;
    http.connections_from_loopback = http.connections;
    // Unauthenticated connections get at most a quarter, so that they cannot crowd out the others.
    http.connections_unauthenticated = http.connections_unauthenticated.min(http.connections.div_ceil(4));
    set(
        &mut http.connections_per_address,
        "--max-connections-per-address",
        &args.max_connections_per_address,
    )?;
    set(&mut link.links, "--max-links", &args.max_links)?;
    set(&mut session.sessions, "--max-client-sessions", &args.max_client_sessions)?;
    set(&mut session.per_principal, "--max-sessions-per-token", &args.max_sessions_per_token)?;
    set(&mut session.in_flight, "--max-calls-per-session", &args.max_calls_per_session)?;
    set(&mut link.in_flight, "--max-calls-per-server", &args.max_calls_per_server)?;
    let catalog = &mut limits.catalog;
    set(&mut catalog.items, "--max-list-items", &args.max_list_items)?;
    // Longer listings need more pages.
    catalog.pages = catalog.pages.max(catalog.items.div_ceil(LIST_ITEMS_PER_PAGE));
    if let Some(typed) = &args.max_memory {
        limits.memory = MemoryLimits { bytes: bytes("--max-memory", typed, MEMORY)?, by_machine: false };
    }
    let (http, link) = (&mut limits.http, &mut limits.link);
    if let Some(typed) = &args.max_message_bytes {
        http.body_bytes = bytes("--max-message-bytes", typed, MESSAGE_BYTES)?;
        link.message_bytes = http.body_bytes + FRAME_EXTRA;
    }
    Ok(limits)
}

/// Builds the limits of an edge.
///
/// # Errors
/// A usage error that names the flag.
pub fn register(args: &RegisterArgs) -> Result<Limits, FatalError> {
    let mut limits = Limits::default();
    if let Some(typed) = &args.max_message_bytes {
        limits.child.line_bytes = bytes("--max-message-bytes", typed, MESSAGE_BYTES)?;
        limits.link.message_bytes = limits.child.line_bytes + FRAME_EXTRA;
    }
    Ok(limits)
}

fn set(limit: &mut usize, flag: &str, given: &Option<String>) -> Result<(), FatalError> {
    if let Some(typed) = given {
        *limit = number(flag, typed, 1..=COUNT)?;
    }
    Ok(())
}

fn bytes(flag: &str, typed: &str, allowed: RangeInclusive<usize>) -> Result<usize, FatalError> {
    util::parse::bytes(typed).filter(|bytes| allowed.contains(bytes)).ok_or_else(|| {
        FatalError::usage(format!(
            "{flag} {}: expected a size such as 4M, from {} to {}",
            util::escape::show(typed),
            util::parse::size(*allowed.start()),
            util::parse::size(*allowed.end())
        ))
    })
}
