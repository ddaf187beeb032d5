//! What a folder lets in.

use braid_proto::id::{ClusterId, StoreId};
use tempfile::tempdir;

use super::identity::{Claim, FORMAT, IDENTITY_FILE, Role};
use super::*;

fn claim() -> Claim {
    Claim {
        role: Role::Server,
        name: "n1".into(),
        cluster_id: Some(ClusterId(0xfeed_0000_0000_0001)),
        member_id: Some(7),
        store_id: None,
        stores: None,
    }
}

fn must_refuse(path: &Path, claim: Claim) -> String {
    let before = fs::read_to_string(path.join(IDENTITY_FILE)).unwrap();
    let error = Folder::open(path).unwrap().claim(claim).unwrap_err().to_string();
    assert_eq!(fs::read_to_string(path.join(IDENTITY_FILE)).unwrap(), before, "nothing is overwritten");
    assert_eq!(error.lines().count(), 1);
    error
}

#[test]
fn a_folder_remembers_whose_it_is_and_learns_what_was_unknown() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("deep/data");
    Folder::open(&path).unwrap().claim(claim()).unwrap();
    let mut folder = Folder::open(&path).unwrap();
    let known = folder.claim(Claim { store_id: Some(StoreId(3)), ..claim() }).unwrap();
    assert_eq!(known.cluster_id(), Some(ClusterId(0xfeed_0000_0000_0001)));
    drop(folder);
    // A start that does not know the store yet does not forget it.
    Folder::open(&path).unwrap().claim(claim()).unwrap();
    assert!(must_refuse(&path, Claim { store_id: Some(StoreId(4)), ..claim() }).contains("belongs to store s3"));
}

#[test]
fn every_mismatch_is_named_and_changes_nothing() {
    let dir = tempdir().unwrap();
    Folder::open(dir.path()).unwrap().claim(Claim { stores: Some(3), ..claim() }).unwrap();
    let cases = [
        (Claim { role: Role::Store, ..claim() }, "belongs to `braid server`, not to `braid store`"),
        (Claim { name: "n2".into(), ..claim() }, "belongs to \"n1\", not to \"n2\""),
        (
            Claim { cluster_id: Some(ClusterId(5)), ..claim() },
            "would join cluster 0000000000000005; correct --initial-cluster",
        ),
        (Claim { member_id: Some(8), ..claim() }, "makes this process member 0000000000000008"),
        (Claim { stores: Some(1), ..claim() }, "was made with --stores 3"),
    ];
    for (claim, expect) in cases {
        let error = must_refuse(dir.path(), claim);
        assert!(error.contains(expect), "{error}");
    }
}

#[test]
fn two_processes_cannot_share_a_folder() {
    let dir = tempdir().unwrap();
    let held = Folder::open(dir.path()).unwrap();
    assert!(matches!(Folder::open(dir.path()), Err(FolderError::InUse(_))));
    drop(held);
    Folder::open(dir.path()).unwrap();
}

#[test]
fn a_folder_of_something_else_is_left_alone() {
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("member")).unwrap();
    let error = Folder::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("holds \"member\" but was not made by braid"), "{error}");
    assert!(!dir.path().join(LOCK_FILE).exists());

    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(Folder::open(&file), Err(FolderError::File(_))));
}

#[test]
fn a_damaged_or_newer_identity_stops_the_start() {
    let dir = tempdir().unwrap();
    let refuse = |content: &[u8]| {
        fs::write(dir.path().join(IDENTITY_FILE), content).unwrap();
        Folder::open(dir.path()).unwrap_err().to_string()
    };
    for damaged in
        [&b"format = "[..], b"", b"format = 1\n", b"format = 1\nrole = \"king\"\nname = \"a\"\n", b"\xff\xfe"]
    {
        let error = refuse(damaged);
        assert!(error.contains("is damaged") && error.lines().count() == 1, "{error}");
    }
    let error = refuse(format!("format = {}\nwhatever = 1\n", FORMAT + 1).as_bytes());
    assert!(error.contains("start it with the newer braid"), "{error}");
}

#[test]
fn a_full_disk_is_said_before_anything_is_written() {
    let error = check_space(Path::new("/data"), 3 << 20, FREE_BYTES_NEW).unwrap_err().to_string();
    assert_eq!(
        error,
        "the disk of the data folder /data has 3 MiB free and braid needs 256 MiB to start; free some space"
    );
    assert!(check_space(Path::new("/data"), FREE_BYTES_KNOWN, FREE_BYTES_KNOWN).is_ok());
}
