//! Everything that has a name in `run` and `compare`: operations that workers repeat (`workload`), watches (`watch`),
//! puts beside watches that never see any, or beside leases that expire (`lease::expiry`), and filling a key space.

use std::fmt;
use std::str::FromStr;

use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::ProgressBar;

use crate::lease::expiry;
use crate::loader::Loader;
use crate::progress;
use crate::report::Report;
use crate::resources::Usage;
use crate::runner::{self, Plan};
use crate::session::{Policy, Pool};
use crate::watch::held::Held;
use crate::watch::stream::Target;
use crate::watch::{self, Scenario, Shape, ShapeChange};
use crate::workload::Workload;
use crate::workload::kubernetes::objects;

/// Something that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Operations of workers.
    Operations(Workload),
    /// Puts, while `IDLE_WATCHES` watches look at keys that nobody writes.
    PutIdleWatchers,
    /// Puts of every key once, whether it is there or not.
    Load,
    /// Puts, while a lease with many keys expires every second.
    LeaseExpiry,
    /// Watches.
    Watch(Scenario),
}

/// Watches beside `PutIdleWatchers`, in the shape of `Scenario::Keys`.
pub const IDLE_WATCHES: usize = 10_000;

impl Measure {
    const NAMES: [(Self, &'static str); 7] = [
        (Self::Load, "load"),
        (Self::LeaseExpiry, "lease-expiry"),
        (Self::PutIdleWatchers, "put-idle-watchers"),
        (Self::Watch(Scenario::Fanout), "watch-fanout"),
        (Self::Watch(Scenario::Keys), "watch-keys"),
        (Self::Watch(Scenario::Latency), "watch-latency"),
        (Self::Watch(Scenario::LatencyEverything), "watch-latency-everything"),
    ];

    /// Whether the keys must be there before it starts.
    pub fn reads(self) -> bool {
        matches!(self, Self::Operations(workload) if workload.reads())
    }

    /// Every name, for help and errors; capital letters stand for numbers.
    pub fn names() -> Vec<&'static str> {
        let mut names = Workload::names();
        names.extend(Self::NAMES.map(|(_, name)| name));
        names
    }

    /// The bar that shows its progress.
    pub fn bar(self, plan: &Plan) -> ProgressBar {
        match self {
            Self::Load => progress::counting("loading", plan.keys.count),
            _ => progress::timing(&self.to_string(), plan.duration),
        }
    }

    /// Puts the keys that it reads, unless they are there.
    pub async fn fill(self, plan: &Plan) -> anyhow::Result<()> {
        plan.keys.check()?;
        if !self.reads() {
            return Ok(());
        }
        let pool = Pool::new(&plan.endpoints, 1, Policy::default());
        let loader = Loader::spread(&plan.endpoints, FILLERS);
        let bar = progress::counting("filling", plan.keys.count);
        if let Self::Operations(Workload::Kubernetes(_)) = self {
            objects::fill(&plan.keys, &pool, &loader, plan.seed, &bar).await?;
        } else if plan.keys.present(&pool).await? < plan.keys.count {
            plan.keys.fill(&loader, plan.seed, &bar).await?;
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Whether it only makes sense at a given rate.
    pub fn needs_rate(self) -> bool {
        matches!(self, Self::LeaseExpiry | Self::Watch(Scenario::Latency | Scenario::LatencyEverything))
    }

    /// Runs it as `plan` says; the plan's workload is of no account. Of watches there are as many as clients, in the
    /// usual shape with `change`. Blocks the calling thread, which must not belong to a runtime.
    pub fn run(self, plan: &Plan, change: ShapeChange, bar: &ProgressBar) -> anyhow::Result<Report> {
        match self {
            Self::Operations(workload) => runner::run(&Plan { workload, ..plan.clone() }, bar),
            Self::PutIdleWatchers => {
                let shape = change.of(Shape::of(Scenario::Keys, IDLE_WATCHES));
                let target = |number: usize| Target::key(format!("idle/{number:010}").into());
                let held = Held::start(&plan.endpoints, shape, target).context("opening the idle watches")?;
                let report = runner::run(&Plan { workload: Workload::Put, ..plan.clone() }, bar)?;
                held.finish().context("the idle watches")?;
                Ok(Report { workload: self.to_string(), ..report })
            }
            Self::Load => load(plan, bar),
            Self::LeaseExpiry => expiry::run(&Plan { workload: Workload::Put, ..plan.clone() }, &self.to_string(), bar),
            Self::Watch(scenario) => {
                let watch = watch::Plan {
                    scenario,
                    endpoints: plan.endpoints.clone(),
                    shape: change.of(Shape::of(scenario, plan.clients)),
                    put_connections: plan.connections,
                    threads: plan.threads,
                    warmup: plan.warmup,
                    duration: plan.duration,
                    rate: plan.rate,
                    patience: watch::PATIENCE,
                    keys: plan.keys.clone(),
                    seed: plan.seed,
                    servers: plan.servers.clone(),
                };
                watch::run(&watch, &self.to_string(), bar)
            }
        }
    }
}

impl FromStr for Measure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((measure, _)) = Self::NAMES.iter().find(|(_, name)| *name == text) {
            return Ok(*measure);
        }
        match text.parse() {
            Ok(workload) => Ok(Self::Operations(workload)),
            // What looks like one of the numbered names is told what is wrong with it.
            Err(error) if !error.contains("is not one of") => Err(error),
            Err(_) => {
                let near = Self::names().into_iter().find(|name| name.starts_with(text) || text.starts_with(name));
                let hint = near.map_or_else(String::new, |name| format!("; did you mean {name}?"));
                Err(format!("{text:?} is not one of {}{hint}", Self::names().join(", ")))
            }
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operations(workload) => workload.fmt(f),
            _ => {
                let (_, name) = Self::NAMES.iter().find(|(measure, _)| measure == self).expect("all others are named");
                f.write_str(name)
            }
        }
    }
}

/// Puts in flight while keys are filled in.
pub const FILLERS: usize = 128;

/// Puts every key once, as fast as the plan's clients can.
fn load(plan: &Plan, bar: &ProgressBar) -> anyhow::Result<Report> {
    plan.keys.check()?;
    anyhow::ensure!(plan.rate.is_none(), "load takes no rate: it puts as fast as --clients allow");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(plan.threads.max(1)).enable_all().build()?;
    let connections = plan.layout().0;
    let loader =
        Loader { clients: plan.clients, connections, endpoints: plan.endpoints.clone(), policy: Policy::default() };
    let before = Usage::read(&plan.servers)?;
    let start = Instant::now();
    let loaded = runtime.block_on(plan.keys.fill(&loader, plan.seed, bar))?;
    let seconds = start.elapsed().max(Duration::from_nanos(1));
    let used = Usage::read(&plan.servers)?.since(&before);
    Ok(Report::loaded(plan, &loaded, seconds, &used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_read_by_the_name_it_prints() {
        for (measure, name) in Measure::NAMES {
            assert_eq!(name.parse(), Ok(measure));
            assert_eq!(measure.to_string(), name);
        }
        assert_eq!("txn".parse(), Ok(Measure::Operations(Workload::Txn)));
        let error = "watch".parse::<Measure>().unwrap_err();
        assert!(error.contains("get-serializable") && error.contains("watch-latency-everything"), "{error}");
    }
}
