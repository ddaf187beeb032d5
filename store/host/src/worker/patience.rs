//! When time counts against silent leaders. Pure.
//!
//! A follower elects somebody else because its leader's store is silent. That proves nothing while this store itself
//! could not listen: its worker or its door stood still (a burst of other work, a slow disk, a suspended machine), and
//! what the leader said meanwhile still waits to be read. So after a time without ticks, and after a time in which no
//! other store at all was heard, election clocks pause until each store had the time to speak up again.
//!
//! 1. Not campaigning is always safe; votes for others are not touched.
//! 2. A store that hears nobody could not win anyway.
//! 3. A store that stands still again and again must not keep a region without a leader: between two pauses for that
//!    reason lies at least an election timeout.

use crate::config::Timing;
use crate::support::Now;

/// Ticks that may be missed before it counts as standing still.
const MISSED_TICKS: u32 = 3;

/// The election clocks of one worker.
#[derive(Debug)]
pub(super) struct Patience {
    last_tick: Option<Now>,
    paused_until: Now,
    /// End of the last pause for standing still.
    stall_ended: Now,
}

impl Patience {
    pub fn new() -> Self {
        Self { last_tick: None, paused_until: Now(0), stall_ended: Now(0) }
    }

    /// Whether election clocks run in the tick at `now`, if another store was `heard` last then.
    pub fn runs(&mut self, now: Now, heard: Now, timing: &Timing) -> bool {
        // Each store speaks once in an interval; twice that long covers ticks and one lost frame.
        let pause = timing.support.interval * 2;
        let deaf = now.since(heard) > pause + timing.tick;
        let last = self.last_tick.replace(now).unwrap_or(now);
        let stalled = now.since(last) > timing.tick * (MISSED_TICKS + 1);
        if deaf {
            self.paused_until = now.plus(pause);
        } else if stalled && now >= self.stall_ended.plus(timing.election()) {
            self.paused_until = now.plus(pause);
            self.stall_ended = self.paused_until;
            metrics::counter!("braid_raft_stalls_total").increment(1);
        }
        now >= self.paused_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Ticks every 100 ms from `from` (inclusive) to `to`; true: the clocks ran in all of them.
    fn ticks(patience: &mut Patience, from: u64, to: u64, heard: impl Fn(u64) -> u64) -> Vec<u64> {
        let timing = Timing::default();
        let at = (from..to).step_by(100);
        at.filter(|ms| patience.runs(Now(ms * MS), Now(heard(*ms) * MS), &timing)).collect()
    }

    #[test]
    fn a_stall_counts_as_no_time_at_all() {
        let mut patience = Patience::new();
        assert_eq!(ticks(&mut patience, 10_000, 11_000, |now| now).len(), 10);
        // Two seconds without a tick. Others were heard just before: the door was open.
        assert_eq!(ticks(&mut patience, 13_000, 13_800, |now| now), [13_500, 13_600, 13_700]);
    }

    #[test]
    fn stalls_without_end_leave_room_for_elections() {
        let mut patience = Patience::new();
        let timing = Timing::default();
        let mut ran = 0;
        for round in 0..100 {
            ran +=
                u32::from(patience.runs(Now((20_000 + round * 450) * MS), Now((20_000 + round * 450) * MS), &timing));
        }
        assert!((50..95).contains(&ran), "{ran} of 100 ticks");
    }

    #[test]
    fn a_store_that_hears_nobody_waits_until_it_had_the_time_to() {
        let mut patience = Patience::new();
        assert!(ticks(&mut patience, 10_000, 10_600, |_| 10_000).len() == 6);
        assert!(ticks(&mut patience, 10_700, 15_000, |_| 10_000).is_empty());
        // The door opens; the first one who is heard may not be the leader's store.
        assert_eq!(ticks(&mut patience, 15_000, 15_600, |now| now), [15_400, 15_500]);
    }
}
