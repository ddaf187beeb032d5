//! The counts of a region: built when somebody first counts, kept exact by apply, cut by splits.
//!
//! Building walks all keys of the region, so it does not hold up apply: what comes and goes meanwhile is noted and added
//! at the end. A region that nobody counts pays nothing.

use std::ops::ControlFlow;
use std::sync::Arc;

use braid_proto::key::KeyRange;
use braid_proto::pb::Region;
use braid_store_core::buckets::{Buckets, Builder, Overfull};
use braid_store_core::view::Damaged;
use bytes::Bytes;

use super::changes::{Change, ChangeKind};
use super::region::{Deltas, Inner, Published, RegionData};
use super::scan::Reader;

/// Keys that may come and go while the counts are built. Beyond it building is given up, and counts walk until it succeeds
/// in a quieter moment; at most 30 MB with keys of 100 bytes.
const DELTAS_MAX: usize = 1 << 18;

impl RegionData {
    /// Builds the counts if there are none: before the first count of a region, or ahead of it, when a peer begins to
    /// lead. Takes as long as a walk over the region's keys.
    ///
    /// # Errors
    /// The keys cannot be read.
    pub fn build_counts(&self) -> Result<(), Damaged> {
        let _one_builds = self.counting.lock();
        if self.inner.read().published.counts.is_some() {
            return Ok(());
        }
        // Under one lock: what is applied is either in the snapshot or in the notes.
        let snapshot = {
            let mut inner = self.inner.write();
            inner.deltas = Some(Vec::new());
            self.snapshot_of(&inner.published)
        };
        let mut builder = Builder::default();
        let walked = snapshot.reader().walk_keys(snapshot.range(), &mut |key| {
            builder.push(key);
            ControlFlow::Continue(())
        });
        let mut inner = self.inner.write();
        let deltas = inner.deltas.take();
        walked?;
        // A split meanwhile has cut the range, or too much has happened: the next count tries again.
        let Some(deltas) = deltas.filter(|_| inner.published.range == *snapshot.range()) else { return Ok(()) };
        let mut counts = builder.finish();
        for (kind, key) in &deltas {
            count(&mut counts, *kind, key);
        }
        Arc::make_mut(&mut inner.published).counts = Some(counts);
        Ok(())
    }

    /// The region's range has changed. A split leaves the counts of what remains; anything else drops them.
    pub fn on_region(&self, region: &Region) {
        let range = region.range();
        let before = Arc::clone(&self.inner.read().published);
        if before.range == range {
            return;
        }
        let counts = before.counts.clone().filter(|_| before.range.contains_range(&range));
        // Nothing is applied meanwhile: both are called by one thread.
        let counts = counts.and_then(|counts| cut(counts, &before.range, &range, &Reader::now(&self.db)).ok());
        if before.range.contains_range(&range) {
            self.written.lock().halve();
        } else {
            // Keys that came with the range, or were here before and have been elsewhere since.
            self.newest.forget();
        }
        let mut inner = self.inner.write();
        let published = Arc::make_mut(&mut inner.published);
        published.range = range;
        published.counts = counts;
        inner.cut_locks();
    }

    /// Splits the buckets of `keys` that have grown too large. Called by apply, after the keys are written.
    pub(super) fn split_buckets(&self, keys: &[&[u8]]) -> Result<(), Damaged> {
        let (own, overfull): (KeyRange, Vec<Overfull>) = {
            let inner = self.inner.read();
            let Some(counts) = &inner.published.counts else { return Ok(()) };
            let mut found: Vec<Overfull> = keys.iter().filter_map(|key| counts.overfull(key)).collect();
            // Keys of one bucket need not be neighbours in the order they were written.
            found.sort_unstable_by(|a, b| a.range.start.cmp(&b.range.start));
            found.dedup();
            (inner.published.range.clone(), found)
        };
        for bucket in overfull {
            let piece = bucket.piece();
            let mut cuts: Vec<Bytes> = Vec::new();
            let mut walked = 0;
            // The first and the last bucket reach beyond the region, to where its neighbours' keys lie.
            Reader::now(&self.db).walk_keys(&bucket.range.intersect(&own), &mut |key| {
                if walked > 0 && walked % piece == 0 {
                    cuts.push(Bytes::copy_from_slice(key));
                }
                walked += 1;
                ControlFlow::Continue(())
            })?;
            assert_eq!(walked, bucket.keys, "counted and live keys of {:?} in {}", bucket.range, self.region);
            let mut inner = self.inner.write();
            if let Some(counts) = &mut Arc::make_mut(&mut inner.published).counts {
                cuts.into_iter().for_each(|cut| counts.split(cut, piece));
            }
        }
        Ok(())
    }
}

impl Inner {
    /// Notes an applied change. True: the bucket of its key has grown too large.
    pub fn count(published: &mut Published, deltas: &mut Option<Deltas>, change: Change<'_>) -> bool {
        if change.kind == ChangeKind::Updated {
            return false;
        }
        if let Some(noted) = deltas {
            noted.push((change.kind, change.key.into()));
            if noted.len() > DELTAS_MAX {
                *deltas = None;
            }
        }
        published.counts.as_mut().is_some_and(|counts| count(counts, change.kind, change.key))
    }
}

fn count(counts: &mut Buckets, kind: ChangeKind, key: &[u8]) -> bool {
    match kind {
        ChangeKind::Created => counts.add(key),
        ChangeKind::Updated => false,
        ChangeKind::Deleted => {
            counts.remove(key);
            false
        }
    }
}

/// The counts of `range`, of those of the region's range before. Counts know no borders: their first bucket begins, and
/// their last one ends, where the neighbours' keys lie in the same database.
fn cut(mut counts: Buckets, before: &KeyRange, range: &KeyRange, reader: &Reader<'_>) -> Result<Buckets, Damaged> {
    let mut walk = |part: &KeyRange| reader.count_latest(&part.intersect(before));
    if !range.end.is_empty() {
        counts.split_off(&range.end, &mut walk)?;
    }
    counts.split_off(&range.start, &mut walk)
}
