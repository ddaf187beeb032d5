//! One thread of a run: its watch streams, its writers, and what they saw.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context;
use braid_proto::etcd::etcdserverpb::PutRequest;
use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, sleep_until, timeout_at};

use super::ledger::{Ahead, Expected, Seen, Slowest};
use super::stream::{Target, WatchStream};
use super::wire::WatchMessage;
use super::{Plan, STAMP_BYTES, Scenario};
use crate::client::Kv;
use crate::histogram::Latencies;
use crate::keys::{Distribution, Picker};
use crate::runner::{Clock, DRAIN, Schedule};

/// After an error a writer waits this long, so that an endpoint that refuses everything is not flooded.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(10);

/// What all threads of a run share.
#[derive(Debug)]
pub struct Common {
    /// Holds the writers of a closed loop back.
    pub ahead: Ahead,
    /// Events that each stream has seen; written by the stream alone.
    pub delivered: Vec<AtomicU64>,
    /// Puts that were acknowledged.
    pub puts: AtomicU64,
}

impl Common {
    /// For a run that has not begun.
    pub fn new(plan: &Plan) -> Self {
        Self {
            ahead: Ahead::new(plan.shape.ahead, plan.shape.streams),
            delivered: (0..plan.shape.streams).map(|_| AtomicU64::new(0)).collect(),
            puts: AtomicU64::new(0),
        }
    }

    /// Events that all watches together have seen.
    pub fn delivered(&self) -> u64 {
        self.delivered.iter().map(|stream| stream.load(Ordering::Relaxed)).sum()
    }
}

/// What the writers of a thread did.
#[derive(Debug, Default)]
pub struct Written {
    /// What the watches must show.
    pub expected: Expected,
    /// Latencies of the puts in the window.
    pub latencies: Latencies,
    /// Open loop: how late free writers started.
    pub lateness: Latencies,
    /// Failed puts by code and text.
    pub errors: BTreeMap<String, u64>,
    /// Puts that were never answered.
    pub unfinished: u64,
}

impl Written {
    /// Adds another thread's.
    pub fn add(&mut self, other: Self) {
        self.expected.add(other.expected);
        self.latencies.merge(&other.latencies);
        self.lateness.merge(&other.lateness);
        for (text, count) in other.errors {
            *self.errors.entry(text).or_default() += count;
        }
        self.unfinished += other.unfinished;
    }
}

/// How a thread is told what comes next; a sender that is gone tells it to end.
#[derive(Debug, Clone)]
pub struct Signals {
    /// To the runner: all streams and connections stand.
    pub ready: mpsc::SyncSender<()>,
    /// From the runner: begin.
    pub start: watch::Receiver<Option<Clock>>,
    /// To the runner: the writers are done.
    pub written: mpsc::SyncSender<Written>,
    /// From the runner: what all writers together have written.
    pub expected: watch::Receiver<Option<Arc<Expected>>>,
}

/// One thread's part of a plan: every connection whose number modulo the threads is its own, with all that is on it.
#[derive(Debug, Clone, Copy)]
pub struct Share<'a> {
    /// The whole plan.
    pub plan: &'a Plan,
    /// What all threads share.
    pub common: &'a Arc<Common>,
    /// Number of the thread.
    pub number: usize,
}

