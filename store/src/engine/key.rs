//! Every key that the engine persists, to the byte.
//!
//! An internal key that is followed by something else is escaped, so that rows sort by key first and no key is a prefix of
//! another: `00` becomes `00 FF`, and `00 00` ends it. Revisions and sub-revisions that follow a key are inverted
//! (`!number`), so that the newest version comes first.

use braid_proto::id::RegionId;
use braid_proto::key::{KeyRange, lease_key, lease_of};
use braid_store_core::view::Damaged;
use bytes::Bytes;

/// Column family of live records.
pub const LATEST: &str = "latest";
/// Column family of superseded records.
pub const HISTORY: &str = "history";
/// Column family of what happened, by region and revision.
pub const EVENTS: &str = "events";
/// Column family of locks and records of transactions over several regions.
pub const LOCKS: &str = "locks";
/// Column family of the records of leases.
pub const LEASES: &str = "leases";
/// Column family of which keys a lease may be attached to.
pub const ATTACHED: &str = "attached";

/// Bytes of a history key after the escaped internal key.
pub const VERSION_LEN: usize = 12;

/// Bytes of an attached key before the internal key.
pub const LEASE_LEN: usize = 8;

/// Bytes of a lock's key after the escaped internal key.
const TOKEN_LEN: usize = 24;

/// A persisted key. Numbers are big endian, so that they sort.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredKey {
    /// `latest`: the internal key as it is.
    /// Value: varint sub-revision of the put, then the record (`braid_store_core::record`).
    Latest {
        /// Internal key.
        key: Bytes,
    },
    /// `history`: escaped internal key, `!revision` 8 bytes, `!sub` 4 bytes: the record that the put at (revision, sub)
    /// made. Written when it is superseded by a put or a delete.
    /// Value: varint revision and varint sub of the change that superseded it, then the record. It is what the key was at
    /// the revisions
    /// from its own up to that one, the latter exclusive; a gap before the next row is a time when the key was absent.
    History {
        /// Internal key.
        key: Bytes,
        /// Revision of the put.
        revision: i64,
        /// Its place among the changes of that revision.
        sub: u32,
    },
    /// `events`: region id 8 bytes, revision 8 bytes, sub 4 bytes.
    /// Value: kind 1 byte (0 created, 1 updated, 2 deleted), then the internal key.
    Event {
        /// Region that applied the change.
        region: RegionId,
        /// Revision of the change.
        revision: i64,
        /// Its place among the changes of that revision.
        sub: u32,
    },
    /// `events`: region id 8 bytes and nothing else; sorts before the region's events.
    /// Value: revision 8 bytes, exclusive: of what the region's range has seen above it no event is missing. Written when a
    /// region begins with data (the child of a split). Absent: 0.
    EventsMark {
        /// The region.
        region: RegionId,
    },
    /// `events`: region id 8 bytes and a zero byte; sorts between the mark and the events.
    /// Value: revision 8 bytes: the newest that the region has applied, whatever has become of its event. Written with
    /// every batch that raises it. Absent: nothing was ever applied.
    AppliedMark {
        /// The region.
        region: RegionId,
    },
    /// `events`: one zero byte; sorts before every region.
    /// Value: revision 8 bytes: the store's compaction boundary; revision 8 bytes: the boundary for which all history has
    /// been gone through. Absent: nothing was ever compacted.
    Boundary,
    /// `locks`: escaped internal key, then the lock's token: region id, term, seq, 8 bytes each.
    /// Value: the lock (`StoredLock`).
    Lock {
        /// Internal key: a key of the lock, or of the transaction's primary.
        key: Bytes,
        /// Region that took it.
        region: u64,
        /// Term of the leader that took it.
        term: u64,
        /// Its count of what it proposed.
        seq: u64,
    },
    /// `leases`: the internal key of the lease's record as it is: `10`, lease id 8 bytes.
    /// Value: the record (`StoredLease`).
    Lease {
        /// The lease.
        id: i64,
    },
    /// `attached`: lease id 8 bytes, then the internal key as it is. One order for all regions of the store.
    /// Value: empty. There is a row for every live record that has a lease; a row whose key's live record is absent, or has
    /// another lease, means nothing.
    Attached {
        /// The lease; never 0.
        lease: i64,
        /// Internal key.
        key: Bytes,
    },
}

