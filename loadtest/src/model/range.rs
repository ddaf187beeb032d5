//! Range: fetch, filter, sort, cut.

use std::cmp::Ordering;

use braid_proto::etcd::etcdserverpb::RangeRequest;
use braid_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use braid_proto::etcd::mvccpb::KeyValue;

use super::request::{COMPACTED, FUTURE};
use super::{Model, RangeReply, Refusal};

impl Model {
    /// The answer where `now` is the newest revision that can be seen.
    pub(super) fn range(&self, request: &RangeRequest, now: i64) -> Result<RangeReply, Refusal> {
        let at = if request.revision <= 0 { now } else { request.revision };
        if at > now {
            return Err(FUTURE);
        }
        if at < self.compacted {
            return Err(COMPACTED);
        }
        let mut found = self.all_at(&request.key, &request.range_end, at);
        let count = length(&found);
        if request.count_only {
            return Ok(RangeReply { revision: now, count, ..RangeReply::default() });
        }

        let limit = usize::try_from(request.limit).unwrap_or(0);
        // Without a filter and without an order only one key more than the limit is fetched, which shows where the order
        // is not given but the target is.
        if limit > 0 && request.sort_order() == SortOrder::None && !has_filter(request) {
            found.truncate(limit.saturating_add(1));
        }
        found.retain(|key_value| passes(request, key_value));
        match request.sort_order() {
            SortOrder::None | SortOrder::Ascend => found.sort_by(|a, b| order(request.sort_target(), a, b)),
            SortOrder::Descend => found.sort_by(|a, b| order(request.sort_target(), b, a)),
        }
        let returned = if limit > 0 { found.len().min(limit) } else { found.len() };
        Ok(RangeReply {
            revision: now,
            count,
            more: returned < found.len(),
            sort_target: request.sort_target(),
            keys_only: request.keys_only,
            sorted: found,
            returned,
        })
    }
}

/// How two keys compare in a sorted answer; equal ones may stand in either order.
pub(super) fn order(target: SortTarget, a: &KeyValue, b: &KeyValue) -> Ordering {
    match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    }
}

fn has_filter(request: &RangeRequest) -> bool {
    let RangeRequest { min_mod_revision, max_mod_revision, min_create_revision, max_create_revision, .. } = *request;
    [min_mod_revision, max_mod_revision, min_create_revision, max_create_revision].iter().any(|&bound| bound != 0)
}

fn passes(request: &RangeRequest, key_value: &KeyValue) -> bool {
    let within = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(key_value.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && within(key_value.create_revision, request.min_create_revision, request.max_create_revision)
}

fn length(found: &[KeyValue]) -> i64 {
    i64::try_from(found.len()).expect("keys fit into memory")
}
