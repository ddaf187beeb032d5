//! The last answer of every client of the sequencer, so that a repeated request gets the same block (rule N5).
//!
//! Bounded twice: who has been silent for [`SILENT_MAX`] is forgotten, and so is the most silent one when
//! [`CLIENTS_MAX`] are remembered. Forgetting is safe: a repeat then gets a new block, and the client uses only the
//! answer to its one outstanding request, so the old block becomes a hole and nothing else.

use std::collections::HashMap;
use std::time::Duration;

use braid_proto::id::{Incarnation, Revision};
use braid_proto::pb::{NumberRequest, StoredAnswer};

/// After this long without a word a client is forgotten; longer than any client waits for an answer.
pub const SILENT_MAX: Duration = Duration::from_secs(600);
/// Clients remembered at once: stores and proxies, each with every restart of those without a stable id.
pub const CLIENTS_MAX: usize = 16_384;
/// How recently a client must have asked to be named in a handover: longer than its own deadline for a request.
pub const HANDOVER_AGE_MAX: Duration = Duration::from_secs(30);

/// A block of revisions: `base + 1 ..= base + count`. Its bound is `base`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The counter before the block.
    pub base: Revision,
    /// How many numbers it has; 0: only a bound.
    pub count: u32,
}

impl Block {
    /// The counter after the block.
    pub fn last(self) -> Revision {
        Revision(self.base.0 + i64::from(self.count))
    }
}

/// What a client got last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastAnswer {
    /// Who asked.
    pub client: u64,
    /// Which of its lives.
    pub incarnation: Incarnation,
    /// Its request.
    pub seq: u64,
    /// What it got.
    pub block: Block,
}

impl From<&LastAnswer> for StoredAnswer {
    fn from(answer: &LastAnswer) -> Self {
        Self {
            client_id: answer.client,
            incarnation: answer.incarnation.0,
            seq: answer.seq,
            base: answer.block.base.0,
            count: answer.block.count,
        }
    }
}

impl From<&StoredAnswer> for LastAnswer {
    fn from(stored: &StoredAnswer) -> Self {
        Self {
            client: stored.client_id,
            incarnation: Incarnation(stored.incarnation),
            seq: stored.seq,
            block: Block { base: Revision(stored.base), count: stored.count },
        }
    }
}

/// How a request stands to what its client asked before.
#[derive(Debug, PartialEq, Eq)]
pub enum Standing {
    /// It needs a block.
    New,
    /// It was answered before.
    Repeat(Block),
    /// A later one was answered already, or the same one with another count.
    Stale(String),
}

/// The last answers.
#[derive(Debug, Default)]
pub struct Clients {
    last: HashMap<u64, Remembered>,
}

#[derive(Debug)]
struct Remembered {
    answer: LastAnswer,
    seen: Duration,
}

impl Clients {
    /// Begins with the answers of a predecessor.
    pub fn from_handover(answers: &[LastAnswer], now: Duration) -> Self {
        let remember = |answer: &LastAnswer| (answer.client, Remembered { answer: answer.clone(), seen: now });
        Self { last: answers.iter().map(remember).collect() }
    }

