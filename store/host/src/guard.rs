//! When a peer may vote and campaign: what makes leader leases between stores true (rule O8). Pure.
//!
//! A store that supports another one promises that its peers elect nobody against the leaders there. A peer keeps the
//! promise for the leader it follows:
//!
//! 1. It remembers the leader's peer, term, host and the incarnation of that host with every message the leader sends.
//! 2. While the promise to that host and incarnation stands, it drops vote requests of others and does not campaign.
//! 3. The promise ends for this region alone when the leader itself shows that it does not lead that term any more, or
//!    when somebody else leads a later term (which a quorum must have elected after the promise counted).
//! 4. A leader that hands over gave up its lease for the term before it said so: its votes pass.
//!
//! A restarted process has forgotten its promises, so it keeps still for longer than any of them could last.

use raft::CAMPAIGN_TRANSFER;
use raft::eraftpb::{Message, MessageType};

/// The leader a peer follows, or followed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Followed {
    /// Its peer.
    pub peer: u64,
    /// The term it leads.
    pub term: u64,
    /// Its host.
    pub host: u64,
    /// The start of that host that leads; support for another one proves nothing.
    pub incarnation: u64,
}

/// The guard of one peer. Times are nanoseconds of the host's monotonic clock.
#[derive(Debug)]
pub struct VoteGuard {
    followed: Option<Followed>,
    /// No vote before: a promise of an earlier life of this process may stand.
    votes_from: u64,
    /// No campaign before.
    campaigns_from: u64,
}

/// Whether a message comes from a leader of its term.
pub fn from_leader(message: &Message) -> bool {
    matches!(
        message.get_msg_type(),
        MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot | MessageType::MsgTimeoutNow
    )
}

/// Whether a message asks for a vote, or whether one would be given.
pub fn asks_for_vote(message: &Message) -> bool {
    matches!(message.get_msg_type(), MessageType::MsgRequestVote | MessageType::MsgRequestPreVote)
}

impl VoteGuard {
    /// A peer that follows nobody yet.
    pub fn new(votes_from: u64, campaigns_from: u64) -> Self {
        Self { followed: None, votes_from, campaigns_from }
    }

    /// Whether `message` may be stepped. `promised` tells whether this store supports (host, incarnation) now.
    pub fn admits(&mut self, message: &Message, now: u64, promised: impl Fn(u64, u64) -> bool) -> bool {
        let Some(followed) = self.followed else {
            return !asks_for_vote(message) || is_transfer(message) || now >= self.votes_from;
        };
        if message.from == followed.peer && message.term > followed.term && !from_leader(message) {
            // It asks for votes itself, or answers out of a later term: it does not lead any more.
            self.followed = None;
            return !asks_for_vote(message) || is_transfer(message) || now >= self.votes_from;
        }
        if !asks_for_vote(message) || is_transfer(message) {
            return true;
        }
        now >= self.votes_from && !promised(followed.host, followed.incarnation)
    }

    /// The peer follows this leader after having stepped a message of it.
    pub fn follows(&mut self, followed: Followed) {
        if self.followed.is_none_or(|known| known.term <= followed.term) {
            self.followed = Some(followed);
        }
    }

    /// Takes over what an earlier object of the same peer promised.
    pub fn inherit(&mut self, earlier: &VoteGuard) {
        self.followed = earlier.followed;
    }

    /// The peer leads: it follows nobody, and what it promised before belongs to an older term.
    pub fn leads(&mut self) {
        self.followed = None;
    }

    /// The leader the peer follows, or followed last.
    pub fn followed(&self) -> Option<Followed> {
        self.followed
    }

    /// Whether the promise to the followed leader stands.
    pub fn bound(&self, promised: impl Fn(u64, u64) -> bool) -> bool {
        self.followed.is_some_and(|followed| promised(followed.host, followed.incarnation))
    }

    /// Whether the election clock may run.
    pub fn may_campaign(&self, now: u64) -> bool {
        now >= self.campaigns_from
    }
}

