//! How far compaction is behind what is written. RocksDB slows writes down for it, and in the end stops them: everything that
//! is applied on this store then waits, and with it who asks its leaders. Puts are slowed down before it comes to that
//! ([`crate::flow`]).

use rocksdb::DB;
use rocksdb::properties::num_files_at_level;
use rocksdb::properties::{ACTUAL_DELAYED_WRITE_RATE, ESTIMATE_PENDING_COMPACTION_BYTES, IS_WRITE_STOPPED};

use super::key::{ATTACHED, EVENTS, HISTORY, LATEST};

/// Files in level 0 of a family from which puts are slowed down: fewer make each compaction of them dearer, as each takes all of
/// the next level along ...
pub const LEVEL0_SLOW: u64 = 20;
/// ... and at which next to none are taken. RocksDB's own limits lie beyond (`options`).
pub const LEVEL0_FULL: u64 = 40;
/// The same for bytes of all families that are to be compacted. RocksDB slows down at 64 GiB of one family.
const PENDING_SLOW: u64 = 32 << 30;
const PENDING_FULL: u64 = 64 << 30;

/// How far compaction is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Debt {
    /// The most files that any family has in its level 0.
    pub level0_files: u64,
    /// Bytes of all families that are to be compacted, by RocksDB's estimate.
    pub pending_bytes: u64,
}

impl Debt {
    /// How far it is on the way from where puts are slowed down (0) to where next to none are taken (1 and beyond).
    pub fn share(&self) -> f64 {
        let share = |now: u64, slow: u64, full: u64| now.saturating_sub(slow) as f64 / (full - slow) as f64;
        share(self.level0_files, LEVEL0_SLOW, LEVEL0_FULL).max(share(self.pending_bytes, PENDING_SLOW, PENDING_FULL))
    }
}

/// What RocksDB does to writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Brake {
    /// Nothing.
    #[default]
    Off,
    /// They may not be faster than some bytes per second.
    Slows,
    /// They wait until something is compacted or flushed.
    Stops,
}

/// What was seen last.
#[derive(Debug, Default)]
pub struct Pressure {
    brake: Brake,
}

impl Pressure {
    /// Looks again, once a second or so: sets the gauges, and says when writes begin and cease to be held up.
    pub fn look(&mut self, db: &DB) -> Debt {
        let number = |name| db.property_int_value(name).ok().flatten().unwrap_or(0);
        let (rate, stopped) = (number(ACTUAL_DELAYED_WRITE_RATE), number(IS_WRITE_STOPPED) > 0);
        let debt = compaction_debt(db);
        let Debt { level0_files, pending_bytes } = debt;
        metrics::gauge!("braid_store_level0_files").set(level0_files as f64);
        metrics::gauge!("braid_store_pending_compaction_bytes").set(pending_bytes as f64);
        metrics::gauge!("braid_store_delayed_write_bytes_per_second").set(rate as f64);
        metrics::gauge!("braid_store_writes_stopped").set(if stopped { 1.0 } else { 0.0 });
        let brake = match (stopped, rate) {
            (true, _) => Brake::Stops,
            (false, 0) => Brake::Off,
            (false, _) => Brake::Slows,
        };
        if std::mem::replace(&mut self.brake, brake) == brake {
            return debt;
        }
        match brake {
            Brake::Off => tracing::info!(level0_files, pending_bytes, "RocksDB holds writes up no more"),
            Brake::Slows => {
                tracing::warn!(rate, level0_files, pending_bytes, "compaction is behind: RocksDB slows writes down");
            }
            Brake::Stops => {
                tracing::warn!(level0_files, pending_bytes, "compaction is behind: RocksDB takes no writes")
            }
        }
        debt
    }
}

fn compaction_debt(db: &DB) -> Debt {
    let families = [LATEST, HISTORY, EVENTS, ATTACHED].into_iter().filter_map(|family| db.cf_handle(family));
    families.fold(Debt::default(), |debt, family| {
        let files = db.property_value_cf(family, num_files_at_level(0)).ok().flatten();
        let files = files.and_then(|text| text.parse().ok()).unwrap_or(0);
        let pending = db.property_int_value_cf(family, ESTIMATE_PENDING_COMPACTION_BYTES).ok().flatten();
        Debt { level0_files: debt.level0_files.max(files), pending_bytes: debt.pending_bytes + pending.unwrap_or(0) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests::open;

    #[test]
    fn files_that_pile_up_and_writes_that_wait_for_them_are_seen() {
        let dir = tempfile::tempdir().expect("a folder");
        let db = open(&dir);
        let latest = db.cf_handle(LATEST).expect("a family");
        let mut pressure = Pressure::default();
        for files in 1..=3 {
            db.put_cf(latest, b"key", b"value").expect("written");
            db.flush_cf(latest).expect("flushed");
            assert_eq!(compaction_debt(&db).level0_files, files);
        }
        for (slows_at, stops_at, brake) in
            [("20", "36", Brake::Off), ("2", "36", Brake::Slows), ("2", "3", Brake::Stops), ("20", "36", Brake::Off)]
        {
            let limits = [("level0_slowdown_writes_trigger", slows_at), ("level0_stop_writes_trigger", stops_at)];
            db.set_options_cf(latest, &limits).expect("set");
            pressure.look(&db);
            assert_eq!(pressure.brake, brake, "3 files, {limits:?}");
        }
    }
}
