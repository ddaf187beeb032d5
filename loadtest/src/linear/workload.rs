//! What a client asks next: a mix that makes clients meet on few keys, spread over many regions.
//!
//! - puts, gets, deletes of one key;
//! - ranges, counts, pages and deletes over several regions;
//! - reads of one key and of many at old revisions;
//! - transactions on one to four keys in different regions: compare-and-swap on what was just read or on what was seen
//!   long ago, writes beside deletes and reads of both;
//! - transfers between accounts, whose sum never changes, and reads of all accounts.
//!
//! Keys are a few under each prefix. The first prefixes belong to keys that come and go, the last third to accounts,
//! which are never deleted.

use std::collections::{BTreeSet, HashMap};

use anyhow::ensure;
use braid_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use braid_proto::etcd::etcdserverpb::request_op::Request as OpRequest;
use braid_proto::etcd::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use bytes::Bytes;

use super::history::{Accounts, Request, Response};
use super::invariant::balance;
use crate::client::{prefix_end, range};
use crate::random::Random;

/// What each account starts with.
const START: i64 = 1_000;
/// How far back reads at old revisions go.
const BACK_MAX: i64 = 500;

/// The keys.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Prefixes of the keys that come and go, in their order.
    prefixes: Vec<Bytes>,
    /// Keys under each of them.
    per_prefix: u64,
    /// Accounts, in their order.
    accounts: Vec<Bytes>,
}

impl Keys {
    /// Keys under at least two prefixes, so many under each. Give a prefix in each region.
    pub fn new(prefixes: &[String], per_prefix: u64) -> anyhow::Result<Self> {
        let prefixes: BTreeSet<&str> = prefixes.iter().map(String::as_str).collect();
        let clash = prefixes.iter().zip(prefixes.iter().skip(1)).find(|(a, b)| b.starts_with(**a));
        ensure!(clash.is_none(), "one prefix must not start with another: {clash:?}");
        ensure!(prefixes.len() >= 2 && !prefixes.contains(""), "give at least two prefixes that are not empty");
        ensure!((2..=30).contains(&per_prefix), "there must be 2 to 30 keys for each prefix");
        let free = (prefixes.len() * 2 / 3).max(1);
        let names: Vec<Bytes> = prefixes.into_iter().map(|prefix| Bytes::copy_from_slice(prefix.as_bytes())).collect();
        let (free, bank) = names.split_at(free);
        let accounts: Vec<Bytes> =
            bank.iter().flat_map(|prefix| (0..per_prefix).map(|number| name(prefix, number))).collect();
        // etcd's limit of operations in a transaction; one transaction fills all accounts.
        ensure!(accounts.len() <= 128, "{} accounts are more than a transaction can write", accounts.len());
        Ok(Self { prefixes: free.to_vec(), per_prefix, accounts })
    }

    /// The accounts and their sum.
    pub fn accounts(&self) -> Accounts {
        let count = i64::try_from(self.accounts.len()).expect("at most 128");
        Accounts { keys: self.accounts.iter().cloned().collect(), total: START * count }
    }

    /// The first request of all: it opens the accounts.
    pub fn open_accounts(&self) -> Request {
        let puts = self.accounts.iter().enumerate();
        let success = puts.map(|(at, key)| put_op(key, format!("open.{at}={START}"), false)).collect();
        Request::Txn(TxnRequest { success, ..TxnRequest::default() })
    }

    fn key(&self, prefix: usize, number: u64) -> Bytes {
        name(&self.prefixes[prefix], number)
    }
}

fn name(prefix: &[u8], number: u64) -> Bytes {
    [prefix, format!("{number:02}").as_bytes()].concat().into()
}

/// What one client asks.
#[derive(Debug)]
pub struct Generator {
    keys: Keys,
    random: Random,
    client: u32,
    /// Number of the last request.
    number: u32,
    /// Values in the present request.
    values: u32,
    /// Revision at which all was empty.
    base: i64,
    /// Newest revision seen.
    newest: i64,
    /// mod_revisions as they were last seen; 0 for keys that were not there.
    known: HashMap<Bytes, i64>,
    /// Why the last request was made.
    purpose: Purpose,
    /// What follows from the last answer.
    next: Option<Request>,
}

#[derive(Debug, Clone)]
enum Purpose {
    /// None that matters later.
    Itself,
    /// To swap what these keys hold.
    Swap(Vec<Bytes>),
    /// To move money from one account to the other.
    Transfer([Bytes; 2]),
}

impl Generator {
    /// The requests of one client. Different clients, and different seeds, ask differently.
    pub fn new(keys: Keys, seed: u64, client: u32, base: i64) -> Self {
        Self {
            keys,
            random: Random::new(seed, u64::from(client)),
            client,
            number: 0,
            values: 0,
            base,
            newest: base,
            known: HashMap::new(),
            purpose: Purpose::Itself,
            next: None,
        }
    }

