//! A bandwidth limit by appointment: whoever wants to send bytes is told when its turn comes.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Shared by everything that sends under one limit.
#[derive(Debug)]
pub(super) struct Pace {
    /// 0: no limit.
    bytes_per_second: u64,
    /// When the bytes that were let through so far are paid for.
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Pace { bytes_per_second, free_at: Mutex::new(None) }
    }

    /// Returns when `bytes` may leave.
    pub(super) async fn take(&self, bytes: usize) {
        if let Some(turn) = self.turn(bytes, Instant::now()) {
            tokio::time::sleep_until(turn).await;
        }
    }

    /// When `bytes` may leave; none: at once.
    fn turn(&self, bytes: usize, now: Instant) -> Option<Instant> {
        if self.bytes_per_second == 0 {
            return None;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut free_at = self.free_at.lock();
        let turn = free_at.map_or(now, |at| at.max(now));
        *free_at = Some(turn + cost);
        (turn > now).then_some(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_spaced_by_what_was_sent_before() {
        let pace = Pace::new(1000);
        let start = Instant::now();
        let after = |ms| Some(start + Duration::from_millis(ms));
        assert_eq!(pace.turn(500, start), None, "the first one goes at once");
        assert_eq!(pace.turn(250, start), after(500));
        assert_eq!(pace.turn(250, start), after(750));
        let later = start + Duration::from_secs(10);
        assert_eq!(pace.turn(1, later), None, "time without sending is not saved up ...");
        assert_eq!(pace.turn(1, later), Some(later + Duration::from_millis(1)), "... for a burst");
        assert_eq!(Pace::new(0).turn(usize::MAX, start), None);
    }
}
