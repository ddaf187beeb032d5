//! Linearizable gets, puts and compare-and-puts in random order: as many gets as are asked for, and of the rest two puts
//! for one transaction.
//!
//! The puts may hit another worker's own key; its next transaction then meets a conflict, as it would in real use.

use super::txn::Txn;
use super::{Client, Driver, Kind, Trouble, get, put};
use crate::keys::Picker;

/// The mix.
pub struct Mixed {
    txn: Txn,
    /// Gets in a hundred operations.
    reads: u64,
}

impl Mixed {
    /// One worker's operations.
    pub fn new(picker: Picker, reads: u8) -> Self {
        Self { txn: Txn::new(picker), reads: reads.into() }
    }
}

impl Driver for Mixed {
    async fn prepare(&mut self, client: &mut Client) -> Result<(), Trouble> {
        self.txn.prepare(client).await
    }

    async fn operation(&mut self, client: &mut Client) -> Result<Kind, Trouble> {
        if self.txn.picker().below(100) < self.reads {
            return get::get(client, self.txn.picker(), false).await;
        }
        match self.txn.picker().below(3) {
            0 => self.txn.operation(client).await,
            _ => put::put(client, self.txn.picker()).await,
        }
    }
}
