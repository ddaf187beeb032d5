//! A watch over everything that survives what is done to the servers, and whether it showed exactly what happened.
//!
//! 1. The recorder follows one stream. When that breaks, or says nothing for a while, it opens another one at the next
//!    endpoint, from the revision after the last that it saw: as a client does that must miss nothing.
//! 2. Every answered request says at which revision it changed which keys; these events, and no others, must have come
//!    at that revision, once and in order.
//! 3. Events at revisions that no answer claims must be the work of a request of unknown outcome: what they put must have
//!    been asked for.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use anyhow::{Context, bail};
use braid_proto::etcd::etcdserverpb::request_op::Request as OpRequest;
use braid_proto::etcd::etcdserverpb::response_op::Response as OpResponse;
use braid_proto::etcd::etcdserverpb::{RangeRequest, WatchResponse};
use braid_proto::etcd::mvccpb::event::EventType;
use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::check::Violation;
use crate::client::{Address, header_revision};
use crate::linear::history::{History, Op, Outcome, Place, Request, Response};
use crate::session::{Policy, Pool};
use crate::watch::stream::{Target, WatchStream};

/// A stream that says nothing for so long is given up: something changes all the time.
const SILENCE: Duration = Duration::from_secs(3);
/// Pause before the next stream.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the last events may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Violations of one kind that are told in full.
const TOLD: usize = 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Its revision.
    pub revision: i64,
    /// Its key.
    pub key: Bytes,
    /// What was put; none: it was deleted.
    pub value: Option<Bytes>,
}

/// What a watch showed.
#[derive(Debug, Clone, Default)]
pub struct Events {
    /// In the order they came.
    pub seen: Vec<Seen>,
    /// Streams it took.
    pub streams: u64,
}

/// Follows everything. Ends when dropped.
#[derive(Debug)]
pub struct Recorder {
    /// Revision that must be reached; none while the run goes on.
    until: watch::Sender<Option<i64>>,
    task: JoinHandle<anyhow::Result<Events>>,
}

impl Recorder {
    /// Starts with what happens from now on.
    pub async fn start(endpoints: &[Address]) -> anyhow::Result<Self> {
        let pool = Pool::new(endpoints, 1, Policy::default());
        let get = RangeRequest { key: Bytes::from_static(b"\0"), ..RangeRequest::default() };
        let now = header_revision(&pool.session(0).call(get).await?);
        let (until, end) = watch::channel(None);
        let task = tokio::spawn(follow(endpoints.to_vec(), now, end));
        Ok(Self { until, task })
    }

