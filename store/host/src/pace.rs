//! A bandwidth limit by appointment: whoever wants to let bytes through is told when its turn comes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::time::Instant;

/// Shared by everything that goes through under one limit.
#[derive(Debug, Default)]
pub struct Pace {
    /// 0: no limit.
    bytes_per_second: AtomicU64,
    /// When the bytes that were let through so far are paid for.
    free_at: Mutex<Option<Instant>>,
    is_closed: AtomicBool,
    /// Notified, under the lock of `free_at`, when it is closed.
    closed: Condvar,
}

impl Pace {
    /// So many bytes per second; 0: no limit.
    pub fn new(bytes_per_second: u64) -> Self {
        Pace { bytes_per_second: bytes_per_second.into(), ..Pace::default() }
    }

    /// Another limit for what asks from now on; 0: none. Turns that were given stay as they are.
    pub fn set(&self, bytes_per_second: u64) {
        self.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Whether there is a limit.
    pub fn is_limited(&self) -> bool {
        self.bytes_per_second.load(Ordering::Relaxed) > 0
    }

    /// Returns when `bytes` may leave.
    pub async fn take(&self, bytes: usize) {
        if let Ok(Some(turn)) = self.turn(bytes, Instant::now(), Duration::MAX) {
            tokio::time::sleep_until(turn).await;
        }
    }

    /// Blocks until `bytes` may leave. False: it was closed, and they may not.
    pub fn take_blocking(&self, bytes: usize) -> bool {
        if let Ok(Some(turn)) = self.turn(bytes, Instant::now(), Duration::MAX) {
            let mut free_at = self.free_at.lock();
            while !self.is_closed.load(Ordering::Relaxed) && Instant::now() < turn {
                self.closed.wait_until(&mut free_at, turn.into_std());
            }
        }
        !self.is_closed.load(Ordering::Relaxed)
    }

    /// Whoever blocks goes on at once, and nobody blocks from now on.
    pub fn close(&self) {
        let _free_at = self.free_at.lock();
        self.is_closed.store(true, Ordering::Relaxed);
        self.closed.notify_all();
    }

    /// When `bytes` may go; none: at once.
    ///
    /// # Errors
    /// How long that would be from now, if it is more than `patience`: no turn is taken then.
    pub fn turn(&self, bytes: usize, now: Instant, patience: Duration) -> Result<Option<Instant>, Duration> {
        let rate = self.bytes_per_second.load(Ordering::Relaxed);
        if rate == 0 {
            return Ok(None);
        }
        let mut free_at = self.free_at.lock();
        let turn = free_at.map_or(now, |at| at.max(now));
        let wait = turn - now;
        if wait > patience {
            return Err(wait);
        }
        *free_at = Some(turn + Duration::from_secs_f64(bytes as f64 / rate as f64));
        Ok((!wait.is_zero()).then_some(turn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_spaced_by_what_went_before() {
        let pace = Pace::new(1000);
        let start = Instant::now();
        let after = |ms| Ok(Some(start + Duration::from_millis(ms)));
        let turn = |bytes, at| pace.turn(bytes, at, Duration::MAX);
        assert_eq!(turn(500, start), Ok(None), "the first one goes at once");
        assert_eq!(turn(250, start), after(500));
        assert_eq!(turn(250, start), after(750));
        let later = start + Duration::from_secs(10);
        assert_eq!(turn(1, later), Ok(None), "time without bytes is not saved up ...");
        assert_eq!(turn(1, later), Ok(Some(later + Duration::from_millis(1))), "... for a burst");
        assert_eq!(Pace::new(0).turn(usize::MAX, start, Duration::ZERO), Ok(None));
    }

    #[test]
    fn who_would_wait_too_long_takes_no_turn() {
        let pace = Pace::new(1000);
        let start = Instant::now();
        let patience = Duration::from_millis(500);
        assert_eq!(pace.turn(501, start, patience), Ok(None));
        assert_eq!(pace.turn(1, start, patience), Err(Duration::from_millis(501)));
        assert_eq!(
            pace.turn(1, start + Duration::from_millis(1), patience),
            Ok(Some(start + Duration::from_millis(501)))
        );
        pace.set(0);
        assert!(!pace.is_limited());
        assert_eq!(pace.turn(1, start, patience), Ok(None), "no limit any more");
    }

    #[test]
    fn closing_ends_the_longest_wait() {
        let pace = std::sync::Arc::new(Pace::new(1));
        assert!(pace.take_blocking(1 << 20), "the first one goes at once");
        let waits = std::thread::spawn({
            let pace = std::sync::Arc::clone(&pace);
            move || pace.take_blocking(1)
        });
        pace.close();
        assert!(!waits.join().expect("ended"), "after twelve days otherwise");
        assert!(!pace.take_blocking(1));
    }
}
