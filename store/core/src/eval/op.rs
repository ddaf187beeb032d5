//! Put and delete: the operations that change keys, alone or inside a transaction.

use std::ops::ControlFlow;

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::{DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse};
use braid_proto::key::{KeyRange, user_key};
use bytes::Bytes;

use super::run::{ON, Run, Stop, key_value};
use super::{WaitFor, fail};
use crate::placeholder::OWN;
use crate::record::Record;
use crate::view::Found;

/// Checks the lease of a put, as etcd does for every put of a path before the first operation runs: it must exist. That it
/// does is known of leases that are attached to the region (`docs/decisions/0006-leases.md`); others are asked for.
pub fn check_lease(run: &Run<'_>, request: &PutRequest) -> Result<(), Stop> {
    let leases = &run.context.leases;
    match request.lease {
        0 => Ok(()),
        lease if leases.attached.is_some_and(|attached| attached.contains(&lease)) => Ok(()),
        lease if leases.missing.contains(&lease) => Err(fail(error::LEASE_NOT_FOUND)),
        lease => Err(Stop::Wait(WaitFor::Lease(lease))),
    }
}

/// Checks that the key of which a put keeps something exists in the state before.
pub fn check_kept(run: &Run<'_>, request: &PutRequest) -> Result<(), Stop> {
    if (request.ignore_value || request.ignore_lease) && run.find_before(&user_key(&request.key))?.is_none() {
        return Err(fail(error::KEY_NOT_FOUND));
    }
    Ok(())
}

/// A put that is the whole request.
pub fn put_alone(run: &mut Run<'_>, request: &PutRequest) -> Result<PutResponse, Stop> {
    check_lease(run, request)?;
    check_kept(run, request)?;
    put(run, request)
}

/// Runs a put that has been checked.
///
/// The key that `ignore_value` or `ignore_lease` needs may be gone again: deleted earlier in the same transaction,
/// through a blind spot of the duplicate rule. etcd panics there; here the transaction fails as if it had never been.
pub fn put(run: &mut Run<'_>, request: &PutRequest) -> Result<PutResponse, Stop> {
    let key = user_key(&request.key);
    let found = run.find(&key)?;
    let previous = found.as_ref().map(|found| &found.record);
    if (request.ignore_value || request.ignore_lease) && previous.is_none() {
        return Err(fail(error::KEY_NOT_FOUND));
    }
    let next = Record {
        create_revision: previous.map_or(OWN, |previous| previous.create_revision),
        mod_revision: OWN,
        version: previous.map_or(0, |previous| previous.version) + 1,
        lease: match previous {
            Some(previous) if request.ignore_lease => previous.lease,
            _ => request.lease,
        },
        value: match previous {
            Some(previous) if request.ignore_value => previous.value.clone(),
            _ => request.value.clone(),
        },
    };
    let prev_kv = previous.filter(|_| request.prev_kv).map(|previous| key_value(&key, previous));
    run.change(key, found, Some(next))?;
    Ok(PutResponse { header: Some(run.header()), prev_kv })
}

/// Runs a delete of a key or a range, in key order.
pub fn delete(run: &mut Run<'_>, request: &DeleteRangeRequest) -> Result<DeleteRangeResponse, Stop> {
    let found = match &request.range_end[..] {
        [] => one(run, user_key(&request.key))?,
        _ => many(run, &KeyRange::user(&request.key, &request.range_end))?,
    };
    let mut response = DeleteRangeResponse { deleted: found.len() as i64, ..DeleteRangeResponse::default() };
    for (key, found) in found {
        if request.prev_kv {
            response.prev_kvs.push(key_value(&key, &found.record));
        }
        run.change(key, Some(found), None)?;
    }
    response.header = Some(run.header());
    Ok(response)
}

fn one(run: &Run<'_>, key: Bytes) -> Result<Vec<(Bytes, Found)>, Stop> {
    Ok(run.find(&key)?.map(|found| (key, found)).into_iter().collect())
}

fn many(run: &Run<'_>, range: &KeyRange) -> Result<Vec<(Bytes, Found)>, Stop> {
    let mut found = Vec::new();
    let mut bytes = 0;
    let mut full = false;
    run.scan(range, &mut |key, record| {
        bytes += key.len();
        full = run.is_full(found.len() + 1, bytes);
        if full {
            return ControlFlow::Break(());
        }
        found.push((key.clone(), record.clone().into()));
        ON
    })?;
    if full { Err(Stop::TooLarge) } else { Ok(found) }
}
