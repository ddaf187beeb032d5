//! `braid admin store`.

use std::collections::HashMap;

use anyhow::{Result, bail};
use braid_proto::id::StoreId;
use braid_proto::pb::{StoreRemoveRequest, StoreSetRequest};

use super::answer::print;
use super::confirm::confirm;
use super::connection::Connection;
use super::table::{count, span};
use crate::args::admin::store::{LabelChange, StoreCommand};
use crate::args::types::{Id, Output};

mod drain;
pub mod list;
pub mod view;

use view::{StoreShow, StoreView};

/// Runs one command. One that changes something shows the store as it is afterwards.
pub async fn run(connection: &mut Connection, output: Output, command: StoreCommand) -> Result<()> {
    let id = match command {
        StoreCommand::List => return print(output, &list::run(connection).await?),
        StoreCommand::Show { id } => id.0,
        StoreCommand::Label { id: Id(store_id), labels } => {
            let request = StoreSetRequest { store_id, labels: changes(labels)?, ..Default::default() };
            connection.order(request, format_args!("label {}", StoreId(store_id))).await?;
            store_id
        }
        StoreCommand::Weight { id: Id(store_id), weight } => {
            let request = StoreSetRequest { store_id, weight: Some(weight), ..Default::default() };
            connection.order(request, format_args!("weight {}", StoreId(store_id))).await?;
            store_id
        }
        StoreCommand::Drain { id, stop: true, .. } => return drain::stop(connection, output, id.0).await,
        StoreCommand::Drain { id, wait, yes, .. } => return drain::begin(connection, output, id.0, wait, yes).await,
        StoreCommand::Remove { id: Id(store_id), force, yes } => {
            let store = list::run(connection).await?.named(store_id)?.clone();
            confirm(yes.yes, &format!("remove {}", store.title()), &risk(&store, force))?;
            let request = StoreRemoveRequest { store_id, force };
            connection.order(request, format_args!("remove {}", StoreId(store_id))).await?;
            store_id
        }
    };
    let store = list::run(connection).await?.named(id)?.clone();
    print(output, &StoreShow { store })
}

fn changes(labels: Vec<LabelChange>) -> Result<HashMap<String, String>> {
    let mut changes = HashMap::new();
    for LabelChange { name, value } in labels {
        if changes.contains_key(&name) {
            bail!("label {name} is given twice; give it once");
        }
        changes.insert(name, value);
    }
    Ok(changes)
}

/// What the removal of a store means.
fn risk(store: &StoreView, force: bool) -> String {
    let lost = if force { " What only this store holds is lost." } else { "" };
    format!(
        "{} is {}, last heard {} ago, and holds {}. It never comes back: its replicas are rebuilt elsewhere, and its \
         folder is refused from now on.{lost}",
        store.title(),
        store.state,
        span(store.seconds_since_heartbeat),
        count(store.replicas.into(), "replica"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use view::tests::store;

    #[test]
    fn a_label_is_given_once() {
        let read = |texts: &[&str]| changes(texts.iter().map(|text| text.parse().unwrap()).collect());
        let both = read(&["zone=a", "rack="]).unwrap();
        assert_eq!((both["zone"].as_str(), both["rack"].as_str()), ("a", ""));
        assert_eq!(read(&["a=1", "a="]).unwrap_err().to_string(), "label a is given twice; give it once");
    }

    #[test]
    fn the_risk_of_a_removal_names_what_is_there() {
        let said = risk(&store(3, "down", None), false);
        assert!(said.starts_with("s3 (store-3) is down, last heard 0 s ago, and holds 5 replicas."), "{said}");
        assert!(!said.contains("lost") && risk(&store(3, "down", None), true).ends_with("holds is lost."), "{said}");
    }
}
