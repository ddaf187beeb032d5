//! Requests without an answer: what they may have done, and what not.

use braid_loadtest::history::Moment;
use braid_loadtest::linear::history::{History, Op, Outcome, Request, Response};
use braid_loadtest::linear::{Verdict, check, missing};
use braid_proto::etcd::etcdserverpb::{DeleteRangeRequest, PutRequest};

use super::simulate::{Server, everything};

/// Builds a history by hand: a server does what it is told, clients say what they know.
struct Story {
    server: Server,
    history: History,
    clock: u64,
}

impl Story {
    fn new() -> Self {
        Self { server: Server::new(), history: History { base: 1, ..History::default() }, clock: 0 }
    }

    /// A request, done and answered.
    fn answered(&mut self, request: Request) -> &mut Self {
        let (revision, response) = self.server.handle(&request);
        self.told(request, Outcome::Answered { revision, response })
    }

    /// A request whose answer did not come; the server knows nothing of it, yet.
    fn unanswered(&mut self, request: Request) -> &mut Self {
        self.told(request, Outcome::Unknown)
    }

    /// Something that the server does without anybody being told.
    fn silently(&mut self, request: &Request) -> &mut Self {
        self.server.handle(request);
        self
    }

    fn told(&mut self, request: Request, outcome: Outcome) -> &mut Self {
        let number = u32::try_from(self.history.ops.len()).expect("few");
        let (sent, ended) = (Moment(self.clock), Moment(self.clock + 1));
        self.clock += 2;
        self.history.ops.push(Op { client: 0, number, sent, ended, request, outcome });
        self
    }

    /// Reads the end, and all that is missing, and judges.
    fn verdict(&mut self) -> Verdict {
        self.answered(everything(0));
        self.server.complete(&mut self.history);
        check(&self.history).expect("it can be judged")
    }

    fn properties(&mut self) -> Vec<&'static str> {
        self.verdict().properties().into_iter().collect()
    }
}

fn put(key: &str, value: &str) -> Request {
    let [key, value] = [key, value].map(|text| text.to_owned().into());
    Request::Put(PutRequest { key, value, ..PutRequest::default() })
}

fn delete(key: &str) -> Request {
    Request::Delete(DeleteRangeRequest { key: key.to_owned().into(), ..DeleteRangeRequest::default() })
}

#[test]
fn an_unknown_put_may_happen_at_once_later_or_never() {
    let x = put("k", "x");
    let mut story = Story::new();
    assert_eq!(story.unanswered(x.clone()).silently(&x).answered(put("l", "y")).verdict().unknown_done, 1);
    let mut story = Story::new();
    let verdict = story.unanswered(x.clone()).answered(put("l", "y")).silently(&x).answered(put("l", "z")).verdict();
    assert_eq!((verdict.violations.len(), verdict.unknown_done), (0, 1));
    let mut story = Story::new();
    let verdict = story.unanswered(x).answered(put("l", "y")).verdict();
    assert_eq!((verdict.violations.len(), verdict.unknown_done), (0, 0));
}

#[test]
fn an_unknown_put_happens_once() {
    let x = put("k", "x");
    let mut story = Story::new();
    assert_eq!(story.unanswered(x.clone()).silently(&x).silently(&x).properties(), ["repeated write"]);
}

#[test]
fn nothing_happens_before_it_is_sent() {
    let x = put("k", "x");
    let mut story = Story::new();
    story.silently(&x).answered(put("l", "y")).unanswered(x);
    assert_eq!(story.properties(), ["real time"]);
}

#[test]
fn each_of_two_unknown_deletes_explains_one_change() {
    let mut story = Story::new();
    story.answered(put("k", "1")).unanswered(delete("k")).silently(&delete("k")).answered(put("k", "2"));
    story.unanswered(delete("k")).silently(&delete("k"));
    let verdict = story.verdict();
    assert_eq!((verdict.violations.len(), verdict.unknown_done), (0, 2));
}

#[test]
fn one_unknown_delete_does_not_explain_two_changes() {
    let mut story = Story::new();
    story.answered(put("k", "1")).unanswered(delete("k")).silently(&delete("k")).answered(put("k", "2"));
    story.silently(&delete("k"));
    assert_eq!(story.properties(), ["repeated write"]);
}

#[test]
fn a_delete_explains_only_what_was_seen_after_it_was_sent() {
    // The first delete was sent too late for the first change, the second could be either: a choice must be undone.
    let mut story = Story::new();
    story.answered(put("k", "1")).unanswered(delete("k")).silently(&delete("k")).answered(put("k", "2"));
    story.unanswered(delete("k")).answered(put("l", "3")).silently(&delete("k"));
    assert_eq!(story.properties(), Vec::<&str>::new());
    let mut story = Story::new();
    story.answered(put("k", "1")).silently(&delete("k")).answered(put("k", "2")).unanswered(delete("k"));
    story.unanswered(delete("k")).silently(&delete("k"));
    assert_eq!(story.properties(), ["lost write"]);
}

#[test]
fn a_key_does_not_vanish_by_itself() {
    let mut story = Story::new();
    assert_eq!(story.answered(put("k", "1")).silently(&delete("k")).properties(), ["lost write"]);
}

#[test]
fn what_came_and_went_unseen_may_have_been() {
    let mut story = Story::new();
    story.unanswered(put("k", "1")).unanswered(delete("k"));
    story.silently(&put("k", "1")).silently(&put("l", "x")).silently(&delete("l")).silently(&delete("k"));
    // Nobody put l, but nobody ever saw it either: the four revisions may as well be holes.
    let verdict = story.verdict();
    assert_eq!((verdict.violations.len(), verdict.unknown_done, verdict.holes), (0, 0, 4));
}

#[test]
fn changes_in_a_long_row_of_holes_are_found_by_halving() {
    let mut story = Story::new();
    story.answered(put("k", "1")).unanswered(put("k", "2")).unanswered(delete("m")).unanswered(put("m", "3"));
    story.server.skip(1_000);
    story.silently(&put("m", "3"));
    story.server.skip(100);
    story.silently(&put("k", "2"));
    story.server.skip(3_000);
    story.silently(&delete("m"));
    story.server.skip(10_000);
    story.answered(put("l", "4"));
    let verdict = story.verdict();
    // m came and went within the row; one of the halves met it, so that it had to be found too.
    assert_eq!((verdict.violations.len(), verdict.unknown_done, verdict.holes), (0, 3, 14_100));
    let reads = story.history.snapshots.len();
    assert!(reads < 60, "{reads} revisions were read");
}

#[test]
fn a_history_that_lacks_evidence_is_not_judged() {
    let mut story = Story::new();
    story.unanswered(put("k", "1")).silently(&put("k", "1")).answered(put("l", "2"));
    assert_eq!(missing(&story.history).expect("good").revisions, [2]);
    assert!(check(&story.history).unwrap_err().to_string().contains("read the whole key space there"));
}

#[test]
fn values_that_are_not_unique_are_refused() {
    let mut story = Story::new();
    story.answered(put("k", "1")).answered(put("l", "1"));
    assert!(check(&story.history).unwrap_err().to_string().contains("is put twice"));
}

#[test]
fn an_answer_of_another_kind_is_found() {
    let mut story = Story::new();
    let response = Response::Delete(Default::default());
    story.told(put("k", "1"), Outcome::Answered { revision: 1, response });
    assert_eq!(story.properties(), ["wrong answer"]);
}
