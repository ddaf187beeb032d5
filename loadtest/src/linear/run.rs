//! Clients that record a history of a running cluster, whatever happens to its servers meanwhile.
//!
//! 1. Every client has one request in flight, and moves to another endpoint every few requests and after each failure.
//! 2. A request that surely was not sent is forgotten. One that may have changed something and was not answered is kept
//!    as unknown, and never repeated.
//! 3. At the end the whole key space is read at the newest revision and at old ones, and wherever `missing` asks for it.
//!
//! What is remembered grows with every request (about a kilobyte each), for as long as the run is meant to last.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use braid_proto::etcd::etcdserverpb::{RangeRequest, RangeResponse};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Status;

use super::history::{History, Op, Outcome, Request, Response};
use super::missing;
use super::workload::{Generator, Keys};
use crate::client::{Address, Failure, Kv, header_revision, range};
use crate::history::Moment;
use crate::random::Random;
use crate::session::{Policy, Pool, Session};

/// Pause after a failure: endpoints that are down refuse at once.
const PAUSE: Duration = Duration::from_millis(20);
/// Requests after which a client moves to another endpoint.
const MOVE_EVERY: u32 = 8;
/// Old revisions that are read at the end, besides those that are missing.
const OLD_READS: u32 = 40;
/// Readers of old revisions at the end.
const READERS: usize = 8;

/// Who asks what, where.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Endpoints.
    pub endpoints: Vec<Address>,
    /// Clients.
    pub clients: u32,
    /// The keys.
    pub keys: Keys,
    /// A request without an answer is given up after this, as unknown.
    pub attempt: Duration,
    /// Different seeds ask differently.
    pub seed: u64,
}

impl Plan {
    /// 16 clients.
    pub fn new(endpoints: Vec<Address>, keys: Keys) -> Self {
        Self { endpoints, clients: 16, keys, attempt: Duration::from_secs(4), seed: 1 }
    }
}

/// Running clients. Dropped, they stop without a history.
#[derive(Debug)]
pub struct Run {
    plan: Plan,
    pool: Pool,
    begin: Instant,
    /// What was done before the clients began.
    opened: Op,
    base: i64,
    stop: watch::Sender<bool>,
    answered: watch::Receiver<u64>,
    clients: JoinSet<Vec<Op>>,
}

impl Run {
    /// Starts the clients. There must be no key at all in the cluster.
    pub async fn start(plan: Plan) -> anyhow::Result<Self> {
        ensure!(plan.clients > 0, "there must be at least one client");
        ensure!(!plan.endpoints.is_empty(), "no endpoints");
        let pool = Pool::new(&plan.endpoints, plan.endpoints.len() * 4, Policy::default());
        let mut session = pool.session(0);
        let all = session.call(RangeRequest { count_only: true, ..everything(0) }).await?;
        ensure!(
            all.count == 0,
            "{} keys are there already: the cluster must be empty, since keys are deleted",
            all.count
        );
        let base = header_revision(&all);
        let begin = Instant::now();
        let opened = open_accounts(&mut session, &plan, begin).await?;
        let (stop, stopped) = watch::channel(false);
        let (counter, answered) = watch::channel(0);
        let counter = Arc::new(counter);
        let mut clients = JoinSet::new();
        for number in 0..plan.clients {
            let client = Client {
                number,
                generator: Generator::new(plan.keys.clone(), plan.seed, number, base),
                session: pool.session(number as usize),
                attempt: plan.attempt,
                begin,
                stopped: stopped.clone(),
                answered: Arc::clone(&counter),
                ops: Vec::new(),
            };
            clients.spawn(client.run());
        }
        Ok(Self { plan, pool, begin, opened, base, stop, answered, clients })
    }

    /// Requests answered so far.
    pub fn answered(&self) -> u64 {
        *self.answered.borrow()
    }

    /// Waits until so many more requests have been answered.
    pub async fn answered_more(&mut self, requests: u64, within: Duration) -> anyhow::Result<()> {
        let before = self.answered();
        let enough = self.answered.wait_for(|&answered| answered >= before + requests);
        let waited = timeout(within, enough).await.map(|result| result.map(drop));
        let more = self.answered() - before;
        let result =
            waited.with_context(|| format!("only {more} of {requests} requests were answered within {within:?}"))?;
        result.context("every client has ended")
    }

    /// Lets every client finish its request, reads what the history lacks, and gives it all.
    pub async fn stop(mut self) -> anyhow::Result<History> {
        self.stop.send_replace(true);
        let accounts = Some(self.plan.keys.accounts());
        let mut history = History { base: self.base, accounts, ops: vec![self.opened.clone()], ..History::default() };
        while let Some(part) = self.clients.join_next().await {
            history.ops.extend(part.context("a client panicked")?);
        }
        self.read_old(&mut history).await?;
        self.read_missing(&mut history).await?;
        Ok(history)
    }

