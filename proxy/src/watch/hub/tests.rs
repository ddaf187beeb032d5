//! The hub against stores on loopback that keep a log, and lose connections and leadership on command.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use braid_placement_client::{Numbers, NumbersConfig, PlacementClient};
use braid_proto::etcd::mvccpb::{Event, KeyValue};
use braid_proto::id::ClusterId;
use braid_proto::key::{KeyRange, user_key};
use braid_proto::pb::region_watch_server::{RegionWatch, RegionWatchServer};
use braid_proto::pb::{
    Joined, Left, NotLeader, Peer, Refusal, Region, RegionEpoch, RegionEvent, RegionEvents, Store, StoreFrontier,
    WatchFeed, WatchNews, WatchOrder, refusal, watch_news, watch_order,
};
use braid_store_client::Regions;
use futures::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::Hub;
use crate::watch::batch::Batch;
use crate::watch::{Receiver, Source, SubscriptionId, Wanted};

const CLUSTER: ClusterId = ClusterId(7);
const PATIENCE: Duration = Duration::from_secs(20);

/// One region: everything that has happened in it, and the store that leads it.
#[derive(Default)]
struct Truth {
    newest: i64,
    /// Revision, region, key.
    log: Vec<(i64, u64, String)>,
    /// By region: 1 is [.., m), 2 is [m, ..).
    leaders: [u64; 2],
    peers: Vec<Arc<FakeStore>>,
}

struct FakeStore {
    id: u64,
    truth: Arc<Mutex<Truth>>,
    streams: Mutex<Vec<Link>>,
    links: AtomicU64,
}

struct Link {
    id: u64,
    feeds: mpsc::UnboundedSender<Result<WatchFeed, Status>>,
    /// Follow and region.
    follows: Vec<(u64, u64)>,
}

fn news(news: watch_news::News) -> Result<WatchFeed, Status> {
    Ok(WatchFeed { news: vec![WatchNews { news: Some(news) }] })
}

fn events(ids: Vec<u64>, revision: i64, key: &str) -> watch_news::News {
    let kv = KeyValue { key: key.to_owned().into(), mod_revision: revision, ..KeyValue::default() };
    let event = RegionEvent { sub: 0, event: Some(Event { kv: Some(kv), ..Event::default() }) };
    watch_news::News::Events(RegionEvents { ids, revision, events: vec![event] })
}

impl FakeStore {
    /// Tells its followers what has happened in a region, and how far it has got.
    fn publish(&self, region: u64, revision: i64, key: &str) {
        for link in &*self.streams.lock() {
            let ids: Vec<u64> = link.follows.iter().filter(|(_, at)| *at == region).map(|(id, _)| *id).collect();
            if !ids.is_empty() {
                _ = link.feeds.send(news(events(ids, revision, key)));
                _ = link.feeds.send(frontier(revision));
            }
        }
    }

    fn break_connections(&self) {
        self.streams.lock().clear();
    }

    fn resign(&self, region: u64, leader: u64) {
        for link in &mut *self.streams.lock() {
            for (id, _) in link.follows.extract_if(.., |(_, at)| *at == region) {
                _ = link.feeds.send(news(left(id, leader)));
            }
        }
    }

    fn obey(&self, link: u64, order: WatchOrder) {
        let truth = self.truth.lock();
        let mut streams = self.streams.lock();
        let Some(link) = streams.iter_mut().find(|known| known.id == link) else { return };
        match order.order {
            Some(watch_order::Order::Follow(follow)) => {
                let leader = truth.leaders[usize::try_from(follow.region_id - 1).expect("small")];
                if leader != self.id {
                    _ = link.feeds.send(news(left(follow.id, leader)));
                    return;
                }
                let joined = Joined { id: follow.id, term: 1, frontier: follow.after };
                _ = link.feeds.send(news(watch_news::News::Joined(joined)));
                for (revision, region, key) in &truth.log {
                    if *region == follow.region_id && *revision > follow.after {
                        _ = link.feeds.send(news(events(vec![follow.id], *revision, key)));
                    }
                }
                link.follows.push((follow.id, follow.region_id));
            }
            Some(watch_order::Order::Unfollow(unfollow)) => link.follows.retain(|(id, _)| *id != unfollow.id),
            Some(watch_order::Order::Nudge(_)) => _ = link.feeds.send(frontier(truth.newest)),
            None => panic!("an order without content"),
        }
    }
}

