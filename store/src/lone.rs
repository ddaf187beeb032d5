//! A store without others, for tests: a real host whose regions have one peer each, and numbers from a counter.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use braid_host::config::HostConfig;
use braid_host::{Host, Transport};
use braid_placement_client::{Numbers, NumbersConfig, PlacementClient};
use braid_proto::etcd::etcdserverpb::PutRequest;
use braid_proto::id::ClusterId;
use braid_proto::key::user_key;
use braid_proto::pb::{
    Domain, NumberAnswer, NumberRequest, Peer, RaftFrame, Region, RegionEpoch, RegionRequest, RegionResponse,
    region_request,
};
use braid_proto::service::{NumberService, RegionService};
use braid_store_client::Regions as Cluster;
use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::engine::{Boundary, EngineOptions, NewestRecords};
use crate::flow::Flow;
use crate::machine::Regions;
use crate::merge::Ended;
use crate::region::{Busy, Shared};
use crate::service::LocalRegions;
use crate::space::{Space, SpaceLimits};
use crate::watch::Publisher;

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

/// Regions 1, 2, .. of the key space on one host.
pub struct Lone {
    pub host: Arc<Host>,
    pub regions: Arc<Regions>,
    pub shared: Arc<Shared>,
    _dir: TempDir,
}

fn start(id: u64) -> Bytes {
    if id == 1 { Bytes::new() } else { user_key(format!("r{id:04}").as_bytes()) }
}

impl Lone {
    /// So many regions; each leads itself after an election timeout.
    pub fn open(regions: u64) -> Self {
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
            flow: Flow::default(),
        });
        let region = |id| Region {
            id,
            start: start(id),
            end: if id == regions { Bytes::new() } else { start(id + 1) },
            epoch: Some(EPOCH),
            peers: vec![Peer::voter(1_000 + id, 1)],
        };
        let created = (1..=regions).map(region).collect();
        let engine = EngineOptions { block_cache_bytes: 8 << 20, memtable_bytes: 8 << 20 };
        let regions = Arc::new(Regions::new(Arc::clone(&shared), engine));
        let config = HostConfig::new(dir.path().join("store"), Domain::Store, ClusterId(80), 1);
        let host = Host::open(config, Arc::clone(&regions) as _, Arc::new(Alone)).expect("a host");
        host.create_regions(created).expect("created");
        Self { host: Arc::new(host), regions, shared, _dir: dir }
    }

    /// Puts a value of so many bytes to a key of a region. Its turn is taken before this returns.
    pub fn put(&self, region_id: u64, key: &str, value_bytes: usize) -> impl Future<Output = RegionResponse> + use<> {
        let key = [start(region_id).get(1..).unwrap_or_default(), key.as_bytes()].concat();
        let put = PutRequest { key: key.into(), value: vec![7; value_bytes].into(), ..PutRequest::default() };
        self.call(region_id, region_request::Op::Put(put))
    }

    /// Asks a region for something. Its turn is taken before this returns.
    pub fn call(&self, region_id: u64, op: region_request::Op) -> impl Future<Output = RegionResponse> + use<> {
        let request = RegionRequest { region_id, epoch: Some(EPOCH), timeout_ms: 5_000, op: Some(op) };
        LocalRegions::new(Arc::clone(&self.regions)).call(request)
    }

    /// Stops the host.
    pub async fn close(self) {
        let host = self.host;
        tokio::task::spawn_blocking(move || host.shutdown()).await.expect("stopped");
    }
}
