//! Whether there is room to write: the backend quota and the disk's free space, checked once a second.
//!
//! A store without room refuses what puts keys, with etcd's no-space error, and goes on with reads and deletes.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// When a store refuses to take more.
#[derive(Clone, Copy, Debug)]
pub struct SpaceLimits {
    /// Bytes on disk after which puts are refused; 0: no such limit.
    pub quota_bytes: u64,
    /// Free bytes of the disk below which puts are refused: raft logs, compaction and recovery need room too.
    pub free_bytes_min: u64,
}

impl Default for SpaceLimits {
    fn default() -> Self {
        Self { quota_bytes: 0, free_bytes_min: 256 << 20 }
    }
}

/// The state of a store's disk as last seen.
pub struct Space {
    dir: PathBuf,
    limits: SpaceLimits,
    writable: AtomicBool,
    used: AtomicU64,
    available: AtomicU64,
    capacity: AtomicU64,
}

impl Space {
    /// Nothing measured yet: writable.
    pub fn new(dir: PathBuf, limits: SpaceLimits) -> Self {
        Self {
            dir,
            limits,
            writable: AtomicBool::new(true),
            used: AtomicU64::new(0),
            available: AtomicU64::new(u64::MAX),
            capacity: AtomicU64::new(0),
        }
    }

    /// Whether puts are taken.
    pub fn writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    /// `(capacity, available, used)` in bytes: what placement counts with, so a quota bounds the first two.
    pub fn sizes(&self) -> (u64, u64, u64) {
        (
            self.capacity.load(Ordering::Relaxed),
            self.available.load(Ordering::Relaxed),
            self.used.load(Ordering::Relaxed),
        )
    }

    /// Looks at the disk again. `used`: bytes of this store's files.
    pub fn refresh(&self, used: u64) {
        let disk = match rustix::fs::statvfs(&self.dir) {
            Ok(fs) => Disk::of(fs.f_blocks, fs.f_bfree, fs.f_bavail, fs.f_frsize),
            Err(error) => {
                tracing::warn!(dir = %self.dir.display(), %error, "cannot read the free space of the data folder's disk");
                return;
            }
        };
        let Disk { capacity, available } = disk.within(self.limits.quota_bytes, used);
        self.used.store(used, Ordering::Relaxed);
        self.capacity.store(capacity, Ordering::Relaxed);
        self.available.store(available, Ordering::Relaxed);
        let writable = self.has_room(used, disk.available);
        if self.writable.swap(writable, Ordering::Relaxed) != writable {
            match writable {
                true => tracing::info!(used, available, "there is room again: puts are taken"),
                false => tracing::error!(
                    used,
                    available,
                    quota = self.limits.quota_bytes,
                    free_min = self.limits.free_bytes_min,
                    "no room: puts are refused until keys are deleted, the quota is raised or the disk gets free space"
                ),
            }
        }
        metrics::gauge!("braid_store_writable").set(if writable { 1.0 } else { 0.0 });
        metrics::gauge!("etcd_mvcc_db_total_size_in_bytes").set(used as f64);
        metrics::gauge!("etcd_server_quota_backend_bytes").set(self.limits.quota_bytes as f64);
    }

    fn has_room(&self, used: u64, available: u64) -> bool {
        let within_quota = self.limits.quota_bytes == 0 || used < self.limits.quota_bytes;
        within_quota && available >= self.limits.free_bytes_min
    }
}

/// What a disk has for this process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Disk {
    capacity: u64,
    available: u64,
}

impl Disk {
    /// From `statvfs`'s counts of blocks. What the file system holds back (`free` less `available`) is no capacity of
    /// ours: counted as such, a disk would look fuller than it can ever be filled.
    fn of(blocks: u64, free: u64, available: u64, block_bytes: u64) -> Self {
        let held_back = free.saturating_sub(available);
        Self { capacity: blocks.saturating_sub(held_back) * block_bytes, available: available * block_bytes }
    }

    /// What of it a store may use that holds `used` bytes and has a quota (0: none).
    fn within(self, quota: u64, used: u64) -> Self {
        if quota == 0 {
            return self;
        }
        Self { capacity: self.capacity.min(quota), available: self.available.min(quota.saturating_sub(used)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_back_and_what_a_quota_forbids_is_no_room() {
        let disk = Disk::of(100, 60, 20, 4);
        assert_eq!(disk, Disk { capacity: 240, available: 80 });
        assert_eq!(disk.within(0, 500), disk);
        assert_eq!(disk.within(100, 30), Disk { capacity: 100, available: 70 });
        assert_eq!(disk.within(100, 130), Disk { capacity: 100, available: 0 });
        assert_eq!(disk.within(1 << 40, 30), disk);
    }

    #[test]
    fn quota_and_free_space_both_count() {
        let space = Space::new(PathBuf::from("/"), SpaceLimits { quota_bytes: 100, free_bytes_min: 10 });
        assert!(space.has_room(99, 10));
        assert!(!space.has_room(100, 10));
        assert!(!space.has_room(0, 9));
        let unlimited = Space::new(PathBuf::from("/"), SpaceLimits { quota_bytes: 0, free_bytes_min: 10 });
        assert!(unlimited.has_room(u64::MAX, 10));
    }

    #[test]
    fn a_full_store_refuses_and_recovers() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let space = Space::new(dir.path().to_owned(), SpaceLimits { quota_bytes: 100, free_bytes_min: 0 });
        space.refresh(100);
        assert!(!space.writable());
        space.refresh(50);
        assert!(space.writable());
    }
}
