//! A steady write load that survives whatever happens to the servers, and remembers what it was told.
//!
//! 1. Every client has keys of its own and one operation in flight. Its puts carry growing numbers.
//! 2. A put that surely was not sent is tried at the next endpoint. One whose outcome is unknown is written down as that
//!    and never repeated: the next put has the next number.
//! 3. Now and then a client reads back the key it has just written, at another endpoint.
//!
//! What is remembered grows with every put (some 40 bytes each), for as long as the run is meant to last.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use braid_proto::etcd::etcdserverpb::{PutRequest, RangeRequest};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Status;

use crate::client::{Address, Failure, header_revision, prefix_end, range};
use crate::final_state::{FinalState, found};
use crate::history::{History, Layout, Moment, Outcome, Read, Write};
use crate::session::{Policy, Pool, Session};

/// Pause after a failure: endpoints that are down refuse at once.
const PAUSE: Duration = Duration::from_millis(20);

/// What to write, and where.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Endpoints; each client moves on to the next one when its present one fails.
    pub endpoints: Vec<Address>,
    /// Clients; none without a key.
    pub clients: u32,
    /// Keys: client c writes those whose number modulo the clients is c.
    pub layout: Layout,
    /// An operation without an answer is given up after this, as unknown.
    pub attempt: Duration,
    /// One read for so many puts of a client; 0 is none.
    pub read_every: u32,
}

impl Plan {
    /// 16 clients, 400 keys of 128 bytes under `faults/`, a read for every fourth put.
    pub fn new(endpoints: Vec<Address>) -> Self {
        let layout = Layout { prefixes: vec!["faults/".to_owned()], keys: 400, value_bytes: 128 };
        Self { endpoints, clients: 16, layout, attempt: Duration::from_secs(5), read_every: 4 }
    }

    fn check(&self) -> anyhow::Result<()> {
        self.layout.check()?;
        ensure!(!self.endpoints.is_empty(), "no endpoints");
        ensure!(self.clients > 0, "there must be at least one client");
        ensure!(self.layout.keys >= self.clients, "there must be a key for each client");
        Ok(())
    }

    fn pool(&self) -> Pool {
        // One connection for each endpoint and four clients: a paused server holds up few others.
        let connections = self.endpoints.len() * (self.clients as usize).div_ceil(4);
        Pool::new(&self.endpoints, connections, Policy::default())
    }
}

/// A running load. Dropped, it stops without a history.
#[derive(Debug)]
pub struct Writer {
    plan: Plan,
    pool: Pool,
    stop: watch::Sender<bool>,
    acked: watch::Receiver<u64>,
    clients: JoinSet<History>,
}

impl Writer {
    /// Starts it. The layout's keys must not exist yet: the checkers count their versions.
    pub async fn start(plan: Plan) -> anyhow::Result<Self> {
        plan.check()?;
        let pool = plan.pool();
        let mut session = pool.session(0);
        for prefix in &plan.layout.prefixes {
            let all = range(prefix.clone(), prefix_end(prefix.as_bytes()));
            let reply = session.call(RangeRequest { count_only: true, ..all }).await?;
            ensure!(reply.count == 0, "{} keys are already under {prefix}: choose another prefix", reply.count);
        }
        let (stop, stopped) = watch::channel(false);
        let (acks, acked) = watch::channel(0);
        let begin = Instant::now();
        let mut clients = JoinSet::new();
        for number in 0..plan.clients {
            let client = Client {
                layout: plan.layout.clone(),
                key: number,
                step: plan.clients,
                first_key: number,
                number: 0,
                attempt: plan.attempt,
                read_every: plan.read_every,
                writes: pool.session(number as usize),
                reads: pool.session(number as usize + 1),
                begin,
                stopped: stopped.clone(),
                acks: acks.clone(),
                history: History::default(),
            };
            clients.spawn(client.run());
        }
        Ok(Self { plan, pool, stop, acked, clients })
    }

    /// Puts acknowledged so far.
    pub fn acked(&self) -> u64 {
        *self.acked.borrow()
    }

