//! The differential runner against models with planted faults, and against a real etcd.

use std::time::Duration;

use braid_loadtest::client::Address;
use braid_loadtest::cluster::{Binary, Cluster, Setup};
use braid_loadtest::differential::generate::Shape;
use braid_loadtest::differential::server::Server;
use braid_loadtest::differential::session::{Limits, Session};
use braid_loadtest::differential::target::Target;
use braid_loadtest::differential::{Agreement, Failure, PREFIX, Plan, run};
use braid_loadtest::model::{Answer, Dialect, Model, Request};
use braid_proto::etcd::etcdserverpb::response_op::Response;
use braid_proto::etcd::etcdserverpb::{RangeRequest, ResponseHeader};
use bytes::Bytes;
use tonic::Code;

const SEED: u64 = 20_261;

fn plan(requests: u64) -> Plan {
    let shape = Shape {
        length: 40,
        dialect: Dialect::Etcd,
        unknown_sorts: false,
        leases: true,
        compactions: true,
        physical: true,
        serializable: true,
    };
    Plan { seed: SEED, first: 0, requests, shape }
}

fn limits(prefix: Bytes) -> Limits {
    Limits { prefix, compactions: true }
}

/// A server that has everything right but for one thing.
struct Planted {
    model: Model,
    fault: fn(&mut Model, &Request) -> Answer,
}

impl Target for Planted {
    async fn answer(&mut self, request: &Request) -> Answer {
        (self.fault)(&mut self.model, request)
    }

    async fn grant(&mut self, lease: i64) -> anyhow::Result<bool> {
        self.model.grant(lease);
        Ok(true)
    }
}

fn right(model: &mut Model, request: &Request) -> Answer {
    Answer::of(model.answer(request))
}

fn wrong_prev_kv(model: &mut Model, request: &Request) -> Answer {
    let mut answer = right(model, request);
    if let Answer::Put(put) = &mut answer
        && let Some(prev_kv) = &mut put.prev_kv
    {
        prev_kv.version += 1;
    }
    answer
}

fn delete_that_takes_a_revision_for_nothing(model: &mut Model, request: &Request) -> Answer {
    let mut answer = right(model, request);
    if let Answer::DeleteRange(delete) = &mut answer
        && delete.deleted == 0
        && let Some(header) = &mut delete.header
    {
        header.revision += 1;
    }
    answer
}

fn lost_write(model: &mut Model, request: &Request) -> Answer {
    match request {
        Request::Put(put) if put.value == "xy" => right(&mut model.clone(), request),
        _ => right(model, request),
    }
}

fn compacted_revision_that_cannot_be_read(model: &mut Model, request: &Request) -> Answer {
    match request {
        Request::Range(range) if range.revision == model.compacted() && !range.key.is_empty() => {
            let message = "etcdserver: mvcc: required revision has been compacted".to_owned();
            Answer::Refused { code: Code::OutOfRange, message }
        }
        _ => right(model, request),
    }
}

fn filled_header_of_a_nested_transaction(model: &mut Model, request: &Request) -> Answer {
    let mut answer = right(model, request);
    if let Answer::Txn(txn) = &mut answer {
        for response in &mut txn.responses {
            if let Some(Response::ResponseTxn(nested)) = &mut response.response {
                nested.header = txn.header.or(Some(ResponseHeader::default()));
            }
        }
    }
    answer
}

fn limit_that_forgets_more(model: &mut Model, request: &Request) -> Answer {
    let mut answer = right(model, request);
    if let Answer::Range(range) = &mut answer {
        range.more = false;
    }
    answer
}

fn other_error(model: &mut Model, request: &Request) -> Answer {
    match right(model, request) {
        Answer::Refused { code, message } => Answer::Refused { code, message: message.replace("not found", "missing") },
        answer => answer,
    }
}

fn stale_read(model: &mut Model, request: &Request) -> Answer {
    match request {
        Request::Range(RangeRequest { revision: 0, key, .. }) if model.get(key).is_some_and(|kv| kv.version > 1) => {
            let before = (model.revision() - 1).max(model.compacted()).max(1);
            let mut answer = right(&mut model.as_of(before), request);
            if let Answer::Range(range) = &mut answer {
                range.header = Some(ResponseHeader { revision: model.revision(), ..ResponseHeader::default() });
            }
            answer
        }
        _ => right(model, request),
    }
}

