//! Throughput as stores are added: each store has an equal share of a CPU, so that stores are what limits.
//!
//! For each number of stores: grow to it, wait for balance, then uniform puts or uniform linearizable gets in a closed
//! loop. Clients grow with the stores: fewer for each would make smaller batches, and a put would cost more where there are
//! more stores only because nobody else wants anything. Placement and proxies have as much CPU as they want.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::Instant;

use super::balance::{self, Rebalanced, Replicas};
use super::cgroup::Limiter;
use super::cluster::{Cluster, Setup, Used};
use crate::cluster::Binary;
use crate::keys::{Distribution, KeySpace};
use crate::loader::Loader;
use crate::measure::FILLERS;
use crate::progress;
use crate::report::Report;
use crate::runner;
use crate::workload::Workload;

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Numbers of stores, growing.
    pub stores: Vec<usize>,
    /// What is measured: puts, gets.
    pub workloads: Vec<Workload>,
    /// Share of a CPU that each store has; none: as much as it wants.
    pub limiter: Option<Limiter>,
    /// Members of placement's group.
    pub placements: usize,
    /// Proxies.
    pub proxies: usize,
    /// Regions that the keys are cut into.
    pub regions: u64,
    /// Keys.
    pub keys: KeySpace,
    /// Clients for each store, each with one operation in flight.
    pub clients_per_store: usize,
    /// Threads of the load generator.
    pub threads: usize,
    /// Time before each measurement, under the same load.
    pub warmup: Duration,
    /// Length of each measurement.
    pub duration: Duration,
    /// How long a rebalance may take.
    pub patience: Duration,
    /// Further flags of each store.
    pub store_flags: Vec<String>,
    /// Makes keys and values repeatable.
    pub seed: u64,
}

/// One workload at one number of stores.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// What the clients saw.
    pub report: Report,
    /// CPU of each process in percent of one CPU.
    pub cpu_percent: BTreeMap<String, f64>,
    /// Percent of the time that each limited store had used up its share.
    pub throttled_percent: BTreeMap<String, f64>,
}

/// One number of stores.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Stores.
    pub stores: usize,
    /// How balance was reached.
    pub rebalanced: Rebalanced,
    /// Each workload of the plan, in its order.
    pub measured: Vec<Measured>,
}

impl Plan {
    fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.stores.is_empty(), "--stores: give at least one number");
        ensure!(self.stores.is_sorted_by(|a, b| a < b), "--stores: the numbers must grow, as in 3,6,9");
        ensure!(self.stores[0] >= 3, "--stores: there are 3 replicas, so begin with at least 3 stores");
        ensure!(self.regions > 0 && self.regions <= self.keys.count, "--regions: from 1 to the number of keys");
        self.keys.check()
    }
}

/// Starts a cluster in `folder`, grows it and measures; `tell` sees each row as it is there.
pub async fn run(
    binary: &Binary,
    plan: &Plan,
    folder: &Path,
    mut tell: impl FnMut(&Row, &Row),
) -> anyhow::Result<Vec<Row>> {
    plan.check()?;
    let setup = Setup {
        placements: plan.placements,
        proxies: plan.proxies,
        stores: plan.stores[0],
        replicas: 3,
        placement_flags: plan.keys.split_flags(plan.regions),
        store_flags: plan.store_flags.clone(),
        limiter: plan.limiter.clone(),
    };
    let mut cluster = Cluster::start(binary, &setup, folder).await?;
    let loader = Loader::spread(&cluster.endpoints(), FILLERS);
    let bar = progress::counting("filling", plan.keys.count);
    plan.keys.fill(&loader, plan.seed, &bar).await?;
    bar.finish_and_clear();
    let mut rows: Vec<Row> = Vec::new();
    for &stores in &plan.stores {
        let row = row(&mut cluster, plan, stores).await.with_context(|| format!("with {stores} stores"))?;
        tell(&row, rows.first().unwrap_or(&row));
        rows.push(row);
    }
    Ok(rows)
}

