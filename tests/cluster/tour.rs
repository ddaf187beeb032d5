//! The guided tour of the README: the script that `make run` shows, run as it is.

use std::process::Command;

use tempfile::tempdir;

use crate::clients::output;
use crate::etcdctl::program;
use crate::harness::{free_url, turn};

#[test]
fn the_tour_works_twice_on_the_same_folder() {
    let _turn = turn();
    let dir = tempdir().unwrap();
    for round in 1..=2 {
        let mut tour = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations/tour.sh"));
        tour.arg(env!("CARGO_BIN_EXE_braid")).arg(dir.path().join("data"));
        tour.env("BRAID_LISTEN_CLIENT_URLS", free_url()).env("BRAID_TOUR", "once").env("ETCDCTL", program());
        let output = output(&mut tour, b"");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "round {round}: {said}\n{}", String::from_utf8_lossy(&output.stderr));
        for expect in ["\nSUCCESS\n", "/registry/pods/default/e\n", "# Done"] {
            assert!(said.contains(expect), "round {round} lacks {expect:?}:\n{said}");
        }
    }
}
