//! `braid admin region scatter`.

use anyhow::Result;
use braid_proto::pb::ScatterRequest;
use serde::Serialize;

use super::list::bounds;
use crate::admin::answer::Answer;
use crate::admin::connection::Connection;
use crate::args::admin::region::ScatterArgs;

/// How many regions are going to be scattered.
#[derive(Serialize)]
pub struct Scatter {
    regions: u32,
    /// What happens to them and to the others, and why to none.
    said: String,
}

/// Asks for what `args` name to be scattered.
pub async fn run(connection: &mut Connection, args: ScatterArgs) -> Result<Scatter> {
    let (start, end) = bounds(args.start.as_ref(), args.end.as_ref())?;
    let region_ids = args.ids.iter().map(|id| id.0).collect();
    let answer = connection.order(ScatterRequest { start, end, region_ids }, "scatter").await?;
    Ok(Scatter { regions: answer.regions, said: answer.said })
}

impl Answer for Scatter {
    fn text(&self) -> String {
        match self.regions {
            0 => format!("nothing is to be moved: {}\n", self.said),
            _ => format!("{}\n`braid admin rebalance` follows it\n", self.said),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_moves_or_why_nothing_does() {
        let none = Scatter { regions: 0, said: "r5 stays where it is".to_owned() };
        assert_eq!(none.text(), "nothing is to be moved: r5 stays where it is\n");
        let some = Scatter { regions: 2, said: "of 3 regions 2 get replicas on other stores".to_owned() };
        assert!(some.text().starts_with(&some.said) && some.text().contains("braid admin rebalance"));
        assert_eq!(serde_json::to_value(&some).unwrap()["said"], some.said);
    }
}
