//! One thread of a run: its connections, its workers and what they measured.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::future::{join_all, try_join_all};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, sleep_until, timeout, timeout_at};
use tonic::Status;

use super::{ByKind, DRAIN, Plan};
use crate::client::unlimited;
use crate::histogram::Latencies;
use crate::keys::Picker;
use crate::workload::{AnyDriver, Client, Common, Driver, Kind, Trouble};

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
    /// Open loop: operations whose time had come before the end, and which no worker was free to start by then.
    pub backlog: u64,
    /// Workers that were still busy when the run was given up.
    pub unfinished: u64,
    /// Promises that were broken.
    pub wrong: Vec<String>,
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
        self.backlog += other.backlog;
        self.unfinished += other.unfinished;
        self.wrong.extend(other.wrong);
    }

    /// Notes how an operation ended. One that does not count leaves a trace only if a promise was broken.
    fn record(&mut self, outcome: Result<Kind, Trouble>, latency: Duration, counts: bool) {
        match outcome {
            Ok(kind) if counts => self.latencies[kind as usize].record(latency),
            Err(Trouble::Failed(status)) if counts => *self.errors.entry(named(&status)).or_default() += 1,
            Err(Trouble::Wrong(what)) => self.wrong.push(what),
            _ => {}
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

fn named(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
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
    /// What all workers share.
    pub common: &'a Arc<Common>,
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
        let schedule = self.plan.rate.map(|rate| Rc::new(Turns::new(Schedule::new(rate, self.number, self.threads))));
        let mut tasks = JoinSet::new();
        for mut worker in workers {
            worker.driver.begin(clock);
            worker.turns.clone_from(&schedule);
            tasks.spawn_local(worker.run(clock, Rc::clone(&measured), Arc::clone(&done)));
        }
        let mut workers = Vec::new();
        let all = async {
            while let Some(worker) = tasks.join_next().await {
                workers.push(worker.context("a worker panicked")?);
            }
            anyhow::Ok(())
        };
        let unfinished = match timeout_at((clock.end + DRAIN).into(), all).await {
            Ok(ended) => ended.map(|()| 0)?,
            Err(_) => tasks.len() as u64,
        };
        let finished = timeout(DRAIN, join_all(workers.iter_mut().map(Worker::finish))).await;
        let mut measured = measured.take();
        measured.unfinished = unfinished;
        measured.backlog += schedule.map_or(0, |turns| turns.left_before(clock));
        for trouble in finished.context("the workers did not come to an end")?.into_iter().filter_map(Result::err) {
            measured.record(Err(trouble), Duration::ZERO, true);
        }
        for (kind, latencies) in workers.iter_mut().filter_map(|worker| worker.driver.aside()) {
            measured.latencies[kind as usize].merge(&latencies);
        }
        Ok(measured)
    }

    async fn prepare(&self) -> anyhow::Result<Vec<Worker>> {
        let mut workers = Vec::new();
        for connection in (self.number..self.connections).step_by(self.threads) {
            let address = &self.plan.endpoints[connection % self.plan.endpoints.len()];
            let channel = address.channel().await?;
            for number in (connection..self.plan.clients).step_by(self.connections) {
                let (kv, common) = (unlimited(channel.clone()), Arc::clone(self.common));
                workers.push(Worker::new(self.plan, number, Client::new(channel.clone(), kv, number, common)));
            }
        }
        try_join_all(workers.iter_mut().map(Worker::prepare)).await?;
        Ok(workers)
    }
}

/// When operations of an open loop start.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Start of the first one, after the start of the run: those who have a schedule each take turns.
    pub offset: Duration,
    /// From one start to the next.
    pub interval: Duration,
}

impl Schedule {
    /// The schedule of one of `count` that start `rate` operations a second together.
    pub fn new(rate: f64, number: usize, count: usize) -> Self {
        let between_starts = 1.0 / rate;
        Self {
            offset: Duration::from_secs_f64(between_starts * number as f64),
            interval: Duration::from_secs_f64(between_starts * count as f64),
        }
    }
}

