//! Reads that leave out what a transaction has deleted and the region has not wiped yet.

use super::*;

/// Leaving ranges out reads like a region that never held them, whatever the request.
#[test]
fn what_is_gone_is_read_around() {
    let dirs = [tempfile::tempdir().expect("a temporary folder"), tempfile::tempdir().expect("a temporary folder")];
    let [all, rest] = [0, 1].map(|at| RegionData::open(open(&dirs[at]), &region(), Arc::default()));
    let name = |n: i64| user_key(format!("k{n:02}").as_bytes());
    let span = |from: &str, to: &str| KeyRange { start: user_key(from.as_bytes()), end: user_key(to.as_bytes()) };
    let gone = [span("k30", "k40"), span("k10", "k20")];
    for n in 0..50 {
        let change = pb::Change { key: name(n), create_revision: n + 2, version: 1, ..Default::default() };
        let txn = TxnEffect { revision: n + 2, changes: vec![change], subs: Vec::new() };
        all.apply(std::slice::from_ref(&txn), &[], &[], WriteBatch::default()).expect("applied");
        if !gone.iter().any(|gone| gone.contains(&name(n))) {
            rest.apply(&[txn], &[], &[], WriteBatch::default()).expect("applied");
        }
    }
    let ranges =
        [("k", "l"), ("k05", "k15"), ("k10", "k20"), ("k12", "k18"), ("k15", "k35"), ("k35", "l"), ("k12", "")];
    for (key, range_end) in ranges {
        for (limit, count_only) in [(0, false), (3, false), (0, true)] {
            let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
            let request = RangeRequest { key, range_end, limit, count_only, ..Default::default() };
            let range = KeyRange::user(&request.key, &request.range_end);
            for revision in [51, 60, 30] {
                let read = all.read_range(&request, &range, revision, &gone).expect("readable");
                let expected = rest.read_range(&request, &range, revision, &[]).expect("readable");
                assert_eq!(read, expected, "{request:?} at @{revision}");
            }
        }
    }
}
