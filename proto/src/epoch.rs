//! Region epochs and small conveniences on the region messages.

use std::fmt;

use crate::id::{PeerId, RegionId, StoreId};
use crate::key::KeyRange;
use crate::pb::{Peer, Region, RegionEpoch};

impl fmt::Display for RegionEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}.{}", self.conf_ver, self.version)
    }
}

impl Peer {
    /// A peer that votes.
    pub fn voter(id: u64, store_id: u64) -> Self {
        Self { id, store_id, learner: false, changing: false }
    }

    /// A peer that does not vote.
    pub fn learner(id: u64, store_id: u64) -> Self {
        Self { learner: true, ..Self::voter(id, store_id) }
    }
}

impl Region {
    /// Identity as a newtype.
    pub fn region_id(&self) -> RegionId {
        RegionId(self.id)
    }

    /// Epoch; a region without one has the zero epoch, which matches nothing.
    pub fn region_epoch(&self) -> RegionEpoch {
        self.epoch.unwrap_or_default()
    }

    /// The internal keys it holds.
    pub fn range(&self) -> KeyRange {
        KeyRange { start: self.start.clone(), end: self.end.clone() }
    }

    /// Whether a change of voters has begun and is not over (joint consensus).
    pub fn is_joint(&self) -> bool {
        self.peers.iter().any(|peer| peer.changing)
    }

    /// Its peer on `store`, if it has one.
    pub fn peer_on(&self, store: StoreId) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.store_id == store.0)
    }

    /// Its peer with this id.
    pub fn peer(&self, peer: PeerId) -> Option<&Peer> {
        self.peers.iter().find(|p| p.id == peer.0)
    }
}
