//! Which keys a workload touches, in which order, and the values it writes.

use std::fmt;
use std::str::FromStr;

use anyhow::Context;
use bytes::{BufMut, Bytes, BytesMut};
use indicatif::ProgressBar;

use crate::client::{prefix_end, range};
use crate::loader::{Loaded, Loader};
use crate::random::Random;
use crate::session::Pool;

use braid_proto::etcd::etcdserverpb::RangeRequest;

mod zipf;

use zipf::Zipf;

/// Digits of a key's number: fixed, so that key order is number order.
const DIGITS: usize = 10;

/// Random bytes that all values of one worker are cut from.
const POOL_BYTES: usize = 64 << 10;

/// A worker's keys are cut from pieces of this size: one allocation for a few thousand keys.
const PIECE_BYTES: usize = 64 << 10;

/// Numbered keys under one prefix, with values of one size.
#[derive(Debug, Clone)]
pub struct KeySpace {
    /// Prefix of all keys.
    pub prefix: String,
    /// How many keys.
    pub count: u64,
    /// Bytes of a value.
    pub value_bytes: usize,
}

impl KeySpace {
    /// Keys of exactly so many bytes: what the number leaves of them is filled up behind the prefix.
    pub fn with_key_bytes(self, key_bytes: usize) -> anyhow::Result<Self> {
        let least = self.prefix.len() + DIGITS;
        anyhow::ensure!(
            key_bytes >= least,
            "keys of {key_bytes} bytes are too short for the prefix {:?} and {DIGITS} digits: give at least {least}",
            self.prefix
        );
        Ok(Self { prefix: format!("{}{}", self.prefix, "k".repeat(key_bytes - least)), ..self })
    }

    /// Bytes of one key with its value.
    pub fn entry_bytes(&self) -> u64 {
        (self.prefix.len() + DIGITS + self.value_bytes) as u64
    }

    /// Checks what later code relies on.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.prefix.is_empty(), "the key prefix must not be empty");
        anyhow::ensure!(self.count > 0, "there must be at least one key");
        anyhow::ensure!(self.count <= 10u64.pow(DIGITS as u32), "more keys than {DIGITS} digits can number");
        Ok(())
    }

    /// Writes the key with this number.
    fn put_key(&self, out: &mut BytesMut, number: u64) {
        out.put_slice(self.prefix.as_bytes());
        let mut digits = [b'0'; DIGITS];
        let mut rest = number;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        out.put_slice(&digits);
    }

    /// The key with this number.
    pub fn key(&self, number: u64) -> Bytes {
        let mut out = BytesMut::with_capacity(self.prefix.len() + DIGITS);
        self.put_key(&mut out, number);
        out.freeze()
    }

    /// Flags with which an empty braid cluster cuts these keys evenly into regions.
    pub fn split_flags(&self, regions: u64) -> Vec<String> {
        let cut = |part: u64| (u128::from(self.count) * u128::from(part) / u128::from(regions)) as u64;
        let cuts: Vec<_> = (1..regions).map(|part| format!("{}{:0DIGITS$}", self.prefix, cut(part))).collect();
        match cuts.is_empty() {
            true => Vec::new(),
            false => vec!["--initial-split-keys".into(), cuts.join(",")],
        }
    }

    /// How many keys of the key space (or others under its prefix) the cluster holds.
    pub async fn present(&self, pool: &Pool) -> anyhow::Result<u64> {
        let prefix = Bytes::copy_from_slice(self.prefix.as_bytes());
        let end = prefix_end(&prefix);
        let reply = pool.session(0).call(RangeRequest { count_only: true, ..range(prefix, end) }).await?;
        u64::try_from(reply.count).context("the server counted fewer than no keys")
    }

    /// Puts every key once.
    pub async fn fill(&self, loader: &Loader, seed: u64, bar: &ProgressBar) -> anyhow::Result<Loaded> {
        let space = self.clone();
        let entry = move |number| (space.key(number), Random::new(seed, number).bytes(space.value_bytes).into());
        loader.load(self.count, entry, bar).await
    }
}

/// In which order the keys are picked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distribution {
    /// Every key equally often, in random order.
    Uniform,
    /// One after the other; workers start at evenly spread places.
    Sequential,
    /// A few keys often and most of them seldom, by Zipf's law with this exponent. The popular keys are the same for all
    /// workers, and scattered over the key space.
    Zipf(f64),
}