    /// The next request and its number.
    pub fn draw(&mut self) -> (u32, Request) {
        self.number += 1;
        self.values = 0;
        self.purpose = Purpose::Itself;
        let request = match self.next.take() {
            Some(request) => request,
            None => self.fresh(),
        };
        (self.number, request)
    }

    /// What the last request was answered.
    pub fn learn(&mut self, request: &Request, response: &Response, revision: i64) {
        self.newest = self.newest.max(revision);
        let past = matches!(request, Request::Range(range) if range.revision > 0);
        if past {
            return;
        }
        for record in response.records() {
            self.known.insert(record.key.clone(), record.mod_revision);
        }
        if response.mutated() {
            for put in request.puts() {
                self.known.insert(put.key.clone(), revision);
            }
        }
        match std::mem::replace(&mut self.purpose, Purpose::Itself) {
            Purpose::Itself => {}
            Purpose::Swap(keys) => {
                let seen = response.records();
                let seen = |key: &Bytes| seen.iter().find(|record| record.key == *key).map_or(0, |it| it.mod_revision);
                let compare: Vec<_> = keys.iter().map(|key| unchanged(key, seen(key))).collect();
                self.values = 0;
                self.number += 1;
                self.next = Some(self.swap(compare, &keys));
                self.number -= 1;
            }
            Purpose::Transfer(pair) => {
                let records = response.records();
                if let [from, to] = records[..] {
                    let amount = 1 + i64::try_from(self.random.below(50)).expect("small");
                    let balances = [from, to].map(|record| balance(&record.value).unwrap_or(0));
                    let compare = vec![unchanged(&pair[0], from.mod_revision), unchanged(&pair[1], to.mod_revision)];
                    let label = |sub: u32| format!("{}.{}.{sub}", self.client, self.number + 1);
                    let puts = vec![
                        put_op(&pair[0], format!("{}={}", label(0), balances[0] - amount), true),
                        put_op(&pair[1], format!("{}={}", label(1), balances[1] + amount), true),
                    ];
                    self.next = Some(Request::Txn(TxnRequest { compare, success: puts, failure: Vec::new() }));
                }
            }
        }
    }

    fn fresh(&mut self) -> Request {
        match self.random.below(100) {
            0..22 => {
                let key = self.key();
                Request::Put(PutRequest { value: self.value(), key, prev_kv: self.coin(), ..PutRequest::default() })
            }
            22..34 => Request::Range(RangeRequest { key: self.any_key(), ..RangeRequest::default() }),
            34..37 => {
                let key = self.any_key();
                Request::Range(RangeRequest { key, revision: self.old_revision(), ..RangeRequest::default() })
            }
            37..40 => {
                let area = self.area();
                Request::Range(RangeRequest { revision: self.old_revision(), ..area })
            }
            40..48 => Request::Range(self.area()),
            48..55 => {
                Request::Delete(DeleteRangeRequest { key: self.key(), prev_kv: self.coin(), ..Default::default() })
            }
            55..58 => {
                let RangeRequest { key, range_end, .. } = self.span();
                Request::Delete(DeleteRangeRequest { key, range_end, prev_kv: self.coin() })
            }
            58..68 => {
                let keys = self.some_keys(4);
                let success = keys.iter().map(get_op).collect();
                self.purpose = Purpose::Swap(keys);
                Request::Txn(TxnRequest { success, ..TxnRequest::default() })
            }
            68..74 => {
                let keys = self.some_keys(4);
                let known = |key: &Bytes| self.known.get(key).copied().unwrap_or(0);
                let compare = keys.iter().map(|key| unchanged(key, known(key))).collect();
                self.swap(compare, &keys)
            }
            74..80 => self.mixed(),
            80..92 => self.transfer(),
            92..97 => {
                let mut keys = self.some_keys(8);
                keys.extend((0..4).map(|_| self.any_key()));
                let success = keys.iter().map(get_op).collect();
                Request::Txn(TxnRequest { success, ..TxnRequest::default() })
            }
            _ => {
                let accounts = &self.keys.accounts;
                let end = prefix_end(&accounts[accounts.len() - 1]);
                Request::Range(range(accounts[0].clone(), end))
            }
        }
    }

    /// Puts all keys if the compares hold, otherwise reads them.
    fn swap(&mut self, compare: Vec<Compare>, keys: &[Bytes]) -> Request {
        let success = keys.iter().map(|key| put_op(key, self.value(), true)).collect();
        Request::Txn(TxnRequest { compare, success, failure: keys.iter().map(get_op).collect() })
    }

    /// Puts and a delete in one transaction, with reads before and after.
    fn mixed(&mut self) -> Request {
        let mut keys = self.some_keys(4);
        let gone = keys.pop().expect("at least one key");
        let whole = self.area();
        let mut success = vec![range_op(whole.clone())];
        success.push(delete_op(DeleteRangeRequest { key: gone, prev_kv: self.coin(), ..Default::default() }));
        for key in &keys {
            let value = self.value();
            success.push(put_op(key, value, self.coin()));
        }
        success.push(range_op(whole));
        Request::Txn(TxnRequest { success, ..TxnRequest::default() })
    }

