//! The schedulers: each looks at the cluster and proposes plans, or says why it does nothing.

use std::fmt;

use super::plan::{By, Plan, Priority};
use super::view::View;
use super::{Config, drain, hot, labels, leaders, merge, repair, replicas, scatter, split};

/// Which scheduler. In the order in which they are asked: what protects data first, what tidies last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// As many replicas as wanted, on stores that are there.
    Repair,
    /// Replicas of a region in different zones, racks, hosts.
    Labels,
    /// Stores that are to be emptied.
    Drain,
    /// Regions that have become large or loaded are cut.
    Split,
    /// Regions that an operator wants scattered.
    Scatter,
    /// Load: hot regions move from hot to cool stores.
    Hot,
    /// Bytes: replicas move from full to empty stores.
    Replicas,
    /// Leaders: stores lead about as many regions.
    Leaders,
    /// Small neighbours become one.
    Merge,
}

impl Kind {
    /// All of them, in order.
    pub const ALL: [Self; 9] = [
        Self::Repair,
        Self::Labels,
        Self::Drain,
        Self::Split,
        Self::Scatter,
        Self::Hot,
        Self::Replicas,
        Self::Leaders,
        Self::Merge,
    ];

    /// What operators call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Repair => "repair",
            Self::Labels => "labels",
            Self::Drain => "drain",
            Self::Split => "split",
            Self::Scatter => "scatter",
            Self::Hot => "hot",
            Self::Replicas => "balance-replicas",
            Self::Leaders => "balance-leaders",
            Self::Merge => "merge",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// How its plans rank.
    pub fn priority(self) -> Priority {
        match self {
            Self::Repair => Priority::Repair,
            Self::Labels | Self::Drain | Self::Split | Self::Scatter => Priority::Wanted,
            Self::Hot | Self::Replicas | Self::Leaders => Priority::Balance,
            Self::Merge => Priority::Low,
        }
    }

    /// Plans that could begin now, or why there are none. The same for the same view and time.
    pub fn propose(self, view: &View, config: &Config, now_ms: u64) -> Proposal {
        let pass = Pass { view, config, now_ms, kind: self };
        match self {
            Self::Repair => repair::propose(&pass),
            Self::Labels => labels::propose(&pass),
            Self::Drain => drain::propose(&pass),
            Self::Split => split::propose(&pass),
            Self::Scatter => scatter::propose(&pass),
            Self::Hot => hot::propose(&pass),
            Self::Replicas => replicas::propose(&pass),
            Self::Leaders => leaders::propose(&pass),
            Self::Merge => merge::propose(&pass),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a scheduler wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// To be begun; none: see `said`.
    pub plans: Vec<Plan>,
    /// Something should be done that cannot be begun now.
    pub waits: bool,
    /// Something is not as it should be, and nothing can be done about it as things are.
    pub stays: bool,
    /// What it does, or why it does nothing, for operators.
    pub said: String,
}

impl Proposal {
    /// Nothing, for a reason.
    pub fn nothing(why: impl Into<String>) -> Self {
        Self { plans: Vec::new(), waits: false, stays: false, said: why.into() }
    }

    /// Nothing, although there is something to be done.
    pub fn waits(why: impl Into<String>) -> Self {
        Self { waits: true, ..Self::nothing(why) }
    }

    /// Nothing, although not everything is as it should be: nothing that could be begun would help.
    pub fn stays(why: impl Into<String>) -> Self {
        Self { stays: true, ..Self::nothing(why) }
    }

    /// Whether there is anything to be done.
    pub fn wants(&self) -> bool {
        self.waits || !self.plans.is_empty()
    }

    /// One plan; it speaks for itself.
    pub fn one(plan: Plan) -> Self {
        Self { said: format!("{}: {}", plan.region, plan.why), waits: false, stays: false, plans: vec![plan] }
    }
}

/// What a scheduler is given each time.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub view: &'a View,
    pub config: &'a Config,
    pub now_ms: u64,
    pub kind: Kind,
}

impl Pass<'_> {
    /// Another value each time, for looking at other regions than last time.
    pub fn seed(&self) -> u64 {
        crate::bootstrap::spread(self.now_ms ^ self.kind as u64)
    }

    /// Signs a plan, and says whether it could begin.
    pub fn ready(&self, plan: Plan, why: String) -> Result<Plan, String> {
        let plan = plan.because(By::Scheduler(self.kind), self.kind.priority(), why);
        plan.may_start(self.view, self.config, self.now_ms)?;
        Ok(plan)
    }
}

/// Collects plans of a pass, and the first reason why something could not be done.
#[derive(Default)]
pub(super) struct Findings {
    plans: Vec<Plan>,
    waits: Option<String>,
    waiting: usize,
}

impl Findings {
    /// Takes what `Pass::ready` or a choice came to. Says whether that is enough.
    pub fn take(&mut self, found: Result<Plan, String>, enough: usize) -> bool {
        match found {
            Ok(plan) => self.plans.push(plan),
            Err(why) => {
                self.waiting += 1;
                self.waits.get_or_insert(why);
            }
        }
        self.plans.len() >= enough
    }

    /// What the pass came to; `idle` says why there was nothing to look at.
    pub fn proposal(self, what: &str, idle: impl FnOnce() -> String) -> Proposal {
        let waits = self.waits.is_some();
        let said = match (self.plans.first(), self.waits) {
            (Some(first), _) if self.plans.len() == 1 => format!("{}: {}", first.region, first.why),
            (Some(first), _) => format!("{} plans, the first for {}: {}", self.plans.len(), first.region, first.why),
            (None, Some(why)) if self.waiting == 1 => format!("1 {what} waits: {why}"),
            (None, Some(why)) => format!("{} {what}s wait, the first one: {why}", self.waiting),
            (None, None) => idle(),
        };
        Proposal { plans: self.plans, waits, stays: false, said }
    }
}