    /// Waits until so many more puts have been acknowledged: the load goes on, whatever was just broken.
    pub async fn acked_more(&mut self, puts: u64, within: Duration) -> anyhow::Result<()> {
        let before = self.acked();
        let enough = self.acked.wait_for(|&acked| acked >= before + puts);
        let waited = timeout(within, enough).await.map(|result| result.map(drop));
        let more = self.acked() - before;
        let result =
            waited.with_context(|| format!("only {more} of {puts} puts were acknowledged within {within:?}"))?;
        result.context("every client has ended")
    }

    /// Lets every client finish its operation; gives what they did and what the cluster holds now.
    pub async fn stop(mut self) -> anyhow::Result<(History, FinalState)> {
        self.stop.send_replace(true);
        let mut history = History::default();
        while let Some(part) = self.clients.join_next().await {
            history.add(part.context("a client panicked")?);
        }
        let state = FinalState::read(&mut self.pool.session(0), &self.plan.layout).await?;
        Ok((history, state))
    }
}

/// One client.
struct Client {
    layout: Layout,
    /// The key of the next put.
    key: u32,
    /// From one of its keys to the next.
    step: u32,
    first_key: u32,
    /// Number of the last put.
    number: u32,
    attempt: Duration,
    read_every: u32,
    writes: Session,
    reads: Session,
    begin: Instant,
    stopped: watch::Receiver<bool>,
    acks: watch::Sender<u64>,
    history: History,
}

impl Client {
    async fn run(mut self) -> History {
        while !*self.stopped.borrow() {
            let key = self.next_key();
            self.number += 1;
            let Some(write) = self.write(key).await else { continue };
            self.history.writes.push(write);
            match write.outcome {
                Outcome::Acked(_) => self.acks.send_modify(|acked| *acked += 1),
                Outcome::Unknown | Outcome::Refused => {
                    self.writes.advance();
                    sleep(PAUSE).await;
                }
            }
            if self.read_every > 0 && self.number.is_multiple_of(self.read_every) {
                let read = self.read(key).await;
                self.history.reads.extend(read);
            }
        }
        self.history
    }

    fn next_key(&mut self) -> u32 {
        let key = self.key;
        self.key = key.checked_add(self.step).filter(|&next| next < self.layout.keys).unwrap_or(self.first_key);
        key
    }

    /// One put; none if it was not sent anywhere before the load was stopped.
    async fn write(&mut self, key: u32) -> Option<Write> {
        let request = PutRequest {
            key: self.layout.key(key),
            value: self.layout.value(key, self.number),
            ..PutRequest::default()
        };
        loop {
            let sent = Moment::since(self.begin);
            let answer = timeout(self.attempt, self.writes.kv().put(request.clone())).await;
            let ended = Moment::since(self.begin);
            let outcome = match answer {
                Ok(Ok(reply)) => {
                    // A reply without a revision is acknowledged all the same; the checkers will not accept its 0.
                    Outcome::Acked(reply.get_ref().header.as_ref().map_or(0, |header| header.revision))
                }
                Ok(Err(status)) => match Failure::of(&status) {
                    Failure::NotSent => {
                        if *self.stopped.borrow() {
                            return None;
                        }
                        self.writes.advance();
                        sleep(PAUSE).await;
                        continue;
                    }
                    Failure::Refused => Outcome::Refused,
                    Failure::Unknown => Outcome::Unknown,
                },
                Err(_) => Outcome::Unknown,
            };
            return Some(Write { key, number: self.number, sent, ended, outcome });
        }
    }

    /// One get, at another endpoint each time; none if it failed.
    async fn read(&mut self, key: u32) -> Option<Read> {
        self.reads.advance();
        let sent = Moment::since(self.begin);
        let request = RangeRequest { key: self.layout.key(key), ..RangeRequest::default() };
        let answer = timeout(self.attempt, self.reads.kv().range(request)).await;
        let ended = Moment::since(self.begin);
        let reply = answer.map_err(|_| Status::deadline_exceeded("no answer")).flatten().ok()?.into_inner();
        let found = reply.kvs.first().map(|kv| found(&self.layout, key, kv));
        Some(Read { key, sent, ended, revision: header_revision(&reply), found })
    }
}
