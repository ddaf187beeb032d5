//! The peers of a region change under its leader's hands, and the leader's own peer goes.

use super::*;

fn with_peers(conf_ver: u64, version: u64, stores: &[u64]) -> Region {
    let peers = stores.iter().map(|store| Peer::voter(10 + store, *store)).collect();
    Region { id: 7, epoch: Some(RegionEpoch { conf_ver, version }), peers, ..Default::default() }
}

#[test]
fn other_peers_hold_up_nothing_and_requests_with_the_older_ones_are_served() {
    let mut script = Script::leading(1);
    script.submit(1, put("a", "1"));
    let (first, _) = script.asked();
    script.submit(2, put("b", "2"));
    script.pipeline.on_region(with_peers(2, 1, &[1, 2]), &mut script.effects);
    script.pump();
    // Routed before the change.
    script.submit(3, put("c", "3"));
    script.numbered(first, 10);
    let (second, count) = script.asked();
    assert_eq!(count, 2, "what waited, and what came with the older epoch");
    let entry = script.proposed();
    script.apply(entry);
    script.numbered(second, 11);
    let entry = script.proposed();
    assert_eq!(RegionEntry::decode(entry.1.clone()).expect("an entry").version, 1);
    script.apply(entry);
    assert_eq!(script.answers(), ["1 put @11", "2 put @12", "3 put @13"]);
    assert_eq!(script.pipeline.region().peers.len(), 2, "what refusals say is new");
}

#[test]
fn a_cut_between_sending_and_evaluation_is_refused_whatever_the_peers() {
    let mut script = Script::leading(1);
    script.pipeline.on_region(with_peers(1, 2, &[1, 2, 3]), &mut script.effects);
    script.submit(1, put("a", "1"));
    assert_eq!(script.answers(), ["1 epoch mismatch"]);
}

/// What was proposed may have happened; what was not, certainly never does, and the store has no such region any more.
#[test]
fn a_destroyed_peer_refuses_what_waits_and_what_comes_as_unknown_here() {
    let mut script = Script::leading(1);
    script.submit(1, put("a", "1"));
    let (first, _) = script.asked();
    script.numbered(first, 10);
    let (entry, _) = script.proposed();
    script.submit(2, put("b", "2"));
    let (second, _) = script.asked();
    script.submit(3, put("c", "3"));
    let seq = script.pipeline.in_flight(&single("a"), 11).expect("in flight");
    script.pipeline.wait_applied(seq, 9, &mut script.effects);
    script.pipeline.on_destroyed(not_found(), &mut script.effects);
    let not_here = "RegionNotFound(RegionNotFound)";
    assert_eq!(script.answers(), [format!("2 {not_here}"), format!("3 {not_here}"), "wake 9 false".to_owned()]);
    script.numbered(second, 20);
    assert_eq!(script.unused, 1);
    script.submit(4, put("d", "4"));
    // A late word of the raft worker.
    script.pipeline.on_leader(Term(9), Vec::new(), Vec::new(), &mut script.effects);
    script.submit(5, put("e", "5"));
    script.end(entry, EntryEnd::Unknown);
    assert_eq!(script.answers(), [format!("4 {not_here}"), format!("5 {not_here}"), "1 unknown".to_owned()]);
    assert_eq!(script.pipeline.depth(), (0, 0));
    assert!(script.pipeline.begin_barrier(Until::Idle).is_none());
}
