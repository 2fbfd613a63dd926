//! A bounded buffer between the log and stderr, written by its own thread.
//!
//! A write to stderr blocks while it is not read (a pipe to a program that hangs, a stopped
//! terminal). On the executor that would stop every connection. Lines that do not fit are dropped
//! and counted; the count is written once stderr is read again.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Condvar, MutexGuard},
    thread,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    limits,
    runtime::lock::{self, Lock},
    util,
};

/// Lines waiting for the writer thread.
#[derive(Debug, Default)]
struct Buffer {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// Lines dropped since the last one that fit.
    dropped: u64,
    /// Whether the thread is writing the line that it took last.
    writing: bool,
}

impl Buffer {
    /// Adds a line, or counts it as dropped.
    fn push(&mut self, line: &[u8]) {
        // After the first dropped line all others are dropped, too, until the thread has written
        // the count, so that it appears where the lines are missing.
        if self.dropped > 0 || self.bytes + line.len() > limits::LOG_BUFFER {
            self.dropped += 1;
        } else {
            self.bytes += line.len();
            self.lines.push_back(line.into());
        }
    }

    /// Takes the next line. After the last line before a gap, returns a line that reports the gap.
    fn pop(&mut self) -> Option<Box<[u8]>> {
        if let Some(line) = self.lines.pop_front() {
            self.bytes -= line.len();
            return Some(line);
        }
        match std::mem::take(&mut self.dropped) {
            0 => None,
            count => Some(gap(count).into_bytes().into()),
        }
    }

    fn is_idle(&self) -> bool {
        !self.writing && self.lines.is_empty() && self.dropped == 0
    }
}

/// Formats the line that reports dropped lines, in the format of all others.
fn gap(count: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{} [WARN] {count} log lines dropped: stderr is not read\n", util::time::utc(now))
}

#[derive(Debug, Default)]
struct LoggerState {
    buffer: Lock<Buffer>,
    /// Notified when a line was added, or when the thread has written everything.
    changed: Condvar,
}

impl LoggerState {
    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock()
    }
}

/// Writes whole lines to the buffer; never blocks on stderr.
#[derive(Clone, Debug)]
pub struct LogWriter(Arc<LoggerState>);

impl LogWriter {
    /// Starts the thread, which writes to `output` for as long as the process lives.
    ///
    /// # Errors
    /// The system's error if the thread cannot be started.
    pub fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        let writer = Self(Arc::default());
        let shared = writer.0.clone();
        let thread = thread::Builder::new().name("log-writer".into()).stack_size(limits::LOG_STACK);
        thread.spawn(move || drain(&shared, output))?;
        Ok(writer)
    }

    /// Waits until everything is written, for at most `limit`.
    pub fn flush_within(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut buffer = self.0.buffer();
        while !buffer.is_idle() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            buffer = lock::wait(&self.0.changed, buffer, Some(left));
        }
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.buffer().push(line);
        self.0.changed.notify_all();
        Ok(line.len())
    }

    /// Does nothing, because logging must not wait. See [`LogWriter::flush_within`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the lines of the buffer, forever.
fn drain(shared: &LoggerState, mut output: impl Write) {
    let mut buffer = shared.buffer();
    loop {
        match buffer.pop() {
            Some(line) => {
                buffer.writing = true;
                drop(buffer);
                write_all(&mut output, &line);
                buffer = shared.buffer();
                buffer.writing = false;
            }
            None => {
                shared.changed.notify_all();
                buffer = lock::wait(&shared.changed, buffer, None);
            }
        }
    }
}

/// Writes a line. Drops it on an error, because there is nowhere else to report it.
fn write_all(output: &mut impl Write, mut line: &[u8]) {
    while !line.is_empty() {
        match output.write(line) {
            Ok(0) => return,
            Ok(count) => line = line.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process that shares stderr may have made it non-blocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(limits::LOG_RETRY),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Blocks each write until it is allowed, then passes the line on.
    struct Gate(mpsc::Receiver<()>, mpsc::Sender<String>);

    impl Write for Gate {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            // Once the sender is dropped, all writes pass.
            let _ = self.0.recv();
            let _ = self.1.send(String::from_utf8_lossy(line).into_owned());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_without_room_are_dropped_and_counted() {
        let (open, opened) = mpsc::channel();
        let (sender, written) = mpsc::channel();
        let mut writer = LogWriter::start(Gate(opened, sender)).unwrap();
        let line = |number: usize| format!("{number:>1023}\n");
        let room = limits::LOG_BUFFER / line(0).len();
        // The thread may already hold one more line than fits.
        for number in 0..room + 8 {
            writer.write_all(line(number).as_bytes()).unwrap();
        }
        writer.flush_within(Duration::from_millis(10));
        drop(open);
        writer.flush_within(Duration::from_secs(30));
        writer.write_all(b"again\n").unwrap();
        writer.flush_within(Duration::from_secs(30));
        let lines: Vec<String> = written.try_iter().collect();
        let [kept @ .., gap, last] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(kept.iter().enumerate().all(|(number, kept)| *kept == line(number)));
        let dropped = room + 8 - kept.len();
        assert!((7..=8).contains(&dropped), "{dropped}");
        assert!(
            gap.ends_with(&format!(" [WARN] {dropped} log lines dropped: stderr is not read\n")),
            "{gap}"
        );
        assert_eq!(last, "again\n");
    }
}
