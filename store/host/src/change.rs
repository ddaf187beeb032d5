//! What a change of peers makes of a region, and what raft is told of it. Pure; `apply` carries it out.
//!
//! ```text
//!  add a learner ──► it catches up ──► promote it ──────────────────────────────► demote another one ──► remove that
//!                                      └── several voters at once: joint (both sets decide) ──► leave ──┘
//! ```
//!
//! In a joint configuration a peer that is `changing` counts the other way round in the old set of voters. Entering and
//! leaving are two entries; whoever leads between them proposes the second one.

use std::fmt;

use braid_proto::id::{PeerId, StoreId};
use braid_proto::pb::{Peer, Region, RegionEpoch};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};

use crate::meta::{Admin, Change};

/// A change of a region's peers, as its leader is asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// A new peer, which receives the data and does not vote. Its id was never used before.
    AddLearner(Peer),
    /// Learners become voters and voters become learners, all at once. More than one of them: by a joint configuration.
    Voters {
        /// Stores whose learners become voters.
        promote: Vec<StoreId>,
        /// Stores whose voters become learners; never the leader's.
        demote: Vec<StoreId>,
    },
    /// The learner on this store goes, and its data with it.
    Remove(StoreId),
}

/// Called exactly once. Ok: applied here (for several voters: the joint configuration is entered; the leader leaves it by
/// itself). Err: why it was not done, or that nobody here knows.
pub type Changed = Box<dyn FnOnce(Result<(), ChangeRefused>) + Send + 'static>;

/// Why a change of peers was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeRefused {
    /// This peer does not lead in the given term.
    NotLeader,
    /// The region is not at the given epoch.
    Epoch,
    /// It never makes sense for this region.
    Invalid(String),
    /// Something stands in its way for now.
    NotNow(String),
    /// Nobody here can tell whether it happened: the peer went away meanwhile.
    Unknown,
}

impl fmt::Display for ChangeRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLeader => f.write_str("this peer does not lead"),
            Self::Epoch => f.write_str("the region has changed meanwhile"),
            Self::Invalid(why) | Self::NotNow(why) => f.write_str(why),
            Self::Unknown => f.write_str("the outcome is not known"),
        }
    }
}

/// Whether a peer has a vote in any set of voters.
pub fn votes(peer: &Peer) -> bool {
    votes_new(peer) || votes_old(peer)
}

/// Whether a peer votes in the set of voters that stays.
pub fn votes_new(peer: &Peer) -> bool {
    !peer.learner
}

/// Whether a peer votes in the set before the change; without a change the same.
pub fn votes_old(peer: &Peer) -> bool {
    peer.learner == peer.changing
}

/// The raft configuration that a region's peers make.
pub fn conf_state(peers: &[Peer]) -> ConfState {
    let ids = |which: &dyn Fn(&Peer) -> bool| -> Vec<u64> {
        peers.iter().filter(|peer| which(peer)).map(|peer| peer.id).collect()
    };
    let joint = peers.iter().any(|peer| peer.changing);
    ConfState {
        voters: ids(&votes_new),
        learners: ids(&|peer| peer.learner && !peer.changing),
        voters_outgoing: if joint { ids(&votes_old) } else { Vec::new() },
        learners_next: ids(&|peer| peer.learner && peer.changing),
        ..ConfState::default()
    }
}

/// The log entry for `change` of `region`, or why it never makes sense. What depends on more than the region (who leads,
/// who answers) is for the leader to judge.
pub fn resolve(region: &Region, change: &PeerChange) -> Result<Change, String> {
    let RegionEpoch { conf_ver, version } = region.region_epoch();
    let mut entry = Change { conf_ver, version, ..Change::default() };
    let on = |store: &StoreId| {
        let peer = region.peer_on(*store).map(|peer| peer.id);
        peer.ok_or_else(|| format!("store {} has no peer of the region", store.0))
    };
    match change {
        PeerChange::AddLearner(peer) => entry.add = Some(Peer::learner(peer.id, peer.store_id)),
        PeerChange::Voters { promote, demote } => {
            entry.promote = promote.iter().map(on).collect::<Result<_, _>>()?;
            entry.demote = demote.iter().map(on).collect::<Result<_, _>>()?;
        }
        PeerChange::Remove(store) => entry.remove = on(store)?,
    }
    changed(region, &entry)?;
    Ok(entry)
}

/// The entry that leaves the joint configuration of `region`.
pub fn leave(region: &Region) -> Change {
    let RegionEpoch { conf_ver, version } = region.region_epoch();
    Change { conf_ver, version, leave: true, ..Change::default() }
}

