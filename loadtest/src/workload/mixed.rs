//! Seven linearizable gets, two puts and one compare-and-put in ten operations, in random order.
//!
//! The puts may hit another worker's own key; its next transaction then meets a conflict, as it would in real use.

use super::txn::Txn;
use super::{Client, Driver, Kind, Trouble, get, put};
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
    async fn prepare(&mut self, client: &mut Client) -> Result<(), Trouble> {
        self.txn.prepare(client).await
    }

    async fn operation(&mut self, client: &mut Client) -> Result<Kind, Trouble> {
        match self.txn.picker().below(10) {
            0 => self.txn.operation(client).await,
            1 | 2 => put::put(client, self.txn.picker()).await,
            _ => get::get(client, self.txn.picker(), false).await,
        }
    }
}
