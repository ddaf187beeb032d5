//! Internal keys and ranges of them.
//!
//! An internal key is one tag byte and the bytes that follow, so that every kind of state is sharded by one mechanism:
//!
//! | tag    | what follows      | holds                                      |
//! |--------|-------------------|--------------------------------------------|
//! | `0x10` | lease id, 8 bytes | a lease's record                           |
//! | `0x20` | the etcd key      | user data                                  |
//!
//! Leases sort before user data so that locks on both share one order (rule L2).

use bytes::{BufMut, Bytes, BytesMut};

/// Tag of lease records.
pub const TAG_LEASE: u8 = 0x10;
/// Tag of user data.
pub const TAG_USER: u8 = 0x20;

/// The internal key of an etcd key.
pub fn user_key(key: &[u8]) -> Bytes {
    let mut internal = BytesMut::with_capacity(1 + key.len());
    internal.put_u8(TAG_USER);
    internal.put_slice(key);
    internal.freeze()
}

/// The etcd key inside an internal key; `None` where it holds something else than user data.
pub fn strip_user(internal: &Bytes) -> Option<Bytes> {
    (internal.first() == Some(&TAG_USER)).then(|| internal.slice(1..))
}

/// The internal key of the record of lease `id`.
pub fn lease_key(id: i64) -> Bytes {
    let mut internal = BytesMut::with_capacity(9);
    internal.put_u8(TAG_LEASE);
    internal.put_i64(id);
    internal.freeze()
}

/// The lease whose record lies at an internal key; `None`: it holds something else.
pub fn lease_of(internal: &[u8]) -> Option<i64> {
    let (tag, id) = internal.split_first()?;
    (*tag == TAG_LEASE).then(|| id.try_into().ok().map(i64::from_be_bytes)).flatten()
}

/// The records of all leases.
pub fn all_leases() -> KeyRange {
    KeyRange { start: Bytes::from_static(&[TAG_LEASE]), end: Bytes::from_static(&[TAG_LEASE + 1]) }
}

/// A half-open range of internal keys: `start` included, `end` excluded, an empty `end` is unbounded.
#[derive(Clone, Debug, PartialEq, Eq, Default, Hash)]
pub struct KeyRange {
    /// First key of the range.
    pub start: Bytes,
    /// First key after the range; empty: there is none.
    pub end: Bytes,
}

impl KeyRange {
    /// Just one key: `[key, key + 0x00)`.
    pub fn single(key: Bytes) -> Self {
        let mut end = BytesMut::with_capacity(key.len() + 1);
        end.put_slice(&key);
        end.put_u8(0);
        Self { start: key, end: end.freeze() }
    }

    /// Whether it is [`Self::single`] of its first key.
    pub fn is_single(&self) -> bool {
        self.end.len() == self.start.len() + 1 && self.end.ends_with(&[0]) && self.end.starts_with(&self.start)
    }

    /// The internal keys that etcd's `(key, range_end)` names: one key (empty `range_end`), everything from `key` on
    /// (`range_end` is one zero byte), or `[key, range_end)`, which is empty where `range_end <= key`.
    pub fn user(key: &[u8], range_end: &[u8]) -> Self {
        match range_end {
            [] => Self::single(user_key(key)),
            [0] => Self { start: user_key(key), end: Bytes::from_static(&[TAG_USER + 1]) },
            _ => Self { start: user_key(key), end: user_key(range_end) },
        }
    }

    /// Whether no key lies in it.
    pub fn is_empty(&self) -> bool {
        !self.end.is_empty() && self.end <= self.start
    }

    /// Whether `key` lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && (self.end.is_empty() || key < &self.end[..])
    }

    /// Whether every key of `other` lies in it. An empty range lies in every range.
    pub fn contains_range(&self, other: &KeyRange) -> bool {
        other.is_empty()
            || (other.start >= self.start && (self.end.is_empty() || (!other.end.is_empty() && other.end <= self.end)))
    }

    /// Whether some key lies in both.
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        !self.intersect(other).is_empty()
    }

    /// The keys in both.
    pub fn intersect(&self, other: &KeyRange) -> KeyRange {
        let start = self.start.clone().max(other.start.clone());
        let end = match (self.end.is_empty(), other.end.is_empty()) {
            (true, _) => other.end.clone(),
            (_, true) => self.end.clone(),
            _ => self.end.clone().min(other.end.clone()),
        };
        KeyRange { start, end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange { start: start.into(), end: end.into() }
    }

    #[test]
    fn etcd_ranges_become_internal_ranges() {
        assert_eq!(KeyRange::user(b"a", b""), range(" a", " a\0"));
        assert_eq!(KeyRange::user(b"a", b"c"), range(" a", " c"));
        assert_eq!(KeyRange::user(b"a", b"\0"), range(" a", "!"));
        assert!(KeyRange::user(b"c", b"a").is_empty());
        assert!(!KeyRange::user(b"\0", b"\0").is_empty());
    }

    #[test]
    fn one_key_is_told_from_a_range() {
        assert!(range("a", "a\0").is_single() && KeyRange::single(Bytes::new()).is_single());
        for (start, end) in [("a", "b"), ("a", "a\0\0"), ("a", "b\0"), ("a", "a\x01"), ("a", ""), ("", "")] {
            assert!(!range(start, end).is_single(), "{start:?} {end:?}");
        }
    }

    #[test]
    fn records_of_leases_lie_before_user_data() {
        for id in [1, -1, i64::MIN, i64::MAX] {
            assert!(all_leases().contains(&lease_key(id)));
            assert!(lease_key(id) < user_key(b""));
            assert_eq!(lease_of(&lease_key(id)), Some(id));
        }
        assert_eq!(lease_of(&user_key(b"12345678")), None);
    }

    #[test]
    fn intersection_respects_unbounded_ends() {
        assert_eq!(range("a", "").intersect(&range("b", "d")), range("b", "d"));
        assert_eq!(range("a", "c").intersect(&range("b", "")), range("b", "c"));
        assert_eq!(range("a", "").intersect(&range("b", "")), range("b", ""));
        assert!(range("a", "b").intersect(&range("b", "c")).is_empty());
    }

    #[test]
    fn containment_of_ranges() {
        assert!(range("", "").contains_range(&range("a", "")));
        assert!(!range("", "z").contains_range(&range("a", "")));
        assert!(range("a", "c").contains_range(&range("a", "c")));
        assert!(!range("b", "c").contains_range(&range("a", "c")));
        assert!(range("b", "c").contains_range(&range("z", "y")));
    }
}