impl StoredKey {
    /// Name of its column family.
    pub fn column_family(&self) -> &'static str {
        match self {
            Self::Latest { .. } => LATEST,
            Self::History { .. } => HISTORY,
            Self::Event { .. } | Self::EventsMark { .. } | Self::AppliedMark { .. } | Self::Boundary => EVENTS,
            Self::Lock { .. } => LOCKS,
            Self::Lease { .. } => LEASES,
            Self::Attached { .. } => ATTACHED,
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Latest { key } => out.extend_from_slice(key),
            Self::Lock { key, region, term, seq } => {
                escape(&mut out, key);
                [region, term, seq].iter().for_each(|part| out.extend_from_slice(&part.to_be_bytes()));
            }
            Self::History { key, revision, sub } => history_key(&mut out, key, *revision, *sub),
            Self::Event { region, revision, sub } => event_key(&mut out, *region, *revision, *sub),
            Self::EventsMark { region } => out.extend_from_slice(&region.0.to_be_bytes()),
            Self::AppliedMark { region } => applied_mark(&mut out, *region),
            Self::Boundary => out.push(0),
            Self::Lease { id } => out.extend_from_slice(&lease_key(*id)),
            Self::Attached { lease, key } => attached_key(&mut out, *lease, key),
        }
        out
    }

    /// The key behind `bytes` of `column_family`.
    ///
    /// # Errors
    /// Nothing that this version writes looks like that.
    pub fn decode(column_family: &str, bytes: &[u8]) -> Result<Self, Damaged> {
        let damaged = || Damaged(format!("{bytes:02x?} is no key of {column_family}"));
        match column_family {
            LATEST => Ok(Self::Latest { key: Bytes::copy_from_slice(bytes) }),
            LOCKS => {
                let (escaped, token) = bytes.split_last_chunk::<TOKEN_LEN>().ok_or_else(damaged)?;
                let mut key = Vec::new();
                let part = |at| u64_at(token, at).ok_or_else(damaged);
                if !unescape(escaped, &mut key) {
                    return Err(damaged());
                }
                Ok(Self::Lock { key: key.into(), region: part(0)?, term: part(8)?, seq: part(16)? })
            }
            HISTORY => {
                let mut key = Vec::new();
                let (revision, sub) = split_history_key(bytes, &mut key)?;
                Ok(Self::History { key: key.into(), revision, sub })
            }
            EVENTS => match bytes.len() {
                1 if bytes == [0] => Ok(Self::Boundary),
                9 if bytes[8] == 0 => Ok(Self::AppliedMark { region: RegionId(u64_at(bytes, 0).ok_or_else(damaged)?) }),
                8 => Ok(Self::EventsMark { region: RegionId(u64_at(bytes, 0).ok_or_else(damaged)?) }),
                20 => {
                    let (region, revision, sub) = split_event_key(bytes).ok_or_else(damaged)?;
                    Ok(Self::Event { region, revision, sub })
                }
                _ => Err(damaged()),
            },
            LEASES => lease_of(bytes).map(|id| Self::Lease { id }).ok_or_else(damaged),
            ATTACHED => {
                let (lease, key) = split_attached_key(bytes).ok_or_else(damaged)?;
                Ok(Self::Attached { lease, key: Bytes::copy_from_slice(key) })
            }
            _ => Err(damaged()),
        }
    }
}

/// Appends the escaped form of `key`.
pub fn escape(out: &mut Vec<u8>, key: &[u8]) {
    out.reserve(key.len() + 2 + VERSION_LEN);
    let mut rest = key;
    while let Some(zero) = rest.iter().position(|byte| *byte == 0) {
        out.extend_from_slice(&rest[..=zero]);
        out.push(0xff);
        rest = &rest[zero + 1..];
    }
    out.extend_from_slice(rest);
    out.extend_from_slice(&[0, 0]);
}

/// Replaces `out` by the internal key whose escaped form is `escaped`. False: it is none.
pub fn unescape(escaped: &[u8], out: &mut Vec<u8>) -> bool {
    out.clear();
    let mut rest = escaped;
    while let Some(zero) = rest.iter().position(|byte| *byte == 0) {
        out.extend_from_slice(&rest[..zero]);
        match rest[zero + 1..] {
            [0xff, ..] => out.push(0),
            [0] => return true,
            _ => return false,
        }
        rest = &rest[zero + 2..];
    }
    false
}

/// Appends the history key of the change to `key` at (revision, sub). `u32::MAX` as `sub` and a revision make the place
/// where the versions at or below that revision begin.
pub fn history_key(out: &mut Vec<u8>, key: &[u8], revision: i64, sub: u32) {
    escape(out, key);
    out.extend_from_slice(&(!revision as u64).to_be_bytes());
    out.extend_from_slice(&(!sub).to_be_bytes());
}

/// Reads a history key: returns revision and sub, and replaces `key` by the internal key.
pub fn split_history_key(bytes: &[u8], key: &mut Vec<u8>) -> Result<(i64, u32), Damaged> {
    let damaged = || Damaged(format!("{bytes:02x?} is no key of {HISTORY}"));
    let (escaped, version) = bytes.split_last_chunk::<VERSION_LEN>().ok_or_else(damaged)?;
    if !unescape(escaped, key) {
        return Err(damaged());
    }
    version_of(version).ok_or_else(damaged)
}

