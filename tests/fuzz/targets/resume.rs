//! Link sessions that outlive their connections. The first byte chooses: two honest ends with a
//! connection that is cut at any frame, or one end against an arbitrary peer. Two bytes are an
//! operation and its argument.
#![no_main]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use mcpport::limits::LinkLimits;
use mcpport::tunnel::resume::{Resume, read};

fuzz_target!(|data: &[u8]| {
    if let Some(count) = std::str::from_utf8(data).ok().and_then(read) {
        assert_eq!(
            data,
            format!("*{count}").as_bytes(),
            "only our own way of writing it is an acknowledgement"
        );
    }
    let [kind, data @ ..] = data else { return };
    let limits = LinkLimits {
        resume_messages: 6,
        resume_bytes: 400,
        ack_every: u64::from(kind / 2 % 5) + 1,
        ack_bytes: 150,
        ..LinkLimits::default()
    };
    if kind % 2 == 0 { pair(data, &limits) } else { lone(data, &limits) }
});

/// Frames in transit.
enum Wire {
    Frame(u32, usize),
    Ack(String),
}

/// One of two ends.
#[derive(Default)]
struct End {
    resume: Resume<(u32, usize)>,
    /// Towards it.
    wire: VecDeque<Wire>,
    said: u32,
    heard: u32,
}

impl End {
    fn hears(&mut self, frame: u32, bytes: usize, now: Instant) {
        assert_eq!(frame, self.heard + 1, "each frame once, in order");
        self.heard = frame;
        self.resume.received(now, bytes);
    }
}

fn pair(data: &[u8], limits: &LinkLimits) {
    let (mut ends, mut now) = ([End::default(), End::default()], Instant::now());
    for step in data.chunks_exact(2) {
        let (here, argument) = (usize::from(step[0] & 1), usize::from(step[1]));
        match step[0] / 2 % 6 {
            0 | 1 => say(&mut ends, here, argument, limits),
            2 | 3 => hear(&mut ends, here, now, limits),
            4 => {
                now += Duration::from_millis(argument as u64);
                late(&mut ends, here, now, limits);
            }
            _ => cut(&mut ends, argument, now),
        }
        assert!(ends.iter().all(|end| end.resume.unacknowledged() <= limits.resume_messages));
    }
    // From here on the connection stays, and all frames arrive.
    while ends.iter().any(|end| !end.wire.is_empty()) {
        (0..2).for_each(|here| hear(&mut ends, here, now, limits));
    }
    now += limits.ack_after;
    (0..2).for_each(|here| late(&mut ends, here, now, limits));
    (0..2).for_each(|here| hear(&mut ends, here, now, limits));
    assert_eq!([ends[0].heard, ends[1].heard], [ends[1].said, ends[0].said]);
    assert!(ends.iter().all(|end| end.resume.unacknowledged() == 0 && end.resume.due(limits).is_none()));
}

fn say(ends: &mut [End; 2], here: usize, bytes: usize, limits: &LinkLimits) {
    let end = &mut ends[here];
    if !end.resume.has_room(limits) {
        return;
    }
    end.said += 1;
    let frame = (end.said, bytes);
    end.resume.sent(frame, bytes);
    ends[1 - here].wire.push_back(Wire::Frame(frame.0, frame.1));
}

fn hear(ends: &mut [End; 2], here: usize, now: Instant, limits: &LinkLimits) {
    let end = &mut ends[here];
    match end.wire.pop_front() {
        Some(Wire::Frame(frame, bytes)) => {
            end.hears(frame, bytes, now);
            if let Some(ack) = end.resume.due_acknowledgement(limits) {
                ends[1 - here].wire.push_back(Wire::Ack(ack));
            }
        }
        Some(Wire::Ack(ack)) => {
            let count = read(&ack).expect("what we write we read");
            end.resume.acknowledge(count).expect("an honest acknowledgement");
        }
        None => {}
    }
}

/// Sends an acknowledgement that is due.
fn late(ends: &mut [End; 2], here: usize, now: Instant, limits: &LinkLimits) {
    if ends[here].resume.due(limits).is_some_and(|due| due <= now) {
        let ack = ends[here].resume.acknowledgement();
        ends[1 - here].wire.push_back(Wire::Ack(ack));
    }
}

/// The connection is cut, some frames in transit still arrive, and both ends resume.
fn cut(ends: &mut [End; 2], argument: usize, now: Instant) {
    for (here, arrives) in [(0, argument % 4), (1, argument / 4 % 4)] {
        let wire = std::mem::take(&mut ends[here].wire);
        for under_way in wire.into_iter().take(arrives) {
            match under_way {
                Wire::Frame(frame, bytes) => ends[here].hears(frame, bytes, now),
                Wire::Ack(ack) => {
                    let count = read(&ack).expect("what we write we read");
                    ends[here].resume.acknowledge(count).expect("an honest acknowledgement");
                }
            }
        }
    }
    for here in [0, 1] {
        let count = ends[1 - here].resume.count();
        let again = ends[here].resume.resume(count).expect("an honest count");
        ends[1 - here].wire.extend(again.into_iter().map(|(frame, bytes)| Wire::Frame(frame, bytes)));
    }
}

/// One end, whose peer claims anything.
fn lone(data: &[u8], limits: &LinkLimits) {
    let (mut resume, mut now) = (Resume::<u64>::new(), Instant::now());
    // Numbers of frames sent, acknowledged by the peer, received, and acknowledged by us.
    let (mut sent, mut acknowledged, mut received, mut told) = (0_u64, 0_u64, 0_u64, 0_u64);
    for step in data.chunks_exact(2) {
        let argument = u64::from(step[1]);
        let claim = if argument == 255 { u64::MAX } else { (sent + 3).saturating_sub(argument % 16) };
        let possible = (acknowledged..=sent).contains(&claim);
        match step[0] % 7 {
            0 if resume.has_room(limits) => {
                sent += 1;
                resume.sent(sent, argument as usize);
            }
            1 => {
                received += 1;
                resume.received(now, argument as usize);
            }
            2 => {
                assert_eq!(resume.acknowledge(claim).is_ok(), possible);
                acknowledged = if possible { claim } else { acknowledged };
            }
            3 => {
                let again = resume.resume(claim);
                assert_eq!(again.is_ok(), possible);
                if let Ok(again) = again {
                    assert!(
                        again.into_iter().eq(claim + 1..=sent),
                        "exactly what the other has not, in order"
                    );
                    (acknowledged, told) = (claim, received);
                }
            }
            4 => match resume.due_acknowledgement(limits) {
                Some(ack) => {
                    assert_eq!(read(&ack), Some(received));
                    told = received;
                }
                None => assert!(received - told < limits.ack_every),
            },
            5 => {
                assert_eq!(read(&resume.acknowledgement()), Some(received));
                told = received;
            }
            _ => now += Duration::from_millis(argument),
        }
        assert_eq!(resume.unacknowledged() as u64, sent - acknowledged);
        assert!(resume.unacknowledged() <= limits.resume_messages);
        assert_eq!((resume.count(), resume.due(limits).is_some()), (received, received > told));
        assert!(resume.due(limits).is_none_or(|due| due <= now + limits.ack_after));
    }
}
