//! A steady load of puts and linearizable gets at a fixed rate, of which any stretch of time can be looked at.
//!
//! 1. Operation n is due at `n / rate` after the start; whichever client is free does the next one. Half are puts.
//! 2. Latency counts from the time that an operation was due: a cluster that stalls for a second shows it.
//! 3. Every operation is written down (40 bytes each: rate x time bounds it), so that one load serves for "before",
//!    "during" and "after".
//! 4. A stretch is complete when every operation that was due in it has ended, however late.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use braid_proto::etcd::etcdserverpb::{PutRequest, RangeRequest};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Status;

use super::fill::DataSet;
use crate::client::{Address, Kv};
use crate::histogram::{Latencies, Summary};
use crate::random::Random;

/// An operation without an answer is given up after this.
const ATTEMPT: Duration = Duration::from_secs(20);

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where, in turn.
    pub endpoints: Vec<Address>,
    /// Most operations in flight.
    pub clients: usize,
    /// Operations per second of all clients together.
    pub rate: f64,
    /// The keys, all of which are there.
    pub data: DataSet,
    /// Makes keys and values repeatable.
    pub seed: u64,
}

/// A running load. It ends when it is dropped.
#[derive(Debug)]
pub struct Foreground {
    shared: Arc<Shared>,
    below: watch::Receiver<u64>,
    clients: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    plan: Plan,
    begin: Instant,
    /// Number of the next operation.
    next: AtomicU64,
    log: Mutex<Log>,
    /// Every operation with a lower number has ended.
    below: watch::Sender<u64>,
}

/// What was done.
#[derive(Debug, Default)]
struct Log {
    done: Vec<Done>,
    errors: BTreeMap<String, u64>,
    /// Every operation with a lower number has ended.
    below: u64,
    /// Numbers above `below` that have ended; no more of them than clients.
    ahead: BTreeSet<u64>,
}

/// One operation.
#[derive(Debug, Clone, Copy)]
struct Done {
    /// When it was due, since the start.
    due: Duration,
    /// From then to its end.
    latency: Duration,
    put: bool,
    failed: bool,
}

/// What a stretch of time showed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Window {
    /// Its length.
    pub seconds: f64,
    /// Puts that were due in it.
    pub puts: Summary,
    /// Linearizable gets that were due in it.
    pub gets: Summary,
    /// Operations that failed, or were not answered, or did not find their key.
    pub failed: u64,
}

impl Foreground {
    /// Starts it. Must be called inside a runtime.
    pub async fn start(plan: Plan) -> anyhow::Result<Self> {
        ensure!(plan.rate.is_finite() && plan.rate > 0.0, "the rate must be above 0");
        ensure!(plan.clients > 0 && !plan.endpoints.is_empty(), "there must be a client and an endpoint");
        let mut connections = Vec::new();
        for endpoint in plan.endpoints.iter().cycle().take(plan.endpoints.len().max(4)) {
            connections.push(endpoint.connect().await?);
        }
        let (below, seen) = watch::channel(0);
        let (begin, next, log) = (Instant::now(), AtomicU64::new(0), Mutex::default());
        let shared = Arc::new(Shared { plan, begin, next, log, below });
        let mut clients = JoinSet::new();
        for number in 0..shared.plan.clients {
            let kv = connections[number % connections.len()].clone();
            clients.spawn(client(Arc::clone(&shared), number as u64, kv));
        }
        Ok(Self { shared, below: seen, clients })
    }

    /// What operations show that were due from one moment (inclusive) to another (exclusive); waits until the last of
    /// them has ended.
    pub async fn window(&mut self, from: Instant, to: Instant) -> anyhow::Result<Window> {
        sleep_until(to).await;
        let last = self.shared.due_before(to);
        // Every operation ends, at the latest with its timeout.
        self.below.wait_for(|below| *below >= last).await.context("the load has ended")?;
        let since = |moment: Instant| moment.saturating_duration_since(self.shared.begin);
        Ok(self.shared.log().window(since(from), since(to)))
    }

    /// A stretch from now on.
    pub async fn window_of(&mut self, length: Duration) -> anyhow::Result<Window> {
        let from = Instant::now();
        self.window(from, from + length).await
    }

    /// Ends it: gives errors by text with their number.
    pub async fn stop(mut self) -> BTreeMap<String, u64> {
        self.clients.shutdown().await;
        std::mem::take(&mut self.shared.log().errors)
    }
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn due(&self, number: u64) -> Duration {
        Duration::from_secs_f64(number as f64 / self.plan.rate)
    }