    /// How many are remembered.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.last.len()
    }

    /// Compares `request` with its client's last one.
    pub fn standing(&mut self, request: &NumberRequest, now: Duration) -> Standing {
        let Some(remembered) = self.last.get_mut(&request.client_id) else { return Standing::New };
        let (asked, known) = ((request.incarnation, request.seq), &remembered.answer);
        let last = (known.incarnation.0, known.seq);
        if asked > last {
            return Standing::New;
        }
        if asked < last {
            return Standing::Stale(format!(
                "request {} of {} came after request {} of {} was answered",
                asked.1,
                Incarnation(asked.0),
                last.1,
                known.incarnation
            ));
        }
        if request.count != known.block.count {
            return Standing::Stale(format!(
                "request {} was answered with {} numbers and cannot be repeated for {}",
                request.seq, known.block.count, request.count
            ));
        }
        remembered.seen = now;
        Standing::Repeat(known.block)
    }

    /// Remembers the answer to `request`.
    pub fn remember(&mut self, request: &NumberRequest, block: Block, now: Duration) {
        if self.last.len() >= CLIENTS_MAX && !self.last.contains_key(&request.client_id) {
            self.forget_most_silent();
        }
        let answer = LastAnswer {
            client: request.client_id,
            incarnation: Incarnation(request.incarnation),
            seq: request.seq,
            block,
        };
        self.last.insert(request.client_id, Remembered { answer, seen: now });
    }

    /// Forgets the clients that have been silent for long.
    pub fn forget_silent(&mut self, now: Duration) {
        self.last.retain(|_, remembered| now.saturating_sub(remembered.seen) < SILENT_MAX);
    }

    /// The answers that a successor may have to repeat, by client.
    pub fn for_handover(&self, now: Duration) -> Vec<LastAnswer> {
        let recent = |remembered: &&Remembered| now.saturating_sub(remembered.seen) < HANDOVER_AGE_MAX;
        let mut answers: Vec<_> = self.last.values().filter(recent).map(|r| r.answer.clone()).collect();
        answers.sort_by_key(|answer| answer.client);
        answers
    }

    fn forget_most_silent(&mut self) {
        let most_silent = self.last.iter().min_by_key(|(client, remembered)| (remembered.seen, **client));
        if let Some(client) = most_silent.map(|(client, _)| *client) {
            self.last.remove(&client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(client_id: u64, incarnation: u64, seq: u64, count: u32) -> NumberRequest {
        NumberRequest { client_id, incarnation, seq, count, ..Default::default() }
    }

    const BLOCK: Block = Block { base: Revision(7), count: 2 };

    #[test]
    fn a_request_is_new_repeated_or_stale_by_incarnation_then_sequence() {
        let mut clients = Clients::default();
        clients.remember(&request(1, 4, 9, 2), BLOCK, Duration::ZERO);
        let mut standing =
            |incarnation, seq, count| clients.standing(&request(1, incarnation, seq, count), Duration::ZERO);
        assert_eq!(standing(4, 9, 2), Standing::Repeat(BLOCK));
        assert_eq!(standing(4, 10, 2), Standing::New);
        assert_eq!(standing(5, 1, 2), Standing::New);
        assert!(matches!(standing(4, 8, 2), Standing::Stale(_)));
        assert!(matches!(standing(3, 10, 2), Standing::Stale(_)));
        assert!(matches!(standing(4, 9, 3), Standing::Stale(_)));
        assert_eq!(clients.standing(&request(2, 1, 1, 2), Duration::ZERO), Standing::New);
    }

    #[test]
    fn the_silent_are_forgotten_and_the_table_stays_bounded() {
        let mut clients = Clients::default();
        for client in 0..CLIENTS_MAX as u64 + 10 {
            clients.remember(&request(client, 1, 1, 2), BLOCK, Duration::from_millis(client));
        }
        assert_eq!(clients.len(), CLIENTS_MAX);
        assert_eq!(clients.standing(&request(9, 1, 1, 2), Duration::ZERO), Standing::New);
        let late = Duration::from_millis(CLIENTS_MAX as u64) + SILENT_MAX;
        assert_eq!(clients.standing(&request(10, 1, 1, 2), late), Standing::Repeat(BLOCK));
        clients.forget_silent(late);
        assert_eq!(clients.len(), 10);
        assert_eq!(clients.standing(&request(10, 1, 1, 2), late), Standing::Repeat(BLOCK));
    }

    #[test]
    fn a_handover_names_only_recent_clients() {
        let mut clients = Clients::default();
        clients.remember(&request(2, 1, 1, 2), BLOCK, HANDOVER_AGE_MAX);
        clients.remember(&request(1, 1, 1, 2), BLOCK, HANDOVER_AGE_MAX);
        clients.remember(&request(3, 1, 1, 2), BLOCK, Duration::ZERO);
        let answers = clients.for_handover(HANDOVER_AGE_MAX);
        assert_eq!(answers.iter().map(|answer| answer.client).collect::<Vec<_>>(), [1, 2]);
        let mut next = Clients::from_handover(&answers, Duration::ZERO);
        assert_eq!(next.standing(&request(1, 1, 1, 2), Duration::ZERO), Standing::Repeat(BLOCK));
    }

    #[test]
    fn a_stored_answer_reads_back() {
        let answer = LastAnswer { client: 5, incarnation: Incarnation(6), seq: 7, block: BLOCK };
        assert_eq!(LastAnswer::from(&StoredAnswer::from(&answer)), answer);
    }
}
