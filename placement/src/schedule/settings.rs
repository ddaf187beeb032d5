//! Settings by name, as operators read and write them: a table of name, what it is about, how it is printed and parsed.
//!
//! What is kept is text by name; what is not kept is at its default. Times are seconds, with a fraction if need be; bytes
//! may be written with KiB, MiB, GiB or TiB.

use std::fmt::Display;
use std::str::FromStr;

use super::Config;

/// Location labels that are told apart at most, see `View::new`.
const LOCATION_LABELS_MAX: usize = 7;
/// Longest time that can be set: ten years.
const SECONDS_MAX: f64 = 315_360_000.0;

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// What schedulers and operators go by.
    pub config: Config,
    /// Labels that say where a store is, from the widest place to the narrowest.
    pub location_labels: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        let location_labels = ["zone", "rack", "host"].map(str::to_owned).to_vec();
        Self { config: Config::default(), location_labels }
    }
}

/// One line of the table.
pub struct Setting {
    /// Its name, in kebab case.
    pub name: &'static str,
    /// What it is about, for operators.
    pub about: &'static str,
    print: fn(&Settings) -> String,
    parse: fn(&mut Settings, &str) -> Result<(), String>,
}

impl Setting {
    /// Its value in `settings`.
    pub fn value(&self, settings: &Settings) -> String {
        (self.print)(settings)
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<&'static Setting> {
        TABLE.iter().find(|setting| setting.name == name)
    }
}

impl Settings {
    /// These settings with `values` in place of theirs.
    ///
    /// # Errors
    /// An unknown name, a value that is none, or values that contradict each other; says what would do.
    pub fn with<'a>(&self, values: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, String> {
        let mut settings = self.clone();
        for (name, value) in values {
            let setting = Setting::named(name)
                .ok_or_else(|| format!("there is no setting {name}; `braid admin scheduler settings` shows them"))?;
            (setting.parse)(&mut settings, value).map_err(|why| format!("{name} cannot be {value:?}: {why}"))?;
        }
        settings.config.check()?;
        Ok(settings)
    }
}

macro_rules! setting {
    ($name:literal, $about:literal, $field:ident as $kind:ident) => {
        Setting {
            name: $name,
            about: $about,
            print: |settings| $kind::print(settings.config.$field),
            parse: |settings, text| $kind::parse(text).map(|value| settings.config.$field = value),
        }
    };
}

/// Every setting, by name.
pub const TABLE: &[Setting] = &[
    setting!(
        "balance-tolerance",
        "share of the mean by which stores' bytes may differ before replicas move",
        balance_tolerance as number
    ),
    setting!(
        "failed-rest-seconds",
        "how long a region is left alone after an operator on it has failed; doubled with each further failure",
        failed_rest_ms as seconds
    ),
    setting!("history-max", "operators that have ended and are remembered", history_max as number),
    setting!("hot-bytes-min", "bytes written per second below which no region is hot", hot_bytes_min as bytes),
    setting!(
        "hot-factor",
        "a region is hot only with this many times the load of the average region",
        hot_factor as number
    ),
    setting!("hot-ops-min", "operations per second below which no region is hot", hot_ops_min as number),
    setting!(
        "hot-tolerance",
        "share of the mean by which stores' loads may differ before hot regions move",
        hot_tolerance as number
    ),
    setting!(
        "leader-tolerance",
        "share of the mean by which stores' leaders may differ before leaders move",
        leader_tolerance as number
    ),
    setting!(
        "load-settle-seconds",
        "how long loads are measured before they count, after a region was split, merged or heard of first",
        load_settle_ms as seconds
    ),
    Setting {
        name: "location-labels",
        about: "labels that say where a store is, widest place first; replicas of a region are kept apart by them",
        print: |settings| settings.location_labels.join(","),
        parse: |settings, text| location_labels(text).map(|labels| settings.location_labels = labels),
    },
    setting!(
        "merge-bytes",
        "bytes up to which a region is small; at most a quarter of split-bytes",
        merge_bytes as bytes
    ),
    setting!("merge-keys", "keys up to which a region is small; at most a quarter of split-keys", merge_keys as number),
    setting!(
        "merge-rest-seconds",
        "how long a region keeps its range before it may be merged",
        merge_rest_ms as seconds
    ),
    setting!(
        "move-bytes-per-second",
        "bytes of moved replicas that a store takes per second on average; 0: as fast as it goes",
        move_bytes_per_second as bytes
    ),
    setting!(
        "operators-max",
        "operators under way at once; a quarter of them is kept for repair",
        operators_max as number
    ),
    setting!(
        "order-retry-seconds",
        "how long an order may be without effect before it is given again",
        order_retry_ms as seconds
    ),
    setting!("plans-per-round", "plans that one scheduler begins in one round", plans_per_round as number),
    setting!("regions-per-store-min", "regions a store below which nothing is merged", regions_per_store_min as number),
    setting!("replicas", "voters of each region", replicas as number),
    setting!(
        "snapshot-seconds-max",
        "how long a new peer may take to catch up, beside the time its bytes need",
        snapshot_ms_max as seconds
    ),
    setting!(
        "snapshots-receiving-max",
        "peers that one store may be receiving at once",
        snapshots_receiving_max as number
    ),
    setting!("snapshots-sending-max", "peers that one store may be sending at once", snapshots_sending_max as number),
    setting!("space-reserve", "share of a store's capacity that moved replicas leave free", space_reserve as number),
    setting!("split-bytes", "bytes from which a region is split", split_bytes as bytes),
    setting!("split-keys", "keys from which a region is split", split_keys as number),
    setting!("split-ops", "operations per second from which a region is split where its load is", split_ops as number),
    setting!("step-seconds-max", "how long a step of an operator may take that copies nothing", step_ms_max as seconds),
    setting!(
        "store-down-seconds-max",
        "how long a store may be silent before its replicas are rebuilt elsewhere",
        store_down_ms_max as seconds
    ),
];

