//! Who is ticked, and what wakes the others.
//!
//! Only peers that are awake are in any loop. A peer is woken by whatever happens to it (`Worker::touch`), by a change
//! between this store and another one that it leans on (`look_around`), and by the patrol.

use std::collections::btree_map::Entry;
use std::time::Instant;

use super::{Now, Worker};
use crate::support::Standing;

/// Time in which the patrol wakes every sleeper once.
pub(crate) const PATROL_TICKS: u64 = 6000;
/// Ticks between two patrols: sleepers are woken in groups, whose messages share frames.
const PATROL_EVERY: u64 = 60;

impl Worker {
    /// Something is about to happen to, or has happened to the peer of `region`: raft is asked what it wants, and the
    /// peer is ticked until it has been quiet for a while.
    pub(super) fn touch(&mut self, region: u64) {
        self.dirty.insert(region);
        if let Entry::Occupied(mut peer) = self.peers.entry(region) {
            let peer = peer.get_mut();
            if self.awake.insert(region) {
                peer.wake(Now::monotonic());
            }
            peer.stir();
        }
    }

    /// A tick for everybody who is awake.
    pub(super) fn tick(&mut self, at: Instant) {
        let now = Now::monotonic();
        if self.index == 0 {
            self.core.ask_support(now);
        }
        let env = &self.core.env;
        let elections = self.patience.runs(now, env.support.heard(), &env.timing);
        self.look_around(now);
        self.patrol(now);
        let gc = at >= self.next_gc;
        if gc {
            self.next_gc = at + self.core.env.timing.log_gc;
        }
        let Self { core, peers, awake, dirty, standings, .. } = self;
        awake.retain(|region| {
            let Some(peer) = peers.get_mut(region) else { return false };
            peer.tick(now, &core.env, elections);
            if gc {
                peer.consider_gc(&core.env, false);
            }
            let sleeps = !dirty.contains(region) && peer.may_sleep(now, &core.env, standings);
            if sleeps {
                peer.sleep(&core.env);
            }
            if peer.is_busy() {
                dirty.insert(*region);
            }
            !sleeps
        });
        metrics::gauge!("braid_raft_peers_awake", "host" => self.label.clone()).set(self.awake.len() as f64);
    }

    /// Wakes the peers that relied on what has changed between this store and others since the last tick.
    fn look_around(&mut self, now: Now) {
        let standings = self.core.env.support.standings(now);
        for standing in &standings {
            let before = self.standings.iter().find(|before| before.host == standing.host);
            let (held, promised) = changes(before, standing);
            if !held && !promised {
                continue;
            }
            for (region, peer) in &mut self.peers {
                if !peer.leans_on(standing.host, held, promised) {
                    continue;
                }
                if self.awake.insert(*region) {
                    peer.wake(now);
                }
                peer.stir();
                peer.greet();
            }
        }
        self.standings = standings;
    }

    /// Wakes the next few peers in a round over all of them.
    fn patrol(&mut self, now: Now) {
        self.ticks += 1;
        if !self.ticks.is_multiple_of(PATROL_EVERY) {
            return;
        }
        // Small numbers of peers add up to a visit over several patrols.
        self.patrol_due += self.peers.len() as u64 * PATROL_EVERY;
        let share = self.patrol_due / PATROL_TICKS;
        self.patrol_due %= PATROL_TICKS;
        if share == 0 {
            return;
        }
        let from = self.patrolled.map_or(0, |last| last + 1);
        self.patrolled = None;
        for (region, peer) in self.peers.range_mut(from..).take(share as usize) {
            if self.awake.insert(*region) {
                peer.wake(now);
                peer.stir();
                peer.greet();
            }
            self.patrolled = Some(*region);
        }
    }
}

/// Whether the support held changed, and whether a promise that was given ended.
fn changes(before: Option<&Standing>, now: &Standing) -> (bool, bool) {
    let (held, promised) = before.map_or((None, None), |before| (before.held, before.promised));
    (held != now.held, promised.is_some() && promised != now.promised)
}
