//! Rows that were read from files go along with the changes that supersede them.

use std::ops::ControlFlow;

use braid_proto::key::{KeyRange, user_key};
use bytes::Bytes;

use super::script::{State, request};
use crate::eval::{Context, Evaluated, evaluate};
use crate::record::Record;
use crate::view::model::Model;
use crate::view::{BaseView, Damaged, Found, View};

/// Applied data of which nothing is in memory; a row has this many bytes.
struct OnDisk<'a>(&'a Model, usize);

impl BaseView for OnDisk<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Record>, Damaged> {
        self.0.get(key)
    }

    fn find(&self, key: &[u8]) -> Result<Option<Found>, Damaged> {
        Ok(self.0.get(key)?.map(|record| Found { record, row: self.row(key) }))
    }

    fn scan(&self, range: &KeyRange, visit: &mut dyn FnMut(&Bytes, &Record) -> ControlFlow<()>) -> Result<(), Damaged> {
        self.0.scan(range, visit)
    }

    fn count(&self, range: &KeyRange, except: &[&[u8]]) -> Result<u64, Damaged> {
        self.0.count(range, except)
    }

    fn scan_at(
        &self,
        range: &KeyRange,
        revision: i64,
        visit: &mut dyn FnMut(&Bytes, &Record) -> ControlFlow<()>,
    ) -> Result<(), Damaged> {
        self.0.scan_at(range, revision, visit)
    }

    fn count_at(&self, range: &KeyRange, revision: i64) -> Result<u64, Damaged> {
        self.0.count_at(range, revision)
    }
}

impl OnDisk<'_> {
    fn row(&self, key: &[u8]) -> Bytes {
        vec![*key.last().expect("a key"); self.1].into()
    }
}

/// The keys whose row goes along with what `text` changes.
fn sent(state: &str, text: &str, row_bytes: usize) -> Vec<Bytes> {
    let state = State::parse(state);
    let base = OnDisk(&state.base, row_bytes);
    let context = Context { heard: state.applied, ..Context::default() };
    let outcome = evaluate(&request(text), &View { overlay: &state.overlay, base: &base }, &context);
    let Ok(Evaluated::Write { changes, .. }) = outcome else { panic!("{text}: {outcome:?}") };
    let sent = changes.into_iter().filter(|change| !change.superseded.is_empty());
    let checked = sent.map(|change| {
        assert_eq!(change.superseded, base.row(&change.key), "{:?}", change.key);
        change.key
    });
    checked.collect()
}

fn keys<const N: usize>(keys: [&str; N]) -> Vec<Bytes> {
    keys.map(|key| user_key(key.as_bytes())).to_vec()
}

#[test]
fn the_row_of_a_file_goes_along_and_what_is_in_flight_has_none() {
    assert_eq!(sent("put a 1", "put a 2", 9), keys(["a"]));
    assert_eq!(sent("put a 1", "del a", 9), keys(["a"]));
    assert_eq!(sent("put a 1", "put b 2", 9), keys([]));
    assert_eq!(sent("put a 1 | put a 2", "put a 3", 9), keys([]));
    let guarded = "txn { if mod(a)=2 then put a 2 ; put b 2 ; del c }";
    assert_eq!(sent("put a 1; put b 1; put c 1", guarded, 9), keys(["a", "b", "c"]));
    // A walk reads neighbours, and whoever applies it walks as well.
    assert_eq!(sent("put a 1; put b 1", "del ..", 9), keys([]));
}

#[test]
fn large_rows_and_many_stay_where_they_are() {
    assert_eq!(sent("put a 1", "put a 2", 4 << 10), keys(["a"]));
    assert_eq!(sent("put a 1", "put a 2", (4 << 10) + 1), keys([]));
    let names: Vec<String> = (0..100).map(|n| format!("k{n}")).collect();
    let puts = |separator: &str| names.iter().map(|name| format!("put {name} 1")).collect::<Vec<_>>().join(separator);
    let txn = format!("txn {{ then {} }}", puts(" ; "));
    assert_eq!(sent(&puts("; "), &txn, 4 << 10).len(), 64);
}
