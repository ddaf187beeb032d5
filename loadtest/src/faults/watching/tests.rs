use braid_proto::etcd::etcdserverpb::{DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse};

use super::*;
use crate::history::Moment;

fn op(request: Request, outcome: Outcome) -> Op {
    Op { client: 0, number: 0, sent: Moment(0), ended: Moment(1), request, outcome }
}

fn put(key: &str, value: &str) -> Request {
    let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
    Request::Put(PutRequest { key, value, ..PutRequest::default() })
}

/// Two puts, a delete of two keys, and a put of unknown outcome.
fn history() -> History {
    let answered = |revision, response| Outcome::Answered { revision, response };
    let deleted = DeleteRangeResponse { deleted: 2, ..DeleteRangeResponse::default() };
    let ops = vec![
        op(put("a", "1"), answered(2, Response::Put(PutResponse::default()))),
        op(put("b", "2"), answered(3, Response::Put(PutResponse::default()))),
        op(Request::Delete(DeleteRangeRequest::default()), answered(4, Response::Delete(deleted))),
        op(put("c", "9"), Outcome::Unknown),
    ];
    History { base: 1, ops, ..History::default() }
}

fn seen(revision: i64, key: &str, value: Option<&str>) -> Seen {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    Seen { revision, key: bytes(key), value: value.map(bytes) }
}

/// What a watch must show.
fn right() -> Vec<Seen> {
    vec![seen(2, "a", Some("1")), seen(3, "b", Some("2")), seen(4, "a", None), seen(4, "b", None)]
}

fn violations(seen: Vec<Seen>) -> Vec<String> {
    let events = Events { seen, streams: 1 };
    check(&history(), &events).into_iter().map(|violation| violation.text).collect()
}

#[test]
fn a_watch_that_shows_what_happened_is_not_blamed() {
    assert_eq!(violations(right()), Vec::<String>::new());
    // The put of unknown outcome may be seen, or not.
    let mut with_unknown = right();
    with_unknown.push(seen(5, "c", Some("9")));
    assert_eq!(violations(with_unknown), Vec::<String>::new());
    assert_eq!(newest(&history()), 4);
}

#[test]
fn every_kind_of_mistake_is_found() {
    let changed = |change: fn(&mut Vec<Seen>)| {
        let mut events = right();
        change(&mut events);
        violations(events).join("; ")
    };
    for (change, want) in [
        ((|events| drop(events.remove(1))) as fn(&mut Vec<Seen>), "LOST: the put of b at revision 3"),
        (|events| events.swap(0, 1), "DISORDER: revision 2 came after 3"),
        (|events| events.insert(1, events[0].clone()), "REPEATED: a came twice at revision 2"),
        (|events| drop(events.pop()), "2 keys were deleted at revision 4, and seen were 1"),
        (|events| events.push(seen(5, "z", Some("?"))), "INVENTED: nobody put what z had"),
        (|events| events.insert(1, seen(2, "z", Some("1"))), "INVENTED: a put of z was seen at revision 2"),
    ] {
        let got = changed(change);
        assert!(got.contains(want), "{want:?} is missing in {got:?}");
    }
}
