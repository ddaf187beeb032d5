//! On a real host with many regions of one peer each: the busy ones are told of, the idle ones not even looked at.

use std::time::{Duration, Instant};

use braid_proto::pb::region_response;

use super::*;
use crate::lone::Lone;

const REGIONS: u64 = 600;
const LIMIT: Duration = Duration::from_secs(60);

fn gather(reports: &mut Reports, scene: &Lone, full: bool) -> Vec<RegionReport> {
    reports.gather(&scene.regions, &scene.shared, full)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_regions_are_reported_and_idle_ones_are_not_looked_at() {
    let scene = Lone::open(REGIONS);
    let mut reports = Reports::default();
    let begun = Instant::now();
    // Each reports itself when it begins to lead.
    let mut led = HashSet::new();
    while led.len() < REGIONS as usize {
        led.extend(
            gather(&mut reports, &scene, false).iter().map(|report| report.region.as_ref().expect("a region").id),
        );
        assert!(begun.elapsed() < LIMIT, "{} lead", led.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(reports.led(), REGIONS as usize);
    // Then they are quiet.
    while !scene.shared.busy.news().is_empty() || !reports.watched.is_empty() {
        gather(&mut reports, &scene, false);
        assert!(begun.elapsed() < LIMIT, "{:?} do not come to rest", reports.watched);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let turn = (REGIONS as usize).div_ceil(TURNS);
    for _ in 0..10 {
        assert_eq!(gather(&mut reports, &scene, false), [], "nothing has happened");
        assert!(reports.looked() <= turn, "{} of {REGIONS} regions looked at", reports.looked());
    }
    for turn in 0..200 {
        let answer = scene.put(7, &turn.to_string(), 1_000).await.result;
        assert!(matches!(answer, Some(region_response::Result::Put(_))), "{answer:?}");
    }
    let news = gather(&mut reports, &scene, false);
    assert_eq!(news.iter().map(|report| report.leader_peer).collect::<Vec<_>>(), [1_007]);
    let busy = &news[0];
    assert!(busy.ops_per_second >= OPS_LEAST && busy.written_per_second >= 1_024, "{busy:?}");
    assert!(reports.looked() <= turn + 1);
    assert_eq!(gather(&mut reports, &scene, true).len(), REGIONS as usize, "everything is told if placement asks");
    scene.close().await;
}
