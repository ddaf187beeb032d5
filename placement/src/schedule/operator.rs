//! An operator: a plan under way on one region. A state machine over what the region reports.
//!
//! 1. A step is done when the region's report says so: exactly the peers that the step leads to, all caught up; the
//!    leader where it shall be; a higher version after a split. A merge is done when the region is gone.
//! 2. As long as it is not done its order is given, and again after a while: orders carry the region as it was reported,
//!    so one that comes late or twice is refused by its epoch.
//! 3. Peers that are neither those before nor those after the step are somebody else's work: the operator fails. So it
//!    does when a step takes too long. What it leaves behind (a learner, a voter more) is repaired by the next plan.
//!
//! An order is held back while it would leave the region without a quorum of voters that are well.

use std::fmt;

use braid_proto::id::{RegionId, StoreId};
use braid_proto::pb::{Region, RegionEpoch};

use super::Config;
use super::plan::Plan;
use super::step::{Shape, Step};
use super::view::{RegionView, StoreView, View};

#[cfg(test)]
mod tests;

/// An operator's id: counts up, within one term of placement's leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OperatorId(pub u64);

impl fmt::Display for OperatorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "o{}", self.0)
    }
}

/// What the leader of a region is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// For which operator.
    pub operator: OperatorId,
    /// The region as it was reported, with the epoch that the order is for.
    pub region: Region,
    /// Who leads it.
    pub leader: StoreId,
    /// What is to be done.
    pub step: Step,
    /// The region to merge into, as it was reported.
    pub target: Option<Region>,
}

/// How far an operator is.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// Nothing to say now; for what it waits.
    Wait(String),
    /// To be told to the region's leader.
    Order(Box<Order>),
    /// All steps are done.
    Done,
    /// It cannot go on.
    Failed(String),
}

/// After so long an order is given again that could not be carried out yet: the time that what it waits for, such as a
/// learner's last entries, takes.
const NOT_YET_MS: u64 = 1_000;

/// See the module's page.
#[derive(Clone, Debug)]
pub struct Operator {
    /// Its id.
    pub id: OperatorId,
    /// What is to be done.
    pub plan: Plan,
    /// The step it is at; all of them: it is done.
    pub at: usize,
    /// Since when it is under way.
    pub started_ms: u64,
    /// Since when it is at this step.
    pub step_since_ms: u64,
    /// For what it waits, or what it has ordered; for operators.
    pub said: String,
    /// When its order may be given again; `None`: it was not given.
    again_ms: Option<u64>,
    /// Why the order had no effect when it was given last.
    refusal: Option<String>,
    /// Who was to become the leader before this step can be ordered.
    handed_to: Option<StoreId>,
    /// The peers before the step that it is at.
    shape: Shape,
    /// Highest epoch reported.
    epoch: RegionEpoch,
    /// What the region weighs, for the time its copies may take.
    bytes: u64,
}

impl Operator {
    /// Begins a plan, whose steps have their ids, on the region as it is.
    pub fn new(id: OperatorId, plan: Plan, region: &RegionView, now_ms: u64) -> Self {
        Self {
            id,
            at: 0,
            started_ms: now_ms,
            step_since_ms: now_ms,
            said: String::new(),
            again_ms: None,
            refusal: None,
            handed_to: None,
            shape: Shape::of(region),
            epoch: plan.epoch,
            bytes: region.news.bytes,
            plan,
        }
    }

    /// What the region weighed when it began.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Steps that are not done.
    pub fn left(&self) -> &[Step] {
        &self.plan.steps[self.at..]
    }

    /// Looks at the region as it was reported last.
    pub fn step(&mut self, region: &RegionView, view: &View, config: &Config, now_ms: u64) -> Progress {
        let progress = self.look(region, view, config, now_ms);
        match &progress {
            Progress::Wait(why) => self.said.clone_from(why),
            Progress::Order(order) => self.said = format!("ordered {}: {}", order.leader, order.step),
            Progress::Done | Progress::Failed(_) => {}
        }
        progress
    }

