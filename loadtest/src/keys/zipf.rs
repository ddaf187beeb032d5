//! Zipf's law: the n-th most wanted key is wanted in proportion to n to the power of minus the exponent.
//!
//! Drawn by rejection-inversion (Hörmann and Derflinger, 1996): the sum over ranks is bounded by an integral that can be
//! inverted, so that no table is needed, whatever the number of keys. Ranks are then scattered over the key space, since
//! popular keys are not neighbours in real use; the scattering is a bijection, so no two ranks share a key.

use crate::random::Random;

/// Draws key numbers.
#[derive(Debug, Clone)]
pub struct Zipf {
    count: u64,
    exponent: f64,
    /// Integral up to half past the first rank, less the first rank's own weight.
    from: f64,
    /// Integral up to half past the last rank.
    to: f64,
    /// What rank is multiplied with to scatter it; has no factor in common with the count.
    step: u64,
}

impl Zipf {
    /// Over so many keys, of which there must be at least one; the exponent must be above 0.
    pub fn new(count: u64, exponent: f64) -> Self {
        let (from, to) = (integral(1.5, exponent) - 1.0, integral(count as f64 + 0.5, exponent));
        // About the golden section of the count: neighbours in rank land far apart.
        let mut step = ((count as f64 * 0.618_033_988_75) as u64).max(1);
        while common_factor(step, count) != 1 {
            step += 1;
        }
        Self { count, exponent, from, to, step }
    }

    /// The next key's number.
    pub fn draw(&self, random: &mut Random) -> u64 {
        let rank = self.rank(random) - 1;
        (u128::from(rank) * u128::from(self.step) % u128::from(self.count)) as u64
    }

    /// The next rank, from 1 on.
    fn rank(&self, random: &mut Random) -> u64 {
        loop {
            let area = self.to + random.unit() * (self.from - self.to);
            let at = inverse(area, self.exponent);
            let rank = (at.round() as u64).clamp(1, self.count);
            let weight = (rank as f64).powf(-self.exponent);
            if area >= integral(rank as f64 + 0.5, self.exponent) - weight {
                return rank;
            }
        }
    }
}

/// Integral of x to the power of minus the exponent, from 1 to x.
fn integral(x: f64, exponent: f64) -> f64 {
    let power = 1.0 - exponent;
    match power.abs() < 1e-9 {
        true => x.ln(),
        false => (x.powf(power) - 1.0) / power,
    }
}

/// Where the integral has this value.
fn inverse(area: f64, exponent: f64) -> f64 {
    let power = 1.0 - exponent;
    match power.abs() < 1e-9 {
        true => area.exp(),
        false => (1.0 + area * power).max(0.0).powf(1.0 / power),
    }
}

fn common_factor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common_factor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn ranks(count: u64, exponent: f64, draws: usize) -> Vec<u64> {
        let (zipf, mut random) = (Zipf::new(count, exponent), Random::new(1, 0));
        let mut ranks = vec![0; count as usize + 1];
        (0..draws).for_each(|_| ranks[zipf.rank(&mut random) as usize] += 1);
        ranks
    }

    #[test]
    fn ranks_follow_the_law() {
        const DRAWS: usize = 400_000;
        for exponent in [0.5, 0.99, 1.0, 1.5] {
            let seen = ranks(1_000, exponent, DRAWS);
            let sum: f64 = (1..=1_000).map(|rank| f64::from(rank).powf(-exponent)).sum();
            for rank in [1, 2, 3, 10, 50] {
                let want = (rank as f64).powf(-exponent) / sum * DRAWS as f64;
                let got = seen[rank] as f64;
                // Five standard deviations.
                assert!((got - want).abs() < 5.0 * want.sqrt(), "{exponent}, rank {rank}: {got} instead of {want}");
            }
        }
    }

    #[test]
    fn every_rank_has_a_key_of_its_own() {
        for count in [1, 2, 3, 10, 1_000, 1_024, 999_983] {
            let zipf = Zipf::new(count, 0.99);
            let keys: HashSet<_> = (0..count.min(5_000))
                .map(|rank| (u128::from(rank) * u128::from(zipf.step) % u128::from(count)) as u64)
                .collect();
            assert_eq!(keys.len() as u64, count.min(5_000));
            assert!(keys.iter().all(|&key| key < count));
            let mut random = Random::new(3, 3);
            assert!((0..1_000).all(|_| zipf.draw(&mut random) < count));
        }
    }
}
