//! Compaction over real raft groups: judged as etcd does, carried by every sequencer from its answer on.

use braid_proto::error;
use braid_proto::pb::{AwaitDroppedRequest, CompactRequest, CompactResponse, EtcdError, NumberAnswer, NumberRequest};

use super::*;

impl Placement {
    async fn compact(&self, revision: i64) -> CompactResponse {
        let answer = self.service().compact(Request::new(CompactRequest { revision })).await;
        answer.expect("answered").into_inner()
    }
}

impl Group {
    async fn compact(&self, revision: i64) -> Result<i64, EtcdError> {
        self.ask(async |leader| {
            let answer = leader.compact(revision).await;
            (answer.header, answer.error.map_or(Ok(answer.revision), Err))
        })
        .await
    }

    /// What the sequencer says to client 1.
    async fn number(&self, seq: u64, count: u32) -> NumberAnswer {
        let request =
            NumberRequest { client_id: 1, incarnation: 1, seq, count, cluster_id: CLUSTER.0, ..Default::default() };
        let service = self.leader().await.number_service();
        eventually("an answer", async || Some(service.number(&request)).filter(|answer| answer.refusal.is_none())).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revisions_are_judged_in_etcds_order_and_zero_can_be_compacted_once() {
    let mut group = Group::start(1).await;
    let compacted = || Err(EtcdError::from(error::COMPACTED));
    let future = || Err(EtcdError::from(error::FUTURE_REVISION));
    assert_eq!(group.compact(-1).await, compacted());
    assert_eq!(group.compact(2).await, future());
    assert_eq!(group.compact(0).await, Ok(1));
    assert_eq!(group.compact(0).await, compacted());
    assert_eq!(group.compact(1).await, Ok(1), "the newest revision can be compacted");
    assert_eq!(group.compact(1).await, compacted());
    assert_eq!(group.number(1, 9).await.base, 1);
    assert_eq!(group.compact(11).await, future());
    assert_eq!(group.compact(7).await, Ok(10));
    assert_eq!(group.compact(3).await, compacted());
    assert_eq!(group.number(2, 0).await.compacted, 7);
    assert_eq!(group.status().await.compacted, 7);
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_later_sequencer_carries_the_boundary() {
    let mut group = Group::start(3).await;
    group.number(1, 99).await;
    assert_eq!(group.compact(50).await, Ok(100));
    for seq in 2..5 {
        assert_eq!(group.number(seq, 0).await.compacted, 50);
        let leader = group.leader().await.id();
        group.kill(leader).await;
        assert_eq!(group.number(seq, 0).await.compacted, 50, "from the next sequencer");
        assert_eq!(group.compact(50).await, Err(error::COMPACTED.into()));
        group.open(leader).await;
    }
    group.stop_all().await;
    for id in 1..=3 {
        group.open(id).await;
    }
    assert_eq!(group.number(9, 0).await.compacted, 50, "after all have been stopped");
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_for_disks_ends_when_every_live_store_has_reported() {
    let mut group = Group::start(1).await;
    for store in ["s1", "s2"] {
        group.register(newcomer(store)).await;
    }
    group.number(1, 99).await;
    let beat = |store_id, dropped_below| StoreHeartbeatRequest {
        cluster_id: CLUSTER.0,
        store_id,
        incarnation: 1,
        full: true,
        dropped_below,
        ..Default::default()
    };
    assert_eq!(group.beat(beat(1, 0)).await.compacted, 0);
    group.compact(40).await.expect("compacted");
    let answer = group.beat(beat(1, 0)).await;
    assert_eq!((answer.compacted, answer.drop_below), (40, 0));
    let service = group.leader().await.service();
    let wait = tokio::spawn(async move {
        let answer = service.await_dropped(Request::new(AwaitDroppedRequest { revision: 40 })).await;
        answer.expect("answered").into_inner().header.expect("a header").refused
    });
    eventually("stores are told", async || (group.beat(beat(1, 40)).await.drop_below == 40).then_some(())).await;
    group.beat(beat(2, 39)).await;
    assert!(!wait.is_finished(), "store 2 has not dropped enough");
    group.beat(beat(2, 40)).await;
    let refused = tokio::time::timeout(LIMIT, wait).await.expect("the wait ends").expect("no panic");
    assert!(!refused);
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_for_disks_does_not_wait_for_a_store_that_is_gone() {
    let mut group = Group::start(1).await;
    group.register(newcomer("s1")).await;
    group.compact(1).await.expect("compacted");
    let service = group.leader().await.service();
    let answer = service.await_dropped(Request::new(AwaitDroppedRequest { revision: 1 }));
    let answer = tokio::time::timeout(LIMIT, answer).await.expect("the wait ends").expect("answered");
    assert!(!answer.into_inner().header.expect("a header").refused);
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_compacts_by_itself_what_is_older_than_its_window() {
    let window = Duration::from_millis(500);
    let mut group = Group::start_with(1, |config, _| config.auto_compaction = AutoCompaction::Periodic(window)).await;
    let begin = tokio::time::Instant::now();
    group.number(1, 99).await;
    let compacted = async || Some(group.status().await.compacted).filter(|compacted| *compacted > 0);
    let first = eventually("a first compaction", compacted).await;
    assert!(begin.elapsed() >= window / 2 && (1..=100).contains(&first), "{first} after {:?}", begin.elapsed());
    let all = async || (group.status().await.compacted == 100).then_some(());
    eventually("everything but the newest revision", all).await;
    group.stop_all().await;
}
