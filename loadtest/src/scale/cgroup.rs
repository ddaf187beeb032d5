//! An equal share of a CPU for a process, by a control group of its own.
//!
//! Version 1 (`cpu.cfs_quota_us` under the `cpu` controller) or version 2 (`cpu.max`), whichever the machine has. A
//! period is short, so that a process that has used its share stands still for some milliseconds and not for a tenth of
//! a second: heartbeats keep flowing. Groups are removed when they are dropped, which must be after their process has
//! ended.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::Serialize;

/// Where control groups are mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// From one filling up of a share to the next, in microseconds; longer for shares of which it holds too little.
const PERIOD_MICROS: u64 = 20_000;
/// The kernel takes no longer period.
const PERIOD_MICROS_MAX: u64 = 1_000_000;
/// The kernel takes no smaller part of a period.
const QUOTA_MICROS_MIN: u64 = 1_000;
/// How long the kernel may take to forget a process that has ended.
const FORGET: Duration = Duration::from_secs(5);

/// Makes groups of one share each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limiter {
    folder: PathBuf,
    version: Version,
    share: Share,
}

/// Microseconds of CPU in each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    quota: u64,
    period: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A group with one process.
#[derive(Debug)]
pub struct Group {
    folder: PathBuf,
}

/// How often a process was made to stand still.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Throttled {
    /// Periods in which it wanted to run.
    pub periods: u64,
    /// Those of them in which its share was used up.
    pub throttled: u64,
}

impl Throttled {
    /// From an earlier moment to this one.
    pub fn since(self, before: Self) -> Self {
        Self {
            periods: self.periods.saturating_sub(before.periods),
            throttled: self.throttled.saturating_sub(before.throttled),
        }
    }

    /// Percent of the periods in which its share was used up.
    pub fn percent(self) -> f64 {
        100.0 * self.throttled as f64 / self.periods.max(1) as f64
    }
}

impl Limiter {
    /// Shares of so many percent of one CPU, by the groups under `root`.
    pub fn new(root: &Path, percent: f64) -> anyhow::Result<Self> {
        let share = share(percent)?;
        let one = root.join("cpu");
        if one.join("cpu.cfs_quota_us").is_file() {
            return Ok(Self { folder: one, version: Version::One, share });
        }
        let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        ensure!(
            controllers.split_ascii_whitespace().any(|name| name == "cpu"),
            "CPU shares need control groups with the cpu controller: there is neither {}/cpu (version 1) nor cpu in \
             {}/cgroup.controllers (version 2)",
            root.display(),
            root.display()
        );
        let control = root.join("cgroup.subtree_control");
        fs::write(&control, "+cpu").with_context(|| {
            format!("cannot let groups under {} limit CPU: run this as root, outside of a container", root.display())
        })?;
        Ok(Self { folder: root.to_owned(), version: Version::Two, share })
    }

    /// Puts a process, with all its threads, into a new group.
    pub fn limit(&self, name: &str, pid: u32) -> anyhow::Result<Group> {
        let folder = self.folder.join(format!("loadtest-{}-{name}", std::process::id()));
        fs::create_dir(&folder)
            .with_context(|| format!("cannot make the control group {}: CPU shares need root", folder.display()))?;
        let group = Group { folder };
        match self.version {
            Version::One => {
                group.write("cpu.cfs_period_us", &self.share.period.to_string())?;
                group.write("cpu.cfs_quota_us", &self.share.quota.to_string())?;
            }
            Version::Two => group.write("cpu.max", &format!("{} {}", self.share.quota, self.share.period))?,
        }
        group.write("cgroup.procs", &pid.to_string())?;
        Ok(group)
    }
}

impl Group {
    /// How often its process stood still since the group was made.
    pub fn throttled(&self) -> anyhow::Result<Throttled> {
        let path = self.folder.join("cpu.stat");
        let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(throttled(&stat))
    }

    fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        let path = self.folder.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {text} to {}", path.display()))
    }

    fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + FORGET;
        loop {
            match fs::remove_dir(&self.folder) {
                // The kernel may still count a process that has just been waited for.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    sleep(Duration::from_millis(5));
                }
                done => return done,
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("the control group {} is left behind: {error}", self.folder.display());
        }
    }
}

