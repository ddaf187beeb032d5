//! Schedulers and operators: which region shall be where, and what its leader is told to get there. A pure core: reports
//! and time in milliseconds come in, orders go out.
//!
//! ```text
//!  heartbeats ──► View ──────► schedulers ──► Plan ──► Operators ──► Order ──► the region's leader
//!                 indexes      propose, or    steps    one a region,              │
//!                    ▲         say why not    and goal limits, history            │
//!                    └───────────────────── reports of the region ◄───────────────┘
//! ```
//!
//! 1. `Driver::report` takes what a region's leader says, and moves the region's operator on.
//! 2. `Driver::tick` looks after operators that have heard nothing, then asks the schedulers in the order of what
//!    protects data. A plan changes where its region counts at once, so the next plan sees it.
//! 3. An operator's steps are done when reports say so. Nothing is remembered elsewhere: a new placement leader begins
//!    without operators, and repairs what the last one left half done.
//!
//! That it ends: bytes and leaders move only if the sum of squares over stores falls, replicas only to places that are
//! not closer together, and what is hot is moved by one scheduler only. Deliberately absent: I/O, clocks, randomness.

use std::collections::{BTreeMap, BTreeSet};

use braid_proto::id::{RegionId, StoreId};

pub mod choose;
mod config;
pub mod drain;
pub mod hot;
mod labels;
mod leaders;
mod merge;
pub mod operator;
pub mod operators;
pub mod plan;
pub mod preference;
mod repair;
mod replicas;
pub mod scatter;
pub mod scheduler;
pub mod settings;
mod split;
pub mod step;
#[cfg(test)]
mod tests;
pub mod view;

pub use config::Config;
pub use operator::{Operator, OperatorId, Order};
pub use operators::{Ended, Operators, Outcome, Tally};
pub use plan::{By, Plan, Priority};
pub use scatter::Scattered;
pub use scheduler::{Kind, Proposal};
pub use settings::{Setting, Settings};
pub use step::{SplitAt, Step};
pub use view::{Drain, Goal, Load, RegionNews, RegionView, StoreState, StoreView, Taken, View};

/// What a scheduler last said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// What it does, or why it does nothing.
    pub text: String,
    /// When.
    pub at_ms: u64,
    /// Operators that it has begun so far.
    pub started: u64,
}

/// Everything together: what the leader of placement's group holds while it leads.
#[derive(Debug)]
pub struct Driver {
    view: View,
    config: Config,
    operators: Operators,
    paused: BTreeSet<Kind>,
    said: BTreeMap<Kind, Said>,
}

