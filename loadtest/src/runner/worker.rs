//! One thread of a run: its connections, its workers and what they measured.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, sleep_until, timeout_at};
use tonic::Status;

use super::{ByKind, DRAIN, Plan};
use crate::client::Kv;
use crate::histogram::Latencies;
use crate::keys::Picker;
use crate::workload::{AnyDriver, Driver, Kind};

/// After an error a worker waits this long, so that an endpoint that refuses everything is not flooded.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(10);

/// The counter behind the progress bar is brought up to date once in so many operations of a thread.
const PUBLISH_EVERY: u64 = 64;

/// The times of a run.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Workers start.
    pub start: Instant,
    /// What happens from here on counts.
    pub window_start: Instant,
    /// What happens from here on does not.
    pub end: Instant,
}

impl Clock {
    /// A run that starts now.
    pub fn from_now(warmup: Duration, duration: Duration) -> Self {
        let start = Instant::now();
        Self { start, window_start: start + warmup, end: start + warmup + duration }
    }

    /// Whether an instant is in the window.
    pub fn counts(&self, instant: Instant) -> bool {
        (self.window_start..self.end).contains(&instant)
    }
}

/// What one thread measured.
#[derive(Debug, Default)]
pub struct Measured {
    /// Operations that succeeded within the window.
    pub completed: u64,
    /// Latencies by `Kind`. Closed loop: operations that ended in the window. Open loop: those scheduled in it.
    pub latencies: ByKind,
    /// Failed operations by code and text.
    pub errors: BTreeMap<String, u64>,
    /// How late workers that were free started a scheduled operation: what the client's own timers and threads add.
    pub lateness: Latencies,
    /// Workers that were still busy when the run was given up.
    pub unfinished: u64,
    /// Operations since the progress counter was brought up to date.
    unpublished: u64,
}

impl Measured {
    /// Adds another thread's.
    pub fn add(&mut self, other: Self) {
        self.completed += other.completed;
        self.latencies.iter_mut().zip(&other.latencies).for_each(|(mine, theirs)| mine.merge(theirs));
        for (text, count) in other.errors {
            *self.errors.entry(text).or_default() += count;
        }
        self.lateness.merge(&other.lateness);
        self.unfinished += other.unfinished;
    }

    fn record(&mut self, outcome: &Result<Kind, Status>, latency: Duration) {
        match outcome {
            Ok(kind) => self.latencies[*kind as usize].record(latency),
            Err(status) => {
                *self.errors.entry(format!("{:?}: {}", status.code(), status.message())).or_default() += 1;
            }
        }
    }

    fn complete(&mut self, done: &AtomicU64) {
        self.completed += 1;
        self.unpublished += 1;
        if self.unpublished == PUBLISH_EVERY {
            done.fetch_add(PUBLISH_EVERY, Ordering::Relaxed);
            self.unpublished = 0;
        }
    }
}

/// One thread's part of a plan: every connection, and every worker on it, whose number modulo the threads is its own.
#[derive(Debug, Clone, Copy)]
pub struct Share<'a> {
    /// The whole plan.
    pub plan: &'a Plan,
    /// Number of the thread.
    pub number: usize,
    /// Number of threads.
    pub threads: usize,
    /// Number of connections of the plan.
    pub connections: usize,
}

