//! One step of an operator: what a region's leader is told, and what the region looks like afterwards.

use std::fmt;

use braid_proto::id::{PeerId, RegionId, StoreId};
use braid_proto::pb::Peer;
use bytes::Bytes;

use super::view::RegionView;

/// Where a region is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SplitAt {
    /// At this internal key.
    Key(Bytes),
    /// So that both halves have about the same size; the leader finds the key.
    Size,
    /// So that both halves have about the same load; the leader finds the key.
    Load,
}

/// See the module's page. Ids are invalid until the operator starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new peer that does not vote yet; done when it has caught up.
    AddLearner {
        /// Where.
        store: StoreId,
        /// Its id.
        peer: PeerId,
    },
    /// Learners become voters and voters learners, all at once, by joint consensus.
    ChangePeers {
        /// Stores whose learners become voters.
        promote: Vec<StoreId>,
        /// Stores whose voters become learners.
        demote: Vec<StoreId>,
    },
    /// A peer that does not vote goes.
    RemovePeer {
        /// Where.
        store: StoreId,
    },
    /// A voter becomes the leader.
    TransferLeader {
        /// Where.
        store: StoreId,
    },
    /// The region is cut in two. The left half keeps its id.
    Split {
        /// Where.
        at: SplitAt,
        /// Id of the right half.
        child: RegionId,
        /// Ids of its peers, in the order of the region's peers.
        child_peers: Vec<PeerId>,
    },
    /// The region's keys go to a neighbour, and the region ends.
    Merge {
        /// The neighbour.
        target: RegionId,
    },
}

impl Step {
    /// A new peer, whose id comes when the operator starts.
    pub fn add(store: StoreId) -> Self {
        Self::AddLearner { store, peer: PeerId::INVALID }
    }

    /// A split, whose ids come when the operator starts.
    pub fn split(at: SplitAt) -> Self {
        Self::Split { at, child: RegionId::INVALID, child_peers: Vec::new() }
    }

    /// How many ids it needs in a region of so many peers.
    pub fn ids_needed(&self, peers: usize) -> u64 {
        match self {
            Self::AddLearner { .. } => 1,
            Self::Split { .. } => 1 + peers as u64,
            _ => 0,
        }
    }

    /// Gives it its ids.
    pub fn name(&mut self, peers: usize, next: &mut impl FnMut() -> u64) {
        match self {
            Self::AddLearner { peer, .. } => *peer = PeerId(next()),
            Self::Split { child, child_peers, .. } => {
                *child = RegionId(next());
                *child_peers = (0..peers).map(|_| PeerId(next())).collect();
            }
            _ => {}
        }
    }

    /// Whether it copies a region's data.
    pub fn copies(&self) -> bool {
        matches!(self, Self::AddLearner { .. })
    }

    /// The peers after it, if these are the peers before it.
    pub fn change(&self, peers: &mut Shape) {
        match self {
            Self::AddLearner { store, peer } => {
                peers.0.push(Peer::learner(peer.0, store.0));
                peers.0.sort_unstable_by_key(|peer| peer.id);
            }
            Self::ChangePeers { promote, demote } => {
                for peer in &mut peers.0 {
                    let store = StoreId(peer.store_id);
                    peer.learner = (peer.learner && !promote.contains(&store)) || demote.contains(&store);
                }
            }
            Self::RemovePeer { store } => peers.0.retain(|peer| peer.store_id != store.0),
            Self::TransferLeader { .. } | Self::Split { .. } | Self::Merge { .. } => {}
        }
    }
}

/// A region's peers in an order that does not depend on who lists them.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape(pub Vec<Peer>);

impl Shape {
    /// The peers of a region as it was reported.
    pub fn of(region: &RegionView) -> Self {
        let mut peers = region.peers().to_vec();
        peers.sort_unstable_by_key(|peer| peer.id);
        Self(peers)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddLearner { store, peer } if peer.is_valid() => write!(f, "add learner {peer} on {store}"),
            Self::AddLearner { store, .. } => write!(f, "add learner on {store}"),
            Self::ChangePeers { promote, demote } => {
                let (promote, demote) = (listed(promote), listed(demote));
                match (promote.is_empty(), demote.is_empty()) {
                    (false, false) => write!(f, "promote {promote}, demote {demote}"),
                    (false, true) => write!(f, "promote {promote}"),
                    _ => write!(f, "demote {demote}"),
                }
            }
            Self::RemovePeer { store } => write!(f, "remove peer on {store}"),
            Self::TransferLeader { store } => write!(f, "transfer leader to {store}"),
            Self::Split { at: SplitAt::Key(_), .. } => f.write_str("split at a key"),
            Self::Split { at: SplitAt::Size, .. } => f.write_str("split by size"),
            Self::Split { at: SplitAt::Load, .. } => f.write_str("split by load"),
            Self::Merge { target } => write!(f, "merge into {target}"),
        }
    }
}

/// Stores in words: `s1, s2`.
pub fn listed(stores: &[StoreId]) -> String {
    stores.iter().map(StoreId::to_string).collect::<Vec<_>>().join(", ")
}
