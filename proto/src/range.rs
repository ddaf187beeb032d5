//! What a range answer looks like, given the keys that were read: filters, sorting, cutting, and putting together the
//! answers of several regions. Pure; the store uses it for one region, the proxy for many, so that both agree.
//!
//! etcd's order of work, quirks included:
//!
//! 1. Read the keys in key order: all of them, or the first `limit + 1` if nothing can change the order or drop a key
//!    ([`fetch`]). Whether something can is judged by the sort order as the client wrote it.
//! 2. Drop what the four revision filters refuse ([`passes`]).
//! 3. Sort. Order NONE with another target than KEY sorts ascending. With step 1 this means that NONE, such a target
//!    and a limit sort only the first `limit + 1` keys.
//! 4. Cut to `limit`; `more` says that something was cut.
//! 5. Drop the values if only keys are wanted.
//!
//! `count` is the number of keys in the range, whatever limit and filters say.
//!
//! Where keys compare equal by the sort target etcd leaves their order open; here it is key order.

use std::cmp::Ordering;

use crate::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::etcd::etcdserverpb::{RangeRequest, RangeResponse};
use crate::etcd::mvccpb::KeyValue;

/// How many keys of a range must be read, in key order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetch {
    /// None: the answer is only a count.
    Nothing,
    /// The first so many; one more than the limit, so that `more` can be told.
    First(usize),
    /// All of them.
    All,
}

/// How many keys must be read for `request`.
pub fn fetch(request: &RangeRequest) -> Fetch {
    if request.count_only {
        return Fetch::Nothing;
    }
    let by_key = request.sort_order() == SortOrder::Ascend && request.sort_target() == SortTarget::Key;
    let default_order = request.sort_order() == SortOrder::None || by_key;
    match limit(request) {
        Some(limit) if default_order && !has_filters(request) => Fetch::First(limit.saturating_add(1)),
        _ => Fetch::All,
    }
}

/// Whether the values must be read for `request`, be it only to sort by them.
pub fn needs_values(request: &RangeRequest) -> bool {
    !request.count_only && (!request.keys_only || request.sort_target() == SortTarget::Value)
}

/// Whether any of the four revision filters is on.
pub fn has_filters(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

/// Whether the revision filters let `kv` through. They are inclusive, 0 is off.
pub fn passes(request: &RangeRequest, kv: &KeyValue) -> bool {
    let low = |bound: i64, revision: i64| bound == 0 || revision >= bound;
    let high = |bound: i64, revision: i64| bound == 0 || revision <= bound;
    low(request.min_mod_revision, kv.mod_revision)
        && high(request.max_mod_revision, kv.mod_revision)
        && low(request.min_create_revision, kv.create_revision)
        && high(request.max_create_revision, kv.create_revision)
}

/// Makes the answer of one region: `kvs` is what [`fetch`] asked for, in key order (what the filters refuse may be gone
/// already), `count` the number of keys in the range. The header is left to the caller.
pub fn finish(request: &RangeRequest, mut kvs: Vec<KeyValue>, count: i64) -> RangeResponse {
    if request.count_only {
        return RangeResponse { count, ..Default::default() };
    }
    if has_filters(request) {
        kvs.retain(|kv| passes(request, kv));
    }
    sort(request, &mut kvs);
    let more = cut(request, &mut kvs);
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value.clear());
    }
    RangeResponse { header: None, kvs, more, count }
}

/// What each of several regions is asked so that [`merge`] can make the answer to `request`. Filters, order and limit
/// travel with it: no region sends more than it must.
pub fn for_each_region(request: &RangeRequest) -> RangeRequest {
    let mut part = request.clone();
    if sorts_the_first_only(request) {
        part.sort_target = SortTarget::Key as i32;
        part.limit = request.limit.saturating_add(1);
    }
    part.keys_only = request.keys_only && !needs_values(request);
    part
}

/// Puts together the answers that the regions of a range gave to [`for_each_region`], in the order of the regions'
/// keys. The header is left to the caller.
pub fn merge(request: &RangeRequest, answers: impl IntoIterator<Item = RangeResponse>) -> RangeResponse {
    let mut whole = RangeResponse::default();
    for answer in answers {
        whole.count += answer.count;
        whole.more |= answer.more;
        match whole.kvs.is_empty() {
            true => whole.kvs = answer.kvs,
            false => whole.kvs.extend(answer.kvs),
        }
    }
    if let Fetch::First(first) = fetch(request) {
        whole.kvs.truncate(first);
    }
    sort(request, &mut whole.kvs);
    whole.more |= cut(request, &mut whole.kvs);
    if request.keys_only {
        whole.kvs.iter_mut().for_each(|kv| kv.value.clear());
    }
    whole
}

/// The limit, if there is one.
fn limit(request: &RangeRequest) -> Option<usize> {
    (request.limit > 0).then(|| usize::try_from(request.limit).unwrap_or(usize::MAX))
}

/// Whether this is the request that sorts by something else than the key, yet reads only the first keys (step 3).
fn sorts_the_first_only(request: &RangeRequest) -> bool {
    request.sort_target() != SortTarget::Key && matches!(fetch(request), Fetch::First(_))
}

/// Sorts keys that are in key order, or that are each in `request`'s order already.
fn sort(request: &RangeRequest, kvs: &mut [KeyValue]) {
    let by: fn(&KeyValue, &KeyValue) -> Ordering = match request.sort_target() {
        SortTarget::Key => |a, b| a.key.cmp(&b.key),
        SortTarget::Version => |a, b| a.version.cmp(&b.version),
        SortTarget::Create => |a, b| a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => |a, b| a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => |a, b| a.value.cmp(&b.value),
    };
    match (request.sort_order(), request.sort_target()) {
        (SortOrder::None | SortOrder::Ascend, SortTarget::Key) => {}
        (SortOrder::None | SortOrder::Ascend, _) => kvs.sort_by(by),
        (SortOrder::Descend, _) => kvs.sort_by(|a, b| by(b, a)),
    }
}

/// Cuts to the limit; true if that took something away.
fn cut(request: &RangeRequest, kvs: &mut Vec<KeyValue>) -> bool {
    match limit(request) {
        Some(limit) if kvs.len() > limit => {
            kvs.truncate(limit);
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