/// `region` after `change`, or why it cannot be. Decides alike on every replica: it sees replicated state only.
pub fn changed(region: &Region, change: &Change) -> Result<Region, String> {
    let epoch = region.region_epoch();
    if (epoch.conf_ver, epoch.version) != (change.conf_ver, change.version) {
        return Err(format!("proposed under e{}.{}, the region is at {epoch}", change.conf_ver, change.version));
    }
    if region.is_joint() != change.leave {
        return Err(
            if change.leave { "no change of voters is under way" } else { "a change of voters is under way" }.into()
        );
    }
    let mut peers = region.peers.clone();
    let voters = change.promote.len() + change.demote.len();
    let kinds = [change.add.is_some(), change.remove != 0, voters > 0, change.leave];
    if kinds.into_iter().filter(|kind| *kind).count() != 1 {
        return Err("a change is exactly one of: add, remove, change of voters, leave".to_owned());
    }
    if let Some(new) = change.add {
        if !PeerId(new.id).is_valid() || !StoreId(new.store_id).is_valid() {
            return Err("the new peer needs an id and a store".to_owned());
        }
        if region.peer(PeerId(new.id)).is_some() || region.peer_on(StoreId(new.store_id)).is_some() {
            return Err(format!("store {} has a peer already, or peer id {} is in use", new.store_id, new.id));
        }
        peers.push(Peer::learner(new.id, new.store_id));
    }
    if change.remove != 0 {
        let at = peers.iter().position(|peer| peer.id == change.remove).ok_or("there is no such peer")?;
        if !peers[at].learner {
            return Err("only a learner can be removed; demote it first".to_owned());
        }
        peers.remove(at);
    }
    for (ids, becomes_learner) in [(&change.promote, false), (&change.demote, true)] {
        for id in ids {
            let peer = peers.iter_mut().find(|peer| peer.id == *id).ok_or("there is no such peer")?;
            if peer.learner == becomes_learner || peer.changing {
                let is = if becomes_learner { "a learner" } else { "a voter" };
                return Err(format!("peer {id} is {is} already, or is named twice"));
            }
            peer.learner = becomes_learner;
            peer.changing = voters > 1;
        }
    }
    if change.leave {
        peers.iter_mut().for_each(|peer| peer.changing = false);
    }
    if !peers.iter().any(votes_new) {
        return Err("no voter would be left".to_owned());
    }
    let epoch = Some(RegionEpoch { conf_ver: epoch.conf_ver + 1, ..epoch });
    Ok(Region { epoch, peers, ..region.clone() })
}

/// What raft is told of `change`; with `entry` as its context it is the data of the log entry.
pub fn conf_change(change: &Change) -> ConfChangeV2 {
    let single =
        |kind: ConfChangeType, id: u64| ConfChangeSingle { change_type: kind, node_id: id, ..Default::default() };
    let mut changes: Vec<ConfChangeSingle> = Vec::new();
    changes.extend(change.add.map(|peer| single(ConfChangeType::AddLearnerNode, peer.id)));
    changes.extend((change.remove != 0).then(|| single(ConfChangeType::RemoveNode, change.remove)));
    changes.extend(change.promote.iter().map(|id| single(ConfChangeType::AddNode, *id)));
    changes.extend(change.demote.iter().map(|id| single(ConfChangeType::AddLearnerNode, *id)));
    let joint = changes.len() > 1;
    let transition = if joint { ConfChangeTransition::Explicit } else { ConfChangeTransition::Auto };
    ConfChangeV2 { transition, changes: changes.into(), ..Default::default() }
}

/// Context and data of the log entry: raft reads the data, the host what lies in its context.
pub fn encode(change: &Change) -> (bytes::Bytes, bytes::Bytes) {
    let (context, own) = Admin::Change(change.clone()).encode();
    let mut conf_change = conf_change(change);
    conf_change.context = own;
    (context, conf_change.write_to_bytes().expect("it has no required fields").into())
}

/// Reads [`encode`]'s bytes.
pub fn decode(context: &[u8], data: &bytes::Bytes) -> Result<Change, String> {
    let wrong = |error: protobuf::ProtobufError| format!("change of peers: {error}");
    let conf_change = ConfChangeV2::parse_from_carllerche_bytes(data).map_err(wrong)?;
    match Admin::decode(context, &conf_change.context)? {
        Some(Admin::Change(change)) => Ok(change),
        other => Err(format!("change of peers: holds {other:?}")),
    }
}

#[cfg(test)]
mod tests;
