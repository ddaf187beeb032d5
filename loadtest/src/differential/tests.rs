//! Programs, their comparison and their shrinking, without any server.

use braid_proto::etcd::etcdserverpb::{PutRequest, RangeRequest, RangeResponse, ResponseHeader};
use braid_proto::etcd::mvccpb::KeyValue;
use bytes::Bytes;

use super::compare::compare;
use super::generate::{self, Shape};
use super::program::{ORIGIN, Place, Program};
use super::shrink::shrink;
use crate::model::{Answer, Dialect, Model, Request};

fn shape() -> Shape {
    Shape {
        length: 40,
        dialect: Dialect::Etcd,
        unknown_sorts: true,
        leases: true,
        compactions: true,
        physical: true,
        serializable: true,
    }
}

#[test]
fn a_seed_names_its_programs() {
    assert_eq!(generate::program(1, 2, &shape()), generate::program(1, 2, &shape()));
    assert_ne!(generate::program(1, 2, &shape()), generate::program(1, 3, &shape()));
    assert_ne!(generate::program(1, 2, &shape()), generate::program(2, 2, &shape()));
}

/// What programs are made for happens often enough: counted in what the model answers.
#[test]
fn programs_reach_what_they_shall_test() {
    use std::collections::BTreeMap;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut total = 0;
    for number in 0..300 {
        let mut model = Model::starting_at(Dialect::Etcd, ORIGIN, -1);
        generate::LEASES.into_iter().for_each(|lease| model.grant(lease));
        for request in generate::program(5, number, &shape()).requests {
            total += 1;
            let what = match Answer::of(model.answer(&request)) {
                Answer::Refused { message, .. } => message,
                Answer::Range(range) if range.more => "range cut".into(),
                Answer::Range(range) if !range.kvs.is_empty() => "range with keys".into(),
                Answer::Put(put) if put.prev_kv.is_some() => "put over something".into(),
                Answer::DeleteRange(delete) if delete.deleted > 1 => "delete of several".into(),
                Answer::Txn(txn) if txn.succeeded => "success".into(),
                Answer::Txn(_) => "failure".into(),
                Answer::Compact(_) => "compacted".into(),
                _ => continue,
            };
            *seen.entry(what).or_default() += 1;
        }
    }
    let share = |what: &str| seen.get(what).copied().unwrap_or(0) as f64 / f64::from(total);
    for (what, least) in [
        ("range cut", 0.01),
        ("range with keys", 0.08),
        ("put over something", 0.03),
        ("delete of several", 0.02),
        ("success", 0.06),
        ("failure", 0.06),
        ("compacted", 0.005),
        ("etcdserver: key is not provided", 0.005),
        ("etcdserver: key not found", 0.002),
        ("etcdserver: value is provided", 0.001),
        ("etcdserver: lease is provided", 0.000_1),
        ("etcdserver: too many operations in txn request", 0.000_3),
        ("etcdserver: duplicate key given in txn request", 0.01),
        ("etcdserver: invalid sort option", 0.002),
        ("etcdserver: requested lease not found", 0.005),
        ("etcdserver: mvcc: required revision has been compacted", 0.002),
        ("etcdserver: mvcc: required revision is a future revision", 0.01),
    ] {
        assert!(share(what) >= least, "{what}: {} of {total}; all: {seen:#?}", share(what));
    }
}

#[test]
fn a_program_can_run_anywhere() {
    let place = Place { base: 50, prefix: Bytes::from_static(b"p/"), filters_max: i64::MAX };
    let request = RangeRequest {
        key: "a".into(),
        range_end: "\0".into(),
        revision: ORIGIN + 3,
        min_mod_revision: ORIGIN - 1,
        limit: 2,
        ..RangeRequest::default()
    };
    let Request::Range(moved) = place.put(&Request::Range(request.clone())) else { panic!("another kind") };
    assert_eq!((&moved.key[..], &moved.range_end[..]), (&b"p/a"[..], &b"p0"[..]));
    assert_eq!((moved.revision, moved.min_mod_revision, moved.limit), (53, 49, 2));
    let whole = Place { base: 50, prefix: Bytes::new(), filters_max: i64::MAX };
    let Request::Range(moved) = whole.put(&Request::Range(request)) else { panic!("another kind") };
    assert_eq!((&moved.key[..], &moved.range_end[..]), (&b"a"[..], &b"\0"[..]));
    assert_eq!(place.key(&Bytes::new()), Bytes::new());
}

