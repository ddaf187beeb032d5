//! Keep-alives, each client with a lease and a stream of its own.
//!
//! Each lease has a key. At the end lease and key must still be there, and no stream may hold more answers than there
//! were requests; then the lease is revoked, and the key must be gone.

use braid_proto::etcd::etcdserverpb::{LeaseKeepAliveResponse, LeaseTimeToLiveRequest, PutRequest, RangeRequest};
use bytes::Bytes;
use tonic::Status;

use super::client::wrong;
use super::{Client, Driver, Kind, Trouble};
use crate::keys::Picker;
use crate::lease::keep_alive::KeepAlives;

/// Keeps the worker's lease alive.
pub struct LeaseKeepAlive {
    picker: Picker,
    lease: i64,
    key: Bytes,
    stream: Option<KeepAlives>,
}

impl LeaseKeepAlive {
    /// One worker's keep-alives.
    pub fn new(picker: Picker) -> Self {
        Self { picker, lease: 0, key: Bytes::new(), stream: None }
    }

    /// Sends one request and waits for its answer. An error ends the stream; the next request opens another one.
    async fn ask(&mut self, client: &mut Client) -> Result<LeaseKeepAliveResponse, Status> {
        let (stream, answer) = match self.stream.take() {
            Some(mut stream) => {
                let answer = stream.ask(self.lease).await?;
                (stream, answer)
            }
            None => KeepAlives::open(&mut client.leases, self.lease).await?,
        };
        self.stream = Some(stream);
        Ok(answer)
    }
}

impl Driver for LeaseKeepAlive {
    async fn prepare(&mut self, client: &mut Client) -> Result<(), Trouble> {
        self.lease = client.grant().await?;
        self.key = self.picker.beside(client.number, 0, 1);
        let put = PutRequest { key: self.key.clone(), lease: self.lease, ..PutRequest::default() };
        client.kv.put(put).await?;
        self.operation(client).await.map(drop)
    }

    async fn operation(&mut self, client: &mut Client) -> Result<Kind, Trouble> {
        let answer = self.ask(client).await?;
        match (answer.id, answer.ttl) {
            (id, _) if id != self.lease => {
                Err(wrong(format_args!("an answer about lease {id:x} to a question about {:x}", self.lease)))
            }
            (id, ttl) if ttl <= 0 => Err(wrong(format_args!("LOST LEASE: {id:x} was told to be gone (TTL {ttl})"))),
            (id, ttl) if ttl != client.common.lease_ttl => {
                Err(wrong(format_args!("lease {id:x} was kept alive for {ttl} s instead of all of its TTL")))
            }
            _ => Ok(Kind::KeepAlive),
        }
    }

    async fn finish(&mut self, client: &mut Client) -> Result<(), Trouble> {
        if let Some(stream) = self.stream.take()
            && let Some(answer) = stream.end().await?
        {
            return Err(wrong(format_args!("more answers than keep-alives: {answer:?}")));
        }
        let (id, ttl) = (self.lease, client.common.lease_ttl);
        let request = LeaseTimeToLiveRequest { id, keys: true };
        let left = client.leases.lease_time_to_live(request).await?.into_inner();
        if left.granted_ttl != ttl || left.ttl <= 0 || left.keys != [self.key.clone()] {
            return Err(wrong(format_args!("LOST LEASE: {id:x}, kept alive, of {ttl} s, with a key, is now {left:?}")));
        }
        client.revoke(id).await?;
        let get = RangeRequest { key: self.key.clone(), ..RangeRequest::default() };
        match client.kv.range(get).await?.get_ref().kvs.is_empty() {
            true => Ok(()),
            false => Err(wrong(format_args!("OUTLIVED: the key of lease {id:x} is there after it was revoked"))),
        }
    }
}
