//! `braid admin scheduler`.

use std::collections::HashMap;

use anyhow::{Result, bail};
use braid_proto::pb::{SchedulerListRequest, SchedulerListResponse, SchedulerSetRequest};

use super::answer::print;
use super::connection::Connection;
use crate::args::admin::scheduler::{SchedulerCommand, SettingChange};
use crate::args::types::Output;

pub mod list;
mod settings;

use list::{SchedulerList, SchedulerView};
use settings::{SettingList, SettingView};

/// Runs one command. One that changes something shows what is there afterwards.
pub async fn run(connection: &mut Connection, output: Output, command: SchedulerCommand) -> Result<()> {
    match command {
        SchedulerCommand::List => {}
        SchedulerCommand::Pause { names } => {
            let what = format!("pause {}", names.join(", "));
            connection.order(SchedulerSetRequest { pause: names, ..Default::default() }, what).await?;
        }
        SchedulerCommand::Resume { names } => {
            let what = format!("resume {}", names.join(", "));
            connection.order(SchedulerSetRequest { resume: names, ..Default::default() }, what).await?;
        }
        SchedulerCommand::Set { settings } => {
            let request = SchedulerSetRequest { settings: changes(settings)?, ..Default::default() };
            connection.order(request, "set that").await?;
            return print(output, &shown(connection).await?.1);
        }
        SchedulerCommand::Settings => return print(output, &shown(connection).await?.1),
    }
    print(output, &shown(connection).await?.0)
}

/// The schedulers and their settings.
pub async fn shown(connection: &mut Connection) -> Result<(SchedulerList, SettingList)> {
    let SchedulerListResponse { schedulers, settings, .. } = connection.ask(SchedulerListRequest {}).await?;
    let schedulers = schedulers.into_iter().map(SchedulerView::from).collect();
    let settings = settings.into_iter().map(SettingView::from).collect();
    Ok((SchedulerList { schedulers }, SettingList { settings }))
}

fn changes(settings: Vec<SettingChange>) -> Result<HashMap<String, String>> {
    let mut changes = HashMap::new();
    for SettingChange { name, value } in settings {
        if changes.contains_key(&name) {
            bail!("{name} is given twice; give it once");
        }
        changes.insert(name, value);
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_given_once() {
        let read = |texts: &[&str]| changes(texts.iter().map(|text| text.parse().unwrap()).collect());
        let both = read(&["split-bytes=1GiB", "replicas="]).unwrap();
        assert_eq!((both["split-bytes"].as_str(), both["replicas"].as_str()), ("1GiB", ""));
        assert_eq!(read(&["a=1", "a=2"]).unwrap_err().to_string(), "a is given twice; give it once");
    }
}
