//! A caller over several connections that repeats idempotent calls until they succeed.
//!
//! 1. A call goes to the session's present connection, with a deadline of its own.
//! 2. A transient failure moves the session to the next connection and waits a little, longer each time.
//! 3. A failure that repeating cannot heal, or one that lasts longer than the policy allows, is the caller's error.
//!
//! Only for reads and for puts of a value that depends on nothing: a repeated call may happen twice.

use std::sync::Arc;
use std::time::Duration;

use braid_proto::etcd::etcdserverpb::{PutRequest, PutResponse, RangeRequest, RangeResponse};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Response, Status};

use crate::client::{Address, Kv, is_transient};

/// How long and how often to try.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// A single attempt is given up after this; the server may still be working on it.
    pub attempt: Duration,
    /// A call that has not succeeded after this is an error.
    pub total: Duration,
}

impl Default for Policy {
    /// An attempt may outlast etcd's own request timeout (7 s); a call may outlast an election and a restart.
    fn default() -> Self {
        Self { attempt: Duration::from_secs(10), total: Duration::from_secs(60) }
    }
}

const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Connections that sessions share.
#[derive(Debug, Clone)]
pub struct Pool {
    connections: Arc<[Kv]>,
    policy: Policy,
}

impl Pool {
    /// `connections` of them, round-robin over the addresses (at least one each), made when first used.
    ///
    /// # Panics
    /// If there is no address.
    pub fn new(addresses: &[Address], connections: usize, policy: Policy) -> Self {
        assert!(!addresses.is_empty(), "no endpoints");
        let count = connections.max(addresses.len());
        Self { connections: (0..count).map(|i| addresses[i % addresses.len()].connect_lazy()).collect(), policy }
    }

    /// A session that starts at connection `number` modulo their count.
    pub fn session(&self, number: usize) -> Session {
        let at = number % self.connections.len();
        Session { pool: self.clone(), at, kv: self.connections[at].clone(), retries: 0 }
    }
}

/// One caller.
#[derive(Debug)]
pub struct Session {
    pool: Pool,
    at: usize,
    kv: Kv,
    retries: u64,
}

impl Session {
    /// Repeats the call until it succeeds.
    pub async fn call<C: Idempotent>(&mut self, request: C) -> anyhow::Result<C::Reply> {
        let deadline = Instant::now() + self.pool.policy.total;
        let mut pause = PAUSE_MIN;
        loop {
            let status = match timeout(self.pool.policy.attempt, request.clone().send(&mut self.kv)).await {
                Ok(Ok(reply)) => return Ok(reply.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(format!("no answer within {:?}", self.pool.policy.attempt)),
            };
            let what = || format!("{} failed: {} ({:?})", request.describe(), status.message(), status.code());
            anyhow::ensure!(is_transient(&status), "{}", what());
            anyhow::ensure!(Instant::now() + pause < deadline, "{}, for {:?}", what(), self.pool.policy.total);
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            self.advance();
            self.retries += 1;
        }
    }

    /// Moves to the next connection.
    pub fn advance(&mut self) {
        self.at = (self.at + 1) % self.pool.connections.len();
        self.kv = self.pool.connections[self.at].clone();
    }

    /// The present connection, for calls that must not be repeated.
    pub fn kv(&mut self) -> &mut Kv {
        &mut self.kv
    }

    /// How often a call had to be repeated.
    pub fn retries(&self) -> u64 {
        self.retries
    }
}

/// A request that may be sent twice.
pub trait Idempotent: Clone + Send + Sync {
    /// Its reply.
    type Reply: Send;

    /// Sends it once.
    fn send(self, kv: &mut Kv) -> impl Future<Output = Result<Response<Self::Reply>, Status>> + Send;

    /// Names it in an error.
    fn describe(&self) -> String;
}

impl Idempotent for PutRequest {
    type Reply = PutResponse;

    fn send(self, kv: &mut Kv) -> impl Future<Output = Result<Response<PutResponse>, Status>> + Send {
        kv.put(self)
    }

    fn describe(&self) -> String {
        format!("put of {}", self.key.escape_ascii())
    }
}

impl Idempotent for RangeRequest {
    type Reply = RangeResponse;

    fn send(self, kv: &mut Kv) -> impl Future<Output = Result<Response<RangeResponse>, Status>> + Send {
        kv.range(self)
    }

    fn describe(&self) -> String {
        format!("range from {}", self.key.escape_ascii())
    }
}
