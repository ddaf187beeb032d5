//! Flow control: who puts is slowed down, little by little, before RocksDB holds up everything that this store applies.
//!
//! When compaction falls behind, RocksDB slows writes down and in the end stops them. That brake sits under the apply thread,
//! where linearizable reads wait as well, and it is felt as seconds without an answer. So puts wait here, before they are
//! evaluated and with nothing held:
//!
//! 1. Once a second: how far compaction is behind ([`Debt`]), between where slowing down begins and where next to nothing is
//!    let through.
//! 2. What is left of that way is what is let through of the bytes per second that were usual before.
//! 3. A put waits for its turn, [`PATIENCE`] at most. Beyond that the store is busy, which the caller asks again after.
//!
//! A store slows down what its own leaders take in; a follower that alone is behind has RocksDB's brake, and no quorum waits
//! for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use braid_host::{Host, Pace};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::engine::{Debt, Pressure};
use crate::region::Shared;

/// Between two looks at how far compaction is behind.
const LOOK: Duration = Duration::from_secs(1);
/// After so many looks without a limit the next one is worth a line in the log: under lasting load they come and go.
const FREE_LOOKS: u32 = 60;
/// Longest wait for a turn.
const PATIENCE: Duration = Duration::from_secs(2);
/// What is let through however far compaction is behind, in bytes per second.
const LIMIT_MIN: f64 = (1 << 20) as f64;
/// What is taken for usual at the start, in bytes per second.
const USUAL_AT_START: f64 = (16 << 20) as f64;
/// What is left of the highest rate after each look.
const USUAL_KEPT: f64 = 0.97;

/// When a put may go on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Turn {
    /// At once.
    Now,
    /// Then.
    At(Instant),
    /// Not within [`PATIENCE`], before so much time has passed.
    Later(Duration),
}

/// Slows puts of one store down.
#[derive(Debug, Default)]
pub struct Flow {
    pace: Pace,
    /// Bytes of entries that were proposed here since the last look.
    proposed: AtomicU64,
}

impl Flow {
    /// When a put of so many `bytes` may go on. They are asked for only when puts are slowed down; 0 never waits.
    pub fn admit(&self, bytes: impl FnOnce() -> usize) -> Turn {
        if !self.pace.is_limited() {
            return Turn::Now;
        }
        self.turn(bytes(), Instant::now())
    }

    fn turn(&self, bytes: usize, now: Instant) -> Turn {
        if bytes == 0 {
            return Turn::Now;
        }
        match self.pace.turn(bytes, now, PATIENCE) {
            Ok(None) => Turn::Now,
            Ok(Some(at)) => {
                metrics::counter!("braid_store_puts_slowed_down_total").increment(1);
                Turn::At(at)
            }
            Err(wait) => {
                metrics::counter!("braid_store_puts_refused_as_busy_total").increment(1);
                Turn::Later(wait - PATIENCE)
            }
        }
    }

    /// An entry of so many bytes was proposed.
    pub fn proposed(&self, bytes: usize) {
        self.proposed.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Looks at the store's compaction and sets what is let through, until `stop` says so.
pub async fn run(host: Arc<Host>, shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut pressure = Pressure::default();
    let mut brake = Brake::default();
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    let mut free = FREE_LOOKS;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stop.changed() => return,
        }
        let debt = pressure.look(&host.db());
        let seconds = last.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        last = Instant::now();
        let rate = shared.flow.proposed.swap(0, Ordering::Relaxed) as f64 / seconds;
        let limit = brake.limit(debt, rate);
        shared.flow.pace.set(limit);
        if limit > 0 && free >= FREE_LOOKS {
            let Debt { level0_files, pending_bytes } = debt;
            tracing::warn!(limit, level0_files, pending_bytes, "compaction is behind: puts are slowed down");
        }
        free = if limit > 0 { 0 } else { free.saturating_add(1) };
        metrics::gauge!("braid_store_put_limit_bytes_per_second").set(limit as f64);
    }
}

/// What is let through, from what was usual and how far compaction is behind.
#[derive(Debug)]
struct Brake {
    /// Highest rate of late while nothing was slowed down, in bytes per second.
    usual: f64,
    is_on: bool,
}

impl Default for Brake {
    fn default() -> Self {
        Self { usual: USUAL_AT_START, is_on: false }
    }
}

impl Brake {
    /// Bytes per second to let through from now on; 0: all. `rate`: bytes per second since the last look.
    fn limit(&mut self, debt: Debt, rate: f64) -> u64 {
        let behind = debt.share();
        let was_on = std::mem::replace(&mut self.is_on, behind > 0.0);
        if behind <= 0.0 {
            // What came while slowed down is not what is usual.
            self.usual = if was_on { self.usual } else { rate.max(self.usual * USUAL_KEPT) };
            return 0;
        }
        (self.usual * (1.0 - behind)).max(LIMIT_MIN) as u64
    }
}

#[cfg(test)]
mod tests {
    use braid_proto::etcd::etcdserverpb::DeleteRangeRequest;
    use braid_proto::pb::refusal::Reason;
    use braid_proto::pb::{Refusal, RegionResponse, region_request, region_response};
    use futures::future::join_all;

