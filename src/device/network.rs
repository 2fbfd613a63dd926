//! Tool `network`: interfaces with their addresses, state and counters.
//!
//! Names and counters come from `/proc/net/dev`, the other facts from `/sys/class/net`, and
//! addresses from the kernel (see `netlink`).

use serde_json::{Value, json};

use super::machine::Machine;
use super::netlink::Address;
use super::report::Report;
use super::{
    format::bytes,
    schema::{field, list, maybe, object},
};
use crate::util::escape::show;

/// Description of the tool.
pub const DESCRIPTION: &str = "Network interfaces of the host with IPv4 and IPv6 addresses, state, MAC address, MTU, and the \
     bytes, packets, errors and drops received and sent since the interface came up.";

/// Returns the output schema.
pub fn schema() -> Value {
    let interface = object([
        ("name", field("string", "Name of the interface")),
        (
            "state",
            maybe("string", "up, down, unknown (usual for lo and tunnels), dormant, lowerlayerdown, …"),
        ),
        ("mac", maybe("string", "MAC address")),
        ("mtu", maybe("integer", "MTU in bytes")),
        ("addresses", list(field("string", "address/prefix"), "IPv4 and IPv6 addresses")),
        ("rx_bytes", field("integer", "Bytes received")),
        ("rx_packets", field("integer", "Packets received")),
        ("rx_errors", field("integer", "Receive errors")),
        ("rx_dropped", field("integer", "Received packets dropped")),
        ("tx_bytes", field("integer", "Bytes sent")),
        ("tx_packets", field("integer", "Packets sent")),
        ("tx_errors", field("integer", "Transmit errors")),
        ("tx_dropped", field("integer", "Transmitted packets dropped")),
    ]);
    object([
        ("interfaces", list(interface, "All interfaces visible to this program")),
        (
            "addresses_known",
            field("boolean", "false: the kernel did not report addresses, so the lists are empty"),
        ),
    ])
}

/// Reads the interfaces.
pub fn report(machine: &Machine) -> Report {
    let addresses = machine.kernel().addresses(machine.limits());
    let addresses_known = addresses.is_ok();
    let addresses = addresses.unwrap_or_default();
    let mut interfaces = parse_counters(&machine.text("proc/net/dev").unwrap_or_default());
    interfaces.truncate(machine.limits().entries);

    let mut lines = Vec::new();
    let mut data = Vec::new();
    for counters in interfaces {
        let interface = Interface::read(machine, counters, &addresses);
        lines.push(interface.line());
        data.push(interface.data());
    }
    if lines.is_empty() {
        lines.push("no network interface was found".to_owned());
    }
    if !addresses_known {
        lines.push("addresses unknown: the kernel does not report them here".to_owned());
    }
    Report { lines, data: json!({ "interfaces": data, "addresses_known": addresses_known }) }
}

/// One interface.
struct Interface {
    counters: Counters,
    state: Option<String>,
    mac: Option<String>,
    mtu: Option<u64>,
    addresses: Vec<String>,
}

impl Interface {
    fn read(machine: &Machine, counters: Counters, addresses: &[Address]) -> Self {
        let fact = |name: &str| machine.line(&format!("sys/class/net/{}/{name}", counters.name));
        let index: Option<u32> = fact("ifindex").and_then(|text| text.parse().ok());
        let ours = addresses.iter().filter(|address| Some(address.interface) == index);
        Self {
            state: fact("operstate"),
            mac: fact("address"),
            mtu: fact("mtu").and_then(|text| text.parse().ok()),
            addresses: ours.map(|address| format!("{}/{}", address.ip, address.prefix)).collect(),
            counters,
        }
    }

