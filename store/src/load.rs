//! What a led region counts of its load: see [`braid_store_core::load`]. Counting is a few atomics for each request.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use braid_proto::key::{KeyRange, lease_key, user_key};
use braid_proto::pb::region_request::Op;
use braid_store_core::load::{Rates, Sample, Unsplit};
use bytes::Bytes;
use parking_lot::Mutex;

/// Spreads consecutive touches over the sample evenly, whatever pattern they have: the golden ratio's fraction.
const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Milliseconds that one fold may stand for.
const FOLD_MS_MAX: u64 = 5_000;

/// The load of one region peer while it leads.
#[derive(Default)]
pub struct Load {
    leads: AtomicBool,
    /// Since the last fold.
    ops: AtomicU64,
    bytes: AtomicU64,
    /// Bytes written since the peer was opened.
    written: AtomicU64,
    /// One touch out of so many is sampled; 0 as 1.
    stride: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rates: Rates,
    /// Milliseconds of the store's clock at the last fold.
    folded: u64,
    sample: Sample,
}

impl Load {
    /// The peer leads from now on, or does not. What was counted before is forgotten.
    pub fn lead(&self, leads: bool, now: u64) {
        if self.leads.swap(leads, Ordering::Relaxed) != leads {
            let mut state = self.state.lock();
            *state = State { folded: now, ..State::default() };
            self.ops.store(0, Ordering::Relaxed);
            self.bytes.store(0, Ordering::Relaxed);
            self.stride.store(0, Ordering::Relaxed);
        }
    }

    /// A request of a client. False: nothing is counted here.
    pub fn request(&self, op: &Op, now: impl FnOnce() -> u64) -> bool {
        if !self.leads.load(Ordering::Relaxed) || !is_clients(op) {
            return false;
        }
        let count = self.ops.fetch_add(1, Ordering::Relaxed);
        let stride = self.stride.load(Ordering::Relaxed);
        let taken = stride <= 1 || count.wrapping_mul(SCATTER) < u64::MAX / stride;
        if taken && let Some(key) = key_of(op, count) {
            let now = now();
            self.state.lock().sample.touch(&key, now);
        }
        true
    }

    /// So many bytes were applied. False: nothing is counted here.
    pub fn wrote(&self, bytes: usize) -> bool {
        if !self.leads.load(Ordering::Relaxed) {
            return false;
        }
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
        true
    }

    /// Bytes written since the peer was opened, while it led.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Folds what was counted since the last time into the rates, and returns them.
    pub fn fold(&self, now: u64) -> Rates {
        let mut state = self.state.lock();
        let (ops, bytes) = (self.ops.swap(0, Ordering::Relaxed), self.bytes.swap(0, Ordering::Relaxed));
        // A region that nobody folds for long was idle until it had something to count.
        let since = now.saturating_sub(state.folded).min(FOLD_MS_MAX);
        state.rates.fold(ops, bytes, since);
        state.folded = now;
        if state.rates.ops() == 0 {
            state.sample.clear();
        }
        self.stride.store(state.rates.stride(), Ordering::Relaxed);
        state.rates
    }

    /// Where half of the load lies; see [`Sample::middle`].
    ///
    /// # Errors
    /// As there.
    pub fn middle(&self, range: &KeyRange, now: u64) -> Result<Bytes, Unsplit> {
        self.state.lock().sample.middle(range, now)
    }
}

/// Whether a client has asked for it. What stores ask each other, and what a coordinator does after it has locked, follows from
/// that.
fn is_clients(op: &Op) -> bool {
    let of_leases = matches!(op, Op::GrantLease(_) | Op::RevokeLease(_) | Op::KeepLease(_) | Op::LeaseState(_));
    of_leases || matches!(op, Op::Read(_) | Op::Put(_) | Op::DeleteRange(_) | Op::Txn(_) | Op::Lock(_))
}

/// A key that the request touches: of several, one after the other comes up.
fn key_of(op: &Op, turn: u64) -> Option<Bytes> {
    let one_of = |count: usize| (turn % count.max(1) as u64) as usize;
    Some(match op {
        Op::Read(read) => user_key(&read.range.as_ref()?.key),
        Op::Put(put) => user_key(&put.key),
        Op::DeleteRange(delete) => user_key(&delete.key),
        Op::Txn(txn) => {
            let compares = txn.compare.iter().map(|compare| &compare.key);
            let keys: Vec<&Bytes> = compares.chain(txn.success.iter().filter_map(key_of_op)).collect();
            user_key(keys.get(one_of(keys.len()))?)
        }
        Op::Lock(lock) => lock.ranges.get(one_of(lock.ranges.len()))?.start.clone(),
        Op::GrantLease(grant) => lease_key(grant.id),
        Op::RevokeLease(revoke) => lease_key(revoke.id),
        Op::KeepLease(keep) => lease_key(keep.id),
        Op::LeaseState(state) => lease_key(state.id),
        _ => return None,
    })
}

fn key_of_op(op: &braid_proto::etcd::etcdserverpb::RequestOp) -> Option<&Bytes> {
    use braid_proto::etcd::etcdserverpb::request_op::Request;
    match op.request.as_ref()? {
        Request::RequestRange(range) => Some(&range.key),
        Request::RequestPut(put) => Some(&put.key),
        Request::RequestDeleteRange(delete) => Some(&delete.key),
        Request::RequestTxn(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use braid_proto::etcd::etcdserverpb::PutRequest;
    use braid_proto::pb::FrontierRequest;

    use super::*;

    fn put(key: u64) -> Op {
        Op::Put(PutRequest { key: format!("k{key:05}").into_bytes().into(), ..PutRequest::default() })
    }

    fn all() -> KeyRange {
        KeyRange { start: Bytes::new(), end: Bytes::new() }
    }

    #[test]
    fn only_a_leader_counts_and_only_what_clients_ask() {
        let load = Load::default();
        assert!(!load.request(&put(1), || 0) && !load.wrote(10));
        load.lead(true, 0);
        assert!(load.request(&put(1), || 0) && load.wrote(10));
        assert!(!load.request(&Op::Frontier(FrontierRequest::default()), || 0));
        let rates = load.fold(60_000);
        assert_eq!((rates.ops(), load.written()), (0, 10), "one in a minute");
    }

    #[test]
    fn a_busy_region_samples_a_part_and_finds_its_middle() {
        let load = Load::default();
        load.lead(true, 0);
        let mut random = 1_u64;
        let mut touch = |now| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            load.request(&put((random >> 33) % 1_000), || now)
        };
        for second in 0..30_u64 {
            (0..5_000).for_each(|_| assert!(touch(second * 1_000)));
            load.fold((second + 1) * 1_000);
        }
        assert!((350..450).contains(&load.stride.load(Ordering::Relaxed)), "{}", load.stride.load(Ordering::Relaxed));
        let cut = load.middle(&all(), 30_000).expect("a key");
        assert!((350..650).contains(&std::str::from_utf8(&cut[2..]).unwrap().parse::<u64>().unwrap()), "{cut:?}");
        // What another leader does is unknown here, and this one begins anew.
        load.lead(false, 30_000);
        load.lead(true, 31_000);
        assert_eq!(load.middle(&all(), 31_000), Err(Unsplit::Idle));
        assert_eq!(load.fold(32_000).ops(), 0);
    }
}
