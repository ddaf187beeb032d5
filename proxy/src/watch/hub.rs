//! The shell around [`super::merge`]: one upstream for each store that is followed, and a task that finds out where
//! pieces are followed.
//!
//! ```text
//!  subscribe, want ─┐                        ┌─► upstream to a store ──► feed, lost ─┐
//!                   ├─► Merge (one lock) ────┤                                       ├─► Merge
//!  placer ──────────┘     effects            └─► placer: routes, lessons, pauses ────┘
//! ```
//!
//! Receivers are told while the lock is held: they must not call the hub from [`Receiver::take`], nor wait for anybody
//! who does. Calls of the hub tell nobody anything on the caller's thread, so callers may hold locks of their own that
//! `take` needs not.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use braid_placement_client::Numbers;
use braid_proto::id::{ClusterId, StoreId};
use braid_proto::key::KeyRange;
use braid_proto::pb::{Nudge, Unfollow, WatchFeed, WatchOrder, watch_news, watch_order};
use braid_store_client::Regions;
use braid_store_client::deadline::Patience;
use braid_store_client::retry;
use braid_store_client::stores::connection::Pause;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::merge::{Effect, Limits, Merge, Tile, Trouble};
use super::upstream::{self, Link, Listener, Way};
use super::{Receiver, Source, SubscriptionId, Wanted};

/// Pieces that are being placed at once; the others wait in line. After the loss of a store most need nothing but a
/// look into the route table.
const PLACING_MAX: usize = 1_024;
/// How long one attempt to place a piece may wait for placement.
const PLACE_TIMEOUT: Duration = Duration::from_secs(1);

/// Where watches come from.
pub struct Hub {
    /// For the tasks it starts.
    this: Weak<Hub>,
    regions: Arc<Regions>,
    numbers: Arc<Numbers>,
    cluster_id: ClusterId,
    state: Mutex<State>,
    /// Bounded by what there is: each piece is in it at most once under its present name, each subscription once for
    /// each time its receiver was full.
    errands: mpsc::UnboundedSender<Errand>,
    stop: watch::Sender<bool>,
    gauges: Gauges,
}

struct State {
    merge: Merge,
    links: HashMap<StoreId, Link>,
    pauses: HashMap<StoreId, Pause>,
    waiters: HashMap<SubscriptionId, Vec<(i64, oneshot::Sender<()>)>>,
}

/// What the placer does.
enum Errand {
    Place { piece: u64, range: KeyRange, attempt: u32, trouble: Trouble },
    Resume(SubscriptionId),
}

struct Gauges {
    groups: metrics::Gauge,
    watches: metrics::Gauge,
    waiting_events: metrics::Gauge,
    refollows: metrics::Counter,
}

