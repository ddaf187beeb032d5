//! What a scheduler or an operator wants of one region: steps, and where they lead. A plan becomes an operator when the
//! limits let it.

use braid_proto::id::{RegionId, StoreId};
use braid_proto::pb::RegionEpoch;

use super::scheduler::Kind;
use super::step::{SplitAt, Step};
use super::view::{Goal, RegionView, View};

/// Which plan goes first, and which one may take another's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Tidying that can always wait: merges.
    Low,
    /// Spreading bytes, leaders, loads.
    Balance,
    /// Emptying a store, splitting what grows, placing by labels.
    Wanted,
    /// Too few replicas.
    Repair,
    /// An operator asks for it.
    Admin,
}

/// Who wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// A scheduler.
    Scheduler(Kind),
    /// An operator.
    Admin,
}

impl std::fmt::Display for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Scheduler(kind) => kind.fmt(f),
            Self::Admin => f.write_str("admin"),
        }
    }
}

/// See the module's page.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Which region.
    pub region: RegionId,
    /// As it was when the plan was made; with another epoch it is not begun.
    pub epoch: RegionEpoch,
    /// Who wants it.
    pub by: By,
    /// Which plan goes first.
    pub priority: Priority,
    /// Why, for operators.
    pub why: String,
    /// What is to be done, in order.
    pub steps: Vec<Step>,
    /// Where the region will be.
    pub goal: Goal,
    /// The region it is merged into; it is left alone meanwhile.
    pub with: Option<RegionId>,
}

impl Plan {
    /// Moves a region's voters to just these stores, and its leader to one of them if that is said. Stores that it has
    /// no peer on get a learner first; then one change makes all learners voters that stay, and learners of the voters
    /// that go. `None` if nothing is to be done.
    pub fn towards(region: &RegionView, stores: &[StoreId], leader: Option<StoreId>) -> Option<Self> {
        let has = |store: &StoreId| region.news.region.peer_on(*store);
        let votes = |store: &StoreId| has(store).is_some_and(|peer| !peer.learner);
        let mut steps: Vec<Step> = stores.iter().filter(|store| has(store).is_none()).map(|s| Step::add(*s)).collect();
        let promote: Vec<StoreId> = stores.iter().filter(|store| !votes(store)).copied().collect();
        let demote: Vec<StoreId> = region.voter_stores().into_iter().filter(|s| !stores.contains(s)).collect();
        let stays = region.voter_stores().iter().any(|store| stores.contains(store));
        let transfer =
            leader.filter(|leader| region.leader_store() != *leader).map(|store| Step::TransferLeader { store });
        if !promote.is_empty() && !demote.is_empty() && !stays {
            // Nobody stays who could lead through the change: the new voters come first, and one of them takes over.
            let store = leader.unwrap_or(promote[0]);
            steps.push(Step::ChangePeers { promote, demote: Vec::new() });
            steps.push(Step::TransferLeader { store });
            steps.push(Step::ChangePeers { promote: Vec::new(), demote });
        } else {
            if !promote.is_empty() || !demote.is_empty() {
                steps.push(Step::ChangePeers { promote, demote });
            }
            steps.extend(transfer);
        }
        let goes = region.stores().filter(|store| !stores.contains(store));
        steps.extend(goes.map(|store| Step::RemovePeer { store }));
        (!steps.is_empty()).then(|| Self::with_steps(region, steps, Goal { stores: stores.to_vec(), leader }))
    }

    /// Moves the voter on `from` to `to`.
    pub fn replace(region: &RegionView, from: StoreId, to: StoreId, leader: Option<StoreId>) -> Option<Self> {
        let swapped = region.voter_stores().into_iter().map(|store| if store == from { to } else { store });
        Self::towards(region, &swapped.collect::<Vec<_>>(), leader)
    }

