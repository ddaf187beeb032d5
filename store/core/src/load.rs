//! How busy a region is, and where: rates that fade, and a small sample of the keys touched lately.
//!
//! The shell counts and samples while it serves ([`Sample`] takes one of so many touches); once a second or so it folds what
//! was counted into [`Rates`]. Reported rates are coarse on purpose ([`steady`]): a region that is as busy as before has
//! nothing to report.

use std::collections::VecDeque;

use braid_proto::key::{KeyRange, TAG_USER, lease_of};
use bytes::Bytes;

/// Keys in a sample.
pub const SAMPLE_KEYS: usize = 128;
/// Milliseconds after which a touch says nothing about the load any more.
pub const SAMPLE_MS: u64 = 10_000;
/// Touches without which nobody can say where the load is.
const SAMPLE_KEYS_MIN: usize = 24;
/// Milliseconds after which half of a rate is forgotten.
const HALF_LIFE_MS: f64 = 4_000.0;
/// A half of a split by load takes at least one part in so many of the sample.
const HALF_SHARE: usize = 6;
/// The newer half of a sample moves on if all but one in so many of it lie beyond all of the older half.
const MOVING_SHARE: usize = 10;

/// Operations and bytes per second, of late.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    ops: f64,
    bytes: f64,
}

impl Rates {
    /// So much has happened in the last `ms` milliseconds.
    pub fn fold(&mut self, ops: u64, bytes: u64, ms: u64) {
        let ms = ms.max(1) as f64;
        let kept = (-ms / HALF_LIFE_MS).exp2();
        let fold = |rate: &mut f64, count: u64| *rate = *rate * kept + count as f64 * 1_000.0 / ms * (1.0 - kept);
        fold(&mut self.ops, ops);
        fold(&mut self.bytes, bytes);
    }

    /// Operations per second.
    pub fn ops(&self) -> u64 {
        self.ops.round() as u64
    }

    /// Bytes per second.
    pub fn bytes(&self) -> u64 {
        self.bytes.round() as u64
    }

    /// One touch out of how many a sample takes at this rate, so that it reaches as far back as it is of use.
    pub fn stride(&self) -> u64 {
        let touches = self.ops * SAMPLE_MS as f64 / 1_000.0;
        (touches / SAMPLE_KEYS as f64) as u64 + 1
    }
}

/// What to report for a rate of `now` where `told` was reported last and rates below `least` count as none: `told` as long
/// as it is not far off, otherwise `now` to two significant bits.
pub fn steady(told: u64, now: u64, least: u64) -> u64 {
    let (low, high) = match told {
        0 => (0, least),
        told => ((told - told / 3).max(least / 2), told + told / 2),
    };
    match now {
        now if low <= now && now < high => told,
        now if now < least => 0,
        now => {
            // To nearest, of two bits.
            let step = 1 << (now.ilog2().max(1) - 1);
            now.saturating_add(step / 2) / step * step
        }
    }
}

/// What to report for a size of `now` where `told` was reported last: `told` as long as it is off by no more than a few
/// per cent, or than `slack`.
pub fn about(told: u64, now: u64, slack: u64) -> u64 {
    if told > 0 && told.abs_diff(now) <= (told / 32).max(slack) { told } else { now }
}

/// Keys touched lately, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    touches: VecDeque<(u64, Bytes)>,
}

/// Why a region is not split by its load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsplit {
    /// Too little happens there.
    Idle,
    /// Nearly all of it concerns one key.
    OneKey,
    /// It goes to ever greater, or ever smaller, keys: wherever the region is cut, all that comes goes to one half.
    Moving,
}

impl Sample {
    /// The internal key `key` was touched at `now`, in milliseconds.
    pub fn touch(&mut self, key: &[u8], now: u64) {
        if self.touches.len() >= SAMPLE_KEYS {
            self.touches.pop_front();
        }
        // A key of its own: one that shares a request's buffer would keep all of that.
        self.touches.push_back((now, Bytes::copy_from_slice(key)));
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.touches = VecDeque::new();
    }

    /// The key of user data, or of a lease, strictly inside `range` that has about half of the touches on either side.
    ///
    /// # Errors
    /// See [`Unsplit`].
    pub fn middle(&self, range: &KeyRange, now: u64) -> Result<Bytes, Unsplit> {
        let lately =
            self.touches.iter().filter(|(at, key)| now.saturating_sub(*at) <= SAMPLE_MS && range.contains(key));
        let by_time: Vec<&Bytes> = lately.map(|(_, key)| key).collect();
        if by_time.len() < SAMPLE_KEYS_MIN {
            return Err(Unsplit::Idle);
        }
        let mut keys = by_time.clone();
        keys.sort_unstable();
        let may_cut = |key: &Bytes| (key.first() == Some(&TAG_USER) && key.len() > 1) || lease_of(key).is_some();
        let inside = |key: &Bytes| may_cut(key) && *key > range.start;
        let cuts = (1..keys.len()).filter(|at| keys[*at] != keys[*at - 1] && inside(keys[*at]));
        // Everything from the cut on goes to the right.
        let best = cuts.max_by_key(|at| (*at).min(keys.len() - at));
        let Some(best) = best.filter(|at| (*at).min(keys.len() - at) >= keys.len() / HALF_SHARE) else {
            return Err(Unsplit::OneKey);
        };
        if moves_on(&by_time) {
            return Err(Unsplit::Moving);
        }
        Ok(keys[best].clone())
    }
}

/// Whether the newer half of `keys`, which are in the order of time, lies beyond the older half.
fn moves_on(keys: &[&Bytes]) -> bool {
    let (older, newer) = keys.split_at(keys.len() / 2);
    let (Some(least), Some(greatest)) = (older.iter().min(), older.iter().max()) else { return false };
    let most = newer.len() - newer.len() / MOVING_SHARE;
    newer.iter().filter(|key| *key > greatest).count() >= most
        || newer.iter().filter(|key| *key < least).count() >= most
}

#[cfg(test)]
mod tests;
