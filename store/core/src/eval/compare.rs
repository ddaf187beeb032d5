//! Compares, decided on the state before the transaction.
//!
//! A key that is absent counts as version, revisions and lease 0; its value equals nothing and differs from nothing. A
//! compare over a range must hold for each of its keys, and for an absent key if there are none.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use braid_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use braid_proto::etcd::etcdserverpb::{Compare, TxnRequest};
use braid_proto::key::{KeyRange, user_key};

use super::WaitFor;
use super::run::{ON, Run, Stop};
use crate::placeholder::{Unknown, compare_unknown, unknown};
use crate::record::Record;
use crate::view::Damaged;

/// What a compare says about one key, or about all of a transaction's compares.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Holds,
    /// It hangs on the number of this in-flight write.
    HangsOn(u64),
    Fails,
}

impl Verdict {
    /// Both must hold. A definite no decides, whatever the other hangs on; otherwise the later number decides last.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Fails, _) | (_, Self::Fails) => Self::Fails,
            (Self::HangsOn(a), Self::HangsOn(b)) => Self::HangsOn(a.max(b)),
            (Self::HangsOn(seq), _) | (_, Self::HangsOn(seq)) => Self::HangsOn(seq),
            (Self::Holds, Self::Holds) => Self::Holds,
        }
    }
}

/// Whether all compares of `txn` hold.
pub fn all_hold(run: &Run<'_>, txn: &TxnRequest) -> Result<bool, Stop> {
    let mut verdict = Verdict::Holds;
    for compare in &txn.compare {
        verdict = verdict.and(judge(run, compare)?);
        if verdict == Verdict::Fails {
            return Ok(false);
        }
    }
    match verdict {
        Verdict::HangsOn(seq) => Err(Stop::Wait(WaitFor::Number(seq))),
        verdict => Ok(verdict == Verdict::Holds),
    }
}

fn judge(run: &Run<'_>, compare: &Compare) -> Result<Verdict, Damaged> {
    if compare.range_end.is_empty() {
        return Ok(match run.find_before(&user_key(&compare.key))? {
            Some(found) => judge_record(run, compare, &found.record),
            None => judge_absent(run, compare),
        });
    }
    let mut verdict = None;
    run.scan_before(&KeyRange::user(&compare.key, &compare.range_end), &mut |_, record| {
        let all = verdict.unwrap_or(Verdict::Holds).and(judge_record(run, compare, record));
        verdict = Some(all);
        if all == Verdict::Fails { ControlFlow::Break(()) } else { ON }
    })?;
    Ok(verdict.unwrap_or_else(|| judge_absent(run, compare)))
}

fn judge_absent(run: &Run<'_>, compare: &Compare) -> Verdict {
    match compare.target() {
        CompareTarget::Value if compare.target == CompareTarget::Value as i32 => Verdict::Fails,
        _ => judge_record(run, compare, &Record::default()),
    }
}

fn judge_record(run: &Run<'_>, compare: &Compare, record: &Record) -> Verdict {
    let union = compare.target_union.as_ref();
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => match union {
            Some(TargetUnion::Version(wanted)) => record.version.cmp(wanted),
            _ => record.version.cmp(&0),
        },
        Ok(CompareTarget::Value) => match union {
            Some(TargetUnion::Value(wanted)) => record.value.cmp(wanted),
            _ => record.value[..].cmp(b""),
        },
        Ok(CompareTarget::Lease) => match union {
            Some(TargetUnion::Lease(wanted)) => record.lease.cmp(wanted),
            _ => record.lease.cmp(&0),
        },
        Ok(CompareTarget::Create) => match union {
            Some(TargetUnion::CreateRevision(wanted)) => {
                return judge_revision(run, compare, record.create_revision, *wanted);
            }
            _ => return judge_revision(run, compare, record.create_revision, 0),
        },
        Ok(CompareTarget::Mod) => match union {
            Some(TargetUnion::ModRevision(wanted)) => {
                return judge_revision(run, compare, record.mod_revision, *wanted);
            }
            _ => return judge_revision(run, compare, record.mod_revision, 0),
        },
        // A target that etcd does not know compares nothing with nothing.
        Err(_) => Ordering::Equal,
    };
    verdict(compare, ordering)
}

/// Rule O5: a revision that has not arrived is greater than what was heard before it was asked for; nothing more is known.
fn judge_revision(run: &Run<'_>, compare: &Compare, revision: i64, wanted: i64) -> Verdict {
    match unknown(revision) {
        None => verdict(compare, revision.cmp(&wanted)),
        Some(Unknown::InFlight(seq)) => match compare_unknown(run.view.overlay.floor(seq), wanted) {
            Some(ordering) => verdict(compare, ordering),
            None => Verdict::HangsOn(seq),
        },
        Some(Unknown::Own) => unreachable!("the state before a transaction holds nothing of it"),
    }
}

fn verdict(compare: &Compare, ordering: Ordering) -> Verdict {
    let holds = match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        // A relation that etcd does not know always holds.
        Err(_) => true,
    };
    if holds { Verdict::Holds } else { Verdict::Fails }
}