impl Hub {
    /// A hub that follows nothing yet. Must be called inside a tokio runtime.
    pub fn start(regions: Arc<Regions>, numbers: Arc<Numbers>, cluster_id: ClusterId) -> Arc<Self> {
        let (errands, line) = mpsc::unbounded_channel();
        let state = State {
            merge: Merge::new(Limits::default()),
            links: HashMap::new(),
            pauses: HashMap::new(),
            waiters: HashMap::new(),
        };
        let gauges = Gauges {
            groups: metrics::gauge!("braid_proxy_watch_groups"),
            watches: metrics::gauge!("braid_proxy_watches"),
            waiting_events: metrics::gauge!("braid_proxy_watch_waiting_events"),
            refollows: metrics::counter!("braid_proxy_watch_refollows_total"),
        };
        let stop = watch::Sender::new(false);
        let state = Mutex::new(state);
        let hub = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            regions,
            numbers,
            cluster_id,
            state,
            errands,
            stop,
            gauges,
        });
        let (placer, mut stopped) = (Arc::clone(&hub), hub.stop.subscribe());
        tokio::spawn(async move {
            tokio::select! {
                () = placer.run_errands(line) => {}
                // Its sender lives as long as the hub, which this task holds.
                _ = stopped.wait_for(|stopped| *stopped) => {}
            }
        });
        hub
    }

    /// Ends everything: connections, and waits, which never come true any more. Subscriptions hear nothing further.
    pub fn stop(&self) {
        self.stop.send_replace(true);
        let mut state = self.state.lock();
        state.links.clear();
        state.waiters.clear();
    }

    /// Does something with the merge, and then what follows from it.
    fn with<T>(&self, act: impl FnOnce(&mut Merge) -> T) -> T {
        let mut state = self.state.lock();
        let out = act(&mut state.merge);
        self.follow_up(&mut state);
        out
    }

    fn follow_up(&self, state: &mut State) {
        let mut nudges: Vec<(StoreId, i64)> = Vec::new();
        loop {
            let effects = state.merge.effects();
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                match effect {
                    Effect::Place { piece, range, attempt, trouble } => {
                        // Only a stopped hub has no placer.
                        _ = self.errands.send(Errand::Place { piece, range, attempt, trouble });
                    }
                    Effect::Follow { store, order } => {
                        let id = order.id;
                        if !self.send(state, store, watch_order::Order::Follow(order)) {
                            state.merge.left(store, id, Trouble::Lost(store));
                        }
                    }
                    Effect::Unfollow { store, id } => {
                        // A store that cannot be reached has forgotten.
                        send_if_up(state, store, watch_order::Order::Unfollow(Unfollow { id }));
                    }
                    Effect::Nudge { store, revision } => match nudges.iter_mut().find(|(known, _)| *known == store) {
                        Some((_, wanted)) => *wanted = revision.max(*wanted),
                        None => nudges.push((store, revision)),
                    },
                    Effect::Reached { id, revision } => wake(&mut state.waiters, id, revision),
                }
            }
        }
        for (store, revision) in nudges {
            // The follows that it was for are placed anew if the connection is gone, and ask again when they join.
            send_if_up(state, store, watch_order::Order::Nudge(Nudge { revision }));
        }
        let counts = state.merge.counts();
        #[allow(clippy::cast_precision_loss, reason = "a gauge is a float; counts this large do not occur")]
        let float = |count: usize| count as f64;
        self.gauges.groups.set(float(counts.groups));
        self.gauges.watches.set(float(counts.watches));
        self.gauges.waiting_events.set(float(counts.waiting_events));
        self.gauges.refollows.absolute(counts.refollows);
    }

    /// Sends an order, connecting if need be. False: the store cannot be reached now.
    fn send(&self, state: &mut State, store: StoreId, order: watch_order::Order) -> bool {
        if *self.stop.borrow() {
            // Nothing is placed any more either.
            return true;
        }
        let link = state.links.entry(store).or_insert(Link::Idle);
        if let Link::Idle = link {
            let (sender, orders) = mpsc::unbounded_channel();
            *link = Link::Up(sender);
            self.connect(store, orders);
        }
        send_if_up(state, store, order)
    }

    fn connect(&self, store: StoreId, orders: mpsc::UnboundedReceiver<WatchOrder>) {
        let Some(hub) = self.this.upgrade() else { return };
        let way = match self.regions.local(store).filter(|service| service.can_be_followed()) {
            Some(service) => Way::Here(service),
            None => Way::There(self.regions.address(store)),
        };
        let mut stopped = self.stop.subscribe();
        let cluster_id = self.cluster_id;
        tokio::spawn(async move {
            let listener: Arc<dyn Listener> = Arc::new(Ears(Arc::clone(&hub)));
            let pause = |stood| hub.state.lock().pauses.entry(store).or_default().after(stood);
            tokio::select! {
                () = upstream::run(listener, cluster_id, store, way, orders, pause) => {}
                _ = stopped.wait_for(|stopped| *stopped) => {}
            }
        });
    }

    async fn run_errands(self: Arc<Self>, mut line: mpsc::UnboundedReceiver<Errand>) {
        let mut placing = FuturesUnordered::new();
        loop {
            tokio::select! {
                errand = line.recv(), if placing.len() < PLACING_MAX => match errand {
                    Some(Errand::Place { piece, range, attempt, trouble }) => {
                        placing.push(self.place(piece, range, attempt, trouble));
                    }
                    Some(Errand::Resume(id)) => {
                        let newest = self.newest();
                        self.with(|merge| merge.resume(id, newest));
                    }
                    None => return,
                },
                Some(()) = placing.next(), if !placing.is_empty() => {}
            }
        }
    }

    /// Finds out where a piece is followed, after what there is to learn from why it is not where it was.
    async fn place(&self, piece: u64, range: KeyRange, attempt: u32, trouble: Trouble) {
        let patience = Patience::within(PLACE_TIMEOUT);
        let key = range.start.clone();
        let last = attempt.saturating_sub(1);
        match trouble {
            Trouble::None if attempt == 0 => {}
            Trouble::None => tokio::time::sleep(retry::pause(last)).await,
            Trouble::Refused(store, why) => {
                tracing::debug!(%store, ?why, attempt, "a store refuses to be followed");
                self.regions.heed(&key, store, Some(why), last, patience).await;
            }
            Trouble::Lost(store) => self.regions.heed(&key, store, None, last, patience).await,
        }
        let pieces = match self.regions.pieces(&range, Patience::within(PLACE_TIMEOUT)).await {
            Ok(pieces) => pieces,
            Err(why) => {
                tracing::debug!(why = why.message(), attempt, "no route for a watch");
                return self.with(|merge| merge.not_placed(piece));
            }
        };
        let tiles = pieces.into_iter().map(|(route, range)| Tile {
            range,
            region: route.region,
            epoch: route.epoch,
            store: self.regions.likely_leader(&route, attempt),
        });
        let tiles: Vec<Tile> = tiles.collect();
        self.with(|merge| merge.placed(piece, tiles));
    }

    fn newest(&self) -> i64 {
        self.numbers.heard().1
    }

    fn take_feed(&self, store: StoreId, feed: WatchFeed) {
        let mut state = self.state.lock();
        for news in feed.news {
            let merge = &mut state.merge;
            match news.news {
                Some(watch_news::News::Joined(joined)) => merge.joined(store, joined.id, joined.frontier),
                Some(watch_news::News::Left(left)) if left.compacted > 0 => {
                    merge.left_compacted(store, left.id, left.compacted);
                }
                Some(watch_news::News::Left(left)) => {
                    let trouble = Trouble::Refused(store, left.refusal.unwrap_or_default());
                    merge.left(store, left.id, trouble);
                }
                Some(watch_news::News::Events(events)) => merge.events(store, &events),
                Some(watch_news::News::Frontier(frontier)) => merge.store_frontier(store, &frontier),
                None => tracing::warn!(%store, "a store says something that this version does not know"),
            }
        }
        self.follow_up(&mut state);
    }
}

