//! One link against handmade bytes: what the WebSocket library hides, and what must go on while a
//! peer is busy.

use std::{
    future::{Future, poll_fn},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use async_tungstenite::tungstenite::{client::IntoClientRequest, handshake::derive_accept_key};
use futures_lite::future;
use mcpport::{
    budget::Budget,
    limits::LinkLimits,
    net::{listener, outbound::Outbound, outbox, stream::Stream, ws_link},
    runtime::pacer::Pacer,
    tunnel::{
        close::{CloseReason, LinkEnd},
        handler::LinkHandler,
    },
};

use crate::{harness::TIMEOUT, run};

/// Counts frames, and ends the link at a given time.
struct Counter {
    frames: u32,
    end: Option<Instant>,
}

impl LinkHandler for Counter {
    fn frame(&mut self, _now: Instant, _text: &str) -> Result<(), CloseReason> {
        self.frames += 1;
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.end
    }

    fn tick(&mut self, _now: Instant) -> Result<(), CloseReason> {
        Err(CloseReason::new(1000, "time"))
    }
}

/// Drives our end against a peer that writes `first`, then `again` as often as it can, and reads
/// nothing before the end. Returns how the link ended, the bytes that the peer read, and the
/// received frames.
fn against(
    first: &'static [u8],
    again: &'static [u8],
    limits: &LinkLimits,
    end: Option<Duration>,
) -> (LinkEnd, Vec<u8>, u32) {
    let mut listener = listener::bind(None, 0, false).unwrap().remove(0);
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
        let socket =
            ws_link::accepted(listener.accept().await, Vec::new(), &Budget::new(1 << 30).account(), limits)
                .await;
        let (_sender, receiver) = outbox::bounded(8, 1024);
        let mut counter = Counter { frames: 0, end: end.map(|end| Instant::now() + end) };
        let ended = ws_link::drive(socket, &mut Outbound::new(receiver), &mut counter, None, limits).await;
        (ended, counter.frames)
    });
    (ended, peer.join().unwrap(), frames)
}

/// Empty fragments are not a message, so the library never returns them and never stops reading
/// them.
#[test]
fn fragments_without_end_are_cut_off() {
    let limits = LinkLimits { message_bytes: 4096, ..LinkLimits::default() };
    let first = b"\x01\x80\0\0\0\0";
    let again = b"\x00\x80\0\0\0\0";
    let (ended, _, frames) = against(first, again, &limits, None);
    assert_eq!(ended, LinkEnd::ByUs(CloseReason::new(1008, "too many fragments")));
    assert_eq!(frames, 0);
}

/// Calls on a link time out, even if the peer never pauses.
#[test]
fn timers_run_during_a_flood() {
    let frame = b"\x81\x82\0\0\0\0{}";
    let (ended, _, frames) = against(frame, frame, &LinkLimits::default(), Some(Duration::from_millis(100)));
    assert_eq!(ended, LinkEnd::ByUs(CloseReason::new(1000, "time")));
    assert!(frames > 0);
}

/// Our end as a server, driven; the peer is plain TCP after the handshake.
fn serve(peer: impl FnOnce(TcpStream) + Send + 'static, end: Option<Duration>) -> LinkEnd {
    let limits = LinkLimits { close_time: TIMEOUT, ..LinkLimits::default() };
    let mut listener = listener::bind(None, 0, false).unwrap().remove(0);
    let address = listener.local();
    let peer = thread::spawn(move || peer(bounded(TcpStream::connect(address).unwrap())));
    let ended = run(async {
        let socket =
            ws_link::accepted(listener.accept().await, Vec::new(), &Budget::new(1 << 30).account(), &limits)
                .await;
        driven(socket, &limits, end).await
    });
    peer.join().unwrap();
    ended
}

/// The same as a client.
fn connect(peer: impl FnOnce(TcpStream) + Send + 'static, end: Option<Duration>) -> LinkEnd {
    let limits = LinkLimits { close_time: TIMEOUT, ..LinkLimits::default() };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let peer = thread::spawn(move || {
        let mut stream = bounded(listener.accept().unwrap().0);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(exactly::<1>(&mut stream));
        }
        let head = String::from_utf8(head).unwrap();
        let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
        let accept = derive_accept_key(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).unwrap();
        peer(stream);
    });
    let ended = run(async {
        let stream = Stream::connect(address).await.unwrap();
        let request = format!("ws://{address}/").into_client_request().unwrap();
        let socket = ws_link::upgrade(stream, request, &limits).await.unwrap();
        driven(socket, &limits, end).await
    });
    peer.join().unwrap();
    ended
}

async fn driven(socket: ws_link::WebSocket, limits: &LinkLimits, end: Option<Duration>) -> LinkEnd {
    let (_sender, receiver) = outbox::bounded(8, 1024);
    let mut counter = Counter { frames: 0, end: end.map(|end| Instant::now() + end) };
    ws_link::drive(socket, &mut Outbound::new(receiver), &mut counter, None, limits).await
}

/// One of many links whose ends take turns.
struct Lost;

