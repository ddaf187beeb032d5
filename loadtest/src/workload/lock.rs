//! One lock that all workers want: taken and given back at once.
//!
//! By the recipe of etcd's own clients, each worker with a lease:
//! 1. A transaction creates the worker's key under the name of the lock, and reads the oldest key there: if it is the
//!    own one, the lock is won.
//! 2. Otherwise the worker reads the youngest key older than its own, and watches it until it is deleted; then again,
//!    until there is no older one. It reads its own key once more, which must be there.
//! 3. To unlock, it deletes its key.
//!
//! Or by the server's recipe (`v3lock`), two calls. Either way no two workers may have the lock, and the revision at
//! which it is won must rise from one to the next.

use std::sync::atomic::Ordering;

use braid_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use braid_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use braid_proto::etcd::etcdserverpb::request_op::Request;
use braid_proto::etcd::etcdserverpb::response_op::Response;
use braid_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use braid_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCancelRequest,
    WatchCreateRequest, WatchRequest, WatchResponse,
};
use braid_proto::etcd::mvccpb::event::EventType;
use braid_proto::etcd::v3lockpb::{LockRequest, UnlockRequest};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::client::{lost, wrong};
use super::{Client, Driver, Kind, Trouble};
use crate::client::prefix_end;
use crate::keys::Picker;

/// Who knows the recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipe {
    /// The client.
    Client,
    /// The server.
    Server,
}

/// Locks and unlocks.
pub struct Lock {
    recipe: Recipe,
    /// Name of the lock; its keys lie under it.
    name: Bytes,
    lease: i64,
    watcher: Option<Watcher>,
    /// A watch gets an id that no watch had before.
    watches: i64,
}

/// An open watch stream.
struct Watcher {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

/// Requests that may wait to be sent: one to end a watch, one to make the next.
const WATCH_REQUESTS: usize = 4;

impl Lock {
    /// One worker's locks.
    pub fn new(picker: &Picker, recipe: Recipe) -> Self {
        let name =
            format!("{}lock-{}", picker.space().prefix, if recipe == Recipe::Client { "client" } else { "server" });
        Self { recipe, name: name.into(), lease: 0, watcher: None, watches: 0 }
    }

    /// The worker's key as etcd's clients make it.
    fn own_key(&self) -> Bytes {
        [&self.name[..], format!("/{:x}", self.lease).as_bytes()].concat().into()
    }

    /// Waits for the lock. Gives the revision at which it was created.
    async fn acquire(&mut self, client: &mut Client) -> Result<i64, Trouble> {
        let key = self.own_key();
        let prefix: Bytes = [&self.name[..], b"/"].concat().into();
        let all = RangeRequest { range_end: prefix_end(&prefix), key: prefix, ..RangeRequest::default() };
        let mine = self.create(client, &key, &all).await?;
        let (created, oldest) = mine;
        if oldest == created {
            return Ok(created);
        }
        loop {
            let older = RangeRequest {
                max_create_revision: created - 1,
                limit: 1,
                sort_order: SortOrder::Descend.into(),
                sort_target: SortTarget::Create.into(),
                ..all.clone()
            };
            let older = client.kv.range(older).await?.into_inner();
            let Some(before) = older.kvs.into_iter().next() else { break };
            let revision = older.header.map_or(0, |header| header.revision);
            self.wait_for_delete(client, before.key, revision).await?;
        }
        let own = client.kv.range(RangeRequest { key, ..RangeRequest::default() }).await?;
        match own.get_ref().kvs.first() {
            Some(kv) if kv.create_revision == created => Ok(created),
            other => Err(wrong(format_args!("LOST LEASE: a key of lease {:x} became {other:?}", self.lease))),
        }
    }

