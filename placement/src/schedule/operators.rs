//! The operators under way and those that have ended: one a region, within limits, in a bounded history.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use braid_proto::id::{RegionId, StoreId};

use super::Config;
use super::operator::{Operator, OperatorId, Order, Progress};
use super::plan::{By, Plan, Priority, receivers};
use super::step::Step;
use super::view::{Goal, View};

#[cfg(test)]
mod tests;

/// Ids kept at hand; the shell takes them from the replicated counter when there are fewer than half of them.
pub const IDS_AT_HAND: u64 = 1_024;

/// How an operator ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps done.
    Done,
    /// It could not go on; why.
    Failed(String),
    /// Somebody did not want it any more; why.
    Cancelled(String),
    /// A more urgent one took its place; which.
    Replaced(String),
}

impl Outcome {
    /// In one word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed(_) => "failed",
            Self::Cancelled(_) => "cancelled",
            Self::Replaced(_) => "replaced",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Failed(why) => write!(f, "failed: {why}"),
            Self::Cancelled(why) => write!(f, "cancelled: {why}"),
            Self::Replaced(why) => write!(f, "replaced: {why}"),
        }
    }
}

/// An operator that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// As it was in the end.
    pub operator: Operator,
    /// How it ended.
    pub outcome: Outcome,
    /// When.
    pub at_ms: u64,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Operators {
    active: BTreeMap<RegionId, Operator>,
    history: VecDeque<Ended>,
    last_id: u64,
    /// Ids that placement's group gave out for this, as ranges from, to (exclusive).
    ids: VecDeque<(u64, u64)>,
    tally: Tally,
}

/// What operators came to since this leader began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Operators that ended, by who wanted them and how they ended.
    pub ended: BTreeMap<(By, &'static str), u64>,
    /// Replicas that were copied.
    pub copies: u64,
    /// Bytes of these.
    pub copied_bytes: u64,
    /// Leaders that were transferred.
    pub transfers: u64,
    /// Regions that were cut.
    pub splits: u64,
    /// Regions that went into a neighbour.
    pub merges: u64,
}

impl Tally {
    /// Operators that ended with all steps done.
    pub fn done(&self) -> u64 {
        self.ended.iter().filter(|((_, how), _)| *how == Outcome::Done.name()).map(|(_, count)| count).sum()
    }

    fn count(&mut self, operator: &Operator, outcome: &Outcome) {
        *self.ended.entry((operator.plan.by, outcome.name())).or_default() += 1;
        // A merge ends with the region: nobody sees its step done.
        let done = if *outcome == Outcome::Done { operator.plan.steps.len() } else { operator.at };
        for step in &operator.plan.steps[..done] {
            match step {
                Step::AddLearner { .. } => {
                    self.copies += 1;
                    self.copied_bytes += operator.bytes();
                }
                Step::TransferLeader { .. } => self.transfers += 1,
                Step::Split { .. } => self.splits += 1,
                Step::Merge { .. } => self.merges += 1,
                Step::ChangePeers { .. } | Step::RemovePeer { .. } => {}
            }
        }
    }
}

impl Operators {
    /// Those under way, by region.
    pub fn active(&self) -> impl ExactSizeIterator<Item = &Operator> {
        self.active.values()
    }

    /// The one on a region.
    pub fn on(&self, region: RegionId) -> Option<&Operator> {
        self.active.get(&region)
    }

    /// Those that have ended, the last one first.
    pub fn history(&self) -> impl ExactSizeIterator<Item = &Ended> {
        self.history.iter().rev()
    }

    /// The one with that id, if it is under way.
    pub fn under_way(&self, id: OperatorId) -> Option<&Operator> {
        self.active.values().find(|operator| operator.id == id)
    }

    /// The one with that id, if it has ended and is remembered.
    pub fn ended(&self, id: OperatorId) -> Option<&Ended> {
        self.history.iter().rev().find(|ended| ended.operator.id == id)
    }

    /// What they came to.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// How many ids should be fetched, so that enough are at hand above `newest`.
    pub fn ids_wanted(&self, newest: u64) -> u64 {
        let above = |(from, to): &(u64, u64)| to.saturating_sub((*from).max(newest + 1));
        let left: u64 = self.ids.iter().map(above).sum();
        if left < IDS_AT_HAND / 2 { IDS_AT_HAND - left } else { 0 }
    }

