//! Protocol versions: which ones there are, their eras, negotiation, and what differs between them.

use crate::jsonrpc;

/// The first version; its HTTP transport has two endpoints.
pub const V2024_11_05: &str = "2024-11-05";
/// Introduces the Streamable HTTP transport, batches and audio content.
pub const V2025_03_26: &str = "2025-03-26";
/// Removes batches; introduces links to resources.
pub const V2025_06_18: &str = "2025-06-18";
/// Introduces tasks, and events with empty data.
pub const V2025_11_25: &str = "2025-11-25";
/// Removes `initialize` and sessions: each request states its version and the client's capabilities
/// (`mcp::stateless`).
pub const V2026_07_28: &str = "2026-07-28";

/// Protocol versions that start with `initialize`, oldest first.
pub const VERSIONS: [&str; 4] = [V2024_11_05, V2025_03_26, V2025_06_18, V2025_11_25];
/// The version that we offer, and that we answer with when a client requests an unknown one.
pub const LATEST: &str = V2025_11_25;

/// Protocol versions without `initialize`. [`negotiate`] never returns one of them.
pub const MODERN: [&str; 1] = [V2026_07_28];

/// The two kinds of protocol versions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Era {
    /// The versions that start with `initialize`: [`VERSIONS`].
    Legacy,
    /// The stateless versions: [`MODERN`].
    Modern,
}

/// Returns the era of a version. `None` if the version is unknown; versions are never compared by
/// order.
pub fn era(version: &str) -> Option<Era> {
    match version {
        _ if VERSIONS.contains(&version) => Some(Era::Legacy),
        _ if MODERN.contains(&version) => Some(Era::Modern),
        _ => None,
    }
}

/// Returns the version for the `initialize` result (MCP lifecycle, version negotiation): the
/// requested one if we know it, otherwise [`LATEST`].
pub fn negotiate(asked: &str) -> &'static str {
    VERSIONS.iter().find(|known| **known == asked).copied().unwrap_or(LATEST)
}

/// Returns the version in a result of `initialize` or in its params.
pub fn version_of(raw: &str) -> Option<String> {
    let span = jsonrpc::find(raw, 0..raw.len(), &["protocolVersion"]).ok()??;
    jsonrpc::unquote(&raw[span]).map(|version| version.into_owned())
}

/// Whether a version has batches; only 2025-03-26 does.
pub fn allows_batches(version: &str) -> bool {
    version == V2025_03_26
}

/// Whether clients of a version handle an event with empty data (MCP 2025-11-25, basic/transports,
/// resumability).
pub fn allows_empty_events(version: &str) -> bool {
    version == V2025_11_25
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for version in VERSIONS {
            assert_eq!(negotiate(version), version);
        }
        for other in ["", "2026-07-28", "0.1.0", "2025-06-18 "] {
            assert_eq!(negotiate(other), LATEST);
        }
    }

    #[test]
    fn each_version_has_one_era() {
        for version in VERSIONS {
            assert_eq!(era(version), Some(Era::Legacy));
        }
        for version in MODERN {
            assert_eq!((era(version), negotiate(version)), (Some(Era::Modern), LATEST));
        }
        for other in ["", "2026-07-28 ", "2026-07-29", "2027-01-01", "v999.0.0", "2025-11-24"] {
            assert_eq!(era(other), None, "{other}");
        }
    }

    #[test]
    fn features_belong_to_their_versions() {
        assert_eq!(VERSIONS.map(allows_batches), [false, true, false, false]);
        assert_eq!(VERSIONS.map(allows_empty_events), [false, false, false, true]);
        assert!(VERSIONS.is_sorted() && VERSIONS.last() == Some(&LATEST));
    }
}
