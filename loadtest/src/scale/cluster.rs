//! A local cluster of separate processes: placement members, proxies, stores. Stores can be added while it runs and can
//! be limited to a share of a CPU each.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::cgroup::{Group, Limiter, Throttled};
use crate::admin::Admin;
use crate::client::Address;
use crate::cluster::{Binary, Member};
use crate::process::{Process, Spec, free_port};
use crate::resources;

/// How long the processes may take to come up.
const READY: Duration = Duration::from_secs(120);
/// From one look to the next.
const LOOK: Duration = Duration::from_millis(50);

/// What a cluster begins with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Members of placement's group.
    pub placements: usize,
    /// Proxies.
    pub proxies: usize,
    /// Stores.
    pub stores: usize,
    /// Replicas of each region.
    pub replicas: usize,
    /// Further flags of placement: how an empty cluster is cut, what is compacted.
    pub placement_flags: Vec<String>,
    /// Further flags of every store.
    pub store_flags: Vec<String>,
    /// Each store's share of a CPU.
    pub limiter: Option<Limiter>,
}

/// A running cluster. Its processes are killed when it is dropped; its files stay.
#[derive(Debug)]
pub struct Cluster {
    binary: Binary,
    setup: Setup,
    folder: PathBuf,
    /// Peer addresses of placement's members.
    placement_urls: Vec<String>,
    placements: Vec<Node>,
    proxies: Vec<Member>,
    stores: Vec<Node>,
}

/// A process that clients do not speak to.
#[derive(Debug)]
struct Node {
    // Dropped in this order: a group can be removed when its process is gone.
    process: Process,
    group: Option<Group>,
    data_dir: PathBuf,
}

/// What one process has used up to a moment, or between two moments, and what it holds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Used {
    /// CPU time in seconds.
    pub cpu_seconds: f64,
    /// How often a limited store stood still.
    pub throttled: Option<Throttled>,
    /// Resident memory at the end.
    pub resident_bytes: u64,
    /// Its folder at the end.
    pub disk_bytes: u64,
}

impl Used {
    /// From an earlier moment to this one.
    pub fn since(&self, before: &Self) -> Self {
        let throttled = self.throttled.map(|now| now.since(before.throttled.unwrap_or_default()));
        Self { cpu_seconds: (self.cpu_seconds - before.cpu_seconds).max(0.0), throttled, ..*self }
    }
}

impl Cluster {
    /// Starts a new cluster in a folder and waits until it serves.
    pub async fn start(binary: &Binary, setup: &Setup, folder: &Path) -> anyhow::Result<Self> {
        ensure!(setup.placements > 0 && setup.proxies > 0, "a cluster has at least one placement member and one proxy");
        ensure!(
            setup.stores >= setup.replicas,
            "{} stores cannot hold {} replicas of a region",
            setup.stores,
            setup.replicas
        );
        let mut cluster = Self {
            binary: binary.clone(),
            setup: setup.clone(),
            folder: folder.to_owned(),
            placement_urls: (0..setup.placements).map(|_| url()).collect::<anyhow::Result<_>>()?,
            placements: Vec::new(),
            proxies: Vec::new(),
            stores: Vec::new(),
        };
        for number in 0..setup.placements {
            cluster.add_placement(number)?;
        }
        for number in 0..setup.proxies {
            cluster.add_proxy(number)?;
        }
        cluster.spawn_stores(setup.stores)?;
        cluster.ready().await?;
        Ok(cluster)
    }

    /// Starts more stores, up to so many, and waits until placement says that they are up.
    pub async fn grow_to(&mut self, stores: usize) -> anyhow::Result<()> {
        self.spawn_stores(stores.saturating_sub(self.stores.len()))?;
        self.stores_up().await
    }

    /// How many stores there are.
    pub fn stores(&self) -> usize {
        self.stores.len()
    }

    /// Where clients reach the proxies.
    pub fn endpoints(&self) -> Vec<Address> {
        self.proxies.iter().map(|proxy| proxy.client.clone()).collect()
    }

    /// The admin service at the first proxy.
    pub async fn admin(&self) -> anyhow::Result<Admin> {
        Admin::connect(&self.proxies[0].client).await
    }

