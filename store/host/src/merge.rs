//! What a merge makes of two regions. Pure; `apply` carries it out.

use braid_proto::id::RegionId;
use braid_proto::pb::RegionEpoch;

/// A frozen region: what it is to go into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// The region that is to take it in.
    pub target: RegionId,
    /// The epoch at which that one may do so, and at no other.
    pub epoch: RegionEpoch,
}