impl LinkHandler for Lost {
    fn frame(&mut self, _now: Instant, text: &str) -> Result<(), CloseReason> {
        Err(CloseReason::new(1008, text))
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn tick(&mut self, _now: Instant) -> Result<(), CloseReason> {
        Ok(())
    }
}

/// However many links are lost at once, only one is cleaned up in a round of the executor, and all
/// other tasks get their turn.
#[test]
fn links_that_are_lost_together_end_one_after_the_other() {
    const LINKS: usize = 100;
    let limits = LinkLimits::default();
    let mut listener = listener::bind(None, 0, false).unwrap().remove(0);
    let address = listener.local();
    run(async {
        let (pacer, account) = (Arc::new(Pacer::default()), Budget::new(1 << 30).account());
        let mut links = Vec::new();
        for _ in 0..LINKS {
            let peer = TcpStream::connect(address).unwrap();
            let stream = listener.accept().await;
            links.push((ws_link::accepted(stream, Vec::new(), &account, &limits).await, peer));
        }
        let sockets: Vec<ws_link::WebSocket> = links.into_iter().map(|(socket, _peer)| socket).collect();
        let mut driving: Vec<_> = sockets
            .into_iter()
            .map(|socket| {
                let (pacer, limits) = (pacer.clone(), &limits);
                Box::pin(async move {
                    let (_sender, receiver) = outbox::bounded(8, 1024);
                    let mut outbound = Outbound::new(receiver);
                    ws_link::drive(socket, &mut outbound, &mut Lost, Some(&pacer), limits).await
                })
            })
            .collect();
        while !driving.is_empty() {
            let before = driving.len();
            poll_fn(|context| {
                driving.retain_mut(|link| match link.as_mut().poll(context) {
                    Poll::Ready(ended) => {
                        assert!(ended.is_accident(), "{ended}");
                        false
                    }
                    Poll::Pending => true,
                });
                Poll::Ready(())
            })
            .await;
            assert!(before - driving.len() <= 1, "{} ended in one round", before - driving.len());
            future::yield_now().await;
        }
    });
}

fn bounded(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    stream
}

fn exactly<const COUNT: usize>(stream: &mut TcpStream) -> [u8; COUNT] {
    let mut bytes = [0; COUNT];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// A masked frame without its mask.
fn unmasked<const COUNT: usize>(stream: &mut TcpStream) -> ([u8; 2], [u8; COUNT]) {
    let (head, mask, mut payload) = (exactly::<2>(stream), exactly::<4>(stream), exactly::<COUNT>(stream));
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    (head, payload)
}

fn ends(mut stream: TcpStream) {
    assert_eq!(stream.read(&mut [0; 64]).unwrap(), 0, "nothing follows a Close frame");
}

/// RFC 6455, section 5.5.1: a Close frame is answered with one of the same code, and then the
/// connection is closed.
#[test]
fn close_frames_are_answered() {
    let ended = serve(
        |mut peer| {
            peer.write_all(b"\x88\x86\0\0\0\0\x03\xe9gone").unwrap();
            assert_eq!(&exactly::<8>(&mut peer), b"\x88\x06\x03\xe9gone");
            ends(peer);
        },
        None,
    );
    assert_eq!(ended, LinkEnd::ByPeer(CloseReason::new(1001, "gone")));
    let ended = serve(
        |mut peer| {
            peer.write_all(b"\x88\x80\0\0\0\0").unwrap();
            assert_eq!(&exactly::<2>(&mut peer), b"\x88\x00");
            ends(peer);
        },
        None,
    );
    assert_eq!(ended, LinkEnd::ByPeer(CloseReason::new(1005, "")));
    let ended = connect(
        |mut peer| {
            peer.write_all(b"\x88\x06\x03\xe9gone").unwrap();
            assert_eq!(unmasked(&mut peer), (*b"\x88\x86", *b"\x03\xe9gone"));
            ends(peer);
        },
        None,
    );
    assert_eq!(ended, LinkEnd::ByPeer(CloseReason::new(1001, "gone")));
}

/// The side that closes keeps the connection open until its Close frame is answered; frames in
/// transit are still read.
#[test]
fn our_close_waits_for_the_answer() {
    let at_once = Some(Duration::ZERO);
    let still_open = |stream: &mut TcpStream| {
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let early = stream.read(&mut [0; 1]);
        assert!(early.is_err(), "closed before the answer");
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    };
    let ended = serve(
        move |mut peer| {
            assert_eq!(&exactly::<8>(&mut peer), b"\x88\x06\x03\xe8time");
            still_open(&mut peer);
            peer.write_all(b"\x81\x82\0\0\0\0{}\x88\x82\0\0\0\0\x03\xe8").unwrap();
            ends(peer);
        },
        at_once,
    );
    assert_eq!(ended, LinkEnd::ByUs(CloseReason::new(1000, "time")));
    let ended = connect(
        move |mut peer| {
            assert_eq!(unmasked(&mut peer), (*b"\x88\x86", *b"\x03\xe8time"));
            still_open(&mut peer);
            peer.write_all(b"\x81\x02{}\x88\x02\x03\xe8").unwrap();
            ends(peer);
        },
        at_once,
    );
    assert_eq!(ended, LinkEnd::ByUs(CloseReason::new(1000, "time")));
}
