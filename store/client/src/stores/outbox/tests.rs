use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use braid_proto::etcd::etcdserverpb::PutRequest;
use braid_proto::pb::{RegionResponse, region_request, region_response};

use super::*;
use crate::retry::CONNECTION_LOST;

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn request(region_id: u64) -> RegionRequest {
    RegionRequest { region_id, ..Default::default() }
}

fn frame(outbox: &Outbox) -> Option<Vec<TaggedRequest>> {
    match outbox.poll_frame(outbox.ended(), &mut Context::from_waker(Waker::noop())) {
        Poll::Ready(frame) => frame,
        Poll::Pending => None,
    }
}

fn regions(frame: &[TaggedRequest]) -> Vec<u64> {
    frame.iter().map(|tagged| tagged.request.as_ref().expect("a request").region_id).collect()
}

fn reason(answer: RegionResponse) -> refusal::Reason {
    match answer.result {
        Some(region_response::Result::Refusal(refusal)) => refusal.reason.expect("a reason"),
        other => panic!("not a refusal: {other:?}"),
    }
}

#[test]
fn one_frame_carries_all_that_waits_and_answers_find_their_requests() {
    let outbox = Outbox::default();
    outbox.open();
    let mut answers: Vec<_> = (1..=3).map(|region| outbox.push(request(region))).collect();
    let sent = frame(&outbox).expect("three wait");
    assert_eq!(regions(&sent), [1, 2, 3]);
    assert_eq!(frame(&outbox), None);

    let answer = |tagged: &TaggedRequest| {
        let error =
            braid_proto::pb::EtcdError { code: regions(std::slice::from_ref(tagged))[0] as i32, ..Default::default() };
        TaggedResponse {
            id: tagged.id,
            response: Some(RegionResponse { result: Some(region_response::Result::Error(error)) }),
        }
    };
    outbox.answer(sent.iter().rev().map(answer).collect());
    outbox.answer(sent.iter().map(answer).collect());
    for (region, answer) in (1..=3).zip(&mut answers) {
        let answer = answer.try_recv().expect("answered");
        let Some(region_response::Result::Error(error)) = answer.result else { panic!("{answer:?}") };
        assert_eq!(error.code, region);
    }
}

#[test]
fn what_was_not_sent_did_not_happen_and_what_was_sent_is_unknown() {
    let outbox = Outbox::default();
    outbox.open();
    let mut sent = outbox.push(request(1));
    assert!(frame(&outbox).is_some());
    let mut waiting = outbox.push(request(2));
    outbox.close();
    let mut refused = outbox.push(request(3));
    let refusal::Reason::Unknown(unknown) = reason(sent.try_recv().expect("answered")) else { panic!() };
    assert_eq!(unknown.why, CONNECTION_LOST);
    for answer in [&mut waiting, &mut refused] {
        let refusal::Reason::NotLeader(not_leader) = reason(answer.try_recv().expect("answered")) else { panic!() };
        assert_eq!(not_leader.leader, None);
    }
}

#[test]
fn requests_wait_for_the_connection() {
    let outbox = Outbox::default();
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut context = Context::from_waker(&waker);
    assert!(outbox.poll_waiting(&mut context).is_pending());
    let _answer = outbox.push(request(1));
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    assert!(outbox.poll_waiting(&mut context).is_ready());
    assert!(outbox.poll_frame(0, &mut context).is_pending(), "there is no connection yet");
    outbox.open();
    assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
    let Poll::Ready(Some(sent)) = outbox.poll_frame(0, &mut context) else { panic!("one waits") };
    assert_eq!(regions(&sent), [1]);
}

#[test]
fn requests_nobody_waits_for_are_not_sent() {
    let outbox = Outbox::default();
    outbox.open();
    drop(outbox.push(request(1)));
    let _kept = outbox.push(request(2));
    assert_eq!(regions(&frame(&outbox).expect("one is left")), [2]);
    drop(outbox.push(request(3)));
    assert_eq!(frame(&outbox), None);
}

#[test]
fn frames_are_bounded_in_number_and_bytes() {
    let outbox = Outbox::default();
    outbox.open();
    let _small: Vec<_> = (0..FRAME_REQUESTS_MAX as u64 + 1).map(|region| outbox.push(request(region))).collect();
    assert_eq!(frame(&outbox).expect("many wait").len(), FRAME_REQUESTS_MAX);
    assert_eq!(frame(&outbox).expect("one is left").len(), 1);
    let put = PutRequest { value: vec![0; FRAME_BYTES / 2].into(), ..Default::default() };
    let large = RegionRequest { op: Some(region_request::Op::Put(put)), ..Default::default() };
    let _large: Vec<_> = (0..5).map(|_| outbox.push(large.clone())).collect();
    assert_eq!(frame(&outbox).expect("five wait").len(), 2);
    assert_eq!(frame(&outbox).expect("three wait").len(), 2);
    assert_eq!(frame(&outbox).expect("one waits").len(), 1);
}

#[test]
fn too_many_requests_are_refused_as_busy() {
    let outbox = Outbox::default();
    let _kept: Vec<_> = (0..IN_FLIGHT_MAX as u64).map(|region| outbox.push(request(region))).collect();
    let answer = outbox.push(request(0)).try_recv().expect("answered");
    assert!(matches!(reason(answer), refusal::Reason::Busy(_)));
}

#[test]
fn an_ended_connection_takes_nothing_from_the_next_one() {
    let outbox = Outbox::default();
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut context = Context::from_waker(&waker);
    outbox.open();
    assert!(outbox.poll_frame(0, &mut context).is_pending());
    outbox.close();
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "the ended connection learns that it has ended");
    outbox.wait();
    let _answer = outbox.push(request(1));
    outbox.open();
    assert_eq!(outbox.poll_frame(0, &mut context), Poll::Ready(None));
    assert_eq!(regions(&frame(&outbox).expect("one waits")), [1]);
}
