//! The queue of a lane: order, bounds, cutting and merging.

use super::*;

fn message(region: u64, bytes: usize) -> RaftMessage {
    RaftMessage { region_id: region, message: vec![7; bytes].into(), ..Default::default() }
}

fn frame(messages: impl IntoIterator<Item = RaftMessage>) -> RaftFrame {
    RaftFrame { from_incarnation: 1, messages: messages.into_iter().collect(), ..Default::default() }
}

fn push(queue: &mut Queue, frame: RaftFrame) -> bool {
    let size = frame.messages.iter().map(size).sum();
    queue.push(frame, size)
}

fn regions(queue: &mut Queue) -> Vec<u64> {
    queue.pop().map(|(messages, _)| messages.iter().map(|m| m.region_id).collect()).unwrap_or_default()
}

#[test]
fn what_waits_leaves_as_one_frame_in_order() {
    let mut queue = Queue::default();
    assert!(push(&mut queue, frame([message(1, 10), message(2, 10)])));
    assert!(push(&mut queue, frame([message(3, 10)])));
    assert_eq!(regions(&mut queue), [1, 2, 3]);
    assert_eq!((queue.bytes, queue.pop()), (0, None));
}

#[test]
fn large_frames_are_cut_between_messages() {
    let mut queue = Queue::default();
    assert!(push(&mut queue, frame((1..=5).map(|region| message(region, FRAME_BYTES / 3)))));
    assert!(push(&mut queue, frame([message(6, FRAME_BYTES * 2), message(7, 1)])));
    assert_eq!(regions(&mut queue), [1, 2]);
    assert_eq!(regions(&mut queue), [3, 4]);
    assert_eq!(regions(&mut queue), [5]);
    assert_eq!(regions(&mut queue), [6], "a message above the cut goes alone");
    assert_eq!(regions(&mut queue), [7]);
    assert_eq!(queue.bytes, 0);
}

#[test]
fn many_small_messages_are_cut_by_count() {
    let mut queue = Queue::default();
    assert!(push(&mut queue, frame((0..FRAME_MESSAGES as u64 + 5).map(|region| message(region, 1)))));
    assert_eq!(regions(&mut queue).len(), FRAME_MESSAGES);
    assert_eq!(regions(&mut queue).len(), 5);
}

#[test]
fn a_full_queue_drops_messages_but_takes_support() {
    let mut queue = Queue::default();
    let mut taken = 0;
    while push(&mut queue, frame([message(taken, 1 << 20)])) {
        taken += 1;
    }
    assert_eq!(taken as usize, QUEUE_BYTES / ((1 << 20) + MESSAGE_OVERHEAD));
    let support = Some(Support { request_seq: 4, ..Default::default() });
    assert!(push(&mut queue, RaftFrame { support, ..frame([]) }));
    assert_eq!(queue.pop().unwrap().1, support, "it does not wait behind the messages");
    while queue.pop().is_some() {}
    for region in 0..QUEUE_MESSAGES as u64 {
        assert!(push(&mut queue, frame([message(region, 1)])));
    }
    assert!(!push(&mut queue, frame([message(0, 1)])));
}

#[test]
fn a_single_message_above_the_bound_is_taken_by_an_empty_queue() {
    let mut queue = Queue::default();
    assert!(push(&mut queue, frame([message(1, QUEUE_BYTES + 1)])));
    assert!(!push(&mut queue, frame([message(2, 1)])));
    assert_eq!(regions(&mut queue), [1]);
}

#[test]
fn a_restarted_sender_leaves_nothing_of_its_old_life() {
    let mut queue = Queue::default();
    push(&mut queue, frame([message(1, 1)]));
    push(&mut queue, RaftFrame { from_incarnation: 2, ..frame([message(2, 1)]) });
    assert_eq!(regions(&mut queue), [2]);
}

#[test]
fn support_is_merged_to_the_newest_request_and_grant() {
    let request = |request_seq| Support { request_seq, ..Default::default() };
    let grant = |grant_seq| Support { grant_seq, grant_incarnation: 3, grant_ms: 800, ..Default::default() };
    assert_eq!(merge(None, grant(1)), grant(1));
    assert_eq!(merge(Some(request(4)), grant(2)), Support { request_seq: 4, ..grant(2) });
    assert_eq!(merge(Some(grant(2)), request(4)), Support { request_seq: 4, ..grant(2) });
    assert_eq!(merge(Some(grant(2)), grant(3)), grant(3));
    assert_eq!(merge(Some(request(5)), request(4)), request(5));
}
