//! One placement member: opens its raft host, follows its role, serves while it leads.

use std::any::Any;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use braid_host::config::{HostConfig, Timing};
use braid_host::{Host, Inbound, OpenError, Transport};
use braid_proto::id::{ClusterId, PeerId, RegionId, Term};
use braid_proto::pb::admin_server::AdminServer;
use braid_proto::pb::members_server::MembersServer;
use braid_proto::pb::placement_server::PlacementServer;
use braid_proto::pb::sequencer_server::SequencerServer;
use braid_proto::pb::{Domain, Peer, Region, RegionEpoch};
use braid_proto::service::NumberService;
use bytes::Bytes;
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tonic::service::Routes;

use crate::bootstrap::Plan;
use crate::compaction::{self, AutoCompaction};
use crate::founding;
use crate::leader::Shared;
use crate::machine::{Machine, Replica, Role};
use crate::membership::{self, Gate, GrpcOthers, Others, OwnFolder};
use crate::office::Office;
use crate::orders::{GrpcOrders, MESSAGE_BYTES_MAX, StoreOrders};
use crate::scheduling::{self, Setup};
use crate::service::{AdminService, MembersService, PlacementService, SequencerService};

#[cfg(test)]
mod tests;

/// Placement's one region.
const REGION: RegionId = RegionId(1);
/// How often the leader does what time alone brings.
const TICK: Duration = Duration::from_millis(200);
/// How long a stopping leader tries to record its last revision. Without a majority nobody can.
const RECORD_PATIENCE: Duration = Duration::from_secs(2);
/// How long it tries to give leadership to one other member.
const HAND_OVER_PATIENCE: Duration = Duration::from_millis(1_500);
/// Regions that a cluster may begin with: their peers and ranges are one entry of the log.
const FIRST_REGIONS_MAX: usize = 20_000;
/// Replicas of a region at most: more cost writes and protect against nothing that seven do not.
const REPLICAS_MAX: usize = 7;
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
    /// The cluster may begin with this start, if no member has begun it.
    pub new: bool,
    /// Replicas of each region.
    pub replicas: usize,
    /// Internal keys at which the key space is cut when the cluster begins.
    pub split_keys: Vec<Bytes>,
    /// What is compacted without being asked.
    pub auto_compaction: AutoCompaction,
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
    /// The configuration contradicts itself, or the folder.
    #[error("{0}")]
    Config(String),
    /// The replicated state in the folder cannot be used.
    #[error("{0}")]
    Data(String),
}

/// What tests make faster.
#[derive(Clone, Copy, Debug)]
struct Tuning {
    timing: Timing,
    /// Entries of the log that are kept for members that lag behind: some hours of an idle cluster's windows.
    log_keep_entries: u64,
    /// Changes what the schedulers begin with.
    setup: fn(&mut Setup),
}

impl Default for Tuning {
    fn default() -> Self {
        Self { timing: Timing::default(), log_keep_entries: 20_000, setup: |_| {} }
    }
}

/// A running placement member.
pub struct Placement {
    host: Arc<Host>,
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    leader: JoinHandle<()>,
    /// Ends when the member takes part.
    beginning: Option<JoinHandle<()>>,
}

impl Placement {
    /// Opens the member's folder and takes part in its group: at once if the folder says so, otherwise as soon as it is known
    /// how, in the background (`membership`). Its services must be served meanwhile: the other members ask.
    ///
    /// # Errors
    /// The folder belongs to another cluster or member, is in use or damaged; the configuration is wrong.
    pub async fn open(config: PlacementConfig, transport: Arc<dyn Transport>) -> Result<Self, PlacementError> {
        let others = Arc::new(GrpcOthers::new(config.cluster_id));
        Self::open_with(config, transport, Arc::new(GrpcOrders::default()), others, Tuning::default()).await
    }

