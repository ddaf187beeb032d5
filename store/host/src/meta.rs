//! What a host persists beside entries and the regions' data: the exact bytes of each key, in both engines.
//!
//! RocksDB, column family `host`:
//!
//! | key                          | value                                                                       |
//! |------------------------------|-----------------------------------------------------------------------------|
//! | `01`                         | [`Ident`], protobuf                                                         |
//! | `02`                         | incarnation, u64 big endian                                                 |
//! | `10` region id (u64 BE) `01` | [`RegionState`], protobuf                                                   |
//! | `10` region id (u64 BE) `02` | [`ApplyState`], fixed 33 bytes                                              |
//! | `10` region id (u64 BE) `03` | [`RaftState`] that a snapshot brings, fixed 33 bytes; only while installing |
//!
//! Formats grow by fields that older folders lack: a region state without `frozen` is not frozen.
//!
//! raft-engine, group = region id: key `s` → [`RaftState`], and the entries. Keys are never deleted there one by one
//! (a deleted key may come back after a purge); a group is cleaned as a whole.

use braid_proto::id::RegionId;
use braid_proto::pb::{Peer, Region, RegionEpoch, SnapshotManifest};
use bytes::Bytes;
use prost::Message;
use raft::eraftpb::HardState;

use crate::merge::Frozen;

/// Column family of the keys above.
pub const CF_HOST: &str = "host";
/// Format of the folder: of everything above, and of what the state machines of this program keep beside it. Raised with
/// every change that older data or an older program does not go with.
///
/// | format | new in it                                                                                              |
/// |--------|--------------------------------------------------------------------------------------------------------|
/// | 2      | transactions over regions and their rows, ends of history rows, records of leases and their index      |
/// | 3      | changes of peers in the log, tombstones of removed peers                                               |
pub const FORMAT: u32 = 3;
/// Index and term that a region's log begins after. Not 0: a peer at index 0 knows nothing and needs a snapshot, so a
/// fresh child of a split and an empty peer cannot be confused.
pub const INITIAL_INDEX: u64 = 5;
/// See [`INITIAL_INDEX`].
pub const INITIAL_TERM: u64 = 5;
/// Key of [`RaftState`] in the log engine.
pub const RAFT_STATE_KEY: &[u8] = b"s";

/// A key of column family `host`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// `01`
    Ident,
    /// `02`
    Incarnation,
    /// `10 <region> 01`
    RegionState(u64),
    /// `10 <region> 02`
    ApplyState(u64),
    /// `10 <region> 03`
    SnapshotRaftState(u64),
}

const REGION: u8 = 0x10;

impl Key {
    /// The bytes.
    pub fn encode(self) -> Vec<u8> {
        let (region, kind) = match self {
            Key::Ident => return vec![0x01],
            Key::Incarnation => return vec![0x02],
            Key::RegionState(region) => (region, 1),
            Key::ApplyState(region) => (region, 2),
            Key::SnapshotRaftState(region) => (region, 3),
        };
        let mut key = Vec::with_capacity(10);
        key.push(REGION);
        key.extend_from_slice(&region.to_be_bytes());
        key.push(kind);
        key
    }

    /// Reads [`Key::encode`]'s bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x01] => Some(Key::Ident),
            [0x02] => Some(Key::Incarnation),
            [REGION, id @ .., kind] => {
                let region = u64::from_be_bytes(id.try_into().ok()?);
                match kind {
                    1 => Some(Key::RegionState(region)),
                    2 => Some(Key::ApplyState(region)),
                    3 => Some(Key::SnapshotRaftState(region)),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// First key of all regions' keys, and the first after them.
    pub fn regions() -> (Vec<u8>, Vec<u8>) {
        (vec![REGION], vec![REGION + 1])
    }
}

/// Whose folder it is. Written once, with the folder.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Ident {
    /// [`FORMAT`].
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// Cluster.
    #[prost(uint64, tag = "2")]
    pub cluster_id: u64,
    /// `pb::Domain`.
    #[prost(int32, tag = "3")]
    pub domain: i32,
    /// Store or member.
    #[prost(uint64, tag = "4")]
    pub host_id: u64,
}

/// What a peer on this host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum PeerState {
    /// Takes part.
    Normal = 0,
    /// A raft snapshot is being installed; its data is incomplete.
    Applying = 1,
    /// It was removed for good; see [`crate::destroy`].
    Tombstone = 2,
}

