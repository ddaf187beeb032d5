//! Readers beside a writer: each read is one moment, and what was true at a revision stays true.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;

const KEYS: i64 = 300;
const MOVES: i64 = 4_000;

fn key(n: i64) -> Bytes {
    user_key(format!("k{n:06}").as_bytes())
}

fn change(key: Bytes, supersedes: i64, create_revision: i64, version: i64, value: i64) -> pb::Change {
    pb::Change { key, supersedes, create_revision, version, value: value.to_string().into(), ..Default::default() }
}

/// Revision 2 puts `clock` and the first keys. Every later one moves a window: deletes its first key, puts one behind its
/// last, and writes its own number to `clock`. So at any revision `KEYS` keys and a clock are live.
fn window(revision: i64) -> TxnEffect {
    let clock = user_key(b"clock");
    if revision == 2 {
        let mut changes = vec![change(clock, 0, 2, 1, 2)];
        changes.extend((2..2 + KEYS).map(|n| change(key(n), 0, 2, 1, n)));
        return TxnEffect { revision, changes, subs: Vec::new() };
    }
    let gone = revision - 1;
    let made_at = if gone < 2 + KEYS { 2 } else { gone - KEYS + 1 };
    let delete = pb::Change { key: key(gone), supersedes: made_at, delete: true, ..Default::default() };
    let changes = vec![
        change(clock, revision - 1, 2, revision - 1, revision),
        delete,
        change(key(gone + KEYS), 0, revision, 1, revision),
    ];
    TxnEffect { revision, changes, subs: Vec::new() }
}

fn check_moment(data: &RegionData) {
    let whole = KeyRange { start: user_key(b"k"), end: user_key(b"l") };
    let snapshot = data.snapshot().expect("readable");
    let newest = snapshot.max_applied();
    let mut live = 0;
    snapshot
        .scan(&whole, &mut |_, _| {
            live += 1;
            ControlFlow::Continue(())
        })
        .expect("readable");
    assert_eq!((live, snapshot.count(&whole, &[])), (KEYS, Ok(KEYS as u64)), "@{newest}");
    for revision in [newest, newest - 1, newest - 40, newest - 700] {
        if revision < 2 {
            continue;
        }
        let found = scanned(&snapshot, &whole, revision);
        let first = if revision == 2 { 2 } else { revision };
        assert!(
            found.iter().map(|(key, _)| key).eq(&(first..first + KEYS).map(key).collect::<Vec<_>>()),
            "@{revision}"
        );
        assert_eq!(snapshot.count_at(&whole, revision), Ok(KEYS as u64), "@{revision}");
        // Without a snapshot, while the writer goes on.
        let at = |key: &[u8]| data.get_at(key, revision).expect("readable");
        assert_eq!(at(b" clock").expect("it is never deleted").value, revision.to_string(), "@{revision}");
        assert!(at(&key(first)).is_some() && at(&key(first + KEYS - 1)).is_some(), "@{revision}");
        assert!(at(&key(first - 1)).is_none() && at(&key(first + KEYS)).is_none(), "@{revision}");
    }
}

#[test]
fn every_moment_is_whole_while_another_thread_applies() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let data = RegionData::open(open(&dir), &region(), Arc::default());
    data.apply(&[window(2)], &[], &[], WriteBatch::default()).expect("applied");
    let (done, looks) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !done.load(Ordering::Acquire) {
                        check_moment(&data);
                        looks.fetch_add(1, Ordering::AcqRel);
                    }
                })
            })
            .collect();
        let builder = scope.spawn(|| data.build_counts().expect("counted"));
        let mut revision = 3;
        // At least so many moves, and at least so many looks at them; a reader that has failed ends it.
        while (revision < MOVES || looks.load(Ordering::Acquire) < 20)
            && !readers.iter().any(|reader| reader.is_finished())
        {
            let batch = 1 + revision % 4;
            let txns: Vec<TxnEffect> = (revision..revision + batch).map(window).collect();
            data.apply(&txns, &[], &[], WriteBatch::default()).expect("applied");
            revision += batch;
        }
        done.store(true, Ordering::Release);
        builder.join().expect("no panic");
        readers.into_iter().for_each(|reader| reader.join().expect("no panic"));
    });
    check_moment(&data);
    data.build_counts().expect("counted");
    check_moment(&data);
}
