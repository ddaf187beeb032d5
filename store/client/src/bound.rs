//! The proxy's own questions to the sequencer: the newest revision that a read over many regions may see.

use braid_placement_client::{Block, Numbers};
use braid_proto::error::{self, EtcdStatus};
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::deadline::Patience;
use crate::retry;

/// What the sequencer said after the question was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Every revision acknowledged before the question is at or below this one.
    pub revision: i64,
    /// Newest compacted revision; 0: never compacted.
    pub compacted: i64,
}

impl Bound {
    /// The revision to read at for a request that names `asked` (0 or less: none).
    ///
    /// # Errors
    /// `asked` has not happened yet, or its history is gone.
    pub fn read_at(self, asked: i64) -> Result<i64, EtcdStatus> {
        match asked {
            ..=0 => Ok(self.revision),
            _ if asked > self.revision => Err(error::FUTURE_REVISION),
            _ if asked < self.compacted => Err(error::COMPACTED),
            _ => Ok(asked),
        }
    }
}

/// Takes a bound. Asked now, so it covers whatever was acknowledged before (rule Q1).
///
/// # Errors
/// The sequencer did not answer in time.
pub async fn take(numbers: &Numbers, patience: Patience) -> Result<Bound, EtcdStatus> {
    let mut attempt = 0;
    loop {
        match ask(numbers, patience).await {
            Some(block) => return Ok(Bound { revision: block.base, compacted: block.compacted }),
            None if patience.is_over() => return Err(no_leader(patience)),
            None => {
                let pause = tokio::time::sleep(retry::pause(attempt + 2));
                _ = timeout_at(patience.deadline, pause).await;
                attempt += 1;
            }
        }
    }
}

/// The error for a request that found no leader before its deadline.
pub fn no_leader(patience: Patience) -> EtcdStatus {
    if patience.require_leader { error::NO_LEADER } else { error::TIMEOUT }
}

async fn ask(numbers: &Numbers, patience: Patience) -> Option<Block> {
    let (tell, told) = oneshot::channel();
    numbers.request(0, Box::new(move |answer| _ = tell.send(answer)));
    match timeout_at(patience.deadline, told).await {
        Ok(Ok(Ok(block))) => Some(block),
        Ok(Ok(Err(why))) => {
            tracing::debug!(%why, "no bound");
            None
        }
        Ok(Err(_)) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explicit_revisions_are_judged_against_the_bound() {
        let bound = Bound { revision: 50, compacted: 20 };
        assert_eq!(bound.read_at(0), Ok(50));
        assert_eq!(bound.read_at(-3), Ok(50));
        assert_eq!(bound.read_at(50), Ok(50));
        assert_eq!(bound.read_at(51), Err(error::FUTURE_REVISION));
        assert_eq!(bound.read_at(20), Ok(20));
        assert_eq!(bound.read_at(19), Err(error::COMPACTED));
        assert_eq!(Bound { revision: 50, compacted: 0 }.read_at(1), Ok(1));
    }
}
