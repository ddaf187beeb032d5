//! Applied data as a test would write it down: every version of every key, in maps.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use braid_proto::key::KeyRange;
use braid_proto::pb::Change;
use bytes::Bytes;

use super::{BaseView, Damaged, Visit};
use crate::record::Record;

/// What each key was from which revision on, oldest first; `None` is deleted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub keys: BTreeMap<Bytes, Vec<(i64, Option<Record>)>>,
}

impl Model {
    /// Applies numbered changes, and checks that each supersedes what is there.
    pub fn apply(&mut self, revision: i64, changes: &[Change]) {
        for change in changes {
            let versions = self.keys.entry(change.key.clone()).or_default();
            let live = versions.last().and_then(|(_, record)| record.as_ref());
            assert_eq!(
                live.map_or(0, |live| live.mod_revision),
                change.supersedes,
                "superseded by {change:?} @{revision}"
            );
            let record = (!change.delete).then(|| Record {
                create_revision: change.create_revision,
                mod_revision: revision,
                version: change.version,
                lease: change.lease,
                value: change.value.clone(),
            });
            assert!(live.is_some() || record.is_some(), "{change:?} deletes what is absent");
            versions.push((revision, record));
        }
    }

    pub fn at(&self, key: &[u8], revision: i64) -> Option<&Record> {
        let versions = self.keys.get(key)?;
        versions.iter().rev().find(|(made, _)| *made <= revision)?.1.as_ref()
    }

    pub fn live_at<'a>(&'a self, range: &KeyRange, revision: i64) -> Vec<(&'a Bytes, &'a Record)> {
        let inside = self.keys.keys().filter(|key| range.contains(key));
        inside.filter_map(|key| Some((key, self.at(key, revision)?))).collect()
    }
}

impl BaseView for Model {
    fn get(&self, key: &[u8]) -> Result<Option<Record>, Damaged> {
        Ok(self.at(key, i64::MAX).cloned())
    }

    fn scan(&self, range: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged> {
        self.scan_at(range, i64::MAX, visit)
    }

    fn count(&self, range: &KeyRange, except: &[&[u8]]) -> Result<u64, Damaged> {
        assert!(except.is_sorted() && except.iter().all(|key| range.contains(key)), "{except:?} of {range:?}");
        let live = self.live_at(range, i64::MAX);
        Ok(live.iter().filter(|(key, _)| !except.contains(&&key[..])).count() as u64)
    }

    fn scan_at(&self, range: &KeyRange, revision: i64, visit: Visit<'_>) -> Result<(), Damaged> {
        for (key, record) in self.live_at(range, revision) {
            if let ControlFlow::Break(()) = visit(key, record) {
                break;
            }
        }
        Ok(())
    }

    fn count_at(&self, range: &KeyRange, revision: i64) -> Result<u64, Damaged> {
        Ok(self.live_at(range, revision).len() as u64)
    }
}