    /// Gives leadership to a voter.
    pub fn transfer(region: &RegionView, to: StoreId) -> Self {
        let goal = Goal { stores: region.stores().collect(), leader: Some(to) };
        Self::with_steps(region, vec![Step::TransferLeader { store: to }], goal)
    }

    /// Cuts a region.
    pub fn split(region: &RegionView, at: SplitAt) -> Self {
        let goal = Goal { stores: region.stores().collect(), leader: None };
        Self::with_steps(region, vec![Step::split(at)], goal)
    }

    /// Brings a region to its neighbour's stores and leader, and merges it into the neighbour.
    pub fn merge(source: &RegionView, target: &RegionView) -> Self {
        let (stores, leader) = (target.voter_stores(), target.leader_store());
        let mut plan = Self::towards(source, &stores, Some(leader))
            .unwrap_or_else(|| Self::with_steps(source, Vec::new(), Goal { stores, leader: Some(leader) }));
        plan.steps.push(Step::Merge { target: target.id() });
        plan.with = Some(target.id());
        plan
    }

    /// Says who wants it, how much and why.
    pub fn because(mut self, by: By, priority: Priority, why: String) -> Self {
        (self.by, self.priority, self.why) = (by, priority, why);
        self
    }

    fn with_steps(region: &RegionView, steps: Vec<Step>, goal: Goal) -> Self {
        let epoch = region.news.region.region_epoch();
        let (by, priority, why) = (By::Admin, Priority::Admin, String::new());
        Self { region: region.id(), epoch, by, priority, why, steps, goal, with: None }
    }

    /// Stores that get a copy.
    pub fn receivers(&self) -> impl Iterator<Item = StoreId> + '_ {
        receivers(&self.steps)
    }

    /// Whether it could begin now: the region is as it was when the plan was made, and the limits allow it.
    ///
    /// # Errors
    /// Why not, for operators.
    pub fn may_start(&self, view: &View, config: &super::Config, now_ms: u64) -> Result<(), String> {
        let region = view.region(self.region).ok_or_else(|| format!("there is no region {}", self.region))?;
        let epoch = region.news.region.region_epoch();
        if epoch != self.epoch {
            return Err(format!("{} has changed: the plan is for {}, it is at {epoch}", self.region, self.epoch));
        }
        if let Some(target) = self.with {
            let target = view.region(target).ok_or_else(|| format!("there is no region {target}"))?;
            if target.goal.is_some() {
                return Err(format!("an operator is under way on {}", target.id()));
            }
        }
        if !self.receivers().any(|_| true) {
            return Ok(());
        }
        let urgent = self.priority >= Priority::Repair;
        let receiving_max = config.snapshots_receiving_max;
        let receiving_max = if urgent { receiving_max } else { (receiving_max - 1).max(1) };
        let sender = view.store(region.leader_store());
        if let Some(sender) = sender.filter(|sender| sender.sending >= config.snapshots_sending_max) {
            return Err(format!(
                "{} sends {} replicas, as many as it may (snapshots-sending-max)",
                sender.id, sender.sending
            ));
        }
        for id in self.receivers() {
            let store = view.store(id).ok_or_else(|| format!("there is no store {id}"))?;
            if store.receiving >= receiving_max {
                return Err(format!(
                    "{id} receives {} replicas, as many as it may (snapshots-receiving-max)",
                    store.receiving
                ));
            }
            if !urgent && store.paced_until_ms > now_ms {
                let seconds = (store.paced_until_ms - now_ms).div_ceil(1_000);
                return Err(format!(
                    "{id} has received as much as it may (move-bytes-per-second), for {seconds} s more"
                ));
            }
        }
        Ok(())
    }
}

/// Stores to which steps bring a copy.
pub fn receivers(steps: &[Step]) -> impl Iterator<Item = StoreId> + '_ {
    steps.iter().filter_map(|step| match step {
        Step::AddLearner { store, .. } => Some(*store),
        _ => None,
    })
}