    /// An error if a process has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        let nodes = self.placements.iter_mut().chain(&mut self.stores).map(|node| &mut node.process);
        for process in nodes.chain(self.proxies.iter_mut().map(|proxy| &mut proxy.process)) {
            if let Some(status) = process.ended()? {
                bail!("{} has ended ({status})\n{}", process.spec().name, process.log_tail(15));
            }
        }
        Ok(())
    }

    /// What every process has used up to now, by name.
    pub fn used(&self) -> anyhow::Result<BTreeMap<String, Used>> {
        let nodes = self.placements.iter().chain(&self.stores);
        let nodes = nodes.map(|node| (&node.process, &node.data_dir, node.group.as_ref()));
        let proxies = self.proxies.iter().map(|proxy| (&proxy.process, &proxy.data_dir, None));
        let used = nodes.chain(proxies).map(|(process, data_dir, group)| {
            let used = Used {
                cpu_seconds: resources::cpu_time(process.pid())?.as_secs_f64(),
                throttled: group.map(Group::throttled).transpose()?,
                resident_bytes: resources::resident_bytes(process.pid())?,
                disk_bytes: resources::disk_bytes(data_dir)?,
            };
            Ok((process.spec().name.clone(), used))
        });
        used.collect()
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY;
        for number in 0..self.proxies.len() {
            let ready = self.proxies[number].ready(deadline).await;
            // What is the matter may be told by another process.
            self.check()?;
            ready.with_context(|| format!("{} is not ready", self.proxies[number].process.spec().name))?;
        }
        self.stores_up().await
    }

    async fn stores_up(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY;
        let mut admin = self.admin().await?;
        loop {
            self.check()?;
            let up = admin.stores_up().await.map(|stores| stores.len());
            if up.as_ref().is_ok_and(|up| *up >= self.stores.len()) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "not all of {} stores are up after {READY:?}: {up:?}",
                self.stores.len()
            );
            sleep(LOOK).await;
        }
    }

    fn add_placement(&mut self, number: usize) -> anyhow::Result<()> {
        let name = |number: usize| format!("placement-{}", number + 1);
        let all = self.placement_urls.iter().enumerate().map(|(number, url)| format!("{}={url}", name(number)));
        let (own, url) = (name(number), self.placement_urls[number].clone());
        let mut flags = vec![
            ("--listen-peer-urls", url.clone()),
            ("--initial-advertise-peer-urls", url),
            ("--initial-cluster", all.collect::<Vec<_>>().join(",")),
            ("--initial-cluster-token", self.folder.display().to_string()),
            ("--replicas", self.setup.replicas.to_string()),
        ];
        let (process, data_dir) = self.spawn("placement", &own, &mut flags, &self.setup.placement_flags, true)?;
        self.placements.push(Node { process, group: None, data_dir });
        Ok(())
    }

    fn add_proxy(&mut self, number: usize) -> anyhow::Result<()> {
        let (name, client) = (format!("proxy-{}", number + 1), url()?);
        let mut flags = vec![
            ("--placement-endpoints", self.placement_urls.join(",")),
            ("--listen-client-urls", client.clone()),
            ("--advertise-client-urls", client.clone()),
        ];
        let (process, data_dir) = self.spawn("proxy", &name, &mut flags, &[], false)?;
        let client = client.parse().map_err(anyhow::Error::msg)?;
        self.proxies.push(Member { name, client, data_dir, process });
        Ok(())
    }

    fn spawn_stores(&mut self, count: usize) -> anyhow::Result<()> {
        for _ in 0..count {
            let name = format!("store-{}", self.stores.len() + 1);
            let mut flags =
                vec![("--placement-endpoints", self.placement_urls.join(",")), ("--listen-peer-urls", url()?)];
            let (process, data_dir) = self.spawn("store", &name, &mut flags, &self.setup.store_flags, true)?;
            let limit = |limiter: &Limiter| limiter.limit(&name, process.pid());
            let group = self.setup.limiter.as_ref().map(limit).transpose()?;
            self.stores.push(Node { process, group, data_dir });
        }
        Ok(())
    }

    /// Starts a process of a role with a folder of its own.
    fn spawn(
        &self,
        role: &str,
        name: &str,
        flags: &mut Vec<(&str, String)>,
        more: &[String],
        has_data: bool,
    ) -> anyhow::Result<(Process, PathBuf)> {
        let home = self.folder.join(name);
        fs::create_dir(&home).with_context(|| format!("cannot create the folder {}", home.display()))?;
        let data_dir = home.join("data");
        flags.push(("--name", name.to_owned()));
        if has_data {
            flags.push(("--data-dir", data_dir.display().to_string()));
        }
        let flags = flags.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]);
        let process = Process::start(Spec {
            name: name.to_owned(),
            program: self.binary.path.clone(),
            args: std::iter::once(role.to_owned()).chain(flags).chain(more.iter().cloned()).collect(),
            env: Vec::new(),
            env_hidden_prefixes: vec!["BRAID_".into()],
            log: home.join("log"),
        })?;
        Ok((process, data_dir))
    }
}

/// An address on a free port.
fn url() -> anyhow::Result<String> {
    Ok(format!("http://127.0.0.1:{}", free_port()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::System;

    fn setup() -> Setup {
        Setup {
            placements: 1,
            proxies: 1,
            stores: 3,
            replicas: 3,
            placement_flags: Vec::new(),
            store_flags: Vec::new(),
            limiter: None,
        }
    }

    #[tokio::test]
    async fn a_cluster_that_cannot_be_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let binary = Binary { system: System::Braid, path: "/bin/true".into() };
        let start = async |setup: Setup| Cluster::start(&binary, &setup, folder.path()).await.unwrap_err().to_string();
        assert!(start(Setup { stores: 2, ..setup() }).await.contains("2 stores cannot hold 3 replicas"));
        assert!(start(Setup { proxies: 0, ..setup() }).await.contains("at least one placement member"));
    }

    #[test]
    fn what_was_used_in_between_is_a_difference_and_what_is_held_is_not() {
        let throttled = |periods, throttled| Some(Throttled { periods, throttled });
        let before = Used { cpu_seconds: 1.0, throttled: throttled(10, 1), resident_bytes: 5, disk_bytes: 6 };
        let now = Used { cpu_seconds: 3.5, throttled: throttled(20, 6), resident_bytes: 7, disk_bytes: 8 };
        let used = now.since(&before);
        assert!((used.cpu_seconds - 2.5).abs() < 1e-9);
        assert_eq!((used.throttled, used.resident_bytes, used.disk_bytes), (throttled(10, 5), 7, 8));
    }
}
