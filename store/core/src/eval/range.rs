//! Ranges: inside a transaction, and plain reads at one revision.
//!
//! What the answer looks like, order of work and quirks included, is `braid_proto::range`'s. Here is what it is made
//! from, and rule O5 for filters and orders that look at revisions which are not known yet.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::range_request::SortTarget;
use braid_proto::etcd::etcdserverpb::{RangeRequest, RangeResponse};
use braid_proto::etcd::mvccpb::KeyValue;
use braid_proto::key::{KeyRange, user_key};
use braid_proto::range::{Fetch, fetch, finish, has_filters};

use super::run::{ON, Run, Stop, key_value};
use super::{WaitFor, fail};
use crate::placeholder::{Unknown, compare_unknown, unknown};
use crate::view::{BaseView, Damaged, Visit};

/// Reads `request` in `range` as of `revision`, which everything that touches the range is applied up to. The header is
/// left to the caller, and so is the revision that the request itself names.
///
/// # Errors
/// The data under `base` cannot be read.
pub fn read(
    base: &dyn BaseView,
    request: &RangeRequest,
    range: &KeyRange,
    revision: i64,
) -> Result<RangeResponse, Damaged> {
    let (kvs, count) =
        collect(request, &mut |visit| base.scan_at(range, revision, visit), &mut || base.count_at(range, revision))?;
    Ok(finish(request, kvs, count))
}

/// Checks the revision that a range inside a transaction names, against the state before.
///
/// The state before lies at the counter just before this item, which is not below `heard`. Whether a revision lies above
/// that, or below what has been compacted since, takes a fresh bound to say.
pub fn check(run: &Run<'_>, request: &RangeRequest) -> Result<(), Stop> {
    // As in etcd, where the boundary is -1 until something has been compacted, and negative revisions are compared too.
    let boundary = if run.context.compacted > 0 { run.context.compacted } else { -1 };
    match request.revision {
        0 => Ok(()),
        past if past < boundary => Err(fail(error::COMPACTED)),
        _ if !run.context.heard_is_fresh => Err(Stop::Wait(WaitFor::Bound)),
        future if future > run.context.heard => Err(fail(error::FUTURE_REVISION)),
        _ => Ok(()),
    }
}

/// Runs a range that has been checked.
pub fn range(run: &mut Run<'_>, request: &RangeRequest) -> Result<RangeResponse, Stop> {
    let mut response = if request.revision > 0 { at(run, request)? } else { now(run, request)? };
    response.header = Some(run.header());
    Ok(response)
}

/// As of an explicit revision: sees nothing of this transaction, and waits for what is in flight at or below it.
fn at(run: &Run<'_>, request: &RangeRequest) -> Result<RangeResponse, Stop> {
    let range = KeyRange::user(&request.key, &request.range_end);
    if let Some(seq) = run.view.overlay.touches_at(&range, request.revision) {
        return Err(Stop::Wait(WaitFor::Applied(seq)));
    }
    let answer = read(run.view.base, request, &range, request.revision)?;
    // Compaction may have overtaken the read (rule C2).
    if request.revision < run.view.base.boundary() { Err(fail(error::COMPACTED)) } else { Ok(answer) }
}

/// Now: the state before, what is in flight, and what this transaction has written so far.
fn now(run: &Run<'_>, request: &RangeRequest) -> Result<RangeResponse, Stop> {
    if request.range_end.is_empty() {
        let key = user_key(&request.key);
        let found = run.find(&key)?;
        let count = i64::from(found.is_some());
        let kvs = found.filter(|_| fetch(request) != Fetch::Nothing).map(|found| key_value(&key, &found.record));
        return shape(run, request, kvs.into_iter().collect(), count);
    }
    let range = KeyRange::user(&request.key, &request.range_end);
    let (kvs, count) = collect(request, &mut |visit| run.scan(&range, visit), &mut || run.count(&range))?;
    shape(run, request, kvs, count)
}

