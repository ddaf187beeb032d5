//! `braid admin region check [--region ID]`: whether all replicas of each region hold the same.

use anyhow::{Result, bail};
use braid_proto::id::{RegionId, Revision, StoreId};
use braid_proto::pb::checked_region::Verdict;
use braid_proto::pb::{CheckedRegion, CheckedReplica, RegionCheckRequest};
use serde::Serialize;

use crate::admin::answer::Answer;
use crate::admin::connection::Connection;
use crate::admin::table::Table;

/// Replicas compared, region by region.
#[derive(Serialize)]
pub struct RegionCheck {
    /// Every region has the verdict "same".
    same: bool,
    regions: Vec<RegionVerdict>,
}

#[derive(Serialize)]
struct RegionVerdict {
    id: u64,
    /// What reads at the revisions from `compacted_revision` (0: the first of all) to `revision` show was compared.
    revision: i64,
    compacted_revision: i64,
    /// "same", "different", or "incomplete" where some replica gave no answer and the others agree.
    verdict: &'static str,
    /// Stores that are not with the majority; all of them where there is none.
    differing_stores: Vec<u64>,
    replicas: Vec<ReplicaHash>,
}

#[derive(Serialize)]
struct ReplicaHash {
    store: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    versions: Option<u64>,
    /// Why it has no hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

/// Compares the replicas of `region`, or of all regions.
pub async fn run(connection: &mut Connection, region: Option<u64>) -> Result<RegionCheck> {
    let answer = connection.region_check(RegionCheckRequest { region_id: region.unwrap_or(0) }).await?;
    if !answer.failed.is_empty() {
        bail!("cannot check {}: {}", RegionId(region.unwrap_or(0)), answer.failed);
    }
    let regions: Vec<RegionVerdict> = answer.regions.into_iter().map(RegionVerdict::from).collect();
    Ok(RegionCheck { same: regions.iter().all(|region| region.verdict == SAME), regions })
}

impl RegionCheck {
    /// Fails unless all replicas are known to hold the same.
    pub fn verdict(&self) -> Result<()> {
        let with = |verdict| self.regions.iter().filter(move |region| region.verdict == verdict);
        let names = |verdict| with(verdict).map(|region| RegionId(region.id).to_string()).collect::<Vec<_>>().join(" ");
        let mut stores: Vec<u64> = with(DIFFERENT).flat_map(|region| region.differing_stores.clone()).collect();
        stores.sort_unstable();
        stores.dedup();
        let stores: Vec<String> = stores.into_iter().map(|store| StoreId(store).to_string()).collect();
        match (names(DIFFERENT), names(INCOMPLETE)) {
            (different, _) if !different.is_empty() => {
                bail!("replicas differ: {different}, on {}", stores.join(" "))
            }
            (_, incomplete) if !incomplete.is_empty() => bail!("not every replica could be compared: {incomplete}"),
            _ => Ok(()),
        }
    }
}

const SAME: &str = "same";
const DIFFERENT: &str = "different";
const INCOMPLETE: &str = "incomplete";

impl From<CheckedRegion> for RegionVerdict {
    fn from(checked: CheckedRegion) -> Self {
        Self {
            id: checked.region.as_ref().map_or(0, |region| region.id),
            revision: checked.revision,
            compacted_revision: checked.boundary,
            verdict: match checked.verdict() {
                Verdict::Same => SAME,
                Verdict::Different => DIFFERENT,
                Verdict::Incomplete => INCOMPLETE,
            },
            differing_stores: checked.differing_stores,
            replicas: checked.replicas.into_iter().map(ReplicaHash::from).collect(),
        }
    }
}

impl From<CheckedReplica> for ReplicaHash {
    fn from(replica: CheckedReplica) -> Self {
        Self {
            store: replica.store_id,
            hash: replica.hash.map(|hash| format!("{:08x}", hash.crc)),
            keys: replica.hash.map(|hash| hash.keys),
            versions: replica.hash.map(|hash| hash.versions),
            failed: replica.hash.is_none().then_some(replica.failed),
        }
    }
}

impl RegionVerdict {
    /// One line that names who differs and who was not compared.
    fn shown(&self) -> String {
        let differing: Vec<String> = self.differing_stores.iter().map(|store| StoreId(*store).to_string()).collect();
        let differing = (!differing.is_empty()).then(|| format!("{} differ", differing.join(" ")));
        let failed = self.replicas.iter().filter_map(|replica| {
            let why = replica.failed.as_ref()?;
            Some(format!("{} not compared: {why}", StoreId(replica.store)))
        });
        let parts: Vec<String> = differing.into_iter().chain(failed).collect();
        if parts.is_empty() { self.verdict.to_owned() } else { format!("{}: {}", self.verdict, parts.join("; ")) }
    }
}

impl Answer for RegionCheck {
    fn text(&self) -> String {
        let mut table = Table::new(&["REGION", "REVISION", "REPLICAS", "VERDICT"]);
        for region in &self.regions {
            let replicas = region
                .replicas
                .iter()
                .map(|replica| format!("{}={}", StoreId(replica.store), replica.hash.as_deref().unwrap_or("none")));
            table.row(vec![
                RegionId(region.id).to_string(),
                Revision(region.revision).to_string(),
                replicas.collect::<Vec<_>>().join(" "),
                region.shown(),
            ]);
        }
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use braid_proto::pb::{HashResponse, Region};

    use super::*;

    fn region(id: u64, verdict: Verdict, crcs: [Option<u32>; 3], differing_stores: &[u64]) -> RegionVerdict {
        let replica = |(store_id, crc): (u64, Option<u32>)| CheckedReplica {
            store_id,
            hash: crc.map(|crc| HashResponse { crc, bytes: 9, keys: 1, versions: 2 }),
            failed: "the store cannot be reached".to_owned(),
        };
        RegionVerdict::from(CheckedRegion {
            region: Some(Region { id, ..Region::default() }),
            revision: 7,
            boundary: 0,
            replicas: (1..).zip(crcs).map(replica).collect(),
            verdict: verdict.into(),
            differing_stores: differing_stores.to_vec(),
        })
    }

    #[test]
    fn who_differs_and_who_is_missing_is_named() {
        let same = || region(1, Verdict::Same, [Some(5); 3], &[]);
        let different = || region(2, Verdict::Different, [Some(5), Some(0xabc), None], &[1, 2]);
        let incomplete = || region(3, Verdict::Incomplete, [Some(5), Some(5), None], &[]);
        let all = RegionCheck { same: false, regions: vec![same(), different(), incomplete()] };
        let lines: Vec<String> = all.text().lines().map(str::to_owned).collect();
        assert_eq!(
            lines,
            [
                "REGION  REVISION  REPLICAS                             VERDICT",
                "r1      @7        s1=00000005 s2=00000005 s3=00000005  same",
                "r2      @7        s1=00000005 s2=00000abc s3=none      \
                 different: s1 s2 differ; s3 not compared: the store cannot be reached",
                "r3      @7        s1=00000005 s2=00000005 s3=none      \
                 incomplete: s3 not compared: the store cannot be reached",
            ]
        );
        let verdict = |regions| RegionCheck { same: false, regions }.verdict().map_err(|why| why.to_string());
        assert_eq!(verdict(vec![same()]), Ok(()));
        assert_eq!(verdict(all.regions), Err("replicas differ: r2, on s1 s2".to_owned()));
        assert_eq!(verdict(vec![same(), incomplete()]), Err("not every replica could be compared: r3".to_owned()));
    }
}
