//! Deletes of keys that are there: a worker puts one of its own keys and deletes it with its next operation.
//!
//! Deletes of absent keys would be fast and mean little. Both kinds are reported, each by itself; a delete must find
//! exactly the one key, unless nobody knows what became of the put.

use braid_proto::etcd::etcdserverpb::{DeleteRangeRequest, PutRequest};
use bytes::Bytes;

use super::client::wrong;
use super::{Client, Driver, Kind, Trouble};
use crate::keys::Picker;

/// Keys of each worker, spread evenly over the key space.
const KEYS: u64 = 64;

/// Puts and deletes in turn.
pub struct Delete {
    picker: Picker,
    turn: u64,
    /// What the next operation deletes: the key, and whether it is surely there.
    next: Option<(Bytes, bool)>,
}

impl Delete {
    /// One worker's deletes.
    pub fn new(picker: Picker) -> Self {
        Self { picker, turn: 0, next: None }
    }

    async fn delete(&self, client: &mut Client, key: Bytes, sure: bool) -> Result<Kind, Trouble> {
        let shown = key.clone();
        let reply = client.kv.delete_range(DeleteRangeRequest { key, ..DeleteRangeRequest::default() }).await?;
        match reply.get_ref().deleted {
            1 => Ok(Kind::Delete),
            0 if !sure => Ok(Kind::Delete),
            deleted => {
                Err(wrong(format_args!("LOST: {} was put, and its delete found {deleted}", shown.escape_ascii())))
            }
        }
    }
}

impl Driver for Delete {
    async fn prepare(&mut self, _: &mut Client) -> Result<(), Trouble> {
        Ok(())
    }

    async fn operation(&mut self, client: &mut Client) -> Result<Kind, Trouble> {
        if let Some((key, sure)) = self.next.take() {
            return self.delete(client, key, sure).await;
        }
        let key = self.picker.beside(client.number, self.turn, KEYS);
        self.turn += 1;
        self.next = Some((key.clone(), false));
        client.kv.put(PutRequest { key: key.clone(), value: self.picker.value(), ..PutRequest::default() }).await?;
        self.next = Some((key, true));
        Ok(Kind::Put)
    }

    async fn finish(&mut self, client: &mut Client) -> Result<(), Trouble> {
        match self.next.take() {
            Some((key, sure)) => self.delete(client, key, sure).await.map(drop),
            None => Ok(()),
        }
    }
}
