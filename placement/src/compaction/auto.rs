//! Compaction by itself, in etcd's two modes. A value without a clock: time and revisions in, boundaries out.
//!
//! - *periodic*: keeps the history of a window of time. Samples the newest revision ten times in each interval; the
//!   boundary is the revision of a window ago. The first compaction comes after one window. From then on one comes in
//!   every interval: the window itself, or an hour if the window is longer.
//! - *revision*: keeps the newest so many revisions, looked at every five minutes.
//!
//! The leader of placement does this, from its own memory: a new leader begins its window anew, so history is kept
//! longer then, never shorter.

use std::collections::VecDeque;
use std::time::Duration;

/// The longest time between two compactions by the clock.
const INTERVAL_MAX: Duration = Duration::from_secs(3_600);
/// Samples in an interval.
const SAMPLES: u32 = 10;
/// Between two looks of the mode that counts revisions.
const REVISION_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// What is compacted without being asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Nothing.
    #[default]
    Off,
    /// What is older than this.
    Periodic(Duration),
    /// All but the newest so many revisions.
    Revisions(i64),
}

/// Says when to compact, and at which revision.
#[derive(Debug)]
pub struct Compactor {
    mode: AutoCompaction,
    /// When to look next.
    next: Duration,
    /// Newest revisions, one for each sample; the first is of a window ago, once there are enough.
    samples: VecDeque<i64>,
    /// No compaction by the clock before this.
    due: Duration,
    /// What was compacted last.
    last: i64,
}

impl Compactor {
    /// Begins at `now`.
    pub fn new(mode: AutoCompaction, now: Duration) -> Self {
        let (next, due) = match mode {
            AutoCompaction::Off => (Duration::MAX, Duration::MAX),
            AutoCompaction::Periodic(window) => (now, now.saturating_add(window)),
            AutoCompaction::Revisions(_) => (now + REVISION_INTERVAL, Duration::ZERO),
        };
        Self { mode, next, samples: VecDeque::new(), due, last: 0 }
    }

    /// Time has passed; `newest` is the newest revision. Returns the revision to compact at, if it is time. Whoever gets
    /// one answers with [`Self::compacted`] if that was done; else the next sample tries again.
    pub fn tick(&mut self, now: Duration, newest: i64) -> Option<i64> {
        if now < self.next {
            return None;
        }
        let boundary = match self.mode {
            AutoCompaction::Off => return None,
            AutoCompaction::Periodic(window) => {
                let pause = interval(window) / SAMPLES;
                self.next = now.saturating_add(pause);
                self.sample(newest, pauses(window, pause));
                self.samples.front().copied().filter(|_| now >= self.due)?
            }
            AutoCompaction::Revisions(kept) => {
                self.next = now + REVISION_INTERVAL;
                newest.saturating_sub(kept)
            }
        };
        (boundary > 0 && boundary != self.last).then_some(boundary)
    }

    /// `boundary` is compacted, by this or by somebody else.
    pub fn compacted(&mut self, boundary: i64, now: Duration) {
        self.last = boundary;
        if let AutoCompaction::Periodic(window) = self.mode {
            self.due = now.saturating_add(interval(window));
        }
    }

    fn sample(&mut self, newest: i64, window: usize) {
        self.samples.push_back(newest);
        while self.samples.len() > window + 1 {
            self.samples.pop_front();
        }
    }
}

fn interval(window: Duration) -> Duration {
    window.min(INTERVAL_MAX)
}

/// Pauses between samples in a window, rounded up: a window is never cut short.
fn pauses(window: Duration, pause: Duration) -> usize {
    let pauses = window.as_nanos().div_ceil(pause.as_nanos().max(1));
    usize::try_from(pauses).unwrap_or(usize::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3_600);

    /// Runs `mode` for `span` with one revision a second, and returns when it compacted at what.
    fn run(mode: AutoCompaction, span: Duration) -> Vec<(u64, i64)> {
        run_with(mode, span, |now| now.as_secs() as i64 + 1)
    }

    fn run_with(mode: AutoCompaction, span: Duration, newest: impl Fn(Duration) -> i64) -> Vec<(u64, i64)> {
        let mut compactor = Compactor::new(mode, Duration::ZERO);
        let mut done = Vec::new();
        let mut now = Duration::ZERO;
        while now <= span {
            if let Some(boundary) = compactor.tick(now, newest(now)) {
                done.push((now.as_secs(), boundary));
                compactor.compacted(boundary, now);
            }
            now += SECOND;
        }
        done
    }

    #[test]
    fn off_never_compacts() {
        assert_eq!(run(AutoCompaction::Off, 3 * HOUR), []);
    }

    #[test]
    fn a_short_window_is_compacted_once_a_window_at_what_was_a_window_ago() {
        let done = run(AutoCompaction::Periodic(5 * MINUTE), 20 * MINUTE);
        assert_eq!(done, [(300, 1), (600, 301), (900, 601), (1_200, 901)]);
    }

    #[test]
    fn a_long_window_is_compacted_hourly_after_it_has_passed_once() {
        let done = run(AutoCompaction::Periodic(10 * HOUR), 13 * HOUR);
        let hour = 3_600;
        assert_eq!(
            done,
            [
                (10 * hour as u64, 1),
                (11 * hour as u64, hour + 1),
                (12 * hour as u64, 2 * hour + 1),
                (13 * hour as u64, 3 * hour + 1),
            ]
        );
    }

    #[test]
    fn a_window_that_is_no_multiple_of_the_pause_is_never_cut_short() {
        for minutes in [61, 64, 90, 119] {
            let window = minutes * MINUTE;
            for (at, boundary) in run(AutoCompaction::Periodic(window), 5 * HOUR) {
                let age = at as i64 - (boundary - 1);
                let most = window.as_secs() as i64 + 6 * 60;
                assert!((window.as_secs() as i64..=most).contains(&age), "{age} s in a window of {minutes} minutes");
            }
        }
    }

    #[test]
    fn nothing_new_is_not_compacted_again() {
        let stops = |now: Duration| now.as_secs().min(400) as i64 + 1;
        let done = run_with(AutoCompaction::Periodic(5 * MINUTE), HOUR, stops);
        assert_eq!(done, [(300, 1), (600, 301), (900, 401)]);
    }

    #[test]
    fn a_compaction_that_failed_is_tried_at_the_next_sample() {
        let mut compactor = Compactor::new(AutoCompaction::Periodic(5 * MINUTE), Duration::ZERO);
        let mut tried = Vec::new();
        for second in 0..=361 {
            let now = second * SECOND;
            if let Some(boundary) = compactor.tick(now, i64::from(second) + 1) {
                tried.push((second, boundary));
            }
        }
        assert_eq!(tried, [(300, 1), (330, 31), (360, 61)]);
    }

    #[test]
    fn revisions_are_counted_every_five_minutes() {
        let done = run(AutoCompaction::Revisions(400), 20 * MINUTE);
        assert_eq!(done, [(600, 201), (900, 501), (1_200, 801)]);
        let idle = run_with(AutoCompaction::Revisions(1_000), HOUR, |_| 5_000);
        assert_eq!(idle, [(300, 4_000)]);
        assert_eq!(run_with(AutoCompaction::Revisions(i64::MAX), HOUR, |_| 5_000), []);
    }
}