    fn line(&self) -> String {
        let Self { counters, state, mac, mtu, addresses } = self;
        let mut line =
            format!("{}: {}", show(&counters.name), show(state.as_deref().unwrap_or("state unknown")));
        if addresses.is_empty() {
            line.push_str(", no address");
        }
        for address in addresses {
            line.push_str(&format!(", {address}"));
        }
        if let Some(mac) = mac {
            line.push_str(&format!(", MAC {}", show(mac)));
        }
        if let Some(mtu) = mtu {
            line.push_str(&format!(", MTU {mtu}"));
        }
        format!("{line}; received {}; sent {}", counters.received.words(), counters.sent.words())
    }

    fn data(self) -> Value {
        let Counters { name, received, sent } = self.counters;
        json!({
            "name": name, "state": self.state, "mac": self.mac, "mtu": self.mtu, "addresses": self.addresses,
            "rx_bytes": received.bytes, "rx_packets": received.packets,
            "rx_errors": received.errors, "rx_dropped": received.dropped,
            "tx_bytes": sent.bytes, "tx_packets": sent.packets,
            "tx_errors": sent.errors, "tx_dropped": sent.dropped,
        })
    }
}

/// One line of `/proc/net/dev`.
#[derive(Debug, Eq, PartialEq)]
struct Counters {
    name: String,
    received: Direction,
    sent: Direction,
}

/// Counters of one direction.
#[derive(Debug, Eq, PartialEq)]
struct Direction {
    bytes: u64,
    packets: u64,
    errors: u64,
    dropped: u64,
}

impl Direction {
    fn words(&self) -> String {
        let Self { bytes: count, packets, errors, dropped } = self;
        format!("{} in {packets} packets ({errors} errors, {dropped} dropped)", bytes(*count))
    }
}

/// Parses `/proc/net/dev`: two header lines, then `name: 8 numbers received, 8 numbers sent`. A
/// wide number may directly follow the colon. Skips a name that is not a single path component,
/// because it is used to build file paths.
fn parse_counters(text: &str) -> Vec<Counters> {
    text.lines().skip(2).filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Counters> {
    let (name, numbers) = line.rsplit_once(':')?;
    let name = name.trim();
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return None;
    }
    let mut numbers = numbers.split_ascii_whitespace().map(|word| word.parse().ok());
    let mut direction = || {
        let mut next = || numbers.next().flatten();
        let found = Direction { bytes: next()?, packets: next()?, errors: next()?, dropped: next()? };
        // Skip fifo, frame or collisions, compressed or carrier, multicast or compressed.
        (0..4).try_for_each(|_| next().map(drop))?;
        Some(found)
    };
    Some(Counters { received: direction()?, sent: direction()?, name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TITLES: &str = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed\n";

    /// Returns one text for each line that parses.
    fn parsed(lines: &str) -> Vec<String> {
        let show = |found: &Counters| {
            let Counters { name, received: r, sent: s } = found;
            format!(
                "{name} {} {} {} {} {} {} {} {}",
                r.bytes, r.packets, r.errors, r.dropped, s.bytes, s.packets, s.errors, s.dropped
            )
        };
        parse_counters(&format!("{TITLES}{lines}")).iter().map(show).collect()
    }

    #[test]
    fn counters() {
        let cases: [(&str, &[&str]); 9] = [
            (
                "    lo:    3193      29    1    2    0     0          0         0     3194      30    3    4    0     0       0          0",
                &["lo 3193 29 1 2 3194 30 3 4"],
            ),
            (
                "  eth0:18446744073709551615 1 0 0 0 0 0 0 2 3 0 0 0 0 0 0",
                &["eth0 18446744073709551615 1 0 0 2 3 0 0"],
            ),
            ("eth0:1: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0", &["eth0:1 1 2 0 0 3 4 0 0"]),
            ("eth0: 1 2 3", &[]),
            ("eth0: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0", &[]),
            ("eth0: x 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0", &[]),
            ("eth0: 18446744073709551616 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0", &[]),
            ("../x: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n..: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0", &[]),
            ("", &[]),
        ];
        for (lines, expected) in cases {
            assert_eq!(parsed(lines), expected, "{lines}");
        }
        assert!(parse_counters("").is_empty());
    }
}