fn share(percent: f64) -> anyhow::Result<Share> {
    if !percent.is_finite() || percent <= 0.0 {
        bail!("a share of {percent} % of a CPU: it must be above 0");
    }
    let quota = (PERIOD_MICROS as f64 * percent / 100.0).round() as u64;
    if quota >= QUOTA_MICROS_MIN {
        return Ok(Share { quota, period: PERIOD_MICROS });
    }
    let period = (QUOTA_MICROS_MIN as f64 * 100.0 / percent).round() as u64;
    let least = 100.0 * QUOTA_MICROS_MIN as f64 / PERIOD_MICROS_MAX as f64;
    ensure!(period <= PERIOD_MICROS_MAX, "a share of {percent} % of a CPU is too small: give at least {least} %");
    Ok(Share { quota: QUOTA_MICROS_MIN, period })
}

/// Both versions have the same names for these figures.
fn throttled(stat: &str) -> Throttled {
    let figure = |name: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|text| text.trim().parse().ok()).unwrap_or_default()
    };
    Throttled { periods: figure("nr_periods"), throttled: figure("nr_throttled") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group's folder as the kernel would show it, after its removal has been made possible: plain files stay where
    /// the kernel's vanish.
    fn read_and_empty(group: &Group, files: &[&str]) -> Vec<String> {
        let read = files.iter().map(|file| fs::read_to_string(group.folder.join(file)).unwrap()).collect();
        for file in fs::read_dir(&group.folder).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
        read
    }

    #[test]
    fn version_1_gets_a_quota_of_a_short_period() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("cpu")).unwrap();
        fs::write(root.path().join("cpu/cpu.cfs_quota_us"), "-1").unwrap();
        let group = Limiter::new(root.path(), 8.0).unwrap().limit("s1", 4711).unwrap();
        let folder = group.folder.clone();
        assert!(folder.starts_with(root.path().join("cpu")));
        let files = read_and_empty(&group, &["cpu.cfs_quota_us", "cpu.cfs_period_us", "cgroup.procs"]);
        assert_eq!(files, ["1600", "20000", "4711"]);
        drop(group);
        assert!(!folder.exists());
    }

    #[test]
    fn version_2_gets_a_maximum() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io").unwrap();
        let group = Limiter::new(root.path(), 50.0).unwrap().limit("s1", 4711).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("cgroup.subtree_control")).unwrap(), "+cpu");
        assert_eq!(read_and_empty(&group, &["cpu.max", "cgroup.procs"]), ["10000 20000", "4711"]);
    }

    #[test]
    fn a_small_share_has_a_longer_period() {
        assert_eq!(share(5.0).unwrap(), Share { quota: 1_000, period: 20_000 });
        assert_eq!(share(2.5).unwrap(), Share { quota: 1_000, period: 40_000 });
        assert_eq!(share(0.1).unwrap(), Share { quota: 1_000, period: 1_000_000 });
    }

    #[test]
    fn a_machine_without_the_controller_and_shares_out_of_range_are_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "io memory").unwrap();
        let error = Limiter::new(root.path(), 8.0).unwrap_err().to_string();
        assert!(error.contains("version 1") && error.contains("version 2"), "{error}");
        for (percent, want) in [(0.0, "above 0"), (f64::NAN, "above 0"), (0.09, "at least 0.1 %")] {
            let error = Limiter::new(root.path(), percent).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn standing_still_is_read_from_the_kernels_figures() {
        let before = throttled("nr_periods 10\nnr_throttled 2\nthrottled_time 7\n");
        let now = throttled("usage_usec 5\nnr_periods 30\nnr_throttled 12\nthrottled_usec 7\n");
        assert_eq!(now.since(before), Throttled { periods: 20, throttled: 10 });
        assert!((now.since(before).percent() - 50.0).abs() < 1e-9);
        assert!(Throttled::default().percent().abs() < 1e-9);
    }
}
