//! Runs of every workload against a server in memory.

use std::time::Duration;

use crate::memory::{Fault, Faults, Memory};
use braid_loadtest::client::Address;
use braid_loadtest::keys::{Distribution, KeySpace};
use braid_loadtest::loader::Loader;
use braid_loadtest::measure::Measure;
use braid_loadtest::report::Report;
use braid_loadtest::runner::{self, Plan};
use braid_loadtest::session::{Policy, Pool};
use braid_loadtest::watch::ShapeChange;
use braid_loadtest::workload::Workload;
use braid_loadtest::workload::kubernetes::Settings;
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
    let mixed = run(Workload::Mixed(70)).await;
    assert!(["get", "put", "txn"].iter().all(|kind| mixed.kinds.contains_key(kind)), "{:?}", mixed.kinds);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_range_runs_and_shows_what_it_should() {
    for (name, kind) in [
        ("range-100", "range"),
        ("range-500", "range"),
        ("range-limit-10-of-300", "range"),
        ("keys-only-100", "range"),
        ("count-only", "count"),
        ("count-only-100", "count"),
        ("page-50-count", "page"),
        ("page-50", "page"),
    ] {
        let report = run(name.parse().unwrap()).await;
        assert_eq!(report.kinds.keys().copied().collect::<Vec<_>>(), [kind], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_shows_too_few_keys_is_no_success() {
    let server = Memory::start(|_| Fault::None).await;
    let plan = plan("range-100".parse().unwrap(), &server.address);
    Measure::Operations(plan.workload).fill(&plan).await.unwrap();
    let middle = plan.keys.key(250);
    assert!(server.state.lock().await.keys.remove(&middle).is_some());
    let report =
        tokio::task::spawn_blocking(move || runner::run(&plan, &ProgressBar::hidden())).await.unwrap().unwrap();
    // Some ranges lie over the hole.
    assert!(report.errors.keys().any(|text| text.contains("should show 100, but it showed 99")), "{:?}", report.errors);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_find_what_was_put() {
    let report = run(Workload::Delete).await;
    assert_eq!(report.kinds.keys().copied().collect::<Vec<_>>(), ["delete", "put"]);
    let error = run_with(Workload::Delete, |put| if put == 9 { Fault::Forgotten } else { Fault::None }, |_| ()).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("LOST"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_distribution_runs() {
    for distribution in [Distribution::Sequential, Distribution::Zipf(0.99)] {
        let report = run_with(Workload::Get, |_| Fault::None, |plan| plan.distribution = distribution).await.unwrap();
        assert!(report.operations > 0 && report.failed() == 0);
    }
}

/// Fills in the pods and runs what API servers do for a while, with a compaction in it.
async fn kubernetes(faults: Faults) -> (anyhow::Result<Report>, Memory) {
    let server = Memory::start(faults).await;
    let settings = Settings { compaction_seconds: 1, event_ttl_seconds: 600 };
    let mut plan = plan(Workload::Kubernetes(settings), &server.address);
    plan.duration = Duration::from_millis(1_400);
    plan.keys.count = 1_200;
    Measure::Operations(plan.workload).fill(&plan).await.unwrap();
    let run = tokio::task::spawn_blocking(move || runner::run(&plan, &ProgressBar::hidden()));
    (run.await.unwrap(), server)
}

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_reports_its_parts() {
    let (report, server) = kubernetes(|_| Fault::None).await;
    let report = report.unwrap();
    assert_eq!((report.failed(), report.unfinished), (0, 0), "{:?}", report.errors);
    for kind in ["heartbeat", "update", "event-create", "page", "get", "compaction", "watch-event"] {
        assert!(report.kinds.contains_key(kind), "no {kind} in {:?}", report.kinds);
    }
    // News is no operation.
    assert_eq!(report.latency.count, report.operations);
    let state = server.state.lock().await;
    assert!(state.compacted > 0);
    let events = state.keys.keys().filter(|key| key.starts_with(b"/registry/events/"));
    assert_eq!(events.count(), 0, "the events went with their leases");
    let pods = state.keys.keys().filter(|key| key.starts_with(b"/registry/pods/"));
    assert_eq!(pods.count(), 1_200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_puts_every_key() {
    let server = Memory::start(|_| Fault::None).await;
    let plan = plan(Workload::Put, &server.address);
    let run = move || Measure::Load.run(&plan, ShapeChange::default(), &ProgressBar::hidden());
    let report = tokio::task::spawn_blocking(run).await.unwrap().unwrap();
    assert_eq!((report.operations, report.latency.count), (500, 500));
    assert!(report.to_string().starts_with("load: "), "{report}");
    assert_eq!(server.state.lock().await.keys.len(), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_keep_up_is_said_to_be_so() {
    // Every put after the first hundred hangs, so that eight clients are soon used up.
    let slow = |put| if put >= 100 { Fault::Hangs } else { Fault::None };
    let change = |plan: &mut Plan| {
        plan.rate = Some(1_000.0);
        plan.duration = Duration::from_millis(500);
    };
    let report = run_with(Workload::Put, slow, change).await.unwrap();
    assert_eq!(report.unfinished, 8);
    // 500 were scheduled and 20 in the warm-up; 100 were done, and 8 were begun.
    assert_eq!(report.backlog, Some(412));
    assert!(!report.kept_up());
    assert!(report.to_string().contains("CANNOT KEEP UP  1000 operations/s were scheduled"), "{report}");
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
    refuse(|plan| plan.workload = "range-501".parse().unwrap(), "raise --keys").await;
    refuse(|plan| plan.rate = Some(0.0), "above 0").await;
    refuse(|plan| plan.duration = Duration::ZERO, "longer").await;
    refuse(|plan| plan.endpoints.clear(), "no endpoints").await;
    refuse(|plan| plan.endpoints.push("127.0.0.1:1".parse().unwrap()), "cannot connect to http://127.0.0.1:1").await;
}