/// What `request` must read, and the number of keys in its range. Counts apart only where reading does not count.
fn collect(
    request: &RangeRequest,
    scan: &mut dyn FnMut(Visit<'_>) -> Result<(), Damaged>,
    count: &mut dyn FnMut() -> Result<u64, Damaged>,
) -> Result<(Vec<KeyValue>, i64), Damaged> {
    let most = match fetch(request) {
        Fetch::Nothing => return Ok((Vec::new(), count()? as i64)),
        Fetch::First(most) => most,
        Fetch::All => usize::MAX,
    };
    let mut kvs = Vec::new();
    scan(&mut |key, record| {
        kvs.push(key_value(key, record));
        if kvs.len() < most { ON } else { ControlFlow::Break(()) }
    })?;
    let count = if kvs.len() < most { kvs.len() as u64 } else { count()? };
    Ok((kvs, count as i64))
}

/// Makes the answer, after the filters and the order are sure in spite of unknown revisions.
fn shape(run: &Run<'_>, request: &RangeRequest, mut kvs: Vec<KeyValue>, count: i64) -> Result<RangeResponse, Stop> {
    let is_unknown = |kv: &KeyValue| unknown(kv.mod_revision).is_some() || unknown(kv.create_revision).is_some();
    if !kvs.iter().any(is_unknown) {
        return Ok(finish(request, kvs, count));
    }
    let mut sifted = request.clone();
    if has_filters(request) {
        let mut kept = Vec::with_capacity(kvs.len());
        for kv in kvs {
            if passes(run, request, &kv)? {
                kept.push(kv);
            }
        }
        kvs = kept;
        // They are done, and `finish` would take the placeholders at their face value.
        (sifted.min_mod_revision, sifted.max_mod_revision) = (0, 0);
        (sifted.min_create_revision, sifted.max_create_revision) = (0, 0);
    }
    match request.sort_target() {
        SortTarget::Mod => order_is_sure(run, kvs.iter().map(|kv| kv.mod_revision))?,
        SortTarget::Create => order_is_sure(run, kvs.iter().map(|kv| kv.create_revision))?,
        SortTarget::Key | SortTarget::Version | SortTarget::Value => {}
    }
    Ok(finish(&sifted, kvs, count))
}

fn passes(run: &Run<'_>, request: &RangeRequest, kv: &KeyValue) -> Result<bool, Stop> {
    let low = |bound, revision| Ok::<_, Stop>(bound == 0 || compare(run, revision, bound)?.is_ge());
    let high = |bound, revision| Ok::<_, Stop>(bound == 0 || compare(run, revision, bound)?.is_le());
    Ok(high(request.max_mod_revision, kv.mod_revision)?
        && low(request.min_mod_revision, kv.mod_revision)?
        && high(request.max_create_revision, kv.create_revision)?
        && low(request.min_create_revision, kv.create_revision)?)
}

/// Compares a revision with a filter's bound.
///
/// The item's own number cannot be waited for: it is asked for when the evaluation is over. Any revision that a client
/// has seen is not above a fresh bound, so only a made-up one remains, and that gets etcd's word for it.
fn compare(run: &Run<'_>, revision: i64, bound: i64) -> Result<Ordering, Stop> {
    match unknown(revision) {
        None => Ok(revision.cmp(&bound)),
        Some(Unknown::InFlight(seq)) => {
            compare_unknown(run.view.overlay.floor(seq), bound).ok_or(Stop::Wait(WaitFor::Number(seq)))
        }
        Some(Unknown::Own) => {
            compare_unknown(run.context.heard, bound).ok_or_else(|| match run.context.heard_is_fresh {
                true => fail(error::FUTURE_REVISION),
                false => Stop::Wait(WaitFor::Bound),
            })
        }
    }
}

/// Whether sorting placeholders by their face value is right: among each other it is, and the own number is greater
/// than all others. An in-flight write's number is greater than what was heard before it was asked for; against a
/// revision that was heard of later, only the number itself decides.
fn order_is_sure(run: &Run<'_>, revisions: impl Iterator<Item = i64> + Clone) -> Result<(), Stop> {
    let newest_known = revisions.clone().filter(|revision| unknown(*revision).is_none()).max();
    let unsure = revisions.filter_map(|revision| match unknown(revision) {
        Some(Unknown::InFlight(seq)) if newest_known > Some(run.view.overlay.floor(seq)) => Some(seq),
        _ => None,
    });
    match unsure.max() {
        Some(seq) => Err(Stop::Wait(WaitFor::Number(seq))),
        None => Ok(()),
    }
}