    /// Waits until the revision was seen, and gives all events.
    pub async fn finish(mut self, revision: i64) -> anyhow::Result<Events> {
        self.until.send_replace(Some(revision));
        let ended = timeout(PATIENCE, &mut self.task).await;
        ended
            .with_context(|| format!("a watch over everything has not come to revision {revision} in {PATIENCE:?}"))??
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(endpoints: Vec<Address>, from: i64, mut end: watch::Receiver<Option<i64>>) -> anyhow::Result<Events> {
    let mut events = Events::default();
    let mut last = from;
    for endpoint in endpoints.iter().cycle() {
        let target = Target { start_revision: last + 1, ..Target::everything() };
        let opened = timeout(SILENCE, async { WatchStream::open(endpoint.channel().await?, vec![target]).await }).await;
        let Ok(Ok(mut stream)) = opened else {
            sleep(PAUSE).await;
            continue;
        };
        events.streams += 1;
        loop {
            if end.borrow_and_update().is_some_and(|until| last >= until) {
                return Ok(events);
            }
            let message = tokio::select! {
                message = timeout(SILENCE, stream.next()) => message,
                changed = end.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return Ok(events),
                }
            };
            // Whatever ends a stream, the next one goes on behind the last event. A compaction cannot be the reason, since
            // nobody compacts.
            let Ok(Ok((_, message))) = message else { break };
            let response = WatchResponse::decode(message.bytes().clone()).context("a watch response")?;
            for event in response.events {
                let deleted = event.r#type() == EventType::Delete;
                let kv = event.kv.context("an event without a key")?;
                last = last.max(kv.mod_revision);
                let value = (!deleted).then_some(kv.value);
                events.seen.push(Seen { revision: kv.mod_revision, key: kv.key, value });
            }
        }
        sleep(PAUSE).await;
    }
    bail!("there is no endpoint")
}

/// The highest revision that an answer says it took.
pub fn newest(history: &History) -> i64 {
    let took = history.ops.iter().filter_map(|op| match op.place() {
        Some(Place::Took(revision)) => Some(revision),
        _ => None,
    });
    took.max().unwrap_or(0)
}

/// What answers say must be seen at one revision.
#[derive(Debug, Default)]
struct Expected {
    puts: BTreeSet<(Bytes, Bytes)>,
    deletes: i64,
}

/// What the watch showed wrongly.
pub fn check(history: &History, events: &Events) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut violated = |text: String| {
        if violations.len() < TOLD {
            violations.push(Violation { property: "watch", text });
        }
    };
    let mut at: BTreeMap<i64, Vec<&Seen>> = BTreeMap::new();
    let mut last = 0;
    for seen in &events.seen {
        if seen.revision < last {
            violated(format!("DISORDER: revision {} came after {last}", seen.revision));
        }
        last = last.max(seen.revision);
        let same = at.entry(seen.revision).or_default();
        if same.iter().any(|before| before.key == seen.key) {
            violated(format!("REPEATED: {} came twice at revision {}", seen.key.escape_ascii(), seen.revision));
        }
        same.push(seen);
    }
    let mut expected: BTreeMap<i64, Expected> = BTreeMap::new();
    for op in &history.ops {
        if let Some(Place::Took(revision)) = op.place() {
            add(op, expected.entry(revision).or_default());
        }
    }
    for (revision, expected) in &expected {
        let seen = at.remove(revision).unwrap_or_default();
        let puts = seen.iter().filter_map(|seen| Some((seen.key.clone(), seen.value.clone()?)));
        let (puts, deletes) = (puts.collect::<BTreeSet<_>>(), seen.iter().filter(|seen| seen.value.is_none()).count());
        for (key, _) in expected.puts.difference(&puts) {
            violated(format!("LOST: the put of {} at revision {revision} was not seen", key.escape_ascii()));
        }
        for (key, _) in puts.difference(&expected.puts) {
            violated(format!("INVENTED: a put of {} was seen at revision {revision}", key.escape_ascii()));
        }
        if deletes as i64 != expected.deletes {
            violated(format!("{} keys were deleted at revision {revision}, and seen were {deletes}", expected.deletes));
        }
    }
    let asked: HashSet<(&[u8], &[u8])> =
        history.ops.iter().flat_map(|op| op.request.puts()).map(|put| (&put.key[..], &put.value[..])).collect();
    for seen in at.into_values().flatten() {
        if let Some(value) = &seen.value
            && !asked.contains(&(&seen.key[..], &value[..]))
        {
            violated(format!(
                "INVENTED: nobody put what {} had at revision {}",
                seen.key.escape_ascii(),
                seen.revision
            ));
        }
    }
    violations
}

/// Adds what an answered request did.
fn add(op: &Op, expected: &mut Expected) {
    let Outcome::Answered { response, .. } = &op.outcome else { return };
    match (&op.request, response) {
        (Request::Put(put), Response::Put(_)) => {
            expected.puts.insert((put.key.clone(), put.value.clone()));
        }
        (Request::Delete(_), Response::Delete(deleted)) => expected.deletes += deleted.deleted,
        (Request::Txn(txn), Response::Txn(answer)) => {
            let branch = if answer.succeeded { &txn.success } else { &txn.failure };
            for (asked, answered) in branch.iter().zip(&answer.responses) {
                match (&asked.request, &answered.response) {
                    (Some(OpRequest::RequestPut(put)), _) => {
                        expected.puts.insert((put.key.clone(), put.value.clone()));
                    }
                    (_, Some(OpResponse::ResponseDeleteRange(deleted))) => expected.deletes += deleted.deleted,
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