impl Share<'_> {
    /// Runs it: prepares, says so, waits for the clock, works. Gives the latencies of events.
    pub fn run(self, signals: Signals) -> anyhow::Result<Latencies> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, self.work(signals))
    }

    async fn work(self, signals: Signals) -> anyhow::Result<Latencies> {
        let Signals { ready, mut start, written, expected } = signals;
        let writers = self.writers().await?;
        let streams = self.streams().await?;
        ready.send(()).context("the run was given up")?;
        // Whoever waits for the others must see at once that one of them failed.
        drop(ready);
        let Some(clock) = start.wait_for(Option::is_some).await.ok().and_then(|clock| *clock) else {
            return Ok(Latencies::new());
        };
        let mut readers = JoinSet::new();
        for reader in streams {
            readers.spawn_local(reader.run(clock, expected.clone()));
        }
        // A reader that fails ends the thread at once, writers or not.
        let mut latencies = Latencies::new();
        let all_read = async {
            while let Some(read) = readers.join_next().await {
                latencies.merge(&read.context("a reader panicked")??);
            }
            anyhow::Ok(())
        };
        let all_written = async {
            let sum = write(writers, clock).await?;
            written.send(sum).context("the run was given up")?;
            drop(written);
            anyhow::Ok(())
        };
        tokio::try_join!(all_read, all_written)?;
        Ok(latencies)
    }

    /// The numbers of this thread among `count` things.
    fn own(&self, count: usize) -> impl Iterator<Item = usize> {
        (self.number..count).step_by(self.plan.threads())
    }

    async fn streams(&self) -> anyhow::Result<Vec<Reader>> {
        let shape = self.plan.shape;
        let mut readers = Vec::new();
        for connection in self.own(shape.connections) {
            let address = &self.plan.endpoints[connection % self.plan.endpoints.len()];
            let channel = address.channel().await?;
            for number in (connection..shape.streams).step_by(shape.connections) {
                let watches: Vec<usize> = (number..shape.watches).step_by(shape.streams).collect();
                let targets: Vec<Target> = watches.iter().map(|&watch| self.plan.target(watch)).collect();
                let stream = WatchStream::open(channel.clone(), targets).await;
                let stream = stream.with_context(|| format!("{address}, stream {number}"))?;
                readers.push(Reader {
                    stream,
                    number,
                    scenario: self.plan.scenario,
                    keys: watches.iter().map(|&watch| self.plan.own_key(watch)).collect(),
                    watches,
                    open_loop: self.plan.rate.is_some(),
                    patience: self.plan.patience,
                    common: Arc::clone(self.common),
                });
            }
        }
        Ok(readers)
    }

    async fn writers(&self) -> anyhow::Result<Vec<Writer>> {
        let (plan, count) = (self.plan, self.plan.shape.writers);
        let connections = plan.put_connections.clamp(1, count);
        let mut writers = Vec::new();
        for connection in self.own(connections) {
            let kv = plan.endpoints[connection % plan.endpoints.len()].connect().await?;
            for number in (connection..count).step_by(connections) {
                writers.push(Writer {
                    kv: kv.clone(),
                    picker: Picker::new(&plan.written(), Distribution::Uniform, plan.seed, number, count),
                    schedule: plan.rate.map(|rate| Schedule::new(rate, number, count)),
                    common: Arc::clone(self.common),
                });
            }
        }
        Ok(writers)
    }
}

/// One stream and what it must see.
struct Reader {
    stream: WatchStream,
    /// Number of the stream in the whole run.
    number: usize,
    scenario: Scenario,
    /// Numbers of its watches in the whole run.
    watches: Vec<usize>,
    /// The one key of each watch, if it has one.
    keys: Vec<Option<u64>>,
    open_loop: bool,
    patience: Duration,
    common: Arc<Common>,
}

/// What a stream has seen.
struct Progress {
    watches: Vec<Seen>,
    slowest: Slowest,
    events: u64,
    latencies: Latencies,
}

impl Reader {
    /// Reads until everything that was written has been seen, then checks it.
    async fn run(
        mut self,
        clock: Clock,
        mut expected: watch::Receiver<Option<Arc<Expected>>>,
    ) -> anyhow::Result<Latencies> {
        let mut progress = Progress {
            watches: vec![Seen::default(); self.watches.len()],
            slowest: Slowest::new(self.watches.len()),
            events: 0,
            latencies: Latencies::new(),
        };
        let told = loop {
            tokio::select! {
                biased;
                message = self.stream.next() => {
                    let (watch, message) = message?;
                    self.message(watch, &message, clock, &mut progress)?;
                }
                told = expected.wait_for(Option::is_some) => break told.ok().and_then(|told| told.clone()),
            }
        };
        // Without a word the run was given up elsewhere; the reason is told there.
        let Some(told) = told else { return Ok(progress.latencies) };
        let want: u64 = self.keys.iter().map(|&key| told.of(key).events).sum();
        let deadline = tokio::time::Instant::now() + self.patience;
        while progress.events < want {
            let Ok(message) = timeout_at(deadline, self.stream.next()).await else { break };
            let (watch, message) = message?;
            self.message(watch, &message, clock, &mut progress)?;
        }
        for ((seen, &key), &watch) in progress.watches.iter().zip(&self.keys).zip(&self.watches) {
            told.check(key, seen.tally).with_context(|| self.name(watch))?;
        }
        Ok(progress.latencies)
    }