/// Revision and sub at the end of a history key.
pub fn version_of(version: &[u8]) -> Option<(i64, u32)> {
    let revision = !u64_at(version, 0)? as i64;
    let sub = !u32::from_be_bytes(version.get(8..12)?.try_into().ok()?);
    (revision > 0).then_some((revision, sub))
}

/// The part of a history key that all versions of a key share: what the bloom filter holds.
pub fn history_prefix(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().saturating_sub(VERSION_LEN)]
}

/// Whether `bytes` is a whole history key, and not the bound of a range, which is only the escaped key: there, two zeros
/// stand at the very end and nowhere else.
pub fn is_history_key(bytes: &[u8]) -> bool {
    history_prefix(bytes).ends_with(&[0, 0])
}

/// The history rows of the keys of `range`, as start and end; an empty end is unbounded.
pub fn history_range(range: &KeyRange) -> (Vec<u8>, Vec<u8>) {
    let (mut start, mut end) = (Vec::new(), Vec::new());
    escape(&mut start, &range.start);
    if !range.end.is_empty() {
        escape(&mut end, &range.end);
    }
    (start, end)
}

/// Appends the key of the newest applied revision of `region`.
pub fn applied_mark(out: &mut Vec<u8>, region: RegionId) {
    out.extend_from_slice(&region.0.to_be_bytes());
    out.push(0);
}

/// Appends the key of the event of `region` at (revision, sub).
pub fn event_key(out: &mut Vec<u8>, region: RegionId, revision: i64, sub: u32) {
    out.extend_from_slice(&region.0.to_be_bytes());
    out.extend_from_slice(&(revision as u64).to_be_bytes());
    out.extend_from_slice(&sub.to_be_bytes());
}

/// Region, revision and sub of an event key.
pub fn split_event_key(bytes: &[u8]) -> Option<(RegionId, i64, u32)> {
    let region = RegionId(u64_at(bytes, 0)?);
    let revision = i64::try_from(u64_at(bytes, 8)?).ok()?;
    let sub = u32::from_be_bytes(bytes.get(16..20)?.try_into().ok()?);
    (bytes.len() == 20).then_some((region, revision, sub))
}

/// Appends the key of the row that says that `lease` is attached to `key`.
pub fn attached_key(out: &mut Vec<u8>, lease: i64, key: &[u8]) {
    out.reserve(LEASE_LEN + key.len());
    out.extend_from_slice(&lease.to_be_bytes());
    out.extend_from_slice(key);
}

/// Lease and internal key of an attached key.
pub fn split_attached_key(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (lease, key) = bytes.split_first_chunk::<LEASE_LEN>()?;
    let lease = i64::from_be_bytes(*lease);
    (lease != 0).then_some((lease, key))
}