    /// Creates the own key. Gives its revision, and that of the oldest key of the lock.
    async fn create(&self, client: &mut Client, key: &Bytes, all: &RangeRequest) -> Result<(i64, i64), Trouble> {
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Create.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::CreateRevision(0)),
            ..Compare::default()
        };
        let put = PutRequest { key: key.clone(), lease: self.lease, ..PutRequest::default() };
        let get = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let oldest = RangeRequest { limit: 1, sort_target: SortTarget::Create.into(), ..all.clone() };
        let oldest = RangeRequest { sort_order: SortOrder::Ascend.into(), ..oldest };
        let op = |request| RequestOp { request: Some(request) };
        let request = TxnRequest {
            compare: vec![compare],
            success: vec![op(Request::RequestPut(put)), op(Request::RequestRange(oldest.clone()))],
            failure: vec![op(Request::RequestRange(get)), op(Request::RequestRange(oldest))],
        };
        let reply = client.kv.txn(request).await.map_err(|status| lost(self.lease, "when a lock was taken", status))?;
        let reply = reply.into_inner();
        let first = |at: usize| match reply.responses.get(at).and_then(|op| op.response.as_ref()) {
            Some(Response::ResponseRange(range)) => range.kvs.first().map(|kv| kv.create_revision),
            _ => None,
        };
        let created = match reply.succeeded {
            true => reply.header.as_ref().map(|header| header.revision),
            // The key of an earlier attempt whose answer was lost.
            false => first(0),
        };
        let both = created.zip(first(1));
        both.ok_or_else(|| wrong(format_args!("a lock's transaction was answered with {reply:?}")))
    }

    /// Watches a key from a revision on until it is deleted.
    async fn wait_for_delete(&mut self, client: &mut Client, key: Bytes, revision: i64) -> Result<(), Trouble> {
        self.watches += 1;
        let watch_id = self.watches;
        let create = WatchCreateRequest { key, start_revision: revision, watch_id, ..WatchCreateRequest::default() };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let gone = || Status::unavailable("the watch stream is gone");
        let mut watcher = match self.watcher.take() {
            Some(watcher) => {
                watcher.requests.send(create).await.map_err(|_| gone())?;
                watcher
            }
            None => {
                let (requests, queue) = mpsc::channel(WATCH_REQUESTS);
                requests.send(create).await.map_err(|_| gone())?;
                let responses = client.watches.watch(ReceiverStream::new(queue)).await?.into_inner();
                Watcher { requests, responses }
            }
        };
        loop {
            let told = watcher.responses.message().await?.ok_or_else(gone)?;
            // What is still said about watches before this one is of no account.
            if told.watch_id != watch_id {
                continue;
            }
            if told.canceled {
                return Err(Status::aborted(format!("the server ended a watch: {:?}", told.cancel_reason)).into());
            }
            if told.events.iter().any(|event| event.r#type() == EventType::Delete) {
                break;
            }
        }
        let cancel = WatchRequest { request_union: Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })) };
        watcher.requests.send(cancel).await.map_err(|_| gone())?;
        self.watcher = Some(watcher);
        Ok(())
    }

    async fn release(&self, client: &mut Client) -> Result<(), Trouble> {
        let request = DeleteRangeRequest { key: self.own_key(), ..DeleteRangeRequest::default() };
        match client.kv.delete_range(request).await?.get_ref().deleted {
            1 => Ok(()),
            count => Err(wrong(format_args!("LOST LEASE: {count} keys of a lock that was held were deleted"))),
        }
    }
}

impl Driver for Lock {
    async fn prepare(&mut self, client: &mut Client) -> Result<(), Trouble> {
        self.lease = client.grant().await?;
        Ok(())
    }

    async fn operation(&mut self, client: &mut Client) -> Result<Kind, Trouble> {
        match self.recipe {
            Recipe::Client => {
                let created = self.acquire(client).await?;
                hold(client, created, true)?;
                give_up(client);
                self.release(client).await?;
            }
            Recipe::Server => {
                let request = LockRequest { name: self.name.clone(), lease: self.lease };
                let reply = client.locks.lock(request).await;
                let reply = reply.map_err(|status| lost(self.lease, "when a lock was taken", status))?.into_inner();
                if reply.key != self.own_key() {
                    return Err(wrong(format_args!("the lock of lease {:x} has the key {:?}", self.lease, reply.key)));
                }
                // The answer does not say when the key was created, only a revision at which it was the oldest.
                hold(client, reply.header.map_or(0, |header| header.revision), false)?;
                give_up(client);
                client.locks.unlock(UnlockRequest { key: reply.key }).await?;
            }
        }
        Ok(Kind::Lock)
    }

    async fn finish(&mut self, client: &mut Client) -> Result<(), Trouble> {
        client.revoke(self.lease).await
    }
}

/// Notes that a worker has the lock since `revision`: nobody else may have it, and it was won later than by the last one.
fn hold(client: &Client, revision: i64, rises: bool) -> Result<(), Trouble> {
    let (me, common) = (client.number as u64 + 1, &client.common);
    let other = common.holder.swap(me, Ordering::SeqCst);
    if other != 0 {
        return Err(wrong(format_args!("TWO HOLDERS: workers {} and {} have the lock", other - 1, me - 1)));
    }
    let before = common.won.fetch_max(revision, Ordering::SeqCst);
    if revision < before || (rises && revision == before) {
        return Err(wrong(format_args!("a lock was won at revision {revision}, after one at {before}")));
    }
    Ok(())
}

/// Notes that a worker is about to give the lock back.
fn give_up(client: &Client) {
    client.common.holder.store(0, Ordering::SeqCst);
}
