//! A hash of what reads can see: the same for all replicas of a range, whatever each has dropped or kept on its disk.
//!
//! - It covers the versions that some read at a revision of a [`Window`] shows: not those that were superseded at or below
//!   the compaction boundary, which may be gone, and not those that came after the newest revision.
//! - Each version goes in as its key, its head, the revision that superseded it (0 if that is after the window) and its
//!   value, each with a fixed length or its length before it, so no two sequences of versions look alike.
//! - Versions come in key order and newest first, and CRC-32C of two neighbouring ranges makes that of both
//!   ([`RangeHash::then`]): where the regions are cut changes nothing.

use braid_proto::pb::HashResponse;

use crate::record::Head;

/// Bytes of a version that goes in, beside its key and its value: their lengths, create and mod revision, version, lease,
/// the end.
const FIXED_BYTES: usize = 7 * 8;
// Lengths of what other machines have hashed fit into this one's word.
const _: () = assert!(usize::BITS == 64);

/// The revisions whose reads a hash covers. Both ends inclusive; `first <= last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    first: i64,
    last: i64,
}

impl Window {
    /// From the compaction boundary, or the first revision of all if that is below, to `last`. `None`: nothing in between.
    pub fn new(boundary: i64, last: i64) -> Option<Self> {
        let first = boundary.max(1);
        (first <= last).then_some(Self { first, last })
    }

    /// Whether some read in the window shows the version that was made at `made` and superseded at `superseded` (0: it is
    /// live); if so, what its hash says about its end.
    pub fn end_of(self, made: i64, superseded: i64) -> Option<i64> {
        let lived = superseded == 0 || (superseded > made && superseded > self.first);
        (made <= self.last && lived).then_some(if superseded > self.last { 0 } else { superseded })
    }
}

/// The hash of a range, which begins as that of an empty one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeHash {
    /// CRC-32C of all that went in.
    pub crc: u32,
    /// Bytes that went in.
    pub bytes: u64,
    /// Keys that went in; who calls [`Self::add`] counts them.
    pub keys: u64,
    /// Versions that went in.
    pub versions: u64,
}

impl RangeHash {
    /// Adds a version that follows all before it in key order, newest first. `end` is [`Window::end_of`].
    pub fn add(&mut self, key: &[u8], head: &Head, value: &[u8], end: i64) {
        let mut fixed = [0; FIXED_BYTES];
        let numbers = [
            key.len() as i64,
            value.len() as i64,
            head.create_revision,
            head.mod_revision,
            head.version,
            head.lease,
            end,
        ];
        for (place, number) in fixed.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        for part in [&fixed[..], key, value] {
            self.crc = crc32c::crc32c_append(self.crc, part);
            self.bytes += part.len() as u64;
        }
        self.versions += 1;
    }

    /// The hash of this range and the one that follows it.
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        Self {
            crc: crc32c::crc32c_combine(self.crc, next.crc, next.bytes as usize),
            bytes: self.bytes + next.bytes,
            keys: self.keys + next.keys,
            versions: self.versions + next.versions,
        }
    }
}

impl From<RangeHash> for HashResponse {
    fn from(hash: RangeHash) -> Self {
        let RangeHash { crc, bytes, keys, versions } = hash;
        Self { crc, bytes, keys, versions }
    }
}

impl From<HashResponse> for RangeHash {
    fn from(hash: HashResponse) -> Self {
        let HashResponse { crc, bytes, keys, versions } = hash;
        Self { crc, bytes, keys, versions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Head = Head { create_revision: 3, mod_revision: 7, version: 2, lease: 0 };

    fn one(key: &[u8], head: Head, value: &[u8], end: i64) -> RangeHash {
        let mut hash = RangeHash::default();
        hash.add(key, &head, value, end);
        hash
    }

    #[test]
    fn a_window_holds_what_some_read_in_it_shows() {
        let window = Window::new(10, 20).expect("not empty");
        let shown = |made, superseded| {
            let at = |revision: i64| made <= revision && (superseded == 0 || revision < superseded);
            (10..=20).any(at)
        };
        for made in 1..25 {
            for superseded in 0..30 {
                let end = window.end_of(made, superseded);
                // A version that is superseded at its own revision, or before, is never shown.
                assert_eq!(end.is_some(), shown(made, superseded), "{made} to {superseded}");
                if let Some(end) = end {
                    assert_eq!(end, if superseded > 20 { 0 } else { superseded });
                }
            }
        }
        assert_eq!(Window::new(0, 1), Window::new(1, 1));
        assert_eq!(Window::new(21, 20), None);
        assert_eq!(Window::new(0, 0), None);
    }

    #[test]
    fn every_part_of_a_version_counts() {
        let hashes = [
            one(b"k", HEAD, b"value", 0),
            one(b"j", HEAD, b"value", 0),
            one(b"k", HEAD, b"valuf", 0),
            one(b"kv", HEAD, b"alue", 0),
            one(b"k", HEAD, b"value", 9),
            one(b"k", Head { create_revision: 4, ..HEAD }, b"value", 0),
            one(b"k", Head { mod_revision: 8, ..HEAD }, b"value", 0),
            one(b"k", Head { version: 3, ..HEAD }, b"value", 0),
            one(b"k", Head { lease: 1, ..HEAD }, b"value", 0),
            RangeHash::default(),
        ];
        for (i, a) in hashes.iter().enumerate() {
            assert!(hashes[..i].iter().all(|b| a.crc != b.crc), "{i}");
        }
    }

    #[test]
    fn neighbours_make_the_whole_wherever_it_is_cut() {
        let add = |hash: &mut RangeHash, n: u8| {
            hash.add(&[n; 3], &Head { lease: n.into(), ..HEAD }, &vec![n; usize::from(n) * 40], 0);
            hash.keys += 1;
        };
        let of = |range: std::ops::Range<u8>| {
            let mut hash = RangeHash::default();
            range.for_each(|n| add(&mut hash, n));
            hash
        };
        let whole = of(0..9);
        for a in 0..=9 {
            for b in a..=9 {
                assert_eq!(of(0..a).then(of(a..b)).then(of(b..9)), whole, "cut at {a} and {b}");
            }
        }
        assert_ne!(of(4..9).then(of(0..4)).crc, whole.crc, "order counts");
    }

    #[test]
    fn the_bytes_are_fixed() {
        // Stores of several versions are compared during an upgrade.
        assert_eq!(one(b" k", HEAD, b"value", 9).crc, 0xf2a8_e842);
    }
}
