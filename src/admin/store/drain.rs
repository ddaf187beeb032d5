//! `braid admin store drain`: begins or stops to empty a store, and perhaps follows it.

use anyhow::{Result, anyhow, bail};
use braid_proto::id::StoreId;
use braid_proto::pb::{SchedulerListRequest, StoreSetRequest};

use super::list::{self, StoreList};
use super::view::{StoreShow, StoreView};
use crate::admin::answer::print;
use crate::admin::confirm::confirm;
use crate::admin::connection::Connection;
use crate::admin::follow::{Look, follow};
use crate::args::admin::{Wait, Yes};
use crate::args::types::Output;

/// Begins to empty the store.
pub async fn begin(connection: &mut Connection, output: Output, id: u64, wait: Wait, yes: Yes) -> Result<()> {
    let stores = list::run(connection).await?;
    let title = stores.named(id)?.title();
    if let Some(risk) = risk(&stores, id, replicas(connection).await?) {
        confirm(yes.yes, &format!("drain {title}"), &risk)?;
    }
    set(connection, id, true).await?;
    if !wait.wait {
        return print(output, &show(connection, id).await?);
    }
    let what = format!("the drain of {title}");
    let ended = follow(connection, output, wait.patience(), &what, async |connection: &mut Connection| {
        Ok(look(list::run(connection).await?.named(id).cloned()))
    });
    let store = ended.await??;
    print(output, &StoreShow { store })
}

/// Stops to empty it.
pub async fn stop(connection: &mut Connection, output: Output, id: u64) -> Result<()> {
    set(connection, id, false).await?;
    print(output, &show(connection, id).await?)
}

async fn set(connection: &mut Connection, id: u64, drain: bool) -> Result<()> {
    let what = format!("{} {}", if drain { "drain" } else { "stop the drain of" }, StoreId(id));
    connection.order(StoreSetRequest { store_id: id, drain: Some(drain), ..Default::default() }, what).await?;
    Ok(())
}

async fn show(connection: &mut Connection, id: u64) -> Result<StoreShow> {
    Ok(StoreShow { store: list::run(connection).await?.named(id)?.clone() })
}

/// Replicas that each region shall have.
async fn replicas(connection: &mut Connection) -> Result<usize> {
    let settings = connection.ask(SchedulerListRequest {}).await?.settings;
    let replicas = settings.iter().find(|setting| setting.name == "replicas");
    replicas
        .and_then(|setting| setting.value.parse().ok())
        .ok_or_else(|| anyhow!("placement does not say how many replicas a region has"))
}

/// What the operator should know first: too few stores that answer are left. Where too few are left at all, placement
/// refuses by itself.
fn risk(stores: &StoreList, id: u64, replicas: usize) -> Option<String> {
    let stays = |store: &&StoreView| store.id != id && store.drain.is_none();
    let with = |states: &'static [&'static str]| {
        stores.stores.iter().filter(stays).filter(move |store| states.contains(&store.state.as_str())).count()
    };
    let (up, silent) = (with(&["up"]), with(&["disconnected"]));
    (up < replicas && up + silent >= replicas).then(|| {
        format!(
            "Only {up} other stores answer, and each region has {replicas} replicas: the drain cannot end before another \
             store is up."
        )
    })
}

/// How far it is, or the empty store, or why it is not going to be empty.
fn look(store: Result<StoreView>) -> Look<Result<StoreView>> {
    let store = match store {
        Ok(store) => store,
        Err(error) => return Look::Ended(Err(error)),
    };
    match &store.drain {
        _ if store.state == "removed" => Look::Ended(Err(anyhow!("{} was removed meanwhile", store.title()))),
        None => Look::Ended(stopped(&store)),
        Some(drain) if drain.is_done() => Look::Ended(Ok(store)),
        Some(drain) => Look::Going { share: drain.share(), said: format!("{}: {}", store.title(), drain.shown()) },
    }
}

fn stopped(store: &StoreView) -> Result<StoreView> {
    bail!("the drain of {} was stopped meanwhile", store.title())
}

#[cfg(test)]
mod tests {
    use braid_proto::pb::DrainProgress;

    use super::*;
    use crate::admin::store::view::tests::store;

    fn drain(replicas_left: u32) -> Option<DrainProgress> {
        Some(DrainProgress { replicas_at_start: 4, replicas_left, ..Default::default() })
    }

    #[test]
    fn it_is_followed_until_the_store_is_empty() {
        assert!(matches!(look(Ok(store(4, "up", drain(1)))), Look::Going { share: 0.75, .. }));
        assert!(matches!(look(Ok(store(4, "up", drain(0)))), Look::Ended(Ok(_))));
        let ends =
            [("up", None, "the drain of s4 (store-4) was stopped"), ("removed", drain(1), "was removed meanwhile")];
        for (state, drain, why) in ends {
            let Look::Ended(Err(error)) = look(Ok(store(4, state, drain))) else { panic!("{why}") };
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn too_few_that_answer_is_worth_a_question() {
        let cluster = |states: &[&str]| {
            let stores = states.iter().enumerate().map(|(at, state)| store(at as u64 + 1, state, None)).collect();
            risk(&StoreList { stores }, 1, 3)
        };
        assert_eq!(cluster(&["up", "up", "up", "up"]), None);
        assert_eq!(cluster(&["up", "up", "up"]), None, "placement refuses that");
        assert!(cluster(&["up", "up", "up", "disconnected"]).unwrap().starts_with("Only 2 other stores answer"));
    }
}
