//! Folders that must not be opened: somebody else's, damaged ones, ones in use.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use braid_proto::id::ClusterId;
use braid_proto::pb::Domain;
use prost::Message as _;

use super::cluster::{Cluster, region};
use super::kv::Kv;
use super::net::Port;
use crate::config::HostConfig;
use crate::meta::{FORMAT, Ident};
use crate::{Host, OpenError};

/// A stopped host with one region and some data.
fn stopped() -> Cluster {
    let mut cluster = Cluster::new(1);
    cluster.create(&[region(1, "", "", &[1])]);
    (0..50).for_each(|n| cluster.put(1, &format!("k{n}"), "value"));
    cluster.stop(1);
    cluster
}

fn open(cluster: &Cluster, config: HostConfig) -> Result<Host, OpenError> {
    Host::open_with(config, cluster.timing, Arc::new(Kv::default()), Arc::new(Port(Arc::clone(&cluster.net))))
}

fn refusal(cluster: &Cluster, config: HostConfig) -> String {
    let text = open(cluster, config).err().expect("must be refused").to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    text
}

#[test]
fn a_folder_of_somebody_else_is_refused() {
    let mut cluster = stopped();
    let config = cluster.config(1);
    let text = refusal(&cluster, HostConfig { cluster_id: ClusterId(78), ..config.clone() });
    assert!(text.contains("belongs to store 1 of cluster 4d, not to store 1 of cluster 4e"), "{text}");
    let text = refusal(&cluster, HostConfig { host_id: 2, ..config.clone() });
    assert!(text.contains("not to store 2"), "{text}");
    let text = refusal(&cluster, HostConfig { domain: Domain::Placement, ..config.clone() });
    assert!(text.contains("not to placement member 1"), "{text}");
    assert!(matches!(open(&cluster, HostConfig { host_id: 0, ..config }), Err(OpenError::Config(_))));
    // Nothing was changed by any of this.
    cluster.start(1);
    assert_eq!(cluster.get(1, "k49").as_deref(), Some("value"));
    assert_eq!(cluster.nodes[&1].host.incarnation().0, 2);
}

#[test]
fn a_folder_in_use_is_refused() {
    let cluster = Cluster::new(1);
    let text = refusal(&cluster, cluster.config(1));
    assert!(text.contains("in use by another running process"), "{text}");
}

#[test]
fn a_damaged_ident_is_refused() {
    let cluster = stopped();
    let path = cluster.folder(1).join("IDENT");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(refusal(&cluster, cluster.config(1)).contains("IDENT cannot be read"));
    fs::remove_file(&path).unwrap();
    assert!(refusal(&cluster, cluster.config(1)).contains("IDENT is missing"));
}

/// Writes IDENT anew, with another format.
fn set_format(cluster: &Cluster, format: u32) {
    let path = cluster.folder(1).join("IDENT");
    let mut ident = Ident::decode(&fs::read(&path).unwrap()[4..]).unwrap();
    ident.format = format;
    let body = ident.encode_to_vec();
    fs::write(&path, [&crc32fast::hash(&body).to_le_bytes()[..], &body].concat()).unwrap();
}

#[test]
fn a_folder_of_another_format_is_refused() {
    let mut cluster = stopped();
    for older in [0, 1, FORMAT - 1] {
        set_format(&cluster, older);
        let text = refusal(&cluster, cluster.config(1));
        assert!(text.contains(&format!("by an older version (format {older}, this program needs {FORMAT})")), "{text}");
        assert!(text.ends_with("start that version, or start this one on an empty folder"), "{text}");
    }
    set_format(&cluster, FORMAT + 1);
    let text = refusal(&cluster, cluster.config(1));
    assert!(
        text.contains(&format!("by a newer version (format {}, this program knows {FORMAT})", FORMAT + 1)),
        "{text}"
    );
    // Nothing was changed by any of this.
    set_format(&cluster, FORMAT);
    cluster.start(1);
    assert_eq!(cluster.get(1, "k49").as_deref(), Some("value"));
}

#[test]
fn a_lost_half_is_refused() {
    let cluster = stopped();
    let kept = cluster.folder(1).join("kept");
    fs::rename(cluster.folder(1).join("kv"), &kept).unwrap();
    let text = refusal(&cluster, cluster.config(1));
    assert!(text.contains("of which the kv folder knows nothing"), "{text}");
    fs::remove_dir_all(cluster.folder(1).join("kv")).unwrap();
    fs::rename(&kept, cluster.folder(1).join("kv")).unwrap();
    fs::remove_dir_all(cluster.folder(1).join("log")).unwrap();
    let text = refusal(&cluster, cluster.config(1));
    assert!(text.contains("r1: applied up to") && text.contains("its log is gone"), "{text}");
}

fn last_log_file(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder.join("log")).unwrap().map(|file| file.unwrap().path());
    let mut logs: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "raftlog")).collect();
    logs.sort();
    logs.pop().unwrap()
}

#[test]
fn a_log_that_lost_applied_entries_is_refused_and_a_torn_end_is_not() {
    let mut cluster = stopped();
    let path = last_log_file(&cluster.folder(1));
    let whole = fs::read(&path).unwrap();
    // Half a record behind what was acknowledged, as a crash leaves it.
    OpenOptions::new().append(true).open(&path).unwrap().write_all(&whole[whole.len() / 2..][..37]).unwrap();
    cluster.start(1);
    assert_eq!(cluster.get(1, "k49").as_deref(), Some("value"));
    cluster.stop(1);
    let path = last_log_file(&cluster.folder(1));
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let text = refusal(&cluster, cluster.config(1));
    assert!(text.contains("is damaged") && text.contains("the end of the log is lost"), "{text}");
}
