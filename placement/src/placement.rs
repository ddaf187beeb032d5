//! One placement member: opens its raft host, follows its role, serves while it leads.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use braid_host::config::HostConfig;
use braid_host::{Host, Inbound, OpenError, Transport};
use braid_proto::id::{ClusterId, PeerId, RegionId, Term};
use braid_proto::pb::admin_server::AdminServer;
use braid_proto::pb::placement_server::PlacementServer;
use braid_proto::pb::sequencer_server::SequencerServer;
use braid_proto::pb::{Domain, Peer, Region, RegionEpoch};
use braid_proto::service::NumberService;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::bootstrap::Plan;
use crate::leader::Shared;
use crate::machine::{Machine, Replica, RoleChange};
use crate::office::Office;
use crate::presence::Presence;
use crate::regions::RegionMap;
use crate::service::{AdminService, PlacementService, SequencerService};

/// Placement's one region.
const REGION: RegionId = RegionId(1);
/// How often the leader looks at what a young cluster needs.
const FOUND_INTERVAL: Duration = Duration::from_millis(200);
/// How long a stopping leader tries to give leadership away.
const HAND_OVER: Duration = Duration::from_secs(3);
/// Memory of a member's database: its state is small.
const CACHE_BYTES: usize = 8 << 20;
/// Members' logs are small too, and a new member should not need a snapshot after a busy minute.
const LOG_PURGE_BYTES: u64 = 64 << 20;

/// A placement member as the operator names it.
#[derive(Clone, Debug)]
pub struct MemberConfig {
    /// Its id, the same on every member.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where it listens, `host:port`.
    pub peer_addr: String,
}

/// How a member is set up.
#[derive(Clone, Debug)]
pub struct PlacementConfig {
    /// Its folder.
    pub dir: PathBuf,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Which of `members` this process is.
    pub member_id: u64,
    /// All members: 1, 3 or 5.
    pub members: Vec<MemberConfig>,
    /// Replicas of each region.
    pub replicas: usize,
    /// Internal keys at which the key space is cut when the cluster begins.
    pub split_keys: Vec<Bytes>,
}

