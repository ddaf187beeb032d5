//! What was proposed here and is not answered yet. Pure.
//!
//! ```text
//!  propose ──► appended (index, term) ──► committed entry at that index: same term → Applied, else Dropped
//!     │                                   committed entry of a higher term below it: Dropped (it can win nowhere)
//!     └► refused while still leader ──► waiting, proposed again unchanged before anything later (rule O3)
//! ```
//!
//! An entry that was overwritten here is not answered yet: another replica may hold it and still win. Only a committed
//! entry decides.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb::Entry;

use crate::{Done, Outcome};

/// Bytes of proposals that may wait for the log to move on.
pub const WAITING_BYTES_MAX: usize = 16 << 20;

/// Proposals of one peer.
#[derive(Default)]
pub struct Proposals {
    /// In the log, in order of (term, index).
    pending: VecDeque<Pending>,
    /// Refused by raft for now, in order.
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
}

struct Pending {
    index: u64,
    term: u64,
    done: Done,
}

/// A proposal that raft would not take yet.
pub struct Waiting {
    /// Context of the entry.
    pub context: Bytes,
    /// Data of the entry.
    pub data: Bytes,
    /// Who wants to know.
    pub done: Done,
}

impl Proposals {
    /// The proposal is in the log here.
    pub fn appended(&mut self, index: u64, term: u64, done: Done) {
        self.pending.push_back(Pending { index, term, done });
    }

    /// Keeps a proposal for later. Gives it back when too much waits already.
    pub fn wait(&mut self, proposal: Waiting) -> Result<(), Waiting> {
        if self.waiting_bytes + proposal.data.len() > WAITING_BYTES_MAX && !self.waiting.is_empty() {
            return Err(proposal);
        }
        self.waiting_bytes += proposal.data.len();
        self.waiting.push_back(proposal);
        Ok(())
    }

    /// Puts the oldest waiting proposal back to where it was taken from.
    pub fn wait_again(&mut self, proposal: Waiting) {
        self.waiting_bytes += proposal.data.len();
        self.waiting.push_front(proposal);
    }

    /// The oldest waiting proposal.
    pub fn next_waiting(&mut self) -> Option<Waiting> {
        let next = self.waiting.pop_front()?;
        self.waiting_bytes -= next.data.len();
        Some(next)
    }

    /// Whether something waits.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether nothing at all is unanswered.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.waiting.is_empty()
    }

    /// Gives back room that is not needed now.
    pub fn shrink(&mut self) {
        self.pending.shrink_to_fit();
        self.waiting.shrink_to_fit();
    }

    /// Leadership is gone: what never reached the log certainly does not happen.
    pub fn drop_waiting(&mut self) {
        self.waiting_bytes = 0;
        for waiting in self.waiting.drain(..) {
            (waiting.done)(Outcome::Dropped);
        }
    }

    /// `entries` are committed, in order. Returns who is to be told once they are applied; tells the others at once.
    pub fn committed(&mut self, entries: &[Entry]) -> Vec<(u64, Done)> {
        let mut applied = Vec::new();
        for entry in entries {
            while let Some(front) = self.pending.front() {
                let older = front.term < entry.term;
                if !older && (front.term > entry.term || front.index > entry.index) {
                    break;
                }
                let front = self.pending.pop_front().expect("just seen");
                if front.term == entry.term && front.index == entry.index {
                    applied.push((front.index, front.done));
                } else {
                    (front.done)(Outcome::Dropped);
                }
            }
        }
        applied
    }

    /// A raft snapshot replaced the log up to `index`: what lay there cannot be judged any more.
    pub fn jumped(&mut self, index: u64) {
        let (jumped, kept) = self.pending.drain(..).partition::<Vec<_>, _>(|pending| pending.index <= index);
        self.pending = kept.into();
        for pending in jumped {
            (pending.done)(Outcome::Unknown);
        }
    }

    /// The peer goes away: what is in the log may still happen, the rest does not.
    pub fn abandon(&mut self) {
        self.drop_waiting();
        for pending in self.pending.drain(..) {
            (pending.done)(Outcome::Unknown);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    type Seen = Arc<Mutex<Vec<(u64, Outcome)>>>;

    fn done(seen: &Seen, name: u64) -> Done {
        let seen = Arc::clone(seen);
        Box::new(move |outcome| seen.lock().push((name, outcome)))
    }

    fn committed(proposals: &mut Proposals, entries: &[(u64, u64)]) {
        let entries: Vec<Entry> =
            entries.iter().map(|&(index, term)| Entry { index, term, ..Default::default() }).collect();
        for (_, done) in proposals.committed(&entries) {
            done(Outcome::Applied);
        }
    }

    #[test]
    fn the_term_at_its_index_decides() {
        let seen = Seen::default();
        let mut proposals = Proposals::default();
        for index in 7..11 {
            proposals.appended(index, 3, done(&seen, index));
        }
        committed(&mut proposals, &[(6, 3), (7, 3), (8, 3)]);
        assert_eq!(*seen.lock(), [(7, Outcome::Applied), (8, Outcome::Applied)]);
        // Index 9 went to another leader; 10 can win nowhere any more, though nothing is committed there yet.
        committed(&mut proposals, &[(9, 4)]);
        assert_eq!(seen.lock()[2..], [(9, Outcome::Dropped), (10, Outcome::Dropped)]);
        assert!(proposals.is_empty());
    }

    #[test]
    fn regained_leadership_reuses_indexes_without_confusing_terms() {
        let seen = Seen::default();
        let mut proposals = Proposals::default();
        proposals.appended(10, 3, done(&seen, 1));
        proposals.appended(8, 5, done(&seen, 2));
        committed(&mut proposals, &[(6, 3)]);
        assert!(seen.lock().is_empty());
        committed(&mut proposals, &[(7, 5), (8, 5)]);
        assert_eq!(*seen.lock(), [(1, Outcome::Dropped), (2, Outcome::Applied)]);
    }

    #[test]
    fn snapshots_and_the_end_of_a_peer_answer_unknown_but_never_for_what_was_not_in_the_log() {
        let seen = Seen::default();
        let mut proposals = Proposals::default();
        proposals.appended(8, 3, done(&seen, 8));
        proposals.appended(12, 3, done(&seen, 12));
        assert!(proposals.wait(Waiting { context: Bytes::new(), data: Bytes::new(), done: done(&seen, 99) }).is_ok());
        proposals.jumped(10);
        assert_eq!(*seen.lock(), [(8, Outcome::Unknown)]);
        proposals.abandon();
        assert_eq!(seen.lock()[1..], [(99, Outcome::Dropped), (12, Outcome::Unknown)]);
    }

    #[test]
    fn waiting_is_bounded_and_keeps_its_order() {
        let mut proposals = Proposals::default();
        let waiting = |bytes| Waiting { context: Bytes::new(), data: vec![0; bytes].into(), done: Box::new(|_| ()) };
        assert!(proposals.wait(waiting(WAITING_BYTES_MAX)).is_ok());
        assert!(proposals.wait(waiting(1)).is_err());
        let first = proposals.next_waiting().unwrap();
        assert!(proposals.wait(waiting(1)).is_ok());
        proposals.wait_again(first);
        assert_eq!(proposals.next_waiting().unwrap().data.len(), WAITING_BYTES_MAX);
        assert_eq!(proposals.next_waiting().unwrap().data.len(), 1);
    }
}