/// A schedule that the workers of a thread share: each start is taken by one of them, in order.
struct Turns {
    schedule: Schedule,
    taken: Cell<u64>,
}

impl Turns {
    fn new(schedule: Schedule) -> Self {
        Self { schedule, taken: Cell::new(0) }
    }

    fn start_of(&self, turn: u64, clock: Clock) -> Instant {
        clock.start + self.schedule.offset + self.schedule.interval.mul_f64(turn as f64)
    }

    /// The next start, if there is one left before the end.
    fn take(&self, clock: Clock) -> Option<Instant> {
        let start = self.start_of(self.taken.get(), clock);
        if start >= clock.end {
            return None;
        }
        self.taken.set(self.taken.get() + 1);
        Some(start)
    }

    /// Starts before the end that nobody took.
    fn left_before(&self, clock: Clock) -> u64 {
        let mut left = 0;
        while self.take(clock).is_some() {
            left += 1;
        }
        left
    }
}

struct Worker {
    driver: AnyDriver,
    client: Client,
    /// Open loop.
    turns: Option<Rc<Turns>>,
}

impl Worker {
    fn new(plan: &Plan, number: usize, client: Client) -> Self {
        let picker = Picker::new(&plan.keys, plan.distribution, plan.seed, number, plan.clients);
        Self { driver: AnyDriver::new(plan.workload, picker), client, turns: None }
    }

    async fn prepare(&mut self) -> anyhow::Result<()> {
        let prepared = self.driver.prepare(&mut self.client).await;
        prepared.map_err(|trouble| match trouble {
            Trouble::Failed(status) => anyhow::anyhow!("worker {}: {}", self.client.number, named(&status)),
            Trouble::Wrong(what) => anyhow::anyhow!(what),
        })
    }

    async fn finish(&mut self) -> Result<(), Trouble> {
        self.driver.finish(&mut self.client).await
    }

    /// Works until the end, and gives itself back.
    async fn run(mut self, clock: Clock, measured: Rc<RefCell<Measured>>, done: Arc<AtomicU64>) -> Self {
        match self.turns.take() {
            None => self.run_closed(clock, &measured, &done).await,
            Some(turns) => self.run_open(&turns, clock, &measured, &done).await,
        }
        self
    }

    async fn run_closed(&mut self, clock: Clock, measured: &RefCell<Measured>, done: &AtomicU64) {
        let mut start = Instant::now();
        while start < clock.end {
            let outcome = self.driver.operation(&mut self.client).await;
            let end = Instant::now();
            let failed = outcome.is_err();
            {
                let mut measured = measured.borrow_mut();
                measured.record(outcome, end - start, clock.counts(end));
                if !failed && clock.counts(end) {
                    measured.complete(done);
                }
            }
            start = end;
            if failed {
                sleep(PAUSE_AFTER_ERROR).await;
                start = Instant::now();
            }
        }
    }

    async fn run_open(&mut self, turns: &Turns, clock: Clock, measured: &RefCell<Measured>, done: &AtomicU64) {
        // Behind the schedule it goes on after the end, until all of it is done or the run is given up.
        while let Some(scheduled) = turns.take(clock) {
            let mut start = scheduled;
            let now = Instant::now();
            if now >= clock.end {
                measured.borrow_mut().backlog += 1;
            }
            if now < scheduled {
                sleep_until(scheduled.into()).await;
                // The worker was free: what it is late now is the timer's slop (about a millisecond), not the server's.
                start = Instant::now();
                if clock.counts(scheduled) {
                    measured.borrow_mut().lateness.record(start - scheduled);
                }
            }
            let outcome = self.driver.operation(&mut self.client).await;
            let end = Instant::now();
            let mut measured = measured.borrow_mut();
            let succeeded = outcome.is_ok();
            measured.record(outcome, end - start, clock.counts(scheduled));
            if succeeded && clock.counts(end) {
                measured.complete(done);
            }
        }
    }
}
