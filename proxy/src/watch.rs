//! Watch: events of many regions as one ordered stream for each client. How it works, and why, is in
//! `docs/decisions/0005-watch.md`.
//!
//! The service speaks etcd's words with clients and knows nothing of regions; the hub knows regions and nothing of clients'
//! streams. Between them lies [`Source`].

pub mod batch;
pub mod hub;
pub mod merge;
pub mod service;
pub mod session;
mod upstream;
pub mod wire;

use std::collections::HashSet;
use std::sync::Arc;

use braid_proto::key::KeyRange;
use bytes::Bytes;
use futures::future::BoxFuture;

use batch::Batch;

/// Names a subscription of one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriptionId(pub u64);

/// What a client's stream wants to hear.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Internal keys; not empty.
    pub range: KeyRange,
    /// First revision wanted. At most one above the newest: what lies further ahead is the caller's to hold back.
    pub start: i64,
    /// Whether events carry what was there before.
    pub prev_kv: bool,
}

/// Where news of subscriptions go: all events of a revision at once, revisions rising, nothing left out. Must not block.
pub trait Receiver: Send + Sync + 'static {
    /// Takes the moments of `batch` from index `from` on, which is inside of it. Returns the index of the first that there is
    /// no room for; the batch's length if it has taken all. What it has not taken is offered again after
    /// [`Source::resume`], and nothing else until then.
    fn take(&self, id: SubscriptionId, batch: &Batch, from: usize) -> usize;

    /// History that is needed to go on is gone: it begins at `begin`. The subscription has ended. False: there is no room;
    /// it is said again after [`Source::resume`].
    fn end(&self, id: SubscriptionId, begin: i64) -> bool;
}

/// Where events come from.
pub trait Source: Send + Sync + 'static {
    /// Begins to tell `receiver` what `wanted` says. News may come before this returns.
    fn subscribe(&self, id: SubscriptionId, wanted: Wanted, receiver: Arc<dyn Receiver>);

    /// Ends a subscription. No news of it come after this returns.
    fn unsubscribe(&self, id: SubscriptionId);

    /// The receiver of `id` has room again.
    fn resume(&self, id: SubscriptionId);

    /// The revision up to which the receiver has taken all there is; nothing at or below it comes any more. `None`: there is
    /// no such subscription (any more).
    fn frontier(&self, id: SubscriptionId) -> Option<i64>;

    /// Ends once the frontier of `id` has reached `revision`, which the sequencer has given, or there is no such
    /// subscription any more. Waits as long as that takes.
    fn reach(&self, id: SubscriptionId, revision: i64) -> BoxFuture<'static, ()>;

    /// Where these subscriptions hear nothing at the moment, because no leader of the region tells: the first keys of
    /// such places. A source without regions has none.
    fn silent(&self, _ids: &[SubscriptionId]) -> HashSet<Bytes> {
        HashSet::new()
    }
}
