//! What schedulers and operators go by. Every number has a reason beside it; `check` says what contradicts what.

/// Bytes of a mebibyte.
const MIB: u64 = 1 << 20;
/// A minute in milliseconds.
const MINUTE: u64 = 60_000;
/// Shortest silence after which replicas are rebuilt: before that a store is given replicas itself.
const STORE_DOWN_MIN: u64 = 5_000;
/// Most operators at once: each is looked at every second.
const OPERATORS_MAX: usize = 10_000;
/// Most that have ended and are remembered: each takes a few hundred bytes.
const HISTORY_MAX: usize = 100_000;
/// Most plans that one scheduler begins in a round.
const PLANS_MAX: usize = 1_000;

/// See the module's page. Times are milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Voters of each region.
    pub replicas: usize,
    /// How long a store may be silent before its replicas are rebuilt elsewhere. Shorter than a restart takes means
    /// copying everything for nothing; longer means running with one replica less for longer.
    pub store_down_ms_max: u64,
    /// Operators under way at once in the whole cluster. A quarter of them is kept for repair.
    pub operators_max: usize,
    /// Peers that one store may be receiving at once. If it is more than one, one is kept for repair.
    pub snapshots_receiving_max: usize,
    /// Peers that one store may be sending at once, as the leader of their regions.
    pub snapshots_sending_max: usize,
    /// Bytes of moved replicas that a store takes per second on average; 0: as fast as it goes.
    pub move_bytes_per_second: u64,
    /// How long a step may take that copies nothing.
    pub step_ms_max: u64,
    /// How long a new peer may take to catch up, beside the time its bytes need.
    pub snapshot_ms_max: u64,
    /// How long an order may be without effect before it is given again.
    pub order_retry_ms: u64,
    /// How long a region is left alone after an operator on it has failed; doubled with each further failure.
    pub failed_rest_ms: u64,
    /// Operators that have ended and are remembered.
    pub history_max: usize,
    /// Share of the mean by which stores' bytes may differ before replicas move.
    pub balance_tolerance: f64,
    /// Share of the mean by which stores' leaders may differ before leaders move.
    pub leader_tolerance: f64,
    /// Share of the mean by which stores' loads may differ before hot regions move. Load is noisy.
    pub hot_tolerance: f64,
    /// Operations per second below which no region is hot.
    pub hot_ops_min: u64,
    /// Bytes written per second below which no region is hot.
    pub hot_bytes_min: u64,
    /// A region is hot only if it has this many times the load of the average region.
    pub hot_factor: f64,
    /// How long loads are measured before they count, after a region was split or merged or heard of first.
    pub load_settle_ms: u64,
    /// Bytes from which a region is split.
    pub split_bytes: u64,
    /// Keys from which a region is split.
    pub split_keys: u64,
    /// Operations per second from which a region is split where its load is.
    pub split_ops: u64,
    /// Bytes up to which a region is small.
    pub merge_bytes: u64,
    /// Keys up to which a region is small.
    pub merge_keys: u64,
    /// How long a region keeps its range before it may be merged: splits made for a reason should not be undone at once.
    pub merge_rest_ms: u64,
    /// Regions a store below which nothing is merged: fewer could not be spread.
    pub regions_per_store_min: usize,
    /// Share of a store's capacity that moved replicas leave free.
    pub space_reserve: f64,
    /// Plans that one scheduler starts in one round.
    pub plans_per_round: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            replicas: 3,
            store_down_ms_max: 30 * MINUTE,
            operators_max: 64,
            snapshots_receiving_max: 4,
            snapshots_sending_max: 4,
            move_bytes_per_second: 100 * MIB,
            step_ms_max: MINUTE,
            snapshot_ms_max: 10 * MINUTE,
            order_retry_ms: 5_000,
            failed_rest_ms: 30_000,
            history_max: 256,
            balance_tolerance: 0.05,
            leader_tolerance: 0.05,
            hot_tolerance: 0.2,
            hot_ops_min: 200,
            hot_bytes_min: MIB,
            hot_factor: 2.0,
            load_settle_ms: 20_000,
            split_bytes: 256 * MIB,
            split_keys: 1_000_000,
            split_ops: 20_000,
            merge_bytes: 8 * MIB,
            merge_keys: 80_000,
            merge_rest_ms: 60 * MINUTE,
            regions_per_store_min: 8,
            space_reserve: 0.1,
            plans_per_round: 16,
        }
    }
}

impl Config {
    /// Whether it can be used.
    ///
    /// # Errors
    /// What is wrong, in words for the operator who set it.
    pub fn check(&self) -> Result<(), String> {
        let wrong = |why: &str| Err(why.to_owned());
        if !(1..=7).contains(&self.replicas) {
            return wrong("replicas must be 1 to 7");
        }
        for (name, at_most_half) in [
            ("merge-bytes", self.merge_bytes <= self.split_bytes / 4),
            ("merge-keys", self.merge_keys <= self.split_keys / 4),
        ] {
            if !at_most_half {
                return Err(format!(
                    "{name} must be at most a quarter of what splits a region, or merges and splits take turns"
                ));
            }
        }
        for (name, share) in [
            ("balance-tolerance", self.balance_tolerance),
            ("leader-tolerance", self.leader_tolerance),
            ("hot-tolerance", self.hot_tolerance),
        ] {
            if !(0.01..=1.0).contains(&share) {
                return Err(format!("{name} must be 0.01 to 1: below that stores never count as even"));
            }
        }
        if !(0.0..0.9).contains(&self.space_reserve) {
            return wrong("space-reserve must be at least 0 and less than 0.9");
        }
        if !(1.0..=1_000.0).contains(&self.hot_factor) {
            return wrong("hot-factor must be 1 to 1000");
        }
        let counts = [
            ("operators-max", self.operators_max),
            ("snapshots-receiving-max", self.snapshots_receiving_max),
            ("snapshots-sending-max", self.snapshots_sending_max),
            ("plans-per-round", self.plans_per_round),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(format!("{name} must be at least 1; pause schedulers to stop moves"));
        }
        for (name, count, most) in [
            ("operators-max", self.operators_max, OPERATORS_MAX),
            ("history-max", self.history_max, HISTORY_MAX),
            ("plans-per-round", self.plans_per_round, PLANS_MAX),
        ] {
            if count > most {
                return Err(format!("{name} must be at most {most}"));
            }
        }
        if self.store_down_ms_max < STORE_DOWN_MIN {
            return wrong(
                "store-down-seconds-max must be at least 5: a store that is silent for less may only be slow",
            );
        }
        if self.step_ms_max <= self.order_retry_ms {
            return wrong("step-seconds-max must be longer than order-retry-seconds, or no order is given twice");
        }
        if self.split_bytes == 0 || self.split_keys == 0 || self.split_ops == 0 {
            return wrong("split-bytes, split-keys and split-ops must be above 0; pause the split scheduler instead");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_sound_and_contradictions_are_named() {
        Config::default().check().unwrap();
        let named = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.check().unwrap_err()
        };
        assert!(named(|config| config.replicas = 8).contains("replicas"));
        assert!(named(|config| config.merge_bytes = config.split_bytes / 2).contains("merge-bytes"));
        assert!(named(|config| config.balance_tolerance = f64::NAN).contains("balance-tolerance"));
        assert!(named(|config| config.operators_max = 0).contains("operators-max"));
        assert!(named(|config| config.order_retry_ms = config.step_ms_max).contains("step-seconds-max"));
        assert!(named(|config| config.space_reserve = 0.95).contains("space-reserve"));
    }
}
