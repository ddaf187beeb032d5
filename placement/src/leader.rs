//! What the services of a member share: configuration, replicated state, sequencer, and the leader's memory.

use std::sync::Arc;
use std::time::Instant;

use braid_proto::id::{ClusterId, StoreId, Term};
use braid_proto::pb::placement_command::Op;
use braid_proto::pb::{AllocateIds, MemberResponse, PlacementHeader, Store};
use parking_lot::{Mutex, MutexGuard};
use thiserror::Error;
use tokio::sync::Notify;

use crate::bootstrap::Plan;
use crate::machine::{ProposeError, Replica, Role};
use crate::membership::{Others, OwnFolder, Says};
use crate::office::Office;
use crate::orders::StoreOrders;
use crate::placement::MemberConfig;
use crate::presence::Presence;
use crate::regions::RegionMap;
use crate::removed::Removed;
use crate::scheduling::{Scheduling, Setup};
use crate::state::{Applied, StoreRecord};

/// Why the replicated state did not change as wished.
#[derive(Debug, Error)]
pub enum CommitError {
    /// Committing it failed.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The state machine refused.
    #[error("{0}")]
    Refused(String),
}

/// What a leader has heard in its term. Nobody else could tell it, and nobody needs to: everything is reported again.
#[derive(Debug)]
pub struct Memory {
    /// The term it is of.
    term: Term,
    /// Who is alive.
    pub presence: Presence,
    /// Where the regions are.
    pub regions: RegionMap,
    /// Which peers were removed from them.
    pub removed: Removed,
    /// How they are moved.
    pub scheduling: Scheduling,
    /// Somebody waits until stores have dropped history below this revision; 0: nobody ever did. Stores learn it from
    /// their heartbeats. Whoever waits says so again to the next leader.
    pub drop_below: i64,
}

/// Everything that the services of a member share.
pub struct Shared {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// This member.
    pub member: u64,
    /// All members.
    pub members: Vec<MemberConfig>,
    /// What the first regions are made of.
    pub plan: Plan,
    /// What the schedulers begin with.
    pub setup: Setup,
    /// The replicated state.
    pub replica: Arc<Replica>,
    /// The sequencer.
    pub office: Arc<Office>,
    /// How stores are told what to do.
    pub orders: Arc<dyn StoreOrders>,
    /// This member's folder.
    pub folder: OwnFolder,
    /// How the other members are asked.
    pub others: Arc<dyn Others>,
    /// Held while a member is let in anew.
    pub joining: tokio::sync::Mutex<()>,
    /// Something was heard that a young cluster, or an order under way, may be waiting for.
    pub news: Notify,
    /// There may be orders to give.
    pub work: Notify,
    memory: Mutex<Memory>,
}

impl Shared {
    /// The parts of a member that has heard nothing yet.
    #[allow(clippy::too_many_arguments, reason = "each is a part of its own, and it is called in one place")]
    pub fn new(
        cluster_id: ClusterId,
        member: u64,
        members: Vec<MemberConfig>,
        plan: Plan,
        setup: Setup,
        replica: Arc<Replica>,
        office: Arc<Office>,
        orders: Arc<dyn StoreOrders>,
        folder: OwnFolder,
        others: Arc<dyn Others>,
    ) -> Self {
        let memory = Memory {
            term: Term::INVALID,
            presence: Presence::new(Instant::now()),
            regions: RegionMap::default(),
            removed: Removed::default(),
            scheduling: Scheduling::new(&setup, Instant::now()),
            drop_below: 0,
        };
        Self {
            cluster_id,
            member,
            members,
            plan,
            setup,
            replica,
            office,
            orders,
            folder,
            others,
            joining: tokio::sync::Mutex::default(),
            news: Notify::new(),
            work: Notify::new(),
            memory: Mutex::new(memory),
        }
    }

