//! What a worker does again and again. One file for each workload; the runner, the histograms and the report are shared.
//!
//! A workload is a `Driver`: made once for each worker, asked for one operation after the other. To add one, write its
//! file, its name here and its line in `driver`.

use std::fmt;
use std::str::FromStr;

use crate::histogram::Latencies;
use crate::runner::Clock;

pub mod client;
pub mod delete;
pub mod driver;
pub mod get;
pub mod kubernetes;
pub mod lease_churn;
pub mod lease_keepalive;
pub mod lock;
pub mod mixed;
pub mod put;
pub mod range;
pub mod txn;

pub use client::{Client, Common, Trouble};
pub use driver::AnyDriver;

/// The workloads. Each is read by the name it prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Puts.
    Put,
    /// Linearizable gets of one key.
    Get,
    /// Serializable gets of one key.
    GetSerializable,
    /// Ranges of many keys.
    Range(range::Shape),
    /// Deletes of one key, each put again before.
    Delete,
    /// Compare the mod_revision of the worker's own key and put it.
    Txn,
    /// The same, and put a second key half the key space away.
    TxnSpread,
    /// Linearizable gets, so many in a hundred operations; of the others two in three are puts, one is a transaction.
    Mixed(u8),
    /// Keep-alives, each worker with a lease and a stream of its own.
    LeaseKeepAlive,
    /// Grant, put with the lease, revoke.
    LeaseChurn,
    /// Lock and unlock one name, by the recipe of etcd's clients.
    Lock,
    /// The same, by the server's recipe.
    LockService,
    /// What the API servers of a Kubernetes cluster do.
    Kubernetes(kubernetes::Settings),
}

/// Gets in a hundred operations of `mixed` without a number.
const MIXED_READS: u8 = 70;

impl Workload {
    /// Those whose name has no number.
    const NAMES: [(Self, &'static str); 11] = [
        (Self::Put, "put"),
        (Self::Get, "get"),
        (Self::GetSerializable, "get-serializable"),
        (Self::Delete, "delete"),
        (Self::Txn, "txn"),
        (Self::TxnSpread, "txn-spread"),
        (Self::Mixed(MIXED_READS), "mixed"),
        (Self::LeaseKeepAlive, "lease-keepalive"),
        (Self::LeaseChurn, "lease-churn"),
        (Self::Lock, "lock"),
        (Self::LockService, "lock-service"),
    ];

    /// Every name, for help and errors; capital letters stand for numbers.
    pub fn names() -> Vec<&'static str> {
        let plain = Self::NAMES.iter().map(|(_, name)| *name);
        plain.chain(["mixed-READS", kubernetes::NAME]).chain(range::Shape::FORMS).collect()
    }

    /// Whether the keys must be there before it starts.
    pub fn reads(self) -> bool {
        matches!(self, Self::Get | Self::GetSerializable | Self::Range(_) | Self::Mixed(_) | Self::Kubernetes(_))
    }

    /// Whether each worker needs a key of its own.
    pub fn owns_keys(self) -> bool {
        matches!(self, Self::Txn | Self::TxnSpread | Self::Mixed(_))
    }

    /// Keys that one operation spans.
    pub fn span(self) -> u64 {
        match self {
            Self::Range(shape) => shape.span().unwrap_or(1),
            _ => 1,
        }
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((workload, _)) = Self::NAMES.iter().find(|(_, name)| *name == text) {
            return Ok(*workload);
        }
        if text == kubernetes::NAME {
            return Ok(Self::Kubernetes(kubernetes::Settings::default()));
        }
        if let Some(reads) = text.strip_prefix("mixed-") {
            let reads = reads.parse().ok().filter(|reads| *reads <= 100);
            let wrong = || format!("{text:?}: mixed-90 has 90 gets in 100 operations; 0 to 100 can be given");
            return reads.map(Self::Mixed).ok_or_else(wrong);
        }
        if let Some(shape) = range::Shape::parse(text) {
            return shape.map(Self::Range);
        }
        Err(format!("{text:?} is not one of {}", Self::names().join(", ")))
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(shape) => shape.fmt(f),
            Self::Kubernetes(_) => f.write_str(kubernetes::NAME),
            Self::Mixed(reads) if *reads != MIXED_READS => write!(f, "mixed-{reads}"),
            _ => {
                let found = Self::NAMES.iter().find(|(workload, _)| workload == self);
                f.write_str(found.expect("every other workload has a name").1)
            }
        }
    }
}