fn frontier(revision: i64) -> Result<WatchFeed, Status> {
    news(watch_news::News::Frontier(StoreFrontier {
        revision,
        compacted: 0,
        lower: Vec::new(),
        catching_up: Vec::new(),
    }))
}

fn left(id: u64, leader: u64) -> watch_news::News {
    let leader = Some(Peer::voter(leader, leader));
    let refusal = Refusal { reason: Some(refusal::Reason::NotLeader(NotLeader { leader })) };
    watch_news::News::Left(Left { id, refusal: Some(refusal), compacted: 0 })
}

/// The gRPC side of a store.
struct Served(Arc<FakeStore>);

#[tonic::async_trait]
impl RegionWatch for Served {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<WatchFeed, Status>> + Send>>;

    async fn follow(&self, request: Request<Streaming<WatchOrder>>) -> Result<Response<Self::FollowStream>, Status> {
        let mut orders = request.into_inner();
        let first = orders.message().await?.ok_or_else(|| Status::invalid_argument("no order"))?;
        assert_eq!((first.cluster_id, first.to_store), (CLUSTER.0, self.0.id));
        let (feeds, mut out) = mpsc::unbounded_channel();
        let id = self.0.links.fetch_add(1, Ordering::Relaxed);
        self.0.streams.lock().push(Link { id, feeds, follows: Vec::new() });
        let store = Arc::clone(&self.0);
        tokio::spawn(async move {
            store.obey(id, first);
            while let Some(Ok(order)) = orders.next().await {
                assert_eq!((order.cluster_id, order.to_store), (0, 0));
                store.obey(id, order);
            }
        });
        Ok(Response::new(Box::pin(stream::poll_fn(move |context| out.poll_recv(context)))))
    }
}

/// Takes everything, until it is told to be full.
#[derive(Default)]
struct Client {
    heard: Mutex<Vec<(i64, String)>>,
    full: Mutex<bool>,
}

impl Receiver for Client {
    fn take(&self, _: SubscriptionId, batch: &Batch, from: usize) -> usize {
        if *self.full.lock() {
            return from;
        }
        for moment in &batch.moments()[from..] {
            for event in &moment.events {
                let key = event.kv.as_ref().map(|kv| kv.key.to_vec()).unwrap_or_default();
                self.heard.lock().push((moment.revision, String::from_utf8(key).expect("text")));
            }
        }
        batch.len()
    }

    fn end(&self, _: SubscriptionId, begin: i64) -> bool {
        panic!("history begins at {begin}")
    }
}

struct Cluster {
    truth: Arc<Mutex<Truth>>,
    hub: Arc<Hub>,
    numbers: Arc<Numbers>,
}

impl Cluster {
    async fn start() -> Self {
        let truth = Arc::new(Mutex::new(Truth { leaders: [1, 2], ..Truth::default() }));
        let placement = Arc::new(PlacementClient::new(vec!["127.0.0.1:1".to_owned()]));
        let regions = Regions::connect(CLUSTER, Arc::clone(&placement));
        let peer = |store_id| Peer::voter(store_id, store_id);
        let region = |id, start: &'static [u8], end: &[u8]| Region {
            id,
            epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }),
            start: start.into(),
            end: bytes::Bytes::copy_from_slice(end),
            peers: vec![peer(1), peer(2)],
        };
        let middle = user_key(b"m");
        let mut second = region(2, b"", b"");
        second.start = middle.clone();
        regions.router.learn(vec![region(1, b"", &middle), second]);
        for id in [1, 2] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let peer_addr = listener.local_addr().expect("it is bound").to_string();
            let store = Arc::new(FakeStore {
                id,
                truth: Arc::clone(&truth),
                streams: Mutex::default(),
                links: AtomicU64::new(0),
            });
            truth.lock().peers.push(Arc::clone(&store));
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let server = tonic::transport::Server::builder().add_service(RegionWatchServer::new(Served(store)));
            tokio::spawn(server.serve_with_incoming(incoming));
            regions.learn_stores(&[Store { id, peer_addr, ..Store::default() }]);
        }
        let numbers = Numbers::start(NumbersConfig::new(1, CLUSTER.0), placement, None);
        let hub = Hub::start(regions, Arc::clone(&numbers), CLUSTER);
        Self { truth, hub, numbers }
    }

    /// Something happens to a key.
    fn put(&self, key: &str) {
        let mut truth = self.truth.lock();
        truth.newest += 1;
        let (revision, region) = (truth.newest, if key < "m" { 1 } else { 2 });
        truth.log.push((revision, region, key.to_owned()));
        let leader = truth.leaders[usize::try_from(region - 1).expect("small")];
        let store = Arc::clone(&truth.peers[usize::try_from(leader - 1).expect("small")]);
        // With the truth locked: no follow begins in between.
        store.publish(region, revision, key);
    }

    fn transfer(&self, region: u64, leader: u64) {
        let mut truth = self.truth.lock();
        let at = usize::try_from(region - 1).expect("small");
        let old = std::mem::replace(&mut truth.leaders[at], leader);
        truth.peers[usize::try_from(old - 1).expect("small")].resign(region, leader);
    }

    fn store(&self, id: usize) -> Arc<FakeStore> {
        Arc::clone(&self.truth.lock().peers[id - 1])
    }

    fn watch(&self, id: u64, range: KeyRange, start: i64) -> Arc<Client> {
        let client = Arc::new(Client::default());
        let receiver: Arc<dyn Receiver> = client.clone();
        self.hub.subscribe(SubscriptionId(id), Wanted { range, start, prev_kv: false }, receiver);
        client
    }

    async fn reach(&self, id: u64) {
        let newest = self.truth.lock().newest;
        let reached = timeout(PATIENCE, self.hub.reach(SubscriptionId(id), newest)).await;
        assert!(reached.is_ok(), "at {:?} of {newest}", self.hub.frontier(SubscriptionId(id)));
    }

    fn expected(&self, from: i64) -> Vec<(i64, String)> {
        let truth = self.truth.lock();
        truth.log.iter().filter(|entry| entry.0 >= from).map(|(revision, _, key)| (*revision, key.clone())).collect()
    }

    fn stop(self) {
        self.hub.stop();
        self.numbers.stop();
    }
}

