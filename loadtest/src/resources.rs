//! What local processes and folders use: CPU time, resident memory, bytes on disk. Linux only: it reads `/proc`.

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
