use super::table::markdown;
use super::*;
use crate::histogram::Summary;
use crate::report::Watching;
use crate::watch::Shape;

fn report(operations_per_second: f64, p50_us: f64) -> Report {
    Report {
        workload: "put".into(),
        clients: 64,
        connections: 8,
        keys: 10,
        value_bytes: 1,
        rate: None,
        seconds: 1.0,
        operations: operations_per_second as u64,
        operations_per_second,
        latency: Summary { p50_us, p99_us: 2.0 * p50_us, ..Summary::default() },
        kinds: BTreeMap::new(),
        errors: BTreeMap::new(),
        unfinished: 0,
        backlog: None,
        lateness: None,
        client_cpu_us_per_operation: 10.0,
        server_cpu_us_per_operation: Some(100.0),
        server_cpu_us_by_threads: BTreeMap::new(),
        watching: None,
        expired: None,
    }
}

fn outcome(rounds: Vec<[Report; 2]>) -> Outcome {
    let footprint = Footprint { resident_bytes: 3 << 20, disk_bytes: 6 << 20 };
    let side = |name: &str| Side { name: name.into(), version: "1".into(), loaded: footprint, end: footprint };
    let rows = vec![summarize("put:64".parse().unwrap(), rounds)];
    Outcome { cpus: 2, members: 3, keys: 10, value_bytes: 1, sides: [side("braid"), side("etcd")], rows }
}

#[test]
fn rows_are_read_as_they_are_written() {
    for text in ["put:64", "get-serializable:1", "watch-fanout:100", "put-idle-watchers:64"] {
        assert_eq!(text.parse::<Row>().unwrap().to_string(), text);
    }
    for bad in ["put", "put:0", "put:x", "push:1", ""] {
        assert!(bad.parse::<Row>().is_err(), "{bad}");
    }
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
        "| put:64 | 10000 | 5000 | 2.00 (2.00..2.00) | 1.00 / 2.00 | 2.00 / 4.00 | 100.0 / 100.0 | 10.0 / 10.0 |",
        "| disk at the end | 2 MiB | 2 MiB | 1.00 |",
        "put:64 on etcd: 3 operations failed: Unavailable: gone",
        "put:64 on etcd: 2 clients never got an answer",
    ] {
        assert!(text.contains(want), "{want:?} is missing in\n{text}");
    }
}

#[test]
fn the_number_of_a_latency_row_is_its_rate() {
    let load = |row: &str| row.parse::<Row>().unwrap().load();
    assert_eq!(load("watch-latency:500"), (LATENCY_WATCHES, Some(500.0)));
    assert_eq!(load("watch-fanout:500"), (500, None));
    assert_eq!(load("put:64"), (64, None));
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
