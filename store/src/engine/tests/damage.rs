//! Rows that cannot be read are reported by every read that meets them, and never guessed.

use super::*;

fn scene() -> (TempDir, Arc<DB>, RegionData) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let db = open(&dir);
    let data = RegionData::open(Arc::clone(&db), &region(), Arc::default());
    let put = |revision: i64, supersedes, version| TxnEffect {
        subs: Vec::new(),
        revision,
        changes: vec![pb::Change {
            key: user_key(b"k"),
            supersedes,
            create_revision: 2,
            version,
            value: "v".into(),
            ..Default::default()
        }],
    };
    data.apply(&[put(2, 0, 1), put(3, 2, 2)], &[], &[], WriteBatch::default()).expect("applied");
    (dir, db, data)
}

fn overwrite(db: &DB, row: &StoredKey, value: &[u8]) {
    let family = db.cf_handle(row.column_family()).expect("a family of the engine");
    db.put_cf(family, row.encode(), value).expect("written");
}

fn scan(data: &RegionData, revision: i64) -> Result<(), Damaged> {
    let whole = KeyRange { start: user_key(b""), end: Bytes::from_static(b"!") };
    data.snapshot()?.scan_at(&whole, revision, &mut |_, _| ControlFlow::Continue(()))
}

#[test]
fn a_damaged_live_record_fails_every_read_of_it() {
    let (_dir, db, data) = scene();
    for damaged in [&b""[..], b"\0", b"\0\xf0garbage", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"] {
        overwrite(&db, &StoredKey::Latest { key: user_key(b"k") }, damaged);
        // What was written before lies in memory still, undamaged.
        data.newest.forget();
        assert!(data.get_latest(&user_key(b"k")).is_err(), "{damaged:?}");
        assert!(data.get_at(&user_key(b"k"), 9).is_err());
        assert!(scan(&data, 9).is_err());
        assert!(
            data.snapshot()
                .expect("readable")
                .reader()
                .scan_versions(&region().range(), 2, &mut |_, _| { ControlFlow::Continue(()) })
                .is_err()
        );
        let next =
            pb::Change { key: user_key(b"k"), supersedes: 3, create_revision: 2, version: 3, ..Default::default() };
        let text = data.apply(
            &[TxnEffect { revision: 4, changes: vec![next], subs: Vec::new() }],
            &[],
            &[],
            WriteBatch::default(),
        );
        assert!(text.expect_err("it cannot be superseded").0.contains(" k"), "the text names the key");
    }
}

#[test]
fn a_damaged_version_fails_reads_at_its_revision_only() {
    let (_dir, db, data) = scene();
    overwrite(&db, &StoredKey::History { key: user_key(b"k"), revision: 2, sub: 0 }, b"\xf0garbage");
    assert!(data.get_at(&user_key(b"k"), 2).is_err());
    assert!(scan(&data, 2).is_err());
    assert!(data.get_at(&user_key(b"k"), 3).expect("readable").is_some());
    assert_eq!(scan(&data, 3), Ok(()));
    assert_eq!(data.get_at(&user_key(b"k"), 1), Ok(None));
}

#[test]
fn damaged_events_fail_what_needs_them() {
    let (_dir, db, data) = scene();
    overwrite(&db, &StoredKey::Event { region: region().region_id(), revision: 3, sub: 0 }, b"");
    data.trim();
    let changes = data.snapshot().expect("readable").changes_after(1, &mut |_| ControlFlow::Continue(()));
    assert!(changes.is_err());
    // The newest revision is known from a row of its own.
    assert_eq!(RegionData::open(Arc::clone(&db), &region(), Arc::default()).max_applied(), 3);
    overwrite(&db, &StoredKey::EventsMark { region: region().region_id() }, b"short");
    let opened = RegionData::open(db, &region(), Arc::default());
    assert!(opened.get_latest(&user_key(b"k")).is_err());
    assert!(opened.snapshot().is_err());
    assert!(opened.apply(&[], &[], &[], WriteBatch::default()).is_err());
}
