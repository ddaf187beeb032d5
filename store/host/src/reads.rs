//! Questions whether a peer still leads, answered by a quorum (raft's ReadIndex, safe variant). Pure.
//!
//! raft drops such a question without a word when leadership changes, so everything here fails with the term. Lost
//! messages are repeated by raft with every heartbeat. Questions that arrive while one is on its way wait for the next
//! (rule Q1): an answer proves nothing about what came after the question.

use std::collections::VecDeque;

/// Told once: true if the peer led at some instant after it was asked, and has applied all that was committed then.
pub type Confirmed = Box<dyn FnOnce(bool) + Send + 'static>;

/// Questions on their way at once; more of them wait together for the next one.
const ASKED_MAX: usize = 4;
/// Waiting askers beyond which new ones are refused.
const QUEUED_MAX: usize = 1 << 16;

/// The questions of one peer in one term.
#[derive(Default)]
pub struct Reads {
    queued: Vec<Confirmed>,
    asked: VecDeque<(Vec<u8>, Vec<Confirmed>)>,
    /// Answered, but not applied that far yet.
    unapplied: Vec<(u64, Vec<Confirmed>)>,
    sequence: u64,
}

impl Reads {
    /// Takes a question.
    pub fn ask(&mut self, confirmed: Confirmed) {
        if self.queued.len() >= QUEUED_MAX {
            return confirmed(false);
        }
        self.queued.push(confirmed);
    }

    /// The context of the next question to put to the quorum, if there is one. `now` leads it, see `lease`.
    pub fn next_context(&mut self, now: u64) -> Option<Vec<u8>> {
        if self.queued.is_empty() || self.asked.len() >= ASKED_MAX {
            return None;
        }
        self.sequence += 1;
        let context = [now.to_be_bytes(), self.sequence.to_be_bytes()].concat();
        self.asked.push_back((context.clone(), std::mem::take(&mut self.queued)));
        Some(context)
    }

    /// The quorum answered `context`; leadership holds for whoever has applied up to `index`.
    pub fn answered(&mut self, context: &[u8], index: u64) {
        if let Some(at) = self.asked.iter().position(|(asked, _)| asked == context) {
            // raft answers earlier questions with later ones, each with its own index; none is skipped.
            let (_, confirmed) = self.asked.remove(at).expect("just found");
            self.unapplied.push((index, confirmed));
        }
    }

    /// This peer has applied up to `index`.
    pub fn applied(&mut self, index: u64) {
        for (_, confirmed) in self.unapplied.extract_if(.., |(needed, _)| *needed <= index) {
            confirmed.into_iter().for_each(|confirmed| confirmed(true));
        }
    }

    /// Leadership of the term is gone.
    pub fn fail(&mut self) {
        let asked = self.asked.drain(..).flat_map(|(_, confirmed)| confirmed);
        let unapplied = self.unapplied.drain(..).flat_map(|(_, confirmed)| confirmed);
        for confirmed in self.queued.drain(..).chain(asked).chain(unapplied) {
            confirmed(false);
        }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.queued.is_empty() && self.asked.is_empty() && self.unapplied.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[test]
    fn later_askers_wait_for_the_next_question_and_applied_decides() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let ask = |name: u32| -> Confirmed {
            let seen = Arc::clone(&seen);
            Box::new(move |yes| seen.lock().push((name, yes)))
        };
        let mut reads = Reads::default();
        reads.ask(ask(1));
        reads.ask(ask(2));
        let first = reads.next_context(7).unwrap();
        assert!(reads.next_context(7).is_none());
        reads.ask(ask(3));
        let second = reads.next_context(7).unwrap();
        assert_ne!(first, second);
        reads.answered(&first, 20);
        reads.answered(b"unknown", 1);
        reads.applied(19);
        assert!(seen.lock().is_empty());
        reads.applied(20);
        assert_eq!(*seen.lock(), [(1, true), (2, true)]);
        reads.fail();
        assert_eq!(seen.lock()[2..], [(3, false)]);
        assert!(reads.is_empty());
    }
}
