//! One version of one key: what a put leaves behind.
//!
//! Stored form, after whatever key the engine gives it:
//!
//! ```text
//! flags      1 byte   bit 0: a lease follows; all others are 0 and refused, so that later formats are recognised
//! mod        varint   mod_revision
//! age        varint   mod_revision - create_revision (0 for a new key: one byte)
//! version    varint
//! lease      8 bytes  little endian, only if bit 0 of flags is set: lease ids are random, a varint would not shrink them
//! value      the rest
//! ```

use bytes::Bytes;

use crate::placeholder::PENDING;
use crate::view::Damaged;

/// A lease is attached.
const FLAG_LEASE: u8 = 1;
/// Bytes of the stored form beside the value: flags, three varints, a lease.
pub const OVERHEAD_MAX: usize = 1 + 3 * 10 + 8;

/// A live value. Revisions may be placeholders ([`crate::placeholder`]) while it is in flight, never when it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Record {
    /// Revision at which the present life of the key began.
    pub create_revision: i64,
    /// Revision of the put that made this value.
    pub mod_revision: i64,
    /// Puts in the present life of the key; 1 for the first.
    pub version: i64,
    /// Lease attached to the key; 0: none.
    pub lease: i64,
    /// The value.
    pub value: Bytes,
}

impl Record {
    /// Appends the stored form to `out`.
    ///
    /// # Panics
    /// If a revision is a placeholder, or below 1: such a record must never reach the disk.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Self { create_revision, mod_revision, version, lease, ref value } = *self;
        assert!(
            0 < create_revision && create_revision <= mod_revision && mod_revision < PENDING && version > 0,
            "a record that cannot be stored: created @{create_revision}, modified @{mod_revision}, version {version}"
        );
        out.reserve(OVERHEAD_MAX + value.len());
        out.push(if lease == 0 { 0 } else { FLAG_LEASE });
        put_varint(out, mod_revision as u64);
        put_varint(out, (mod_revision - create_revision) as u64);
        put_varint(out, version as u64);
        if lease != 0 {
            out.extend_from_slice(&lease.to_le_bytes());
        }
        out.extend_from_slice(value);
    }

    /// The record whose stored form is `bytes`.
    ///
    /// # Errors
    /// No record looks like that: the data is damaged, or of a later format.
    pub fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let (head, value) = Head::decode(bytes)?;
        Ok(Self {
            create_revision: head.create_revision,
            mod_revision: head.mod_revision,
            version: head.version,
            lease: head.lease,
            value: Bytes::copy_from_slice(value),
        })
    }
}

/// A record without its value, for readers that need no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// See [`Record::create_revision`].
    pub create_revision: i64,
    /// See [`Record::mod_revision`].
    pub mod_revision: i64,
    /// See [`Record::version`].
    pub version: i64,
    /// See [`Record::lease`].
    pub lease: i64,
}

impl Head {
    /// The head of a stored record, and its value.
    ///
    /// # Errors
    /// See [`Record::decode`].
    pub fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), Damaged> {
        let mut rest = bytes;
        let head = decode_head(&mut rest).ok_or_else(|| {
            Damaged(format!("{} bytes that begin with {:02x?} are no record", bytes.len(), start(bytes)))
        })?;
        Ok((head, rest))
    }
}

fn decode_head(rest: &mut &[u8]) -> Option<Head> {
    let (flags, after) = rest.split_first()?;
    *rest = after;
    if flags & !FLAG_LEASE != 0 {
        return None;
    }
    let mod_revision = i64::try_from(take_varint(rest)?).ok()?;
    let age = i64::try_from(take_varint(rest)?).ok()?;
    let version = i64::try_from(take_varint(rest)?).ok()?;
    let create_revision = mod_revision - age;
    if create_revision < 1 || mod_revision >= PENDING || version < 1 {
        return None;
    }
    let lease = match flags & FLAG_LEASE {
        0 => 0,
        _ => {
            let (lease, after) = rest.split_first_chunk::<8>()?;
            *rest = after;
            i64::from_le_bytes(*lease)
        }
    };
    Some(Head { create_revision, mod_revision, version, lease })
}

fn start(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(16)]
}

/// Appends `number`, seven bits a byte, lowest first.
pub fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Takes a number off the front of `rest`; `None` if there is none, or not in its shortest form.
pub fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits || (*byte == 0 && shift > 0) {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(record: &Record) -> Vec<u8> {
        let mut out = Vec::new();
        record.encode(&mut out);
        out
    }

    fn record(create_revision: i64, mod_revision: i64, version: i64, lease: i64, value: &'static [u8]) -> Record {
        Record { create_revision, mod_revision, version, lease, value: Bytes::from_static(value) }
    }

    #[test]
    fn records_come_back_as_they_went() {
        let numbers = [1, 2, 127, 128, 300, 1 << 21, (1 << 35) + 7, PENDING - 1];
        for (i, &create) in numbers.iter().enumerate() {
            for &modified in &numbers[i..] {
                for lease in [0, 1, -1, i64::MAX, i64::MIN] {
                    for value in [&b""[..], b"v", &[0xff; 1000]] {
                        let record = record(create, modified, 1 + create / 3, lease, value);
                        assert_eq!(Record::decode(&stored(&record)), Ok(record));
                    }
                }
            }
        }
    }

    #[test]
    fn the_stored_form_is_fixed() {
        assert_eq!(stored(&record(2, 2, 1, 0, b"v")), [0, 2, 0, 1, b'v']);
        assert_eq!(stored(&record(2, 300, 5, 0x0102, b"")), [1, 0xac, 2, 0xaa, 2, 5, 2, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn damaged_records_are_refused() {
        let whole = stored(&record(200, 300, 5, 77, b""));
        for end in 0..whole.len() {
            assert!(Record::decode(&whole[..end]).is_err(), "cut at {end}");
        }
        for damaged in [&[2, 2, 0, 1][..], &[0, 2, 5, 1], &[0, 2, 0, 0], &[0, 0, 0, 1], &[0, 0x82, 0, 0, 1]] {
            assert!(Record::decode(damaged).is_err(), "{damaged:?}");
        }
        let endless = [0xff; 40];
        assert!(Record::decode(&[&[0][..], &endless].concat()).is_err());
    }

    #[test]
    #[should_panic(expected = "cannot be stored")]
    fn placeholders_are_never_stored() {
        stored(&record(1, PENDING + 4, 1, 0, b""));
    }
}
