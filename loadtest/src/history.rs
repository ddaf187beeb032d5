//! What steady writers did and saw: the material of every checker.
//!
//! Each key has one writer, which numbers its writes and has one operation in flight at a time. Values name their key and
//! number, so that whoever reads a value knows which write it came from.

use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};

/// The keys that are written.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Prefixes of keys, used in turn: give one in each region to write to all of them. They must not be prefixes of each
    /// other, and no other key may have them.
    pub prefixes: Vec<String>,
    /// How many keys there are.
    pub keys: u32,
    /// Bytes of a value, at least `VALUE_BYTES_MIN`.
    pub value_bytes: usize,
}

/// Room for the key and the number that a value names.
pub const VALUE_BYTES_MIN: usize = 24;

impl Layout {
    /// Checks what later code relies on.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.keys > 0, "there must be at least one key");
        anyhow::ensure!(self.value_bytes >= VALUE_BYTES_MIN, "a value needs at least {VALUE_BYTES_MIN} bytes");
        anyhow::ensure!(!self.prefixes.is_empty(), "there must be at least one prefix");
        for (i, prefix) in self.prefixes.iter().enumerate() {
            anyhow::ensure!(!prefix.is_empty(), "a prefix must not be empty");
            let clash =
                self.prefixes.iter().enumerate().find(|(j, other)| i != *j && other.starts_with(prefix.as_str()));
            anyhow::ensure!(clash.is_none(), "{prefix} is a prefix of another one");
        }
        Ok(())
    }

    /// Name of a key.
    pub fn key(&self, key: u32) -> Bytes {
        format!("{}{key:010}", self.prefixes[key as usize % self.prefixes.len()]).into()
    }

    /// The key with this name; none if it is not one of ours.
    pub fn key_number(&self, name: &[u8]) -> Option<u32> {
        let digits = name.get(name.len().checked_sub(10)?..)?;
        let key = std::str::from_utf8(digits).ok()?.parse().ok()?;
        (key < self.keys && self.key(key) == name).then_some(key)
    }

    /// Value of one write.
    pub fn value(&self, key: u32, number: u32) -> Bytes {
        let mut value = BytesMut::with_capacity(self.value_bytes);
        value.put_slice(format!("{key}.{number}.").as_bytes());
        while value.len() < self.value_bytes {
            value.put_u8(b'a' + (value.len() % 26) as u8);
        }
        value.freeze()
    }

    /// The write that made a value; none if it is no value of this key, or damaged.
    pub fn write_number(&self, key: u32, value: &[u8]) -> Option<u32> {
        let number = std::str::from_utf8(value).ok()?.split('.').nth(1)?.parse().ok()?;
        (self.value(key, number) == value).then_some(number)
    }
}

/// Time since the history began, in nanoseconds. All operations of a history are timed by one clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Moment {
    /// Now.
    pub fn since(start: Instant) -> Self {
        Self(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// One put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// Its key.
    pub key: u32,
    /// Its number: higher than that of every earlier write of the key.
    pub number: u32,
    /// Just before it was sent.
    pub sent: Moment,
    /// Just after its answer came or was given up.
    pub ended: Moment,
    /// What the answer was.
    pub outcome: Outcome,
}

/// What is known about a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done, at this revision.
    Acked(i64),
    /// Done or not, now or later.
    Unknown,
    /// Not done, and never will be.
    Refused,
}

/// One linearizable get of a key by its writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// Its key.
    pub key: u32,
    /// Just before it was sent.
    pub sent: Moment,
    /// Just after its answer came.
    pub ended: Moment,
    /// Revision in the header.
    pub revision: i64,
    /// What was there.
    pub found: Option<Found>,
}

/// A key as it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The write that made the value; none if none of ours did.
    pub number: Option<u32>,
    /// Its mod_revision.
    pub mod_revision: i64,
    /// How many puts the server counted.
    pub version: i64,
}

/// Everything the writers did.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// All puts, in no order.
    pub writes: Vec<Write>,
    /// All gets that were answered, in no order.
    pub reads: Vec<Read>,
}

impl History {
    /// Acknowledged puts with their revisions.
    pub fn acked(&self) -> impl Iterator<Item = (&Write, i64)> {
        self.writes.iter().filter_map(|write| match write.outcome {
            Outcome::Acked(revision) => Some((write, revision)),
            Outcome::Unknown | Outcome::Refused => None,
        })
    }

    /// How many puts nobody knows about.
    pub fn unknown(&self) -> usize {
        self.writes.iter().filter(|write| write.outcome == Outcome::Unknown).count()
    }

    /// Adds another part of the same history.
    pub fn add(&mut self, other: Self) {
        self.writes.extend(other.writes);
        self.reads.extend(other.reads);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout { prefixes: vec!["a/".into(), "b/".into()], keys: 100, value_bytes: 40 }
    }

    #[test]
    fn names_and_values_can_be_read_back() {
        let layout = layout();
        for key in [0, 7, 99] {
            assert_eq!(layout.key_number(&layout.key(key)), Some(key));
            assert_eq!(layout.write_number(key, &layout.value(key, 1_000_000)), Some(1_000_000));
            assert_eq!(layout.value(key, 3).len(), 40);
        }
        assert_eq!(layout.key(1)[..], b"b/0000000001"[..]);
    }

    #[test]
    fn what_is_not_ours_is_not_taken_for_ours() {
        let layout = layout();
        for name in [&b"a/0000000001"[..], b"b/0000000100", b"b/0000000101", b"a", b"", b"a/x000000000"] {
            assert_eq!(layout.key_number(name), None, "{}", name.escape_ascii());
        }
        let mut damaged = layout.value(5, 9).to_vec();
        damaged[30] ^= 1;
        assert_eq!(layout.write_number(5, &damaged), None);
        assert_eq!(layout.write_number(6, &layout.value(5, 9)), None);
        assert_eq!(layout.write_number(5, b""), None);
    }

    #[test]
    fn impossible_layouts_are_refused() {
        assert!(layout().check().is_ok());
        assert!(Layout { keys: 0, ..layout() }.check().is_err());
        assert!(Layout { value_bytes: 10, ..layout() }.check().is_err());
        for prefixes in [vec![], vec!["".to_owned()], vec!["a".into(), "ab".into()], vec!["a".into(), "a".into()]] {
            assert!(Layout { prefixes, ..layout() }.check().is_err());
        }
    }
}
