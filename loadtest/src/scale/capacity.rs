//! Latency, memory and disk as a data set grows far beyond what etcd takes.
//!
//! The data set is loaded in steps. After each one a fixed, modest rate of puts and linearizable gets over everything
//! that is there is measured, and the processes are looked at. Before the disk is full the run ends with what it has.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::Instant;

use super::cluster::{Cluster, Setup, Used};
use super::fill::{DataSet, Filler};
use super::foreground::{self, Foreground, Window};
use crate::cluster::Binary;
use crate::progress;

/// The disk is looked at each time so many bytes have been put, on each replica.
const LOOK_BYTES: u64 = 64 << 20;

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// All of the data, with its steps.
    pub data: DataSet,
    /// Stores, each with a replica of everything.
    pub stores: usize,
    /// Members of placement's group.
    pub placements: usize,
    /// Proxies.
    pub proxies: usize,
    /// Regions that the keys are cut into at the beginning.
    pub regions: u64,
    /// Clients while loading.
    pub fillers: u64,
    /// Puts of one transaction while loading.
    pub batch: u64,
    /// Most operations in flight while measuring.
    pub clients: usize,
    /// Operations per second while measuring.
    pub rate: f64,
    /// Time before each measurement, under the same load.
    pub warmup: Duration,
    /// Length of each measurement.
    pub duration: Duration,
    /// Bytes of the disk that must stay free.
    pub keep_free: u64,
    /// Further flags of each store.
    pub store_flags: Vec<String>,
    /// Makes keys and values repeatable.
    pub seed: u64,
}

/// One step.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// Bytes of keys and values that are there.
    pub user_bytes: u64,
    /// Keys that were put in this step, per second.
    pub load_keys_per_second: f64,
    /// Regions.
    pub regions: usize,
    /// What was measured.
    pub window: Window,
    /// What each process holds.
    pub processes: BTreeMap<String, Used>,
}

/// What the run showed.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// All steps that were completed.
    pub steps: Vec<Step>,
    /// Why it ended before the last step, if it did.
    pub ended_early: Option<String>,
    /// What went wrong while measuring, with its number.
    pub errors: BTreeMap<String, u64>,
}

impl Plan {
    fn check(&self) -> anyhow::Result<()> {
        ensure!(matches!(self.stores, 1 | 3 | 5), "--stores: 1, 3 or 5, each with a replica of everything");
        ensure!(
            self.data.steps > 0 && self.data.steps <= self.data.space.count,
            "--steps: from 1 to the number of keys"
        );
        ensure!(self.regions > 0 && self.regions <= self.data.space.count, "--regions: from 1 to the number of keys");
        ensure!(!self.duration.is_zero(), "--seconds must be above 0");
        Ok(())
    }

    /// Parts of a step between which the disk is looked at.
    fn parts(&self) -> u64 {
        (self.data.step_keys(0) * self.data.space.entry_bytes()).div_ceil(LOOK_BYTES).max(1)
    }
}

/// Starts a cluster in `folder` and fills it; `tell` sees each step as it is there.
pub async fn run(binary: &Binary, plan: &Plan, folder: &Path, mut tell: impl FnMut(&Step)) -> anyhow::Result<Report> {
    plan.check()?;
    let setup = Setup {
        placements: plan.placements,
        proxies: plan.proxies,
        stores: plan.stores,
        replicas: plan.stores,
        placement_flags: plan.data.space.split_flags(plan.regions),
        store_flags: plan.store_flags.clone(),
        limiter: None,
    };
    let mut cluster = Cluster::start(binary, &setup, folder).await?;
    let mut report = Report { steps: Vec::new(), ended_early: None, errors: BTreeMap::new() };
    let mut data = DataSet { steps_there: 0, ..plan.data.clone() };
    for step in 0..plan.data.steps {
        let bar = progress::counting(&format!("step {} of {}", step + 1, data.steps), data.step_keys(step));
        let begin = Instant::now();
        if let Err(why) = load(&cluster, plan, &data, step, folder, &bar).await? {
            report.ended_early = Some(why);
            break;
        }
        bar.finish_and_clear();
        let load_keys_per_second = data.step_keys(step) as f64 / begin.elapsed().as_secs_f64();
        data.steps_there = step + 1;
        cluster.check()?;
        let window = measure(&cluster, plan, &data, &mut report.errors).await?;
        cluster.check()?;
        let step = Step {
            user_bytes: data.bytes_there(),
            load_keys_per_second,
            regions: cluster.admin().await?.regions().await?.len(),
            window,
            processes: cluster.used()?,
        };
        tell(&step);
        report.steps.push(step);
    }
    ensure!(
        !report.steps.is_empty(),
        "not even the first step could be done: {}",
        report.ended_early.unwrap_or_default()
    );
    Ok(report)
}

