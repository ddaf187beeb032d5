//! Txn: decide every comparison, check every operation, then run them.
//!
//! 1. All comparisons, those of nested transactions too, are decided on the state before the transaction.
//! 2. The operations of the branches that will run are checked on that state: all puts first, then all ranges.
//! 3. They run in the order they are listed and see each other's effects.

use std::cmp::Ordering;

use braid_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use braid_proto::etcd::etcdserverpb::request_op::Request as Op;
use braid_proto::etcd::etcdserverpb::{Compare, RangeRequest, TxnRequest};
use braid_proto::etcd::mvccpb::KeyValue;

use super::request::{COMPACTED, FUTURE};
use super::{Model, Refusal, Reply, TxnReply, Write};

/// A transaction whose comparisons are decided.
struct Decided<'a> {
    succeeded: bool,
    /// The operations of the branch that runs.
    ops: Vec<Step<'a>>,
}

enum Step<'a> {
    Plain(&'a Op),
    Nested(Decided<'a>),
}

impl Model {
    pub(super) fn txn(&mut self, request: &TxnRequest) -> Result<TxnReply, Refusal> {
        let decided = self.decide(request);
        self.check_puts(&decided)?;
        self.check_ranges(&decided)?;
        let mut write = Write::new(self);
        let replies = write.run(&decided);
        Ok(TxnReply { revision: write.end(), succeeded: decided.succeeded, replies })
    }

    fn decide<'a>(&self, request: &'a TxnRequest) -> Decided<'a> {
        let succeeded = request.compare.iter().all(|compare| self.holds(compare));
        let branch = if succeeded { &request.success } else { &request.failure };
        let step = |op: &'a Op| match op {
            Op::RequestTxn(nested) => Step::Nested(self.decide(nested)),
            plain => Step::Plain(plain),
        };
        Decided { succeeded, ops: branch.iter().filter_map(|op| op.request.as_ref()).map(step).collect() }
    }

    /// Whether a comparison holds for every key it names. A key that does not exist compares as one with zeros, and no
    /// comparison of its value holds.
    fn holds(&self, compare: &Compare) -> bool {
        let found = self.all_at(&compare.key, &compare.range_end, self.revision);
        if found.is_empty() {
            let value = compare.target == CompareTarget::Value as i32;
            return !value && holds_for(compare, &KeyValue::default());
        }
        found.iter().all(|key_value| holds_for(compare, key_value))
    }

    fn check_puts(&self, decided: &Decided<'_>) -> Result<(), Refusal> {
        for step in &decided.ops {
            match step {
                Step::Nested(nested) => self.check_puts(nested)?,
                Step::Plain(Op::RequestPut(put)) => {
                    self.check_kept(put)?;
                    self.check_lease(put)?;
                }
                Step::Plain(_) => {}
            }
        }
        Ok(())
    }

    fn check_ranges(&self, decided: &Decided<'_>) -> Result<(), Refusal> {
        for step in &decided.ops {
            match step {
                Step::Nested(nested) => self.check_ranges(nested)?,
                Step::Plain(Op::RequestRange(range)) => self.check_revision(range)?,
                Step::Plain(_) => {}
            }
        }
        Ok(())
    }

    /// Unlike a range on its own, one inside a transaction may not ask for a negative revision below the compacted one.
    fn check_revision(&self, range: &RangeRequest) -> Result<(), Refusal> {
        match range.revision {
            0 => Ok(()),
            revision if revision > self.revision => Err(FUTURE),
            revision if revision < self.compacted => Err(COMPACTED),
            _ => Ok(()),
        }
    }
}

impl Write<'_> {
    fn run(&mut self, decided: &Decided<'_>) -> Vec<Reply> {
        let mut replies = Vec::new();
        for step in &decided.ops {
            replies.push(match step {
                Step::Plain(Op::RequestRange(range)) => Reply::Range(self.range(range)),
                Step::Plain(Op::RequestPut(put)) => self.put(put),
                Step::Plain(Op::RequestDeleteRange(delete)) => self.delete_range(delete),
                Step::Plain(Op::RequestTxn(_)) => unreachable!("decided as a nested transaction"),
                // The header of a nested transaction is never filled in.
                Step::Nested(nested) => {
                    let replies = self.run(nested);
                    Reply::Txn(TxnReply { revision: 0, succeeded: nested.succeeded, replies })
                }
            });
        }
        replies
    }
}

fn holds_for(compare: &Compare, key_value: &KeyValue) -> bool {
    let ordering = match (CompareTarget::try_from(compare.target), &compare.target_union) {
        (Ok(CompareTarget::Version), union) => {
            let given = if let Some(TargetUnion::Version(given)) = union { *given } else { 0 };
            key_value.version.cmp(&given)
        }
        (Ok(CompareTarget::Create), union) => {
            let given = if let Some(TargetUnion::CreateRevision(given)) = union { *given } else { 0 };
            key_value.create_revision.cmp(&given)
        }
        (Ok(CompareTarget::Mod), union) => {
            let given = if let Some(TargetUnion::ModRevision(given)) = union { *given } else { 0 };
            key_value.mod_revision.cmp(&given)
        }
        (Ok(CompareTarget::Value), union) => {
            let given = if let Some(TargetUnion::Value(given)) = union { &given[..] } else { b"" };
            key_value.value[..].cmp(given)
        }
        (Ok(CompareTarget::Lease), union) => {
            let given = if let Some(TargetUnion::Lease(given)) = union { *given } else { 0 };
            key_value.lease.cmp(&given)
        }
        (Err(_), _) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Err(_) => true,
    }
}
