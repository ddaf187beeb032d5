//! Windows of revisions: what is persisted ahead of the numbers, and how far ahead.
//!
//! ```text
//!             given (as of the proposal)        end, inclusive
//!   ────────────┬──────────────────────────────────┬─────────────►  revisions
//!     given out │  may have been given out since   │  never given out under this window
//! ```
//!
//! [`WindowRecord`] is replicated and says what no later sequencer may give out again. [`WindowLength`] is memory of one
//! term of office and decides how far ahead the next window reaches: long enough that numbering never waits for raft,
//! short enough that a crash skips no more than a second or two of use.

use std::time::Duration;

use braid_proto::id::{Revision, SequencerEpoch};

use super::clients::LastAnswer;

/// The shortest window: what an idle cluster loses at most when its sequencer dies.
pub const WINDOW_MIN: i64 = 1_000;
/// The longest window. Beyond it a faster sequencer asks more often instead.
pub const WINDOW_MAX: i64 = 16_000_000;
/// How much use a window is made for. Half of it is the time that raft has to commit the next one.
pub const WINDOW_USE: Duration = Duration::from_secs(2);
/// How much longer a window may be than the one before, so that a burst of milliseconds is not taken for a rate.
pub const WINDOW_GROWTH: i64 = 4;

/// What placement's group has committed about numbering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowRecord {
    /// The newest sequencer that has a window. 0: there has been none.
    pub epoch: SequencerEpoch,
    /// Last revision that may have been given out. Inclusive. Never falls, but to the exact last one when closed.
    pub end: Revision,
    /// Newest revision accounted for: given out, or counted as skipped by the sequencer that started above it. At most
    /// `end`.
    pub given: Revision,
    /// The sequencer has stopped and will never answer again: `end` is the last revision it gave out.
    pub closed: bool,
    /// Last answers of a closed sequencer, for its successor to repeat.
    pub answers: Vec<LastAnswer>,
}

impl Default for WindowRecord {
    /// The empty cluster is at revision 1, as in etcd.
    fn default() -> Self {
        Self {
            epoch: SequencerEpoch::INVALID,
            end: Revision::INITIAL,
            given: Revision::INITIAL,
            closed: true,
            answers: Vec::new(),
        }
    }
}

impl WindowRecord {
    /// Extends the window of the sequencer in office, or opens the first one of a newer sequencer, which must reach
    /// above every window before. Returns whether that was done.
    pub fn open(&mut self, epoch: SequencerEpoch, end: Revision, given: Revision) -> bool {
        let same_office = epoch == self.epoch && !self.closed;
        let new_office = epoch > self.epoch && end > self.end;
        if given > end || !(same_office || new_office) {
            return false;
        }
        if new_office {
            self.epoch = epoch;
            self.closed = false;
            self.answers.clear();
        }
        self.end = self.end.max(end);
        self.given = self.given.max(given);
        true
    }

    /// Records the exact last revision of the sequencer in office. Returns whether that was done.
    pub fn close(&mut self, epoch: SequencerEpoch, last: Revision, answers: Vec<LastAnswer>) -> bool {
        if epoch != self.epoch || self.closed || last > self.end || last < self.given {
            return false;
        }
        self.end = last;
        self.given = last;
        self.closed = true;
        self.answers = answers;
        true
    }
}

/// Measures use and turns it into the length of the next window.
#[derive(Debug)]
pub struct WindowLength {
    length: i64,
    /// Counter and time of the last measurement.
    mark: (Revision, Duration),
}

impl WindowLength {
    /// Begins with a guess: the length that the sequencer before found right.
    pub fn new(guess: i64, counter: Revision, now: Duration) -> Self {
        Self { length: guess.clamp(WINDOW_MIN, WINDOW_MAX), mark: (counter, now) }
    }

    /// Length of a window now.
    pub fn length(&self) -> i64 {
        self.length
    }

    /// How much must be left for the next window not to be asked for yet.
    pub fn reserve(&self) -> i64 {
        self.length / 2
    }

