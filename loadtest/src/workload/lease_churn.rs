//! Leases that come and go: grant, put with the lease, revoke.
//!
//! Every put asks for what it overwrites: nothing may be left there from the lease before.

use braid_proto::etcd::etcdserverpb::{PutRequest, RangeRequest};
use bytes::Bytes;

use super::client::{lost, wrong};
use super::{Client, Driver, Kind, Trouble};
use crate::keys::Picker;

/// Keys of each worker, spread evenly over the key space.
const KEYS: u64 = 16;

/// Runs cycles of grant, put and revoke.
pub struct LeaseChurn {
    picker: Picker,
    cycle: u64,
    /// By key: whether a cycle failed there in the middle, so that nobody knows what the next one finds.
    unsure: [bool; KEYS as usize],
}

impl LeaseChurn {
    /// One worker's cycles.
    pub fn new(picker: Picker) -> Self {
        Self { picker, cycle: 0, unsure: [false; KEYS as usize] }
    }

    fn key(&self, client: &Client, turn: u64) -> Bytes {
        self.picker.beside(client.number, turn, KEYS)
    }
}

impl Driver for LeaseChurn {
    async fn prepare(&mut self, _: &mut Client) -> Result<(), Trouble> {
        Ok(())
    }

    async fn operation(&mut self, client: &mut Client) -> Result<Kind, Trouble> {
        let turn = self.cycle % KEYS;
        self.cycle += 1;
        let unsure = std::mem::replace(&mut self.unsure[turn as usize], true);
        let lease = client.grant().await?;
        let key = self.key(client, turn);
        let put = PutRequest { key, value: self.picker.value(), lease, prev_kv: true, ..PutRequest::default() };
        let put = client.kv.put(put).await;
        let put = put.map_err(|status| lost(lease, "when a key was put with it, just granted", status))?;
        if let Some(old) = put.get_ref().prev_kv.as_ref().filter(|_| !unsure) {
            let (key, lease) = (old.key.escape_ascii(), old.lease);
            return Err(wrong(format_args!("OUTLIVED: {key} was there after its lease {lease:x} was revoked")));
        }
        client.revoke(lease).await?;
        self.unsure[turn as usize] = false;
        Ok(Kind::LeaseCycle)
    }

    async fn finish(&mut self, client: &mut Client) -> Result<(), Trouble> {
        for turn in (0..KEYS).filter(|&turn| !self.unsure[turn as usize]) {
            let key = self.key(client, turn);
            let reply = client.kv.range(RangeRequest { key, ..RangeRequest::default() }).await?;
            if let Some(left) = reply.get_ref().kvs.first() {
                return Err(wrong(format_args!("OUTLIVED: {left:?} is there after its lease was revoked")));
            }
        }
        Ok(())
    }
}