/// Why a member does not start.
#[derive(Debug, Error)]
pub enum PlacementError {
    /// The folder cannot be used.
    #[error(transparent)]
    Host(#[from] OpenError),
    /// Its group could not be created.
    #[error("placement's group cannot be created: {0}")]
    Create(String),
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(String),
}

/// A running placement member.
pub struct Placement {
    host: Arc<Host>,
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl Placement {
    /// Opens the member's folder and takes part in its group.
    ///
    /// # Errors
    /// The folder belongs to another cluster or member, is in use or damaged; the configuration is wrong.
    pub async fn open(config: PlacementConfig, transport: Arc<dyn Transport>) -> Result<Self, PlacementError> {
        let me = config.members.iter().find(|member| member.id == config.member_id);
        let own_addr = me.map(|member| member.peer_addr.clone()).ok_or_else(|| {
            PlacementError::Config(format!("member {:016x} is not in the list of members", config.member_id))
        })?;
        let (roles, changes) = mpsc::unbounded_channel();
        let replica = Replica::new(config.member_id, drawn_life(), roles);
        let office = Office::new(config.cluster_id, Arc::clone(&replica));
        let shared = Arc::new(Shared {
            cluster_id: config.cluster_id,
            member: config.member_id,
            members: config.members.clone(),
            plan: Plan { split_keys: config.split_keys.clone(), replicas: config.replicas, own_addr },
            replica: Arc::clone(&replica),
            office: Arc::clone(&office),
            regions: RwLock::new(RegionMap::default()),
            presence: Mutex::new(Presence::default()),
            reports_of: Mutex::new(Term::INVALID),
            stores: Mutex::default(),
        });
        let follower = Arc::downgrade(&shared);
        replica.set_on_follower(move |term, leader: Option<Peer>| {
            if let Some(shared) = follower.upgrade() {
                let addr = leader.map(|peer| shared.addr_of(peer.store_id)).unwrap_or_default();
                shared.office.step_down(term, addr);
            }
        });
        let host = open_host(&config, Machine(replica), transport).await?;
        let host = Arc::new(host);
        let single = config.members.len() == 1;
        if single && let Some(handle) = host.handle(REGION) {
            handle.campaign();
        }
        let tasks = vec![
            tokio::spawn(Arc::clone(&office).keep_windows()),
            tokio::spawn(follow_role(Arc::clone(&shared), changes)),
        ];
        Ok(Self { host, shared, tasks })
    }

    /// Its services, to be mounted on the peer port.
    pub fn services(
        &self,
    ) -> (PlacementServer<PlacementService>, SequencerServer<SequencerService>, AdminServer<AdminService>) {
        let shared = || Arc::clone(&self.shared);
        (
            PlacementServer::new(PlacementService::new(shared())).max_encoding_message_size(64 << 20),
            SequencerServer::new(SequencerService::new(Arc::clone(&self.shared.office))),
            AdminServer::new(AdminService::new(shared())).max_encoding_message_size(64 << 20),
        )
    }

    /// The sequencer, for the store and proxy of the same process.
    pub fn number_service(&self) -> Arc<dyn NumberService> {
        Arc::clone(&self.shared.office) as Arc<dyn NumberService>
    }

    /// Where raft messages for it go.
    pub fn inbound(&self) -> Arc<dyn Inbound> {
        self.host.inbound()
    }

    /// Whether this member leads.
    pub fn leads(&self) -> bool {
        self.shared.leading().is_some()
    }

    /// Stops: records the last number, gives leadership away if it can, closes the folder.
    pub async fn shutdown(self) {
        if self.shared.leading().is_some() {
            self.shared.office.hand_over().await;
            self.give_leadership_away().await;
        }
        for task in &self.tasks {
            task.abort();
        }
        let host = self.host;
        if let Err(error) = tokio::task::spawn_blocking(move || host.shutdown()).await {
            tracing::error!(%error, "placement's host did not stop cleanly");
        }
    }

    async fn give_leadership_away(&self) {
        let Some(handle) = self.host.handle(REGION) else { return };
        let others: Vec<u64> =
            handle.region().peers.iter().filter(|peer| peer.store_id != self.shared.member).map(|p| p.id).collect();
        for other in others {
            let (tell, told) = oneshot::channel();
            handle.transfer_leader(handle.term(), PeerId(other), Box::new(move |ended| _ = tell.send(ended)));
            match tokio::time::timeout(HAND_OVER, told).await {
                Ok(Ok(Ok(()))) => return,
                other => tracing::debug!(?other, "a member did not take placement's leadership"),
            }
        }
    }
}

async fn open_host(
    config: &PlacementConfig,
    machine: Machine,
    transport: Arc<dyn Transport>,
) -> Result<Host, PlacementError> {
    let mut host_config =
        HostConfig::new(config.dir.clone(), Domain::Placement, config.cluster_id, config.member_id);
    host_config.block_cache_bytes = CACHE_BYTES;
    host_config.memtable_bytes = CACHE_BYTES;
    host_config.log_purge_bytes = LOG_PURGE_BYTES;
    let region = group(&config.members);
    let opened = tokio::task::spawn_blocking(move || {
        let host = Host::open(host_config, Arc::new(machine), transport)?;
        host.create_regions(vec![region]).map_err(PlacementError::Create)?;
        Ok(host)
    });
    opened.await.map_err(|error| PlacementError::Create(error.to_string()))?
}

/// Placement's group: every member holds a peer whose id follows from the member's place in the list by id, so that all
/// members, which know the same list, make the same group.
fn group(members: &[MemberConfig]) -> Region {
    let mut ids: Vec<u64> = members.iter().map(|member| member.id).collect();
    ids.sort_unstable();
    let peers = ids.into_iter().zip(1..).map(|(store_id, id)| Peer { id, store_id, learner: false }).collect();
    Region { id: REGION.0, epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }), peers, ..Default::default() }
}

/// Does a leader's work while this member leads.
async fn follow_role(shared: Arc<Shared>, mut changes: mpsc::UnboundedReceiver<RoleChange>) {
    let mut term = None;
    let mut ticks = tokio::time::interval(FOUND_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                Some(RoleChange::Leads(led)) => {
                    tracing::info!(term = %led, "this member leads placement");
                    metrics::gauge!("braid_placement_is_leader").set(1.0);
                    shared.office.begin(led);
                    term = Some(led);
                }
                Some(RoleChange::Follows(followed, leader)) => {
                    if term.is_some_and(|led| led <= followed) {
                        tracing::info!(term = %followed, ?leader, "this member does not lead placement any more");
                        term = None;
                    }
                    metrics::gauge!("braid_placement_is_leader").set(if term.is_some() { 1.0 } else { 0.0 });
                }
                None => return,
            },
            _ = ticks.tick() => if let Some(led) = term.filter(|led| shared.leading() == Some(*led)) {
                if let Err(error) = shared.found(led).await {
                    tracing::debug!(%error, "a young cluster does not get on yet");
                }
            },
        }
    }
}

/// Tells this start of the process from every other one.
fn drawn_life() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish().max(1)
}
