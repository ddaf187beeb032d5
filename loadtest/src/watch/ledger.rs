//! What watches were told against what was written: counts, order, and how far writers may run ahead.
//!
//! 1. A writer notes key and revision of each put that was acknowledged; the sums of these are what a watch must show.
//! 2. A watch notes how many events it saw and the sum of their revisions. Revisions that do not rise fail at once.
//! 3. When the writers are done, both are compared. Equal counts and sums of rising revisions leave no room for a loss
//!    that a repetition covers up, unless it were arranged with care.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::ensure;
use tokio::sync::Semaphore;

/// A number of events and the sum of their revisions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events.
    pub events: u64,
    /// Sum of their revisions; wraps.
    pub revisions: u64,
}

impl Tally {
    fn add(&mut self, revision: i64) {
        self.events += 1;
        self.revisions = self.revisions.wrapping_add(revision as u64);
    }
}

/// What one watch was told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// All events.
    pub tally: Tally,
    last: i64,
}

impl Seen {
    /// Takes one event in; its revision must be above the one before.
    pub fn event(&mut self, revision: i64) -> anyhow::Result<()> {
        ensure!(revision > self.last, "DISORDER: revision {revision} came after {}", self.last);
        self.last = revision;
        self.tally.add(revision);
        Ok(())
    }
}

/// What was written, and so must be seen.
#[derive(Debug, Default)]
pub struct Expected {
    /// Of all keys together.
    pub all: Tally,
    /// By key; a key that is not here was not written.
    pub keys: BTreeMap<u64, Tally>,
    /// Puts of unknown outcome: a watch may show as many events more.
    pub unknown: u64,
}

impl Expected {
    /// Notes an acknowledged put.
    pub fn put(&mut self, key: u64, revision: i64) {
        self.all.add(revision);
        self.keys.entry(key).or_default().add(revision);
    }

    /// Adds what another writer noted.
    pub fn add(&mut self, other: Self) {
        let add = |mine: &mut Tally, theirs: Tally| {
            mine.events += theirs.events;
            mine.revisions = mine.revisions.wrapping_add(theirs.revisions);
        };
        add(&mut self.all, other.all);
        other.keys.into_iter().for_each(|(key, tally)| add(self.keys.entry(key).or_default(), tally));
        self.unknown += other.unknown;
    }

    /// What a watch of one key must show, or of all keys.
    pub fn of(&self, key: Option<u64>) -> Tally {
        key.map_or(self.all, |key| self.keys.get(&key).copied().unwrap_or_default())
    }

    /// Compares what a watch was told with what it should have been told.
    pub fn check(&self, key: Option<u64>, seen: Tally) -> anyhow::Result<()> {
        let want = self.of(key);
        ensure!(seen.events >= want.events, "LOSS: {} events of {}", seen.events, want.events);
        let most = want.events + self.unknown;
        ensure!(seen.events <= most, "REPETITION: {} events, but {most} puts", seen.events);
        ensure!(
            self.unknown > 0 || seen.revisions == want.revisions,
            "LOSS: {} events as there should be, but of other revisions than were written",
            seen.events
        );
        Ok(())
    }
}

/// The least number of events that each watch of one stream has seen, kept without looking at all of them.
#[derive(Debug)]
pub struct Slowest {
    watches: usize,
    /// Events that every watch has seen.
    least: u64,
    /// At place i: how many watches have seen at least `least` + i + 1 events.
    reached: VecDeque<usize>,
}

impl Slowest {
    /// No events yet.
    pub fn new(watches: usize) -> Self {
        Self { watches, least: 0, reached: VecDeque::new() }
    }

    /// A watch has now seen `events` events; one more than before. Returns the new least number if it has risen.
    pub fn seen(&mut self, events: u64) -> Option<u64> {
        let place = (events - self.least - 1) as usize;
        if self.reached.len() <= place {
            self.reached.resize(place + 1, 0);
        }
        self.reached[place] += 1;
        let before = self.least;
        while self.reached.front() == Some(&self.watches) {
            self.reached.pop_front();
            self.least += 1;
        }
        (self.least > before).then_some(self.least)
    }
}

/// Holds writers back: at most so many puts are under way or not yet seen by the slowest watch.
#[derive(Debug)]
pub struct Ahead {
    permits: Semaphore,
    /// Least number of events that the watches of each stream have seen.
    streams: Vec<AtomicU64>,
    /// The least of `streams` for which permits were given back.
    returned: AtomicU64,
}