/// A region as this host's peer has applied it.
#[derive(Clone, PartialEq, Message)]
pub struct RegionState {
    /// Range, epoch, peers.
    #[prost(message, optional, tag = "1")]
    pub region: Option<Region>,
    /// Whether its data is complete.
    #[prost(enumeration = "PeerState", tag = "2")]
    pub state: i32,
    /// While `Applying`: folder of the snapshot's files, below the host's `snap/`.
    #[prost(string, tag = "3")]
    pub snapshot_dir: String,
    /// While `Applying`: what the folder holds.
    #[prost(message, optional, tag = "4")]
    pub manifest: Option<SnapshotManifest>,
    /// While `Applying`: the region as it was before, whose data has to go. None: the peer held nothing.
    /// `Tombstone`: the region whose data has to go. None: nothing is left of it.
    #[prost(message, optional, tag = "5")]
    pub replaced: Option<Region>,
    /// `Tombstone`: the peer, which never comes back.
    #[prost(message, optional, tag = "6")]
    pub own: Option<Peer>,
    /// `Normal`: what the region is frozen for. None: it is not.
    #[prost(message, optional, tag = "7")]
    pub frozen: Option<FrozenFor>,
    /// Regions that this one has taken in, and those that they had, by id; see [`crate::merge::absorbed`]. A peer of one of
    /// them that is found on a host is a leftover, however the ranges lie now.
    #[prost(uint64, repeated, tag = "8")]
    pub absorbed: Vec<u64>,
}

/// [`Frozen`], as it is stored.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct FrozenFor {
    /// The region that is to take it in.
    #[prost(uint64, tag = "1")]
    pub target: u64,
    /// The epoch at which that one may do so.
    #[prost(message, optional, tag = "2")]
    pub epoch: Option<RegionEpoch>,
}

impl From<Frozen> for FrozenFor {
    fn from(frozen: Frozen) -> Self {
        Self { target: frozen.target.0, epoch: Some(frozen.epoch) }
    }
}

impl From<FrozenFor> for Frozen {
    fn from(stored: FrozenFor) -> Self {
        Self { target: RegionId(stored.target), epoch: stored.epoch.unwrap_or_default() }
    }
}

impl RegionState {
    /// What stays of a peer that was removed; `data`: its data is still to go.
    pub fn tombstone(region: Region, own: Peer, data: bool) -> Self {
        let replaced = data.then(|| region.clone());
        Self {
            region: Some(region),
            state: PeerState::Tombstone as i32,
            replaced,
            own: Some(own),
            ..Default::default()
        }
    }

    /// A region that takes part, and what it has taken in.
    pub fn normal(region: Region, absorbed: &[u64]) -> Self {
        Self {
            region: Some(region),
            state: PeerState::Normal as i32,
            absorbed: absorbed.to_vec(),
            ..Default::default()
        }
    }
}

/// How far a peer has applied its log. Written in the batch that holds the applied data.
///
/// Invariant: `truncated_index <= applied_index <= committed`. The applied index is also the commit index the peer is
/// sure of after a restart: what is applied was committed, so no separate commit index is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplyState {
    /// Highest applied index. Inclusive.
    pub applied_index: u64,
    /// Term of the entry there.
    pub applied_term: u64,
    /// Highest index that may be gone from the log. Inclusive. Same on all replicas, moved by an entry.
    pub truncated_index: u64,
    /// Term of the entry there.
    pub truncated_term: u64,
}

impl ApplyState {
    /// Of a region that nothing was written to.
    pub const INITIAL: Self = Self::at(INITIAL_INDEX, INITIAL_TERM);

    /// Of a peer that holds exactly the state at (`index`, `term`) and no log before it.
    pub const fn at(index: u64, term: u64) -> Self {
        Self { applied_index: index, applied_term: term, truncated_index: index, truncated_term: term }
    }

    /// `01`, then the four fields, u64 little endian.
    pub fn encode(&self) -> [u8; 33] {
        fixed([self.applied_index, self.applied_term, self.truncated_index, self.truncated_term])
    }

    /// Reads [`Self::encode`]'s bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let [applied_index, applied_term, truncated_index, truncated_term] = unfixed(bytes)?;
        Some(Self { applied_index, applied_term, truncated_index, truncated_term })
    }
}

/// What raft must not forget. Kept for uninitialised peers too: a vote that is forgotten can be cast twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RaftState {
    /// Peer it belongs to: a later peer of the same region on this host does not inherit it.
    pub peer_id: u64,
    /// Newest term seen.
    pub term: u64,
    /// Peer voted for in `term`; 0: none.
    pub vote: u64,
    /// Highest index known to be committed when this was written; may lag.
    pub commit: u64,
}