/// The kinds of operation that reports keep apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Kind {
    /// A put.
    Put,
    /// A get.
    Get,
    /// A transaction whose comparison held.
    Txn,
    /// A transaction whose comparison did not hold.
    TxnConflict,
    /// A keep-alive.
    KeepAlive,
    /// A grant, a put with the lease and a revoke.
    LeaseCycle,
    /// A lock that was waited for, taken and given back.
    Lock,
    /// A delete.
    Delete,
    /// A range of many keys, all that it spans or the first ones.
    Range,
    /// A range that only counts.
    Count,
    /// One page of a list.
    Page,
    /// A page that was asked for at a revision that had been compacted: the list starts again.
    PageExpired,
    /// An optimistic update: a transaction that compares the mod_revision.
    Update,
    /// One that met another writer's update.
    UpdateConflict,
    /// An update of a node's lease object.
    Heartbeat,
    /// An object that goes with an etcd lease.
    EventCreate,
    /// A compaction.
    Compaction,
    /// News of a put at a watch, from the put's start.
    WatchEvent,
}

impl Kind {
    /// All of them, in order of their number.
    pub const ALL: [Self; 18] = [
        Self::Put,
        Self::Get,
        Self::Txn,
        Self::TxnConflict,
        Self::KeepAlive,
        Self::LeaseCycle,
        Self::Lock,
        Self::Delete,
        Self::Range,
        Self::Count,
        Self::Page,
        Self::PageExpired,
        Self::Update,
        Self::UpdateConflict,
        Self::Heartbeat,
        Self::EventCreate,
        Self::Compaction,
        Self::WatchEvent,
    ];

    /// Its name in a report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Txn => "txn",
            Self::TxnConflict => "txn-conflict",
            Self::KeepAlive => "keep-alive",
            Self::LeaseCycle => "lease-cycle",
            Self::Lock => "lock",
            Self::Delete => "delete",
            Self::Range => "range",
            Self::Count => "count",
            Self::Page => "page",
            Self::PageExpired => "page-expired",
            Self::Update => "update",
            Self::UpdateConflict => "conflict",
            Self::Heartbeat => "heartbeat",
            Self::EventCreate => "event-create",
            Self::Compaction => "compaction",
            Self::WatchEvent => "watch-event",
        }
    }

    /// Whether it is an operation of a worker; otherwise it is something that came by itself.
    pub fn is_operation(self) -> bool {
        self != Self::WatchEvent
    }
}

/// One worker's stream of operations. Lives on one thread.
pub trait Driver {
    /// Done once before the clock starts.
    fn prepare(&mut self, client: &mut Client) -> impl Future<Output = Result<(), Trouble>>;

    /// The clock starts.
    fn begin(&mut self, _: Clock) {}

    /// Does the next operation.
    fn operation(&mut self, client: &mut Client) -> impl Future<Output = Result<Kind, Trouble>>;

    /// Looks, when the run is over, whether all is as the operations left it, and cleans up.
    fn finish(&mut self, _: &mut Client) -> impl Future<Output = Result<(), Trouble>> {
        async { Ok(()) }
    }

    /// Latencies of what came by itself in the window, asked for once after `finish`.
    fn aside(&mut self) -> Option<(Kind, Latencies)> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_is_read_by_the_name_it_prints() {
        let numbered = ["mixed-90", "kubernetes", "range-1000", "page-500-count", "count-only"];
        for name in Workload::NAMES.iter().map(|(_, name)| *name).chain(numbered) {
            assert_eq!(name.parse::<Workload>().unwrap().to_string(), name);
        }
        assert_eq!("mixed-70".parse(), "mixed".parse::<Workload>());
        for (bad, want) in [("putt", "get-serializable"), ("mixed-101", "0 to 100"), ("range-0", "at least 1")] {
            assert!(bad.parse::<Workload>().unwrap_err().contains(want), "{bad}");
        }
    }

    #[test]
    fn kinds_are_numbered_in_their_order() {
        assert!(Kind::ALL.iter().enumerate().all(|(number, &kind)| kind as usize == number));
    }
}
