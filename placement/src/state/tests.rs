//! Placement's state, entry by entry, and its rows.

use std::collections::{BTreeMap, HashMap};

use braid_proto::pb::{
    AdmitStore, AllocateIds, FoundCluster, HoldPeers, Peer, RegionEpoch, RegionsStarted, RemoveStore, SetStore,
    StoredAnswer, StoredDrain,
};

use super::rows::RowError;
use super::*;

fn admit(store_id: u64, name: &str, addr: &str) -> AdmitStore {
    let labels = ["zone", "rack", "host", "disk"].map(|label| (label.to_owned(), format!("{label}-1")));
    let labels = HashMap::from(labels);
    AdmitStore {
        store_id,
        name: name.into(),
        peer_addr: addr.into(),
        labels,
        version: "0.1.0".into(),
        replaces: vec![],
    }
}

fn region(id: u64, stores: &[u64]) -> Region {
    let peer = |store: &u64| Peer::voter(id * 10 + store, *store);
    Region {
        id,
        epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }),
        peers: stores.iter().map(peer).collect(),
        ..Region::default()
    }
}

/// Applies entries as a member does: the rows that `apply` names are all that is kept.
#[derive(Default)]
struct Member {
    state: State,
    disk: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Member {
    fn apply(&mut self, op: Op) -> Applied {
        let (applied, rows) = self.state.apply(op);
        for row in rows {
            self.disk.insert(row.key(), self.state.value(row));
        }
        assert_eq!(State::load(&self.disk).as_ref(), Ok(&self.state), "the rows are the state");
        applied
    }

    fn admit(&mut self, store_id: u64, name: &str, addr: &str) -> Applied {
        self.apply(Op::AdmitStore(admit(store_id, name, addr)))
    }
}

#[test]
fn ids_come_from_one_growing_counter() {
    let mut member = Member::default();
    assert_eq!(member.admit(0, "n1", "h1:1"), Applied::Store(StoreId(1)));
    assert_eq!(member.apply(Op::AllocateIds(AllocateIds { count: 5 })), Applied::Ids(2));
    assert_eq!(member.admit(0, "n2", "h2:1"), Applied::Store(StoreId(7)));
    assert_eq!(member.apply(Op::AllocateIds(AllocateIds { count: 1 })), Applied::Ids(8));
    for count in [0, IDS_MAX + 1, u64::MAX] {
        assert!(matches!(member.apply(Op::AllocateIds(AllocateIds { count })), Applied::Refused(_)));
    }
}

#[test]
fn a_store_whose_answer_was_lost_gets_its_id_again() {
    let mut member = Member::default();
    assert_eq!(member.admit(0, "n1", "h1:1"), Applied::Store(StoreId(1)));
    assert_eq!(member.admit(0, "n1", "h1:1"), Applied::Store(StoreId(1)));
    assert_eq!(member.admit(0, "n2", "h1:1"), Applied::Store(StoreId(2)), "another name is another store");
    assert_eq!(member.admit(0, "n1", "h9:1"), Applied::Store(StoreId(3)), "another address is another store");
}

#[test]
fn a_store_that_held_peers_and_lost_its_folder_gets_a_new_id() {
    let mut member = Member::default();
    member.admit(0, "n1", "h1:1");
    member.admit(0, "n2", "h2:1");
    member.apply(Op::FirstRegions(FirstRegions { regions: vec![region(50, &[1])] }));
    assert_eq!(member.admit(0, "n1", "h1:1"), Applied::Store(StoreId(3)));
    assert_eq!(member.admit(0, "n2", "h2:1"), Applied::Store(StoreId(2)), "this one never held a region");
    assert!(member.state.store(StoreId(1)).is_some_and(|record| record.held_peers), "the old one is remembered");
}

#[test]
fn a_store_that_comes_back_keeps_its_id_and_brings_its_news() {
    let mut member = Member::default();
    member.admit(0, "n1", "h1:1");
    member.apply(Op::FirstRegions(FirstRegions { regions: vec![region(50, &[1])] }));
    assert_eq!(member.state.is_known(&admit(1, "n1", "h1:1")), Some(StoreId(1)));
    assert_eq!(member.state.is_known(&admit(1, "n1", "h7:1")), None);
    assert_eq!(member.admit(1, "n1", "h7:1"), Applied::Store(StoreId(1)));
    let record = member.state.store(StoreId(1)).expect("known");
    assert_eq!((record.store.peer_addr.as_str(), record.held_peers), ("h7:1", true));
    assert!(matches!(member.admit(9, "n9", "h9:1"), Applied::Refused(why) if why.contains("s9")));
}

#[test]
fn the_cluster_is_founded_and_begins_once() {
    let mut member = Member::default();
    assert_eq!(
        member.apply(Op::FoundCluster(FoundCluster { cluster_id: 5, paused: vec!["merge".into()] })),
        Applied::Done
    );
    assert!(matches!(
        member.apply(Op::FoundCluster(FoundCluster { cluster_id: 6, paused: vec![] })),
        Applied::Refused(_)
    ));
    assert_eq!(member.state.cluster_id(), ClusterId(5));
    member.admit(0, "n1", "h1:1");
    let first = |id| Op::FirstRegions(FirstRegions { regions: vec![region(id, &[1])] });
    assert_eq!(member.apply(first(50)), Applied::Done);
    assert!(matches!(member.apply(first(60)), Applied::Refused(_)));
    assert_eq!(member.state.first_regions().map(|region| region.id).collect::<Vec<_>>(), [50]);
    assert!(!member.state.regions_started());
    member.apply(Op::RegionsStarted(RegionsStarted {}));
    assert!(member.state.regions_started());
}

#[test]
fn windows_are_opened_and_closed_through_entries() {
    let mut member = Member::default();
    let answer = StoredAnswer { client_id: 1, incarnation: 2, seq: 3, base: 4, count: 5 };
    let open = |epoch, end, given| Op::OpenWindow(OpenWindow { epoch, end, given });
    let close = Op::CloseWindow(CloseWindow { epoch: 1, last: 9, answers: vec![answer] });
    assert_eq!(member.apply(open(1, 1_001, 1)), Applied::Done);
    assert_eq!(member.apply(close.clone()), Applied::Done);
    assert!(matches!(member.apply(close), Applied::Refused(_)));
    assert_eq!(member.state.window().answers, [LastAnswer::from(&answer)]);
    assert!(matches!(member.apply(open(1, 2_000, 9)), Applied::Refused(_)));
    assert_eq!(member.apply(open(2, 1_009, 9)), Applied::Done);
    assert!(member.state.window().answers.is_empty());
}

#[test]
fn equal_entries_make_equal_states_on_every_member() {
    let mut members = [Member::default(), Member::default()];
    for member in &mut members {
        member.apply(Op::FoundCluster(FoundCluster { cluster_id: 5, paused: vec!["merge".into()] }));
        member.admit(0, "n2", "h2:1");
        member.admit(0, "n1", "h1:1");
        member.apply(Op::FirstRegions(FirstRegions { regions: vec![region(50, &[2, 1]), region(51, &[1, 2])] }));
        member.apply(Op::OpenWindow(OpenWindow { epoch: 1, end: 1_001, given: 1 }));
    }
    let [one, other] = members;
    assert_eq!(one.state, other.state);
    assert_eq!(one.disk, other.disk);
}

#[test]
fn damaged_rows_are_named_and_newer_ones_refused() {
    let newer = braid_proto::pb::StoredCluster { format: FORMAT + 1, ..Default::default() };
    let newer = prost::Message::encode_to_vec(&newer);
    assert_eq!(State::load([(b"c".to_vec(), newer)]), Err(RowError::Newer(FORMAT + 1)));
    assert_eq!(State::load([(b"w".to_vec(), vec![0xff])]), Err(RowError::Damaged(Row::Window)));
    assert_eq!(State::load([(b"s123".to_vec(), vec![])]), Err(RowError::Unknown(b"s123".to_vec())));
    assert_eq!(State::load([(b"".to_vec(), vec![])]), Err(RowError::Unknown(vec![])));
    let row = Row::Store(StoreId(4));
    assert_eq!(State::load([(row.key(), vec![])]), Err(RowError::Damaged(row)), "a store must name itself");
    let row = Row::FirstRegion(4);
    assert_eq!(State::load([(row.key(), State::default().value(row))]), Err(RowError::Damaged(row)));
}

#[test]
fn every_row_key_reads_back() {
    let rows = [Row::Cluster, Row::Window, Row::Marks, Row::FirstRegion(u64::MAX), Row::Store(StoreId(0x0102))];
    for row in rows {
        assert_eq!(Row::from_key(&row.key()), Ok(row));
    }
}

#[test]
fn the_marks_row_reads_back() {
    let state = State { marks: Marks { compacted: Some(Revision(40)), auth_revision: 3 }, ..State::default() };
    let rows = [(Row::Marks.key(), state.value(Row::Marks))];
    assert_eq!(State::load(rows), Ok(state));
}

#[test]
fn the_compacted_revision_only_rises_and_begins_below_zero() {
    let mut member = Member::default();
    let mut compact = |revision| member.apply(Op::Compact(braid_proto::pb::Compact { revision }));
    let steps = [-1, 0, 0, 5, 5, 3, 6].map(&mut compact);
    let (done, before) = (Applied::Done, Applied::CompactedBefore);
    assert_eq!(steps, [before.clone(), done.clone(), before.clone(), done.clone(), before.clone(), before, done]);
    assert_eq!(member.state.marks().boundary(), 6);
}

#[test]
fn an_operators_labels_win_over_those_that_a_store_brings_also_when_it_comes_back() {
    let mut member = Member::default();
    member.admit(0, "n1", "h1:1");
    let labels = [("zone", "z9"), ("rack", ""), ("room", "r1")].map(|(name, value)| (name.into(), value.into()));
    let set = SetStore { store_id: 1, labels: labels.into(), weight: Some(2.5), ..SetStore::default() };
    assert_eq!(member.apply(Op::SetStore(set)), Applied::Done);
    member.admit(1, "n1", "h7:1");
    let record = member.state.store(StoreId(1)).expect("known");
    let seen: Vec<(String, String)> = record.labels().into_iter().collect();
    let seen: Vec<(&str, &str)> = seen.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(seen, [("disk", "disk-1"), ("host", "host-1"), ("room", "r1"), ("zone", "z9")]);
    assert_eq!((record.weight, record.store.peer_addr.as_str()), (2.5, "h7:1"));
    assert!(matches!(member.apply(Op::SetStore(SetStore { store_id: 9, ..SetStore::default() })), Applied::Refused(_)));
}

#[test]
fn a_drain_keeps_what_there_was_at_its_start_until_it_is_ended() {
    let mut member = Member::default();
    member.admit(0, "n1", "h1:1");
    let set = |member: &mut Member, drain, replicas| {
        let begun = Some(StoredDrain { since_ms: 7, replicas, leaders: 1 });
        member.apply(Op::SetStore(SetStore { store_id: 1, drain: Some(drain), begun, ..SetStore::default() }));
        member.state.store(StoreId(1)).and_then(|record| record.drain).map(|drain| drain.replicas)
    };
    assert_eq!(set(&mut member, true, 5), Some(5));
    assert_eq!(set(&mut member, true, 3), Some(5));
    assert_eq!(set(&mut member, false, 0), None);
}

#[test]
fn a_removed_store_never_comes_back_and_its_name_is_free_again() {
    let mut member = Member::default();
    member.admit(0, "n1", "h1:1");
    let remove = |why: &str| Op::RemoveStore(RemoveStore { store_id: 1, why: why.into() });
    assert_eq!(member.apply(remove("an operator removed it")), Applied::Done);
    assert_eq!(member.apply(remove("again")), Applied::Done);
    let again = member.admit(1, "n1", "h1:1");
    assert_eq!(again, Applied::Refused("s1 has been removed: an operator removed it".into()));
    assert!(matches!(member.apply(Op::HoldPeers(HoldPeers { store_id: 1 })), Applied::Refused(_)));
    assert_eq!(member.state.namesakes(&admit(0, "n1", "h1:1")), []);
    assert_eq!(member.admit(0, "n1", "h1:1"), Applied::Store(StoreId(2)));
}

#[test]
fn whoever_takes_the_place_of_a_store_removes_it() {
    let mut member = Member::default();
    member.admit(0, "n1", "h1:1");
    assert_eq!(member.apply(Op::HoldPeers(HoldPeers { store_id: 1 })), Applied::Done);
    let anew = admit(0, "n1", "h1:1");
    assert_eq!(member.state.namesakes(&anew), [StoreId(1)]);
    assert_eq!(member.apply(Op::AdmitStore(AdmitStore { replaces: vec![1], ..anew })), Applied::Store(StoreId(2)));
    let old = member.state.store(StoreId(1)).and_then(|record| record.removed.clone());
    assert_eq!(old.as_deref(), Some("its folder was lost, and s2 took its place"));
    assert_eq!(member.state.namesakes(&admit(2, "n1", "h1:1")), []);
}

#[test]
fn what_schedulers_go_by_is_kept_by_name() {
    let mut member = Member::default();
    member.apply(Op::FoundCluster(FoundCluster { cluster_id: 5, paused: vec!["merge".into()] }));
    let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    let set = |pause: &str, resume: &str, settings: &[(&str, &str)]| {
        let (pause, resume) = (vec![pause.to_owned()], vec![resume.to_owned()]);
        Op::SetScheduling(SetScheduling { pause, resume, settings: pairs(settings) })
    };
    member.apply(set("hot", "merge", &[("split-bytes", "5"), ("replicas", "5")]));
    member.apply(set("repair", "none", &[("split-bytes", ""), ("merge-keys", "1")]));
    let kept = member.state.scheduling();
    assert_eq!(kept.paused.iter().map(String::as_str).collect::<Vec<_>>(), ["hot", "repair"]);
    assert_eq!(
        kept.settings,
        BTreeMap::from([("merge-keys", "1"), ("replicas", "5")].map(|(a, b)| (a.into(), b.into())))
    );
}
