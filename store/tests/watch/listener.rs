//! A proxy's ear: follows regions of one store and checks with every word that the store keeps to the protocol.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use braid_proto::etcd::mvccpb::Event;
use braid_proto::pb::{
    Follow, Left, Nudge, RegionEpoch, StoreFrontier, WatchNews, WatchOrder, refusal, watch_news, watch_order,
};
use braid_store::Following;
use bytes::Bytes;
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(20);
/// Before a busy leader is asked again.
const PAUSE: Duration = Duration::from_millis(20);

/// What a follow has been told.
#[derive(Debug, Default)]
pub struct Told {
    region: u64,
    /// By revision and sub.
    pub events: BTreeMap<(i64, u32), Event>,
    /// In the order they came.
    pub order: Vec<(i64, u32)>,
    /// Everything up to here was told.
    pub frontier: i64,
    joined: bool,
    /// How it ended.
    pub left: Option<Left>,
}

/// See the module's text.
pub struct Listener {
    following: Following,
    next_id: u64,
    /// By id.
    pub follows: HashMap<u64, Told>,
    /// How many messages had events and no frontier that covers them.
    pub uncovered: usize,
}

impl Listener {
    pub fn new(following: Following) -> Self {
        Self { following, next_id: 1, follows: HashMap::new(), uncovered: 0 }
    }

    /// Follows a range of a region; returns the follow's id.
    pub fn follow(
        &mut self,
        (region, epoch): (u64, RegionEpoch),
        range: (Bytes, Bytes),
        after: i64,
        prev_kv: bool,
    ) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let (start, end) = range;
        let follow = Follow { id, region_id: region, epoch: Some(epoch), start, end, after, prev_kv };
        self.follows.insert(id, Told { region, frontier: after, ..Told::default() });
        self.order(watch_order::Order::Follow(follow));
        id
    }

    /// Follows until it stands: a new leader is busy until it has its lease.
    pub async fn join(&mut self, region: (u64, RegionEpoch), range: (Bytes, Bytes), after: i64, prev_kv: bool) -> u64 {
        loop {
            let id = self.follow(region, range.clone(), after, prev_kv);
            while !self.follows[&id].joined && self.follows[&id].left.is_none() {
                self.listen().await;
            }
            let refused = self.follows[&id].left.as_ref().and_then(|left| left.refusal.as_ref());
            match refused.and_then(|refusal| refusal.reason.as_ref()) {
                None => return id,
                Some(refusal::Reason::Busy(_)) => sleep(PAUSE).await,
                Some(other) => panic!("not followed: {other:?}"),
            }
        }
    }

    /// Asks for a frontier that reaches `revision`.
    pub fn nudge(&self, revision: i64) {
        self.order(watch_order::Order::Nudge(Nudge { revision }));
    }

    fn order(&self, order: watch_order::Order) {
        let order = WatchOrder { cluster_id: 0, to_store: 0, order: Some(order) };
        self.following.order(order).expect("an order that the store knows");
    }

    /// Listens until the follow `id` has been told everything up to `revision`.
    /// It does not end before.
    pub async fn reach(&mut self, id: u64, revision: i64) {
        self.nudge(revision);
        while self.follows[&id].frontier < revision {
            assert_eq!(self.follows[&id].left, None, "follow {id} ended");
            self.listen().await;
        }
    }

    /// Listens until the follow `id` has ended.
    pub async fn left(&mut self, id: u64) -> Left {
        loop {
            if let Some(left) = &self.follows[&id].left {
                return left.clone();
            }
            self.listen().await;
        }
    }

    /// Takes the next news.
    pub async fn listen(&mut self) {
        let feed = timeout(PATIENCE, self.following.next()).await.expect("news in time").expect("an open feed");
        let mut newest = HashMap::new();
        for WatchNews { news } in feed.news {
            match news.expect("news") {
                watch_news::News::Joined(joined) => {
                    let told = self.follows.get_mut(&joined.id).expect("a follow");
                    assert!(!told.joined && told.left.is_none(), "{joined:?} after {told:?}");
                    told.joined = true;
                }
                watch_news::News::Left(left) => {
                    let told = self.follows.get_mut(&left.id).expect("a follow");
                    assert!(told.left.is_none(), "{left:?} comes twice");
                    told.left = Some(left);
                }
                watch_news::News::Events(events) => {
                    for id in &events.ids {
                        newest.insert(*id, events.revision);
                        let told = self.follows.get_mut(id).expect("a follow");
                        assert!(told.joined && told.left.is_none(), "events outside of a follow: {id}");
                        assert!(
                            events.revision > told.frontier,
                            "@{} comes after frontier {} of {id}",
                            events.revision,
                            told.frontier
                        );
                        for event in &events.events {
                            let place = (events.revision, event.sub);
                            let twice = told.events.insert(place, event.event.clone().expect("an event"));
                            assert_eq!(twice, None, "{place:?} comes twice to {id}");
                            told.order.push(place);
                        }
                    }
                }
                watch_news::News::Frontier(frontier) => self.advance(&frontier),
            }
        }
        self.uncovered += usize::from(newest.iter().any(|(id, revision)| self.follows[id].frontier < *revision));
    }

    fn advance(&mut self, frontier: &StoreFrontier) {
        for (id, told) in self.follows.iter_mut().filter(|(_, told)| told.joined && told.left.is_none()) {
            let of_region = frontier.lower.iter().find(|lower| lower.region_id == told.region);
            let of_region = of_region.map_or(frontier.revision, |lower| lower.revision);
            let late = frontier.catching_up.iter().find(|late| late.id == *id);
            let reached = late.map_or(of_region, |late| of_region.min(late.revision));
            told.frontier = told.frontier.max(reached);
        }
    }
}
