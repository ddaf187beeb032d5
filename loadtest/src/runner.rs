//! Runs a workload for a while and measures it.
//!
//! 1. Every thread has a runtime of its own, with its share of the connections and of the workers on them: nothing on
//!    the path of an operation crosses threads or takes a lock.
//! 2. All connect and prepare; the clock starts when the last one is ready.
//! 3. After the warm-up comes the window, in which operations count. CPU time is read at both its ends.
//! 4. At the end each worker finishes its present operation. What takes too long is counted as unfinished, and is why no
//!    operation needs a deadline (and a timer) of its own.
//! 5. Then the workers look whether all is as it should be, and clean up. A broken promise, here or in an operation, fails
//!    the run: there is no figure for wrong answers.
//!
//! Closed loop: a worker starts its next operation when the last one is done. Open loop (`rate`): the operations of a
//! thread have a schedule, and whichever of its workers is free does the next one; latency counts from the scheduled
//! start, so that a server that stalls for a second shows a second for each operation that should have started
//! meanwhile. A worker does one operation at a time, so there are never more in flight than clients; what is due and
//! waits for a free one is the backlog, and a report says how large it was at the end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::ProgressBar;
use tokio::sync::watch;

use crate::client::Address;
use crate::histogram::Latencies;
use crate::keys::{Distribution, KeySpace};
use crate::report::Report;
use crate::resources::Usage;
use crate::workload::{Common, Workload};

mod worker;

pub(crate) use worker::Schedule;
use worker::Share;
pub use worker::{Clock, Measured};

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What the workers do.
    pub workload: Workload,
    /// Where, in turn.
    pub endpoints: Vec<Address>,
    /// Workers.
    pub clients: usize,
    /// TCP connections that they share, in turn.
    pub connections: usize,
    /// Threads that they share, in turn.
    pub threads: usize,
    /// Time before the window.
    pub warmup: Duration,
    /// The window.
    pub duration: Duration,
    /// Operations per second of all workers together; none is a closed loop.
    pub rate: Option<f64>,
    /// Keys and value size.
    pub keys: KeySpace,
    /// Order of the keys.
    pub distribution: Distribution,
    /// Makes keys, values and choices repeatable.
    pub seed: u64,
    /// Local server processes whose CPU time is measured along.
    pub servers: Vec<u32>,
}

/// Latency of an operation that is not done this long after the end is unknown.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);

/// How often the progress bar moves.
const PROGRESS: Duration = Duration::from_millis(200);

impl Plan {
    fn check(&self) -> anyhow::Result<()> {
        self.keys.check()?;
        anyhow::ensure!(!self.endpoints.is_empty(), "no endpoints");
        anyhow::ensure!(self.clients > 0, "there must be at least one client");
        anyhow::ensure!(!self.duration.is_zero(), "the run must last longer than no time");
        anyhow::ensure!(self.rate.is_none_or(|rate| rate.is_finite() && rate > 0.0), "the rate must be above 0");
        anyhow::ensure!(
            !self.workload.owns_keys() || self.keys.count >= self.clients as u64,
            "{} keys are too few for {} clients: in this workload each needs one of its own",
            self.keys.count,
            self.clients
        );
        let span = self.workload.span();
        anyhow::ensure!(
            self.keys.count >= span,
            "{} spans {span} keys, and there are {}: raise --keys",
            self.workload,
            self.keys.count
        );
        Ok(())
    }

    /// Seconds that leases last which nobody keeps alive: longer than the run with all that belongs to it.
    pub fn lease_ttl(&self) -> i64 {
        const SPARE: Duration = Duration::from_secs(60);
        (self.warmup + self.duration + DRAIN + SPARE).as_secs().cast_signed()
    }

    /// Connections and threads: more connections than workers, or threads than connections, would idle.
    pub fn layout(&self) -> (usize, usize) {
        let connections = self.connections.clamp(1, self.clients);
        (connections, self.threads.clamp(1, connections))
    }
}

/// Runs it. Blocks the calling thread, which must not belong to a runtime.
pub fn run(plan: &Plan, bar: &ProgressBar) -> anyhow::Result<Report> {
    plan.check()?;
    let (connections, threads) = plan.layout();
    let done = Arc::new(AtomicU64::new(0));
    let common = Arc::new(Common::new(plan.lease_ttl()));
    let (go, start) = watch::channel(None::<Clock>);
    let (ready, all_ready) = mpsc::sync_channel(threads);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|number| {
                let share = Share { plan, number, threads, connections, common: &common };
                let (start, ready, done) = (start.clone(), ready.clone(), Arc::clone(&done));
                scope.spawn(move || share.run(start, ready, done))
            })
            .collect();
        drop((start, ready));
        let measured = wait_until_ready(&all_ready, threads).and_then(|()| {
            let clock = Clock::from_now(plan.warmup, plan.duration);
            go.send_replace(Some(clock));
            follow(&plan.servers, clock, bar, || done.load(Ordering::Relaxed))
        });
        // Without a clock the workers end: they see the sender go.
        drop(go);
        let mut sum = Measured::default();
        for worker in workers {
            match worker.join() {
                Ok(part) => sum.add(part?),
                Err(_) => anyhow::bail!("a client thread panicked"),
            }
        }
        let Observed { used, .. } = measured?;
        if let Some(first) = sum.wrong.first() {
            let more = if sum.wrong.len() > 1 { format!(", and {} more", sum.wrong.len() - 1) } else { String::new() };
            anyhow::bail!("{first}{more}");
        }
        Ok(Report::new(plan, sum, &used))
    })
}

pub(crate) fn wait_until_ready(all_ready: &mpsc::Receiver<()>, threads: usize) -> anyhow::Result<()> {
    // A thread that fails drops its sender without a word; its error comes with the join.
    (0..threads).try_for_each(|_| all_ready.recv()).context("a client could not get ready")
}

/// What was seen from outside in the window.
#[derive(Debug, Clone)]
pub(crate) struct Observed {
    /// How far the caller's counter moved.
    pub(crate) done: u64,
    /// CPU time.
    pub(crate) used: Usage,
}

/// Waits until the window is over; reads `done` and the CPU time that this process and the servers use at both its ends.
pub(crate) fn follow(
    servers: &[u32],
    clock: Clock,
    bar: &ProgressBar,
    done: impl Fn() -> u64,
) -> anyhow::Result<Observed> {
    let read = || -> anyhow::Result<(u64, Usage)> { Ok((done(), Usage::read(servers)?)) };
    sleep_until(clock.window_start);
    let before = read()?;
    while Instant::now() + PROGRESS < clock.end {
        thread::sleep(PROGRESS);
        let elapsed = clock.window_start.elapsed();
        bar.set_position(elapsed.as_millis() as u64);
        bar.set_prefix(format!("{:.0}/s", done().saturating_sub(before.0) as f64 / elapsed.as_secs_f64()));
    }
    sleep_until(clock.end);
    let after = read()?;
    Ok(Observed { done: after.0.saturating_sub(before.0), used: after.1.since(&before.1) })
}

fn sleep_until(instant: Instant) {
    thread::sleep(instant.saturating_duration_since(Instant::now()));
}

/// Latencies by kind of operation.
pub type ByKind = [Latencies; crate::workload::Kind::ALL.len()];
