//! Gets of one key.

use braid_proto::etcd::etcdserverpb::RangeRequest;
use tonic::Status;

use super::{Client, Driver, Kind, Trouble};
use crate::keys::Picker;

/// Reads the next key, which must be there.
pub struct Get {
    picker: Picker,
    serializable: bool,
}

impl Get {
    /// One worker's gets.
    pub fn new(picker: Picker, serializable: bool) -> Self {
        Self { picker, serializable }
    }
}

impl Driver for Get {
    async fn prepare(&mut self, _: &mut Client) -> Result<(), Trouble> {
        Ok(())
    }

    async fn operation(&mut self, client: &mut Client) -> Result<Kind, Trouble> {
        get(client, &mut self.picker, self.serializable).await
    }
}

/// One get. An absent key is an error: a server that finds nothing is fast.
pub(super) async fn get(client: &mut Client, picker: &mut Picker, serializable: bool) -> Result<Kind, Trouble> {
    let reply = client.kv.range(RangeRequest { key: picker.key(), serializable, ..RangeRequest::default() }).await?;
    match reply.get_ref().kvs.len() {
        1 => Ok(Kind::Get),
        _ => Err(Status::not_found("a key that was loaded is not there").into()),
    }
}
