//! Seven linearizable gets, two puts and one compare-and-put in ten operations, in random order.
//!
//! The puts may hit another worker's own key; its next transaction then meets a conflict, as it would in real use.

use tonic::Status;

use super::txn::Txn;
use super::{Driver, Kind, get, put};
use crate::client::Kv;
use crate::keys::Picker;

/// The mix.
pub struct Mixed {
    txn: Txn,
}

impl Mixed {
    /// One worker's operations.
    pub fn new(picker: Picker) -> Self {
        Self { txn: Txn::new(picker) }
    }
}

impl Driver for Mixed {
    async fn prepare(&mut self, kv: &mut Kv) -> Result<(), Status> {
        self.txn.prepare(kv).await
    }

    async fn operation(&mut self, kv: &mut Kv) -> Result<Kind, Status> {
        match self.txn.picker().below(10) {
            0 => self.txn.operation(kv).await,
            1 | 2 => put::put(kv, self.txn.picker()).await,
            _ => get::get(kv, self.txn.picker(), false).await,
        }
    }
}