    /// The region is gone, into `by`. That is what a merge wants.
    pub fn gone(&mut self, by: Option<RegionId>) -> Progress {
        match (self.left(), by) {
            ([Step::Merge { target }], Some(by)) if *target == by => Progress::Done,
            (_, Some(by)) => Progress::Failed(format!("the region was merged into {by}")),
            (_, None) => Progress::Failed("the region is gone".to_owned()),
        }
    }

    /// Its order cannot be carried out yet, as whoever got it says: it is given again soon.
    pub fn not_yet(&mut self, why: &str, config: &Config, now_ms: u64) {
        if self.again_ms.is_some() {
            self.again_ms = Some(now_ms + config.order_retry_ms.min(NOT_YET_MS));
            self.refusal = Some(why.to_owned());
        }
    }

    fn look(&mut self, region: &RegionView, view: &View, config: &Config, now_ms: u64) -> Progress {
        let epoch = region.news.region.region_epoch();
        if (epoch.version, epoch.conf_ver) < (self.epoch.version, self.epoch.conf_ver) {
            return Progress::Wait("the last report is older than what was done".to_owned());
        }
        while let Some(step) = self.plan.steps.get(self.at) {
            if !self.is_done(step, region, view) {
                break;
            }
            step.change(&mut self.shape);
            (self.at, self.step_since_ms) = (self.at + 1, now_ms);
            (self.again_ms, self.refusal) = (None, None);
        }
        let Some(step) = self.plan.steps.get(self.at) else { return Progress::Done };
        let late = now_ms.saturating_sub(self.step_since_ms) > config.step_ms_max;
        let freezes = matches!(step, Step::Merge { .. }) && epoch.version == self.plan.epoch.version + 1;
        if freezes && !late {
            // A merge freezes the region at the next version before it is gone.
            return Progress::Wait(format!("{} is frozen: {step}", self.plan.region));
        }
        if epoch.version != self.plan.epoch.version {
            return Progress::Failed(format!("{} was split or merged meanwhile", self.plan.region));
        }
        self.epoch = epoch;
        if !self.is_expected(step, region) {
            return Progress::Failed(format!("the peers of {} were changed by somebody else", self.plan.region));
        }
        if let Step::AddLearner { store, .. } = step
            && !view.store(*store).is_some_and(StoreView::may_come_back)
        {
            return Progress::Failed(format!("{store}, which was to get a replica, is down"));
        }
        if let Step::TransferLeader { store } = step
            && view.store(*store).is_none_or(|store| !store.is_up())
        {
            // Nothing is lost by giving up, and the region is free for better.
            return Progress::Failed(format!("{store}, which was to lead, is not up"));
        }
        let patience = if step.copies() {
            // 1 MiB per second is slow for any disk or network that serves.
            config.snapshot_ms_max + self.bytes / 1_049
        } else {
            config.step_ms_max
        };
        if now_ms.saturating_sub(self.step_since_ms) > patience {
            let waited = if self.said.is_empty() { String::new() } else { format!(" ({})", self.said) };
            return Progress::Failed(format!("not done in {} s: {step}{waited}", patience / 1_000));
        }
        if self.handed_to.is_some_and(|store| store == region.leader_store()) {
            // What was ordered is done: the step itself need not wait.
            (self.handed_to, self.again_ms) = (None, None);
        }
        if self.again_ms.is_some_and(|again| now_ms < again) {
            return Progress::Wait(match &self.refusal {
                Some(why) => format!("for: {step}: {why}"),
                None => format!("for: {step}"),
            });
        }
        match self.order(step, region, view) {
            Ok(order) => {
                (self.again_ms, self.refusal) = (Some(now_ms + config.order_retry_ms), None);
                self.handed_to = match (&order.step, &self.plan.steps[self.at]) {
                    (Step::TransferLeader { store }, Step::ChangePeers { .. }) => Some(*store),
                    _ => None,
                };
                Progress::Order(Box::new(order))
            }
            Err(why) => Progress::Wait(why),
        }
    }