    /// Ids that are nobody else's, from `first` on. Two that fetch at once may come in either order.
    pub fn feed_ids(&mut self, first: u64, count: u64) {
        if count > 0 {
            let place = self.ids.partition_point(|(from, _)| *from < first);
            self.ids.insert(place, (first, first + count));
        }
    }

    /// Whether a plan could begin now, beside those that are under way.
    ///
    /// # Errors
    /// Why not, for operators.
    pub fn may_start(&self, plan: &Plan, view: &View, config: &Config, now_ms: u64) -> Result<(), String> {
        let present = self.active.get(&plan.region).map(|present| (present.id, present.plan.priority));
        let merged_into = self.active.values().find(|other| other.plan.with == Some(plan.region));
        if let Some(other) = merged_into {
            return Err(format!("{} is being merged into {}", other.plan.region, plan.region));
        }
        if let Some((id, priority)) = present.filter(|(_, priority)| *priority >= plan.priority) {
            return Err(format!("{id} is under way on {}, of priority {priority:?}", plan.region));
        }
        plan.may_start(view, config, now_ms)?;
        let allowed = match plan.priority {
            Priority::Admin | Priority::Repair => config.operators_max,
            _ => (config.operators_max * 3 / 4).max(1),
        };
        if present.is_none() && self.active.len() >= allowed {
            let kept = if allowed < config.operators_max { ", of which repair keeps a part to itself" } else { "" };
            return Err(format!(
                "{} operators are under way, as many as may be (operators-max is {}{kept})",
                self.active.len(),
                config.operators_max
            ));
        }
        Ok(())
    }

    /// Makes a plan an operator.
    ///
    /// # Errors
    /// Why not, for operators.
    pub fn start(
        &mut self,
        mut plan: Plan,
        view: &mut View,
        config: &Config,
        now_ms: u64,
    ) -> Result<OperatorId, String> {
        self.may_start(&plan, view, config, now_ms)?;
        let present = self.active.contains_key(&plan.region);
        let region = view.region(plan.region).ok_or_else(|| format!("there is no region {}", plan.region))?;
        let peers = region.peers().len();
        let needed: u64 = plan.steps.iter().map(|step| step.ids_needed(peers)).sum();
        if needed > 0 {
            self.drop_ids_up_to(region.newest_peer());
        }
        if needed > self.ids_left() {
            return Err("ids for new peers are still being fetched; try again in a moment".to_owned());
        }
        let ids = &mut self.ids;
        plan.steps.iter_mut().for_each(|step| step.name(peers, &mut || take_id(ids)));
        self.last_id += 1;
        let id = OperatorId(self.last_id);
        let (goal, with) = (plan.goal.clone(), plan.with);
        let bytes = region.news.bytes;
        let copied_to: Vec<StoreId> = plan.receivers().collect();
        let operator = Operator::new(id, plan, region, now_ms);
        let region = operator.plan.region;
        if present {
            let why = format!("{id} is more urgent and took its place");
            self.end(region, Outcome::Replaced(why), view, config, now_ms);
        }
        self.active.insert(region, operator);
        for store in copied_to {
            view.pace(store, bytes, config.move_bytes_per_second, now_ms);
        }
        view.set_goal(region, Some(goal));
        if let Some(target) = with {
            hold(view, target);
        }
        self.count_copies(view);
        Ok(id)
    }

    /// Looks at one region's operator; call it when the region was reported.
    pub fn drive(&mut self, region: RegionId, view: &mut View, config: &Config, now_ms: u64) -> Option<Order> {
        let operator = self.active.get_mut(&region)?;
        let copies = receivers(operator.left()).count();
        let progress = match view.region(region) {
            Some(known) => operator.step(known, view, config, now_ms),
            None => operator.gone(None),
        };
        if copies != receivers(operator.left()).count() {
            self.count_copies(view);
        }
        match progress {
            Progress::Wait(_) => None,
            Progress::Order(order) => Some(*order),
            Progress::Done => self.end(region, Outcome::Done, view, config, now_ms),
            Progress::Failed(why) => self.end(region, Outcome::Failed(why), view, config, now_ms),
        }
    }

