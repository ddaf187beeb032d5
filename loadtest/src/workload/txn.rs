//! Compare and put: the optimistic update that Kubernetes and lock recipes are made of.
//!
//! Each worker has a key of its own, so that the comparison holds unless an earlier operation had an unknown outcome.
//! The spread kind puts a second key far away too, which makes it a transaction over two regions where there are any.
//! When it does not hold, the other branch reads the key, and the next operation compares with what it found.

use braid_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use braid_proto::etcd::etcdserverpb::request_op::Request;
use braid_proto::etcd::etcdserverpb::response_op::Response;
use braid_proto::etcd::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse};
use tonic::Status;

use super::{Client, Driver, Kind, Trouble};
use crate::keys::Picker;

/// Updates the worker's own key.
pub struct Txn {
    picker: Picker,
    /// mod_revision of the own key as last heard; 0 is absent.
    mod_revision: i64,
    /// Whether a key far away is put too.
    spread: bool,
}

impl Txn {
    /// One worker's transactions.
    pub fn new(picker: Picker) -> Self {
        Self { picker, mod_revision: 0, spread: false }
    }

    /// One worker's transactions over two keys far apart.
    pub fn spread(picker: Picker) -> Self {
        Self { spread: true, ..Self::new(picker) }
    }

    /// The picker, for workloads that do other things too.
    pub(super) fn picker(&mut self) -> &mut Picker {
        &mut self.picker
    }
}

impl Driver for Txn {
    async fn prepare(&mut self, client: &mut Client) -> Result<(), Trouble> {
        let key = self.picker.own_key();
        let reply = client.kv.range(RangeRequest { key, ..RangeRequest::default() }).await?;
        self.mod_revision = reply.get_ref().kvs.first().map_or(0, |kv| kv.mod_revision);
        Ok(())
    }

    async fn operation(&mut self, client: &mut Client) -> Result<Kind, Trouble> {
        let key = self.picker.own_key();
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(self.mod_revision)),
            ..Compare::default()
        };
        let put = PutRequest { key: key.clone(), value: self.picker.value(), ..PutRequest::default() };
        let get = RangeRequest { key, ..RangeRequest::default() };
        let mut success = vec![RequestOp { request: Some(Request::RequestPut(put)) }];
        if self.spread {
            let put = PutRequest { key: self.picker.far_key(), value: self.picker.value(), ..PutRequest::default() };
            success.push(RequestOp { request: Some(Request::RequestPut(put)) });
        }
        let request = TxnRequest {
            compare: vec![compare],
            success,
            failure: vec![RequestOp { request: Some(Request::RequestRange(get)) }],
        };
        let reply = client.kv.txn(request).await?.into_inner();
        self.mod_revision = revision_after(&reply)?;
        Ok(if reply.succeeded { Kind::Txn } else { Kind::TxnConflict })
    }
}

/// The own key's mod_revision after the transaction.
fn revision_after(reply: &TxnResponse) -> Result<i64, Status> {
    if reply.succeeded {
        let header = reply.header.as_ref().filter(|header| header.revision > 0);
        return header.map(|header| header.revision).ok_or_else(|| Status::internal("a reply without a revision"));
    }
    match reply.responses.first().and_then(|op| op.response.as_ref()) {
        Some(Response::ResponseRange(range)) => Ok(range.kvs.first().map_or(0, |kv| kv.mod_revision)),
        _ => Err(Status::internal("a failed comparison that was not followed by the read")),
    }
}
