//! The kernel's list of addresses, requested over a netlink socket (rtnetlink(7): `RTM_GETADDR`).
//!
//! `/proc` lists IPv4 addresses without their interface. This list has both families, with prefix
//! and interface, and needs no privilege. [`addresses`] does the I/O; [`Reply`] only parses bytes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

use crate::limits::DeviceLimits;

/// Lengths of the fixed headers, and the alignment of what follows them.
const MESSAGE_HEAD: usize = 16;
const ADDRESS_HEAD: usize = 8;
const ATTRIBUTE_HEAD: usize = 4;
const ALIGN: usize = 4;
/// Message types.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const REQUEST_DUMP: u16 = 0x301;
/// Address attributes. On a point-to-point link `IFA_ADDRESS` is the peer's address and `IFA_LOCAL`
/// is ours.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// One address of an interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Address {
    /// Index of the interface in the kernel.
    pub interface: u32,
    /// The address.
    pub ip: IpAddr,
    /// Length of the network prefix in bits.
    pub prefix: u8,
}

/// Requests the addresses of all interfaces from the kernel; keeps at most `limits.entries`.
///
/// # Errors
/// If the socket is refused (some sandboxes), or the kernel sends nothing for
/// `limits.netlink_time`.
pub fn addresses(limits: &DeviceLimits) -> io::Result<Vec<Address>> {
    // No protocol: 0 is `NETLINK_ROUTE`.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(limits.netlink_time))?;
    sendto(&socket, &request(), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut buffer = vec![0; limits.netlink_bytes];
    let mut reply = Reply { found: Vec::new(), max: limits.entries };
    loop {
        let (length, _) = recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        match reply.read(buffer.get(..length).unwrap_or_default()) {
            Part::More => {}
            Part::Done => return Ok(reply.found),
            Part::Refused => return Err(io::Error::other("the kernel refused to list addresses")),
        }
    }
}

fn request() -> [u8; MESSAGE_HEAD + ADDRESS_HEAD] {
    let mut bytes = [0; MESSAGE_HEAD + ADDRESS_HEAD];
    let length = (bytes.len() as u32).to_ne_bytes();
    bytes[..4].copy_from_slice(&length);
    bytes[4..6].copy_from_slice(&RTM_GETADDR.to_ne_bytes());
    bytes[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    bytes
}

/// The state of the list after one datagram.
#[derive(Debug, Eq, PartialEq)]
enum Part {
    Done,
    More,
    Refused,
}

/// The addresses received so far.
struct Reply {
    found: Vec<Address>,
    max: usize,
}

impl Reply {
    /// Parses one datagram: several messages, each padded to [`ALIGN`].
    fn read(&mut self, mut bytes: &[u8]) -> Part {
        if bytes.is_empty() {
            return Part::Refused;
        }
        while let Some((kind, body, rest)) = message(bytes) {
            match kind {
                NLMSG_DONE => return Part::Done,
                NLMSG_ERROR => return Part::Refused,
                RTM_NEWADDR if self.found.len() < self.max => self.found.extend(address(body)),
                _ => {}
            }
            bytes = rest;
        }
        Part::More
    }
}

/// Splits off the first message: its type, its body, and the rest. `None` at the end or if the
/// length is invalid.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(MESSAGE_HEAD..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or_default()))
}

/// Parses the address in the body of one `RTM_NEWADDR`.
fn address(body: &[u8]) -> Option<Address> {
    let &[family, prefix, _, _] = body.first_chunk()?;
    let interface = u32::from_ne_bytes(*body.get(4..)?.first_chunk()?);
    let mut rest = body.get(ADDRESS_HEAD..)?;
    let mut found = None;
    while let Some((kind, value, next)) = attribute(rest) {
        if kind == IFA_LOCAL || (kind == IFA_ADDRESS && found.is_none()) {
            found = ip(family, value).or(found);
        }
        rest = next;
    }
    Some(Address { interface, ip: found?, prefix })
}

/// Splits off the first attribute: its type, its value, and the rest.
fn attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
    let value = bytes.get(ATTRIBUTE_HEAD..length)?;
    Some((kind, value, bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or_default()))
}

fn ip(family: u8, value: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => <[u8; 4]>::try_from(value).ok().map(|octets| Ipv4Addr::from(octets).into()),
        AF_INET6 => <[u8; 16]>::try_from(value).ok().map(|octets| Ipv6Addr::from(octets).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds one padded message.
    fn framed(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((MESSAGE_HEAD + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
        bytes
    }

    /// Builds the body of an address message for interface 7.
    fn body(family: u8, prefix: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![family, prefix, 0, 0];
        bytes.extend(7_u32.to_ne_bytes());
        for (kind, value) in attributes {
            bytes.extend(((ATTRIBUTE_HEAD + value.len()) as u16).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
        }
        bytes
    }

    fn read(bytes: &[u8]) -> (Part, Vec<String>) {
        let mut reply = Reply { found: Vec::new(), max: 2 };
        let part = reply.read(bytes);
        (part, reply.found.iter().map(|a| format!("{} {}/{}", a.interface, a.ip, a.prefix)).collect())
    }

    #[test]
    fn addresses_of_both_families() {
        let loopback = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let mut bytes =
            framed(RTM_NEWADDR, &body(AF_INET, 24, &[(3, b"eth0\0"), (IFA_ADDRESS, &[10, 0, 0, 1])]));
        bytes.extend(framed(RTM_NEWADDR, &body(AF_INET6, 128, &[(IFA_ADDRESS, &loopback)])));
        bytes.extend(framed(NLMSG_DONE, &[0; 4]));
        assert_eq!(read(&bytes), (Part::Done, vec!["7 10.0.0.1/24".into(), "7 ::1/128".into()]));
    }

    #[test]
    fn local_address_of_a_point_to_point_link_is_reported() {
        let (ours, theirs): (&[u8], &[u8]) = (&[10, 0, 0, 1], &[10, 0, 0, 2]);
        for attributes in
            [[(IFA_ADDRESS, theirs), (IFA_LOCAL, ours)], [(IFA_LOCAL, ours), (IFA_ADDRESS, theirs)]]
        {
            let bytes = framed(RTM_NEWADDR, &body(AF_INET, 32, &attributes));
            assert_eq!(read(&bytes), (Part::More, vec!["7 10.0.0.1/32".into()]));
        }
    }

    #[test]
    fn malformed_netlink_messages_are_skipped() {
        let good = framed(RTM_NEWADDR, &body(AF_INET, 8, &[(IFA_LOCAL, &[127, 0, 0, 1])]));
        let cases: [(Vec<u8>, Part, usize); 8] = [
            (Vec::new(), Part::Refused, 0),
            (framed(NLMSG_ERROR, &[0xff; 20]), Part::Refused, 0),
            (vec![0xff; 40], Part::More, 0),
            (vec![0; 40], Part::More, 0),
            (good[..good.len() - 1].to_vec(), Part::More, 0),
            (framed(RTM_NEWADDR, &body(AF_INET, 8, &[(IFA_LOCAL, &[1, 2, 3])])), Part::More, 0),
            (framed(RTM_NEWADDR, &[AF_INET, 8]), Part::More, 0),
            ([good.clone(), good.clone(), good.clone()].concat(), Part::More, 2),
        ];
        for (bytes, part, count) in cases {
            let found = read(&bytes);
            assert_eq!((&found.0, found.1.len()), (&part, count), "{bytes:?}");
        }
    }
}
