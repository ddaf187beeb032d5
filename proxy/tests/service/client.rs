//! Short ways to say what tests ask, over a real gRPC client.

use std::time::Duration;

use braid_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use braid_proto::etcd::etcdserverpb::kv_client::KvClient;
use braid_proto::etcd::etcdserverpb::*;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// An etcd client.
#[derive(Clone)]
pub struct Client {
    pub kv: KvClient<Channel>,
    pub timeout: Duration,
    pub require_leader: bool,
}

impl Client {
    pub fn new(channel: Channel) -> Self {
        let kv = KvClient::new(channel).max_decoding_message_size(usize::MAX);
        Self { kv, timeout: Duration::from_secs(20), require_leader: false }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        if self.require_leader {
            request.metadata_mut().insert("hasleader", "true".parse().expect("ASCII"));
        }
        request
    }

    pub async fn put(&mut self, key: &str, value: &str) -> Result<PutResponse, Status> {
        let request = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
        self.put_as(request).await
    }

    pub async fn put_as(&mut self, request: PutRequest) -> Result<PutResponse, Status> {
        let request = self.request(request);
        Ok(self.kv.put(request).await?.into_inner())
    }

    pub async fn get(&mut self, key: &str) -> Result<RangeResponse, Status> {
        self.range(range(key, "")).await
    }

    pub async fn range(&mut self, request: RangeRequest) -> Result<RangeResponse, Status> {
        let request = self.request(request);
        Ok(self.kv.range(request).await?.into_inner())
    }

    pub async fn delete(&mut self, key: &str, range_end: &str) -> Result<DeleteRangeResponse, Status> {
        let request =
            DeleteRangeRequest { key: key.to_owned().into(), range_end: range_end.to_owned().into(), prev_kv: true };
        let request = self.request(request);
        Ok(self.kv.delete_range(request).await?.into_inner())
    }

    pub async fn txn(&mut self, request: TxnRequest) -> Result<TxnResponse, Status> {
        let request = self.request(request);
        Ok(self.kv.txn(request).await?.into_inner())
    }

    /// The messages of a RangeStream.
    pub async fn stream(&mut self, request: RangeRequest) -> Result<Vec<RangeResponse>, Status> {
        let request = self.request(request);
        let mut stream = self.kv.range_stream(request).await?.into_inner();
        let mut messages = Vec::new();
        while let Some(message) = stream.message().await? {
            messages.push(message.range_response.expect("every message has an answer"));
        }
        Ok(messages)
    }
}

pub fn range(key: &str, range_end: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), range_end: range_end.to_owned().into(), ..Default::default() }
}

pub fn put_op(key: &str, value: &str) -> RequestOp {
    let put = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
    RequestOp { request: Some(request_op::Request::RequestPut(put)) }
}

pub fn range_op(request: RangeRequest) -> RequestOp {
    RequestOp { request: Some(request_op::Request::RequestRange(request)) }
}

pub fn mod_is(key: &str, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Mod as i32,
        key: key.to_owned().into(),
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Default::default()
    }
}

pub fn keys(answer: &RangeResponse) -> String {
    let keys = answer.kvs.iter().map(|kv| String::from_utf8(kv.key.to_vec()).expect("test keys are text"));
    keys.collect::<Vec<_>>().join(" ")
}

/// Asserts the code and the exact text of an error.
#[track_caller]
pub fn fails<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, message: &str) {
    let status = result.expect_err("must fail");
    assert_eq!((status.code(), status.message()), (code, message));
}

/// Asserts one of etcd's errors.
#[track_caller]
pub fn fails_as<T: std::fmt::Debug>(result: Result<T, Status>, expect: braid_proto::error::EtcdStatus) {
    fails(result, expect.code, expect.message);
}

pub fn revision(header: &Option<ResponseHeader>) -> i64 {
    header.as_ref().expect("a header").revision
}
