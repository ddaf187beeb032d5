//! Leader leases that rest on support between stores (rules O7, O8).
//!
//! A leader's lease in a term holds at an instant when, for a quorum of its voters (its own store included), and in a
//! joint configuration for a quorum of the old voters as well, the voter's store supports this store at that instant
//! *and* the voter was seen in this term during the present, unbroken stretch of that support. Why both:
//!
//! 1. A voter that answers a heartbeat in term t, while its store's promise stands, elects nobody else until the
//!    promise has ended ([`crate::guard`]).
//! 2. Support that lapses and is granted again proves nothing for t: the voter may have voted in between. So an answer
//!    counts only if its heartbeat was sent after the present stretch began. Heartbeats carry their send time, and
//!    answers bring it back.
//! 3. The holder's end of support lies before the granter's (sent before received, margin for clock rates), so what is
//!    unbroken here is unbroken there.
//!
//! The configuration is the one that the leader has applied. A candidate that can win holds the entries of that
//! configuration, and knows that everything before the last of them is committed, so it counts by this configuration or
//! by a neighbouring one; and quorums of neighbouring configurations meet.
//!
//! The basis changes rarely and is published as a whole; whether it holds is computed by whoever asks, from the clock.

use std::sync::Arc;

use crate::support::{Now, SupportCell};

/// A voter was in the leader's term at some instant after `sent`, in the start `incarnation` of its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When the heartbeat was sent that it answered.
    pub sent: Now,
    /// Of the voter's store.
    pub incarnation: u64,
}

/// Another peer of a leader's region. One without a vote counts nothing, but what is seen of it is kept: it may get one.
#[derive(Clone)]
pub struct Voter {
    /// Its peer.
    pub peer: u64,
    /// What its store supports.
    pub cell: Arc<SupportCell>,
    /// When it was last seen in this term, where that made a difference.
    pub seen: Option<Seen>,
    /// It votes in the set that stays.
    pub new: bool,
    /// It votes in the set before the change under way; without one the same as `new`.
    pub old: bool,
}

impl Voter {
    /// When its support for the term ends; `Now(0)`: it supports nothing.
    fn until(&self) -> Now {
        let held = self.cell.held();
        match self.seen {
            Some(seen) if seen.incarnation == held.incarnation && held.since <= seen.sent => held.until,
            _ => Now(0),
        }
    }
}

/// What a leader's lease rests on. Replaced as a whole.
#[derive(Clone, Default)]
pub struct LeaseBasis {
    /// Term it is for; 0: there is no lease, whatever the rest says.
    pub term: u64,
    /// The peers but the leader itself.
    pub others: Vec<Voter>,
    /// Whether the leader itself votes in the new and in the old set.
    pub own: (bool, bool),
    /// No lease from here on: a split is under way (rule S2). None: none is.
    pub cap: Option<Now>,
}

impl LeaseBasis {
    /// When the lease ends as things are; exclusive.
    pub fn until(&self) -> Now {
        if self.term == 0 {
            return Now(0);
        }
        let cap = self.cap.unwrap_or(Now(u64::MAX));
        self.quorum(Voter::until).min(cap)
    }

    /// The latest moment that a quorum of both sets of voters reaches, each as far as `end` says.
    fn quorum(&self, end: impl Fn(&Voter) -> Now) -> Now {
        let of = |votes: &dyn Fn(&Voter) -> bool, own: bool| {
            let mut ends: Vec<Now> = self.others.iter().filter(|voter| votes(voter)).map(&end).collect();
            // The leader's own store always counts, where the leader votes.
            ends.extend(own.then_some(Now(u64::MAX)));
            ends.sort_unstable_by(|a, b| b.cmp(a));
            ends.get(ends.len() / 2).copied().unwrap_or_default()
        };
        let new = of(&|voter| voter.new, self.own.0);
        // The usual case: one set of voters.
        if self.own.0 == self.own.1 && self.others.iter().all(|voter| voter.new == voter.old) {
            return new;
        }
        new.min(of(&|voter| voter.old, self.own.1))
    }

