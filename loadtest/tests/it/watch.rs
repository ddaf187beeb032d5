//! Watches measured on a server in memory: figures when it is right, failures when it is not.

use std::time::Duration;

use crate::memory::{Fault, Faults, Memory};
use braid_loadtest::keys::{Distribution, KeySpace};
use braid_loadtest::measure::Measure;
use braid_loadtest::report::Report;
use braid_loadtest::runner;
use braid_loadtest::watch::held::Held;
use braid_loadtest::watch::stream::Target;
use braid_loadtest::watch::{self, Plan, Scenario, Shape, ShapeChange};
use braid_loadtest::workload::Workload;
use indicatif::ProgressBar;

async fn run(measure: Measure, rate: Option<f64>, faults: Faults) -> anyhow::Result<Report> {
    let server = Memory::start(faults).await;
    let plan = runner::Plan {
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
    let change = ShapeChange { streams: Some(4), writers: Some(5), ahead: Some(7), ..ShapeChange::default() };
    tokio::task::spawn_blocking(move || measure.run(&plan, change, &ProgressBar::hidden())).await?
}

/// Ten watches of nobody.
fn watch_plan(scenario: Scenario) -> Plan {
    Plan {
        scenario,
        endpoints: vec!["127.0.0.1:1".parse().unwrap()],
        shape: Shape::of(scenario, 10),
        put_connections: 1,
        threads: 1,
        warmup: Duration::ZERO,
        duration: Duration::from_millis(300),
        rate: None,
        patience: Duration::from_secs(10),
        keys: KeySpace { prefix: "bench/".into(), count: 10, value_bytes: 8 },
        seed: 1,
        servers: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_watch_sees_every_put_of_a_closed_loop() {
    for scenario in [Scenario::Fanout, Scenario::Keys, Scenario::Latency, Scenario::LatencyEverything] {
        let report = run(Measure::Watch(scenario), None, |_| Fault::None).await.unwrap();
        let watching = report.watching.unwrap();
        assert_eq!((report.failed(), report.unfinished), (0, 0), "{scenario:?}: {:?}", report.errors);
        assert!(report.operations > 0 && watching.puts_checked > 0, "{scenario:?}");
        assert!(report.latency.count > 0 && report.latency.p50_us > 0.0, "{scenario:?}");
        assert!(report.kinds["put"].count > 0, "{scenario:?}");
        assert_eq!((watching.shape.streams, watching.shape.connections), (4, 4));
        let text = report.to_string();
        assert!(text.contains("12 watches on 4 streams on 4 connections"), "{text}");
        assert!(text.contains("at most 7 puts ahead"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_loop_times_each_event_of_each_watch() {
    let report = run(Measure::Watch(Scenario::Latency), Some(500.0), |_| Fault::None).await.unwrap();
    // A put counts from its real start when its writer was free, so a few at either end of the window may fall out of it
    // or into it; what is scheduled in all, 160 in 0.32 s, does not depend on the machine.
    let puts = report.kinds["put"].count;
    assert!((1..=160).contains(&puts), "{puts}");
    assert_eq!(report.latency.count, puts * 12);
    assert!(report.lateness.is_some());
    assert_eq!(report.watching.unwrap().puts_checked, 160);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_lost_or_repeated_fails_the_run() {
    let verdict = async |scenario, patience: u64, faults| {
        let server = Memory::start(faults).await;
        let plan = Plan {
            endpoints: vec![server.address.clone()],
            rate: Some(300.0),
            patience: Duration::from_millis(patience),
            ..watch_plan(scenario)
        };
        let run = move || watch::run(&plan, "watch", &ProgressBar::hidden());
        format!("{:#}", tokio::task::spawn_blocking(run).await.unwrap().unwrap_err())
    };
    for scenario in [Scenario::Fanout, Scenario::Keys] {
        let text = verdict(scenario, 300, |put| if put == 40 { Fault::Untold } else { Fault::None }).await;
        assert!(text.contains("LOSS") && text.contains("stream"), "{text}");
        let text = verdict(scenario, 30_000, |put| if put == 3 { Fault::ToldTwice } else { Fault::None }).await;
        assert!(text.contains("DISORDER"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_put_is_counted_and_holds_nobody_up() {
    let report = run(Measure::Watch(Scenario::Fanout), None, |put| match put % 10 {
        3 => Fault::Busy,
        7 => Fault::AnswerLost,
        _ => Fault::None,
    });
    let report = report.await.unwrap();
    assert!(report.operations > 0);
    assert!(report.errors.keys().any(|error| error.contains("no leader")), "{:?}", report.errors);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_watches_stand_beside_puts() {
    let report = run(Measure::PutIdleWatchers, None, |_| Fault::None).await.unwrap();
    assert_eq!(report.workload, "put-idle-watchers");
    assert!(report.operations > 0 && report.watching.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_that_should_see_nothing_tell_when_they_do() {
    let server = Memory::start(|_| Fault::None).await;
    let (endpoints, shape) = (vec![server.address.clone()], Shape::of(Scenario::Fanout, 3));
    let open = |target: fn(usize) -> Target| {
        let endpoints = endpoints.clone();
        tokio::task::spawn_blocking(move || Held::start(&endpoints, shape, target))
    };
    let quiet = open(|_| Target::key("other".into())).await.unwrap().unwrap();
    let told = open(|_| Target::everything()).await.unwrap().unwrap();
    let put = braid_proto::etcd::etcdserverpb::PutRequest { key: "a".into(), ..Default::default() };
    server.address.connect().await.unwrap().put(put).await.unwrap();
    // The thread ends by itself, with or without being stopped.
    while !told.has_ended() {
        tokio::task::yield_now().await;
    }
    let finish = |held: Held| tokio::task::spawn_blocking(move || held.finish());
    let error = finish(told).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("nothing happened"), "{error}");
    finish(quiet).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_plans_are_refused() {
    let refuse = async |change: fn(&mut Plan), want: &str| {
        let mut plan = watch_plan(Scenario::Keys);
        change(&mut plan);
        let run = move || watch::run(&plan, "watch", &ProgressBar::hidden());
        let error = format!("{:#}", tokio::task::spawn_blocking(run).await.unwrap().unwrap_err());
        assert!(error.contains(want), "{error}");
    };
    refuse(|plan| plan.shape.watches = 11, "as many keys").await;
    refuse(|plan| plan.shape.writers = 0, "at least one writer").await;
    refuse(|plan| plan.shape.ahead = 0, "one put ahead").await;
    refuse(|plan| plan.keys.value_bytes = 7, "at least 8 bytes").await;
    refuse(|plan| plan.rate = Some(f64::NAN), "above 0").await;
    refuse(|plan| plan.duration = Duration::ZERO, "longer").await;
    refuse(|_| (), "cannot connect").await;
}