    /// Looks at all of them; call it from time to time, for timeouts and orders without effect.
    pub fn drive_all(&mut self, view: &mut View, config: &Config, now_ms: u64) -> Vec<Order> {
        let regions: Vec<RegionId> = self.active.keys().copied().collect();
        regions.into_iter().filter_map(|region| self.drive(region, view, config, now_ms)).collect()
    }

    /// A region is gone, merged into `by`.
    pub fn gone(&mut self, region: RegionId, by: RegionId, view: &mut View, config: &Config, now_ms: u64) {
        let Some(operator) = self.active.get_mut(&region) else { return };
        let outcome = match operator.gone(Some(by)) {
            Progress::Failed(why) => Outcome::Failed(why),
            _ => Outcome::Done,
        };
        self.end(region, outcome, view, config, now_ms);
    }

    /// A store refused an order for good.
    pub fn refused(&mut self, id: OperatorId, why: &str, view: &mut View, config: &Config, now_ms: u64) {
        let region = self.active.values().find(|operator| operator.id == id).map(|operator| operator.plan.region);
        if let Some(region) = region {
            self.end(region, Outcome::Failed(why.to_owned()), view, config, now_ms);
        }
    }

    /// An order cannot be carried out yet.
    pub fn not_yet(&mut self, id: OperatorId, why: &str, config: &Config, now_ms: u64) {
        if let Some(operator) = self.active.values_mut().find(|operator| operator.id == id) {
            operator.not_yet(why, config, now_ms);
        }
    }

    /// Ends a region's operator where it stands. Says whether there was one.
    pub fn cancel(&mut self, region: RegionId, why: &str, view: &mut View, config: &Config, now_ms: u64) -> bool {
        let there = self.active.contains_key(&region);
        self.end(region, Outcome::Cancelled(why.to_owned()), view, config, now_ms);
        there
    }

    fn end(
        &mut self,
        region: RegionId,
        outcome: Outcome,
        view: &mut View,
        config: &Config,
        now_ms: u64,
    ) -> Option<Order> {
        let operator = self.active.remove(&region)?;
        view.set_goal(region, None);
        if let Some(target) = operator.plan.with {
            view.set_goal(target, None);
        }
        self.tally.count(&operator, &outcome);
        match outcome {
            Outcome::Done => view.ended_well(region),
            Outcome::Failed(_) => view.failed(region, operator.plan.priority, config.failed_rest_ms, now_ms),
            Outcome::Cancelled(_) | Outcome::Replaced(_) => {}
        }
        while self.history.len() >= config.history_max.max(1) {
            self.history.pop_front();
        }
        self.history.push_back(Ended { operator, outcome, at_ms: now_ms });
        self.count_copies(view);
        None
    }

    /// So many ids, if there are enough at hand.
    pub fn take_ids(&mut self, count: u64) -> Option<Vec<u64>> {
        (count <= self.ids_left()).then(|| (0..count).map(|_| take_id(&mut self.ids)).collect())
    }

    fn drop_ids_up_to(&mut self, id: u64) {
        while let Some((from, to)) = self.ids.front_mut() {
            if *to > id + 1 {
                *from = (*from).max(id + 1);
                return;
            }
            self.ids.pop_front();
        }
    }

    fn ids_left(&self) -> u64 {
        self.ids.iter().map(|(from, to)| to - from).sum()
    }

    fn count_copies(&self, view: &mut View) {
        let mut copies: BTreeMap<StoreId, (usize, usize)> = BTreeMap::new();
        for operator in self.active.values() {
            let receiving: Vec<StoreId> = receivers(operator.left()).collect();
            let sender = view.region(operator.plan.region).map(|region| region.leader_store());
            if let Some(sender) = sender.filter(|_| !receiving.is_empty()) {
                copies.entry(sender).or_default().1 += 1;
            }
            for store in receiving {
                copies.entry(store).or_default().0 += 1;
            }
        }
        view.set_copies(&copies);
    }
}

/// A region stays as it is while another one is merged into it.
fn hold(view: &mut View, region: RegionId) {
    let goal = view.region(region).map(|known| Goal { stores: known.stores().collect(), leader: None });
    view.set_goal(region, goal);
}

/// # Panics
/// Without an id at hand; who calls it has counted.
fn take_id(ids: &mut VecDeque<(u64, u64)>) -> u64 {
    let (from, to) = ids.front_mut().expect("ids were counted before they are taken");
    let id = *from;
    *from += 1;
    if from == to {
        ids.pop_front();
    }
    id
}