    use super::*;
    use crate::engine::{LEVEL0_FULL, LEVEL0_SLOW};
    use crate::lone::Lone;

    const LIMIT: Duration = Duration::from_secs(60);

    fn files(level0_files: u64) -> Debt {
        Debt { level0_files, pending_bytes: 0 }
    }

    #[test]
    fn the_further_compaction_is_behind_the_less_is_let_through() {
        let mut brake = Brake::default();
        let usual = 40e6;
        assert_eq!(brake.limit(files(LEVEL0_SLOW), usual), 0, "it keeps up");
        let limits: Vec<u64> = (LEVEL0_SLOW + 1..=LEVEL0_FULL).map(|n| brake.limit(files(n), 1e6)).collect();
        assert!(limits.is_sorted_by(|a, b| a > b), "{limits:?}");
        assert!(limits[0] < usual as u64 && limits[0] > usual as u64 / 2);
        assert_eq!(limits.last(), Some(&(LIMIT_MIN as u64)), "a little always goes through");
        assert_eq!(brake.limit(files(LEVEL0_FULL * 2), 0.0), LIMIT_MIN as u64);
        let half = (LEVEL0_SLOW + LEVEL0_FULL) / 2;
        let again = brake.limit(files(half), 1e6);
        assert_eq!(again, usual as u64 / 2, "what is let through while slowed down is not taken for usual");
        assert_eq!(brake.limit(files(0), 1e6), 0, "it has caught up");
        assert_eq!(brake.limit(files(half), 1e6), again);
    }

    #[test]
    fn what_was_usual_long_ago_is_forgotten() {
        let mut brake = Brake::default();
        for _ in 0..600 {
            assert_eq!(brake.limit(files(0), 4e6), 0);
        }
        assert_eq!(brake.limit(files((LEVEL0_SLOW + LEVEL0_FULL) / 2), 4e6), 2_000_000);
    }

    #[test]
    fn puts_wait_for_their_turn_and_not_for_ever() {
        let flow = Flow::default();
        assert_eq!(flow.admit(|| unreachable!("nobody asks")), Turn::Now);
        flow.pace.set(1000);
        let start = Instant::now();
        assert_eq!(flow.turn(1500, start), Turn::Now);
        assert_eq!(flow.turn(1000, start), Turn::At(start + Duration::from_millis(1500)));
        assert_eq!(flow.turn(1, start), Turn::Later(Duration::from_millis(500)));
        assert_eq!(flow.turn(0, start), Turn::Now, "what puts nothing does not wait");
    }

    fn is_put(answer: &RegionResponse) -> bool {
        matches!(answer.result, Some(region_response::Result::Put(_)))
    }

    fn is_busy(answer: &RegionResponse) -> bool {
        let Some(region_response::Result::Refusal(Refusal { reason: Some(Reason::Busy(busy)) })) = &answer.result
        else {
            return false;
        };
        busy.what.contains("compaction")
    }

    async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let begun = Instant::now();
        while !holds().await {
            assert!(begun.elapsed() < LIMIT, "{what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_store_whose_compaction_is_behind_takes_puts_slowly_and_everything_else_at_once() {
        let store = Lone::open(1);
        until("it leads", async || is_put(&store.put(1, "a", 1).await)).await;
        let db = store.host.db();
        let latest = db.cf_handle("latest").expect("a family");
        db.set_options_cf(latest, &[("disable_auto_compactions", "true")]).expect("set");
        for n in 0..=(LEVEL0_SLOW + LEVEL0_FULL) / 2 {
            assert!(is_put(&store.put(1, &format!("file {n}"), 1).await));
            db.flush_cf(latest).expect("flushed");
        }
        let (stop, stopped) = watch::channel(false);
        let flow = tokio::spawn(run(Arc::clone(&store.host), Arc::clone(&store.shared), stopped));
        until("puts are slowed down", async || store.shared.flow.pace.is_limited()).await;

        // More than goes through within the patience of a put.
        let bytes = 1 << 20;
        let puts = (USUAL_AT_START as usize / bytes) * 2 * PATIENCE.as_secs() as usize;
        let asked: Vec<_> = (0..puts).map(|n| store.put(1, &format!("large {n}"), bytes)).collect();
        let delete = DeleteRangeRequest { key: "a".into(), ..DeleteRangeRequest::default() };
        let deleted = store.call(1, region_request::Op::DeleteRange(delete)).await;
        assert!(matches!(deleted.result, Some(region_response::Result::DeleteRange(_))), "{deleted:?}");
        let answers = join_all(asked).await;
        let refused = answers.iter().filter(|answer| is_busy(answer)).count();
        assert!(answers.iter().all(|answer| is_put(answer) || is_busy(answer)));
        assert!(refused > 0 && refused < puts, "{refused} of {puts} were refused");

        db.compact_range_cf(latest, None::<&[u8]>, None::<&[u8]>);
        until("it has caught up", async || !store.shared.flow.pace.is_limited()).await;
        assert!(is_put(&store.put(1, "at once", 1).await));
        stop.send(true).expect("it runs");
        flow.await.expect("ended");
        store.close().await;
    }
}
