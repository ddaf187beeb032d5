//! Scripts: each line is a fact that arrives, then the table is printed.

use super::*;

/// Reads "r1 a..m e1.2 s1,s2,s3": an empty start or end is written as nothing.
fn region(text: &str) -> Region {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [id, range, epoch, stores] = words[..] else { panic!("not a region: {text}") };
    let (start, end) = range.split_once("..").expect("a range has dots");
    let (conf_ver, version) = epoch.trim_start_matches('e').split_once('.').expect("an epoch has a dot");
    let number = |text: &str| text.trim_start_matches(['r', 's']).parse().expect("a number");
    let peer = |(index, store): (usize, &str)| Peer::voter(100 + index as u64, number(store));
    Region {
        id: number(id),
        start: start.to_owned().into(),
        end: end.to_owned().into(),
        epoch: Some(RegionEpoch { conf_ver: number(conf_ver), version: number(version) }),
        peers: stores.split(',').enumerate().map(peer).collect(),
    }
}

fn print(table: &RouteTable) -> String {
    let text = |key: &Bytes| String::from_utf8(key.to_vec()).expect("test keys are text");
    let line = |route: &Arc<Route>| {
        let leader = route.leader().map_or("-".into(), |leader| leader.to_string());
        format!("{} {}..{} {} {leader}", route.region, text(&route.range.start), text(&route.range.end), route.epoch)
    };
    table.routes.values().map(line).collect::<Vec<_>>().join("\n")
}

/// Runs facts of the form "region > leader" (leader may be "-") and compares the table. A fact that starts with "!" must
/// be refused as old.
fn check(facts: &[&str], expect: &[&str]) -> RouteTable {
    let mut table = RouteTable::default();
    for fact in facts {
        let (old, fact) = fact.strip_prefix('!').map_or((false, *fact), |fact| (true, fact));
        let (text, leader) = fact.split_once('>').expect("a fact has a leader");
        let leader = StoreId(leader.trim().trim_start_matches('s').parse().unwrap_or(0));
        assert_eq!(table.learn(region(text), leader), !old, "{fact}");
    }
    assert_eq!(print(&table), expect.join("\n"), "{facts:#?}");
    table
}

#[test]
fn a_split_replaces_the_parent_piece_by_piece() {
    let parent = "r1 .. e1.1 s1,s2,s3 > s2";
    check(&[parent, "r1 ..m e1.2 s1,s2,s3 > -"], &["r1 ..m e1.2 s2"]);
    check(&[parent, "r2 m.. e1.2 s1,s2,s3 > s3"], &["r2 m.. e1.2 s3"]);
    check(&[parent, "r2 m.. e1.2 s1,s2,s3 > -"], &["r2 m.. e1.2 s2"]);
    let both = ["r1 ..m e1.2 s2", "r2 m.. e1.2 s3"];
    check(&[parent, "r1 ..m e1.2 s1,s2,s3 > -", "r2 m.. e1.2 s1,s2,s3 > s3"], &both);
}

#[test]
fn old_news_is_dropped() {
    let split = ["r1 ..m e1.2 s1,s2,s3 > s1", "r2 m.. e1.2 s1,s2,s3 > s1"];
    let parent = "!r1 .. e1.1 s1,s2,s3 > s3";
    check(&[split[0], split[1], parent], &["r1 ..m e1.2 s1", "r2 m.. e1.2 s1"]);
    check(&[split[1], parent], &["r2 m.. e1.2 s1"]);
    check(&["r1 .. e5.1 s1,s2 > s1", "!r1 .. e4.1 s1,s2,s3 > s3"], &["r1 .. e5.1 s1"]);
    check(&["r1 .. e1.3 s1,s2 > s1", "!r1 .. e9.2 s1,s2,s3 > s3"], &["r1 .. e1.3 s1"]);
}

#[test]
fn a_merge_replaces_both() {
    check(&["r1 ..m e1.2 s1,s2 > s1", "r2 m.. e1.2 s1,s2 > s2", "r1 .. e1.3 s1,s2 > -"], &["r1 .. e1.3 s1"]);
}