    /// Reads the newest state and some old ones, as one more client.
    async fn read_old(&self, history: &mut History) -> anyhow::Result<()> {
        let mut session = self.pool.session(0);
        let mut random = Random::new(self.plan.seed, u64::MAX);
        let mut newest = 0;
        for number in 0..=OLD_READS {
            let back = random.below((newest - self.base).unsigned_abs() + 1).cast_signed();
            let request = everything(if number == 0 { 0 } else { newest - back });
            // A call is repeated until it succeeds: the answer is that of the last attempt, which began after this.
            let sent = Moment::since(self.begin);
            let mut response = Response::Range(session.call(request.clone()).await?);
            let ended = Moment::since(self.begin);
            let revision = response.take_revision();
            newest = newest.max(revision);
            let outcome = Outcome::Answered { revision, response };
            history.ops.push(Op {
                client: self.plan.clients,
                number,
                sent,
                ended,
                request: Request::Range(request),
                outcome,
            });
            session.advance();
        }
        Ok(())
    }

    /// Reads revisions that nobody claims, until it is certain what happened at each.
    async fn read_missing(&self, history: &mut History) -> anyhow::Result<()> {
        loop {
            let missing = missing(history)?;
            if missing.is_empty() {
                return Ok(());
            }
            let mut readers = JoinSet::new();
            for (number, part) in missing.revisions.chunks(missing.revisions.len().div_ceil(READERS)).enumerate() {
                readers.spawn(read_revisions(self.pool.session(number), part.to_vec()));
            }
            while let Some(part) = readers.join_next().await {
                for (revision, response) in part.context("a reader panicked")?? {
                    history.snapshots.insert(revision, response.kvs);
                }
            }
        }
    }
}

/// The whole key space at a revision; 0 is now.
fn everything(revision: i64) -> RangeRequest {
    RangeRequest { revision, ..range(&b"\0"[..], &b"\0"[..]) }
}

async fn read_revisions(mut session: Session, revisions: Vec<i64>) -> anyhow::Result<Vec<(i64, RangeResponse)>> {
    let mut read = Vec::new();
    for revision in revisions {
        read.push((revision, session.call(everything(revision)).await?));
    }
    Ok(read)
}

/// Done once and surely: without accounts the run would check less than it says.
async fn open_accounts(session: &mut Session, plan: &Plan, begin: Instant) -> anyhow::Result<Op> {
    let request = plan.keys.open_accounts();
    let sent = Moment::since(begin);
    let result = send(session.kv(), request.clone(), plan.attempt).await;
    let ended = Moment::since(begin);
    let (revision, response) = result.map_err(|status| {
        anyhow::anyhow!("the accounts cannot be opened: {} ({:?})", status.message(), status.code())
    })?;
    let outcome = Outcome::Answered { revision, response };
    Ok(Op { client: plan.clients + 1, number: 0, sent, ended, request, outcome })
}

async fn send(kv: &mut Kv, request: Request, within: Duration) -> Result<(i64, Response), Status> {
    let answer = async {
        Ok::<_, Status>(match request {
            Request::Range(request) => Response::Range(kv.range(request).await?.into_inner()),
            Request::Put(request) => Response::Put(kv.put(request).await?.into_inner()),
            Request::Delete(request) => Response::Delete(kv.delete_range(request).await?.into_inner()),
            Request::Txn(request) => Response::Txn(kv.txn(request).await?.into_inner()),
        })
    };
    let mut response = match timeout(within, answer).await {
        Ok(response) => response?,
        Err(_) => return Err(Status::deadline_exceeded(format!("no answer within {within:?}"))),
    };
    let revision = response.take_revision();
    Ok((revision, response))
}

/// One client.
struct Client {
    number: u32,
    generator: Generator,
    session: Session,
    attempt: Duration,
    begin: Instant,
    stopped: watch::Receiver<bool>,
    answered: Arc<watch::Sender<u64>>,
    ops: Vec<Op>,
}

impl Client {
    async fn run(mut self) -> Vec<Op> {
        while !*self.stopped.borrow() {
            let (number, request) = self.generator.draw();
            if number.is_multiple_of(MOVE_EVERY) {
                self.session.advance();
            }
            let sent = Moment::since(self.begin);
            let result = send(self.session.kv(), request.clone(), self.attempt).await;
            let ended = Moment::since(self.begin);
            let outcome = match result {
                Ok((revision, response)) => {
                    self.generator.learn(&request, &response, revision);
                    self.answered.send_modify(|answered| *answered += 1);
                    Some(Outcome::Answered { revision, response })
                }
                Err(status) => {
                    self.session.advance();
                    sleep(PAUSE).await;
                    outcome_of(&request, &status)
                }
            };
            if let Some(outcome) = outcome {
                self.ops.push(Op { client: self.number, number, sent, ended, request, outcome });
            }
        }
        self.ops
    }
}

/// What a failure leaves to remember; nothing if the request cannot have had an effect that anybody sees.
fn outcome_of(request: &Request, status: &Status) -> Option<Outcome> {
    match Failure::of(status) {
        Failure::NotSent => None,
        Failure::Refused => Some(Outcome::Refused(status.message().to_owned())),
        Failure::Unknown => request.may_mutate().then_some(Outcome::Unknown),
    }
}
