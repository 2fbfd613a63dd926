//! One link against hand-made bytes: what the WebSocket library hides from us and what a busy peer must not prevent.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use mcpport::{
    limits::LinkLimits,
    net::{
        link::{self, Ended, Farewell, Line, Peer},
        listen, queue,
    },
};

use crate::run;

/// Counts frames, and ends the link at its time.
struct Counter {
    frames: u32,
    end: Option<Instant>,
}

impl Peer for Counter {
    fn frame(&mut self, _now: Instant, _text: &str) -> Result<(), Farewell> {
        self.frames += 1;
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.end
    }

    fn tick(&mut self, _now: Instant) -> Result<(), Farewell> {
        Err(Farewell::new(1000, "time"))
    }
}

/// Drives our end against a peer that writes `first` and then `again` for as long as it can, and reads nothing before
/// the end. Returns how it ended, what the peer read, and the frames that came.
fn against(
    first: &'static [u8],
    again: &'static [u8],
    limits: &LinkLimits,
    end: Option<Duration>,
) -> (Ended, Vec<u8>, u32) {
    let mut listener = listen::bind(None, 0, false).unwrap().remove(0);
    let address = listener.local();
    let peer = thread::spawn(move || {
        let mut peer = TcpStream::connect(address).unwrap();
        peer.write_all(first).unwrap();
        let many = again.repeat(4096);
        while peer.write_all(&many).is_ok() {}
        let mut said = Vec::new();
        let _ = peer.read_to_end(&mut said);
        said
    });
    let (ended, frames) = run(async {
        let socket = link::accepted(listener.accept().await, Vec::new(), limits).await;
        let (_sender, receiver) = queue::bounded(8, 1024);
        let mut counter = Counter { frames: 0, end: end.map(|end| Instant::now() + end) };
        let ended = link::drive(socket, &mut Line::new(receiver), &mut counter, limits).await;
        (ended, counter.frames)
    });
    (ended, peer.join().unwrap(), frames)
}

/// Empty fragments are no message, so the library never hands one out and never stops reading them.
#[test]
fn fragments_without_end_are_cut_off() {
    let limits = LinkLimits { message_bytes: 4096, ..LinkLimits::default() };
    let first = b"\x01\x80\0\0\0\0";
    let again = b"\x00\x80\0\0\0\0";
    let (ended, _, frames) = against(first, again, &limits, None);
    assert_eq!(ended, Ended::ByUs(Farewell::new(1008, "fragments without end")));
    assert_eq!(frames, 0);
}

/// Calls on a link time out, and their time comes although the peer never pauses.
#[test]
fn a_flood_does_not_stop_the_clock() {
    let frame = b"\x81\x82\0\0\0\0{}";
    let (ended, _, frames) = against(frame, frame, &LinkLimits::default(), Some(Duration::from_millis(100)));
    assert_eq!(ended, Ended::ByUs(Farewell::new(1000, "time")));
    assert!(frames > 0);
}