/// The rows of `lease` whose keys lie in `range`, as start and end; an empty end is unbounded. The end lies behind no row
/// of another lease.
pub fn attached_range(lease: i64, range: &KeyRange) -> (Vec<u8>, Vec<u8>) {
    let (mut start, mut end) = (Vec::new(), Vec::new());
    attached_key(&mut start, lease, &range.start);
    if !range.end.is_empty() {
        attached_key(&mut end, lease, &range.end);
    } else if let Some(next) = (lease as u64).checked_add(1) {
        end.extend_from_slice(&next.to_be_bytes());
    }
    (start, end)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Vec<Bytes> {
        let parts: [&[u8]; 6] = [b"", b"\0", b"\0\0", b"a", b"\0\xff", b"\xff"];
        let mut keys: Vec<Bytes> = Vec::new();
        for a in parts {
            for b in parts {
                for c in parts {
                    keys.push([a, b, c].concat().into());
                }
            }
        }
        keys.sort();
        keys.dedup();
        keys
    }

    #[test]
    fn stored_keys_come_back_as_they_went() {
        let region = RegionId(7);
        for key in keys() {
            for revision in [1, 255, 256, i64::MAX] {
                for sub in [0, 1, u32::MAX] {
                    for stored in [
                        StoredKey::Latest { key: key.clone() },
                        StoredKey::History { key: key.clone(), revision, sub },
                        StoredKey::Event { region, revision, sub },
                        StoredKey::EventsMark { region },
                        StoredKey::AppliedMark { region },
                        StoredKey::Boundary,
                        StoredKey::Lock { key: key.clone(), region: 3, term: sub.into(), seq: u64::MAX },
                        StoredKey::Lease { id: revision },
                        StoredKey::Lease { id: -revision },
                        StoredKey::Attached { lease: revision, key: key.clone() },
                        StoredKey::Attached { lease: -revision, key: key.clone() },
                    ] {
                        assert_eq!(StoredKey::decode(stored.column_family(), &stored.encode()), Ok(stored));
                    }
                }
            }
        }
    }

    #[test]
    fn history_sorts_by_key_and_then_newest_first() {
        let mut rows = Vec::new();
        for key in keys() {
            for revision in [i64::MAX, 300, 2, 1] {
                for sub in [9, 0] {
                    rows.push(StoredKey::History { key: key.clone(), revision, sub }.encode());
                }
            }
        }
        assert!(rows.is_sorted(), "encoded rows keep the order of their keys");
        assert!(rows.iter().all(|row| is_history_key(row)));
        for key in keys() {
            let long = [&[b'k'; 14][..], &key].concat();
            for key in [key, long.into()] {
                assert!(!is_history_key(&history_range(&KeyRange { start: key, end: Bytes::new() }).0));
            }
        }
        assert!(rows.iter().all(|row| rows.iter().filter(|other| other.starts_with(history_prefix(row))).count() == 8));
    }

    #[test]
    fn events_sort_by_region_mark_revision_and_sub() {
        let event = |region, revision, sub| StoredKey::Event { region: RegionId(region), revision, sub }.encode();
        let mark = |region| StoredKey::EventsMark { region: RegionId(region) }.encode();
        let applied = |region| StoredKey::AppliedMark { region: RegionId(region) }.encode();
        let own = [mark(1), applied(1), event(1, 2, 0), event(1, 2, 1), event(1, 256, 0)];
        let others = [mark(2), applied(2), event(2, 1, 0), mark(256), applied(256)];
        let rows = [&[StoredKey::Boundary.encode()], &own[..], &others[..]].concat();
        assert!(rows.is_sorted());
    }

    #[test]
    fn the_keys_of_a_lease_lie_together_in_order() {
        let leases = [1, 2, 255, 256, i64::MAX, i64::MIN, -2, -1];
        let mut rows = Vec::new();
        for lease in leases {
            rows.extend(
                keys().into_iter().map(|key| (lease, key.clone(), StoredKey::Attached { lease, key }.encode())),
            );
        }
        assert!(rows.iter().map(|(_, _, row)| row).is_sorted());
        let all = keys();
        for lease in leases {
            for (at, first) in all.iter().enumerate() {
                for last in all[at..].iter().step_by(9).chain([&Bytes::new()]) {
                    let range = KeyRange { start: first.clone(), end: last.clone() };
                    let (start, end) = attached_range(lease, &range);
                    let inside = rows.iter().filter(|(.., row)| *row >= start && (end.is_empty() || *row < end));
                    let wanted = rows.iter().filter(|(of, key, _)| *of == lease && range.contains(key));
                    assert!(inside.eq(wanted), "{lease} {range:?}");
                }
            }
        }
    }

    #[test]
    fn the_bytes_are_fixed() {
        let history = StoredKey::History { key: Bytes::from_static(b" a\0b"), revision: 5, sub: 1 };
        let bytes = b" a\0\xffb\0\0\xff\xff\xff\xff\xff\xff\xff\xfa\xff\xff\xff\xfe";
        assert_eq!(history.encode(), bytes);
        let event = StoredKey::Event { region: RegionId(3), revision: 5, sub: 1 };
        assert_eq!(event.encode(), b"\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x05\0\0\0\x01");
        assert_eq!(StoredKey::Lease { id: 258 }.encode(), b"\x10\0\0\0\0\0\0\x01\x02");
        let attached = StoredKey::Attached { lease: 258, key: Bytes::from_static(b" a\0b") };
        assert_eq!(attached.encode(), b"\0\0\0\0\0\0\x01\x02 a\0b");
    }

    #[test]
    fn damaged_keys_are_refused() {
        for damaged in [&b""[..], b"short", b"no end of key 123456789012", b"a\0\x01\0\x00123456789012"] {
            assert!(StoredKey::decode(HISTORY, damaged).is_err(), "{damaged:?}");
        }
        for damaged in [&b""[..], b"1", b"1234567", b"123456789", &[0xff; 20], &[0; 21]] {
            assert!(StoredKey::decode(EVENTS, damaged).is_err(), "{damaged:?}");
        }
        for damaged in [&b""[..], b"\x1012345678x", b"\x101234567", b" 12345678"] {
            assert!(StoredKey::decode(LEASES, damaged).is_err(), "{damaged:?}");
        }
        for damaged in [&b""[..], b"1234567", b"\0\0\0\0\0\0\0\0 key"] {
            assert!(StoredKey::decode(ATTACHED, damaged).is_err(), "{damaged:?}");
        }
        assert!(StoredKey::decode("other", b"").is_err());
    }
}
