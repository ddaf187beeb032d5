//! Drops compacted history in the background.
//!
//! ```text
//!  heartbeat ─► look(compacted, drop_below, newest) ─► thread: 1. raise the boundary, durably (rule C1)
//!                                                              2. worth it, or asked for? else done
//!                                                              3. go through `history` and `events`, slice by slice
//!  heartbeat ◄─ dropped_below() ◄──────────────────────────────4. note the boundary it was done for
//! ```
//!
//! RocksDB drops what lies below the boundary whenever it compacts files anyway. That reaches files that are written to;
//! a pass reaches the rest. It runs when at least a quarter of the history lies below the boundary, so the disk holds at
//! most a third more than it must, and a row that stays is rewritten a few times in its life, not at every compaction.
//!
//! A pass must not be felt. RocksDB compacts one slice of some files at a time, beside its own compactions, which come
//! between two slices; and between two slices the pass rests longer than it worked. Never two passes at once. All stores
//! hear of a boundary in the same second, so each lets its own time pass before it begins: a write needs a majority of
//! the replicas, and does not feel one of them working.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rocksdb::{BottommostLevelCompaction, CompactOptions, DB, LiveFile};

use crate::engine::{Boundary, EVENTS, HISTORY};

/// Part of the history, one in so many, that must lie below the boundary for a pass to be worth it.
const SHARE_MIN: i64 = 4;
/// Bytes that a pass must free at least; less is left to RocksDB.
const FREED_BYTES_MIN: u64 = 32 << 20;
/// Bytes of files that are compacted at once: some tenths of a second's work, for which the engine's own compactions wait.
const SLICE_BYTES: u64 = 16 << 20;
/// Rest after a slice, in times of the work for it.
const REST: u32 = 4;
/// The same while somebody waits for the pass.
const REST_AWAITED: u32 = 1;
/// Pause after something has failed.
const RETRY: Duration = Duration::from_secs(30);
/// Longest rest: a slice that was held up by other work says nothing about its own cost.
const REST_MAX: Duration = Duration::from_secs(5);

/// What the store has heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Newest compacted revision; 0: none.
    pub compacted: i64,
    /// Somebody waits until history below this is gone from the disk; 0: nobody.
    pub drop_below: i64,
    /// Newest revision of all.
    pub newest: i64,
}

/// The background work of one store.
pub struct Compaction {
    inner: Arc<Inner>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    db: Arc<DB>,
    boundary: Arc<Boundary>,
    state: Mutex<State>,
    /// Notified when `state` changes.
    changed: Condvar,
    /// How long a pass that nobody waits for is put off.
    delay: Duration,
    /// Told when a pass has ended that somebody waits for.
    done: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct State {
    heard: Heard,
    /// How often [`Compaction::look`] was called.
    looks: u64,
    stopped: bool,
}

impl Compaction {
    /// Starts the thread. Passes begin after `delay`, and `done` is told when one has ended.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(
        db: Arc<DB>,
        boundary: Arc<Boundary>,
        delay: Duration,
        done: impl Fn() + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let (state, changed, done) = (Mutex::default(), Condvar::new(), Box::new(done));
        let inner = Arc::new(Inner { db, boundary, state, changed, delay, done });
        let worker = Arc::clone(&inner);
        let thread = std::thread::Builder::new().name("compaction".to_owned()).spawn(move || worker.run())?;
        Ok(Self { inner, thread: Mutex::new(Some(thread)) })
    }

    /// Takes what has been heard; nothing in it ever falls. Returns at once.
    pub fn look(&self, heard: Heard) {
        let mut state = self.inner.state.lock();
        let known = state.heard;
        state.heard = Heard {
            compacted: known.compacted.max(heard.compacted),
            drop_below: known.drop_below.max(heard.drop_below),
            newest: known.newest.max(heard.newest),
        };
        state.looks += 1;
        self.inner.changed.notify_one();
    }

    /// The boundary for which all history has been gone through; 0: none.
    pub fn dropped_below(&self) -> i64 {
        self.inner.boundary.dropped()
    }

    /// Ends the thread after the slice that it is at.
    pub fn stop(&self) {
        self.inner.state.lock().stopped = true;
        self.inner.changed.notify_one();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that drops history has panicked");
        }
    }
}

impl Drop for Compaction {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inner {
    fn run(&self) {
        let mut looks = 0;
        while let Some(heard) = self.next(&mut looks) {
            if let Err(why) = self.advance(heard) {
                tracing::error!(why, "history is not dropped; another try follows");
                self.rest(RETRY);
            }
        }
    }

    /// What has been heard, once that was looked at again. None: stopped.
    fn next(&self, looks: &mut u64) -> Option<Heard> {
        let mut state = self.state.lock();
        while !state.stopped && state.looks == *looks {
            self.changed.wait(&mut state);
        }
        *looks = state.looks;
        (!state.stopped).then_some(state.heard)
    }

