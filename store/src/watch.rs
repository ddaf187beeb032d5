//! The store's side of watch: tells proxies what happens in the regions that are led here
//! (`docs/decisions/0005-watch.md`).
//!
//! ```text
//!  proxy ── WatchOrder ──► Following ─► follow ─┬─► catch_up    the past, from disk, on threads that may block
//!    ▲                                          ▼
//!    │                                        live ◄── apply    what happens, on the apply thread
//!    └── WatchFeed ◄── feed ◄──────────────────┴────── rounds   frontiers, behind what they cover
//! ```
//!
//! Deliberately absent: merging regions and holding events back (the proxy's), deadlines: a proxy that does not read is
//! left alone until its queue is full, then its follows end.

mod catch_up;
mod feed;
pub mod live;
mod ranges;
mod rounds;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use braid_host::Host;
use braid_placement_client::Numbers;
use braid_proto::id::{ClusterId, RegionId, StoreId, Term};
use braid_proto::key::KeyRange;
use braid_proto::pb::region_watch_server::RegionWatch;
use braid_proto::pb::{Follow as FollowOrder, Joined, Left, Refusal, WatchFeed, WatchOrder, watch_order};
use braid_store_core::pipeline::{busy, not_found};
use futures::stream::{self, BoxStream};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{Notify, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use crate::machine::Regions;
use crate::region::RegionPeer;
use feed::{Feed, Follow, Phase};

pub use rounds::run;

/// Follows of one proxy; more are refused.
const FOLLOWS_MAX: usize = 1 << 18;

/// Tells everybody who follows regions of this store.
pub struct Publisher {
    numbers: Arc<Numbers>,
    regions: OnceLock<Weak<Regions>>,
    feeds: Mutex<HashMap<u64, Arc<Feed>>>,
    next: AtomicU64,
    kicked: Notify,
    /// The raft groups on whose leases promises rest.
    host: OnceLock<Weak<Host>>,
    /// Regions that rounds must look at; each at most once.
    stirred: Mutex<Vec<RegionId>>,
    rounds: Mutex<rounds::Rounds>,
}

/// Why an order cannot be obeyed: the proxy does not keep to the protocol.
#[derive(Debug, Error)]
pub enum BadOrder {
    /// The order is empty, or of a kind that this version does not know.
    #[error("the order is none this version knows")]
    Unknown,
    /// Names of follows are never used twice.
    #[error("follow {0} was named before on this stream")]
    Named(u64),
}

impl Publisher {
    /// One that nobody listens to yet.
    pub fn new(numbers: Arc<Numbers>) -> Arc<Self> {
        Arc::new(Self {
            numbers,
            regions: OnceLock::new(),
            feeds: Mutex::default(),
            next: AtomicU64::new(1),
            kicked: Notify::new(),
            host: OnceLock::new(),
            stirred: Mutex::default(),
            rounds: Mutex::default(),
        })
    }

    /// The regions it tells about.
    pub fn serve(&self, regions: &Arc<Regions>) {
        _ = self.regions.set(Arc::downgrade(regions));
    }

    /// The raft groups on whose leases its promises rest. Until it knows them it looks at every region in every round.
    pub fn lean_on(&self, host: &Arc<Host>) {
        _ = self.host.set(Arc::downgrade(host));
    }

    /// A region's frontier may be held back from now on; see [`RegionPeer::stir`].
    pub fn stirred(&self, region: RegionId) {
        self.stirred.lock().push(region);
    }

    /// A region's frontier may have moved.
    pub fn kick(&self) {
        self.kicked.notify_one();
    }

    /// Asks what the newest revision is; a round follows. A bound is at least as new as anything that was given before
    /// it was asked for.
    fn hear(self: &Arc<Self>) {
        let publisher = Arc::clone(self);
        self.numbers.request(0, Box::new(move |_| publisher.applied()));
    }

    /// A proxy begins to listen.
    pub fn connect(self: &Arc<Self>) -> Following {
        let feed = Feed::new(self.next.fetch_add(1, Ordering::Relaxed));
        self.feeds.lock().insert(feed.id, Arc::clone(&feed));
        metrics::gauge!("braid_watch_feeds").increment(1.0);
        Following { connection: Arc::new(Connection { publisher: Arc::clone(self), feed }) }
    }

    /// Obeys a proxy of this process; see [`braid_proto::service::RegionService::follow`].
    pub fn follow(self: &Arc<Self>, mut orders: BoxStream<'static, WatchOrder>) -> BoxStream<'static, WatchFeed> {
        let following = self.connect();
        let obeying = following.clone();
        let obeyed = async move {
            while let Some(order) = orders.next().await {
                if let Err(bad) = obeying.order(order) {
                    tracing::error!(%bad, "a proxy of this process does not keep to the protocol of watches");
                    return;
                }
            }
        };
        let told = stream::unfold(following, |following| async move { Some((following.next().await?, following)) });
        Box::pin(futures::StreamExt::take_until(told, obeyed))
    }

    fn missing(&self, id: u64) -> Refusal {
        let regions = self.regions.get().and_then(Weak::upgrade);
        regions.map_or_else(not_found, |regions| regions.missing(RegionId(id)))
    }

    fn region(&self, id: u64) -> Option<Arc<RegionPeer>> {
        self.regions.get()?.upgrade()?.get(RegionId(id))
    }
}

/// One proxy that listens, in whatever process. Ends when all clones are dropped.
#[derive(Clone)]
pub struct Following {
    connection: Arc<Connection>,
}

struct Connection {
    publisher: Arc<Publisher>,
    feed: Arc<Feed>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.publisher.feeds.lock().remove(&self.feed.id);
        self.feed.close();
        metrics::gauge!("braid_watch_feeds").decrement(1.0);
    }
}

impl Following {
    /// Takes an order. What comes of it is among the news.
    ///
    /// # Errors
    /// The order is against the protocol.
    pub fn order(&self, order: WatchOrder) -> Result<(), BadOrder> {
        let Connection { publisher, feed } = &*self.connection;
        match order.order.ok_or(BadOrder::Unknown)? {
            watch_order::Order::Follow(order) => follow(publisher, feed, order)?,
            watch_order::Order::Unfollow(order) => feed.unfollow(order.id),
            watch_order::Order::Nudge(nudge) => wake(publisher, feed, nudge.revision),
        }
        Ok(())
    }

    /// The next news; one caller at a time.
    pub async fn next(&self) -> Option<WatchFeed> {
        self.connection.feed.take().await.map(|news| WatchFeed { news })
    }
}

/// A frontier is wanted that reaches `revision`.
fn wake(publisher: &Arc<Publisher>, feed: &Arc<Feed>, revision: i64) {
    feed.nudged.fetch_max(revision, Ordering::SeqCst);
    if publisher.numbers.heard().1 >= revision {
        return publisher.applied();
    }
    publisher.hear();
}

fn follow(publisher: &Publisher, feed: &Arc<Feed>, order: FollowOrder) -> Result<(), BadOrder> {
    let left = |refusal, compacted| feed.push_left(Left { id: order.id, refusal, compacted });
    let Some(region) = publisher.region(order.region_id) else {
        left(Some(publisher.missing(order.region_id)), 0);
        return Ok(());
    };
    let range = KeyRange { start: order.start.clone(), end: order.end.clone() };
    let term = match may_follow(&region, &range, &order) {
        Ok(term) => term,
        Err(refusal) => {
            left(Some(refusal), 0);
            return Ok(());
        }
    };
    let boundary = region.data().boundary();
    if order.after < boundary - 1 {
        left(None, boundary);
        return Ok(());
    }
    let follow = Arc::new(Follow {
        feed: Arc::clone(feed),
        id: order.id,
        region: Arc::downgrade(&region),
        region_id: region.id(),
        term,
        range,
        after: order.after,
        prev_kv: order.prev_kv,
        progress: AtomicI64::new(order.after),
        out: Mutex::new(Phase::Past),
    });
    {
        // Together: no frontier that covers the region must come between the two.
        let mut follows = feed.follows.lock();
        if follows.by_id.contains_key(&order.id) {
            return Err(BadOrder::Named(order.id));
        }
        if follows.by_id.len() >= FOLLOWS_MAX {
            left(Some(busy("the proxy follows too much")), 0);
            return Ok(());
        }
        follows.by_id.insert(order.id, Arc::clone(&follow));
        follows.catching_up.insert(order.id, Arc::clone(&follow));
        follows.regions.entry(region.id()).or_insert_with(|| (Arc::downgrade(&region), 0)).1 += 1;
        region.stir();
        // What was said before does not speak of this follow.
        follows.said = None;
        metrics::gauge!("braid_watch_follows").increment(1.0);
        feed.push_joined(Joined { id: order.id, term: term.0, frontier: order.after });
    }
    region.live().lock().add(Arc::clone(&follow));
    // Whoever ends the region's follows looks at the list after this peer has stopped to lead; it may not have seen this
    // one.
    if let Err(refusal) = still_led(&region, term, &order) {
        follow.end_with(Some(refusal), 0);
        return Ok(());
    }
    if catch_up::at_once(&region, &follow) {
        publisher.kick();
        return Ok(());
    }
    tokio::spawn(read_past(region, follow));
    Ok(())
}

async fn read_past(region: Arc<RegionPeer>, follow: Arc<Follow>) {
    let permits = Arc::clone(&follow.feed.catch_ups);
    // Never closed.
    let Ok(permit) = permits.acquire_owned().await else { return };
    let publisher = Arc::clone(&region.shared().publisher);
    let read = tokio::task::spawn_blocking(move || {
        catch_up::run(&region, &follow);
        drop(permit);
    });
    if let Err(error) = read.await {
        tracing::error!(%error, "reading the past of a watch was given up");
    }
    publisher.kick();
}

/// The term in which this peer leads the region, if it may be followed as the order says.
fn may_follow(region: &RegionPeer, range: &KeyRange, order: &FollowOrder) -> Result<Term, Refusal> {
    if region.is_damaged() {
        return Err(busy("the region's data is damaged here"));
    }
    let Some((term, _, _)) = region.leads_up_to(0) else { return Err(region.not_leader()) };
    still_led(region, term, order)?;
    if !region.handle().region().range().contains_range(range) {
        return Err(region.epoch_mismatch());
    }
    if !region.handle().lease(term) {
        return Err(busy("the region's leader has no lease at the moment"));
    }
    Ok(term)
}

/// Whether this peer leads in `term`, and the region is cut as the order says.
fn still_led(region: &RegionPeer, term: Term, order: &FollowOrder) -> Result<(), Refusal> {
    if region.leads_up_to(0).is_none_or(|(leads, _, _)| leads != term) {
        return Err(region.not_leader());
    }
    match region.is_cut_as(order.epoch.unwrap_or_default()) {
        true => Ok(()),
        false => Err(region.epoch_mismatch()),
    }
}

/// The gRPC side.
pub struct RegionWatchService {
    cluster_id: ClusterId,
    store_id: StoreId,
    publisher: Arc<Publisher>,
}

impl RegionWatchService {
    /// Serves proxies of cluster `cluster_id` as store `store_id`.
    pub fn new(cluster_id: ClusterId, store_id: StoreId, publisher: Arc<Publisher>) -> Self {
        Self { cluster_id, store_id, publisher }
    }
}

#[tonic::async_trait]
impl RegionWatch for RegionWatchService {
    type FollowStream = BoxStream<'static, Result<WatchFeed, Status>>;

    async fn follow(
        &self,
        request: tonic::Request<Streaming<WatchOrder>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let mut orders = request.into_inner();
        let Some(first) = orders.message().await? else {
            return Err(Status::invalid_argument("the stream ended before it said what to follow"));
        };
        if first.cluster_id != self.cluster_id.0 || first.to_store != self.store_id.0 {
            return Err(Status::failed_precondition(format!(
                "this is store {} of cluster {}, not store {} of cluster {}",
                self.store_id,
                self.cluster_id,
                StoreId(first.to_store),
                ClusterId(first.cluster_id)
            )));
        }
        let following = self.publisher.connect();
        let (tell, told) = mpsc::channel(2);
        tokio::spawn(converse(following, first, orders, tell));
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }
}

/// Obeys one proxy until it goes.
async fn converse(
    following: Following,
    first: WatchOrder,
    mut orders: Streaming<WatchOrder>,
    tell: mpsc::Sender<Result<WatchFeed, Status>>,
) {
    let obey = async {
        // The first one may do nothing but name the cluster and the store.
        let mut next = match first.order {
            Some(_) => Some(first),
            None => orders.next().await.and_then(Result::ok),
        };
        while let Some(order) = next {
            if let Err(bad) = following.order(order) {
                _ = tell.send(Err(Status::invalid_argument(bad.to_string()))).await;
                return;
            }
            next = match orders.next().await {
                Some(Ok(order)) => Some(order),
                Some(Err(_)) | None => None,
            };
        }
    };
    let speak = async {
        while let Some(news) = following.next().await {
            if tell.send(Ok(news)).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = obey => {}
        () = speak => {}
        () = tell.closed() => {}
    }
}
