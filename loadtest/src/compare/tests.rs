use super::table::markdown;
use super::*;
use crate::histogram::Summary;
use crate::report::Watching;
use crate::watch::{Scenario, Shape};

fn report(operations_per_second: f64, p50_us: f64) -> Report {
    Report {
        workload: "put".into(),
        clients: 64,
        connections: 8,
        keys: 10,
        value_bytes: 1,
        seconds: 1.0,
        operations: operations_per_second as u64,
        operations_per_second,
        latency: Summary { p50_us, p99_us: 2.0 * p50_us, ..Summary::default() },
        client_cpu_us_per_operation: 10.0,
        server_cpu_us_per_operation: Some(100.0),
        ..Report::default()
    }
}

fn outcome(rounds: Vec<[Report; 2]>) -> Outcome {
    let footprint = Footprint { resident_bytes: 3 << 20, disk_bytes: 6 << 20 };
    let side = |name: &str| Side {
        name: name.into(),
        version: "1".into(),
        load_puts_per_second: 1.0,
        loaded: footprint,
        end: footprint,
        restarted: None,
    };
    let rows = if rounds.is_empty() { Vec::new() } else { vec![summarize("put:64".parse().unwrap(), rounds)] };
    Outcome { cpus: 2, members: 3, keys: 10, value_bytes: 1, sides: [side("braid"), side("etcd")], rows }
}

#[test]
fn medians_are_in_the_middle() {
    assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    assert!(median(Vec::new()).is_nan());
}

#[test]
fn the_ratio_is_that_of_the_rounds_not_of_the_medians() {
    let rounds = [(10.0, 5.0), (30.0, 10.0), (20.0, 20.0)].map(|(a, b)| [report(a, 1.0), report(b, 2.0)]);
    let row = summarize("put:64".parse().unwrap(), rounds.to_vec());
    assert_eq!(row.ratio, Ratio { median: 2.0, min: 1.0, max: 3.0 });
    assert_eq!(row.medians[0].operations_per_second, 20.0);
    assert_eq!(row.medians[1].p99_us, 4.0);
}

#[test]
fn the_table_shows_both_sides_and_hides_no_failure() {
    let mut bad = report(5_000.0, 2_000.0);
    bad.errors.insert("Unavailable: gone".into(), 3);
    bad.unfinished = 2;
    let outcome = outcome(vec![[report(10_000.0, 1_000.0), bad]]);
    assert_eq!(outcome.failed(), 5);
    let text = markdown(&outcome);
    for want in [
        "| put:64 | 10000 | 5000 | 2.00 (2.00..2.00) | 1.00 / 2.00 | 2.00 / 4.00 | 100.0 / 100.0 | 1.00 | 10.0 / 10.0 |",
        "| disk at the end | 2 MiB | 2 MiB | 1.00 | – |",
        "put:64 on etcd: 3 operations failed: Unavailable: gone",
        "put:64 on etcd: 2 clients never got an answer",
    ] {
        assert!(text.contains(want), "{want:?} is missing in\n{text}");
    }
}

#[test]
fn rows_at_a_rate_are_compared_by_latency() {
    let row = summarize("watch-latency:300".parse().unwrap(), vec![[report(300.0, 1_000.0), report(300.0, 3_000.0)]]);
    assert_eq!((row.yardstick, row.ratio.median), (Yardstick::Latency, 3.0));
    let text = markdown(&Outcome { rows: vec![row], ..outcome(Vec::new()) });
    assert!(text.contains("| 3.00 (3.00..3.00) p50 |"), "{text}");
}

#[test]
fn the_table_says_where_cpu_goes_if_threads_tell() {
    let mut a = report(100.0, 1.0);
    let groups = [("raft", 20.0), ("raft-helper", 5.0), ("tokio-rt-worker", 70.0)];
    a.server_cpu_us_by_threads = groups.map(|(name, time)| (name.to_owned(), time)).into();
    let mut b = report(100.0, 1.0);
    b.server_cpu_us_by_threads = BTreeMap::from([("etcd".to_owned(), 99.0)]);
    let text = markdown(&outcome(vec![[a, b]]));
    for want in ["| server CPU µs/op of braid | proxy and services | raft |", "| put:64 | 70.0 | 25.0 |"] {
        assert!(text.contains(want), "{want:?} is missing in\n{text}");
    }
    assert!(!text.contains("µs/op of etcd |"), "{text}");
}

#[test]
fn footprints_are_told_for_each_million_of_keys() {
    let mut outcome = outcome(Vec::new());
    outcome.keys = 500_000;
    outcome.sides[0].restarted = Some(Footprint { resident_bytes: 9 << 20, disk_bytes: 6 << 20 });
    let text = markdown(&outcome);
    assert!(text.contains("| memory after loading | 1 MiB | 1 MiB | 1.00 | 2 / 2 MiB |"), "{text}");
    assert!(!text.contains("after restarts"), "only one side was restarted:\n{text}");
    outcome.keys = 1_000;
    let text = markdown(&outcome);
    assert!(text.contains("| memory after loading | 1 MiB | 1 MiB | 1.00 | – |"), "{text}");
}

#[test]
fn the_chart_has_a_bar_for_each_row() {
    let picture = chart::of(&outcome(vec![[report(10_000.0, 1.0), report(5_000.0, 1.0)]]));
    for want in ["braid over etcd", "put:64", "2.00× (2.00..2.00)"] {
        assert!(picture.contains(want), "{want:?} is missing in\n{picture}");
    }
}

#[test]
fn the_table_says_what_watches_are_and_what_idle_ones_cost() {
    let shape = Shape::of(Scenario::Fanout, 100);
    let watching = Some(Watching { shape, puts_per_second: 50.0, puts_checked: 200 });
    let put = Summary { p50_us: 1_500.0, p99_us: 2_500.0, ..Summary::default() };
    let fanout = |rate| Report { watching, kinds: BTreeMap::from([("put", put)]), ..report(rate, 1.0) };
    let mut outcome = outcome(vec![[report(10_000.0, 1.0), report(5_000.0, 1.0)]]);
    let mut row = |row: &str, rounds| outcome.rows.push(summarize(row.parse().unwrap(), rounds));
    row("watch-fanout:100", vec![[fanout(5_000.0), fanout(5_000.0)]]);
    row("put-idle-watchers:64", vec![[report(9_000.0, 1.0), report(5_000.0, 1.0)]]);
    let text = markdown(&outcome);
    for want in [
        "watch-fanout:100: events delivered; 100 watches on 10 streams on 10 connections",
        "closed loop, at most 256 puts ahead of the slowest watch\n- braid: 50 puts/s, their p50 1.50 ms, p99 2.50 ms",
        "braid: put:64 with 10000 idle watches 0.90 (0.90..0.90) of without",
        "etcd: put:64 with 10000 idle watches 1.00 (1.00..1.00) of without",
    ] {
        assert!(text.contains(want), "{want:?} is missing in\n{text}");
    }
}