    async fn open_with(
        config: PlacementConfig,
        transport: Arc<dyn Transport>,
        orders: Arc<dyn StoreOrders>,
        others: Arc<dyn Others>,
        tuning: Tuning,
    ) -> Result<Self, PlacementError> {
        let plan = check(&config)?;
        let mut setup = Setup::new(config.replicas);
        (tuning.setup)(&mut setup);
        let replica = Replica::new(config.member_id, drawn_life());
        let office = Office::new(config.cluster_id, Arc::clone(&replica));
        let folder = open_folder(&config).await?;
        let shared = Arc::new(Shared::new(
            config.cluster_id,
            config.member_id,
            config.members.clone(),
            plan,
            setup,
            Arc::clone(&replica),
            office,
            orders,
            folder,
            others,
        ));
        let observed = Arc::downgrade(&shared);
        replica.set_observer(Box::new(move |role| {
            if let Some(shared) = observed.upgrade() {
                observe(&shared, role);
            }
        }));
        let host = Arc::new(open_host(&config, Machine(Arc::clone(&replica)), transport, tuning).await?);
        let founded = replica.read(|state| state.cluster_id());
        if founded.is_valid() && founded != config.cluster_id {
            return Err(PlacementError::Config(format!(
                "{} holds cluster {founded}, not {}: point the member at its own folder, or at an empty one",
                config.dir.display(),
                config.cluster_id
            )));
        }
        let gate = Arc::new(Gate::new(host.inbound()));
        let beginning = begin(&config, &shared, &host, &gate).await?;
        let leader = tokio::spawn(lead_when_elected(Arc::clone(&shared), config.auto_compaction));
        Ok(Self { host, shared, gate, leader, beginning })
    }

