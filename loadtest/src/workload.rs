//! What a worker does again and again. One file for each workload; the runner, the histograms and the report are shared.
//!
//! A workload is a `Driver`: made once for each worker, asked for one operation after the other. To add one, write its
//! file, its variants here and their arms.

use std::fmt;
use std::str::FromStr;

use crate::keys::Picker;

pub mod client;
pub mod get;
pub mod lease_churn;
pub mod lease_keepalive;
pub mod lock;
pub mod mixed;
pub mod put;
pub mod txn;

pub use client::{Client, Common, Trouble};
use lock::Recipe;

/// The workloads by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Puts.
    Put,
    /// Linearizable gets of one key.
    Get,
    /// Serializable gets of one key.
    GetSerializable,
    /// Compare the mod_revision of the worker's own key and put it.
    Txn,
    /// The same, and put a second key half the key space away.
    TxnSpread,
    /// Seven linearizable gets, two puts and one transaction in ten operations.
    Mixed,
    /// Keep-alives, each worker with a lease and a stream of its own.
    LeaseKeepAlive,
    /// Grant, put with the lease, revoke.
    LeaseChurn,
    /// Lock and unlock one name, by the recipe of etcd's clients.
    Lock,
    /// The same, by the server's recipe.
    LockService,
}

impl Workload {
    const NAMES: [(Self, &'static str); 10] = [
        (Self::Put, "put"),
        (Self::Get, "get"),
        (Self::GetSerializable, "get-serializable"),
        (Self::Txn, "txn"),
        (Self::TxnSpread, "txn-spread"),
        (Self::Mixed, "mixed"),
        (Self::LeaseKeepAlive, "lease-keepalive"),
        (Self::LeaseChurn, "lease-churn"),
        (Self::Lock, "lock"),
        (Self::LockService, "lock-service"),
    ];

    /// Whether the keys must be there before it starts.
    pub fn reads(self) -> bool {
        matches!(self, Self::Get | Self::GetSerializable | Self::Mixed)
    }

    /// Whether each worker needs a key of its own.
    pub fn owns_keys(self) -> bool {
        matches!(self, Self::Txn | Self::TxnSpread | Self::Mixed)
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(_, name)| *name == text);
        let names = || Self::NAMES.map(|(_, name)| name).join(", ");
        found.map(|(workload, _)| *workload).ok_or_else(|| format!("{text:?} is not one of {}", names()))
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, name) = Self::NAMES.iter().find(|(workload, _)| workload == self).expect("every workload has a name");
        f.write_str(name)
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
}

impl Kind {
    /// All of them, in order of their number.
    pub const ALL: [Self; 7] =
        [Self::Put, Self::Get, Self::Txn, Self::TxnConflict, Self::KeepAlive, Self::LeaseCycle, Self::Lock];

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
        }
    }
}

/// One worker's stream of operations. Lives on one thread.
pub trait Driver {
    /// Done once before the clock starts.
    fn prepare(&mut self, client: &mut Client) -> impl Future<Output = Result<(), Trouble>>;

    /// Does the next operation.
    fn operation(&mut self, client: &mut Client) -> impl Future<Output = Result<Kind, Trouble>>;

    /// Looks, when the run is over, whether all is as the operations left it, and cleans up.
    fn finish(&mut self, _: &mut Client) -> impl Future<Output = Result<(), Trouble>> {
        async { Ok(()) }
    }
}

/// A driver of any workload, so that the runner has one type to run.
pub enum AnyDriver {
    /// See `put`.
    Put(put::Put),
    /// See `get`.
    Get(get::Get),
    /// See `txn`.
    Txn(txn::Txn),
    /// See `mixed`.
    Mixed(mixed::Mixed),
    /// See `lease_keepalive`.
    LeaseKeepAlive(lease_keepalive::LeaseKeepAlive),
    /// See `lease_churn`.
    LeaseChurn(lease_churn::LeaseChurn),
    /// See `lock`.
    Lock(lock::Lock),
}

impl AnyDriver {
    /// The driver of one worker.
    pub fn new(workload: Workload, picker: Picker) -> Self {
        match workload {
            Workload::Put => Self::Put(put::Put::new(picker)),
            Workload::Get => Self::Get(get::Get::new(picker, false)),
            Workload::GetSerializable => Self::Get(get::Get::new(picker, true)),
            Workload::Txn => Self::Txn(txn::Txn::new(picker)),
            Workload::TxnSpread => Self::Txn(txn::Txn::spread(picker)),
            Workload::Mixed => Self::Mixed(mixed::Mixed::new(picker)),
            Workload::LeaseKeepAlive => Self::LeaseKeepAlive(lease_keepalive::LeaseKeepAlive::new(picker)),
            Workload::LeaseChurn => Self::LeaseChurn(lease_churn::LeaseChurn::new(picker)),
            Workload::Lock => Self::Lock(lock::Lock::new(&picker, Recipe::Client)),
            Workload::LockService => Self::Lock(lock::Lock::new(&picker, Recipe::Server)),
        }
    }
}

impl Driver for AnyDriver {
    async fn prepare(&mut self, client: &mut Client) -> Result<(), Trouble> {
        match self {
            Self::Put(driver) => driver.prepare(client).await,
            Self::Get(driver) => driver.prepare(client).await,
            Self::Txn(driver) => driver.prepare(client).await,
            Self::Mixed(driver) => driver.prepare(client).await,
            Self::LeaseKeepAlive(driver) => driver.prepare(client).await,
            Self::LeaseChurn(driver) => driver.prepare(client).await,
            Self::Lock(driver) => driver.prepare(client).await,
        }
    }

    async fn operation(&mut self, client: &mut Client) -> Result<Kind, Trouble> {
        match self {
            Self::Put(driver) => driver.operation(client).await,
            Self::Get(driver) => driver.operation(client).await,
            Self::Txn(driver) => driver.operation(client).await,
            Self::Mixed(driver) => driver.operation(client).await,
            Self::LeaseKeepAlive(driver) => driver.operation(client).await,
            Self::LeaseChurn(driver) => driver.operation(client).await,
            Self::Lock(driver) => driver.operation(client).await,
        }
    }

    async fn finish(&mut self, client: &mut Client) -> Result<(), Trouble> {
        match self {
            Self::Put(driver) => driver.finish(client).await,
            Self::Get(driver) => driver.finish(client).await,
            Self::Txn(driver) => driver.finish(client).await,
            Self::Mixed(driver) => driver.finish(client).await,
            Self::LeaseKeepAlive(driver) => driver.finish(client).await,
            Self::LeaseChurn(driver) => driver.finish(client).await,
            Self::Lock(driver) => driver.finish(client).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_is_read_by_the_name_it_prints() {
        for (workload, _) in Workload::NAMES {
            assert_eq!(workload.to_string().parse(), Ok(workload));
        }
        assert!("putt".parse::<Workload>().unwrap_err().contains("get-serializable"));
    }

    #[test]
    fn kinds_are_numbered_in_their_order() {
        assert!(Kind::ALL.iter().enumerate().all(|(number, &kind)| kind as usize == number));
    }
}
