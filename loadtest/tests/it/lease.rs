//! Leases measured on a server in memory: figures when it is right, failures when it is not.

use std::time::Duration;

use crate::memory::{Fault, LeaseFault, Memory};
use braid_loadtest::keys::{Distribution, KeySpace};
use braid_loadtest::measure::Measure;
use braid_loadtest::report::Report;
use braid_loadtest::runner::Plan;
use braid_loadtest::watch::ShapeChange;
use braid_loadtest::workload::Workload;
use indicatif::ProgressBar;

async fn run(measure: Measure, rate: Option<f64>, fault: LeaseFault) -> anyhow::Result<Report> {
    let server = Memory::start_with(|_| Fault::None, fault).await;
    let plan = Plan {
        workload: Workload::Put,
        endpoints: vec![server.address.clone()],
        clients: 12,
        connections: 2,
        threads: 2,
        warmup: Duration::from_millis(20),
        duration: Duration::from_millis(300),
        rate,
        keys: KeySpace { prefix: "bench/".into(), count: 320, value_bytes: 64 },
        distribution: Distribution::Uniform,
        seed: 1,
        servers: Vec::new(),
    };
    let report =
        tokio::task::spawn_blocking(move || measure.run(&plan, ShapeChange::default(), &ProgressBar::hidden()));
    let report = report.await?;
    if report.is_ok() {
        let state = server.state.lock().await;
        assert!(state.keys.keys().all(|key| key.len() == b"bench/".len() + 10), "keys of leases are left");
    }
    report
}

const WORKLOADS: [(Workload, &str); 4] = [
    (Workload::LeaseKeepAlive, "keep-alive"),
    (Workload::LeaseChurn, "lease-cycle"),
    (Workload::Lock, "lock"),
    (Workload::LockService, "lock"),
];

#[tokio::test(flavor = "multi_thread")]
async fn workloads_with_leases_run_and_clean_up() {
    for (workload, kind) in WORKLOADS {
        let report = run(Measure::Operations(workload), None, LeaseFault::None).await.unwrap();
        assert_eq!((report.failed(), report.unfinished), (0, 0), "{workload}: {:?}", report.errors);
        assert!(report.operations > 0 && report.kinds[kind].count == report.operations, "{workload}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_promise_leaves_no_figure() {
    for (workload, fault, want) in [
        (Workload::LeaseKeepAlive, LeaseFault::KeepAliveLost, "LOST LEASE"),
        (Workload::LeaseKeepAlive, LeaseFault::AnsweredTwice, "more answers"),
        (Workload::LeaseKeepAlive, LeaseFault::KeysStay, "OUTLIVED"),
        (Workload::LeaseChurn, LeaseFault::KeysStay, "OUTLIVED"),
        (Workload::LeaseChurn, LeaseFault::Forgotten, "LOST LEASE"),
        (Workload::Lock, LeaseFault::Forgotten, "LOST LEASE"),
        // Two at once, or one after the other in the wrong order: what is seen first is a matter of luck.
        (Workload::LockService, LeaseFault::TwoHolders, "lock"),
    ] {
        let error = format!("{:#}", run(Measure::Operations(workload), None, fault).await.unwrap_err());
        assert!(error.contains(want), "{workload}, {fault:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn puts_are_timed_with_and_without_leases_that_expire() {
    let report = run(Measure::LeaseExpiry, Some(200.0), LeaseFault::None).await.unwrap();
    assert_eq!((report.workload.as_str(), report.failed()), ("lease-expiry", 0));
    assert!(report.kinds["put"].count > 0 && report.kinds["put-without"].count > 0);
    let expired = report.expired.unwrap();
    assert_eq!((expired.leases, expired.keys), (1, 1_000));
    assert!(report.to_string().contains("1 leases with 1000 keys, none early"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ends_early_or_in_pieces_leaves_no_figure() {
    for (fault, want) in [(LeaseFault::Early, "EARLY"), (LeaseFault::Scattered, "SCATTERED")] {
        let error = format!("{:#}", run(Measure::LeaseExpiry, Some(200.0), fault).await.unwrap_err());
        assert!(error.contains(want), "{fault:?}: {error}");
    }
    assert!(run(Measure::LeaseExpiry, None, LeaseFault::None).await.unwrap_err().to_string().contains("rate"));
}