async fn row(cluster: &mut Cluster, plan: &Plan, stores: usize) -> anyhow::Result<Row> {
    let mut admin = cluster.admin().await?;
    let (before, counted, since) = (Replicas::read(&mut admin).await?, admin.balance().await?, Instant::now());
    cluster.grow_to(stores).await?;
    let bar = progress::timing(&format!("balancing {stores} stores"), plan.patience);
    let rebalanced = balance::wait(cluster, &before, &counted, since, plan.patience, &bar).await?;
    bar.finish_and_clear();
    let mut measured = Vec::with_capacity(plan.workloads.len());
    for &workload in &plan.workloads {
        measured.push(measure(cluster, plan, workload).await?);
    }
    Ok(Row { stores, rebalanced, measured })
}

async fn measure(cluster: &mut Cluster, plan: &Plan, workload: Workload) -> anyhow::Result<Measured> {
    let clients = plan.clients_per_store * cluster.stores();
    let run = |duration: Duration| runner::Plan {
        workload,
        endpoints: cluster.endpoints(),
        clients,
        connections: clients.div_ceil(16).max(2 * plan.proxies),
        threads: plan.threads,
        warmup: Duration::ZERO,
        duration,
        rate: None,
        keys: plan.keys.clone(),
        distribution: Distribution::Uniform,
        seed: plan.seed,
        servers: Vec::new(),
    };
    // Of its own, so that CPU is counted from the end of the warm-up.
    if !plan.warmup.is_zero() {
        blocking(run(plan.warmup), ProgressBar::hidden()).await?;
    }
    let bar = progress::timing(&format!("{workload}, {} stores", cluster.stores()), plan.duration);
    let (before, begin) = (cluster.used()?, Instant::now());
    let report = blocking(run(plan.duration), bar.clone()).await?;
    let (after, seconds) = (cluster.used()?, begin.elapsed().as_secs_f64());
    bar.finish_and_clear();
    cluster.check()?;
    ensure!(report.failed() == 0, "{workload}: {} operations failed: {:?}", report.failed(), report.errors);
    ensure!(report.unfinished == 0, "{workload}: {} clients never got an answer", report.unfinished);
    let used: BTreeMap<String, Used> = after
        .iter()
        .map(|(name, after)| (name.clone(), after.since(&before.get(name).copied().unwrap_or_default())))
        .collect();
    let throttled = used.iter().filter_map(|(name, used)| Some((name.clone(), used.throttled?.percent())));
    Ok(Measured {
        report,
        cpu_percent: used.iter().map(|(name, used)| (name.clone(), 100.0 * used.cpu_seconds / seconds)).collect(),
        throttled_percent: throttled.collect(),
    })
}

/// The runner has a runtime for each of its threads, and blocks.
async fn blocking(plan: runner::Plan, bar: ProgressBar) -> anyhow::Result<Report> {
    tokio::task::spawn_blocking(move || runner::run(&plan, &bar)).await.context("the load generator panicked")?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(stores: &[usize], regions: u64) -> Plan {
        Plan {
            stores: stores.to_vec(),
            limiter: None,
            placements: 1,
            proxies: 1,
            regions,
            keys: KeySpace { prefix: "k/".into(), count: 100, value_bytes: 8 },
            workloads: vec![Workload::Put],
            clients_per_store: 1,
            threads: 1,
            warmup: Duration::ZERO,
            duration: Duration::from_secs(1),
            patience: Duration::from_secs(1),
            store_flags: Vec::new(),
            seed: 1,
        }
    }

    #[test]
    fn numbers_of_stores_grow_from_three() {
        assert!(plan(&[3, 6, 9], 48).check().is_ok());
        for (stores, regions, want) in [
            (&[][..], 1, "at least one number"),
            (&[6, 3], 1, "must grow"),
            (&[3, 3], 1, "must grow"),
            (&[1, 3], 1, "at least 3 stores"),
            (&[3], 101, "--regions"),
        ] {
            let error = plan(stores, regions).check().unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