/// Exponent of `zipf` without a number: a common choice, close to what caches and shops see.
const ZIPF_EXPONENT: f64 = 0.99;

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("zipf:")) {
            ("uniform", _) => Ok(Self::Uniform),
            ("sequential", _) => Ok(Self::Sequential),
            ("zipf", _) => Ok(Self::Zipf(ZIPF_EXPONENT)),
            (_, Some(exponent)) => match exponent.parse::<f64>() {
                Ok(exponent) if exponent > 0.0 && exponent <= 10.0 => Ok(Self::Zipf(exponent)),
                _ => Err(format!("{text:?}: the exponent must be above 0 and at most 10, as in zipf:1.2")),
            },
            _ => Err(format!("{text:?} is not one of uniform, sequential, zipf, zipf:EXPONENT")),
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Sequential => f.write_str("sequential"),
            Self::Zipf(exponent) => write!(f, "zipf:{exponent}"),
        }
    }
}

/// One worker's keys and values. Makes them without an allocation each.
#[derive(Debug)]
pub struct Picker {
    space: KeySpace,
    order: Order,
    random: Random,
    /// The worker's own key.
    own: u64,
    piece: BytesMut,
    values: Bytes,
}

/// A distribution with what it remembers.
#[derive(Debug)]
enum Order {
    Uniform,
    Sequential { next: u64 },
    Zipf(Zipf),
}

impl Picker {
    /// The picker of one of `workers` workers.
    pub fn new(space: &KeySpace, distribution: Distribution, seed: u64, worker: usize, workers: usize) -> Self {
        let mut random = Random::new(seed, worker as u64);
        let own = (u128::from(space.count) * worker as u128 / workers as u128) as u64;
        let values = Bytes::from(random.bytes(POOL_BYTES + space.value_bytes));
        let order = match distribution {
            Distribution::Uniform => Order::Uniform,
            Distribution::Sequential => Order::Sequential { next: own },
            Distribution::Zipf(exponent) => Order::Zipf(Zipf::new(space.count, exponent)),
        };
        Self { space: space.clone(), order, random, own, piece: BytesMut::new(), values }
    }

    /// The next key to touch.
    pub fn key(&mut self) -> Bytes {
        self.numbered_key().1
    }

    /// The next key to touch, with its number.
    pub fn numbered_key(&mut self) -> (u64, Bytes) {
        let number = self.number();
        (number, self.cut(number))
    }

    /// The number of the next key to touch.
    pub fn number(&mut self) -> u64 {
        match &mut self.order {
            Order::Uniform => self.random.below(self.space.count),
            Order::Sequential { next } => {
                let number = *next;
                *next = (number + 1) % self.space.count;
                number
            }
            Order::Zipf(zipf) => zipf.draw(&mut self.random),
        }
    }

    /// The key that this worker alone writes, as long as there are at least as many keys as workers. Own keys are
    /// spread evenly over the key space, so that they fall into all of its regions.
    pub fn own_key(&mut self) -> Bytes {
        self.cut(self.own)
    }

    /// A key half the key space away from the own one, which no other worker owns if there are twice as many keys as
    /// workers: with two regions or more it lies in another one.
    pub fn far_key(&mut self) -> Bytes {
        self.cut((self.own + self.space.count / 2 + 1) % self.space.count)
    }

    /// The keys it picks from.
    pub fn space(&self) -> &KeySpace {
        &self.space
    }

    /// A key of this worker alone, beside the numbered ones: the `turn`-th of `turns`, which are spread evenly over the
    /// key space. No numbered key is the same.
    pub fn beside(&self, worker: usize, turn: u64, turns: u64) -> Bytes {
        let step = u128::from(self.space.count) * u128::from(turn % turns) / u128::from(turns);
        let number = (u128::from(self.own) + step) % u128::from(self.space.count);
        format!("{}{number:0DIGITS$}/{worker}", self.space.prefix).into()
    }

    /// The next value to write. Incompressible.
    pub fn value(&mut self) -> Bytes {
        let start = self.random.below(POOL_BYTES as u64) as usize;
        self.values.slice(start..start + self.space.value_bytes)
    }

    /// A number below `bound`, for choices of the workload.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    fn cut(&mut self, number: u64) -> Bytes {
        let bytes = self.space.prefix.len() + DIGITS;
        if self.piece.capacity() < bytes {
            self.piece = BytesMut::with_capacity(PIECE_BYTES.max(bytes));
        }
        self.space.put_key(&mut self.piece, number);
        self.piece.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn space(count: u64) -> KeySpace {
        KeySpace { prefix: "bench/".into(), count, value_bytes: 100 }
    }

