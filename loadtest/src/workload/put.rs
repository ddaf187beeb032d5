//! Puts.

use braid_proto::etcd::etcdserverpb::PutRequest;
use tonic::Status;

use super::{Driver, Kind};
use crate::client::Kv;
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
    async fn prepare(&mut self, _: &mut Kv) -> Result<(), Status> {
        Ok(())
    }

    async fn operation(&mut self, kv: &mut Kv) -> Result<Kind, Status> {
        put(kv, &mut self.picker).await
    }
}

/// One put.
pub(super) async fn put(kv: &mut Kv, picker: &mut Picker) -> Result<Kind, Status> {
    kv.put(PutRequest { key: picker.key(), value: picker.value(), ..PutRequest::default() }).await?;
    Ok(Kind::Put)
}
