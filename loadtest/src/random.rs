//! A small random number generator whose sequence is part of our formats: the same seed makes the same data set on every
//! machine and in every version, which no generator of a library promises. (SplitMix64.)

/// The generator.
#[derive(Debug, Clone)]
pub struct Random(u64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Random {
    /// A sequence of its own for each pair, so that item `stream` of a data set can be made without the ones before it.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self(mix(seed ^ mix(stream.wrapping_add(STEP))))
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// A number below `bound`, which must not be 0. (Biased by less than bound / 2^64.)
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from 0 (inclusive) to 1 (exclusive).
    pub fn unit(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One of `choices`, which must not be empty.
    pub fn choose<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Random bytes, which no compression makes smaller.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.draw().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

/// A bijection on 64 bits: different inputs stay different.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_never_changes() {
        let mut random = Random::new(1, 2);
        assert_eq!([random.draw(), random.draw()], [SEED_1_2[0], SEED_1_2[1]]);
        assert_eq!(Random::new(1, 2).bytes(3), &SEED_1_2[0].to_le_bytes()[..3]);
    }

    const SEED_1_2: [u64; 2] = [5_196_188_657_185_181_188, 5_005_007_431_957_806_747];

    #[test]
    fn numbers_stay_in_their_bounds_and_fill_them() {
        let mut random = Random::new(7, 0);
        let mut seen = [0; 10];
        for _ in 0..10_000 {
            seen[random.below(10) as usize] += 1;
            assert!((0.0..1.0).contains(&random.unit()));
        }
        assert!(seen.iter().all(|&count| (800..1200).contains(&count)), "{seen:?}");
    }

    #[test]
    fn streams_differ() {
        assert_ne!(Random::new(1, 0).draw(), Random::new(1, 1).draw());
        assert_ne!(Random::new(1, 0).draw(), Random::new(2, 0).draw());
    }
}
