//! Runs of every workload against a server in memory.

use std::time::Duration;

use crate::memory::{Fault, Faults, Memory};
use braid_loadtest::client::Address;
use braid_loadtest::keys::{Distribution, KeySpace};
use braid_loadtest::loader::Loader;
use braid_loadtest::report::Report;
use braid_loadtest::runner::{self, Plan};
use braid_loadtest::session::{Policy, Pool};
use braid_loadtest::workload::Workload;
use indicatif::ProgressBar;

fn plan(workload: Workload, address: &Address) -> Plan {
    Plan {
        workload,
        endpoints: vec![address.clone()],
        clients: 8,
        connections: 3,
        threads: 2,
        warmup: Duration::from_millis(20),
        duration: Duration::from_millis(300),
        rate: None,
        keys: KeySpace { prefix: "bench/".into(), count: 500, value_bytes: 64 },
        distribution: Distribution::Uniform,
        seed: 1,
        servers: vec![std::process::id()],
    }
}

/// Starts a server, fills it if the workload reads, and runs what `change` makes of the plan.
async fn run_with(workload: Workload, faults: Faults, change: impl FnOnce(&mut Plan)) -> anyhow::Result<Report> {
    let server = Memory::start(faults).await;
    let mut plan = plan(workload, &server.address);
    change(&mut plan);
    if workload.reads() {
        let loader =
            Loader { endpoints: plan.endpoints.clone(), clients: 8, connections: 1, policy: Policy::default() };
        plan.keys.fill(&loader, 1, &ProgressBar::hidden()).await?;
        let pool = Pool::new(&plan.endpoints, 1, Policy::default());
        assert_eq!(plan.keys.present(&pool).await?, plan.keys.count);
    }
    tokio::task::spawn_blocking(move || runner::run(&plan, &ProgressBar::hidden())).await?
}

async fn run(workload: Workload) -> Report {
    let report = run_with(workload, |_| Fault::None, |_| ()).await.unwrap();
    assert_eq!((report.failed(), report.unfinished), (0, 0), "{:?}", report.errors);
    assert!(report.operations > 0);
    assert_eq!(report.latency.count, report.operations);
    assert!(report.latency.p50_us > 0.0 && report.latency.p50_us <= report.latency.max_us);
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn every_workload_runs() {
    assert_eq!(run(Workload::Put).await.kinds.keys().copied().collect::<Vec<_>>(), ["put"]);
    assert_eq!(run(Workload::Get).await.kinds.keys().copied().collect::<Vec<_>>(), ["get"]);
    assert_eq!(run(Workload::GetSerializable).await.kinds.keys().copied().collect::<Vec<_>>(), ["get"]);
    // Own keys: no comparison may fail.
    assert_eq!(run(Workload::Txn).await.kinds.keys().copied().collect::<Vec<_>>(), ["txn"]);
    let mixed = run(Workload::Mixed).await;
    assert!(["get", "put", "txn"].iter().all(|kind| mixed.kinds.contains_key(kind)), "{:?}", mixed.kinds);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_of_a_key_that_is_not_there_is_no_success() {
    let server = Memory::start(|_| Fault::None).await;
    let plan = plan(Workload::Get, &server.address);
    let report =
        tokio::task::spawn_blocking(move || runner::run(&plan, &ProgressBar::hidden())).await.unwrap().unwrap();
    assert_eq!(report.operations, 0);
    assert!(report.failed() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_counted_by_their_text() {
    let report = run_with(Workload::Put, |put| if put % 2 == 1 { Fault::Busy } else { Fault::None }, |_| ()).await;
    let report = report.unwrap();
    assert!(report.operations > 0);
    assert!(report.errors["Unavailable: etcdserver: no leader"] > 0, "{:?}", report.errors);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_loop_keeps_its_rate() {
    let report = run_with(Workload::Put, |_| Fault::None, |plan| plan.rate = Some(500.0)).await.unwrap();
    // 500/s over 0.3 s. What is scheduled does not depend on the machine's speed; when it is done does a little.
    assert_eq!(report.latency.count, 150);
    assert!(report.lateness.is_some());
    assert!(report.to_string().contains("500 operations/s scheduled"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_plans_are_refused() {
    let refuse = async |change: fn(&mut Plan), want: &str| {
        let error = run_with(Workload::Txn, |_| Fault::None, change).await.unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    };
    refuse(|plan| plan.clients = 0, "at least one client").await;
    refuse(|plan| plan.clients = 501, "one of its own").await;
    refuse(|plan| plan.rate = Some(0.0), "above 0").await;
    refuse(|plan| plan.duration = Duration::ZERO, "longer").await;
    refuse(|plan| plan.endpoints.clear(), "no endpoints").await;
    refuse(|plan| plan.endpoints.push("127.0.0.1:1".parse().unwrap()), "cannot connect to http://127.0.0.1:1").await;
}