async fn find(fault: fn(&mut Model, &Request) -> Answer, prefix: Bytes) -> Result<Agreement, Box<Failure>> {
    let planted = Planted { model: Model::new(Dialect::Etcd), fault };
    let session = Session::open("planted", planted, Dialect::Etcd, limits(prefix)).await.unwrap();
    run(&plan(4_000), &mut [session], |_| ()).await.unwrap()
}

#[tokio::test]
async fn a_server_without_faults_is_not_blamed() {
    for prefix in [Bytes::new(), PREFIX] {
        let agreement = find(right, prefix).await.unwrap_or_else(|failure| panic!("{failure}"));
        assert!(agreement.requests >= 4_000 && agreement.programs >= 50, "{agreement:?}");
    }
}

#[tokio::test]
async fn planted_faults_are_found_and_shrunk() {
    type Fault = fn(&mut Model, &Request) -> Answer;
    let faults: [(&str, Fault, usize, &str); 8] = [
        ("prev_kv", wrong_prev_kv, 2, "prev_kv"),
        ("empty delete", delete_that_takes_a_revision_for_nothing, 1, "header.revision"),
        ("lost write", lost_write, 2, "header.revision"),
        ("compacted", compacted_revision_that_cannot_be_read, 2, "answer"),
        ("nested header", filled_header_of_a_nested_transaction, 1, "responses[0].header.revision"),
        ("more", limit_that_forgets_more, 3, "more"),
        ("error text", other_error, 1, "message"),
        ("stale read", stale_read, 3, "kvs[0]"),
    ];
    for (name, fault, requests_max, field) in faults {
        let failure = find(fault, Bytes::new()).await.expect_err(name);
        let (smallest, difference) = failure.smallest.as_ref().expect(name);
        assert!(smallest.requests.len() <= requests_max, "{name}: {failure}");
        assert!(difference.field.ends_with(field), "{name}: {failure}");
        assert!(failure.to_string().contains(&format!("seed {SEED}")), "{name}: {failure}");

        let again = find(fault, Bytes::new()).await.expect_err(name);
        assert_eq!(again.to_string(), failure.to_string(), "{name}: the same seed fails in the same way");
    }
}

#[tokio::test]
async fn a_store_that_holds_keys_is_left_alone() {
    let mut model = Model::new(Dialect::Etcd);
    let put = braid_proto::etcd::etcdserverpb::PutRequest { key: "mine".into(), ..Default::default() };
    model.answer(&Request::Put(put)).unwrap();
    let refused = Session::open("full", model.clone(), Dialect::Etcd, limits(Bytes::new())).await.err();
    assert!(refused.unwrap().to_string().contains("holds 1 keys"));
    let session = Session::open("full", model, Dialect::Etcd, limits(PREFIX)).await.unwrap();
    let mut sessions = [session];
    run(&plan(500), &mut sessions, |_| ()).await.unwrap().unwrap_or_else(|failure| panic!("{failure}"));
    assert!(sessions[0].target().get(b"mine").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_answers_as_the_model_does() {
    let binary = match Binary::find_etcd() {
        Ok(binary) => binary,
        Err(error) => {
            eprintln!("SKIPPED, the model is not compared with etcd: {error}");
            return;
        }
    };
    let folder = tempfile::tempdir().unwrap();
    // Nothing is killed here, so nothing needs to be on disk.
    let setup = Setup { members: 1, flags: vec!["--unsafe-no-fsync".into()], ..Setup::default() };
    let mut cluster = Cluster::start(&binary, &setup, folder.path()).unwrap();
    cluster.ready(Duration::from_secs(60)).await.unwrap();
    let endpoints: Vec<Address> = cluster.endpoints();
    for prefix in [Bytes::new(), PREFIX] {
        let server = Server::connect(&endpoints).await.unwrap();
        let session = Session::open("etcd", server, Dialect::Etcd, limits(prefix)).await.unwrap();
        assert!(session.has_leases());
        let agreement = run(&plan(3_000), &mut [session], |_| ()).await.unwrap();
        let agreement = agreement.unwrap_or_else(|failure| panic!("{failure}"));
        println!("seed {SEED}: {} requests agree", agreement.requests);
    }
}
