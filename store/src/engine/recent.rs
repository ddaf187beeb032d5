//! The newest changes of a region, in memory and in the order they were applied.
//!
//! A read at R is nearly always a read at a bound taken a moment ago; these are the changes since. Rows lie in chunks with
//! their keys packed behind each other, because a key that shared the raft entry's buffer would keep the whole entry
//! alive. A clone shares the chunks; adding to a shared one copies the last chunk.
//!
//! Bounded: [`CHUNKS_MAX`] chunks of [`CHUNK_ROWS`] changes. What falls out raises the revision above which the rest is
//! complete (rule F5).

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::changes::{Change, ChangeKind};

/// Changes in a chunk: what adding to a shared chunk copies at most, about 16 KiB.
pub const CHUNK_ROWS: usize = 256;
/// Chunks of a region: about 250 KiB with keys of 40 bytes.
pub const CHUNKS_MAX: usize = 16;

/// The newest changes. See the module's text.
#[derive(Clone, Debug)]
pub struct Recent {
    chunks: VecDeque<Arc<Chunk>>,
    /// Exclusive: every change applied with a revision above it is here. Rises only.
    complete_above: i64,
}

#[derive(Clone, Debug, Default)]
struct Chunk {
    rows: Vec<Row>,
    keys: Vec<u8>,
    /// Newest revision in it.
    newest: i64,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    revision: i64,
    sub: u32,
    /// Where its key ends in the chunk's keys; it begins where the one before ends.
    key_end: u32,
    kind: ChangeKind,
}

impl Recent {
    /// Nothing, complete above `applied`: the newest revision applied so far.
    pub fn new(applied: i64) -> Self {
        Self { chunks: VecDeque::new(), complete_above: applied }
    }

    /// See the field.
    pub fn complete_above(&self) -> i64 {
        self.complete_above
    }

    /// Adds a change that was just applied.
    pub fn push(&mut self, change: Change<'_>) {
        let Change { revision, sub, kind, key } = change;
        if self.chunks.back().is_none_or(|chunk| chunk.rows.len() >= CHUNK_ROWS) {
            self.chunks.push_back(Arc::default());
            if self.chunks.len() > CHUNKS_MAX {
                self.drop_oldest();
            }
        }
        let Some(chunk) = self.chunks.back_mut() else { return };
        let chunk = Arc::make_mut(chunk);
        chunk.keys.extend_from_slice(key);
        chunk.rows.push(Row { revision, sub, key_end: chunk.keys.len() as u32, kind });
        chunk.newest = chunk.newest.max(revision);
    }

    /// Visits the changes above `after`, in the order they were applied.
    pub fn visit_after(&self, after: i64, visit: &mut dyn FnMut(Change<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
        for chunk in self.chunks.iter().filter(|chunk| chunk.newest > after) {
            let mut key_start = 0;
            for row in &chunk.rows {
                let key = &chunk.keys[key_start..row.key_end as usize];
                key_start = row.key_end as usize;
                if row.revision > after {
                    visit(Change { revision: row.revision, sub: row.sub, kind: row.kind, key })?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Forgets everything, to save memory while nothing happens.
    pub fn clear(&mut self) {
        while !self.chunks.is_empty() {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(chunk) = self.chunks.pop_front() {
            self.complete_above = self.complete_above.max(chunk.newest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: i64, key: &[u8]) -> Change<'_> {
        Change { revision, sub: 0, kind: ChangeKind::Updated, key }
    }

    fn after(recent: &Recent, revision: i64) -> Vec<(i64, Vec<u8>)> {
        let mut seen = Vec::new();
        _ = recent.visit_after(revision, &mut |change| {
            seen.push((change.revision, change.key.to_vec()));
            ControlFlow::Continue(())
        });
        seen
    }

    #[test]
    fn changes_above_a_revision_come_in_order() {
        let mut recent = Recent::new(9);
        for revision in 10..2000 {
            recent.push(change(revision, format!("k{revision}").as_bytes()));
        }
        assert_eq!(recent.complete_above(), 9);
        for at in [9, 10, 500, 1998, 1999, 3000] {
            let expected: Vec<_> = (at + 1..2000).map(|r| (r, format!("k{r}").into_bytes())).collect();
            assert_eq!(after(&recent, at), expected);
        }
    }

    #[test]
    fn a_late_low_revision_is_found_and_hides_nothing() {
        let mut recent = Recent::new(0);
        for revision in [100, 101, 99, 102] {
            recent.push(change(revision, b"k"));
        }
        let above = |at| after(&recent, at).into_iter().map(|(revision, _)| revision).collect::<Vec<_>>();
        assert_eq!(above(100), [101, 102]);
        assert_eq!(above(98), [100, 101, 99, 102]);
    }

    #[test]
    fn overflow_raises_the_mark_to_the_newest_that_fell_out() {
        let mut recent = Recent::new(0);
        let all = (CHUNK_ROWS * (CHUNKS_MAX + 1)) as i64;
        recent.push(change(all + 50, b"early high one"));
        for revision in 2..=all + 1 {
            recent.push(change(revision, b"k"));
        }
        assert_eq!(recent.complete_above(), all + 50, "the first chunk held a high revision");
        let clone = recent.clone();
        recent.clear();
        assert_eq!(after(&recent, 0), []);
        assert_eq!(recent.complete_above(), all + 50);
        assert!(!after(&clone, 0).is_empty(), "a clone keeps its chunks");
    }
}