impl Driver {
    /// Nothing known yet.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(config: Config, location_labels: Vec<String>) -> Result<Self, String> {
        config.check()?;
        let (operators, paused, said) = (Operators::default(), BTreeSet::new(), BTreeMap::new());
        Ok(Self { view: View::new(location_labels), config, operators, paused, said })
    }

    /// What is known of the cluster.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// For what stores say of themselves.
    pub fn view_mut(&mut self) -> &mut View {
        &mut self.view
    }

    /// Operators under way and ended.
    pub fn operators(&self) -> &Operators {
        &self.operators
    }

    /// What it goes by.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Goes by something else from now on.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn configure(&mut self, config: Config) -> Result<(), String> {
        config.check()?;
        self.config = config;
        Ok(())
    }

    /// How many ids it wants for new peers and regions, so that enough are at hand above `newest`.
    pub fn ids_wanted(&self, newest: u64) -> u64 {
        self.operators.ids_wanted(newest)
    }

    /// Ids that are nobody else's, from `first` on.
    pub fn feed_ids(&mut self, first: u64, count: u64) {
        self.operators.feed_ids(first, count);
    }

    /// Ids for a region that is cut without an operator. `None`: there are not enough at hand.
    pub fn take_ids(&mut self, count: u64) -> Option<Vec<u64>> {
        self.operators.take_ids(count)
    }

    /// A scheduler begins nothing more; its operators end as they would.
    pub fn pause(&mut self, kind: Kind) {
        self.paused.insert(kind);
    }

    /// A scheduler goes on.
    pub fn resume(&mut self, kind: Kind) {
        self.paused.remove(&kind);
    }

    /// Whether a scheduler is paused.
    pub fn is_paused(&self, kind: Kind) -> bool {
        self.paused.contains(&kind)
    }

    /// What each scheduler does, or why it does nothing.
    pub fn said(&self) -> impl Iterator<Item = (Kind, Said)> + '_ {
        Kind::ALL.into_iter().map(|kind| (kind, self.said.get(&kind).cloned().unwrap_or_default()))
    }

    /// Takes what a region's leader reports. Returns what the leader is told.
    pub fn report(&mut self, news: RegionNews, now_ms: u64) -> Option<Order> {
        let id = news.region.region_id();
        let Taken::New { gone } = self.view.take(news, now_ms) else { return None };
        for merged in gone {
            self.operators.gone(merged, id, &mut self.view, &self.config, now_ms);
        }
        self.operators.drive(id, &mut self.view, &self.config, now_ms)
    }

    /// Does what time brings: call it about once a second.
    pub fn tick(&mut self, now_ms: u64) -> Vec<Order> {
        let mut orders = self.operators.drive_all(&mut self.view, &self.config, now_ms);
        for kind in Kind::ALL {
            if self.is_paused(kind) {
                self.say(kind, "paused".to_owned(), 0, now_ms);
                continue;
            }
            orders.extend(self.run(kind, now_ms));
        }
        orders
    }

    /// Begins what an operator wants.
    ///
    /// # Errors
    /// Why not.
    pub fn start(&mut self, plan: Plan, now_ms: u64) -> Result<(OperatorId, Option<Order>), String> {
        let region = plan.region;
        let id = self.operators.start(plan, &mut self.view, &self.config, now_ms)?;
        Ok((id, self.operators.drive(region, &mut self.view, &self.config, now_ms)))
    }

    /// Ends a region's operator where it stands. Says whether there was one.
    pub fn cancel(&mut self, region: RegionId, why: &str, now_ms: u64) -> bool {
        self.operators.cancel(region, why, &mut self.view, &self.config, now_ms)
    }

    /// A store refused an order for good.
    pub fn refused(&mut self, id: OperatorId, why: &str, now_ms: u64) {
        self.operators.refused(id, why, &mut self.view, &self.config, now_ms);
    }

    /// An order cannot be carried out yet, as a store says or its silence.
    pub fn not_yet(&mut self, id: OperatorId, why: &str, now_ms: u64) {
        self.operators.not_yet(id, why, &self.config, now_ms);
    }

    /// What a scheduler would begin now.
    pub fn propose(&self, kind: Kind, now_ms: u64) -> Proposal {
        kind.propose(&self.view, &self.config, now_ms)
    }

    /// Why none of these plans can begin now; `None`: one can, or there is none.
    pub fn refuses(&self, plans: &[Plan], now_ms: u64) -> Option<String> {
        let mut why = None;
        for plan in plans {
            match self.operators.may_start(plan, &self.view, &self.config, now_ms) {
                Ok(()) => return None,
                Err(refused) => _ = why.get_or_insert(refused),
            }
        }
        why
    }

    /// Wants these regions scattered.
    ///
    /// # Errors
    /// Why they cannot be.
    pub fn scatter(&mut self, regions: &[RegionId]) -> Result<Scattered, String> {
        scatter::wish(&mut self.view, &self.config, regions)
    }

    /// How far the drain of a store is.
    pub fn drain_progress(&self, store: StoreId) -> Option<drain::Progress> {
        drain::progress(&self.view, store)
    }

    /// Asks a scheduler until it has nothing that can begin, or has begun as much as it may in one round.
    fn run(&mut self, kind: Kind, now_ms: u64) -> Vec<Order> {
        if kind == Kind::Scatter {
            scatter::tidy(&mut self.view);
        }
        let (mut orders, mut started, mut text) = (Vec::new(), 0, String::new());
        while started < self.config.plans_per_round {
            let proposal = kind.propose(&self.view, &self.config, now_ms);
            if started == 0 {
                text = proposal.said;
            }
            let before = started;
            for plan in proposal.plans {
                let region = plan.region;
                match self.operators.start(plan, &mut self.view, &self.config, now_ms) {
                    Ok(_) => {
                        started += 1;
                        if kind == Kind::Scatter {
                            self.view.wishes.remove(&region);
                        }
                        orders.extend(self.operators.drive(region, &mut self.view, &self.config, now_ms));
                    }
                    Err(why) if started == 0 => text = format!("waits: {why}"),
                    Err(_) => {}
                }
            }
            if started == before {
                break;
            }
        }
        self.say(kind, text, started as u64, now_ms);
        orders
    }

    fn say(&mut self, kind: Kind, text: String, started: u64, now_ms: u64) {
        let said = self.said.entry(kind).or_default();
        (said.text, said.at_ms, said.started) = (text, now_ms, said.started + started);
    }
}