/// Four keys of which two tie at each cut.
fn tied() -> (Model, Request) {
    let mut model = Model::new(Dialect::Etcd);
    for (key, value) in [("a", "1"), ("b", "2"), ("c", "2"), ("d", "3")] {
        let put = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
        model.answer(&Request::Put(put)).unwrap();
    }
    let range = RangeRequest {
        key: "a".into(),
        range_end: "\0".into(),
        limit: 2,
        sort_order: 1,
        sort_target: 4,
        ..RangeRequest::default()
    };
    (model, Request::Range(range))
}

#[test]
fn ties_may_stand_in_any_order_and_be_cut_anywhere() {
    let (mut model, request) = tied();
    let expected = model.answer(&request);
    let get = |key: &str| model.get(key.as_bytes()).unwrap();
    let answer = |kvs: Vec<KeyValue>| {
        let header = Some(ResponseHeader { revision: 5, ..ResponseHeader::default() });
        Answer::Range(RangeResponse { header, kvs, more: true, count: 4 })
    };
    assert_eq!(compare(&expected, &answer(vec![get("a"), get("b")])), Ok(()));
    assert_eq!(compare(&expected, &answer(vec![get("a"), get("c")])), Ok(()));
    for wrong in [vec!["a"], vec!["b", "a"], vec!["a", "d"], vec!["a", "a"], vec!["b", "c"]] {
        let kvs = wrong.iter().map(|key| get(key)).collect();
        assert!(compare(&expected, &answer(kvs)).is_err(), "{wrong:?}");
    }
    let stale = KeyValue { version: 9, ..get("b") };
    let difference = compare(&expected, &answer(vec![get("a"), stale])).unwrap_err();
    assert_eq!(difference.field, "kvs[1]");
}

#[test]
fn every_field_counts() {
    let (mut model, request) = tied();
    let expected = model.answer(&request);
    let Answer::Range(right) = Answer::of(expected.clone()) else { panic!("another kind") };
    let header = |revision| Some(ResponseHeader { revision, cluster_id: 9, member_id: 8, raft_term: 7 });
    let differs = |answer: RangeResponse| compare(&expected, &Answer::Range(answer)).err().map(|found| found.field);
    assert_eq!(differs(RangeResponse { header: header(5), ..right.clone() }), None, "ids are not compared");
    assert_eq!(differs(RangeResponse { header: header(4), ..right.clone() }), Some("header.revision".into()));
    assert_eq!(differs(RangeResponse { header: None, ..right.clone() }), Some("header.revision".into()));
    assert_eq!(differs(RangeResponse { more: false, ..right.clone() }), Some("more".into()));
    assert_eq!(differs(RangeResponse { count: 3, ..right.clone() }), Some("count".into()));
    let refused = Answer::Refused { code: tonic::Code::Unavailable, message: "gone".into() };
    assert_eq!(compare(&expected, &refused).unwrap_err().actual, "Unavailable \"gone\"");
}

#[tokio::test]
async fn a_shrunk_program_holds_only_what_fails() {
    let program = generate::program(3, 0, &Shape { length: 200, ..shape() });
    let is_wanted = |request: &Request| matches!(request, Request::DeleteRange(delete) if delete.prev_kv);
    let fails = async |candidate: &Program| {
        let puts = candidate.requests.iter().filter(|request| matches!(request, Request::Put(_))).count();
        Ok(puts >= 1 && candidate.requests.iter().any(is_wanted))
    };
    let (smallest, runs) = shrink(program, fails).await.unwrap();
    let text = smallest.to_string();
    assert_eq!(smallest.requests.len(), 2, "{text}");
    assert!(runs < 300, "{runs} runs");
    assert!(smallest.requests.iter().any(is_wanted), "{text}");
    let put = smallest.requests.iter().find_map(|request| match request {
        Request::Put(put) => Some(put),
        _ => None,
    });
    let put = put.expect("one put");
    let plain = PutRequest { key: put.key.clone(), value: put.value.clone(), ..PutRequest::default() };
    assert_eq!(*put, plain, "{text}");
}