    /// Its services, to be mounted on the peer port.
    pub fn add_to(&self, routes: Routes) -> Routes {
        let shared = || Arc::clone(&self.shared);
        let placement = PlacementServer::new(PlacementService::new(shared()));
        let admin = AdminServer::new(AdminService::new(shared()));
        routes
            .add_service(MembersServer::new(MembersService::new(shared())))
            .add_service(placement.max_encoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(SequencerServer::new(SequencerService::new(Arc::clone(&self.shared.office))))
            .add_service(admin.max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// The sequencer, for the store and proxy of the same process.
    pub fn number_service(&self) -> Arc<dyn NumberService> {
        Arc::clone(&self.shared.office) as Arc<dyn NumberService>
    }

    /// Where raft messages for it go.
    pub fn inbound(&self) -> Arc<dyn Inbound> {
        Arc::clone(&self.gate) as Arc<dyn Inbound>
    }

    /// Whether this member leads.
    pub fn leads(&self) -> bool {
        self.shared.leading().is_some()
    }

    /// Stops: records the last number, gives leadership away if it can, closes the folder. Where no majority is left to
    /// decide anything it stops all the same, after a moment.
    pub async fn shutdown(self) {
        let role = *self.shared.replica.role().borrow();
        if let Role::Leads(term) = role {
            match tokio::time::timeout(RECORD_PATIENCE, self.shared.office.hand_over()).await {
                Ok(()) => self.give_leadership_away(term).await,
                Err(_) => tracing::warn!("placement's group does not decide; the next sequencer skips some revisions"),
            }
        }
        self.leader.abort();
        if let Some(beginning) = &self.beginning {
            beginning.abort();
        }
        let host = Arc::clone(&self.host);
        if let Err(error) = tokio::task::spawn_blocking(move || host.shutdown()).await {
            tracing::error!(%error, "placement's host did not stop cleanly");
        }
    }

    async fn give_leadership_away(&self, term: Term) {
        let Some(handle) = self.host.handle(REGION) else { return };
        let region = handle.region();
        let silent = handle.report().map(|report| report.down_peers).unwrap_or_default();
        let others =
            region.peers.iter().filter(|peer| peer.store_id != self.shared.member && !silent.contains(&peer.id));
        for other in others {
            let (tell, told) = oneshot::channel();
            handle.transfer_leader(term, PeerId(other.id), Box::new(move |ended| _ = tell.send(ended)));
            match tokio::time::timeout(HAND_OVER_PATIENCE, told).await {
                Ok(Ok(Ok(()))) => return,
                ended => tracing::debug!(?ended, peer = other.id, "a member did not take placement's leadership"),
            }
        }
    }
}

impl Drop for Placement {
    fn drop(&mut self) {
        self.leader.abort();
        if let Some(beginning) = &self.beginning {
            beginning.abort();
        }
    }
}

/// Reads the configuration as a plan for the first regions.
fn check(config: &PlacementConfig) -> Result<Plan, PlacementError> {
    let wrong = |why: String| Err(PlacementError::Config(why));
    let Some(me) = config.members.iter().find(|member| member.id == config.member_id) else {
        return wrong(format!("member {:016x} is not in the list of members", config.member_id));
    };
    let ids: BTreeSet<u64> = config.members.iter().map(|member| member.id).collect();
    if ids.len() != config.members.len() || ids.contains(&0) {
        return wrong("members need ids that differ and are not 0".to_owned());
    }
    if !matches!(config.members.len(), 1 | 3 | 5) {
        return wrong(format!("{} placement members; 1, 3 or 5 are possible", config.members.len()));
    }
    if !(1..=REPLICAS_MAX).contains(&config.replicas) {
        return wrong(format!("{} replicas of a region; 1 to {REPLICAS_MAX} are possible", config.replicas));
    }
    if config.split_keys.len() >= FIRST_REGIONS_MAX {
        return wrong(format!("{} split keys; fewer than {FIRST_REGIONS_MAX} are possible", config.split_keys.len()));
    }
    let in_order = config.split_keys.windows(2).all(|pair| pair[0] < pair[1]);
    if !in_order || config.split_keys.iter().any(Bytes::is_empty) {
        return wrong("split keys must not be empty, and each must be greater than the one before".to_owned());
    }
    let (split_keys, replicas) = (config.split_keys.clone(), config.replicas);
    Ok(Plan { split_keys, replicas, own_addr: me.peer_addr.clone() })
}

async fn open_host(
    config: &PlacementConfig,
    machine: Machine,
    transport: Arc<dyn Transport>,
    tuning: Tuning,
) -> Result<Host, PlacementError> {
    let mut host_config = HostConfig::new(config.dir.clone(), Domain::Placement, config.cluster_id, config.member_id);
    host_config.block_cache_bytes = CACHE_BYTES;
    host_config.memtable_bytes = CACHE_BYTES;
    host_config.log_purge_bytes = LOG_PURGE_BYTES;
    host_config.log_keep_entries = tuning.log_keep_entries;
    // A member that has lost its folder keeps its id. Behind a clock that was set back the others ignore it, no more.
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    host_config.first_incarnation = (clock.as_millis() as u64).max(1);
    let opened =
        tokio::task::spawn_blocking(move || Host::open_with(host_config, tuning.timing, Arc::new(machine), transport));
    match opened.await {
        Ok(opened) => Ok(opened?),
        Err(error) if error.is_panic() => Err(PlacementError::Data(panic_text(&*error.into_panic()))),
        Err(error) => Err(PlacementError::Create(error.to_string())),
    }
}

async fn open_folder(config: &PlacementConfig) -> Result<OwnFolder, PlacementError> {
    let (dir, member) = (config.dir.clone(), config.member_id);
    let opened = tokio::task::spawn_blocking(move || OwnFolder::open(&dir, member, drawn_life())).await;
    let opened = opened.map_err(std::io::Error::other).flatten();
    opened.map_err(|error| own_file(config, &error))
}

fn own_file(config: &PlacementConfig, error: &std::io::Error) -> PlacementError {
    PlacementError::Data(format!(
        "which folder of the member {} is cannot be read or written: {error}",
        config.dir.display()
    ))
}

/// Lets the member take part: at once if it does by its folder, or is the only one; otherwise by the task that is returned.
async fn begin(
    config: &PlacementConfig,
    shared: &Arc<Shared>,
    host: &Arc<Host>,
    gate: &Arc<Gate>,
) -> Result<Option<JoinHandle<()>>, PlacementError> {
    let group = group(&config.members);
    let votes = || host.handle(REGION).is_some_and(|handle| !handle.peer().learner);
    let alone = config.members.len() == 1;
    if alone && !votes() && !config.new {
        return Err(PlacementError::Config(format!(
            "{} has never been part of a cluster, and there is no other member that could know one",
            config.dir.display()
        )));
    }
    if alone && !votes() {
        let (host, group) = (Arc::clone(host), group.clone());
        let created = tokio::task::spawn_blocking(move || host.create_regions(vec![group])).await;
        created.unwrap_or_else(|error| Err(error.to_string())).map_err(PlacementError::Create)?;
    }
    let own = {
        let (shared, host) = (Arc::clone(shared), Arc::clone(host));
        tokio::task::spawn_blocking(move || match host.handle(REGION) {
            Some(_) => shared.folder.use_it(),
            None => shared.folder.has_no_peer(drawn_life()),
        })
    };
    own.await.map_err(std::io::Error::other).flatten().map_err(|error| own_file(config, &error))?;
    if !votes() {
        let task = membership::take_part(Arc::clone(shared), Arc::clone(host), Arc::clone(gate), group, config.new);
        return Ok(Some(tokio::spawn(task)));
    }
    gate.open();
    if alone && let Some(handle) = host.handle(REGION) {
        // Nobody else can lead; without this the first election waits for its timeout.
        handle.campaign();
    }
    Ok(None)
}

/// What a panic says. Loading the replicated state has no other way to refuse, see [`Machine`].
fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|| "opening was given up".to_owned())
}

/// Placement's group: every member holds a peer whose id follows from the member's place in the list by id, so that all
/// members, which know the same list, make the same group.
fn group(members: &[MemberConfig]) -> Region {
    let mut ids: Vec<u64> = members.iter().map(|member| member.id).collect();
    ids.sort_unstable();
    let peers = ids.into_iter().zip(1..).map(|(store_id, id)| Peer::voter(id, store_id)).collect();
    Region { id: REGION.0, epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }), peers, ..Default::default() }
}