impl Ahead {
    /// Lets writers run `puts` ahead.
    pub fn new(puts: usize, streams: usize) -> Self {
        Self {
            permits: Semaphore::new(puts),
            streams: (0..streams).map(|_| AtomicU64::new(0)).collect(),
            returned: AtomicU64::new(0),
        }
    }

    /// Waits until one more put may start.
    pub async fn start(&self) {
        self.permits.acquire().await.expect("never closed").forget();
    }

    /// A put was seen by all that watch for it, or has failed.
    pub fn finish(&self, puts: usize) {
        self.permits.add_permits(puts);
    }

    /// Every watch of a stream has seen `least` events now.
    pub fn stream_reached(&self, stream: usize, least: u64) {
        self.streams[stream].store(least, Ordering::Release);
        let least = self.streams.iter().map(|stream| stream.load(Ordering::Acquire)).min().unwrap_or(0);
        let returned = self.returned.fetch_max(least, Ordering::AcqRel);
        self.finish(least.saturating_sub(returned) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(puts: &[(u64, i64)]) -> Expected {
        let mut expected = Expected::default();
        puts.iter().for_each(|&(key, revision)| expected.put(key, revision));
        expected
    }

    fn seen(revisions: &[i64]) -> anyhow::Result<Tally> {
        let mut seen = Seen::default();
        revisions.iter().try_for_each(|&revision| seen.event(revision))?;
        Ok(seen.tally)
    }

    #[test]
    fn what_was_written_must_be_seen_once_and_in_order() {
        let mut written = expected(&[(1, 5), (2, 7)]);
        written.add(expected(&[(1, 6)]));
        let verdict = |key, revisions: &[i64]| match seen(revisions).and_then(|seen| written.check(key, seen)) {
            Ok(()) => "fine".to_owned(),
            Err(error) => error.to_string().split(':').next().unwrap().to_owned(),
        };
        assert_eq!(verdict(None, &[5, 6, 7]), "fine");
        assert_eq!(verdict(Some(1), &[5, 6]), "fine");
        assert_eq!(verdict(Some(9), &[]), "fine");
        assert_eq!(verdict(None, &[5, 7]), "LOSS");
        assert_eq!(verdict(None, &[5, 6, 8]), "LOSS");
        assert_eq!(verdict(Some(2), &[5, 7]), "REPETITION");
        assert_eq!(verdict(None, &[5, 6, 6]), "DISORDER");
        assert_eq!(verdict(None, &[6, 5, 7]), "DISORDER");
    }

    #[test]
    fn a_put_of_unknown_outcome_may_be_seen_or_not() {
        let written = Expected { unknown: 1, ..expected(&[(1, 5), (1, 7)]) };
        for revisions in [&[5, 7][..], &[5, 6, 7]] {
            written.check(None, seen(revisions).unwrap()).unwrap();
        }
        assert!(written.check(None, seen(&[5]).unwrap()).is_err());
        assert!(written.check(None, seen(&[5, 6, 7, 8]).unwrap()).is_err());
    }

    #[test]
    fn the_slowest_of_three_decides() {
        let mut slowest = Slowest::new(3);
        let told: Vec<_> = [1, 1, 2, 3, 2, 1, 2, 3, 3].map(|events| slowest.seen(events)).into();
        assert_eq!(told, [None, None, None, None, None, Some(1), Some(2), None, Some(3)]);
    }

    #[test]
    fn a_jump_over_several_counts_them_all() {
        let mut slowest = Slowest::new(2);
        assert!([1, 2, 3].iter().all(|&events| slowest.seen(events).is_none()));
        assert_eq!([1, 2, 3].map(|events| slowest.seen(events)), [Some(1), Some(2), Some(3)]);
    }

    #[tokio::test]
    async fn writers_wait_for_the_slowest_stream() {
        let ahead = Ahead::new(2, 2);
        ahead.start().await;
        ahead.start().await;
        let free = || ahead.permits.available_permits();
        ahead.stream_reached(0, 2);
        assert_eq!(free(), 0);
        ahead.stream_reached(1, 1);
        assert_eq!(free(), 1);
        ahead.stream_reached(1, 2);
        assert_eq!(free(), 2);
    }
}
