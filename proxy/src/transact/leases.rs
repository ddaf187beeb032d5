//! The leases of a transaction: before its first lock each is attached to every region where it may be put, so that a lock
//! can hold it there (`docs/decisions/0006-leases.md`).
//!
//! A lease that is not found is only noted: whether the transaction needs it is decided under the locks. If it does, the
//! lease's region is asked once more, while all is locked; only what does not exist then is an error.

use std::collections::HashSet;

use braid_proto::etcd::etcdserverpb::{RequestOp, TxnRequest, request_op};
use braid_proto::key::{KeyRange, user_key};
use braid_proto::pb::{AttachLeaseRequest, region_request, region_response};
use braid_store_client::deadline::Patience;
use braid_store_client::regions::{Ask, NoAnswer};
use braid_store_client::retry::Kind;
use braid_store_core::eval::{Leases, Request};
use bytes::Bytes;
use futures::future::try_join_all;
use futures::stream::{StreamExt, TryStreamExt};

use super::Failed;
use super::plan::Part;
use crate::kv::unexpected;
use crate::lease;
use crate::shared::Shared;

/// Questions of one transaction that are asked at the same time.
const FANOUT: usize = 64;

/// What is known of the leases that a transaction may put.
#[derive(Debug, Default)]
pub struct Known {
    /// Attached to every region where they may be put.
    attached: HashSet<i64>,
    /// Not found for some region.
    missing: Vec<i64>,
}

impl Known {
    /// For the evaluation.
    pub fn leases(&self) -> Leases<'_> {
        Leases { attached: Some(&self.attached), missing: &self.missing }
    }

    /// Whether one that was not found is there by now.
    ///
    /// # Errors
    /// Its region does not answer in time.
    pub async fn has_changed(&self, shared: &Shared, patience: Patience) -> Result<bool, Failed> {
        let asked = self.missing.iter().map(|id| lease::state(shared, *id, true, patience));
        let states = try_join_all(asked).await?;
        Ok(states.iter().any(|state| state.granted_ttl != 0))
    }
}

/// Attaches every lease to the regions of `parts` where `request` may put it, and notes there what a lock has to hold.
///
/// # Errors
/// A region does not answer in time, or the regions are others by now.
pub async fn attach(
    shared: &Shared,
    request: &Request,
    parts: &mut [Part],
    patience: Patience,
) -> Result<Known, Failed> {
    let named = named(request);
    let mut questions = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let here = named.iter().filter(|(key, _)| part.route.range.contains(key)).map(|(_, lease)| *lease);
        let here: HashSet<i64> = here.collect();
        questions.extend(here.into_iter().map(|lease| (at, lease)));
    }
    let asked: Vec<_> = questions.iter().map(|(at, lease)| attach_one(shared, &parts[*at], *lease, patience)).collect();
    let found: Vec<bool> = futures::stream::iter(asked).buffered(FANOUT).try_collect().await?;
    let mut known = Known::default();
    for ((at, lease), found) in questions.into_iter().zip(found) {
        match found {
            true => {
                parts[at].attaches.push(lease);
                known.attached.insert(lease);
            }
            false if known.missing.contains(&lease) => {}
            false => known.missing.push(lease),
        }
    }
    known.attached.retain(|lease| !known.missing.contains(lease));
    Ok(known)
}

async fn attach_one(shared: &Shared, part: &Part, id: i64, patience: Patience) -> Result<bool, Failed> {
    let op = region_request::Op::AttachLease(AttachLeaseRequest { id });
    let within = |range: &KeyRange| part.lies_in(range);
    let ask = Ask { anchor: part.key(), within, op: &op, kind: Kind::Read, any_replica: false };
    match shared.regions.ask(ask, patience).await {
        Ok(region_response::Result::AttachLease(answer)) => Ok(answer.found),
        Ok(other) => Err(unexpected(other).into()),
        Err(NoAnswer::Spread) => Err(Failed::Again("split")),
        Err(NoAnswer::Failed(status)) => Err(status.into()),
    }
}

/// The keys that `request` may put with a lease, in whatever branch, and the lease.
fn named(request: &Request) -> Vec<(Bytes, i64)> {
    let mut named = Vec::new();
    match request {
        Request::Put(put) if put.lease != 0 => named.push((user_key(&put.key), put.lease)),
        Request::Put(_) | Request::DeleteRange(_) => {}
        Request::Txn(txn) => named_by(txn, &mut named),
    }
    named
}

fn named_by(txn: &TxnRequest, named: &mut Vec<(Bytes, i64)>) {
    for RequestOp { request } in txn.success.iter().chain(&txn.failure) {
        match request {
            Some(request_op::Request::RequestPut(put)) if put.lease != 0 => {
                named.push((user_key(&put.key), put.lease));
            }
            Some(request_op::Request::RequestTxn(nested)) => named_by(nested, named),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use braid_proto::etcd::etcdserverpb::PutRequest;

    use super::*;

    #[test]
    fn both_branches_and_nested_ones_name_leases() {
        let op = |request| RequestOp { request: Some(request) };
        let put = |key: &'static str, lease| {
            op(request_op::Request::RequestPut(PutRequest { key: key.into(), lease, ..Default::default() }))
        };
        let nested = TxnRequest { failure: vec![put("n", 3)], ..Default::default() };
        let txn = TxnRequest {
            success: vec![put("a", 1), put("b", 0), op(request_op::Request::RequestTxn(nested))],
            failure: vec![put("c", -2)],
            ..Default::default()
        };
        let expected = [("a", 1), ("n", 3), ("c", -2)].map(|(key, lease)| (user_key(key.as_bytes()), lease));
        assert_eq!(named(&Request::Txn(txn)), expected);
    }
}
