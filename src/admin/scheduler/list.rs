//! `braid admin scheduler list`: what each scheduler does, or why it does nothing.

use braid_proto::pb::SchedulerState;
use serde::Serialize;

use crate::admin::answer::Answer;
use crate::admin::table::{Table, span};

/// All schedulers, in the order in which they are asked.
#[derive(Serialize)]
pub struct SchedulerList {
    pub schedulers: Vec<SchedulerView>,
}

/// One scheduler.
#[derive(Debug, Serialize)]
pub struct SchedulerView {
    name: String,
    paused: bool,
    /// Operators that it has begun since placement's leader leads.
    started: u64,
    seconds_since: u64,
    said: String,
}

impl From<SchedulerState> for SchedulerView {
    fn from(state: SchedulerState) -> Self {
        Self {
            name: state.name,
            paused: state.paused,
            started: state.started,
            seconds_since: state.seconds_since,
            said: state.said,
        }
    }
}

impl SchedulerView {
    fn row(&self, table: &mut Table) {
        table.row(vec![
            self.name.clone(),
            if self.paused { "paused" } else { "on" }.to_owned(),
            self.started.to_string(),
            format!("{} ago", span(self.seconds_since)),
            self.said.clone(),
        ]);
    }
}

impl Answer for SchedulerList {
    fn text(&self) -> String {
        let mut table = Table::new(&["SCHEDULER", "STATE", "STARTED", "SAID", "WHAT"]);
        self.schedulers.iter().for_each(|scheduler| scheduler.row(&mut table));
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_one_says_is_shown() {
        let state = |name: &str, paused, said: &str| SchedulerState {
            name: name.to_owned(),
            paused,
            said: said.to_owned(),
            seconds_since: 3,
            started: 12,
        };
        let states = [state("repair", false, "every region has its replicas"), state("merge", true, "paused")];
        let list = SchedulerList { schedulers: states.map(SchedulerView::from).into() };
        assert_eq!(
            list.text(),
            "SCHEDULER  STATE   STARTED  SAID     WHAT\n\
             repair     on      12       3 s ago  every region has its replicas\n\
             merge      paused  12       3 s ago  paused\n"
        );
        let json = serde_json::to_value(&list).unwrap();
        assert_eq!(json["schedulers"][1]["paused"], true);
        assert_eq!(json["schedulers"][0]["said"], "every region has its replicas");
    }
}
