//! What a split makes of a region. Pure; `apply` carries it out.

use braid_proto::id::{PeerId, RegionId};
use braid_proto::pb::{Peer, Region, RegionEpoch};
use bytes::Bytes;

use crate::meta::Split;

/// A split as the leader is asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitSpec {
    /// First key of the child, which takes everything from here to the region's end.
    pub key: Bytes,
    /// The child's id: never used before.
    pub child_id: RegionId,
    /// The child's peers, one for each peer of the parent in its order: never used before.
    pub child_peer_ids: Vec<u64>,
}

/// Both halves of `region`, or why it cannot be split so. Decides alike on every replica: it sees replicated state only.
pub fn halves(region: &Region, split: &Split) -> Result<(Region, Region), String> {
    let epoch = region.region_epoch();
    if epoch.version != split.version {
        return Err(format!("proposed under version {}, the region is at {epoch}", split.version));
    }
    if region.is_joint() {
        return Err("a change of voters is under way".to_owned());
    }
    if split.key == region.start || !region.range().contains(&split.key) {
        return Err("the key does not lie inside the region, or is its first".to_owned());
    }
    if split.child_peer_ids.len() != region.peers.len() {
        return Err(format!("{} peer ids for {} peers", split.child_peer_ids.len(), region.peers.len()));
    }
    let mut ids: Vec<u64> = split.child_peer_ids.clone();
    ids.sort_unstable();
    ids.dedup();
    let fresh = |id: u64| PeerId(id).is_valid() && region.peer(PeerId(id)).is_none();
    if ids.len() != region.peers.len() || !ids.into_iter().all(fresh) {
        return Err("the child's peer ids are not new and distinct".to_owned());
    }
    if !RegionId(split.child_id).is_valid() || split.child_id == region.id {
        return Err("the child needs an id of its own".to_owned());
    }
    let epoch = Some(RegionEpoch { version: epoch.version + 1, ..epoch });
    let peers = region.peers.iter().zip(&split.child_peer_ids);
    let child = Region {
        id: split.child_id,
        start: split.key.clone(),
        end: region.end.clone(),
        epoch,
        peers: peers.map(|(peer, id)| Peer { id: *id, ..*peer }).collect(),
    };
    let parent = Region { end: split.key.clone(), epoch, ..region.clone() };
    Ok((parent, child))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> Region {
        let peer = |id, store_id| Peer { learner: store_id == 3, ..Peer::voter(id, store_id) };
        Region {
            id: 1,
            start: "b".into(),
            end: "".into(),
            epoch: Some(RegionEpoch { conf_ver: 4, version: 2 }),
            peers: vec![peer(11, 1), peer(12, 2), peer(13, 3)],
        }
    }

    fn split(key: &'static str) -> Split {
        Split { key: key.into(), child_id: 2, child_peer_ids: vec![21, 22, 23], version: 2 }
    }

    #[test]
    fn the_child_takes_the_right_half_with_its_own_peers() {
        let (parent, child) = halves(&region(), &split("m")).unwrap();
        assert_eq!((&parent.start[..], &parent.end[..]), (&b"b"[..], &b"m"[..]));
        assert_eq!((&child.start[..], &child.end[..]), (&b"m"[..], &b""[..]));
        assert_eq!(parent.epoch, Some(RegionEpoch { conf_ver: 4, version: 3 }));
        assert_eq!((child.epoch, child.id), (parent.epoch, 2));
        assert_eq!(parent.peers, region().peers);
        assert_eq!(child.peers[2], Peer::learner(23, 3));
    }

    #[test]
    fn a_region_between_two_sets_of_voters_is_not_split() {
        let mut joint = region();
        joint.peers[2].changing = true;
        assert!(halves(&joint, &split("m")).unwrap_err().contains("change of voters"));
    }

    #[test]
    fn wrong_splits_change_nothing() {
        for wrong in [
            split("b"),
            split("a"),
            Split { version: 1, ..split("m") },
            Split { version: 3, ..split("m") },
            Split { child_peer_ids: vec![21, 22], ..split("m") },
            Split { child_peer_ids: vec![21, 22, 22], ..split("m") },
            Split { child_peer_ids: vec![21, 22, 11], ..split("m") },
            Split { child_peer_ids: vec![21, 22, 0], ..split("m") },
            Split { child_id: 1, ..split("m") },
        ] {
            assert!(halves(&region(), &wrong).is_err(), "{wrong:?}");
        }
    }
}