    fn is_done(&self, step: &Step, region: &RegionView, view: &View) -> bool {
        let after = || {
            let mut shape = self.shape.clone();
            step.change(&mut shape);
            shape
        };
        match step {
            Step::AddLearner { store, .. } => {
                let caught_up = region.news.region.peer_on(*store).is_some_and(|peer| region.is_well(view, peer));
                caught_up && Shape::of(region) == after()
            }
            Step::ChangePeers { .. } | Step::RemovePeer { .. } => !region.news.joint && Shape::of(region) == after(),
            Step::TransferLeader { store } => region.leader_store() == *store,
            Step::Split { .. } => region.news.region.region_epoch().version > self.plan.epoch.version,
            Step::Merge { .. } => false,
        }
    }

    /// Whether the peers are those before the step, or on the way to those after it.
    fn is_expected(&self, step: &Step, region: &RegionView) -> bool {
        let mut after = self.shape.clone();
        step.change(&mut after);
        let shape = Shape::of(region);
        region.news.joint || shape == self.shape || shape == after
    }

    fn order(&self, step: &Step, region: &RegionView, view: &View) -> Result<Order, String> {
        let leader = region.leader_store();
        if !leader.is_valid() {
            return Err(format!("no leader of {} is known", region.id()));
        }
        let mut step = step.clone();
        let mut target = None;
        match &step {
            Step::AddLearner { store, .. } => {
                if region.news.region.peer_on(*store).is_some() {
                    return Err(format!("for the peer on {store} to catch up"));
                }
            }
            Step::ChangePeers { promote, demote } => {
                if let Some(instead) = check_change(region, view, promote, demote)? {
                    step = Step::TransferLeader { store: instead };
                }
            }
            Step::RemovePeer { store } => {
                if region.news.region.peer_on(*store).is_some_and(|peer| !peer.learner) {
                    return Err(format!("for the peer on {store} to lose its vote"));
                }
            }
            Step::TransferLeader { store } => {
                if !region.can_lead(view, *store) {
                    return Err(format!("for the peer on {store} to be able to lead"));
                }
            }
            Step::Split { .. } => {}
            Step::Merge { target: into } => {
                let into = view.region(*into).ok_or_else(|| format!("for {into}, which is unknown now"))?;
                check_merge(region, into)?;
                target = Some(into.news.region.clone());
            }
        }
        Ok(Order { operator: self.id, region: region.news.region.clone(), leader, step, target })
    }
}

/// Whether voters may change: a quorum of the old and of the new ones is well, and so is everyone who becomes a voter. If
/// the leader is to lose its vote, returns who is to lead instead first.
fn check_change(
    region: &RegionView,
    view: &View,
    promote: &[StoreId],
    demote: &[StoreId],
) -> Result<Option<StoreId>, String> {
    let ill = |store: &&StoreId| !region.news.region.peer_on(**store).is_some_and(|peer| region.is_well(view, peer));
    if let Some(store) = promote.iter().find(ill) {
        return Err(format!("for the learner on {store} to catch up"));
    }
    if region.voters_well(view) < region.quorum() {
        return Err(format!("for a quorum of {}'s voters", region.id()));
    }
    let stays = |store: &StoreId| !demote.contains(store);
    let staying: Vec<StoreId> = region.voter_stores().into_iter().filter(stays).collect();
    let well = staying.iter().filter(|store| region.can_lead(view, **store)).count() + promote.len();
    let voters = staying.len() + promote.len();
    if well < voters / 2 + 1 {
        return Err(format!("{well} of {voters} voters would be well, that is no quorum"));
    }
    if !demote.contains(&region.leader_store()) {
        return Ok(None);
    }
    let next = staying.into_iter().find(|store| region.can_lead(view, *store));
    next.map(Some).ok_or_else(|| "for a voter that stays and can lead".to_owned())
}

fn check_merge(source: &RegionView, target: &RegionView) -> Result<(), String> {
    let sorted = |region: &RegionView| {
        let mut stores = region.voter_stores();
        stores.sort_unstable();
        stores
    };
    if sorted(source) != sorted(target) {
        return Err(format!("for {} and {} to have their peers on the same stores", source.id(), target.id()));
    }
    if !target.is_calm() || !source.is_calm() {
        return Err(format!("for all peers of {} and {} to be well", source.id(), target.id()));
    }
    Ok(())
}
