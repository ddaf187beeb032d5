//! Leases of the in-memory cluster: records, what regions remember of them, and revocations that are done at once. Time
//! stands still unless a test says how much is left.

use braid_proto::error;
use braid_proto::etcd::mvccpb::KeyValue;
use braid_proto::key::{KeyRange, lease_key, user_key};
use braid_proto::pb::{
    AttachLeaseResponse, AttachedKeysRequest, AttachedKeysResponse, GrantLeaseResponse, KeepLeaseResponse, LeaseRange,
    LeaseStateResponse, ListLeasesResponse, ListedLease, Region, RevokeLeaseResponse, region_request, region_response,
};

use super::{State, World};

/// Keys that a region names at most in one answer.
const NAMED_MAX: usize = 100;

/// A lease.
pub struct Held {
    pub ttl: i64,
    pub left_ms: i64,
    ranges: Vec<KeyRange>,
}

impl World {
    /// Grants a lease as if a client had.
    pub fn grant(&self, id: i64, ttl: i64) {
        let held = Held { ttl, left_ms: ttl * 1_000, ranges: Vec::new() };
        self.state.lock().leases.insert(id, held);
    }

    /// From now on so much is left of a lease.
    pub fn set_left(&self, id: i64, left_ms: i64) {
        self.state.lock().leases.get_mut(&id).expect("a lease").left_ms = left_ms;
    }

    /// Ids and seconds of all leases.
    pub fn leases(&self) -> Vec<(i64, i64)> {
        self.state.lock().leases.iter().map(|(id, held)| (*id, held.ttl)).collect()
    }

    /// Ends a lease with its keys.
    pub fn expire(&self, id: i64) {
        let mut state = self.state.lock();
        assert!(state.revoke(id), "there is such a lease");
        self.happened.send_replace(state.revision);
    }

    /// The leaders of all regions forget what is attached, as new ones have not heard of it.
    pub fn forget_attached(&self) {
        self.state.lock().attached.clear();
    }
}

impl State {
    pub(super) fn lease_op(&mut self, region: &Region, op: region_request::Op) -> region_response::Result {
        use region_response::Result as Answer;
        let revision = self.revision;
        match op {
            region_request::Op::GrantLease(grant) => {
                assert!(region.range().contains(&lease_key(grant.id)), "asked of another region");
                if self.leases.contains_key(&grant.id) {
                    return Answer::Error(error::LEASE_EXISTS.into());
                }
                let held = Held { ttl: grant.ttl, left_ms: grant.ttl * 1_000, ranges: vec![region.range()] };
                self.leases.insert(grant.id, held);
                self.attached.insert((region.id, grant.id));
                Answer::GrantLease(GrantLeaseResponse { revision })
            }
            region_request::Op::KeepLease(keep) => {
                assert!(region.range().contains(&lease_key(keep.id)), "asked of another region");
                let kept = self.leases.get_mut(&keep.id).map(|held| {
                    held.left_ms = held.ttl * 1_000;
                    held.ttl
                });
                Answer::KeepLease(KeepLeaseResponse { ttl: kept.unwrap_or(0), revision })
            }
            region_request::Op::RevokeLease(revoke) => match self.revoke(revoke.id) {
                true => Answer::RevokeLease(RevokeLeaseResponse { revision: self.revision }),
                false => Answer::Error(error::LEASE_NOT_FOUND.into()),
            },
            region_request::Op::LeaseState(asked) => {
                let Some(held) = self.leases.get(&asked.id) else {
                    return Answer::LeaseState(LeaseStateResponse { revision, ..LeaseStateResponse::default() });
                };
                let range = |range: &KeyRange| LeaseRange { start: range.start.clone(), end: range.end.clone() };
                let ranges = held.ranges.iter().map(range).collect();
                let ttl = held.left_ms / 1_000;
                Answer::LeaseState(LeaseStateResponse { granted_ttl: held.ttl, ttl, ranges, revision })
            }
            region_request::Op::ListLeases(_) => {
                let here = self.leases.iter().filter(|(id, _)| region.range().contains(&lease_key(**id)));
                let leases = here.map(|(id, held)| ListedLease { id: *id, left_ms: held.left_ms }).collect();
                Answer::ListLeases(ListLeasesResponse { leases, revision })
            }
            region_request::Op::AttachLease(attach) => {
                let found = self.attach_own(region.id, [attach.id]);
                Answer::AttachLease(AttachLeaseResponse { found })
            }
            region_request::Op::AttachedKeys(asked) => Answer::AttachedKeys(self.attached_keys(region, &asked)),
            other => panic!("no proxy asks {other:?}"),
        }
    }

    /// Registers a region's range with leases; false: one does not exist.
    pub(super) fn attach_own(&mut self, region: u64, leases: impl IntoIterator<Item = i64>) -> bool {
        let (own, _) = self.regions.iter().find(|(candidate, _)| candidate.id == region).expect("a region");
        let range = own.range();
        for id in leases.into_iter().filter(|id| *id != 0) {
            let Some(held) = self.leases.get_mut(&id) else { return false };
            if !held.ranges.iter().any(|known| known.contains_range(&range)) {
                held.ranges.push(range.clone());
            }
            self.attached.insert((region, id));
        }
        true
    }

    fn attached_keys(&self, region: &Region, asked: &AttachedKeysRequest) -> AttachedKeysResponse {
        let live = self.keys.keys().filter_map(|key| self.get(key));
        let mine = live.filter(|kv| kv.lease == asked.lease).map(|kv| user_key(&kv.key));
        let keys: Vec<_> = mine.filter(|key| region.range().contains(key)).collect();
        AttachedKeysResponse {
            count: keys.len() as i64,
            first: keys.first().cloned().unwrap_or_default(),
            last: keys.last().cloned().unwrap_or_default(),
            keys: if keys.len() > NAMED_MAX { Vec::new() } else { keys },
            revision: self.revision,
        }
    }

    fn revoke(&mut self, id: i64) -> bool {
        if self.leases.remove(&id).is_none() {
            return false;
        }
        self.attached.retain(|(_, lease)| *lease != id);
        let live = self.keys.keys().filter_map(|key| self.get(key));
        let gone: Vec<_> = live.filter(|kv| kv.lease == id).map(|kv| kv.key.clone()).collect();
        self.revision += i64::from(!gone.is_empty());
        for key in gone {
            let tombstone = KeyValue { key: key.clone(), mod_revision: self.revision, ..KeyValue::default() };
            self.keys.entry(key).or_default().push(tombstone);
        }
        true
    }
}
