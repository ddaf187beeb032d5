//! The HTTP side of the client port: /version, /health, /livez, /readyz, /metrics.
//!
//! - `/health` reads one key through the same path as a client, linearizable unless `?serializable=true`.
//! - `/livez` says that this process answers, no more: restarting a proxy heals no store, so a store's trouble must not
//!   make an orchestrator restart proxies.
//! - `/readyz` says that this proxy can serve clients: both kinds of reads work. `?verbose` lists the checks,
//!   `?exclude=CHECK` leaves one out, `/readyz/CHECK` runs only one.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use braid_proto::etcd::etcdserverpb::RangeRequest;
use bytes::Bytes;
use serde_json::json;
use tonic::Status;

use crate::kv::range::range;
use crate::maintenance::ETCD_VERSION;
use crate::shared::Shared;
use braid_store_client::deadline::Patience;

/// The key that health checks read. It need not exist.
const HEALTH_KEY: &[u8] = b"health";

/// Adds the HTTP side to `router`, and answers for all paths that nothing else serves.
pub fn add_to(router: Router, shared: Arc<Shared>) -> Router {
    let http = Router::new()
        .route("/version", get(version))
        .route("/health", get(health))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/readyz/{check}", get(readyz_check))
        .route("/metrics", get(metrics))
        .with_state(shared);
    router.merge(http).fallback(not_found)
}

async fn version() -> Response {
    let cluster = ETCD_VERSION.rsplit_once('.').map_or(ETCD_VERSION, |(minor, _)| minor);
    json_answer(StatusCode::OK, json!({"etcdserver": ETCD_VERSION, "etcdcluster": format!("{cluster}.0")}))
}

async fn health(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    let serializable = query_values(query.as_deref(), "serializable").any(|value| value == "true");
    let reason = if !serializable && shared.presence.word().leader() == 0 {
        Some("RAFT NO LEADER".to_owned())
    } else {
        read(&shared, serializable).await.err().map(|status| format!("RANGE ERROR:{}", status.message()))
    };
    match reason {
        None => json_answer(StatusCode::OK, json!({"health": "true", "reason": ""})),
        Some(reason) => {
            let answer = json!({"health": "false", "reason": reason});
            json_answer(StatusCode::SERVICE_UNAVAILABLE, answer)
        }
    }
}

async fn livez() -> &'static str {
    "ok\n"
}

/// What makes a proxy ready, by name.
const READY_CHECKS: [(&str, bool); 2] = [("serializable_read", true), ("linearizable_read", false)];

async fn readyz(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    let excluded: Vec<&str> = query_values(query.as_deref(), "exclude").collect();
    let verbose = query_values(query.as_deref(), "verbose").next().is_some();
    let mut lines = String::new();
    let mut ready = true;
    for (name, serializable) in READY_CHECKS.iter().filter(|(name, _)| !excluded.contains(name)) {
        match read(&shared, *serializable).await {
            Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
            Err(status) => {
                ready = false;
                lines.push_str(&format!("[-]{name} failed: {}\n", status.message()));
            }
        }
    }
    match (ready, verbose) {
        (true, false) => "ok\n".into_response(),
        (true, true) => format!("{lines}ok\n").into_response(),
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, lines).into_response(),
    }
}

async fn readyz_check(State(shared): State<Arc<Shared>>, Path(check): Path<String>) -> Response {
    let Some((_, serializable)) = READY_CHECKS.iter().find(|(name, _)| *name == check) else {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    };
    match read(&shared, *serializable).await {
        Ok(()) => "ok\n".into_response(),
        Err(status) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", status.message())).into_response(),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    metrics::gauge!("braid_proxy_in_flight").set(shared.in_flight.count() as f64);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], (shared.config.metrics)()).into_response()
}

/// gRPC calls of services that are not there get gRPC's answer, everybody else HTTP's.
async fn not_found(headers: HeaderMap) -> Response {
    let is_grpc = headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    match is_grpc {
        true => Status::unimplemented("braid: no such service").into_http(),
        false => (StatusCode::NOT_FOUND, "404 page not found\n").into_response(),
    }
}

/// Reads one key as a client would.
async fn read(shared: &Shared, serializable: bool) -> Result<(), Status> {
    let request = RangeRequest {
        key: Bytes::from_static(HEALTH_KEY),
        limit: 1,
        keys_only: true,
        serializable,
        ..Default::default()
    };
    range(shared, request, Patience::within(shared.config.request_timeout)).await.map(|_| ())
}

fn json_answer(status: StatusCode, body: serde_json::Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// The values of one parameter. Parameters here are plain words, so nothing is percent-decoded.
fn query_values<'a>(query: Option<&'a str>, name: &'a str) -> impl Iterator<Item = &'a str> {
    let pairs = query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(move |(key, _)| *key == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_parameters() {
        let values = |query, name| query_values(query, name).collect::<Vec<_>>();
        assert_eq!(values(Some("exclude=a&verbose&exclude=b"), "exclude"), ["a", "b"]);
        assert_eq!(values(Some("exclude=a&verbose"), "verbose"), [""]);
        assert_eq!(values(None, "verbose"), [""; 0]);
    }
}
