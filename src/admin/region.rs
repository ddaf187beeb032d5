//! `braid admin region`.

use anyhow::Result;
use braid_proto::id::{RegionId, StoreId};
use braid_proto::pb::region_plan_request::Plan;
use braid_proto::pb::{AddPeer, MergeInto, MovePeer, RemovePeer};

use super::answer::print;
use super::confirm::confirm;
use super::connection::Connection;
use crate::args::admin::region::RegionCommand;
use crate::args::types::{Id, Output};

mod check;
mod list;
mod plan;
mod scatter;
mod show;
mod split;
mod transfer_leader;
pub mod view;

/// Runs one command.
pub async fn run(connection: &mut Connection, output: Output, command: RegionCommand) -> Result<()> {
    match command {
        RegionCommand::List(args) => print(output, &list::run(connection, args).await?),
        RegionCommand::Show { id } => print(output, &show::by_id(connection, id.0).await?),
        RegionCommand::AtKey { key } => print(output, &show::at_key(connection, &key).await?),
        RegionCommand::Check { region } => {
            let check = check::run(connection, region.map(|region| region.0)).await?;
            print(output, &check)?;
            check.verdict()
        }
        RegionCommand::Split(args) => print(output, &split::run(connection, args).await?),
        RegionCommand::Merge { id: Id(region_id), into: Id(target_id), wait } => {
            let what = format!("merge {} into {}", RegionId(region_id), RegionId(target_id));
            plan::run(connection, output, Plan::Merge(MergeInto { region_id, target_id }), &what, wait).await
        }
        RegionCommand::TransferLeader { id, to } => print(output, &transfer_leader::run(connection, id.0, to.0).await?),
        RegionCommand::AddPeer { id: Id(region_id), store: Id(store_id), wait } => {
            let what = format!("add a peer of {} on {}", RegionId(region_id), StoreId(store_id));
            plan::run(connection, output, Plan::AddPeer(AddPeer { region_id, store_id }), &what, wait).await
        }
        RegionCommand::RemovePeer { id: Id(region_id), store: Id(store_id), wait, yes } => {
            let what = format!("remove the peer of {} on {}", RegionId(region_id), StoreId(store_id));
            confirm(yes.yes, &what, "The region has one replica less afterwards.")?;
            plan::run(connection, output, Plan::RemovePeer(RemovePeer { region_id, store_id }), &what, wait).await
        }
        RegionCommand::MovePeer { id: Id(region_id), from: Id(from_store), to: Id(to_store), wait } => {
            let (from, to) = (StoreId(from_store), StoreId(to_store));
            let what = format!("move the peer of {} from {from} to {to}", RegionId(region_id));
            let plan = Plan::MovePeer(MovePeer { region_id, from_store, to_store });
            plan::run(connection, output, plan, &what, wait).await
        }
        RegionCommand::Scatter(args) => print(output, &scatter::run(connection, args).await?),
    }
}