    fn message(
        &self,
        watch: usize,
        message: &WatchMessage,
        clock: Clock,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        // One watch of a stream that all see the same tells how long it takes; the clock is read for no other.
        let timed = self.keys[watch].is_some() || self.open_loop || watch == 0;
        let now = timed.then(Instant::now);
        let seen = &mut progress.watches[watch];
        let mut events = 0;
        let mut least = None;
        for event in message.events() {
            let event = event.map_err(tonic::Status::from)?;
            seen.event(event.revision).with_context(|| self.name(self.watches[watch]))?;
            events += 1;
            if self.scenario != Scenario::Keys {
                least = progress.slowest.seen(seen.tally.events).or(least);
            }
            if let Some(now) = now
                && let Some(stamp) = event.value.first_chunk::<STAMP_BYTES>()
            {
                let start = clock.start + Duration::from_nanos(u64::from_le_bytes(*stamp));
                if clock.counts(start) {
                    progress.latencies.record(now.saturating_duration_since(start));
                }
            }
        }
        progress.events += events;
        self.common.delivered[self.number].store(progress.events, Ordering::Relaxed);
        if self.open_loop {
            return Ok(());
        }
        match self.scenario {
            Scenario::Keys => self.common.ahead.finish(events as usize),
            _ => least.into_iter().for_each(|least| self.common.ahead.stream_reached(self.number, least)),
        }
        Ok(())
    }

    fn name(&self, watch: usize) -> String {
        format!("watch {watch} on stream {}", self.number)
    }
}

/// Runs all writers of a thread to the end of the clock.
async fn write(writers: Vec<Writer>, clock: Clock) -> anyhow::Result<Written> {
    let written = Rc::new(RefCell::new(Written::default()));
    let mut tasks = JoinSet::new();
    for writer in writers {
        tasks.spawn_local(writer.run(clock, Rc::clone(&written)));
    }
    let all = async {
        while tasks.join_next().await.transpose().context("a writer panicked")?.is_some() {}
        anyhow::Ok(())
    };
    let ended = timeout_at((clock.end + DRAIN).into(), all).await;
    let mut written = written.take();
    match ended {
        Ok(ended) => ended?,
        Err(_) => {
            written.unfinished = tasks.len() as u64;
            written.expected.unknown += written.unfinished;
        }
    }
    Ok(written)
}

struct Writer {
    kv: Kv,
    picker: Picker,
    schedule: Option<Schedule>,
    common: Arc<Common>,
}

impl Writer {
    async fn run(mut self, clock: Clock, written: Rc<RefCell<Written>>) {
        match self.schedule {
            Some(schedule) => self.run_open(schedule, clock, &written).await,
            None => self.run_closed(clock, &written).await,
        }
    }

    async fn run_closed(&mut self, clock: Clock, written: &RefCell<Written>) {
        while timeout_at(clock.end.into(), self.common.ahead.start()).await.is_ok() && Instant::now() < clock.end {
            if !self.put(Instant::now(), clock, written).await {
                self.common.ahead.finish(1);
                sleep(PAUSE_AFTER_ERROR).await;
            }
        }
    }

    async fn run_open(&mut self, schedule: Schedule, clock: Clock, written: &RefCell<Written>) {
        let mut scheduled = clock.start + schedule.offset;
        while scheduled < clock.end {
            let mut start = scheduled;
            if Instant::now() < scheduled {
                sleep_until(scheduled.into()).await;
                // The writer was free: what it is late now is the timer's slop, not the server's.
                start = Instant::now();
                if clock.counts(scheduled) {
                    written.borrow_mut().lateness.record(start - scheduled);
                }
            }
            self.put(start, clock, written).await;
            scheduled += schedule.interval;
        }
    }

    /// One put that counts from `start`; whether it succeeded.
    async fn put(&mut self, start: Instant, clock: Clock, written: &RefCell<Written>) -> bool {
        let (number, key) = self.picker.numbered_key();
        let value = stamped(&self.picker.value(), start - clock.start);
        let reply = self.kv.put(PutRequest { key, value, ..PutRequest::default() }).await;
        let mut written = written.borrow_mut();
        match reply {
            Ok(reply) => {
                let revision = reply.get_ref().header.as_ref().map_or(0, |header| header.revision);
                written.expected.put(number, revision);
                self.common.puts.fetch_add(1, Ordering::Relaxed);
                if clock.counts(start) {
                    written.latencies.record(start.elapsed());
                }
                true
            }
            Err(status) => {
                *written.errors.entry(format!("{:?}: {}", status.code(), status.message())).or_default() += 1;
                written.expected.unknown += 1;
                false
            }
        }
    }
}

/// A value that says when its put started.
fn stamped(value: &[u8], start: Duration) -> Bytes {
    let mut stamped = BytesMut::with_capacity(value.len());
    stamped.put_u64_le(u64::try_from(start.as_nanos()).unwrap_or(u64::MAX));
    stamped.put_slice(&value[STAMP_BYTES..]);
    stamped.freeze()
}