    /// What this member tells the others of itself.
    pub fn says(&self) -> MemberResponse {
        let peer_id = self.replica.handle().map_or(0, |handle| handle.peer().id);
        MemberResponse { peer_id, ..self.folder.says() }
    }

    /// What another member says of itself, or why it says nothing.
    pub async fn ask(&self, member: u64) -> Says {
        let known = self.members.iter().find(|known| known.id == member && known.id != self.member);
        let member = known.ok_or_else(|| format!("{member:016x} is no other member of the cluster"))?;
        self.others.ask(member).await
    }

    /// The term this member leads in and holds a lease of.
    pub fn leading(&self) -> Option<Term> {
        let handle = self.replica.handle()?;
        let Role::Leads(term) = *self.replica.role().borrow() else { return None };
        handle.lease(term).then_some(term)
    }

    /// The header of an answer: a refusal where this member does not lead.
    pub fn header(&self) -> (PlacementHeader, Option<Term>) {
        let cluster_id = self.cluster_id.0;
        match self.leading() {
            Some(term) => (PlacementHeader { cluster_id, ..Default::default() }, Some(term)),
            None => (PlacementHeader { cluster_id, not_leader: self.leader_addr(), refused: true }, None),
        }
    }

    /// Address of the member that leads; empty if unknown or this one.
    pub fn leader_addr(&self) -> String {
        let leader = self.replica.handle().and_then(|handle| handle.leader()).map(|peer| peer.store_id);
        leader.filter(|member| *member != self.member).map(|member| self.addr_of(member)).unwrap_or_default()
    }

    /// Address of a member.
    pub fn addr_of(&self, member: u64) -> String {
        self.members.iter().find(|known| known.id == member).map(|known| known.peer_addr.clone()).unwrap_or_default()
    }

    /// What the leader of `term` has heard. What was heard in an earlier one is forgotten.
    pub fn memory(&self, term: Term) -> MutexGuard<'_, Memory> {
        let mut memory = self.memory.lock();
        if memory.term < term {
            let first = self.replica.read(|state| state.first_regions().cloned().collect::<Vec<_>>());
            let now = Instant::now();
            let (presence, regions) = (Presence::new(now), RegionMap::begin_with(first));
            let scheduling = Scheduling::new(&self.setup, now);
            *memory = Memory { term, presence, regions, removed: Removed::default(), scheduling, drop_below: 0 };
        }
        memory
    }

    /// Lets the schedulers know what the replicated state says now.
    pub fn resync(&self, term: Term) {
        let mut guard = self.memory(term);
        let memory = &mut *guard;
        self.replica.read(|state| memory.scheduling.sync(state, &memory.presence, &self.setup.defaults));
    }

    /// Every store that has joined and is not removed.
    pub fn stores(&self) -> Vec<Store> {
        let there = |record: &&StoreRecord| record.removed.is_none();
        self.replica.read(|state| state.stores().filter(there).map(StoreRecord::as_seen).collect())
    }

    /// One of them.
    pub fn store(&self, id: StoreId) -> Option<Store> {
        self.record(id).filter(|record| record.removed.is_none()).map(|record| record.as_seen())
    }

    /// What is kept of a store, also of one that is removed.
    pub fn record(&self, id: StoreId) -> Option<StoreRecord> {
        self.replica.read(|state| state.store(id).cloned())
    }

    /// Takes `count` ids from the cluster's counter; returns the first.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn allocate(&self, term: Term, count: u64) -> Result<u64, CommitError> {
        match self.commit(term, Op::AllocateIds(AllocateIds { count })).await? {
            Applied::Ids(first) => Ok(first),
            other => Err(CommitError::Refused(format!("ids were asked for, {other:?} came"))),
        }
    }

    /// Commits and applies `op`.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn commit(&self, term: Term, op: Op) -> Result<Applied, CommitError> {
        match self.replica.propose(term, op).await? {
            Applied::Refused(why) => Err(CommitError::Refused(why)),
            applied => Ok(applied),
        }
    }
}
