//! What the client port serves beside gRPC.

use crate::harness::{Cluster, free_url, http_get};

#[test]
fn health_version_and_metrics_are_served() {
    let metrics = free_url();
    let cluster = Cluster::dev(&["--listen-metrics-urls", &metrics]);
    let endpoint = &cluster.endpoints[0];

    let (status, health) = http_get(endpoint, "/health").unwrap();
    assert_eq!(status, 200);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&health).unwrap()["health"], "true");

    let (status, version) = http_get(endpoint, "/version").unwrap();
    assert_eq!(status, 200);
    let version: serde_json::Value = serde_json::from_str(&version).unwrap();
    let server = version["etcdserver"].as_str().unwrap();
    assert!(server.split('.').count() == 3 && server.split('.').all(|part| part.parse::<u32>().is_ok()), "{server}");
    assert!(version["etcdcluster"].is_string());

    for url in [endpoint, &metrics] {
        let (status, page) = http_get(url, "/metrics").unwrap();
        assert_eq!(status, 200, "{url}");
        for name in ["process_resident_memory_bytes ", "process_open_fds ", "raft_engine_", "braid_"] {
            assert!(page.contains(&format!("\n{name}")), "{url} lacks {name}: {page}");
        }
        for line in page.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let value = line.rsplit(' ').next().unwrap();
            assert!(value.parse::<f64>().is_ok(), "no number at the end of: {line}");
        }
    }
    let (status, _) = http_get(&metrics, "/health").unwrap();
    assert_eq!(status, 200);
}