impl RaftState {
    /// `01`, then the four fields, u64 little endian.
    pub fn encode(&self) -> [u8; 33] {
        fixed([self.peer_id, self.term, self.vote, self.commit])
    }

    /// Reads [`Self::encode`]'s bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let [peer_id, term, vote, commit] = unfixed(bytes)?;
        Some(Self { peer_id, term, vote, commit })
    }

    /// As raft wants it.
    pub fn hard_state(&self) -> HardState {
        HardState { term: self.term, vote: self.vote, commit: self.commit, ..Default::default() }
    }
}

const FIXED: u8 = 1;

fn fixed(fields: [u64; 4]) -> [u8; 33] {
    let mut bytes = [0; 33];
    bytes[0] = FIXED;
    for (slot, field) in bytes[1..].chunks_exact_mut(8).zip(fields) {
        slot.copy_from_slice(&field.to_le_bytes());
    }
    bytes
}

fn unfixed(bytes: &[u8]) -> Option<[u64; 4]> {
    let rest = bytes.strip_prefix(&[FIXED])?;
    if rest.len() != 32 {
        return None;
    }
    let mut fields = [0; 4];
    for (field, slot) in fields.iter_mut().zip(rest.chunks_exact(8)) {
        *field = u64::from_le_bytes(slot.try_into().ok()?);
    }
    Some(fields)
}

/// First byte of a raft entry's context: entries that the host itself applies. Entries without context are the machine's.
#[derive(Clone, Debug, PartialEq)]
pub enum Admin {
    /// Truncate the log.
    Compact(Compact),
    /// Split the region.
    Split(Split),
    /// Change the peers. Its entry is one of raft's own kind, see [`crate::change`].
    Change(Change),
    /// Freeze the region, which is to go into its neighbour. This and the rest: see [`crate::merge`].
    Freeze(Freeze),
    /// The region goes on by itself.
    Thaw(Thaw),
    /// Take in the neighbour.
    Merge(Merge),
    /// Raise the version.
    Bump(Bump),
}

/// The region stops for `target`.
#[derive(Clone, PartialEq, Message)]
pub struct Freeze {
    /// Epoch of the region it was proposed under; another one at apply refuses it.
    #[prost(uint64, tag = "1")]
    pub conf_ver: u64,
    /// Likewise.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// The region that is to take it in, at the epoch that the freeze is for.
    #[prost(message, optional, tag = "3")]
    pub target: Option<Region>,
}

/// The target of the freeze has left its epoch without this region.
#[derive(Clone, PartialEq, Message)]
pub struct Thaw {
    /// The target since.
    #[prost(message, optional, tag = "1")]
    pub proof: Option<Region>,
}

/// The region takes in `source`.
#[derive(Clone, PartialEq, Message)]
pub struct Merge {
    /// Epoch of the region that the source is frozen for; another one at apply refuses it.
    #[prost(message, optional, tag = "1")]
    pub epoch: Option<RegionEpoch>,
    /// As it was frozen.
    #[prost(message, optional, tag = "2")]
    pub source: Option<Region>,
}

/// One version more.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Bump {
    /// Epoch of the region that is to be left; another one at apply refuses it.
    #[prost(message, optional, tag = "1")]
    pub epoch: Option<RegionEpoch>,
}

/// Everything up to `index` may leave the log.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Compact {
    /// Inclusive.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// Term of the entry at `index`.
    #[prost(uint64, tag = "2")]
    pub term: u64,
}

/// The child takes `[key, end)`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Split {
    /// First key of the child.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// The child's id.
    #[prost(uint64, tag = "2")]
    pub child_id: u64,
    /// The child's peers, in the order of the parent's.
    #[prost(uint64, repeated, tag = "3")]
    pub child_peer_ids: Vec<u64>,
    /// Epoch version of the parent it was proposed under; another one at apply refuses it.
    #[prost(uint64, tag = "4")]
    pub version: u64,
}

/// Exactly one of: add, remove, change of voters, leave.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Change {
    /// Epoch of the region it was proposed under; another one at apply refuses it.
    #[prost(uint64, tag = "1")]
    pub conf_ver: u64,
    /// Likewise.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// New learner.
    #[prost(message, optional, tag = "3")]
    pub add: Option<Peer>,
    /// Learner that goes, by id; 0: none.
    #[prost(uint64, tag = "4")]
    pub remove: u64,
    /// Learners that become voters, by id.
    #[prost(uint64, repeated, tag = "5")]
    pub promote: Vec<u64>,
    /// Voters that become learners, by id.
    #[prost(uint64, repeated, tag = "6")]
    pub demote: Vec<u64>,
    /// A change of voters is over.
    #[prost(bool, tag = "7")]
    pub leave: bool,
}