fn everything() -> KeyRange {
    KeyRange::user(b"\0", b"\0")
}

#[tokio::test]
async fn lost_connections_lose_nothing_and_repeat_nothing() {
    let cluster = Cluster::start().await;
    let client = cluster.watch(1, everything(), 1);
    for round in 0..12 {
        for number in 0..20 {
            let side = if number % 3 == 0 { "a" } else { "z" };
            cluster.put(&format!("{side}{number}"));
        }
        if round % 3 == 2 {
            cluster.reach(1).await;
        }
        cluster.store(1 + round % 2).break_connections();
    }
    cluster.reach(1).await;
    assert_eq!(*client.heard.lock(), cluster.expected(1));
    let counts = cluster.hub.state.lock().merge.counts();
    assert!(counts.refollows > 0 && counts.waiting_events == 0, "{counts:?}");
    cluster.stop();
}

#[tokio::test]
async fn moved_leaders_are_followed() {
    let cluster = Cluster::start().await;
    let client = cluster.watch(1, everything(), 1);
    cluster.put("a");
    cluster.put("z");
    cluster.reach(1).await;
    for (region, leader) in [(1, 2), (2, 1), (1, 1), (2, 2)] {
        cluster.transfer(region, leader);
        cluster.put("b");
        cluster.put("y");
        cluster.reach(1).await;
    }
    assert_eq!(*client.heard.lock(), cluster.expected(1));
    cluster.stop();
}

#[tokio::test]
async fn a_watch_from_the_past_and_one_that_was_full_hear_the_same_as_others() {
    let cluster = Cluster::start().await;
    let first = cluster.watch(1, everything(), 1);
    let slow = cluster.watch(2, everything(), 1);
    *slow.full.lock() = true;
    for number in 0..50 {
        cluster.put(&format!("{}{number}", if number % 2 == 0 { "a" } else { "z" }));
    }
    cluster.reach(1).await;
    let past = cluster.watch(3, everything(), 20);
    cluster.reach(3).await;
    *slow.full.lock() = false;
    cluster.hub.resume(SubscriptionId(2));
    cluster.reach(2).await;
    assert_eq!(*first.heard.lock(), cluster.expected(1));
    assert_eq!(*slow.heard.lock(), cluster.expected(1));
    assert_eq!(*past.heard.lock(), cluster.expected(20));
    let counts = cluster.hub.state.lock().merge.counts();
    assert_eq!((counts.groups, counts.watches), (1, 3), "they share one group again");
    for id in 1..=3 {
        cluster.hub.unsubscribe(SubscriptionId(id));
    }
    assert_eq!(cluster.hub.frontier(SubscriptionId(1)), None);
    cluster.put("b");
    assert_eq!(cluster.hub.state.lock().merge.counts().groups, 0);
    cluster.stop();
}
