//! Everything that has a name in `run` and `compare`: operations that workers repeat (`workload`), watches (`watch`), and
//! puts beside watches that never see any, or beside leases that expire (`lease::expiry`).

use std::fmt;
use std::str::FromStr;

use anyhow::Context;
use indicatif::ProgressBar;

use crate::lease::expiry;
use crate::report::Report;
use crate::runner::{self, Plan};
use crate::watch::held::Held;
use crate::watch::stream::Target;
use crate::watch::{self, Scenario, Shape, ShapeChange};
use crate::workload::Workload;

/// Something that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Operations of workers.
    Operations(Workload),
    /// Puts, while `IDLE_WATCHES` watches look at keys that nobody writes.
    PutIdleWatchers,
    /// Puts, while a lease with many keys expires every second.
    LeaseExpiry,
    /// Watches.
    Watch(Scenario),
}

/// Watches beside `PutIdleWatchers`, in the shape of `Scenario::Keys`.
pub const IDLE_WATCHES: usize = 10_000;

impl Measure {
    const NAMES: [(Self, &'static str); 6] = [
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
        let names = || Self::NAMES.map(|(_, name)| name).join(", ");
        text.parse().map(Self::Operations).map_err(|error: String| format!("{error}, {}", names()))
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
