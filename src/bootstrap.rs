//! How an empty cluster is cut into regions, and how many copies each has.

use braid_proto::key::{lease_key, user_key};
use bytes::Bytes;
use thiserror::Error;

use crate::args::types::Key;

/// First and number of the printable ASCII characters.
const ASCII_FIRST: u8 = 0x20;
const ASCII_COUNT: u64 = 95;

/// What is wrong with the flags that say how the data begins.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BootstrapError {
    #[error("--{regions} and --{keys} both say how the keys are cut; give one of them")]
    Both { regions: &'static str, keys: &'static str },
    #[error("--{flag} names the key {key:?} twice")]
    Twice { flag: &'static str, key: String },
    #[error("--replicas is {0}; give 1, 3 or 5")]
    Replicas(u32),
    #[error("--replicas is {replicas}, but the cluster starts with {stores} stores; list more members or lower it")]
    TooMany { replicas: u32, stores: usize },
}

/// Internal keys at which the data is cut at first: the named ones, or `count` even ranges.
pub fn split_keys(
    count: Option<u32>,
    named: &[Key],
    regions: &'static str,
    keys: &'static str,
) -> Result<Vec<Bytes>, BootstrapError> {
    match count {
        Some(_) if !named.is_empty() => Err(BootstrapError::Both { regions, keys }),
        Some(count) => Ok(even(count)),
        None => {
            let mut cuts: Vec<Bytes> = named.iter().map(|key| key.0.clone()).collect();
            cuts.sort();
            if let Some(pair) = cuts.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(BootstrapError::Twice { flag: keys, key: crate::key_text::escape(&pair[0]) });
            }
            Ok(cuts.iter().map(|key| user_key(key)).collect())
        }
    }
}

/// Internal keys at which the records of leases are cut at first, into `count` even ranges of the ids that servers draw, the
/// positive ones. The last range goes on into the first of the keys.
pub fn lease_cuts(count: u32) -> Vec<Bytes> {
    let count = i64::from(count);
    (1..count).map(|cut| lease_key(i64::MAX / count * cut)).collect()
}

/// The cuts between `count` ranges of printable ASCII keys. Keys are read as numbers of as many digits as it takes to
/// make the ranges differ by no more than a quarter.
fn even(count: u32) -> Vec<Bytes> {
    let count = u64::from(count);
    let digits = (1..).find(|digits| ASCII_COUNT.pow(*digits) >= 4 * count).unwrap_or(1);
    let whole = ASCII_COUNT.pow(digits);
    (1..count).map(|cut| user_key(&ascii(cut * whole / count, digits))).collect()
}

/// `number` in base 95, `digits` digits, without the trailing ones that are zero (a space).
fn ascii(mut number: u64, digits: u32) -> Vec<u8> {
    let mut key = vec![ASCII_FIRST; digits as usize];
    for digit in key.iter_mut().rev() {
        *digit += (number % ASCII_COUNT) as u8;
        number /= ASCII_COUNT;
    }
    while key.len() > 1 && key.last() == Some(&ASCII_FIRST) {
        key.pop();
    }
    key
}

/// Copies of every region. `stores` is how many stores the cluster starts with, if the flags say so.
pub fn replicas(asked: Option<u32>, stores: Option<usize>) -> Result<usize, BootstrapError> {
    let replicas = asked.unwrap_or(if stores.is_some_and(|stores| stores < 3) { 1 } else { 3 });
    if !matches!(replicas, 1 | 3 | 5) {
        return Err(BootstrapError::Replicas(replicas));
    }
    match stores {
        Some(stores) if stores < replicas as usize => Err(BootstrapError::TooMany { replicas, stores }),
        _ => Ok(replicas as usize),
    }
}

#[cfg(test)]
mod tests {
    use braid_proto::key::TAG_USER;

    use super::*;

    #[test]
    fn even_ranges_are_even_at_every_count() {
        for count in [1, 2, 3, 8, 16, 95, 1000, 20_000] {
            let cuts = even(count);
            assert_eq!(cuts.len() as u32, count - 1);
            assert!(cuts.windows(2).all(|pair| pair[0] < pair[1]), "{count}");
            assert!(cuts.iter().all(|cut| cut[0] == TAG_USER && cut.len() > 1), "{count}");
        }
        assert_eq!(even(4), ["\x20\x37", "\x20\x4f", "\x20\x67"].map(Bytes::from));
    }

    #[test]
    fn leases_are_cut_evenly_and_before_all_keys() {
        assert_eq!(lease_cuts(1), Vec::<Bytes>::new());
        let cuts = lease_cuts(3);
        assert_eq!(cuts, [lease_key(0x2aaa_aaaa_aaaa_aaaa), lease_key(0x5555_5555_5555_5554)]);
        assert!(cuts.is_sorted() && cuts[1] < even(2)[0]);
    }

    #[test]
    fn named_cuts_are_sorted_and_not_mixed_with_a_count() {
        let keys = [Key("m".into()), Key("d".into())];
        assert_eq!(split_keys(None, &keys, "regions", "split-keys").unwrap(), [user_key(b"d"), user_key(b"m")]);
        assert!(split_keys(Some(2), &keys, "regions", "split-keys").is_err());
        let twice = [Key("m".into()), Key("m".into())];
        assert!(matches!(split_keys(None, &twice, "regions", "split-keys"), Err(BootstrapError::Twice { .. })));
        assert_eq!(split_keys(None, &[], "regions", "split-keys").unwrap(), Vec::<Bytes>::new());
    }

    #[test]
    fn copies_follow_the_number_of_servers() {
        assert_eq!(replicas(None, Some(1)), Ok(1));
        assert_eq!(replicas(None, Some(2)), Ok(1));
        assert_eq!(replicas(None, Some(5)), Ok(3));
        assert_eq!(replicas(None, None), Ok(3));
        assert_eq!(replicas(Some(2), None), Err(BootstrapError::Replicas(2)));
        assert_eq!(replicas(Some(3), Some(1)), Err(BootstrapError::TooMany { replicas: 3, stores: 1 }));
    }
}