    fn transfer(&mut self) -> Request {
        let count = self.keys.accounts.len() as u64;
        let from = self.random.below(count);
        let to = (from + 1 + self.random.below(count - 1)) % count;
        let pair = [from, to].map(|at| self.keys.accounts[at as usize].clone());
        let success = pair.iter().map(get_op).collect();
        self.purpose = Purpose::Transfer(pair);
        Request::Txn(TxnRequest { success, ..TxnRequest::default() })
    }

    /// Ranges over several prefixes, as pages or counts at times.
    fn area(&mut self) -> RangeRequest {
        let span = self.span();
        match self.random.below(10) {
            0 | 1 => RangeRequest { limit: 1 + self.random.below(8).cast_signed(), ..span },
            2 => RangeRequest { count_only: true, ..span },
            _ => span,
        }
    }

    /// From one prefix of keys that come and go to the same or a later one.
    fn span(&mut self) -> RangeRequest {
        let count = self.keys.prefixes.len() as u64;
        let [a, b] = [self.random.below(count), self.random.below(count)].map(|at| at as usize);
        let (first, last) = (a.min(b), a.max(b));
        if self.coin() {
            // Parts of both, so that the ends are within regions.
            let numbers = [self.random.below(self.keys.per_prefix), self.random.below(self.keys.per_prefix)];
            let (start, end) = (self.keys.key(first, numbers[0]), self.keys.key(last, numbers[1]));
            if start < end {
                return range(start, end);
            }
        }
        range(self.keys.prefixes[first].clone(), prefix_end(&self.keys.prefixes[last]))
    }

    /// A key that comes and goes.
    fn key(&mut self) -> Bytes {
        let prefix = self.random.below(self.keys.prefixes.len() as u64) as usize;
        let number = self.random.below(self.keys.per_prefix);
        self.keys.key(prefix, number)
    }

    fn any_key(&mut self) -> Bytes {
        if self.random.below(4) > 0 {
            return self.key();
        }
        let account = self.random.below(self.keys.accounts.len() as u64);
        self.keys.accounts[account as usize].clone()
    }

    /// One to `most` different keys that come and go.
    fn some_keys(&mut self, most: u64) -> Vec<Bytes> {
        let count = 1 + self.random.below(most);
        let keys: BTreeSet<Bytes> = (0..count).map(|_| self.key()).collect();
        keys.into_iter().collect()
    }

    fn old_revision(&mut self) -> i64 {
        let back = (self.newest - self.base).min(BACK_MAX);
        self.newest - self.random.below(back.unsigned_abs() + 1).cast_signed()
    }

    /// A value that no other request puts.
    fn value(&mut self) -> Bytes {
        let value = format!("{}.{}.{}", self.client, self.number, self.values);
        self.values += 1;
        value.into()
    }

    fn coin(&mut self) -> bool {
        self.random.below(2) == 0
    }
}

fn unchanged(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.clone(),
        range_end: Bytes::new(),
        target_union: Some(TargetUnion::ModRevision(revision)),
    }
}

fn get_op(key: &Bytes) -> RequestOp {
    range_op(RangeRequest { key: key.clone(), ..RangeRequest::default() })
}

fn range_op(range: RangeRequest) -> RequestOp {
    RequestOp { request: Some(OpRequest::RequestRange(range)) }
}

fn put_op(key: &Bytes, value: impl Into<Bytes>, prev_kv: bool) -> RequestOp {
    let put = PutRequest { key: key.clone(), value: value.into(), prev_kv, ..PutRequest::default() };
    RequestOp { request: Some(OpRequest::RequestPut(put)) }
}

fn delete_op(delete: DeleteRangeRequest) -> RequestOp {
    RequestOp { request: Some(OpRequest::RequestDeleteRange(delete)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_spread_and_accounts_are_out_of_reach_of_deletes() {
        let prefixes = ["!a/", "/b/", "~h/"].map(str::to_owned);
        let keys = Keys::new(&prefixes, 4).unwrap();
        assert_eq!(keys.prefixes, ["!a/", "/b/"]);
        assert_eq!(keys.accounts().total, 4 * START);
        let mut generator = Generator::new(keys, 1, 0, 1);
        for _ in 0..1_000 {
            let span = generator.span();
            assert!(span.key < span.range_end && span.range_end[..] <= b"/b0"[..], "{span:?}");
        }
    }

    #[test]
    fn impossible_keys_are_refused() {
        let keys = |prefixes: &[&str], count| {
            Keys::new(&prefixes.iter().map(|&prefix| prefix.to_owned()).collect::<Vec<_>>(), count).map(drop)
        };
        assert!(keys(&["a", "b"], 2).is_ok());
        for (prefixes, count) in
            [(&["a"][..], 2), (&["a", ""], 2), (&["a", "ab"], 2), (&["a", "b"], 1), (&["a", "b"], 31)]
        {
            assert!(keys(prefixes, count).is_err(), "{prefixes:?} {count}");
        }
    }
}
