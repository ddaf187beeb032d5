//! A hash whose bytes never change: ids that are kept on disk are made of it.
//!
//! FNV-1a over length-prefixed parts, then a finalizer that spreads the bits. Not for secrets, not for hash tables.

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// Hashes `parts`; different lists of parts are different inputs. Never 0, which names nothing.
pub fn stable<'a>(parts: impl IntoIterator<Item = &'a str>) -> u64 {
    let mut state = OFFSET;
    for part in parts {
        let length = (part.len() as u64).to_le_bytes();
        for byte in length.iter().chain(part.as_bytes()) {
            state = (state ^ u64::from(*byte)).wrapping_mul(PRIME);
        }
    }
    spread(state).max(1)
}

/// The finalizer of splitmix64: every bit of the input moves about half of the bits of the output.
fn spread(mut state: u64) -> u64 {
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::stable;

    #[test]
    fn values_are_fixed_because_folders_hold_them() {
        assert_eq!(format!("{:016x}", stable([])), "f52a15e9a9b5e89b");
        assert_eq!(format!("{:016x}", stable(["braid-cluster", "n1=http://127.0.0.1:2380"])), "f2ed5c52c7ee262f");
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(stable(["ab", "c"]), stable(["a", "bc"]));
        assert_ne!(stable(["ab"]), stable(["ab", ""]));
    }
}
