//! Puts.

use braid_proto::etcd::etcdserverpb::PutRequest;

use super::{Client, Driver, Kind, Trouble};
use crate::keys::Picker;

/// Puts a random value at the next key.
pub struct Put {
    picker: Picker,
}

impl Put {
    /// One worker's puts.
    pub fn new(picker: Picker) -> Self {
        Self { picker }
    }
}

impl Driver for Put {
    async fn prepare(&mut self, _: &mut Client) -> Result<(), Trouble> {
        Ok(())
    }

    async fn operation(&mut self, client: &mut Client) -> Result<Kind, Trouble> {
        put(client, &mut self.picker).await
    }
}

/// One put.
pub(super) async fn put(client: &mut Client, picker: &mut Picker) -> Result<Kind, Trouble> {
    client.kv.put(PutRequest { key: picker.key(), value: picker.value(), ..PutRequest::default() }).await?;
    Ok(Kind::Put)
}