impl Source for Hub {
    fn subscribe(&self, id: SubscriptionId, wanted: Wanted, receiver: Arc<dyn Receiver>) {
        let newest = self.newest();
        self.with(|merge| merge.subscribe(id, wanted, receiver, newest));
    }

    fn unsubscribe(&self, id: SubscriptionId) {
        self.with(|merge| merge.unsubscribe(id));
    }

    fn resume(&self, id: SubscriptionId) {
        // Only a stopped hub has nobody to do it.
        _ = self.errands.send(Errand::Resume(id));
    }

    fn frontier(&self, id: SubscriptionId) -> Option<i64> {
        self.state.lock().merge.frontier(id)
    }

    fn reach(&self, id: SubscriptionId, revision: i64) -> BoxFuture<'static, ()> {
        let mut state = self.state.lock();
        if state.merge.want(id, revision) {
            return Box::pin(std::future::ready(()));
        }
        let (tell, told) = oneshot::channel();
        let waiters = state.waiters.entry(id).or_default();
        // Whoever has stopped waiting makes room.
        waiters.retain(|(_, waiter)| !waiter.is_closed());
        waiters.push((revision, tell));
        self.follow_up(&mut state);
        Box::pin(async move { _ = told.await })
    }

    fn silent(&self, ids: &[SubscriptionId]) -> HashSet<Bytes> {
        self.state.lock().merge.silent(ids)
    }
}

/// What an upstream tells the hub.
struct Ears(Arc<Hub>);

impl Listener for Ears {
    fn feed(&self, store: StoreId, feed: WatchFeed) {
        self.0.take_feed(store, feed);
    }

    fn lost(&self, store: StoreId) {
        let mut state = self.0.state.lock();
        state.links.insert(store, Link::Down);
        state.merge.lost(store);
        self.0.follow_up(&mut state);
    }

    fn rested(&self, store: StoreId) {
        self.0.state.lock().links.insert(store, Link::Idle);
    }
}

fn send_if_up(state: &State, store: StoreId, order: watch_order::Order) -> bool {
    match state.links.get(&store) {
        // If the connection has just gone, `lost` is about to be told.
        Some(Link::Up(orders)) => {
            _ = orders.send(WatchOrder { order: Some(order), ..WatchOrder::default() });
            true
        }
        Some(Link::Down | Link::Idle) | None => false,
    }
}

fn wake(waiters: &mut HashMap<SubscriptionId, Vec<(i64, oneshot::Sender<()>)>>, id: SubscriptionId, revision: i64) {
    let Some(waiting) = waiters.get_mut(&id) else { return };
    for (_, waiter) in waiting.extract_if(.., |(wanted, _)| *wanted <= revision) {
        // They may have gone.
        _ = waiter.send(());
    }
    if waiting.is_empty() {
        waiters.remove(&id);
    }
}

#[cfg(test)]
mod tests;