mod number {
    use super::{Display, FromStr};

    pub fn print(value: impl Display) -> String {
        value.to_string()
    }

    pub fn parse<T: FromStr>(text: &str) -> Result<T, String> {
        text.parse().map_err(|_| "a number of at least 0 is wanted".to_owned())
    }
}

mod bytes {
    const UNITS: [(&str, u32); 4] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];

    pub fn print(value: u64) -> String {
        value.to_string()
    }

    pub fn parse(text: &str) -> Result<u64, String> {
        let unit = UNITS.into_iter().find_map(|(unit, shift)| text.strip_suffix(unit).map(|count| (count, shift)));
        let (count, shift) = unit.unwrap_or((text, 0));
        let count = count.trim().parse::<u64>().ok().and_then(|count| count.checked_mul(1 << shift));
        count.ok_or_else(|| "a number of bytes is wanted, like 1048576 or 96MiB".to_owned())
    }
}

mod seconds {
    use super::SECONDS_MAX;

    pub fn print(value_ms: u64) -> String {
        (value_ms as f64 / 1_000.0).to_string()
    }

    pub fn parse(text: &str) -> Result<u64, String> {
        let seconds = text.parse::<f64>().ok().filter(|seconds| (0.0..=SECONDS_MAX).contains(seconds));
        let seconds = seconds.ok_or_else(|| format!("seconds from 0 to {SECONDS_MAX} are wanted"))?;
        Ok((seconds * 1_000.0).round() as u64)
    }
}

fn location_labels(text: &str) -> Result<Vec<String>, String> {
    let labels: Vec<String> = text.split(',').map(|label| label.trim().to_owned()).collect();
    if labels.iter().any(String::is_empty) {
        return Err("names of labels with commas between them are wanted, like zone,rack,host".to_owned());
    }
    if labels.len() > LOCATION_LABELS_MAX {
        return Err(format!("{} labels, at most {LOCATION_LABELS_MAX} are told apart", labels.len()));
    }
    if labels.iter().enumerate().any(|(at, label)| labels[..at].contains(label)) {
        return Err("a label is named twice".to_owned());
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_parsed_as_it_is_printed_and_the_table_is_in_order() {
        let settings = Settings::default();
        assert!(TABLE.is_sorted_by_key(|setting| setting.name));
        for setting in TABLE {
            let printed = setting.value(&settings);
            let again = settings.with([(setting.name, printed.as_str())]);
            assert_eq!(again.as_ref(), Ok(&settings), "{} = {printed}", setting.name);
            assert!(settings.with([(setting.name, "-x-,")]).is_err(), "{}", setting.name);
        }
    }

    #[test]
    fn values_are_read_with_their_units() {
        let values = [("split-bytes", "1GiB"), ("store-down-seconds-max", "7.5"), ("location-labels", "dc, host")];
        let settings = Settings::default().with(values).unwrap();
        assert_eq!((settings.config.split_bytes, settings.config.store_down_ms_max), (1 << 30, 7_500));
        assert_eq!(settings.location_labels, ["dc", "host"]);
        assert_eq!(Setting::named("store-down-seconds-max").unwrap().value(&settings), "7.5");
    }

    #[test]
    fn wrong_settings_are_refused_with_what_would_do() {
        let settings = Settings::default();
        let wrong = |name: &str, value: &str| settings.with([(name, value)]).unwrap_err();
        assert!(wrong("split-byte", "1").contains("no setting split-byte; `braid admin scheduler settings`"));
        assert!(wrong("split-bytes", "many").contains("split-bytes cannot be \"many\": a number of bytes"));
        assert!(wrong("store-down-seconds-max", "-1").contains("seconds from 0"));
        assert!(wrong("location-labels", "a,,b").contains("like zone,rack,host"));
        assert!(wrong("location-labels", "a,b,c,d,e,f,g,h").contains("at most 7"));
        assert!(wrong("location-labels", "a,a").contains("twice"));
        assert!(wrong("replicas", "9").contains("replicas must be 1 to 7"));
        assert!(wrong("merge-bytes", "1GiB").contains("at most a quarter"));
        assert!(wrong("split-bytes", "17000000TiB").contains("a number of bytes"));
        // Together they do not contradict each other.
        assert!(settings.with([("merge-bytes", "1GiB"), ("split-bytes", "4GiB")]).is_ok());
    }
}
