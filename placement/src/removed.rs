//! Peers that were removed from their regions lately. Their stores are told with a heartbeat: one that was away while its
//! peer was removed, and whose leaders rest since, would find out by itself only when the patrols of leaders pass it by.
//!
//! Memory of one term of leadership. What it forgets, or a leader that dies takes along, is found by the patrols.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use braid_proto::id::StoreId;
use braid_proto::pb::{LonelyPeer, Region, RegionEpoch};

/// How long a peer has to end by itself: it usually applies its own removal.
const GRACE: Duration = Duration::from_secs(5);
/// How often a store is told: answers can be lost.
const TOLD_MAX: u32 = 3;
/// Peers of one store that are remembered. Of more than that the oldest are left to the patrols.
const PEERS_MAX: usize = 10_000;
/// Peers named in one answer.
const NAMED_MAX: usize = 1_000;

#[derive(Debug)]
struct Entry {
    peer: LonelyPeer,
    since: Instant,
    told: u32,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Removed {
    by_store: BTreeMap<StoreId, VecDeque<Entry>>,
}

impl Removed {
    /// A region is `new` now; who was in `old` and is in it no more never comes back, as ids of peers are given out once.
    pub fn compare(&mut self, old: &Region, new: &Region, now: Instant) {
        let conf_ver = new.region_epoch().conf_ver;
        if old.region_epoch().conf_ver >= conf_ver {
            return;
        }
        for peer in old.peers.iter().filter(|peer| !new.peers.iter().any(|kept| kept.id == peer.id)) {
            // The last configuration that may have had it: whoever has applied a later one has seen to it itself.
            let epoch = Some(RegionEpoch { conf_ver: conf_ver - 1, ..new.region_epoch() });
            let peer_id = peer.id;
            let entries = self.by_store.entry(StoreId(peer.store_id)).or_default();
            if entries.len() >= PEERS_MAX {
                entries.pop_front();
            }
            entries.push_back(Entry { peer: LonelyPeer { region_id: new.id, peer_id, epoch }, since: now, told: 0 });
        }
    }

    /// What a store is told now.
    pub fn tell(&mut self, store: StoreId, now: Instant) -> Vec<LonelyPeer> {
        let Some(entries) = self.by_store.get_mut(&store) else { return Vec::new() };
        let due = entries.iter_mut().take_while(|entry| now.duration_since(entry.since) >= GRACE).take(NAMED_MAX);
        let told = due.map(|entry| {
            entry.told += 1;
            entry.peer
        });
        let told = told.collect();
        entries.retain(|entry| entry.told < TOLD_MAX);
        if entries.is_empty() {
            self.by_store.remove(&store);
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use braid_proto::pb::Peer;

    use super::*;

    fn region(conf_ver: u64, peers: &[(u64, u64)]) -> Region {
        Region {
            id: 7,
            epoch: Some(RegionEpoch { conf_ver, version: 3 }),
            peers: peers.iter().map(|(peer, store)| Peer::voter(*peer, *store)).collect(),
            ..Region::default()
        }
    }

    #[test]
    fn who_is_in_a_region_no_more_is_named_to_its_store_some_times() {
        let (mut removed, now) = (Removed::default(), Instant::now());
        removed.compare(&region(4, &[(71, 1), (72, 2)]), &region(6, &[(71, 1), (73, 3)]), now);
        // Neither an older word nor the same one says who is gone.
        removed.compare(&region(6, &[(71, 1)]), &region(6, &[]), now);
        removed.compare(&region(9, &[(71, 1)]), &region(8, &[]), now);
        let later = now + GRACE;
        assert_eq!(removed.tell(StoreId(2), later - Duration::from_millis(1)), [], "it may still end by itself");
        assert_eq!(removed.tell(StoreId(1), later), []);
        let gone = LonelyPeer { region_id: 7, peer_id: 72, epoch: Some(RegionEpoch { conf_ver: 5, version: 3 }) };
        for _ in 0..TOLD_MAX {
            assert_eq!(removed.tell(StoreId(2), later), [gone]);
        }
        assert_eq!(removed.tell(StoreId(2), later), []);
        assert!(removed.by_store.is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut removed, now) = (Removed::default(), Instant::now());
        for peer in 1..=PEERS_MAX as u64 + 5 {
            removed.compare(&region(peer, &[(peer, 2)]), &region(peer + 1, &[]), now);
        }
        assert_eq!(removed.by_store[&StoreId(2)].len(), PEERS_MAX);
        let told = removed.tell(StoreId(2), now + GRACE);
        assert_eq!((told.len(), told[0].peer_id), (NAMED_MAX, 6));
    }
}