impl Share<'_> {
    /// Runs it: prepares, says so, waits for the clock, works.
    pub fn run(
        self,
        start: watch::Receiver<Option<Clock>>,
        ready: mpsc::SyncSender<()>,
        done: Arc<AtomicU64>,
    ) -> anyhow::Result<Measured> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, self.work(start, ready, done))
    }

    async fn work(
        self,
        mut start: watch::Receiver<Option<Clock>>,
        ready: mpsc::SyncSender<()>,
        done: Arc<AtomicU64>,
    ) -> anyhow::Result<Measured> {
        let workers = self.prepare().await?;
        ready.send(()).context("the run was given up")?;
        // Whoever waits for the others must see at once that one of them failed.
        drop(ready);
        let Some(clock) = start.wait_for(Option::is_some).await.ok().and_then(|clock| *clock) else {
            return Ok(Measured::default());
        };
        let measured = Rc::new(RefCell::new(Measured::default()));
        let mut tasks = JoinSet::new();
        for worker in workers {
            tasks.spawn_local(worker.run(clock, Rc::clone(&measured), Arc::clone(&done)));
        }
        let all = async {
            while tasks.join_next().await.transpose().context("a worker panicked")?.is_some() {}
            Ok(())
        };
        match timeout_at((clock.end + DRAIN).into(), all).await {
            Ok(ended) => ended.map(|()| measured.take()),
            Err(_) => Ok(Measured { unfinished: tasks.len() as u64, ..measured.take() }),
        }
    }

    async fn prepare(&self) -> anyhow::Result<Vec<Worker>> {
        let mut workers = Vec::new();
        for connection in (self.number..self.connections).step_by(self.threads) {
            let address = &self.plan.endpoints[connection % self.plan.endpoints.len()];
            let kv = address.connect().await?;
            for number in (connection..self.plan.clients).step_by(self.connections) {
                let mut worker = Worker::new(self.plan, number, kv.clone());
                let prepared = worker.driver.prepare(&mut worker.kv).await;
                prepared.map_err(|status| anyhow::anyhow!("{address}: {} ({:?})", status.message(), status.code()))?;
                workers.push(worker);
            }
        }
        Ok(workers)
    }
}

/// When a worker of an open loop starts its operations.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Start of the first one, after the start of the run: workers take turns.
    pub offset: Duration,
    /// From one start to the next.
    pub interval: Duration,
}

impl Schedule {
    /// The schedule of one of `clients` workers that start `rate` operations a second together.
    pub fn new(rate: f64, number: usize, clients: usize) -> Self {
        let between_starts = 1.0 / rate;
        Self {
            offset: Duration::from_secs_f64(between_starts * number as f64),
            interval: Duration::from_secs_f64(between_starts * clients as f64),
        }
    }
}

struct Worker {
    driver: AnyDriver,
    kv: Kv,
    schedule: Option<Schedule>,
}

impl Worker {
    fn new(plan: &Plan, number: usize, kv: Kv) -> Self {
        let picker = Picker::new(&plan.keys, plan.distribution, plan.seed, number, plan.clients);
        let schedule = plan.rate.map(|rate| Schedule::new(rate, number, plan.clients));
        Self { driver: AnyDriver::new(plan.workload, picker), kv, schedule }
    }

    async fn run(self, clock: Clock, measured: Rc<RefCell<Measured>>, done: Arc<AtomicU64>) {
        match self.schedule {
            None => self.run_closed(clock, &measured, &done).await,
            Some(schedule) => self.run_open(schedule, clock, &measured, &done).await,
        }
    }

    async fn run_closed(mut self, clock: Clock, measured: &RefCell<Measured>, done: &AtomicU64) {
        let mut start = Instant::now();
        while start < clock.end {
            let outcome = self.driver.operation(&mut self.kv).await;
            let end = Instant::now();
            if clock.counts(end) {
                let mut measured = measured.borrow_mut();
                measured.record(&outcome, end - start);
                if outcome.is_ok() {
                    measured.complete(done);
                }
            }
            start = end;
            if outcome.is_err() {
                sleep(PAUSE_AFTER_ERROR).await;
                start = Instant::now();
            }
        }
    }

    async fn run_open(mut self, schedule: Schedule, clock: Clock, measured: &RefCell<Measured>, done: &AtomicU64) {
        let mut scheduled = clock.start + schedule.offset;
        // Behind its schedule it goes on after the end, until it has done all of it or the run is given up.
        while scheduled < clock.end {
            let mut start = scheduled;
            if Instant::now() < scheduled {
                sleep_until(scheduled.into()).await;
                // The worker was free: what it is late now is the timer's slop (about a millisecond), not the server's.
                start = Instant::now();
                if clock.counts(scheduled) {
                    measured.borrow_mut().lateness.record(start - scheduled);
                }
            }
            let outcome = self.driver.operation(&mut self.kv).await;
            let end = Instant::now();
            let mut measured = measured.borrow_mut();
            if clock.counts(scheduled) {
                measured.record(&outcome, end - start);
            }
            if outcome.is_ok() && clock.counts(end) {
                measured.complete(done);
            }
            scheduled += schedule.interval;
        }
    }
}
