//! Buckets against a set of keys: the counts are equal, whatever comes and goes.

use std::collections::BTreeSet;
use std::convert::Infallible;

use super::*;

/// The keys themselves, as the owner would keep them.
#[derive(Default)]
struct Owner {
    keys: BTreeSet<Bytes>,
    counts: Buckets,
    /// Keys looked at by walks.
    walked: u64,
}

fn key(number: u64) -> Bytes {
    format!("key-{number:08}").into()
}

fn range(start: u64, end: u64) -> KeyRange {
    KeyRange { start: key(start), end: key(end) }
}

impl Owner {
    fn built(numbers: impl Iterator<Item = u64>) -> Self {
        let keys: BTreeSet<Bytes> = numbers.map(key).collect();
        let mut builder = Builder::default();
        keys.iter().for_each(|key| builder.push(key));
        Self { keys, counts: builder.finish(), walked: 0 }
    }

    fn add(&mut self, number: u64) {
        let key = key(number);
        if self.keys.insert(key.clone()) && self.counts.add(&key) {
            let overfull = self.counts.overfull(&key).expect("it just said so");
            let inside: Vec<_> = self.keys.iter().filter(|key| overfull.range.contains(key)).cloned().collect();
            assert_eq!(inside.len() as u64, overfull.keys);
            let piece = overfull.piece();
            for cut in inside.chunks(piece as usize).skip(1) {
                self.counts.split(cut[0].clone(), piece);
            }
            assert_eq!(self.counts.overfull(&key), None);
        }
    }

    fn remove(&mut self, number: u64) {
        let key = key(number);
        if self.keys.remove(&key) {
            self.counts.remove(&key);
        }
    }

    fn count(&mut self, range: &KeyRange) -> u64 {
        let (keys, walked) = (&self.keys, &mut self.walked);
        let mut walks = 0;
        let count = self.counts.count(range, &mut |part| {
            walks += 1;
            let found = keys.iter().filter(|key| part.contains(key)).count() as u64;
            *walked += found;
            Ok::<_, Infallible>(found)
        });
        assert!(walks <= 2, "{walks} walks for {range:?}");
        count.unwrap()
    }

    fn check(&mut self, random: &mut u64) {
        assert_eq!(self.counts.total(), self.keys.len() as u64);
        let whole = KeyRange::default();
        assert_eq!(self.count(&whole), self.keys.len() as u64);
        for _ in 0..20 {
            let (a, b) = (next(random) % 20_000, next(random) % 20_000);
            for range in [
                range(a, b),
                KeyRange { start: key(a), end: Bytes::new() },
                KeyRange { start: Bytes::new(), end: key(b) },
            ] {
                let expected = self.keys.iter().filter(|key| range.contains(key)).count() as u64;
                assert_eq!(self.count(&range), if range.is_empty() { 0 } else { expected }, "{range:?}");
            }
        }
    }
}

fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random >> 11
}

#[test]
fn counts_are_exact_whatever_comes_and_goes() {
    let mut random = 0x5eed_b0c4;
    let mut owner = Owner::default();
    owner.check(&mut random);
    for phase in 0..12 {
        for _ in 0..3_000 {
            let number = next(&mut random) % 20_000;
            // Phases grow, shrink, and do both.
            match phase % 3 {
                0 => owner.add(number),
                1 => owner.remove(number),
                _ if next(&mut random).is_multiple_of(2) => owner.add(number),
                _ => owner.remove(number),
            }
        }
        owner.check(&mut random);
    }
    for number in 0..20_000 {
        owner.remove(number);
    }
    owner.check(&mut random);
    assert!(owner.counts.chunks.len() <= 2, "empty buckets have joined: {:?}", owner.counts);
}

#[test]
fn rising_keys_fill_buckets_evenly() {
    let mut owner = Owner::default();
    (0..20_000).for_each(|number| owner.add(number));
    let buckets: Vec<u64> = owner.counts.chunks.iter().flat_map(|chunk| chunk.buckets.iter().map(|b| b.keys)).collect();
    assert!(buckets.iter().all(|keys| (BUCKET_KEYS_MAX / 2..=BUCKET_KEYS_MAX).contains(keys)), "{buckets:?}");
    assert!(owner.counts.chunks.iter().all(|chunk| chunk.buckets.len() <= CHUNK_BUCKETS_MAX));
}

#[test]
fn a_count_walks_two_buckets_at_most() {
    let mut owner = Owner::built(0..100_000);
    owner.walked = 0;
    assert_eq!(owner.count(&range(17, 99_983)), 99_966);
    assert!(owner.walked <= 2 * BUCKET_KEYS_MAX, "{} keys walked", owner.walked);
}

#[test]
fn a_clone_keeps_its_moment() {
    let mut owner = Owner::built(0..5_000);
    let before = owner.counts.clone();
    (0..2_500).for_each(|number| owner.remove(number));
    let count = |counts: &Buckets| counts.count(&KeyRange::default(), &mut |_| Ok::<_, Infallible>(0)).unwrap();
    assert_eq!((count(&before), count(&owner.counts)), (5_000, 2_500));
}

#[test]
fn splitting_off_gives_each_side_its_keys() {
    let mut random = 0x0ddba11;
    for at in [0, 1, 340, 341, 2_000, 4_999, 5_000, 9_000] {
        let mut left = Owner::built(0..5_000);
        let keys = left.keys.clone();
        let counts = left.counts.split_off(&key(at), &mut |part| {
            Ok::<_, Infallible>(keys.iter().filter(|key| part.contains(key)).count() as u64)
        });
        let mut right = Owner { keys: left.keys.split_off(&key(at)), counts: counts.unwrap(), walked: 0 };
        left.check(&mut random);
        right.check(&mut random);
        right.add(10_000);
        left.add(at.saturating_sub(1));
        left.check(&mut random);
        right.check(&mut random);
    }
}

#[test]
#[should_panic(expected = "a bucket that has none")]
fn removing_what_was_not_there_is_a_bug() {
    Buckets::default().remove(b"k");
}