    /// Measures the use since the last call and fits the length to it.
    pub fn measure(&mut self, counter: Revision, now: Duration) -> i64 {
        let used = i128::from(counter.0 - self.mark.0.0);
        let micros = i128::try_from(now.saturating_sub(self.mark.1).as_micros()).unwrap_or(i128::MAX).max(1);
        let wanted = used * WINDOW_USE.as_micros() as i128 / micros;
        let longest = WINDOW_MAX.min(self.length * WINDOW_GROWTH);
        self.length = wanted.clamp(i128::from(WINDOW_MIN), i128::from(longest)) as i64;
        self.mark = (counter, now);
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(epoch: u64, end: i64, given: i64, closed: bool) -> WindowRecord {
        WindowRecord {
            epoch: SequencerEpoch(epoch),
            end: Revision(end),
            given: Revision(given),
            closed,
            answers: vec![],
        }
    }

    #[test]
    fn a_window_of_an_older_or_closed_sequencer_is_refused() {
        let mut window = WindowRecord::default();
        assert!(window.open(SequencerEpoch(1), Revision(1001), Revision(1)));
        assert!(window.open(SequencerEpoch(2), Revision(2001), Revision(1001)));
        assert!(!window.open(SequencerEpoch(1), Revision(5000), Revision(1001)));
        assert!(window.close(SequencerEpoch(2), Revision(1500), vec![]));
        assert!(!window.open(SequencerEpoch(2), Revision(9000), Revision(1600)));
        assert!(!window.close(SequencerEpoch(2), Revision(1500), vec![]));
        assert_eq!(window, record(2, 1500, 1500, true));
    }

    #[test]
    fn a_new_sequencer_must_open_above_every_window_before() {
        let mut window = record(3, 3000, 2100, false);
        assert!(!window.open(SequencerEpoch(4), Revision(3000), Revision(2500)));
        assert!(window.open(SequencerEpoch(4), Revision(4000), Revision(3000)));
        assert_eq!(window, record(4, 4000, 3000, false));
    }

    #[test]
    fn an_extension_never_lowers_the_window() {
        let mut window = record(3, 3000, 2100, false);
        assert!(window.open(SequencerEpoch(3), Revision(2900), Revision(2000)));
        assert_eq!(window, record(3, 3000, 2100, false));
    }

    #[test]
    fn a_window_is_closed_only_between_what_is_known_given_and_its_end() {
        let mut window = record(3, 3000, 2100, false);
        assert!(!window.close(SequencerEpoch(3), Revision(3001), vec![]));
        assert!(!window.close(SequencerEpoch(3), Revision(2099), vec![]));
        assert!(!window.close(SequencerEpoch(2), Revision(2500), vec![]));
        assert!(window.close(SequencerEpoch(3), Revision(2100), vec![]));
    }

    #[test]
    fn the_length_follows_use_up_in_steps_and_down_at_once() {
        let mut length = WindowLength::new(0, Revision(1), Duration::ZERO);
        assert_eq!(length.length(), WINDOW_MIN);
        // 500 numbers in 5 ms are 100,000 a second: two seconds of it are reached in steps of four.
        let mut now = Duration::ZERO;
        let mut counter = Revision(1);
        let mut seen = Vec::new();
        for _ in 0..5 {
            now += Duration::from_millis(5);
            counter.0 += 500;
            seen.push(length.measure(counter, now));
        }
        assert_eq!(seen, [4_000, 16_000, 64_000, 200_000, 200_000]);
        now += Duration::from_secs(60);
        counter.0 += 60;
        assert_eq!(length.measure(counter, now), WINDOW_MIN);
    }

    #[test]
    fn no_time_between_two_measurements_is_no_infinite_rate() {
        let mut length = WindowLength::new(2_000, Revision(1), Duration::ZERO);
        assert_eq!(length.measure(Revision(900), Duration::ZERO), 8_000);
    }
}
