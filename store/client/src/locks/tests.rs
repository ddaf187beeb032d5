//! Two regions that answer by a script; what they were asked is written down. Conflicts and faults are tested through
//! proxies' transactions; here is what only leases need.

use std::collections::VecDeque;

use braid_placement_client::PlacementClient;
use braid_proto::id::{ClusterId, StoreId};
use braid_proto::pb::{Peer, Region, RegionEpoch, RegionRequest, RegionResponse, ReleaseResponse};
use braid_proto::service::{BoxFuture, RegionService};
use parking_lot::Mutex;

use super::*;

/// What a region says to a lock.
enum Line {
    Locked,
    Conflict,
    Unattached(&'static [i64]),
}

#[derive(Default)]
struct Script {
    /// The next answers to locks, of whichever region.
    lines: VecDeque<Line>,
    asked: Vec<String>,
    txns: Vec<TxnId>,
}

#[derive(Default)]
struct Store(Mutex<Script>);

impl RegionService for Store {
    fn call(&self, request: RegionRequest) -> BoxFuture<RegionResponse> {
        let mut script = self.0.lock();
        let region = request.region_id;
        let result = match request.op.expect("an operation") {
            region_request::Op::Lock(lock) => {
                let wait = if lock.wait { " wait" } else { "" };
                script.asked.push(format!("r{region} lock{wait} {:?}", lock.attaches));
                script.txns.push(lock.txn.expect("a name"));
                let token = LockToken { region_id: region, term: 4, seq: script.txns.len() as u64 };
                region_response::Result::Lock(match script.lines.pop_front().unwrap_or(Line::Locked) {
                    Line::Locked => LockResponse { token: Some(token), ..LockResponse::default() },
                    Line::Conflict => LockResponse { conflict: true, ..LockResponse::default() },
                    Line::Unattached(ids) => LockResponse { unattached: ids.to_vec(), ..LockResponse::default() },
                })
            }
            region_request::Op::Release(release) => {
                assert!(release.txn.is_some_and(|txn| script.txns.contains(&txn)), "a transaction that was locked");
                script.asked.push(format!("r{region} release"));
                region_response::Result::Release(ReleaseResponse {})
            }
            other => panic!("nobody asks {other:?} here"),
        };
        Box::pin(std::future::ready(RegionResponse { result: Some(result) }))
    }
}

struct World {
    regions: Arc<Regions>,
    terms: LockTerms,
    store: Arc<Store>,
}

impl World {
    fn new(lines: impl IntoIterator<Item = Line>) -> Self {
        let store = Arc::new(Store::default());
        store.0.lock().lines.extend(lines);
        // Nobody answers there, and nobody needs to.
        let regions = Regions::connect(ClusterId(1), Arc::new(PlacementClient::new(vec!["127.0.0.1:1".into()])));
        regions.add_local(StoreId(1), Arc::clone(&store) as Arc<dyn RegionService>);
        let region = |id, start: &'static str, end: &'static str| Region {
            id,
            start: start.into(),
            end: end.into(),
            epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }),
            peers: vec![Peer::voter(id + 10, 1)],
        };
        regions.router.learn(vec![region(1, "", "m"), region(2, "m", "")]);
        Self { regions, terms: LockTerms::default(), store }
    }

    async fn take(&self) -> Result<(Locks, Vec<Taken>), NotLocked> {
        let part = |region, key: &'static str, leases: &[i64]| {
            let KeyRange { start, end } = KeyRange::single(key.into());
            let ranges = vec![LockRange { start, end, exclusive: true }];
            Part { region: RegionId(region), ranges, reads: Vec::new(), puts: true, attaches: leases.to_vec() }
        };
        let parts = [part(1, "a", &[7]), part(2, "n", &[7, 8])];
        Locks::take(&self.regions, &self.terms, &parts, Patience::within(Duration::from_secs(5))).await
    }

    async fn missing(&self) -> Vec<Unattached> {
        match self.take().await {
            Err(NotLocked::Unattached(missing)) => missing,
            Err(other) => panic!("{other:?}"),
            Ok((_, taken)) => panic!("{taken:?}"),
        }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.store.0.lock().asked)
    }
}

#[tokio::test]
async fn a_primary_without_its_lease_is_the_only_one_asked() {
    let world = World::new([Line::Unattached(&[7])]);
    assert_eq!(world.missing().await, [Unattached { part: 0, leases: vec![7] }]);
    assert_eq!(world.asked(), ["r1 lock wait [7]", "r1 release"]);
}

#[tokio::test]
async fn leases_missing_elsewhere_give_up_what_is_locked() {
    let world = World::new([Line::Locked, Line::Unattached(&[8])]);
    assert_eq!(world.missing().await, [Unattached { part: 1, leases: vec![8] }]);
    assert_eq!(world.asked(), ["r1 lock wait [7]", "r2 lock [7, 8]", "r1 release", "r2 release"]);
}

#[tokio::test]
async fn leases_missing_in_several_regions_are_told_together() {
    let world = World::new([]);
    drop(world.take().await.expect("both are locked"));
    let both = [Line::Unattached(&[7]), Line::Unattached(&[7, 8])];
    world.store.0.lock().lines.extend(both);
    let expected = [Unattached { part: 0, leases: vec![7] }, Unattached { part: 1, leases: vec![7, 8] }];
    assert_eq!(world.missing().await, expected);
}

#[tokio::test]
async fn leases_come_before_somebody_in_the_way() {
    let world = World::new([]);
    drop(world.take().await.expect("both are locked"));
    world.store.0.lock().lines.extend([Line::Conflict, Line::Unattached(&[8])]);
    assert_eq!(world.missing().await, [Unattached { part: 1, leases: vec![8] }]);
}

#[tokio::test]
async fn a_lease_that_is_missing_in_the_last_round_gives_up_what_is_locked() {
    let world = World::new([Line::Locked, Line::Conflict, Line::Locked, Line::Unattached(&[7, 8])]);
    assert_eq!(world.missing().await, [Unattached { part: 1, leases: vec![7, 8] }]);
    let once = ["r1 lock wait [7]", "r2 lock [7, 8]", "r1 release", "r2 release"];
    let twice = ["r1 lock wait [7]", "r2 lock wait [7, 8]", "r1 release", "r2 release"];
    assert_eq!(world.asked(), [once, twice].concat());
}

#[tokio::test]
async fn each_round_has_a_name_of_its_own() {
    let world = World::new([Line::Locked, Line::Conflict, Line::Locked, Line::Locked]);
    let (locks, taken) = world.take().await.expect("locked in order");
    assert_eq!(taken.iter().map(|lock| lock.token.region_id).collect::<Vec<_>>(), [1, 2]);
    let txns = world.store.0.lock().txns.clone();
    assert!(txns[0] == txns[1] && txns[2] == txns[3] && txns[1] != txns[2], "{txns:?}");
    assert_eq!(locks.txn(), txns[3]);
    locks.release(Patience::within(Duration::from_secs(5))).await;
}