    /// Number of the first operation that is not due before a moment.
    fn due_before(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.begin);
        let guess = (since.as_secs_f64() * self.plan.rate).floor() as u64;
        // The quotient is rounded: its neighbours decide.
        (guess.saturating_sub(1)..).find(|number| self.due(*number) >= since).expect("times grow without end")
    }
}

impl Log {
    fn end(&mut self, number: u64, done: Done, error: Option<String>) {
        self.done.push(done);
        if let Some(error) = error {
            *self.errors.entry(error).or_default() += 1;
        }
        self.ahead.insert(number);
        while self.ahead.remove(&self.below) {
            self.below += 1;
        }
    }

    fn window(&self, from: Duration, to: Duration) -> Window {
        let (mut puts, mut gets, mut failed) = (Latencies::new(), Latencies::new(), 0);
        for done in self.done.iter().filter(|done| (from..to).contains(&done.due)) {
            match (done.failed, done.put) {
                (true, _) => failed += 1,
                (false, true) => puts.record(done.latency),
                (false, false) => gets.record(done.latency),
            }
        }
        Window { seconds: to.saturating_sub(from).as_secs_f64(), puts: puts.summary(), gets: gets.summary(), failed }
    }
}

async fn client(shared: Arc<Shared>, number: u64, mut kv: Kv) {
    let mut random = Random::new(shared.plan.seed, number);
    loop {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let due = shared.due(number);
        sleep_until(shared.begin + due).await;
        let put = random.below(2) == 0;
        let error = operation(&mut kv, &shared.plan.data, put, &mut random).await.err();
        let latency = shared.begin.elapsed().saturating_sub(due);
        let done = Done { due, latency, put, failed: error.is_some() };
        let below = {
            let mut log = shared.log();
            log.end(number, done, error);
            log.below
        };
        shared.below.send_if_modified(|known| {
            let more = below > *known;
            *known = below.max(*known);
            more
        });
    }
}

async fn operation(kv: &mut Kv, data: &DataSet, put: bool, random: &mut Random) -> Result<(), String> {
    let number = data.any(random);
    let key = data.key(number);
    let failed = |status: Status| format!("{} ({:?})", status.message(), status.code());
    let late = |_| format!("no answer within {ATTEMPT:?}");
    if put {
        let request = PutRequest { key, value: data.value(random), ..PutRequest::default() };
        return timeout(ATTEMPT, kv.put(request)).await.map_err(late)?.map(drop).map_err(failed);
    }
    let request = RangeRequest { key: key.clone(), ..RangeRequest::default() };
    let reply = timeout(ATTEMPT, kv.range(request)).await.map_err(late)?.map_err(failed)?;
    match reply.get_ref().kvs.first() {
        Some(found) if found.key == key => Ok(()),
        _ => Err("a key that had been put was not found".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(due: u64, latency: u64, put: bool, failed: bool) -> Done {
        Done { due: Duration::from_millis(due), latency: Duration::from_millis(latency), put, failed }
    }

    #[test]
    fn an_operation_belongs_to_the_time_when_it_was_due() {
        let mut log = Log::default();
        log.end(0, done(0, 500, true, false), None);
        log.end(1, done(100, 1, true, false), None);
        log.end(2, done(199, 3, false, false), None);
        log.end(3, done(199, 3, false, true), Some("no".into()));
        log.end(4, done(200, 9, true, false), None);
        let window = log.window(Duration::from_millis(100), Duration::from_millis(200));
        assert_eq!((window.puts.count, window.gets.count, window.failed), (1, 1, 1));
        assert!((window.puts.max_us - 1_000.0).abs() < 2.0, "{window:?}");
        assert_eq!(log.errors["no"], 1);
    }

    #[test]
    fn what_has_ended_without_a_gap_is_known() {
        let mut log = Log::default();
        for (number, below) in [(1, 0), (0, 2), (3, 2), (2, 4)] {
            log.end(number, done(0, 0, true, false), None);
            assert_eq!(log.below, below);
        }
        assert!(log.ahead.is_empty());
    }

    #[tokio::test]
    async fn operations_due_before_a_moment_are_counted_exactly() {
        let (below, _) = watch::channel(0);
        let data = DataSet::new("k/".into(), 10, 8, 0).unwrap();
        let plan = Plan { endpoints: Vec::new(), clients: 1, rate: 3.0, data, seed: 1 };
        let (begin, next, log) = (Instant::now(), AtomicU64::new(0), Mutex::default());
        let shared = Shared { plan, begin, next, log, below };
        for number in 0..1_000 {
            let due = begin + shared.due(number);
            assert_eq!(shared.due_before(due), number);
            assert_eq!(shared.due_before(due + Duration::from_nanos(1)), number + 1);
        }
    }
}
