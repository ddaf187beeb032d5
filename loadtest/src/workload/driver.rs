//! One type for the drivers of all workloads, so that the runner has one type to run and no operation is boxed.

use super::lock::Recipe;
use super::{Client, Driver, Kind, Trouble, Workload};
use super::{delete, get, kubernetes, lease_churn, lease_keepalive, lock, mixed, put, range, txn};
use crate::histogram::Latencies;
use crate::keys::Picker;
use crate::runner::Clock;

/// Declares the enum and hands every call on to the driver inside.
macro_rules! any_driver {
    ($($name:ident: $driver:ty,)*) => {
        /// A driver of any workload.
        pub enum AnyDriver {
            $(
                #[doc = concat!("See `", stringify!($driver), "`.")]
                $name($driver),
            )*
        }

        impl Driver for AnyDriver {
            async fn prepare(&mut self, client: &mut Client) -> Result<(), Trouble> {
                match self { $(Self::$name(driver) => driver.prepare(client).await,)* }
            }

            fn begin(&mut self, clock: Clock) {
                match self { $(Self::$name(driver) => driver.begin(clock),)* }
            }

            async fn operation(&mut self, client: &mut Client) -> Result<Kind, Trouble> {
                match self { $(Self::$name(driver) => driver.operation(client).await,)* }
            }

            async fn finish(&mut self, client: &mut Client) -> Result<(), Trouble> {
                match self { $(Self::$name(driver) => driver.finish(client).await,)* }
            }

            fn aside(&mut self) -> Option<(Kind, Latencies)> {
                match self { $(Self::$name(driver) => driver.aside(),)* }
            }
        }
    };
}

any_driver! {
    Put: put::Put,
    Get: get::Get,
    Range: range::Range,
    Delete: delete::Delete,
    Txn: txn::Txn,
    Mixed: mixed::Mixed,
    LeaseKeepAlive: lease_keepalive::LeaseKeepAlive,
    LeaseChurn: lease_churn::LeaseChurn,
    Lock: lock::Lock,
    Kubernetes: kubernetes::Kubernetes,
}

impl AnyDriver {
    /// The driver of one worker.
    pub fn new(workload: Workload, picker: Picker) -> Self {
        match workload {
            Workload::Put => Self::Put(put::Put::new(picker)),
            Workload::Get => Self::Get(get::Get::new(picker, false)),
            Workload::GetSerializable => Self::Get(get::Get::new(picker, true)),
            Workload::Range(shape) => Self::Range(range::Range::new(picker, shape)),
            Workload::Delete => Self::Delete(delete::Delete::new(picker)),
            Workload::Txn => Self::Txn(txn::Txn::new(picker)),
            Workload::TxnSpread => Self::Txn(txn::Txn::spread(picker)),
            Workload::Mixed(reads) => Self::Mixed(mixed::Mixed::new(picker, reads)),
            Workload::LeaseKeepAlive => Self::LeaseKeepAlive(lease_keepalive::LeaseKeepAlive::new(picker)),
            Workload::LeaseChurn => Self::LeaseChurn(lease_churn::LeaseChurn::new(picker)),
            Workload::Lock => Self::Lock(lock::Lock::new(&picker, Recipe::Client)),
            Workload::LockService => Self::Lock(lock::Lock::new(&picker, Recipe::Server)),
            Workload::Kubernetes(settings) => Self::Kubernetes(kubernetes::Kubernetes::new(picker, settings)),
        }
    }
}