/// Follows this member's role, on the thread that learns of it: nothing may come between.
fn observe(shared: &Shared, role: Role) {
    match role {
        Role::Leads(term) => shared.office.begin(term),
        Role::Follows(term, leader) => {
            let addr = leader.filter(|leader| *leader != shared.member).map(|leader| shared.addr_of(leader));
            shared.office.step_down(term, addr.unwrap_or_default());
        }
    }
}

/// Does a leader's work while this member leads, and drops it where it stands when it does not any more.
async fn lead_when_elected(shared: Arc<Shared>, auto: AutoCompaction) {
    let mut roles = shared.replica.role();
    let leads = metrics::gauge!("braid_placement_is_leader");
    loop {
        let role = *roles.borrow_and_update();
        leads.set(if matches!(role, Role::Leads(_)) { 1.0 } else { 0.0 });
        let changed = match role {
            Role::Leads(term) => {
                tracing::info!(%term, "this member leads placement");
                tokio::select! {
                    changed = roles.changed() => changed,
                    () = lead(&shared, term, auto) => unreachable!("a leader's work ends with its term"),
                }
            }
            Role::Follows(term, leader) => {
                tracing::info!(%term, ?leader, "this member follows in placement's group");
                roles.changed().await
            }
        };
        if changed.is_err() {
            return;
        }
    }
}

async fn lead(shared: &Shared, term: Term, auto: AutoCompaction) {
    let tick = async {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            shared.office.tick();
        }
    };
    tokio::join!(
        founding::found(shared, term),
        tick,
        compaction::by_itself(shared, term, auto, TICK),
        scheduling::run(shared, term)
    );
}

/// Tells this start of the process from every other one.
fn drawn_life() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish().max(1)
}