/// Loads a step; the inner error is why that has to stop.
async fn load(
    cluster: &Cluster,
    plan: &Plan,
    data: &DataSet,
    step: u64,
    folder: &Path,
    bar: &ProgressBar,
) -> anyhow::Result<Result<(), String>> {
    let filler = Filler { endpoints: cluster.endpoints(), clients: plan.fillers, batch: plan.batch, seed: plan.seed };
    let parts = plan.parts();
    for part in 0..parts {
        let free = free_bytes(folder)?;
        if free < plan.keep_free {
            return Ok(Err(format!(
                "the disk has {:.1} GB left, and --keep-free is {:.1} GB",
                free as f64 / 1e9,
                plan.keep_free as f64 / 1e9
            )));
        }
        filler.load(data, step, (part, parts), bar).await?;
    }
    Ok(Ok(()))
}

async fn measure(
    cluster: &Cluster,
    plan: &Plan,
    data: &DataSet,
    errors: &mut BTreeMap<String, u64>,
) -> anyhow::Result<Window> {
    let load = foreground::Plan {
        endpoints: cluster.endpoints(),
        clients: plan.clients,
        rate: plan.rate,
        data: data.clone(),
        seed: plan.seed ^ data.steps_there,
    };
    let mut load = Foreground::start(load).await?;
    let from = Instant::now() + plan.warmup;
    let window = load.window(from, from + plan.duration).await?;
    for (error, count) in load.stop().await {
        *errors.entry(error).or_default() += count;
    }
    Ok(window)
}

/// Bytes that are free on the disk of a folder.
fn free_bytes(folder: &Path) -> anyhow::Result<u64> {
    let disk =
        rustix::fs::statvfs(folder).with_context(|| format!("cannot ask for the disk of {}", folder.display()))?;
    Ok(disk.f_bavail * disk.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(gigabytes: f64, stores: usize, steps: u64) -> Plan {
        let data = DataSet { steps, ..DataSet::of_gigabytes(gigabytes, "k/", 988, 0).unwrap() };
        let second = Duration::from_secs(1);
        Plan {
            data,
            stores,
            placements: 1,
            proxies: 1,
            regions: 1,
            fillers: 1,
            batch: 1,
            clients: 1,
            rate: 1.0,
            warmup: second,
            duration: second,
            keep_free: 0,
            store_flags: Vec::new(),
            seed: 1,
        }
    }

    #[test]
    fn the_disk_is_looked_at_often_enough() {
        assert_eq!(plan(20.0, 3, 10).parts(), 30);
        assert_eq!(plan(0.01, 3, 10).parts(), 1);
    }

    #[test]
    fn plans_that_cannot_be_are_refused() {
        assert!(plan(0.1, 1, 10).check().is_ok());
        assert!(plan(0.1, 2, 10).check().unwrap_err().to_string().contains("1, 3 or 5"));
        assert!(plan(0.1, 3, 0).check().unwrap_err().to_string().contains("--steps"));
    }

    #[test]
    fn free_space_is_known() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_bytes(folder.path()).unwrap() > 0);
        assert!(free_bytes(Path::new("/no/such/folder")).is_err());
    }
}
