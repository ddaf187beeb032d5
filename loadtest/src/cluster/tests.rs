use super::*;

fn flags(system: System) -> Vec<String> {
    let flags = Flags { name: "n1", client: "http://c", peer: "http://p", cluster: "n1=http://p", token: "t" };
    flags.args(system, Path::new("/d"), &Setup { flags: vec!["--more".into()], ..Setup::default() })
}

#[test]
fn both_systems_take_the_same_flags() {
    let (braid, etcd) = (flags(System::Braid), flags(System::Etcd));
    assert_eq!(braid[0], "server");
    assert_eq!(braid[1..], etcd[..]);
    assert_eq!(etcd.last().unwrap(), "--more");
    assert!(etcd.windows(2).any(|pair| pair == ["--quota-backend-bytes", "8589934592"]));
}

#[test]
fn a_script_is_no_program() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("etcd");
    fs::write(&script, "#!/bin/sh\nexec etcd\n").unwrap();
    assert!(Binary::new(System::Etcd, &script).is_err());
    assert!(Binary::new(System::Etcd, folder.path().join("absent")).is_err());
    assert!(Binary::new(System::Braid, std::env::current_exe().unwrap()).is_ok());
}

#[test]
fn a_folder_in_memory_is_refused() {
    let error = disk_folder(Some(Path::new("/dev/shm"))).unwrap_err().to_string();
    assert!(error.contains("in memory"), "{error}");
    assert!(disk_folder(Some(Path::new("/no/such/folder"))).is_err());
}

#[tokio::test]
async fn a_member_that_ends_at_once_is_not_awaited_and_its_last_words_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let echo = ["/bin/echo", "/usr/bin/echo"].into_iter().find(|path| is_program(Path::new(path))).unwrap();
    let binary = Binary::new(System::Braid, echo).unwrap();
    let setup = Setup { members: 1, ..Setup::default() };
    let mut cluster = Cluster::start(&binary, &setup, folder.path()).unwrap();
    let error = format!("{:#}", cluster.ready(Duration::from_secs(60)).await.unwrap_err());
    assert!(error.contains("has ended") && error.contains("server --name n1"), "{error}");
    assert!(Cluster::start(&binary, &setup, folder.path()).is_err(), "a second cluster in the same folder");
}
