use std::collections::{BTreeMap, HashSet};

use super::*;
use crate::random::mix;

const ITEMS: u64 = 20_000;

#[test]
fn the_same_seed_and_index_always_give_the_same_item() {
    let (a, b) = (Dataset::new(11), Dataset::new(11));
    for index in (0..ITEMS).step_by(97) {
        assert_eq!(a.key_of(index), b.key_of(index));
        assert_eq!(a.value_of(index, 3), b.value_of(index, 3));
    }
}

/// A cluster loaded by one version of this program must be verified by any other.
#[test]
fn the_format_is_frozen() {
    let dataset = Dataset::new(1);
    let (key, value) = (dataset.key_of(12_345), dataset.value_of(12_345, 2));
    assert_eq!(key.escape_ascii().to_string(), KEY);
    assert_eq!((value.len(), &value[..VALUE.len()]), (591, VALUE));
    let sum = value.iter().fold(0, |sum, &byte| mix(sum ^ u64::from(byte)));
    assert_eq!(sum, 5_296_201_964_619_682_308);
}

const KEY: &str = "/registry/endpointslices/team-240/tracking-api-qx59dw-6dcg5m4";
const VALUE: &[u8] =
    b"k8s\0{\"kind\":\"EndpointSlice\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"tracking-api-qx59dw-6dcg5m4\"";

#[test]
fn another_seed_or_version_gives_another_item() {
    let (a, b) = (Dataset::new(1), Dataset::new(2));
    assert_ne!(a.key_of(5), b.key_of(5));
    assert_ne!(a.value_of(5, 1), a.value_of(5, 2));
    assert_eq!(a.value_of(5, 1).len(), a.value_of(5, 2).len());
}

#[test]
fn keys_never_repeat_and_have_the_shape_of_a_registry() {
    let dataset = Dataset::new(3);
    let mut seen = HashSet::new();
    for index in 0..ITEMS {
        let key = dataset.key_of(index);
        let text = std::str::from_utf8(&key).unwrap().to_owned();
        let parts: Vec<_> = text.strip_prefix(PREFIX).unwrap().split('/').collect();
        assert_eq!(parts.len(), 3, "{text}");
        assert!(parts.iter().all(|part| !part.is_empty()), "{text}");
        assert!(seen.insert(text), "item {index} repeats a key");
    }
}

#[test]
fn values_keep_to_their_bounds_and_use_them() {
    let dataset = Dataset::new(4);
    let sizes: Vec<_> = (0..ITEMS).map(|index| dataset.value_of(index, 1).len()).collect();
    let (min, max) = (*sizes.iter().min().unwrap(), *sizes.iter().max().unwrap());
    assert!((VALUE_BYTES_MIN..VALUE_BYTES_MIN + 20).contains(&min), "{min}");
    assert!((VALUE_BYTES_MAX - 20..=VALUE_BYTES_MAX).contains(&max), "{max}");
    let mean = sizes.iter().sum::<usize>() / sizes.len();
    assert!((1_000..1_800).contains(&mean), "{mean}");
}

#[test]
fn every_kind_has_its_share() {
    let dataset = Dataset::new(5);
    let mut counts = BTreeMap::<String, u64>::new();
    for index in 0..ITEMS {
        let key = String::from_utf8(dataset.key_of(index).to_vec()).unwrap();
        *counts.entry(key.split('/').nth(2).unwrap().to_owned()).or_default() += 1;
    }
    for kind in &KINDS {
        let want = kind.per_mille * ITEMS / 1_000;
        let got = counts[kind.resource];
        assert!(got.abs_diff(want) < want / 5, "{}: {got} of {want}", kind.resource);
    }
}

#[test]
fn neighbours_in_index_are_spread_over_the_key_order() {
    let dataset = Dataset::new(6);
    let keys: Vec<_> = (0..1_000).map(|index| dataset.key_of(index)).collect();
    let ascending = keys.windows(2).filter(|pair| pair[0] < pair[1]).count();
    assert!((400..600).contains(&ascending), "{ascending} of 999 neighbours ascend");
}

#[test]
fn the_last_item_is_possible_and_the_next_one_is_not() {
    let last = Dataset::new(1).key_of(ITEMS_MAX - 1);
    assert_ne!(last, Dataset::new(1).key_of(0));
    assert!(std::panic::catch_unwind(|| Dataset::new(1).key_of(ITEMS_MAX)).is_err());
}

#[test]
fn the_letters_of_every_index_differ() {
    let letters = |number| {
        let mut out = BytesMut::new();
        text::put_letters(&mut out, number, 3);
        out.freeze()
    };
    let all: HashSet<_> = (0..27 * 27 * 27).map(letters).collect();
    assert_eq!(all.len(), 27 * 27 * 27);
}
