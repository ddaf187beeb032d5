//! How followers learn what is committed.
//!
//! raft would tell them with a message of its own as soon as anything is, and hear an answer from each: twice the messages
//! that the entries themselves cost. Here the next entries carry it, and it is told apart only if none come for a moment.
//! Nobody waits for followers to apply: the leader answers, and who reads elsewhere without asking the leader reads what is
//! there. A heartbeat carries it as well, should a message be lost.

use std::time::Duration;

use super::Peer;
use crate::support::Now;

/// How long followers wait for entries that carry what is committed.
const TELL_AFTER: Duration = Duration::from_millis(3);

/// What followers were told last to be committed.
#[derive(Default)]
pub(super) struct Told {
    index: u64,
    /// Since when more is.
    behind_since: Option<Now>,
}

impl Peer {
    /// Entries are on their way to everybody, and with them what is committed now.
    pub(super) fn told_with_entries(&mut self) {
        self.told = Told { index: self.raw.raft.raft_log.committed, behind_since: None };
    }

    /// When followers are to be told what is committed; `None`: they were, or it is not this peer that tells them.
    pub fn tells_at(&mut self, now: Now) -> Option<Now> {
        let all_told = self.raw.raft.raft_log.committed <= self.told.index;
        if !self.is_leader() || all_told || self.peers.len() < 2 || self.condemned {
            self.told.behind_since = None;
            return None;
        }
        // A split or a freeze is waited for everywhere: the child has no keys, or the source no server, until it is applied.
        let patience = if self.splitting { Duration::ZERO } else { TELL_AFTER };
        Some(self.told.behind_since.get_or_insert(now).plus(patience))
    }

    /// Tells followers what is committed, unless entries have. Returns when to come again, if it is too early.
    pub fn tell(&mut self, now: Now) -> Option<Now> {
        let at = self.tells_at(now)?;
        if at > now {
            return Some(at);
        }
        self.raw.raft.bcast_append();
        self.told_with_entries();
        None
    }
}
