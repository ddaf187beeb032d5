//! The lock and election recipes, run by the server: etcd's v3lock and v3election services on top of this proxy's own keys,
//! leases and watches.
//!
//! Both are one queue: whoever wants something puts a key of its lease under a common prefix, and the key with the lowest
//! create revision owns it. The others wait, each for the youngest key before its own to be deleted, until there is none.
//!
//! ```text
//!   name/2f1  create 7   owner
//!   name/9a0  create 9   waits for the delete of name/2f1
//!   name/55c  create 12  waits for the delete of name/9a0
//! ```
//!
//! A caller that goes away while it waits takes its key back; one that owns something is not watched, its lease is.

pub mod election;
mod follow;
pub mod lock;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use braid_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use braid_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseOp,
    TxnRequest, TxnResponse, request_op, response_op,
};
use braid_proto::etcd::mvccpb::KeyValue;
use braid_proto::etcd::mvccpb::event::EventType;
use braid_proto::key::KeyRange;
use braid_store_client::bound;
use braid_store_client::deadline::Patience;
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tonic::Status;

use crate::kv::{range, txn};
use crate::lease::grant;
use crate::shared::Shared;
use crate::watch::{Source, SubscriptionId, Wanted};
use follow::Follow;

/// Seconds of the lease that a caller without one gets.
const LEASE_TTL: i64 = 60;
/// The subscriptions of recipes have names that no client's stream gives.
const NAMES: u64 = 1 << 63;

/// What both services work with.
pub struct Recipes {
    shared: Arc<Shared>,
    source: Arc<dyn Source>,
    stopped: watch::Receiver<bool>,
    names: AtomicU64,
}

impl Recipes {
    /// Recipes on `shared` that hear from `source`. Whoever waits is told when `stopped` says so.
    pub fn new(shared: Arc<Shared>, source: Arc<dyn Source>, stopped: watch::Receiver<bool>) -> Arc<Self> {
        Arc::new(Self { shared, source, stopped, names: AtomicU64::new(NAMES) })
    }

    /// The patience of one step. Waiting for others has no end but the caller's.
    fn patience(&self, require_leader: bool) -> Patience {
        Patience { require_leader, ..Patience::within(self.shared.config.request_timeout) }
    }

    /// The caller's lease, or a fresh one that nobody renews.
    async fn lease(&self, lease: i64, require_leader: bool) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        let request = LeaseGrantRequest { ttl: LEASE_TTL, id: 0 };
        Ok(grant::grant(&self.shared, request, self.patience(require_leader)).await?.id)
    }

    async fn txn(&self, request: TxnRequest, require_leader: bool) -> Result<TxnResponse, Status> {
        txn::txn(&self.shared, request, self.patience(require_leader)).await
    }

    async fn range(&self, request: RangeRequest, require_leader: bool) -> Result<RangeResponse, Status> {
        range::range(&self.shared, request, self.patience(require_leader)).await
    }

    /// The oldest key of a prefix, and the revision at which it was that.
    async fn first(&self, prefix: &Bytes, require_leader: bool) -> Result<(Option<KeyValue>, i64), Status> {
        let answer = self.range(first(prefix), require_leader).await?;
        Ok((answer.kvs.into_iter().next(), answer.header.unwrap_or_default().revision))
    }

    /// Waits until no key of `prefix` is left that was created before `own`.
    async fn wait_for_turn(&self, prefix: &Bytes, own: i64, require_leader: bool) -> Result<(), Status> {
        loop {
            let request =
                RangeRequest { sort_order: SortOrder::Descend as i32, max_create_revision: own - 1, ..first(prefix) };
            let answer = self.range(request, require_leader).await?;
            let Some(before) = answer.kvs.into_iter().next() else { return Ok(()) };
            let seen = answer.header.unwrap_or_default().revision;
            let mut follow = self.follow(&before.key, b"", seen, require_leader).await?;
            // If the events of a deletion are gone, another look finds out.
            while let Some((_, event)) = self.unless_stopped(follow.next()).await? {
                if event.r#type == EventType::Delete as i32 {
                    break;
                }
            }
        }
    }

    /// Follows what happens in a range after revision `after`, which some answer has named.
    async fn follow(&self, key: &[u8], range_end: &[u8], after: i64, require_leader: bool) -> Result<Follow, Status> {
        if self.shared.numbers.heard().1 < after {
            // A source is not asked for what lies ahead of all that this process has heard.
            bound::take(&self.shared.numbers, self.patience(require_leader)).await?;
        }
        let id = SubscriptionId(self.names.fetch_add(1, Ordering::Relaxed));
        let wanted = Wanted { range: KeyRange::user(key, range_end), start: after + 1, prev_kv: false };
        Ok(Follow::begin(Arc::clone(&self.source), id, wanted))
    }

    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, Status> {
        let mut stopped = self.stopped.clone();
        tokio::select! {
            result = work => Ok(result),
            // An error means that the proxy is gone altogether.
            _ = stopped.wait_for(|stopped| *stopped) => Err(error::STOPPED.into()),
        }
    }
}

