//! What local processes and folders use: CPU time, resident memory, bytes on disk. Linux only: it reads `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

/// User and system time that a process has used since it started, all threads, also those that have ended.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}: is process {pid} alive?"))?;
    let ticks = cpu_ticks(&stat).with_context(|| format!("{path} is not understood: {stat}"))?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// Sum of `cpu_time` over processes.
pub fn cpu_time_of_all(pids: &[u32]) -> anyhow::Result<Duration> {
    pids.iter().map(|&pid| cpu_time(pid)).sum()
}

/// CPU time of this process and of servers up to a moment, or between two moments.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// This process.
    pub client: Duration,
    /// All servers, if any were named.
    pub servers: Option<Duration>,
    /// The servers' threads by the group that their name tells; threads that ended in between are in no group.
    pub groups: BTreeMap<String, Duration>,
}

impl Usage {
    /// Up to now.
    pub fn read(servers: &[u32]) -> anyhow::Result<Self> {
        let mut groups = BTreeMap::new();
        for &pid in servers {
            for (name, time) in thread_times(pid)? {
                *groups.entry(thread_group(&name)).or_default() += time;
            }
        }
        let all = if servers.is_empty() { None } else { Some(cpu_time_of_all(servers)?) };
        Ok(Self { client: cpu_time(std::process::id())?, servers: all, groups })
    }

    /// From an earlier moment to this one.
    pub fn since(&self, before: &Self) -> Self {
        let groups = self.groups.iter().map(|(name, time)| {
            let before = before.groups.get(name).copied().unwrap_or_default();
            (name.clone(), time.saturating_sub(before))
        });
        Self {
            client: self.client.saturating_sub(before.client),
            servers: self.servers.map(|time| time.saturating_sub(before.servers.unwrap_or_default())),
            groups: groups.filter(|(_, time)| !time.is_zero()).collect(),
        }
    }
}

/// Name and CPU time of every thread of a process. Threads that end meanwhile are left out.
fn thread_times(pid: u32) -> anyhow::Result<Vec<(String, Duration)>> {
    let folder = format!("/proc/{pid}/task");
    let threads = fs::read_dir(&folder).with_context(|| format!("cannot read {folder}: is process {pid} alive?"))?;
    let tick = 1.0 / rustix::param::clock_ticks_per_second() as f64;
    let times = threads.filter_map(|thread| {
        let thread = thread.ok()?.path();
        let stat = fs::read_to_string(thread.join("stat")).ok()?;
        let name = stat.get(stat.find('(')? + 1..stat.rfind(')')?)?.to_owned();
        // Ticks are coarse (10 ms) for one of many threads; where the kernel counts nanoseconds these are better.
        let nanos = fs::read_to_string(thread.join("schedstat")).ok();
        let nanos = nanos.and_then(|text| text.split_ascii_whitespace().next()?.parse().ok());
        let ticks = || Some(Duration::from_secs_f64(cpu_ticks(&stat)? as f64 * tick));
        Some((name, nanos.map(Duration::from_nanos).or_else(ticks)?))
    });
    Ok(times.collect())
}

/// What threads of this name do: the name without its number.
fn thread_group(name: &str) -> String {
    let stem = name.trim_end_matches(|last: char| last.is_ascii_digit() || matches!(last, '-' | '_' | ':' | '.' | '#'));
    match stem.is_empty() {
        true => name.to_owned(),
        false => stem.to_owned(),
    }
}

/// Resident memory of a process.
pub fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}: is process {pid} alive?"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    Ok(kib.with_context(|| format!("{path} has no VmRSS"))? * 1024)
}

/// Bytes that a folder takes on disk: allocated blocks, so a preallocated log counts and a hole does not. Files that
/// vanish meanwhile count as nothing.
pub fn disk_bytes(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        entries => entries.with_context(|| format!("cannot read {}", folder.display()))?,
    };
    for entry in entries {
        let entry = entry?;
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            bytes += disk_bytes(&entry.path())?;
        }
    }
    Ok(bytes)
}

/// Packets that the loopback interface has carried since the machine started, of all processes.
pub fn loopback_packets() -> anyhow::Result<u64> {
    let path = "/sys/class/net/lo/statistics/rx_packets";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    text.trim().parse().with_context(|| format!("{path} is not understood: {text}"))
}

/// utime + stime: fields 14 and 15, counted after the name in brackets, which may itself hold spaces and brackets.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::io::Write;
    use std::time::Instant;

    use super::*;

    #[test]
    fn ticks_are_found_behind_an_awkward_name() {
        let stat = "42 (a ) b) S 1 2 3 4 5 6 7 8 9 10 700 30 0 0 20 0 1 0 100";
        assert_eq!(cpu_ticks(stat), Some(730));
        assert_eq!(cpu_ticks("42 (a) S 1"), None);
    }

    #[test]
    fn work_done_by_this_process_shows() {
        let before = cpu_time(std::process::id()).unwrap();
        let start = Instant::now();
        while cpu_time(std::process::id()).unwrap() < before + Duration::from_millis(30) {
            assert!(start.elapsed() < Duration::from_secs(20), "no CPU time was counted");
            (0..1_000_000u64).for_each(|i| {
                black_box(i);
            });
        }
    }

    #[test]
    fn threads_are_grouped_by_their_names() {
        let groups =
            [("raft-0", "raft"), ("tokio-rt-worker", "tokio-rt-worker"), ("rocksdb:low12", "rocksdb:low"), ("7", "7")];
        for (name, group) in groups {
            assert_eq!(thread_group(name), group);
        }
    }

    #[test]
    fn what_a_thread_used_is_in_its_group() {
        let own = [std::process::id()];
        let before = Usage::read(&own).unwrap();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let busy = std::thread::Builder::new().name("busy-3".into()).spawn(move || {
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                (0..100_000u64).for_each(|i| {
                    black_box(i);
                });
            }
        });
        let start = Instant::now();
        let used = loop {
            let used = Usage::read(&own).unwrap().since(&before);
            if used.groups.get("busy").is_some_and(|time| *time >= Duration::from_millis(20)) {
                break used;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{used:?}");
            std::thread::yield_now();
        };
        drop(stop);
        busy.unwrap().join().unwrap();
        assert!(used.servers.is_some_and(|all| all >= used.groups["busy"]), "{used:?}");
        assert_eq!(Usage::read(&[]).unwrap().servers, None);
    }

    #[test]
    fn memory_and_disk_are_counted() {
        assert!(resident_bytes(std::process::id()).unwrap() > 100_000);
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("deep")).unwrap();
        let mut file = fs::File::create(folder.path().join("deep/file")).unwrap();
        file.write_all(&vec![1; 1 << 20]).unwrap();
        file.sync_all().unwrap();
        let bytes = disk_bytes(folder.path()).unwrap();
        assert!((1 << 20..3 << 20).contains(&bytes), "{bytes}");
        assert_eq!(disk_bytes(&folder.path().join("absent")).unwrap(), 0);
    }

    #[test]
    fn packets_on_the_loopback_interface_are_counted() {
        let before = loopback_packets().unwrap();
        let [to, from] = [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        (0..50).for_each(|_| {
            from.send_to(b"packet", to.local_addr().unwrap()).unwrap();
        });
        assert!(loopback_packets().unwrap() >= before + 50);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        assert!(cpu_time(u32::MAX).unwrap_err().to_string().contains("alive"));
    }
}
