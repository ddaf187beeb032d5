//! Money that is moved between accounts adds up in every answer that shows all accounts, and in every snapshot that does.

use std::collections::BTreeMap;

use braid_proto::etcd::mvccpb::KeyValue;
use bytes::Bytes;

use super::history::{Accounts, History, Outcome};
use super::words::op_text;
use crate::check::Violation;

/// The balance in an account's value; none if it is no account's value.
pub(super) fn balance(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.rsplit_once('=')?.1.parse().ok()
}

/// Checks it.
pub fn check(history: &History) -> Vec<Violation> {
    let Some(accounts) = &history.accounts else { return Vec::new() };
    let mut violations = Vec::new();
    let mut judge = |records: &[&KeyValue], who: &dyn Fn() -> String| {
        let shown = sum(accounts, records);
        if let Some(shown) = shown.filter(|&shown| shown != accounts.total) {
            let text = format!("the accounts add up to {shown} instead of {}\n  in: {}", accounts.total, who());
            violations.push(Violation { property: "invariant", text });
        }
    };
    for op in &history.ops {
        let Outcome::Answered { response, .. } = &op.outcome else { continue };
        // An answer that changed something shows states before and after.
        if !response.mutated() {
            judge(&response.records(), &|| op_text(op));
        }
    }
    for (revision, records) in &history.snapshots {
        judge(&records.iter().collect::<Vec<_>>(), &|| format!("the whole key space at @{revision}, read afterwards"));
    }
    violations
}

/// The sum, if every account is there.
fn sum(accounts: &Accounts, records: &[&KeyValue]) -> Option<i64> {
    if records.len() < accounts.keys.len() {
        return None;
    }
    let shown = records.iter().filter(|record| accounts.keys.contains(&record.key));
    let shown: BTreeMap<&Bytes, i64> = shown.map(|record| (&record.key, balance(&record.value).unwrap_or(0))).collect();
    (shown.len() == accounts.keys.len()).then(|| shown.values().sum())
}