/// A vote request that follows a leader's own MsgTimeoutNow.
fn is_transfer(message: &Message) -> bool {
    message.get_msg_type() == MessageType::MsgRequestVote && message.context == CAMPAIGN_TRANSFER
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADER: Followed = Followed { peer: 1, term: 7, host: 11, incarnation: 3 };

    fn message(kind: MessageType, from: u64, term: u64) -> Message {
        Message { msg_type: kind, from, term, ..Default::default() }
    }

    fn bound() -> VoteGuard {
        let mut guard = VoteGuard::new(100, 100);
        guard.follows(LEADER);
        guard
    }

    fn promised(host: u64, incarnation: u64) -> bool {
        (host, incarnation) == (11, 3)
    }

    #[test]
    fn nobody_else_gets_a_vote_while_the_promise_stands() {
        let mut guard = bound();
        for kind in [MessageType::MsgRequestVote, MessageType::MsgRequestPreVote] {
            assert!(!guard.admits(&message(kind, 2, 8), 200, promised));
            assert!(guard.admits(&message(kind, 2, 8), 200, |_, _| false));
        }
        assert!(guard.bound(promised));
        // A higher term from a third peer moves raft's term but not the promise.
        assert!(guard.admits(&message(MessageType::MsgAppendResponse, 2, 9), 200, promised));
        assert!(!guard.admits(&message(MessageType::MsgRequestVote, 2, 10), 200, promised));
    }

    #[test]
    fn the_promise_is_for_one_start_of_the_leaders_host() {
        let mut guard = bound();
        assert!(guard.admits(&message(MessageType::MsgRequestVote, 2, 8), 200, |host, i| (host, i) == (11, 4)));
    }

    #[test]
    fn a_leader_that_asks_for_votes_ends_its_own_promise() {
        let mut guard = bound();
        assert!(guard.admits(&message(MessageType::MsgRequestPreVote, 1, 8), 200, promised));
        assert!(guard.admits(&message(MessageType::MsgRequestVote, 2, 9), 200, promised));
        let mut guard = bound();
        assert!(guard.admits(&message(MessageType::MsgAppendResponse, 1, 9), 200, promised));
        assert!(!guard.bound(promised));
    }

    #[test]
    fn a_handover_passes() {
        let mut guard = bound();
        let mut vote = message(MessageType::MsgRequestVote, 2, 8);
        vote.context = CAMPAIGN_TRANSFER.into();
        assert!(guard.admits(&vote, 0, promised));
        assert!(guard.admits(&message(MessageType::MsgTimeoutNow, 1, 7), 0, promised));
    }

    #[test]
    fn a_restarted_process_keeps_still() {
        let mut guard = VoteGuard::new(100, 100);
        assert!(!guard.admits(&message(MessageType::MsgRequestVote, 2, 8), 99, |_, _| false));
        assert!(!guard.may_campaign(99));
        assert!(guard.admits(&message(MessageType::MsgAppend, 2, 8), 99, |_, _| false));
        guard.follows(LEADER);
        assert!(!guard.admits(&message(MessageType::MsgRequestVote, 2, 8), 99, |_, _| false));
        assert!(guard.admits(&message(MessageType::MsgRequestVote, 2, 8), 100, |_, _| false));
        assert!(guard.may_campaign(100));
    }

    #[test]
    fn a_peer_that_is_replaced_keeps_its_promise() {
        let mut guard = VoteGuard::new(0, 0);
        guard.inherit(&bound());
        assert!(!guard.admits(&message(MessageType::MsgRequestVote, 2, 8), 200, promised));
    }

    #[test]
    fn a_late_message_of_an_older_leader_does_not_replace_a_newer_one() {
        let mut guard = bound();
        guard.follows(Followed { peer: 2, term: 6, host: 12, incarnation: 1 });
        assert!(guard.bound(promised));
        guard.follows(Followed { peer: 2, term: 8, host: 12, incarnation: 1 });
        assert!(!guard.bound(promised));
    }
}
