//! A data set of numbered keys that grows in steps, each spread over the whole key space, and how it is loaded.
//!
//! Of S steps the step s holds the numbers n with `n % S == s`: regions grow evenly, and no step is a hot end of the key
//! space. Each client loads an even piece of the step in key order, several keys in one transaction.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use braid_proto::etcd::etcdserverpb::request_op::Request;
use braid_proto::etcd::etcdserverpb::{PutRequest, RequestOp, TxnRequest, TxnResponse};
use braid_proto::key::strip_user;
use bytes::Bytes;
use indicatif::ProgressBar;
use tokio::task::JoinSet;
use tonic::{Response, Status};

use crate::client::{Address, Kv};
use crate::keys::KeySpace;
use crate::random::Random;
use crate::session::{Idempotent, Policy, Pool, Session};

/// Keys and values of which the first `steps_there` of `steps` have been loaded.
#[derive(Debug, Clone)]
pub struct DataSet {
    /// All keys, those to come as well.
    pub space: KeySpace,
    /// Steps in which it is loaded.
    pub steps: u64,
    /// Steps that have been loaded.
    pub steps_there: u64,
    /// Percent of each value that compress to nothing.
    pub compressible: u8,
}

impl DataSet {
    /// A data set that is loaded in one step.
    pub fn new(prefix: String, count: u64, value_bytes: usize, compressible: u8) -> anyhow::Result<Self> {
        ensure!(compressible <= 100, "{compressible} % of a value cannot be compressible: give 0 to 100");
        let space = KeySpace { prefix, count, value_bytes };
        space.check()?;
        Ok(Self { space, steps: 1, steps_there: 1, compressible })
    }

    /// As many keys as make so many GB (10^9 bytes of keys and values).
    pub fn of_gigabytes(gigabytes: f64, prefix: &str, value_bytes: usize, compressible: u8) -> anyhow::Result<Self> {
        ensure!(gigabytes.is_finite() && gigabytes > 0.0, "--gigabytes {gigabytes}: it must be above 0");
        let one = Self::new(prefix.to_owned(), 1, value_bytes, compressible)?;
        let count = (gigabytes * 1e9 / one.space.entry_bytes() as f64).ceil() as u64;
        Self::new(prefix.to_owned(), count, value_bytes, compressible)
    }

    /// The key with a number.
    pub fn key(&self, number: u64) -> Bytes {
        self.space.key(number)
    }

    /// A new value.
    pub fn value(&self, random: &mut Random) -> Bytes {
        let plain = self.space.value_bytes * usize::from(self.compressible) / 100;
        let mut value = random.bytes(self.space.value_bytes - plain);
        value.resize(self.space.value_bytes, b'.');
        value.into()
    }

    /// The number of one of the keys that have been loaded.
    pub fn any(&self, random: &mut Random) -> u64 {
        loop {
            let number = random.below(self.space.count);
            if number % self.steps < self.steps_there {
                return number;
            }
        }
    }

    /// How many keys a step has.
    pub fn step_keys(&self, step: u64) -> u64 {
        (self.space.count + self.steps - 1 - step) / self.steps
    }

    /// Bytes of keys and values that have been loaded.
    pub fn bytes_there(&self) -> u64 {
        (0..self.steps_there).map(|step| self.step_keys(step)).sum::<u64>() * self.space.entry_bytes()
    }

    /// Numbers of the keys in a range of internal keys; an empty end is unbounded. None if no key can be there.
    pub fn numbers(&self, start: &Bytes, end: &Bytes) -> Option<std::ops::Range<u64>> {
        let first = self.first_from(start);
        let last = if end.is_empty() { self.space.count } else { self.first_from(end) };
        (first < last).then_some(first..last)
    }

    /// Number of the first key that is not below an internal key; the count if there is none.
    fn first_from(&self, internal: &Bytes) -> u64 {
        let count = self.space.count;
        match strip_user(internal) {
            // Keys of users have one first byte; what else there is lies wholly before or behind them.
            None if internal.as_ref() < braid_proto::key::user_key(b"").as_ref() => 0,
            None => count,
            Some(bound) => {
                let (mut low, mut high) = (0, count);
                while low < high {
                    let middle = low + (high - low) / 2;
                    if self.key(middle) < bound { low = middle + 1 } else { high = middle }
                }
                low
            }
        }
    }
}

/// How to load.
#[derive(Debug, Clone)]
pub struct Filler {
    /// Where, in turn.
    pub endpoints: Vec<Address>,
    /// Transactions in flight.
    pub clients: u64,
    /// Puts of one transaction.
    pub batch: u64,
    /// Makes values repeatable.
    pub seed: u64,
}

impl Filler {
    /// Loads a part of a step: the `part`-th of `parts` of every client's piece. Gives how long it took.
    pub async fn load(
        &self,
        data: &DataSet,
        step: u64,
        (part, parts): (u64, u64),
        bar: &ProgressBar,
    ) -> anyhow::Result<Duration> {
        ensure!(self.clients > 0 && self.batch > 0, "there must be a client and a put in each transaction");
        let pool = Pool::new(&self.endpoints, 4, Policy::default());
        let data = Arc::new(data.clone());
        let begin = Instant::now();
        let mut clients = JoinSet::new();
        for client in 0..self.clients {
            let piece = piece(0..data.step_keys(step), client, self.clients);
            let piece = self::piece(piece, part, parts);
            let random = Random::new(self.seed ^ step, client * parts + part);
            let session = pool.session(client as usize);
            clients.spawn(fill(Arc::clone(&data), step, piece, self.batch, session, random, bar.clone()));
        }
        while let Some(done) = clients.join_next().await {
            done.context("a client panicked")??;
        }
        Ok(begin.elapsed())
    }
}

