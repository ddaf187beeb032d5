//! Reads all keys of a layout at one revision, after the faults are over.

use std::collections::BTreeMap;

use braid_proto::etcd::etcdserverpb::RangeRequest;
use braid_proto::etcd::mvccpb::KeyValue;
use bytes::Bytes;

use crate::client::{header_revision, prefix_end, range};
use crate::history::{Found, Layout};
use crate::session::Session;

/// Keys in one page.
const PAGE: i64 = 500;

/// The keys of a layout at one revision.
#[derive(Debug, Clone, Default)]
pub struct FinalState {
    /// The revision.
    pub revision: i64,
    /// Keys that are there.
    pub keys: BTreeMap<u32, Found>,
    /// Keys under the layout's prefixes that are none of its keys, and answers that contradict each other.
    pub strangers: Vec<String>,
}

impl FinalState {
    /// Reads it.
    pub async fn read(session: &mut Session, layout: &Layout) -> anyhow::Result<Self> {
        let mut state = Self::default();
        for prefix in &layout.prefixes {
            let mut start = Bytes::copy_from_slice(prefix.as_bytes());
            let end = prefix_end(&start);
            loop {
                let at = RangeRequest { limit: PAGE, revision: state.revision, ..range(start.clone(), end.clone()) };
                let reply = session.call(at).await?;
                if state.revision == 0 {
                    state.revision = header_revision(&reply);
                }
                reply.kvs.iter().for_each(|kv| state.add(layout, kv));
                let Some(last) = reply.kvs.last().filter(|_| reply.more) else { break };
                anyhow::ensure!(last.key >= start, "a page from {} ends before it", start.escape_ascii());
                start = [&last.key[..], b"\0"].concat().into();
            }
        }
        Ok(state)
    }

    fn add(&mut self, layout: &Layout, kv: &KeyValue) {
        let Some(key) = layout.key_number(&kv.key) else {
            self.strangers.push(format!("{} is there, which nobody wrote", kv.key.escape_ascii()));
            return;
        };
        if self.keys.insert(key, found(layout, key, kv)).is_some() {
            self.strangers.push(format!("key {key} came twice"));
        }
    }
}

/// What a key-value pair says about its key.
pub fn found(layout: &Layout, key: u32, kv: &KeyValue) -> Found {
    let number = layout.write_number(key, &kv.value);
    Found { number, mod_revision: kv.mod_revision, version: kv.version }
}
