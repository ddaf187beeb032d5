//! Whole placement groups in one process: real raft hosts on real folders, over a network and stores that tests control.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use braid_proto::pb::placement_server::Placement as _;
use braid_proto::pb::{
    PlacementHeader, RegisterStoreRequest, RegisterStoreResponse, RouteRequest, RouteResponse, StatusRequest,
    StatusResponse, StoreHeartbeatRequest, StoreHeartbeatResponse,
};
use tempfile::TempDir;
use tonic::Request;

use super::*;
use crate::schedule::Kind;
use net::{Company, Net, Port};
use stores::FakeStores;

mod compaction;
mod founding;
mod joining;
mod net;
mod numbering;
mod operators;
mod recovery;
mod removal;
mod scheduling;
mod stores;
mod wire;

const CLUSTER: ClusterId = ClusterId(77);
/// How long anything may take before a test gives it up. Elections take about a second.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits until `look` sees what it looks for.
async fn eventually<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let seen = tokio::time::timeout(LIMIT, async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    seen.await.unwrap_or_else(|_| panic!("not seen in {LIMIT:?}: {what}"))
}

/// Members 1 to n, each with a folder that outlives it.
struct Group {
    net: Arc<Net>,
    stores: Arc<FakeStores>,
    dirs: BTreeMap<u64, TempDir>,
    members: BTreeMap<u64, Placement>,
    config: PlacementConfig,
    tuning: Tuning,
}

impl Group {
    /// A running group.
    async fn start(members: u64) -> Self {
        Self::start_with(members, |_, _| {}).await
    }

    async fn start_with(members: u64, change: impl FnOnce(&mut PlacementConfig, &mut Tuning)) -> Self {
        let member = |id| MemberConfig { id, name: format!("n{id}"), peer_addr: format!("n{id}:1") };
        let mut config = PlacementConfig {
            dir: PathBuf::new(),
            cluster_id: CLUSTER,
            member_id: 0,
            members: (1..=members).map(member).collect(),
            new: true,
            replicas: 3,
            split_keys: vec![Bytes::from_static(b"\x20g"), Bytes::from_static(b"\x20p")],
            auto_compaction: AutoCompaction::Off,
        };
        let mut tuning = Tuning::default();
        tuning.timing.tick = Duration::from_millis(20);
        // Only tests of the schedulers let regions move by themselves.
        tuning.setup = |setup| setup.paused = Kind::ALL.map(|kind| kind.name().to_owned()).to_vec();
        change(&mut config, &mut tuning);
        let dirs = (1..=members).map(|id| (id, TempDir::new().expect("a folder")));
        let mut group = Self {
            net: Arc::default(),
            stores: Arc::default(),
            dirs: dirs.collect(),
            members: BTreeMap::new(),
            config,
            tuning,
        };
        for id in 1..=members {
            group.open(id).await;
        }
        group.all_begin().await;
        group
    }

    /// Waits until every member that runs has the group.
    async fn all_begin(&self) {
        let begun = |member: &Placement| member.host.handle(REGION).is_some();
        eventually("the group", async || self.members.values().all(begun).then_some(())).await;
    }

    async fn open(&mut self, id: u64) {
        let member = self.try_open(id).await.expect("the member opens");
        self.net.attach(&member);
        self.members.insert(id, member);
    }

    async fn try_open(&self, id: u64) -> Result<Placement, PlacementError> {
        let dir = self.dirs[&id].path().to_owned();
        let config = PlacementConfig { dir, member_id: id, ..self.config.clone() };
        let (port, stores) = (Arc::new(Port(Arc::clone(&self.net))), Arc::clone(&self.stores));
        Placement::open_with(config, port, stores, self.company(id), self.tuning).await
    }

    fn company(&self, from: u64) -> Arc<Company> {
        Arc::new(Company { net: Arc::clone(&self.net), from })
    }

    /// The member that leads, holds its lease, and has its sequencer in office.
    async fn leader(&self) -> &Placement {
        let serves = |member: &&Placement| member.leads() && member.shared.office.status().serving;
        eventually("a leader", async || self.members.values().find(serves)).await
    }

    /// What the leader answers. One that is too busy to keep its lease refuses, and is asked again.
    async fn ask<T>(&self, call: impl AsyncFn(&Placement) -> (Option<PlacementHeader>, T)) -> T {
        let answered = async || {
            let (header, answer) = call(self.leader().await).await;
            header.is_some_and(|header| !header.refused).then_some(answer)
        };
        eventually("an answer of the leader", answered).await
    }

    async fn register(&self, request: RegisterStoreRequest) -> RegisterStoreResponse {
        self.ask(async |leader| {
            let answer = leader.register(request.clone()).await;
            (answer.header.clone(), answer)
        })
        .await
    }

    async fn beat(&self, request: StoreHeartbeatRequest) -> StoreHeartbeatResponse {
        self.ask(async |leader| {
            let answer = leader.beat(request.clone()).await;
            (answer.header.clone(), answer)
        })
        .await
    }

    async fn routes(&self) -> RouteResponse {
        self.ask(async |leader| {
            let answer = leader.routes(b"").await;
            (answer.header.clone(), answer)
        })
        .await
    }

    async fn status(&self) -> StatusResponse {
        self.ask(async |leader| {
            let answer = leader.status().await;
            (answer.header.clone(), answer)
        })
        .await
    }

    /// Ends a member as a crash would: nothing is handed over.
    async fn kill(&mut self, id: u64) {
        self.net.detach(id);
        let mut member = self.members.remove(&id).expect("it runs");
        if let Some(beginning) = member.beginning.take() {
            beginning.abort();
        }
        let host = Arc::clone(&member.host);
        tokio::task::spawn_blocking(move || host.shutdown()).await.expect("it stops");
    }

    /// Ends a member as its operator would.
    async fn stop(&mut self, id: u64) {
        let member = self.members.remove(&id).expect("it runs");
        member.shutdown().await;
        self.net.detach(id);
    }

    async fn stop_all(&mut self) {
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            self.stop(id).await;
        }
    }
}

impl Placement {
    fn id(&self) -> u64 {
        self.shared.member
    }

    fn service(&self) -> PlacementService {
        PlacementService::new(Arc::clone(&self.shared))
    }

    async fn register(&self, request: RegisterStoreRequest) -> RegisterStoreResponse {
        self.service().register_store(Request::new(request)).await.expect("answered").into_inner()
    }

    async fn beat(&self, request: StoreHeartbeatRequest) -> StoreHeartbeatResponse {
        self.service().store_heartbeat(Request::new(request)).await.expect("answered").into_inner()
    }

    async fn routes(&self, key: &[u8]) -> RouteResponse {
        let request = RouteRequest { key: Bytes::copy_from_slice(key), limit: 100 };
        self.service().get_routes(Request::new(request)).await.expect("answered").into_inner()
    }

    async fn status(&self) -> StatusResponse {
        self.service().get_status(Request::new(StatusRequest {})).await.expect("answered").into_inner()
    }
}

/// The registration of store `name`, which has no folder yet.
fn newcomer(name: &str) -> RegisterStoreRequest {
    RegisterStoreRequest { name: name.into(), peer_addr: format!("{name}:1"), ..Default::default() }
}
