//! On a real host with many regions of one peer each: the busy ones are told of, the idle ones not even looked at.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use braid_host::config::HostConfig;
use braid_host::{Host, Transport};
use braid_placement_client::{Numbers, NumbersConfig, PlacementClient};
use braid_proto::etcd::etcdserverpb::PutRequest;
use braid_proto::id::ClusterId;
use braid_proto::key::user_key;
use braid_proto::pb::{
    Domain, NumberAnswer, NumberRequest, Peer, RaftFrame, RegionEpoch, RegionRequest, region_request, region_response,
};
use braid_proto::service::{NumberService, RegionService};
use braid_store_client::Regions as Cluster;
use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::runtime::Handle;

use super::*;
use crate::engine::{Boundary, EngineOptions, NewestRecords};
use crate::merge::Ended;
use crate::region::Busy;
use crate::service::LocalRegions;
use crate::space::{Space, SpaceLimits};
use crate::watch::Publisher;

const REGIONS: u64 = 600;
const LIMIT: Duration = Duration::from_secs(60);
const EPOCH: RegionEpoch = RegionEpoch { conf_ver: 1, version: 1 };

/// Nobody else is there.
struct Alone;

impl Transport for Alone {
    fn send(&self, _: RaftFrame) -> bool {
        false
    }

    fn send_snapshot(&self, _: RaftFrame, _: Vec<PathBuf>, done: Box<dyn FnOnce(Result<(), String>) + Send>) {
        done(Err("nobody else is there".to_owned()));
    }
}

struct Counter(Mutex<i64>);

impl NumberService for Counter {
    fn number(&self, request: &NumberRequest) -> NumberAnswer {
        let mut counter = self.0.lock();
        let base = *counter;
        *counter += i64::from(request.count);
        NumberAnswer { seq: request.seq, epoch: 1, base, count: request.count, ..Default::default() }
    }
}

struct Scene {
    host: Host,
    regions: Arc<Regions>,
    shared: Arc<Shared>,
    reports: Reports,
    _dir: TempDir,
}

fn start(id: u64) -> Bytes {
    if id == 1 { Bytes::new() } else { user_key(format!("r{id:04}").as_bytes()) }
}

impl Scene {
    fn open() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let placement = Arc::new(PlacementClient::new(vec!["127.0.0.1:1".into()]));
        let counter = Arc::new(Counter(Mutex::new(1)));
        let numbers = Numbers::start(NumbersConfig::new(1, 80), Arc::clone(&placement), Some(counter));
        let shared = Arc::new(Shared {
            publisher: Publisher::new(Arc::clone(&numbers)),
            numbers,
            runtime: Handle::current(),
            space: Arc::new(Space::new(dir.path().into(), SpaceLimits { quota_bytes: 0, free_bytes_min: 0 })),
            boundary: Arc::new(Boundary::default()),
            newest: Arc::new(NewestRecords::new(1 << 20)),
            cluster: Cluster::connect(ClusterId(80), placement),
            started: Instant::now(),
            revocations: Arc::default(),
            busy: Busy::default(),
            ended: Ended::default(),
        });
        let engine = EngineOptions { block_cache_bytes: 8 << 20, memtable_bytes: 8 << 20 };
        let regions = Arc::new(Regions::new(Arc::clone(&shared), engine));
        let config = HostConfig::new(dir.path().join("store"), Domain::Store, ClusterId(80), 1);
        let host = Host::open(config, Arc::clone(&regions) as _, Arc::new(Alone)).expect("a host");
        let region = |id| Region {
            id,
            start: start(id),
            end: if id == REGIONS { Bytes::new() } else { start(id + 1) },
            epoch: Some(EPOCH),
            peers: vec![Peer::voter(1_000 + id, 1)],
        };
        host.create_regions((1..=REGIONS).map(region).collect()).expect("created");
        Self { host, regions, shared, reports: Reports::default(), _dir: dir }
    }

    fn gather(&mut self, full: bool) -> Vec<RegionReport> {
        self.reports.gather(&self.regions, &self.shared, full)
    }

    async fn put(&self, region_id: u64, turn: u64) {
        let key = [&start(region_id)[1..], turn.to_string().as_bytes()].concat();
        let put = PutRequest { key: key.into(), value: vec![7; 1_000].into(), ..PutRequest::default() };
        let op = Some(region_request::Op::Put(put));
        let request = RegionRequest { region_id, epoch: Some(EPOCH), timeout_ms: 5_000, op };
        let answer = LocalRegions::new(Arc::clone(&self.regions)).call(request).await.result;
        assert!(matches!(answer, Some(region_response::Result::Put(_))), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_regions_are_reported_and_idle_ones_are_not_looked_at() {
    let mut scene = Scene::open();
    let begun = Instant::now();
    // Each reports itself when it begins to lead.
    let mut led = HashSet::new();
    while led.len() < REGIONS as usize {
        led.extend(scene.gather(false).iter().map(|report| report.region.as_ref().expect("a region").id));
        assert!(begun.elapsed() < LIMIT, "{} lead", led.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(scene.reports.led(), REGIONS as usize);
    // Then they are quiet.
    while !scene.shared.busy.news().is_empty() || !scene.reports.watched.is_empty() {
        scene.gather(false);
        assert!(begun.elapsed() < LIMIT, "{:?} do not come to rest", scene.reports.watched);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let turn = (REGIONS as usize).div_ceil(TURNS);
    for _ in 0..10 {
        assert_eq!(scene.gather(false), [], "nothing has happened");
        assert!(scene.reports.looked() <= turn, "{} of {REGIONS} regions looked at", scene.reports.looked());
    }
    for turn in 0..200 {
        scene.put(7, turn).await;
    }
    let news = scene.gather(false);
    assert_eq!(news.iter().map(|report| report.leader_peer).collect::<Vec<_>>(), [1_007]);
    let busy = &news[0];
    assert!(busy.ops_per_second >= OPS_LEAST && busy.written_per_second >= 1_024, "{busy:?}");
    assert!(scene.reports.looked() <= turn + 1);
    assert_eq!(scene.gather(true).len(), REGIONS as usize, "everything is told if placement asks");
    let host = scene.host;
    tokio::task::spawn_blocking(move || host.shutdown()).await.expect("stopped");
}
