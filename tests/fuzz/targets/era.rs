//! The probe of a server's era, with any answers and events: it asks each question at most twice in
//! one run of the process, waits only while something is open, and gives up when its time is over.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcpport::config::EraPin;
use mcpport::jsonrpc::{Kind, Message};
use mcpport::mcp::era::{EraProbe, ProbeEvent, ProbeRequest, ProbeStep};

const REQUESTS: [ProbeRequest; 2] = [ProbeRequest::Discover, ProbeRequest::Initialize];

// The first byte is the start; each line after it is an event: `s`, `e`, `r`, or `d` or `i` and a
// message, which need not be one.
fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let pin = [EraPin::Auto, EraPin::Legacy, EraPin::Modern][usize::from(first % 3)];
    let mut world = World { probe: EraProbe::new(pin, first & 4 == 0), open: [false; 2], sent: [0; 2] };
    world.step(ProbeEvent::Start);
    for line in String::from_utf8_lossy(rest).split('\n') {
        let Some((kind, text)) = line.split_at_checked(1) else { continue };
        match kind {
            "s" if world.probe.listens_for_silence() => world.step(ProbeEvent::Silence),
            "e" => world.step(ProbeEvent::Expired),
            "r" => {
                if world.open == [false; 2] {
                    world.sent = [0; 2];
                }
                world.step(ProbeEvent::Restarted);
            }
            "d" | "i" => {
                let request = REQUESTS[usize::from(kind == "i")];
                if !std::mem::take(&mut world.open[request as usize]) {
                    continue;
                }
                match Message::read(text) {
                    Ok(message) if message.kind() == Kind::Response => {
                        world.step(ProbeEvent::Answer(request, &message));
                    }
                    _ => world.step(ProbeEvent::Unusable(request)),
                }
            }
            _ => {}
        }
    }
});

struct World {
    probe: EraProbe,
    open: [bool; 2],
    sent: [u8; 2],
}

impl World {
    fn step(&mut self, event: ProbeEvent<'_>) {
        match self.probe.on(event) {
            ProbeStep::Ask(request) => {
                self.open[request as usize] = true;
                self.sent[request as usize] += 1;
                assert!(self.sent[request as usize] <= 2, "{} three times", request.method());
            }
            ProbeStep::Wait => {}
            ProbeStep::Legacy | ProbeStep::Modern | ProbeStep::Failed(_) => self.open = [false; 2],
        }
        let ended = self.probe.clone().on(ProbeEvent::Expired);
        let waits = matches!(ended, ProbeStep::Failed(_));
        assert_eq!(waits, self.open != [false; 2], "{:?}", self.probe);
    }
}
