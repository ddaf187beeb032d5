//! Two regions become one, as their pipelines see it (rule S4, `docs/decisions/0007-merges.md`).
//!
//! ```text
//!   source   serves ──freeze──► frozen ──┬─ thaw ──► serves, as when a term begins
//!                                        └─ destroyed with the merge
//!   target   serves ──────── barrier ─── absorb ───► serves both ranges, in the same term
//! ```
//!
//! A source goes on in its own term after a thaw: raft's term is the same, so what was said in it counts still. That is what
//! it counts its items by, and which transactions it has called over. Everything else begins anew.

use braid_proto::id::Term;
use braid_proto::pb::{self, LockResponse, Refusal, Region, StoredLease, StoredLock, refusal, region_response};

use super::{Effect, Pipeline, Work, busy, refuse, reply};

/// A stretch of time in which a peer evaluates: a term, or what of it lies before or after the region was frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reign {
    /// The term.
    pub term: Term,
    count: u64,
}

impl<R, W> Pipeline<R, W> {
    /// The time in which it evaluates, if it does: another one from the next term or thaw on.
    pub fn reign(&self) -> Option<Reign> {
        self.leading.map(|term| Reign { term, count: self.reigns })
    }

    /// Whether the region is frozen here.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// The term in which this peer leads its frozen region, as raft has it: it is the one that sees the merge through.
    pub fn frozen_term(&self) -> Option<Term> {
        self.frozen_term
    }

    /// The region is frozen: it serves nothing until it is thawed. What was not proposed is refused.
    pub fn freeze(&mut self, effects: &mut Vec<Effect<R, W>>) {
        if self.gone.is_some() || std::mem::replace(&mut self.frozen, true) {
            return;
        }
        self.frozen_term = self.leading.take();
        // The term may go on one day, and with it what it has said (see `Denied`).
        let denied = std::mem::take(&mut self.denied);
        self.abandon(effects);
        self.denied = denied;
    }

    /// The region is thawed. A peer that leads it takes up its work as when its term began, with the rows of `locks` and
    /// `leases` that are applied now.
    pub fn thaw(&mut self, locks: Vec<StoredLock>, leases: Vec<(i64, StoredLease)>, effects: &mut Vec<Effect<R, W>>) {
        self.frozen = false;
        if let Some(term) = self.frozen_term.take() {
            self.on_leader(term, locks, leases, effects);
        }
    }

    /// The region has become `merged`: it has taken in a neighbour, whose `leases` are these. A peer that leads has stopped
    /// for it: nothing is in flight, and there are neither locks nor records on either side.
    ///
    /// # Panics
    /// There are.
    pub fn absorb(&mut self, merged: Region, leases: Vec<(i64, StoredLease)>, effects: &mut Vec<Effect<R, W>>) {
        if self.leading.is_some() {
            let idle = self.ready.is_empty() && self.batch.is_none() && self.entries.is_empty();
            assert!(idle && self.locks.is_empty(), "a region takes in another one in the middle of its own work");
        }
        self.on_region(merged, effects);
        if self.leading.is_none() {
            return;
        }
        let revoking = self.leases.absorb(leases, self.now);
        effects.extend(revoking.into_iter().map(|(lease, ranges)| Effect::Revoke { lease, ranges }));
    }

    /// What everybody is told while nothing can be served here. A frozen region is busy by its leader's word only: another
    /// replica may have missed that it goes on, or has ended.
    pub(super) fn unserved(&self) -> Option<Refusal> {
        match &self.gone {
            Some(refusal) => Some(refusal.clone()),
            None if self.frozen_term.is_some() => Some(busy("the region is being merged")),
            None if self.frozen => {
                Some(Refusal { reason: Some(refusal::Reason::NotLeader(pb::NotLeader { leader: self.leader })) })
            }
            None => None,
        }
    }

    /// Answers `work` of a peer that does not lead, as far as it evaluates. Who wants a lock in a frozen region must not wait with other locks in his hands: the target
    /// waits for those to go.
    pub(super) fn refuse_work(&self, to: R, work: &Work, effects: &mut Vec<Effect<R, W>>) {
        match work {
            Work::Lock(_) if self.frozen_term.is_some() => {
                let conflict = LockResponse { conflict: true, ..LockResponse::default() };
                effects.push(reply(to, region_response::Result::Lock(conflict)));
            }
            _ => effects.push(refuse(to, self.not_leader())),
        }
    }
}
