//! Waits with a time limit. A wait costs one timer, or none if the result is ready immediately.

use std::{
    fmt,
    future::{Future, pending},
    io,
    time::{Duration, Instant},
};

use futures_lite::future;
use smol::Timer;

/// The error if the limit passed before the future completed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timed out")
    }
}

impl std::error::Error for Elapsed {}

impl From<Elapsed> for io::Error {
    fn from(_: Elapsed) -> Self {
        io::ErrorKind::TimedOut.into()
    }
}

/// Runs `work` for at most `limit`. If both are ready at once, the result of `work` is returned.
///
/// # Errors
/// [`Elapsed`] if the limit passed; `work` is then dropped, and so cancelled.
pub async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Elapsed> {
    let work = async { Ok(work.await) };
    let alarm = async {
        Timer::after(limit).await;
        Err(Elapsed)
    };
    future::or(work, alarm).await
}

/// Waits until `moment`, or forever if it is `None`. Returns immediately if it has passed.
pub async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => {
            Timer::at(moment).await;
        }
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        time::{Duration, Instant},
    };

    use super::{Elapsed, until, within};

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn work_in_time() {
        assert_eq!(smol::block_on(within(LONG, ready(7))), Ok(7));
        assert_eq!(smol::block_on(within(Duration::ZERO, ready(7))), Ok(7), "work that is done wins");
        assert_eq!(smol::block_on(within(Duration::MAX, ready(7))), Ok(7), "no overflow");
    }

    #[test]
    fn work_out_of_time() {
        assert_eq!(smol::block_on(within(SHORT, pending::<()>())), Err(Elapsed));
    }

    #[test]
    fn moments() {
        let start = Instant::now();
        smol::block_on(async {
            until(Some(start)).await;
            until(Some(start + SHORT)).await;
            assert!(start.elapsed() >= SHORT, "a timer is never early");
            assert_eq!(within(SHORT, until(None)).await, Err(Elapsed));
        });
    }
}
