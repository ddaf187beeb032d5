//! `braid admin scheduler settings`.

use braid_proto::pb::Setting;
use serde::Serialize;

use crate::admin::answer::Answer;
use crate::admin::table::Table;

/// Every setting, by name.
#[derive(Serialize)]
pub struct SettingList {
    pub settings: Vec<SettingView>,
}

/// One setting.
#[derive(Debug, Serialize)]
pub struct SettingView {
    name: String,
    value: String,
    default: String,
    about: String,
}

impl From<Setting> for SettingView {
    fn from(setting: Setting) -> Self {
        Self { name: setting.name, value: setting.value, default: setting.default_value, about: setting.about }
    }
}

impl Answer for SettingList {
    fn text(&self) -> String {
        let mut table = Table::new(&["SETTING", "VALUE", "DEFAULT", "ABOUT"]);
        for setting in &self.settings {
            table.row(vec![
                setting.name.clone(),
                setting.value.clone(),
                setting.default.clone(),
                setting.about.clone(),
            ]);
        }
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_beside_their_defaults() {
        let setting = Setting {
            name: "replicas".to_owned(),
            value: "5".to_owned(),
            about: "voters of each region".to_owned(),
            default_value: "3".to_owned(),
        };
        let list = SettingList { settings: vec![SettingView::from(setting)] };
        assert_eq!(list.text(), "SETTING   VALUE  DEFAULT  ABOUT\nreplicas  5      3        voters of each region\n");
        assert_eq!(serde_json::to_value(&list).unwrap()["settings"][0]["default"], "3");
    }
}
