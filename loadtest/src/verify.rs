//! Reads a loaded data set back, page by page at one revision, and compares it with what it must be.
//!
//! 1. All expected keys are made and sorted.
//! 2. The first page is read at the current revision; every further page at the revision of its header, from the key
//!    after the last one.
//! 3. Each page is checked by itself (`check_page`): order, number of keys, `count`, `more`, header; each pair against
//!    the expected key and value.
//! 4. At the end no revision may have been the last change of two keys, and a count at the pinned revision must agree.

use std::collections::HashSet;

use braid_proto::etcd::etcdserverpb::{RangeRequest, RangeResponse};
use braid_proto::etcd::mvccpb::KeyValue;
use bytes::{BufMut, Bytes, BytesMut};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::client::{header_revision, prefix_end, range};
use crate::dataset::{Dataset, PREFIX};
use crate::session::Session;

/// Problems that are spelled out; further ones are only counted.
const PROBLEMS_SHOWN: usize = 20;

/// The outcome.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verified {
    /// Keys that were read.
    pub keys: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Pages they came in.
    pub pages: u64,
    /// Revision of all pages.
    pub revision: i64,
    /// Everything that was wrong.
    pub problems: u64,
    /// The first of them, in words.
    pub first_problems: Vec<String>,
}

impl Verified {
    fn problem(&mut self, text: impl FnOnce() -> String) {
        self.problems += 1;
        if self.first_problems.len() < PROBLEMS_SHOWN {
            self.first_problems.push(text());
        }
    }
}

/// The keys of a data set in key order.
pub struct Expected {
    dataset: Dataset,
    version: u64,
    /// All keys, one behind the other, in order of their index.
    bytes: Vec<u8>,
    /// Where each key ends in `bytes`.
    ends: Vec<u64>,
    /// Indices in key order.
    order: Vec<u32>,
}

impl Expected {
    /// The first `count` items, each put `version` times.
    ///
    /// # Panics
    /// If there are more than fit into 32 bits.
    pub fn new(dataset: Dataset, count: u64, version: u64) -> Self {
        let count = u32::try_from(count).expect("at most 2^32 keys");
        let mut expected = Self { dataset, version, bytes: Vec::new(), ends: Vec::new(), order: (0..count).collect() };
        for index in 0..count {
            expected.bytes.extend_from_slice(&dataset.key_of(u64::from(index)));
            expected.ends.push(expected.bytes.len() as u64);
        }
        let mut order = std::mem::take(&mut expected.order);
        order.sort_unstable_by(|&a, &b| expected.key(a).cmp(expected.key(b)));
        expected.order = order;
        expected
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Key of the item with this index.
    fn key(&self, index: u32) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index as usize - 1] };
        &self.bytes[start as usize..self.ends[index as usize] as usize]
    }

    /// Key at this place of the key order.
    pub fn key_at(&self, place: usize) -> &[u8] {
        self.key(self.order[place])
    }

    /// Value of the key at this place.
    pub fn value_at(&self, place: usize) -> Bytes {
        self.dataset.value_of(u64::from(self.order[place]), self.version)
    }
}

/// Reads everything under the data set's prefix. An error is a read that failed; what was read wrong is in the outcome.
pub async fn verify(
    session: &mut Session,
    expected: &Expected,
    page: i64,
    bar: &ProgressBar,
) -> anyhow::Result<Verified> {
    let end = prefix_end(PREFIX.as_bytes());
    let mut comparison = Comparison::new(expected, page);
    let mut start = Bytes::from_static(PREFIX.as_bytes());
    loop {
        let revision = comparison.verified.revision;
        let request = RangeRequest { limit: page, revision, ..range(start.clone(), end.clone()) };
        let reply = session.call(request).await?;
        // The next page comes from another endpoint: all of them must agree.
        session.advance();
        comparison.check_page(&reply);
        bar.set_position(comparison.verified.keys);
        match reply.kvs.last() {
            Some(last) if reply.more => {
                // Otherwise a server that ignores the start of a range would keep us here for ever.
                anyhow::ensure!(last.key >= start, "a page from {} ends before it", start.escape_ascii());
                start = successor(&last.key);
            }
            _ => break,
        }
    }
    let revision = comparison.verified.revision;
    let all = range(PREFIX.as_bytes(), end);
    let reply = session.call(RangeRequest { count_only: true, revision, ..all }).await?;
    Ok(comparison.finish(reply.count))
}