/// The `part`-th of `parts` even pieces of a range.
fn piece(range: std::ops::Range<u64>, part: u64, parts: u64) -> std::ops::Range<u64> {
    let at =
        |part: u64| range.start + (u128::from(range.end - range.start) * u128::from(part) / u128::from(parts)) as u64;
    at(part)..at(part + 1)
}

/// Puts one piece of a step, given by places in the step.
async fn fill(
    data: Arc<DataSet>,
    step: u64,
    places: std::ops::Range<u64>,
    batch: u64,
    mut session: Session,
    mut random: Random,
    bar: ProgressBar,
) -> anyhow::Result<()> {
    let mut next = places.start;
    while next < places.end {
        let end = places.end.min(next + batch);
        let puts = (next..end).map(|place| PutRequest {
            key: data.key(place * data.steps + step),
            value: data.value(&mut random),
            ..PutRequest::default()
        });
        session.call(Puts(puts.collect())).await?;
        bar.inc(end - next);
        next = end;
    }
    Ok(())
}

/// Puts that are done together. They may be done twice.
#[derive(Debug, Clone)]
struct Puts(Vec<PutRequest>);

impl Idempotent for Puts {
    type Reply = TxnResponse;

    fn send(self, kv: &mut Kv) -> impl Future<Output = Result<Response<TxnResponse>, Status>> + Send {
        let success = self.0.into_iter().map(|put| RequestOp { request: Some(Request::RequestPut(put)) }).collect();
        kv.txn(TxnRequest { success, ..TxnRequest::default() })
    }

    fn describe(&self) -> String {
        let first = self.0.first().map(|put| put.key.clone()).unwrap_or_default();
        format!("{} puts from {}", self.0.len(), first.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use braid_proto::key::{lease_key, user_key};

    use super::*;

    fn data(count: u64, steps: u64, steps_there: u64) -> DataSet {
        DataSet { steps, steps_there, ..DataSet::new("k/".into(), count, 100, 0).unwrap() }
    }

    #[test]
    fn steps_hold_every_number_once_and_are_even() {
        let data = data(103, 10, 3);
        assert_eq!((0..10).map(|step| data.step_keys(step)).sum::<u64>(), 103);
        assert_eq!((data.step_keys(0), data.step_keys(2), data.step_keys(3)), (11, 11, 10));
        assert_eq!(data.bytes_there(), 33 * data.space.entry_bytes());
    }

    #[test]
    fn only_loaded_keys_are_picked_and_all_of_them() {
        let data = data(103, 10, 3);
        let mut random = Random::new(1, 1);
        let picked: BTreeSet<_> = (0..3_000).map(|_| data.any(&mut random)).collect();
        assert_eq!(picked.len(), 33);
        assert!(picked.iter().all(|number| number % 10 < 3));
    }

    #[test]
    fn pieces_hold_everything_once() {
        let mut pieces = (0..7).map(|part| piece(5..100, part, 7));
        let first = pieces.next().unwrap();
        assert_eq!(first.start, 5);
        assert_eq!(
            pieces.fold(first.end, |end, piece| {
                assert_eq!(end, piece.start);
                piece.end
            }),
            100
        );
    }

    #[test]
    fn the_numbers_of_a_region_are_found() {
        let data = data(100, 1, 1);
        let of = |start: &[u8], end: &[u8]| {
            let bound = |key: &[u8]| if key.is_empty() { Bytes::new() } else { user_key(key) };
            data.numbers(&bound(start), &bound(end))
        };
        assert_eq!(of(b"", b""), Some(0..100));
        assert_eq!(of(&data.key(10), &data.key(20)), Some(10..20));
        assert_eq!(of(b"a", &data.key(1)), Some(0..1));
        assert_eq!(of(&data.key(99), b"z"), Some(99..100));
        assert_eq!(of(b"z", b""), None);
        // Leases are in regions of their own.
        assert_eq!(data.numbers(&lease_key(0), &lease_key(5)), None);
    }

    #[test]
    fn values_are_as_compressible_as_they_should_be() {
        let mut random = Random::new(1, 1);
        for (percent, dots) in [(0, 0..20), (50, 50..70), (100, 100..101)] {
            let value = DataSet { compressible: percent, ..data(1, 1, 1) }.value(&mut random);
            assert_eq!(value.len(), 100);
            assert!(dots.contains(&value.iter().filter(|byte| **byte == b'.').count()), "{percent}");
        }
        assert!(DataSet::new("k/".into(), 1, 1, 101).unwrap_err().to_string().contains("0 to 100"));
        assert_eq!(DataSet::of_gigabytes(1.0, "k/", 988, 0).unwrap().space.count, 1_000_000);
    }
}
