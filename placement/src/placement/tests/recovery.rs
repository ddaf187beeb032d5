//! Replicated state over crashes: ids are never given twice, lagging members catch up by snapshot, wrong folders and
//! damaged rows are refused.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use braid_proto::id::StoreId;
use rocksdb::{DB, Options};

use super::*;
use crate::machine::CF_PLACEMENT;
use crate::state::State;
use crate::state::rows::Row;

/// Takes ids from whoever leads. What a leader had taken when it was deposed is lost, which is no harm.
pub async fn allocate(group: &Group, count: u64) -> u64 {
    let allocated = async || {
        let leader = group.leader().await;
        let term = leader.shared.leading()?;
        leader.shared.allocate(term, count).await.ok()
    };
    eventually("ids", allocated).await
}

/// Waits until `member` has applied what the leader has.
pub async fn same_state(group: &Group, member: u64) {
    let same = async || {
        let members = [group.leader().await, &group.members[&member]];
        let [leader, member] = members.map(|member| member.shared.replica.read(State::clone));
        (leader == member).then_some(())
    };
    eventually("equal states", same).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_never_repeat_over_leader_changes() {
    let mut group = Group::start(3).await;
    let mut taken = BTreeSet::new();
    for round in 0..3 {
        let mut ids = vec![group.register(newcomer(&format!("store-{round}"))).await.store_id];
        let first = allocate(&group, 5).await;
        ids.extend(first..first + 5);
        for id in ids {
            assert!(id > 0 && taken.insert(id), "{id} was given before: {taken:?}");
        }
        let leader = group.leader().await.id();
        group.kill(leader).await;
        group.leader().await;
        group.open(leader).await;
    }
    assert_eq!(taken.len(), 18);
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_for_long_catches_up_by_snapshot() {
    let mut group = Group::start_with(3, |_, tuning| {
        tuning.log_keep_entries = 20;
        tuning.timing.log_gc = Duration::from_millis(100);
    })
    .await;
    let away = (1..=3).find(|id| !group.members[id].leads()).expect("two do not lead");
    group.kill(away).await;
    for round in 0..200 {
        allocate(&group, 1).await;
        if round % 50 == 0 {
            group.register(newcomer(&format!("store-{round}"))).await;
        }
    }
    group.open(away).await;
    same_state(&group, away).await;
    assert!(group.net.snapshots.load(Ordering::Acquire) > 0, "the log was not there any more");
    // What came with the snapshot is also in its rows.
    group.kill(away).await;
    group.open(away).await;
    same_state(&group, away).await;
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_of_others_and_wrong_configurations_are_refused() {
    let mut group = Group::start(1).await;
    group.leader().await;
    group.stop(1).await;
    let refused = async |change: &dyn Fn(&mut PlacementConfig)| {
        let mut changed = group.config.clone();
        changed.member_id = 1;
        changed.dir = group.dirs[&1].path().to_owned();
        change(&mut changed);
        let port = Arc::new(Port(Arc::clone(&group.net)));
        match Placement::open_with(changed, port, Arc::clone(&group.stores) as _, group.company(1), group.tuning).await
        {
            Ok(_) => panic!("must be refused"),
            Err(error) => error.to_string(),
        }
    };
    let text = refused(&|config| config.cluster_id = ClusterId(78)).await;
    assert!(text.contains("point the process at its own folder"), "{text}");
    let text = refused(&|config| config.member_id = 2).await;
    assert!(text.contains("not in the list of members"), "{text}");
    let text = refused(&|config| config.members.push(config.members[0].clone())).await;
    assert!(text.contains("ids that differ"), "{text}");
    let text = refused(&|config| {
        let second = MemberConfig { id: 2, ..config.members[0].clone() };
        config.members.push(second);
    })
    .await;
    assert!(text.contains("1, 3 or 5"), "{text}");
    let text = refused(&|config| config.replicas = 0).await;
    assert!(text.contains("0 replicas"), "{text}");
    let text = refused(&|config| config.split_keys.reverse()).await;
    assert!(text.contains("greater than the one before"), "{text}");
    group.open(1).await;
    group.leader().await;
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_row_is_named_and_nothing_is_started() {
    let mut group = Group::start(1).await;
    group.leader().await.register(newcomer("n1")).await;
    group.stop(1).await;
    let kv = group.dirs[&1].path().join("kv");
    let families = DB::list_cf(&Options::default(), &kv).expect("a database");
    let db = DB::open_cf(&Options::default(), &kv, families).expect("it opens");
    let row = Row::Store(StoreId(1));
    db.put_cf(db.cf_handle(CF_PLACEMENT).expect("a column family"), row.key(), b"\xff\xff").expect("written");
    drop(db);
    let text = match group.try_open(1).await {
        Ok(_) => panic!("must be refused"),
        Err(error) => error.to_string(),
    };
    assert!(text.contains("row Store(s1) of placement's data is damaged"), "{text}");
}
