//! The models. `.ci/run` runs them with at most four preemptions in each execution:
//!
//! ```text
//! LOOM_MAX_PREEMPTIONS=4 cargo test --release --manifest-path tests/loom/Cargo.toml --test models
//! ```

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use loom::{
    sync::{
        Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use mcpport_loom::{
    handoff::{EventSource, Handoff},
    notify::{WakeFlag, poll_if_woken},
    sync::{self, Thread},
};

/// Most threads of a model that wait for events.
const THREADS: usize = 2;

/// A thread that polls a future until it is done, and parks while it is pending. Much simpler than
/// `Handoff`, for the models of the flag.
struct Task {
    thread: Thread,
    woken: AtomicBool,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.woken.swap(true, Ordering::AcqRel);
        self.thread.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let task = Arc::new(Task { thread: sync::current(), woken: AtomicBool::new(true) });
    let waker = Waker::from(task.clone());
    let mut future = pin!(future);
    loop {
        while !task.woken.swap(false, Ordering::AcqRel) {
            sync::park();
        }
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
    }
}

/// What a wake flag announces.
#[derive(Default)]
struct Message {
    flag: WakeFlag,
    sent: AtomicBool,
}

impl Message {
    fn send(&self) {
        // Relaxed, since the flag itself must order it.
        self.sent.store(true, Ordering::Relaxed);
        self.flag.set();
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        self.flag.register(context.waker());
        if self.flag.take() && self.sent.load(Ordering::Relaxed) { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[test]
fn a_set_flag_always_wakes_its_task() {
    loom::model(|| {
        let message = Arc::new(Message::default());
        let sender = message.clone();
        let sending = thread::spawn(move || sender.send());
        block_on(poll_fn(|context| message.poll(context)));
        sending.join().unwrap();
    });
}

/// The flag is set twice, for instance by two events of a socket, and the second must not be lost
/// because the first is still being handled.
#[test]
fn two_threads_set_one_flag() {
    loom::model(|| {
        let messages = Arc::new((WakeFlag::default(), [AtomicBool::new(false), AtomicBool::new(false)]));
        let sending: Vec<_> = (0..2)
            .map(|number| {
                let messages = messages.clone();
                thread::spawn(move || {
                    messages.1[number].store(true, Ordering::Relaxed);
                    messages.0.set();
                })
            })
            .collect();
        let (flag, sent) = &*messages;
        block_on(poll_fn(|context| {
            flag.register(context.waker());
            let all = flag.take() && sent.iter().all(|sent| sent.load(Ordering::Relaxed));
            if all { Poll::Ready(()) } else { Poll::Pending }
        }));
        sending.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// A flag that is cleared after the look in place of before loses a wake-up, and the models see it.
#[test]
#[should_panic(expected = "deadlock")]
fn the_wrong_order_is_found() {
    loom::model(|| {
        let message = Arc::new(Message::default());
        let sender = message.clone();
        let sending = thread::spawn(move || sender.send());
        block_on(poll_fn(|context| {
            message.flag.register(context.waker());
            let sent = message.sent.load(Ordering::Relaxed);
            if message.flag.take() && sent { Poll::Ready(()) } else { Poll::Pending }
        }));
        sending.join().unwrap();
    });
}

/// Wakes a task once, from another thread.
#[derive(Default)]
struct Wakeup {
    sent: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Wakeup {
    fn send(&self) {
        self.sent.store(true, Ordering::Release);
        let waker = self.waker.lock().unwrap().take();
        waker.into_iter().for_each(Waker::wake);
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        *self.waker.lock().unwrap() = Some(context.waker().clone());
        if self.sent.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// The inner future is woken from another thread while it is polled, or before, or after. It was
/// polled by another task before, as when a select drops and polls again.
#[test]
fn poll_if_woken_polls_after_each_wake() {
    loom::model(|| {
        let wakeup = Arc::new(Wakeup::default());
        let sender = wakeup.clone();
        let sending = thread::spawn(move || sender.send());
        let mut waiting = poll_if_woken(poll_fn(|context| wakeup.poll(context)));
        let first = pin!(&mut waiting).poll(&mut Context::from_waker(Waker::noop()));
        if first.is_pending() {
            block_on(waiting);
        }
        sending.join().unwrap();
    });
}

/// A model of the kernel's queue: each event is for one thread's message.
#[derive(Clone)]
struct System(Arc<Queue>);

struct Queue {
    /// Events that were raised, and whether a wait must end without one.
    raised: Mutex<([bool; THREADS], bool)>,
    changed: Condvar,
    messages: [Message; THREADS],
}

impl System {
    fn new() -> Self {
        let messages = std::array::from_fn(|_| Message::default());
        Self(Arc::new(Queue { raised: Mutex::default(), changed: Condvar::new(), messages }))
    }

    fn raise(&self, number: usize) {
        self.0.raised.lock().unwrap().0[number] = true;
        self.0.changed.notify_one();
    }
}

impl EventSource for System {
    type Poller = [bool; THREADS];

    fn wait(&self, poller: &mut Self::Poller, may_block: bool) {
        let mut raised = self.0.raised.lock().unwrap();
        while may_block && *raised == Default::default() {
            raised = self.0.changed.wait(raised).unwrap();
        }
        (*poller, _) = std::mem::take(&mut *raised);
    }

    fn dispatch(&self, poller: &mut Self::Poller) {
        for (message, _) in self.0.messages.iter().zip(poller).filter(|(_, raised)| **raised) {
            message.send();
        }
    }

    fn interrupt(&self) {
        self.0.raised.lock().unwrap().1 = true;
        self.0.changed.notify_one();
    }
}

type Shared = Arc<Handoff<System>>;

fn shared() -> (System, Shared) {
    (System::new(), Arc::new(Handoff::new(Default::default())))
}

/// Waits for the message that event `number` brings.
fn receive(system: &System, handoff: &Shared, number: usize) {
    let message = &system.0.messages[number];
    handoff.block_on(system.clone(), poll_fn(|context| message.poll(context)));
}

/// The thread is anywhere between its poll and its sleep in the poller.
#[test]
fn another_thread_wakes_the_polling_thread() {
    loom::model(|| {
        let (system, handoff) = shared();
        let sender = system.clone();
        let sending = thread::spawn(move || sender.0.messages[0].send());
        receive(&system, &handoff, 0);
        sending.join().unwrap();
    });
}

#[test]
fn an_event_wakes_the_polling_thread() {
    loom::model(|| {
        let (system, handoff) = shared();
        let device = system.clone();
        let raising = thread::spawn(move || device.raise(0));
        receive(&system, &handoff, 0);
        raising.join().unwrap();
    });
}

/// Each thread waits for an event of its own. The one whose event comes first leaves; whether it
/// polled or was parked, the other must get its event too.
#[test]
fn a_leaving_thread_hands_the_poller_over() {
    loom::model(|| {
        let (system, handoff) = shared();
        let other = (system.clone(), handoff.clone());
        let other = thread::spawn(move || receive(&other.0, &other.1, 1));
        let device = system.clone();
        let raising = thread::spawn(move || {
            device.raise(0);
            device.raise(1);
        });
        receive(&system, &handoff, 0);
        other.join().unwrap();
        raising.join().unwrap();
    });
}

/// One thread waits for an event, the other for a message of a third thread, which must find it
/// polling or parked.
#[test]
fn a_parked_thread_is_woken_directly() {
    loom::model(|| {
        let (system, handoff) = shared();
        let other = (system.clone(), handoff.clone());
        let other = thread::spawn(move || receive(&other.0, &other.1, 1));
        let sender = system.clone();
        let sending = thread::spawn(move || {
            sender.0.messages[1].send();
            sender.raise(0);
        });
        receive(&system, &handoff, 0);
        other.join().unwrap();
        sending.join().unwrap();
    });
}
