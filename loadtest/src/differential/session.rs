//! One target with its model: runs programs on both, request by request, until an answer differs.

use anyhow::{Context as _, bail};
use braid_proto::etcd::etcdserverpb::request_op::Request as Op;
use braid_proto::etcd::etcdserverpb::{CompactionRequest, DeleteRangeRequest, RangeRequest, RequestOp, TxnRequest};
use bytes::Bytes;
use tonic::Code;

use super::compare::{Difference, compare};
use super::generate::LEASES;
use super::program::{Place, Program};
use super::target::Target;
use crate::client::prefix_end;
use crate::model::{Answer, Dialect, Model, NEVER_COMPACTED, Request};

/// What a session may do to the target.
#[derive(Debug, Clone)]
pub struct Limits {
    /// All keys are put under it. Without it programs use the whole store, which must be empty.
    pub prefix: Bytes,
    /// The target's history may be compacted, as often as programs want.
    pub compactions: bool,
}

/// A target that programs run against.
#[derive(Debug)]
pub struct Session<T> {
    /// What to call it.
    pub name: String,
    target: T,
    dialect: Dialect,
    limits: Limits,
    leases: Vec<i64>,
    /// The target's compacted revision; none if it is not known.
    compacted: Option<i64>,
    /// Serializable answers that were too old to compare.
    stale: u64,
}

/// What came of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Requests that were answered.
    pub requests: usize,
    /// How the last of them differs.
    pub difference: Option<Difference>,
}

impl<T: Target> Session<T> {
    /// Prepares the target: leases, and a first compaction so that the compacted revision is known.
    pub async fn open(name: &str, mut target: T, dialect: Dialect, limits: Limits) -> anyhow::Result<Self> {
        let mut leases = Vec::new();
        for lease in LEASES {
            if target.grant(lease).await.with_context(|| name.to_owned())? {
                leases.push(lease);
            }
        }
        let mut session = Self { name: name.to_owned(), target, dialect, limits, leases, compacted: None, stale: 0 };
        if session.limits.prefix.is_empty() {
            let everything = RangeRequest { count_only: true, ..session.everything() };
            match session.target.answer(&Request::Range(everything)).await {
                Answer::Range(answer) if answer.count == 0 => {}
                Answer::Range(answer) => bail!(
                    "{name} holds {} keys: programs that use the whole store delete all of them, so it must be empty",
                    answer.count
                ),
                other => bail!("{name} cannot be read: {other:?}"),
            }
        }
        Ok(session)
    }

    /// The target.
    pub fn target(&mut self) -> &mut T {
        &mut self.target
    }

    /// Whether the target knows leases.
    pub fn has_leases(&self) -> bool {
        !self.leases.is_empty()
    }

    /// Serializable answers that were older than their program and so could not be compared.
    pub fn stale(&self) -> u64 {
        self.stale
    }

    /// Runs a program to its end or to the first difference.
    ///
    /// # Errors
    /// It could not be started: the target cannot be cleaned up or compacted.
    pub async fn run(&mut self, program: &Program) -> anyhow::Result<Outcome> {
        let base = self.clean().await?;
        let compacted = self.compacted(base).await?;
        let mut model = Model::starting_at(self.dialect, base, compacted);
        self.leases.iter().for_each(|&lease| model.grant(lease));
        for (at, request) in program.requests.iter().enumerate() {
            let filters_max = match self.dialect {
                Dialect::Etcd => i64::MAX,
                Dialect::Braid => model.revision(),
            };
            let request = Place { base, prefix: self.limits.prefix.clone(), filters_max }.put(request);
            let answer = self.target.answer(&request).await;
            if let Err(difference) = self.judge(&mut model, base, &request, &answer) {
                // What the target has done is not what the model has.
                self.compacted = None;
                return Ok(Outcome { requests: at + 1, difference: Some(difference) });
            }
        }
        self.compacted = Some(model.compacted());
        Ok(Outcome { requests: program.requests.len(), difference: None })
    }

    fn judge(&mut self, model: &mut Model, base: i64, request: &Request, answer: &Answer) -> Result<(), Difference> {
        let expected = match (request, answer.revision()) {
            (Request::Range(range), Some(seen)) if range.serializable && seen < base => {
                self.stale += 1;
                return Ok(());
            }
            // A replica may lag: the answer must be right for the revision that it has come to.
            (Request::Range(range), Some(seen)) if range.serializable && seen < model.revision() => {
                model.as_of(seen).answer(request)
            }
            _ => model.answer(request),
        };
        compare(&expected, answer)
    }

    /// Deletes what programs may have left; gives the target's revision.
    async fn clean(&mut self) -> anyhow::Result<i64> {
        let RangeRequest { key, range_end, .. } = self.everything();
        let all = DeleteRangeRequest { key, range_end, prev_kv: false };
        let deleted = self.target.answer(&Request::DeleteRange(all)).await;
        // Not from the delete, whose header could be wrong.
        let read = self.target.answer(&Request::Range(self.everything())).await;
        match (&deleted, &read, read.revision()) {
            (Answer::DeleteRange(_), Answer::Range(range), Some(revision)) if range.kvs.is_empty() => Ok(revision),
            _ => bail!("{} cannot be cleaned up before a program: {deleted:?}, then {read:?}", self.name),
        }
    }

    /// The compacted revision, made known by compacting if it is not.
    async fn compacted(&mut self, base: i64) -> anyhow::Result<i64> {
        if let Some(compacted) = self.compacted {
            return Ok(compacted);
        }
        let request = match self.limits.compactions {
            true => Request::Compact(CompactionRequest { revision: base, physical: false }),
            false => Request::Txn(TxnRequest { success: vec![negative_range()], ..TxnRequest::default() }),
        };
        let answer = self.target.answer(&request).await;
        let refused =
            matches!(&answer, Answer::Refused { code: Code::OutOfRange, message } if message.contains("compacted"));
        let compacted = match (self.limits.compactions, &answer) {
            (true, Answer::Compact(_)) => base,
            // Nothing was written since the last compaction.
            (true, _) if refused => base,
            (false, Answer::Txn(_)) => NEVER_COMPACTED,
            // It is compacted somewhere below; programs do not look there.
            (false, _) if refused => 0,
            _ => bail!("{} does not tell its compacted revision: {answer:?}", self.name),
        };
        self.compacted = Some(compacted);
        Ok(compacted)
    }

    fn everything(&self) -> RangeRequest {
        let zero = Bytes::from_static(b"\0");
        let prefix = &self.limits.prefix;
        let (key, range_end) = match prefix.is_empty() {
            true => (zero.clone(), zero),
            false => (prefix.clone(), prefix_end(prefix)),
        };
        RangeRequest { key, range_end, ..RangeRequest::default() }
    }
}

/// Inside a transaction revision -1 means now on a store that was never compacted, and is below the compacted revision
/// on any other.
fn negative_range() -> RequestOp {
    let range = RangeRequest { key: Bytes::from_static(b"x"), revision: -1, ..RangeRequest::default() };
    RequestOp { request: Some(Op::RequestRange(range)) }
}