/// The smallest key after this one.
fn successor(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// The comparison of pages with what was expected, page after page.
pub struct Comparison<'a> {
    expected: &'a Expected,
    page: i64,
    /// Place of the first expected key that has not been seen.
    place: usize,
    last_key: Bytes,
    /// `count` of the last page less its keys: what the next page must count.
    left: Option<i64>,
    revisions: HashSet<i64>,
    verified: Verified,
}

impl<'a> Comparison<'a> {
    /// Nothing read yet.
    pub fn new(expected: &'a Expected, page: i64) -> Self {
        let verified = Verified::default();
        let revisions = HashSet::with_capacity(expected.len());
        Self { expected, page, place: 0, last_key: Bytes::new(), left: None, revisions, verified }
    }

    /// Checks the next page.
    pub fn check_page(&mut self, reply: &RangeResponse) {
        self.check_shape(reply);
        for kv in &reply.kvs {
            self.check_order(kv);
            self.check_revisions(kv);
            self.check_pair(kv);
            self.verified.keys += 1;
            self.verified.bytes += (kv.key.len() + kv.value.len()) as u64;
        }
    }

    /// Counts what is missing at the end and compares the server's own count.
    pub fn finish(mut self, counted: i64) -> Verified {
        while self.place < self.expected.len() {
            self.missing();
        }
        if counted != self.expected.len() as i64 {
            let want = self.expected.len();
            self.verified.problem(|| format!("count_only says {counted} keys, {want} were loaded"));
        }
        self.verified
    }

    fn check_shape(&mut self, reply: &RangeResponse) {
        let header = header_revision(reply);
        let (verified, got) = (&mut self.verified, reply.kvs.len() as i64);
        verified.pages += 1;
        if verified.pages == 1 {
            verified.revision = header;
        }
        let (pages, pinned) = (verified.pages, verified.revision);
        if header < pinned || header == 0 {
            verified.problem(|| format!("page {pages}: header revision {header} is below the pinned {pinned}"));
        }
        if reply.more != (reply.count > got) || got != reply.count.min(self.page) {
            let (count, more, page) = (reply.count, reply.more, self.page);
            verified.problem(|| {
                format!("page {pages}: {got} keys, count {count} and more {more} do not agree at a limit of {page}")
            });
        }
        if let Some(left) = self.left.filter(|&left| left != reply.count) {
            let count = reply.count;
            verified.problem(|| format!("page {pages}: count is {count}, the page before left {left}"));
        }
        self.left = Some(reply.count - got);
    }

    fn check_order(&mut self, kv: &KeyValue) {
        if self.last_key >= kv.key {
            let last = &self.last_key;
            self.verified.problem(|| format!("{} comes after {}", kv.key.escape_ascii(), last.escape_ascii()));
        }
        self.last_key = kv.key.clone();
    }

    fn check_revisions(&mut self, kv: &KeyValue) {
        let pinned = self.verified.revision;
        let possible = kv.create_revision >= 2 && kv.mod_revision >= kv.create_revision && kv.mod_revision <= pinned;
        let first = kv.version == 1;
        if !possible || kv.version < 1 || kv.lease != 0 || first != (kv.create_revision == kv.mod_revision) {
            self.verified.problem(|| {
                let KeyValue { key, create_revision, mod_revision, version, lease, .. } = kv;
                let key = key.escape_ascii();
                format!(
                    "{key}: create {create_revision}, mod {mod_revision}, version {version}, lease {lease} at {pinned}"
                )
            });
        }
        if !self.revisions.insert(kv.mod_revision) {
            self.verified.problem(|| format!("{}: revision {} used twice", kv.key.escape_ascii(), kv.mod_revision));
        }
    }

    /// Steps over the expected keys that are smaller than this one, and compares with the one that is equal.
    fn check_pair(&mut self, kv: &KeyValue) {
        while self.place < self.expected.len() && self.expected.key_at(self.place) < &kv.key[..] {
            self.missing();
        }
        if self.place == self.expected.len() || self.expected.key_at(self.place) != &kv.key[..] {
            self.verified.problem(|| format!("{} was never loaded", kv.key.escape_ascii()));
            return;
        }
        if self.expected.value_at(self.place) != kv.value {
            let bytes = kv.value.len();
            self.verified.problem(|| format!("{}: its value of {bytes} bytes is wrong", kv.key.escape_ascii()));
        }
        self.place += 1;
    }

    fn missing(&mut self) {
        let key = self.expected.key_at(self.place);
        self.verified.problem(|| format!("{} is missing", key.escape_ascii()));
        self.place += 1;
    }
}

#[cfg(test)]
mod tests;
