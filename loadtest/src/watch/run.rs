//! Runs a plan: threads, clock, figures.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;

use anyhow::Context;
use indicatif::ProgressBar;
use tokio::sync::watch;

use super::Plan;
use super::ledger::Expected;
use super::share::{Common, Share, Signals, Written};
use crate::histogram::Latencies;
use crate::report::{Cpu, Report, Watching};
use crate::runner::{Clock, Observed, follow, wait_until_ready};

/// Runs it and checks that nothing was lost, repeated or reordered. `name` is what the report calls it. Blocks the
/// calling thread, which must not belong to a runtime.
pub fn run(plan: &Plan, name: &str, bar: &ProgressBar) -> anyhow::Result<Report> {
    plan.check()?;
    let threads = plan.threads();
    let common = Arc::new(Common::new(plan));
    let (go, start) = watch::channel(None);
    let (tell, expected) = watch::channel(None);
    let (ready, all_ready) = mpsc::sync_channel(threads);
    let (written, all_written) = mpsc::sync_channel(threads);
    let signals = Signals { ready, start, written, expected };
    thread::scope(|scope| {
        let shares: Vec<_> = (0..threads)
            .map(|number| {
                let (share, signals) = (Share { plan, common: &common, number }, signals.clone());
                scope.spawn(move || share.run(signals))
            })
            .collect();
        drop(signals);
        let outcome = wait_until_ready(&all_ready, threads).and_then(|()| {
            let clock = Clock::from_now(plan.warmup, plan.duration);
            go.send_replace(Some(clock));
            let window = follow(&plan.servers, clock, bar, || common.delivered())?;
            let mut sum = Written::default();
            for _ in 0..threads {
                sum.add(all_written.recv().context("a thread ended before its time")?);
            }
            let expected = Arc::new(std::mem::take(&mut sum.expected));
            tell.send_replace(Some(Arc::clone(&expected)));
            Ok((window, sum, expected))
        });
        drop((go, tell));
        let mut latencies = Latencies::new();
        for share in shares {
            match share.join() {
                Ok(part) => latencies.merge(&part?),
                Err(_) => anyhow::bail!("a client thread panicked"),
            }
        }
        let (window, written, expected) = outcome?;
        Ok(report(plan, name, &common, window, written, &expected, &latencies))
    })
}

fn report(
    plan: &Plan,
    name: &str,
    common: &Common,
    window: Observed,
    written: Written,
    expected: &Expected,
    events: &Latencies,
) -> Report {
    let seconds = plan.duration.as_secs_f64();
    let all = (plan.warmup + plan.duration).as_secs_f64();
    let watching = Watching {
        shape: plan.shape,
        puts_per_second: common.puts.load(Ordering::Relaxed) as f64 / all,
        puts_checked: expected.all.events,
    };
    let cpu = Cpu::new(&window.used, window.done);
    let latency = events.summary();
    Report {
        workload: name.to_owned(),
        clients: plan.shape.watches,
        connections: plan.shape.connections,
        keys: plan.written().count,
        value_bytes: plan.keys.value_bytes,
        rate: plan.rate,
        seconds,
        operations: window.done,
        operations_per_second: window.done as f64 / seconds,
        latency,
        kinds: BTreeMap::from([("event", latency), ("put", written.latencies.summary())]),
        errors: written.errors,
        unfinished: written.unfinished,
        backlog: None,
        lateness: plan.rate.map(|_| written.lateness.summary()),
        client_cpu_us_per_operation: cpu.client,
        server_cpu_us_per_operation: cpu.servers,
        server_cpu_us_by_threads: cpu.groups,
        watching: Some(watching),
        expired: None,
    }
}