/// Takes back what its owner has put, unless that is [kept](Withdrawal::keep).
struct Withdrawal {
    recipes: Arc<Recipes>,
    /// `None`: nothing is to be taken back.
    request: Option<TxnRequest>,
}

impl Withdrawal {
    /// Of the key that was created at this revision.
    fn of(recipes: &Arc<Recipes>, key: &Bytes, created: i64) -> Self {
        Self { recipes: Arc::clone(recipes), request: Some(withdraw(key, created)) }
    }

    fn keep(mut self) {
        self.request = None;
    }

    /// Does it now, as well as it can: what cannot be done is left to the lease.
    async fn now(mut self) {
        if let Some(request) = self.request.take() {
            take_back(&self.recipes, request).await;
        }
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        let Some(request) = self.request.take() else { return };
        // Without a runtime the process is about to end.
        if let Ok(runtime) = Handle::try_current() {
            let recipes = Arc::clone(&self.recipes);
            runtime.spawn(async move { take_back(&recipes, request).await });
        }
    }
}

async fn take_back(recipes: &Recipes, request: TxnRequest) {
    if let Err(why) = recipes.txn(request, false).await {
        tracing::debug!(%why, "the key of a caller that has gone is left to its lease");
    }
}

/// The prefix of all keys of `name`.
fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// The first key after a prefix that ends with "/".
fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

/// The key of `lease` under `prefix`: its id in hexadecimal, as Go prints it, with a sign.
fn own_key(prefix: &[u8], lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    [prefix, format!("{sign}{:x}", lease.unsigned_abs()).as_bytes()].concat().into()
}

/// Asks for the oldest key of a prefix.
fn first(prefix: &Bytes) -> RangeRequest {
    RangeRequest {
        key: prefix.clone(),
        range_end: prefix_end(prefix),
        limit: 1,
        sort_order: SortOrder::Ascend as i32,
        sort_target: SortTarget::Create as i32,
        ..RangeRequest::default()
    }
}

fn get(key: &Bytes) -> RangeRequest {
    RangeRequest { key: key.clone(), ..RangeRequest::default() }
}

/// Deletes `key` if it was created at this revision.
fn withdraw(key: &Bytes, created: i64) -> TxnRequest {
    let delete = DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() };
    TxnRequest {
        compare: vec![created_at(key, created)],
        success: vec![op(request_op::Request::RequestDeleteRange(delete))],
        failure: Vec::new(),
    }
}

/// `key` was created at this revision; 0: it does not exist.
fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: key.clone(),
        range_end: Bytes::new(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
    }
}

fn op(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn put(key: &Bytes, value: Bytes, lease: i64) -> RequestOp {
    op(request_op::Request::RequestPut(PutRequest { key: key.clone(), value, lease, ..PutRequest::default() }))
}

/// The first key that a range inside a transaction has found.
fn found(response: Option<&ResponseOp>) -> Option<&KeyValue> {
    match response?.response.as_ref()? {
        response_op::Response::ResponseRange(range) => range.kvs.first(),
        _ => None,
    }
}

/// The create revision of the key that a caller's first transaction has put, or has found.
fn own_revision(answer: &TxnResponse) -> Result<i64, Status> {
    if answer.succeeded {
        return Ok(answer.header.unwrap_or_default().revision);
    }
    let own = found(answer.responses.first()).map(|kv| kv.create_revision);
    own.ok_or_else(|| Status::internal("braid: a key is neither absent nor there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_etcds_shape() {
        let prefix = prefix(b"my/lock");
        assert_eq!(prefix, "my/lock/");
        assert_eq!(prefix_end(&prefix), "my/lock0");
        assert_eq!(own_key(&prefix, 0x1a2b), "my/lock/1a2b");
        assert_eq!(own_key(&prefix, -255), "my/lock/-ff");
        assert_eq!(own_key(&prefix, i64::MIN), "my/lock/-8000000000000000");
    }
}