    /// Whether the stores of a quorum support the leader's store at `now`, be the voters seen or not.
    pub fn has_quorum(&self, now: Now) -> bool {
        self.term != 0 && self.cap.is_none() && self.quorum(|voter| voter.cell.held().until) > now
    }

    /// Whether every voter whose store supports this one at `now` was seen since that began.
    pub fn all_seen(&self, now: Now) -> bool {
        let mut voters = self.others.iter().filter(|voter| voter.new || voter.old);
        voters.all(|voter| voter.cell.held().until <= now || voter.until() > now)
    }

    /// Takes note of an answer. True: it made a difference, the basis is to be published.
    pub fn saw(&mut self, peer: u64, seen: Seen) -> bool {
        let Some(voter) = self.others.iter_mut().find(|voter| voter.peer == peer) else { return false };
        if voter.seen.is_some_and(|old| old.incarnation > seen.incarnation) {
            return false;
        }
        let held = voter.cell.held();
        let counts = |seen: &Seen| seen.incarnation == held.incarnation && held.since <= seen.sent;
        if voter.seen.as_ref().is_some_and(counts) {
            return false;
        }
        voter.seen = Some(seen);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::support::{SupportConfig, SupportTable};

    const MS: u64 = 1_000_000;

    fn at(ms: u64) -> Now {
        Now(ms * MS)
    }

    fn config() -> SupportConfig {
        SupportConfig {
            period: Duration::from_millis(800),
            margin: Duration::from_millis(20),
            interval: Duration::from_millis(1),
        }
    }

    /// The granter answers a request sent at `ms`, at once.
    fn renew(holder: &SupportTable, granter: &SupportTable, granter_id: u64, granter_incarnation: u64, ms: u64) {
        let (_, request) = holder.tick([granter_id].into_iter(), at(ms)).pop().unwrap();
        let grant = granter.on_frame(1, 1, &request, at(ms)).unwrap();
        holder.on_frame(granter_id, granter_incarnation, &grant, at(ms));
    }

    fn leader(holder: &SupportTable, stores: &[u64]) -> LeaseBasis {
        let voter = |store: &u64| {
            let cell = holder.cell(*store);
            Voter { peer: store * 10, cell, seen: None, new: true, old: true }
        };
        LeaseBasis { term: 7, others: stores.iter().map(voter).collect(), own: (true, true), cap: None }
    }

    #[test]
    fn a_quorum_of_seen_supporters_makes_the_lease() {
        let holder = SupportTable::new(1, 1, config());
        let (two, three) = (SupportTable::new(2, 5, config()), SupportTable::new(3, 6, config()));
        let mut basis = leader(&holder, &[2, 3]);
        renew(&holder, &two, 2, 5, 1000);
        renew(&holder, &three, 3, 6, 1100);
        assert_eq!(basis.until(), Now(0));
        assert!(basis.saw(20, Seen { sent: at(1000), incarnation: 5 }));
        assert_eq!(basis.until(), at(1780));
        assert!(basis.has_quorum(at(1200)) && !basis.all_seen(at(1200)), "the third voter was not seen yet");
        assert!(basis.saw(30, Seen { sent: at(1150), incarnation: 6 }));
        assert_eq!(basis.until(), at(1880));
        assert!(basis.has_quorum(at(1200)) && basis.all_seen(at(1200)));
        assert!(basis.has_quorum(at(1790)) && basis.all_seen(at(1790)), "a store that is gone need not be seen");
        assert!(!basis.has_quorum(at(1880)));
        basis.cap = Some(at(1300));
        assert_eq!(basis.until(), at(1300));
        assert!(!basis.has_quorum(at(1200)), "a split is under way");
        basis.term = 0;
        assert_eq!(basis.until(), Now(0));
    }

    #[test]
    fn support_that_lapsed_needs_the_voter_to_be_seen_again() {
        let holder = SupportTable::new(1, 1, config());
        let two = SupportTable::new(2, 5, config());
        let mut basis = leader(&holder, &[2, 3]);
        renew(&holder, &two, 2, 5, 1000);
        basis.saw(20, Seen { sent: at(1001), incarnation: 5 });
        renew(&holder, &two, 2, 5, 1500);
        assert_eq!(basis.until(), at(2280));
        renew(&holder, &two, 2, 5, 3000);
        assert_eq!(basis.until(), Now(0));
        assert!(basis.saw(20, Seen { sent: at(2999), incarnation: 5 }));
        assert_eq!(basis.until(), Now(0));
        assert!(basis.saw(20, Seen { sent: at(3001), incarnation: 5 }));
        assert_eq!(basis.until(), at(3780));
    }

    #[test]
    fn answers_of_an_earlier_start_do_not_count_for_the_next() {
        let holder = SupportTable::new(1, 1, config());
        let mut basis = leader(&holder, &[2, 3]);
        renew(&holder, &SupportTable::new(2, 5, config()), 2, 5, 1000);
        basis.saw(20, Seen { sent: at(1001), incarnation: 5 });
        renew(&holder, &SupportTable::new(2, 6, config()), 2, 6, 1100);
        assert_eq!(basis.until(), Now(0));
        assert!(basis.saw(20, Seen { sent: at(1101), incarnation: 6 }));
        assert!(!basis.saw(20, Seen { sent: at(1200), incarnation: 5 }));
        assert_eq!(basis.until(), at(1880));
    }

    #[test]
    fn a_single_voter_always_has_its_lease_and_four_need_three() {
        let holder = SupportTable::new(1, 1, config());
        assert_eq!(leader(&holder, &[]).until(), Now(u64::MAX));
        let (two, three) = (SupportTable::new(2, 5, config()), SupportTable::new(3, 6, config()));
        let mut four = leader(&holder, &[2, 3, 4]);
        renew(&holder, &two, 2, 5, 1000);
        four.saw(20, Seen { sent: at(1001), incarnation: 5 });
        assert_eq!(four.until(), Now(0));
        renew(&holder, &three, 3, 6, 1000);
        four.saw(30, Seen { sent: at(1001), incarnation: 6 });
        assert_eq!(four.until(), at(1780));
    }

    #[test]
    fn a_joint_configuration_needs_both_quorums_and_learners_count_nothing() {
        let holder = SupportTable::new(1, 1, config());
        let tables: Vec<SupportTable> = (2..=5).map(|id| SupportTable::new(id, 5, config())).collect();
        let mut basis = leader(&holder, &[2, 3, 4, 5]);
        // Old voters 1 2 3, new ones 1 4 5.
        for voter in &mut basis.others {
            (voter.old, voter.new) = (voter.peer <= 30, voter.peer > 30);
        }
        let support = |basis: &mut LeaseBasis, store: u64| {
            renew(&holder, &tables[store as usize - 2], store, 5, 1000);
            basis.saw(store * 10, Seen { sent: at(1001), incarnation: 5 });
        };
        support(&mut basis, 2);
        support(&mut basis, 3);
        assert_eq!(basis.until(), Now(0), "the new voters are missing");
        assert!(!basis.has_quorum(at(1200)));
        support(&mut basis, 4);
        assert_eq!(basis.until(), at(1780));
        assert!(basis.has_quorum(at(1200)));
        // The change is over: 2 and 3 are learners, of the new voters one is enough beside the leader.
        basis.others.iter_mut().for_each(|voter| voter.old = voter.new);
        assert_eq!(basis.until(), at(1780));
        basis.others.iter_mut().for_each(|voter| (voter.old, voter.new) = (voter.peer == 50, voter.peer == 50));
        assert_eq!(basis.until(), Now(0), "seen learners make no lease");
        basis.own = (true, false);
        basis.others.iter_mut().for_each(|voter| (voter.old, voter.new) = (voter.peer <= 40, voter.peer == 40));
        assert_eq!(basis.until(), at(1780), "three old voters without the leader, two new ones with it");
    }
}