    fn advance(&self, heard: Heard) -> Result<(), String> {
        if self.boundary.raise(heard.compacted).map_err(|damage| damage.0)? {
            metrics::gauge!("braid_store_compaction_boundary").set(self.boundary.get() as f64);
        }
        let (boundary, dropped) = (self.boundary.get(), self.boundary.dropped());
        if is_awaited(heard, boundary, dropped) {
            return self.pass(REST_AWAITED);
        }
        if is_worth_it(self.bytes(), dropped, boundary, heard.newest) && self.put_off(dropped) {
            return self.pass(REST);
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        let families = [HISTORY, EVENTS].into_iter().filter_map(|family| self.db.cf_handle(family));
        families
            .flat_map(|family| SIZES.map(|size| self.db.property_int_value_cf(family, size).ok().flatten()))
            .flatten()
            .sum()
    }

    /// Goes through all history once, resting `rest` times as long as it works, unless it is stopped on the way.
    fn pass(&self, rest: u32) -> Result<(), String> {
        let begin = Instant::now();
        // Whatever a filter uses from here on is at least this.
        let boundary = self.boundary.get();
        let before = self.bytes();
        let errors = self.engine_errors();
        for family in [HISTORY, EVENTS] {
            if !self.go_through(family, rest)? {
                return Ok(());
            }
        }
        // RocksDB does not say how a compaction ended, but counts those that failed.
        if self.engine_errors() != errors {
            return Err("a compaction failed: the engine's LOG file in the kv folder says why".to_owned());
        }
        self.boundary.note_dropped(boundary).map_err(|damage| damage.0)?;
        let (spent, after) = (begin.elapsed(), self.bytes());
        metrics::counter!("braid_history_passes_total").increment(1);
        metrics::histogram!("braid_history_pass_seconds").record(spent.as_secs_f64());
        metrics::gauge!("braid_store_dropped_below").set(boundary as f64);
        tracing::info!(boundary, before, after, ?spent, "history below the boundary is dropped");
        (self.done)();
        Ok(())
    }

    /// False: stopped on the way.
    fn go_through(&self, family: &str, rest: u32) -> Result<bool, String> {
        let handle = self.db.cf_handle(family).ok_or_else(|| format!("no column family {family}"))?;
        let files = self.db.live_files().map_err(|error| error.to_string())?;
        let files = files.into_iter().filter(|file| file.column_family_name == family);
        let mut options = CompactOptions::default();
        // Beside the engine's own compactions, not instead of them.
        options.set_exclusive_manual_compaction(false);
        // The lowest level holds most of what may go; what this pass has just written there is not written again.
        options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        for (start, end) in slices(files.collect(), SLICE_BYTES) {
            let begin = Instant::now();
            self.db.compact_range_cf_opt(handle, start.as_deref(), end.as_deref(), &options);
            if !self.rest((begin.elapsed() * rest).min(REST_MAX)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Lets other stores go first, unless somebody comes to wait. False: stopped.
    fn put_off(&self, dropped: i64) -> bool {
        let until = Instant::now() + self.delay;
        let mut state = self.state.lock();
        while !state.stopped
            && !is_awaited(state.heard, self.boundary.get(), dropped)
            && !self.changed.wait_until(&mut state, until).timed_out()
        {}
        !state.stopped
    }

    /// Waits. False: stopped.
    fn rest(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut state = self.state.lock();
        while !state.stopped && !self.changed.wait_until(&mut state, until).timed_out() {}
        !state.stopped
    }

    fn engine_errors(&self) -> u64 {
        self.db.property_int_value("rocksdb.background-errors").ok().flatten().unwrap_or(0)
    }
}

/// What a column family takes, in files and in memory.
const SIZES: [&str; 2] = ["rocksdb.live-sst-files-size", "rocksdb.cur-size-all-mem-tables"];

/// Whether somebody waits for a pass that can be made now.
fn is_awaited(heard: Heard, boundary: i64, dropped: i64) -> bool {
    dropped < heard.drop_below && heard.drop_below <= boundary
}

/// Whether enough of the history may go. It grows evenly with the revisions, as far as anybody can tell: of those since
/// the pass before, so many lie below the boundary.
fn is_worth_it(bytes: u64, dropped: i64, boundary: i64, newest: i64) -> bool {
    let (gone, all) = (boundary - dropped, newest.max(boundary) - dropped);
    if gone <= 0 || gone.saturating_mul(SHARE_MIN) < all {
        return false;
    }
    u128::from(bytes) * gone.unsigned_abs() as u128 / u128::from(all.unsigned_abs().max(1))
        >= u128::from(FREED_BYTES_MIN)
}

type Slice = (Option<Vec<u8>>, Option<Vec<u8>>);

/// Cuts a column family into ranges of about `bytes` each, at the borders of the files of its largest level: those are
/// many and do not overlap. Files of the levels above go with what they overlap. Together the ranges cover everything.
fn slices(files: Vec<LiveFile>, bytes: u64) -> Vec<Slice> {
    let size_of =
        |level: i32| files.iter().filter(|file| file.level == level).map(|file| file.size as u64).sum::<u64>();
    let levels = files.iter().map(|file| file.level).filter(|level| *level > 0);
    let Some(largest) = levels.max_by_key(|level| size_of(*level)) else { return vec![(None, None)] };
    let mut ends: Vec<(Vec<u8>, u64)> = files
        .iter()
        .filter(|file| file.level == largest)
        .filter_map(|file| Some((file.end_key.clone()?, file.size as u64)))
        .collect();
    ends.sort_unstable();
    let mut slices = Vec::new();
    let (mut start, mut filled) = (None, 0);
    for (end, size) in ends {
        filled += size;
        if filled >= bytes {
            slices.push((start, Some(end.clone())));
            (start, filled) = (Some(behind(end)), 0);
        }
    }
    slices.push((start, None));
    slices
}

/// The first key behind `key`.
fn behind(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

#[cfg(test)]
mod tests;