#[test]
fn a_leader_is_kept_only_while_it_has_a_peer() {
    check(&["r1 .. e1.1 s1,s2,s3 > s3", "r1 .. e2.1 s1,s2,s3,s4 > -"], &["r1 .. e2.1 s3"]);
    check(&["r1 .. e1.1 s1,s2,s3 > s3", "r1 .. e2.1 s1,s2,s4 > -"], &["r1 .. e2.1 -"]);
    check(&["r1 .. e1.1 s1,s2,s3 > s3", "r1 .. e2.1 s1,s2,s3 > s1"], &["r1 .. e2.1 s1"]);
}

#[test]
fn placements_word_fills_a_gap_but_does_not_overrule_a_store() {
    check(&["r1 .. e1.1 s1,s2 > -", "r1 .. e1.1 s1,s2 > s2"], &["r1 .. e1.1 s2"]);
    let table = check(&["r1 .. e1.1 s1,s2 > s1", "r1 .. e1.1 s1,s2 > s2"], &["r1 .. e1.1 s1"]);
    let route = table.find(b"k").expect("covered");
    route.forget_leader(StoreId(2));
    assert_eq!(route.leader(), Some(StoreId(1)), "only the refused hint is forgotten");
    route.forget_leader(StoreId(1));
    assert_eq!(route.leader(), None);
    route.follow(StoreId(2));
    assert_eq!(route.leader(), Some(StoreId(2)));
}

#[test]
fn malformed_regions_are_not_taken() {
    check(&["!r1 m..c e1.1 s1 > s1"], &[]);
}

#[test]
fn ranges_are_cut_at_region_boundaries() {
    let facts = ["r1 ..f e1.3 s1 > s1", "r2 f..m e1.3 s1 > s1", "r3 p.. e1.3 s1 > s1"];
    let table = check(&facts, &["r1 ..f e1.3 s1", "r2 f..m e1.3 s1", "r3 p.. e1.3 s1"]);
    let cut = |start: &'static str, end: &'static str| match table
        .pieces(&KeyRange { start: start.into(), end: end.into() })
    {
        Pieces::Unknown(key) => format!("unknown from {}", String::from_utf8_lossy(&key)),
        Pieces::Known(pieces) => {
            let text = |key: &Bytes| String::from_utf8_lossy(key).into_owned();
            let piece = |(route, piece): &(Arc<Route>, KeyRange)| {
                format!("{} {}..{}", route.region, text(&piece.start), text(&piece.end))
            };
            pieces.iter().map(piece).collect::<Vec<_>>().join(", ")
        }
    };
    assert_eq!(cut("a", "c"), "r1 a..c");
    assert_eq!(cut("a", "f"), "r1 a..f");
    assert_eq!(cut("a", "g"), "r1 a..f, r2 f..g");
    assert_eq!(cut("", "m"), "r1 ..f, r2 f..m");
    assert_eq!(cut("q", ""), "r3 q..");
    assert_eq!(cut("q", "z"), "r3 q..z");
    assert_eq!(cut("g", "q"), "unknown from m");
    assert_eq!(cut("n", "o"), "unknown from n");
    assert_eq!(cut("g", "c"), "");
    assert_eq!(table.find(b"m").map(|route| route.region), None);
    assert_eq!(table.find(b"lzz").map(|route| route.region), Some(RegionId(2)));
    assert_eq!(table.find(b"").map(|route| route.region), Some(RegionId(1)));
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_early_when_the_route_changes() {
    let mut table = RouteTable::default();
    table.learn(region("r1 .. e1.1 s1,s2"), StoreId(1));
    let route = Arc::clone(table.find(b"k").expect("covered"));
    let wait = || {
        let route = Arc::clone(&route);
        async move {
            let begin = tokio::time::Instant::now();
            route.wait(Duration::from_secs(60)).await;
            begin.elapsed()
        }
    };
    let (waited, ()) = tokio::join!(wait(), async { route.follow(StoreId(2)) });
    assert_eq!(waited, Duration::ZERO);
    let (waited, ()) = tokio::join!(wait(), async { route.follow(StoreId(2)) });
    assert_eq!(waited, Duration::from_secs(60), "the same hint again is no news");
    let (waited, newer) = tokio::join!(wait(), async { table.learn(region("r1 .. e1.2 s1,s2"), StoreId(0)) });
    assert!(newer);
    assert_eq!(waited, Duration::ZERO);
}
