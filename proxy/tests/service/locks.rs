//! Locks, decisions and releases of the in-memory cluster: what stores do for transactions over several regions, without
//! waiting, without crashes, and with every share done at once.

use braid_proto::etcd::mvccpb::KeyValue;
use braid_proto::key::{KeyRange, strip_user};
use braid_proto::pb::{
    Change, DecideRequest, DecideResponse, LockRequest, LockResponse, LockToken, LockedData, TxnId, region_response,
};
use bytes::Bytes;

use super::State;

/// One lock that stands.
pub struct Held {
    txn: Option<TxnId>,
    token: LockToken,
    ranges: Vec<(KeyRange, bool)>,
    attaches: Vec<i64>,
}

impl State {
    pub(super) fn lock(&mut self, region: u64, request: &LockRequest) -> region_response::Result {
        let ranges: Vec<(KeyRange, bool)> = request
            .ranges
            .iter()
            .map(|range| (KeyRange { start: range.start.clone(), end: range.end.clone() }, range.exclusive))
            .collect();
        let hinders = |held: &Held| {
            let pairs = held.ranges.iter().flat_map(|theirs| ranges.iter().map(move |mine| (theirs, mine)));
            pairs.into_iter().any(|((their, x), (mine, y))| (*x || *y) && their.overlaps(mine))
        };
        if self.locks.iter().any(hinders) {
            return region_response::Result::Lock(LockResponse { conflict: true, ..LockResponse::default() });
        }
        let known = |lease: &i64| self.attached.contains(&(region, *lease));
        let unattached: Vec<i64> = request.attaches.iter().copied().filter(|lease| !known(lease)).collect();
        if !unattached.is_empty() {
            return region_response::Result::Lock(LockResponse { unattached, ..LockResponse::default() });
        }
        self.tokens += 1;
        let token = LockToken { region_id: region, term: 1, seq: self.tokens };
        let data = request.reads.iter().map(|read| {
            let span = KeyRange { start: read.start.clone(), end: read.end.clone() };
            let kvs = self.alive(&span);
            let count = kvs.len() as i64;
            LockedData { kvs: if read.count_only { Vec::new() } else { kvs }, count }
        });
        let data = data.collect();
        self.locks.push(Held { txn: request.txn, token, ranges, attaches: request.attaches.clone() });
        region_response::Result::Lock(LockResponse {
            conflict: false,
            token: Some(token),
            data,
            unattached: Vec::new(),
        })
    }

    pub(super) fn release(&mut self, region: u64, txn: Option<TxnId>) {
        self.locks.retain(|held| held.txn != txn || held.token.region_id != region);
    }

    pub(super) fn decide(&mut self, request: &DecideRequest) -> region_response::Result {
        let tokens: Vec<_> = request.shares.iter().filter_map(|share| share.token).collect();
        if tokens.iter().any(|token| !self.locks.iter().any(|held| held.token == *token)) {
            return region_response::Result::Decide(DecideResponse { over: true, revision: 0 });
        }
        let revision = self.revision + 1;
        let mut changes: Vec<(u32, Change)> = Vec::new();
        for share in &request.shares {
            let held = self.locks.iter().find(|held| Some(held.token) == share.token).expect("looked for above");
            let named = share.changes.iter().all(|change| change.lease == 0 || held.attaches.contains(&change.lease));
            assert!(named, "a lock holds every lease that is put under it");
            changes.extend(share.subs.iter().copied().zip(share.changes.iter().cloned()));
            for wipe in &share.wipes {
                let span = KeyRange { start: wipe.start.clone(), end: wipe.end.clone() };
                let keys = self.alive(&span).into_iter().map(|kv| braid_proto::key::user_key(&kv.key));
                let gone = keys.map(|key| Change { key, delete: true, ..Change::default() });
                changes.extend((wipe.first_sub..).zip(gone));
            }
        }
        changes.sort_by_key(|(sub, _)| *sub);
        let subs: Vec<u32> = changes.iter().map(|(sub, _)| *sub).collect();
        assert_eq!(subs, (0..subs.len() as u32).collect::<Vec<_>>(), "sub-revisions are dense over all shares");
        for (_, change) in changes {
            self.change(change, revision);
        }
        self.revision = revision;
        self.locks.retain(|held| held.txn != request.txn);
        region_response::Result::Decide(DecideResponse { over: false, revision })
    }

    fn change(&mut self, change: Change, revision: i64) {
        let key: Bytes = strip_user(&change.key).expect("user data");
        let own = |number: i64| if number == i64::MAX { revision } else { number };
        let state = match change.delete {
            true => KeyValue { key: key.clone(), mod_revision: revision, ..Default::default() },
            false => KeyValue {
                key: key.clone(),
                create_revision: own(change.create_revision),
                mod_revision: revision,
                version: change.version,
                value: change.value,
                lease: change.lease,
            },
        };
        self.keys.entry(key).or_default().push(state);
    }

    fn alive(&self, span: &KeyRange) -> Vec<KeyValue> {
        let inside = self.keys.keys().filter(|key| span.contains(&braid_proto::key::user_key(key)));
        inside.filter_map(|key| self.get(key).cloned()).collect()
    }
}