    #[test]
    fn key_order_is_number_order() {
        let space = space(1_000);
        assert_eq!(space.key(7)[..], b"bench/0000000007"[..]);
        assert!((1..1_000).all(|number| space.key(number - 1) < space.key(number)));
    }

    #[test]
    fn pickers_are_deterministic_and_differ_between_workers() {
        let keys = |worker| {
            let mut picker = Picker::new(&space(1_000), Distribution::Uniform, 1, worker, 4);
            (0..50).map(|_| (picker.key(), picker.value())).collect::<Vec<_>>()
        };
        assert_eq!(keys(0), keys(0));
        assert_ne!(keys(0), keys(1));
        assert!(keys(0).iter().all(|(_, value)| value.len() == 100));
    }

    #[test]
    fn a_sequential_picker_walks_all_keys_and_starts_again() {
        let mut picker = Picker::new(&space(5), Distribution::Sequential, 1, 1, 2);
        let numbers: Vec<_> = (0..6).map(|_| picker.key()[15] - b'0').collect();
        assert_eq!(numbers, [2, 3, 4, 0, 1, 2]);
    }

    #[test]
    fn own_keys_differ_and_are_spread() {
        let own = |worker| Picker::new(&space(1_000), Distribution::Uniform, 1, worker, 64).own_key();
        let keys: HashSet<_> = (0..64).map(own).collect();
        assert_eq!(keys.len(), 64);
        assert!(keys.contains(&space(1_000).key(500)));
    }

    #[test]
    fn keys_survive_the_change_of_the_piece() {
        let mut picker = Picker::new(&space(1_000_000), Distribution::Sequential, 1, 0, 1);
        let keys: Vec<_> = (0..2 * PIECE_BYTES / 16).map(|_| picker.key()).collect();
        assert!(keys.windows(2).all(|pair| pair[0] < pair[1] && pair[1].len() == 16));
    }

    #[test]
    fn keys_beside_the_numbered_ones_are_a_workers_own_and_spread() {
        let pickers = [0, 1].map(|worker| Picker::new(&space(1_000), Distribution::Uniform, 1, worker, 2));
        let keys: HashSet<_> =
            (0..8).map(|i| (i % 2, i / 2)).map(|(w, turn)| pickers[w].beside(w, turn as u64, 4)).collect();
        assert_eq!(keys.len(), 8);
        assert!(keys.contains(&b"bench/0000000250/0"[..]) && keys.contains(&b"bench/0000000250/1"[..]), "{keys:?}");
        assert_eq!(pickers[0].beside(0, 5, 4), pickers[0].beside(0, 1, 4));
    }

    #[test]
    fn distributions_are_read_as_they_are_written() {
        for name in ["uniform", "sequential", "zipf:1.2"] {
            assert_eq!(name.parse::<Distribution>().unwrap().to_string(), name);
        }
        assert_eq!("zipf".parse(), Ok(Distribution::Zipf(ZIPF_EXPONENT)));
        for bad in ["zipf:0", "zipf:x", "random"] {
            assert!(bad.parse::<Distribution>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_zipf_picker_wants_few_keys_often() {
        let mut picker = Picker::new(&space(1_000), Distribution::Zipf(0.99), 1, 0, 4);
        let mut seen = vec![0; 1_000];
        (0..10_000).for_each(|_| seen[picker.number() as usize] += 1);
        seen.sort_unstable();
        // By the law the ten most wanted of a thousand get 39 in 100.
        assert!((3_400..4_400).contains(&seen[990..].iter().sum::<i32>()), "{:?}", &seen[990..]);
    }

    #[test]
    fn keys_have_the_size_that_is_asked_for() {
        let wide = space(10).with_key_bytes(64).unwrap();
        assert_eq!(wide.key(3).len(), 64);
        assert_eq!(wide.entry_bytes(), 164);
        assert!(wide.key(3).starts_with(b"bench/k") && wide.key(3).ends_with(b"k0000000003"));
        let error = space(10).with_key_bytes(15).unwrap_err().to_string();
        assert!(error.contains("at least 16"), "{error}");
    }

    #[test]
    fn regions_are_cut_at_keys() {
        assert_eq!(space(100).split_flags(1), Vec::<String>::new());
        let want = ["--initial-split-keys", "bench/0000000025,bench/0000000050,bench/0000000075"];
        assert_eq!(space(100).split_flags(4), want);
    }

    #[test]
    fn impossible_key_spaces_are_refused() {
        assert!(space(0).check().is_err());
        assert!(space(10u64.pow(10) + 1).check().is_err());
        assert!(KeySpace { prefix: String::new(), ..space(1) }.check().is_err());
        assert!(space(1).check().is_ok());
    }
}
