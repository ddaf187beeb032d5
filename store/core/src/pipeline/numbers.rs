//! The numbers of this leader's recent writes, by overlay seq: what fills placeholders.

use std::collections::VecDeque;

/// Consecutive seqs and their revisions. Kept from the oldest seq that an unnumbered item may still name.
#[derive(Default)]
pub struct Numbers {
    /// Seq of the first revision kept. Meaningless while `revisions` is empty.
    first: u64,
    revisions: VecDeque<i64>,
}

impl Numbers {
    /// Records the number of `seq`. Seqs come in rising order; a gap (work taken back) is bridged with the number before.
    pub fn learn(&mut self, seq: u64, revision: i64) {
        if self.revisions.is_empty() {
            self.first = seq;
        }
        while self.first + (self.revisions.len() as u64) < seq {
            self.revisions.push_back(revision);
        }
        self.revisions.push_back(revision);
    }

    /// Whether the number of `seq` has arrived and is still kept.
    pub fn knows(&self, seq: u64) -> bool {
        seq >= self.first && seq < self.first + self.revisions.len() as u64
    }

    /// The number of `seq`.
    ///
    /// # Panics
    /// If it is unknown: numbers arrive in order, so a placeholder is only filled after the write it names.
    pub fn of(&self, seq: u64) -> i64 {
        assert!(self.knows(seq), "no number for write {seq}, kept are {} from {}", self.revisions.len(), self.first);
        self.revisions[(seq - self.first) as usize]
    }

    /// Drops the numbers up to `seq`, included: nothing names them any more.
    pub fn forget(&mut self, seq: u64) {
        while self.first <= seq && self.revisions.len() > 1 {
            self.revisions.pop_front();
            self.first += 1;
        }
    }
}
