//! What every server process has: logs, metrics, signals, and the pages `/metrics` and `/health` beside the client port.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tonic::codegen::Service as _;
use tonic::service::Routes;

use crate::args::groups::ProcessArgs;
use crate::listen::Ports;
use crate::logging;
use crate::metrics::Metrics;
use crate::stop::Stop;

/// Content type of Prometheus text.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How long a page that is being read may take once the process shall stop.
const PAGES_GRACE: Duration = Duration::from_millis(200);

/// Pause between two looks at one's own health. The answer depends on other processes, so there is nothing to wait on.
const HEALTH_PAUSE: Duration = Duration::from_millis(50);

/// Who answers `/health` once the process is complete.
#[derive(Clone)]
enum Health {
    /// The process itself: its parts are there.
    Process,
    /// Its proxy, which reads a key to find out.
    Proxy(Router),
}

/// A process that has begun.
pub struct Process {
    /// Its metrics.
    pub metrics: Metrics,
    /// Whether it shall stop.
    pub stop: Stop,
    health: Arc<OnceLock<Health>>,
}

impl Process {
    /// Starts logs, metrics and the watch for signals. Once per process.
    pub fn begin(args: &ProcessArgs) -> Result<Self> {
        logging::start(&args.log_level, args.log_format)?;
        let metrics = Metrics::install().context("cannot start metrics")?;
        metrics.keep_folded();
        let stop = Stop::on_signals().context("cannot watch for signals")?;
        Ok(Self { metrics, stop, health: Arc::default() })
    }

    /// The process is complete and has no proxy.
    pub fn set_ready(&self) {
        self.complete(Health::Process);
    }

    /// The process is complete; `pages` are its proxy's HTTP side.
    pub fn set_ready_with(&self, pages: Router) {
        self.complete(Health::Proxy(pages));
    }

    fn complete(&self, health: Health) {
        let first = self.health.set(health).is_ok();
        assert!(first, "a process becomes complete once");
    }

    /// A function that renders `/metrics`.
    pub fn render(&self) -> Arc<dyn Fn() -> String + Send + Sync> {
        let metrics = self.metrics.clone();
        Arc::new(move || metrics.render())
    }

    /// Resolves once the process answers `/health` with success.
    pub fn healthy(&self) -> impl Future<Output = ()> + Send + use<> {
        let health = Arc::clone(&self.health);
        async move { healthy(&health).await }
    }

    /// `/metrics` and `/health`, to be served from the start.
    pub fn pages(&self) -> Router {
        let (metrics, health) = (self.metrics.clone(), Arc::clone(&self.health));
        let page = move || std::future::ready(([(header::CONTENT_TYPE, METRICS_TYPE)], metrics.render()));
        let health = move |request: Request| answer_health(health.get().cloned(), request);
        Router::new().route("/metrics", get(page)).route("/health", get(health))
    }

    /// `services` and the pages on one port.
    pub fn with_pages(&self, services: Routes) -> Routes {
        Routes::from(services.into_axum_router().merge(self.pages()))
    }

    /// Serves the pages on the ports of `--listen-metrics-urls` as long as the process lives.
    pub fn serve_pages(&self, ports: Ports) {
        let (routes, stop) = (Routes::from(self.pages()), self.stop.clone());
        tokio::spawn(async move {
            if let Err(error) = ports.serve(routes, stop, PAGES_GRACE).await {
                tracing::error!(%error, "metrics are not served any more");
            }
        });
    }
}

async fn healthy(health: &OnceLock<Health>) {
    let mut pause = tokio::time::interval(HEALTH_PAUSE);
    loop {
        pause.tick().await;
        let question = Request::get("/health").body(Body::empty()).expect("a fixed request is well-formed");
        if answer_health(health.get().cloned(), question).await.status().is_success() {
            return;
        }
    }
}

async fn answer_health(health: Option<Health>, request: Request) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    match health {
        Some(Health::Proxy(mut pages)) => {
            let answer: Result<Response, Infallible> = pages.call(request).await;
            answer.unwrap_or_else(|never| match never {})
        }
        Some(Health::Process) => (json, r#"{"health":"true","reason":""}"#).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, json, r#"{"health":"false","reason":"starting"}"#).into_response(),
    }
}
