//! An operator as admin answers show it.

use anyhow::{Result, bail};
use braid_proto::id::RegionId;
use braid_proto::pb::OperatorState;
use serde::Serialize;

use crate::admin::answer::Answer;
use crate::admin::table::{Table, span};

/// A change of a region: steps, one after the other.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OperatorView {
    pub id: u64,
    pub region: u64,
    /// The scheduler that began it, or "admin".
    pub by: String,
    pub why: String,
    pub steps: Vec<String>,
    pub steps_done: u32,
    pub seconds: u64,
    /// "running", "done", "failed", "cancelled" or "replaced".
    pub state: String,
    /// For what it waits; of an ended one, how it ended.
    pub said: String,
}

impl From<OperatorState> for OperatorView {
    fn from(state: OperatorState) -> Self {
        Self {
            id: state.id,
            region: state.region_id,
            by: state.by,
            why: state.why,
            steps: state.steps,
            steps_done: state.at,
            seconds: state.seconds,
            state: state.state,
            said: state.said,
        }
    }
}

impl OperatorView {
    /// An empty table of operators.
    pub fn table() -> Table {
        Table::new(&["OPERATOR", "REGION", "BY", "STATE", "STEPS", "TIME", "STEP", "WHY", "SAYS"])
    }

    /// Adds the operator to [`OperatorView::table`].
    pub fn row(&self, table: &mut Table) {
        table.row(vec![
            self.name(),
            RegionId(self.region).to_string(),
            self.by.clone(),
            self.state.clone(),
            format!("{}/{}", self.steps_done, self.steps.len()),
            span(self.seconds),
            self.step(),
            self.why.clone(),
            self.said.clone(),
        ]);
    }

    /// Adds the operator to the sheet of its region.
    pub fn on(&self, sheet: &mut Table) {
        sheet.say("under way", format_args!("{} by {} for {}: {}", self.name(), self.by, span(self.seconds), self.why));
        let steps = self.steps.iter().enumerate().map(|(at, step)| match at < self.steps_done as usize {
            true => format!("{step} (done)"),
            false => step.clone(),
        });
        sheet.say_lines("its steps", steps, "none");
        sheet.say_lines("it says", (!self.said.is_empty()).then(|| self.said.clone()), "nothing");
    }

    /// `o7`, as logs have it.
    pub fn name(&self) -> String {
        format!("o{}", self.id)
    }

    /// The step it is at; empty once it has ended.
    pub fn step(&self) -> String {
        self.steps.get(self.steps_done as usize).filter(|_| self.is_running()).cloned().unwrap_or_default()
    }

    /// How much of it is done, 0 to 1.
    pub fn share(&self) -> f64 {
        if self.steps.is_empty() { 0.0 } else { f64::from(self.steps_done) / self.steps.len() as f64 }
    }

    /// Where it is, in a line.
    pub fn progress(&self) -> String {
        let waits = if self.said.is_empty() { String::new() } else { format!(": {}", self.said) };
        let (at, all) = (self.steps_done as usize, self.steps.len());
        format!(
            "{} on {}, step {} of {all}, {}{waits}",
            self.name(),
            RegionId(self.region),
            all.min(at + 1),
            self.step()
        )
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        self.state == "running"
    }

    /// Fails unless it ended well.
    pub fn verdict(&self) -> Result<()> {
        match self.state.as_str() {
            "done" => Ok(()),
            _ => bail!("{} on {} {}", self.name(), RegionId(self.region), self.said),
        }
    }
}

/// An operator that was begun, and if it was followed, how it ended.
#[derive(Serialize)]
pub struct Begun {
    pub operator: OperatorView,
}

impl Answer for Begun {
    fn text(&self) -> String {
        let mut table = OperatorView::table();
        self.operator.row(&mut table);
        table.to_string()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An operator with one of two steps done.
    pub fn operator(state: &str, said: &str) -> OperatorView {
        OperatorView::from(OperatorState {
            id: 7,
            region_id: 5,
            by: "repair".to_owned(),
            why: "s3 is down".to_owned(),
            steps: vec!["add learner on s4".to_owned(), "remove peer on s3".to_owned()],
            at: 1,
            seconds: 130,
            said: said.to_owned(),
            state: state.to_owned(),
        })
    }

    #[test]
    fn an_operator_says_where_it_is() {
        let running = operator("running", "the peer catches up");
        assert_eq!(running.progress(), "o7 on r5, step 2 of 2, remove peer on s3: the peer catches up");
        assert_eq!((running.share(), running.step().as_str()), (0.5, "remove peer on s3"));
        let text = Begun { operator: running.clone() }.text();
        assert_eq!(
            text.lines().last().unwrap(),
            "o7        r5      repair  running  1/2    2 min  remove peer on s3  s3 is down  the peer catches up"
        );
        let json = serde_json::to_value(Begun { operator: running }).unwrap();
        assert_eq!(json["operator"]["steps_done"], 1);
        assert_eq!(json["operator"]["region"], 5);
    }

    #[test]
    fn only_one_that_is_done_has_ended_well() {
        assert!(operator("done", "done").verdict().is_ok());
        let failed = operator("failed", "failed: s4 is full").verdict().unwrap_err().to_string();
        assert_eq!(failed, "o7 on r5 failed: s4 is full");
        assert!(operator("cancelled", "cancelled: x").verdict().is_err());
        assert_eq!(operator("failed", "").step(), "", "it is at no step any more");
    }
}
