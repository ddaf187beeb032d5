//! How far a region's log can be truncated. Pure.

/// Entries below which truncating is not worth an entry of its own.
const WORTH_ENTRIES: u64 = 64;
/// Entries that stay: a follower that misses the last ones must not need a snapshot for them.
const KEPT_ENTRIES: u64 = 3;

/// The log of a region as its leader sees it.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Gone up to here.
    pub truncated: u64,
    /// Applied here up to here.
    pub applied: u64,
    /// Last entry.
    pub last: u64,
    /// What every peer has.
    pub replicated: u64,
    /// Bytes of the entries, about.
    pub bytes: u64,
    /// A raft snapshot that is being made or sent stands at this index; the log behind it is needed.
    pub snapshot: Option<u64>,
}

/// What may be kept for followers that lag.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Entries.
    pub entries: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The index to truncate to (inclusive), if it is worth it. `forced`: old entries pin files, take what is possible.
pub fn compact_index(span: Span, keep: Keep, forced: bool) -> Option<u64> {
    let mut index = span.replicated;
    if span.last - span.truncated > keep.entries {
        index = index.max(span.last - keep.entries);
    }
    if span.bytes > keep.bytes {
        index = index.max(span.truncated + (span.last - span.truncated) / 2);
    }
    if forced {
        index = index.max(span.applied);
    }
    index = index.min(span.applied).min(span.last.saturating_sub(KEPT_ENTRIES));
    index = index.min(span.snapshot.unwrap_or(u64::MAX));
    let gain = index.saturating_sub(span.truncated);
    (gain >= if forced { 1 } else { WORTH_ENTRIES }).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Keep = Keep { entries: 1000, bytes: 10_000 };

    fn span() -> Span {
        Span { truncated: 5, applied: 500, last: 505, replicated: 400, bytes: 100, snapshot: None }
    }

    #[test]
    fn what_everybody_has_goes() {
        assert_eq!(compact_index(span(), KEEP, false), Some(400));
        assert_eq!(compact_index(Span { replicated: 60, ..span() }, KEEP, false), None);
        assert_eq!(compact_index(Span { replicated: 505, ..span() }, KEEP, false), Some(500));
        assert_eq!(compact_index(Span { replicated: 505, applied: 505, ..span() }, KEEP, false), Some(502));
    }

    #[test]
    fn laggards_are_cut_off_by_count_and_by_bytes() {
        assert_eq!(compact_index(Span { replicated: 0, ..span() }, Keep { entries: 100, ..KEEP }, false), Some(405));
        assert_eq!(compact_index(Span { replicated: 0, bytes: 10_001, ..span() }, KEEP, false), Some(255));
    }

    #[test]
    fn a_snapshot_under_way_keeps_what_follows_it_and_force_takes_the_rest() {
        assert_eq!(compact_index(Span { snapshot: Some(300), ..span() }, KEEP, false), Some(300));
        assert_eq!(compact_index(Span { replicated: 7, ..span() }, KEEP, true), Some(500));
        let idle = Span { truncated: 5, applied: 6, last: 6, replicated: 6, ..span() };
        assert_eq!(compact_index(idle, KEEP, true), None);
    }
}
