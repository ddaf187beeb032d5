//! `braid admin status`.

use anyhow::Result;
use braid_proto::id::{Revision, SequencerEpoch, Term};
use braid_proto::pb::StatusRequest;
use serde::Serialize;

use crate::admin::answer::Answer;
use crate::admin::connection::Connection;
use crate::admin::table::Table;

/// The cluster as placement's leader sees it.
#[derive(Serialize)]
pub struct Status {
    cluster_id: String,
    bootstrapped: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    waiting_for: String,
    placement_leader: String,
    placement_term: u64,
    placement_applied_index: u64,
    revision: i64,
    revision_window_end: i64,
    sequencer_epoch: u64,
    compacted_revision: i64,
}

/// Asks for the status.
pub async fn run(connection: &mut Connection) -> Result<Status> {
    let answer = connection.ask(StatusRequest {}).await?;
    Ok(Status {
        cluster_id: format!("{:016x}", answer.header.map_or(0, |header| header.cluster_id)),
        bootstrapped: answer.bootstrapped,
        waiting_for: answer.waiting_for,
        placement_leader: format!("{:016x}", answer.leader_member),
        placement_term: answer.term,
        placement_applied_index: answer.applied_index,
        revision: answer.revision,
        revision_window_end: answer.window_end,
        sequencer_epoch: answer.sequencer_epoch,
        compacted_revision: answer.compacted,
    })
}

impl Answer for Status {
    fn text(&self) -> String {
        let mut table = Table::sheet();
        let mut say = |what: &str, now: String| table.say(what, now);
        say("cluster", self.cluster_id.clone());
        say("state", if self.bootstrapped { "running".to_owned() } else { format!("starting: {}", self.waiting_for) });
        say("placement leader", self.placement_leader.clone());
        say(
            "placement term, applied index",
            format!("{}, {}", Term(self.placement_term), self.placement_applied_index),
        );
        say("newest revision", Revision(self.revision).to_string());
        say("revisions persisted up to", Revision(self.revision_window_end).to_string());
        say("sequencer", SequencerEpoch(self.sequencer_epoch).to_string());
        say(
            "compacted",
            if self.compacted_revision > 0 {
                Revision(self.compacted_revision).to_string()
            } else {
                "never".to_owned()
            },
        );
        table.to_string()
    }
}