impl Admin {
    /// Context and data of the raft entry.
    pub fn encode(&self) -> (Bytes, Bytes) {
        match self {
            Admin::Compact(compact) => (Bytes::from_static(&[1]), compact.encode_to_vec().into()),
            Admin::Split(split) => (Bytes::from_static(&[2]), split.encode_to_vec().into()),
            Admin::Change(change) => (Bytes::from_static(&[3]), change.encode_to_vec().into()),
            Admin::Freeze(freeze) => (Bytes::from_static(&[4]), freeze.encode_to_vec().into()),
            Admin::Thaw(thaw) => (Bytes::from_static(&[5]), thaw.encode_to_vec().into()),
            Admin::Merge(merge) => (Bytes::from_static(&[6]), merge.encode_to_vec().into()),
            Admin::Bump(bump) => (Bytes::from_static(&[7]), bump.encode_to_vec().into()),
        }
    }

    /// Reads a raft entry; `None` where it is none of ours, `Err` where it cannot be read.
    pub fn decode(context: &[u8], data: &Bytes) -> Result<Option<Self>, String> {
        let wrong = |error: prost::DecodeError| format!("host entry: {error}");
        match context {
            [] => Ok(None),
            [1] => Ok(Some(Admin::Compact(Compact::decode(data.clone()).map_err(wrong)?))),
            [2] => Ok(Some(Admin::Split(Split::decode(data.clone()).map_err(wrong)?))),
            [3] => Ok(Some(Admin::Change(Change::decode(data.clone()).map_err(wrong)?))),
            [4] => Ok(Some(Admin::Freeze(Freeze::decode(data.clone()).map_err(wrong)?))),
            [5] => Ok(Some(Admin::Thaw(Thaw::decode(data.clone()).map_err(wrong)?))),
            [6] => Ok(Some(Admin::Merge(Merge::decode(data.clone()).map_err(wrong)?))),
            [7] => Ok(Some(Admin::Bump(Bump::decode(data.clone()).map_err(wrong)?))),
            other => Err(format!("host entry of unknown kind {other:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_read_back() {
        for key in [
            Key::Ident,
            Key::Incarnation,
            Key::RegionState(7),
            Key::ApplyState(u64::MAX),
            Key::SnapshotRaftState(1 << 40),
        ] {
            assert_eq!(Key::decode(&key.encode()), Some(key));
        }
        assert_eq!(Key::RegionState(258).encode(), [0x10, 0, 0, 0, 0, 0, 0, 1, 2, 1]);
        assert_eq!(Key::decode(&[0x10, 1, 2]), None);
        let apply = ApplyState { applied_index: 9, applied_term: 7, truncated_index: 6, truncated_term: 5 };
        assert_eq!(ApplyState::decode(&apply.encode()), Some(apply));
        assert_eq!(ApplyState::decode(&apply.encode()[..32]), None);
        let raft = RaftState { peer_id: 1, term: 2, vote: 3, commit: u64::MAX };
        assert_eq!(RaftState::decode(&raft.encode()), Some(raft));
    }

    #[test]
    fn host_entries_read_back_and_unknown_ones_are_refused() {
        let split = Admin::Split(Split { key: "k".into(), child_id: 3, child_peer_ids: vec![4, 5], version: 2 });
        let (context, data) = split.encode();
        assert_eq!(Admin::decode(&context, &data), Ok(Some(split)));
        let epoch = Some(RegionEpoch { conf_ver: 3, version: 4 });
        let region = Some(Region { id: 8, epoch, ..Region::default() });
        for admin in [
            Admin::Freeze(Freeze { conf_ver: 1, version: 2, target: region.clone() }),
            Admin::Thaw(Thaw { proof: region.clone() }),
            Admin::Merge(Merge { epoch, source: region }),
            Admin::Bump(Bump { epoch }),
        ] {
            let (context, data) = admin.encode();
            assert_eq!(Admin::decode(&context, &data), Ok(Some(admin)));
        }
        assert_eq!(Admin::decode(&[], &data), Ok(None));
        assert!(Admin::decode(&[9], &data).is_err());
        assert!(Admin::decode(&[2], &Bytes::from_static(&[0xff])).is_err());
    }
}
