//! The operations routes: `/livez`, `/readyz` and `/metrics`.

use std::net::{SocketAddr, TcpListener};

use anyhow::Context;
use axum::Extension;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use futures::FutureExt;
use metrics_exporter_prometheus::PrometheusHandle;
use utoipa::IntoResponses;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::access::Caller;
use super::guard::Guard;
use super::listen::{bind, cannot_listen, listen};
use super::openapi::{About, documented};
use super::places::Places;
use super::problem::ProblemType;
use super::problem_responses::{Responses, problem_responses};
use super::server;
use crate::grant::Scope;
use crate::health::Health;
use crate::shutdown::Shutdown;

/// Most connections of operators and metrics collectors at a time: far more than any setup needs. One address
/// has at most half of them.
const OPS_CONNECTIONS: usize = 100;

/// The beginning of the document of the operations routes.
const ABOUT: About = About {
    title: "catchall: operations",
    description: "Reports the health and metrics of a catchall process.",
    address: "127.0.0.1:9080",
};

/// Where a process serves its operations routes.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct OpsConfig {
    /// Address and port of /livez, /readyz and /metrics; port 0 chooses a free port and logs it
    #[arg(long, env = "CATCHALL_OPS_LISTEN", value_name = "ADDRESS:PORT")]
    pub ops_listen: SocketAddr,
}

impl OpsConfig {
    /// Opens the socket of the operations routes. The port is never shared, because that would hide one
    /// process from its operators.
    ///
    /// # Errors
    ///
    /// When the address does not belong to this machine or the port is taken.
    pub fn bind(&self) -> anyhow::Result<TcpListener> {
        let socket = bind(self.ops_listen, false).and_then(|socket| listen(&socket).map(|()| socket));
        socket.with_context(|| cannot_listen(self.ops_listen, "CATCHALL_OPS_LISTEN"))
    }
}

/// Serves `/livez`, `/readyz` and `/metrics` while it is polled.
///
/// `/livez` answers 200 while the process runs and its main event loop turns; no fault outside the process
/// changes that, because a restart would not fix it. `/readyz` answers 200 if every dependency is available,
/// else 503 with what is wrong. It also answers 503 from the shutdown on, so that load balancers send no more
/// clients.
///
/// # Errors
///
/// When the server fails.
pub async fn serve_ops(
    socket: TcpListener,
    guard: &Guard,
    health: Health,
    metrics: PrometheusHandle,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let state = Ops { health, metrics, shutdown };
    let routes = OpenApiRouter::default()
        .routes(routes!(livez))
        .routes(routes!(readyz))
        .routes(routes!(metrics_page))
        .with_state(state);
    // Who keeps a connection open takes nothing from a probe, which decides whether the process lives.
    let places = Places::lent(OPS_CONNECTIONS, OPS_CONNECTIONS / 2);
    // It answers until the process ends, so operators can watch it stop.
    server::serve(socket, guard.operations(), documented(ABOUT, routes), places, never())
        .await
        .context("the HTTP server failed")
}

fn never() -> Shutdown {
    std::future::pending().boxed().shared()
}

/// The problems of a request for the metrics, for the document.
struct MetricsProblems;

impl IntoResponses for MetricsProblems {
    fn responses() -> Responses {
        problem_responses(&[ProblemType::MethodNotAllowed])
    }
}

/// The state that the routes report.
#[derive(Clone)]
struct Ops {
    health: Health,
    metrics: PrometheusHandle,
    shutdown: Shutdown,
}

#[utoipa::path(
    get,
    path = "/livez",
    summary = "Whether the process runs",
    description = "No fault outside the process changes this answer.",
    tag = "Operations",
    responses(
        (status = 200, description = "It runs.", body = String, content_type = "text/plain; charset=utf-8")
    ),
    security(())
)]
async fn livez() -> &'static str {
    "alive\n"
}

/// The reasons name servers, and are for operators.
#[utoipa::path(
    get,
    path = "/readyz",
    summary = "Whether the process can do its work",
    tag = "Operations",
    responses(
        (status = 200, description = "Every dependency is available.", body = String,
            content_type = "text/plain; charset=utf-8"),
        (status = 503, description = "The process is stopping, or a dependency is not available. The body \
            names it if the token has the scope `operate`.", body = String,
            content_type = "text/plain; charset=utf-8")
    ),
    security(())
)]
async fn readyz(
    State(Ops { health, shutdown, .. }): State<Ops>,
    Extension(caller): Extension<Caller>,
) -> (StatusCode, String) {
    let stops = shutdown.peek().is_some();
    let ready = !stops && health.missing().is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let reasons = match (caller.may(Scope::Operate), ready) {
        (true, _) if stops => "stopping".into(),
        (true, _) => health.to_string(),
        (false, true) => "ready".into(),
        (false, false) => "not ready".into(),
    };
    (status, reasons + "\n")
}

#[utoipa::path(
    get,
    path = "/metrics",
    summary = "The metrics of the process",
    description = "In the text format of Prometheus.",
    tag = "Operations",
    responses(
        (status = 200, description = "The metrics.", body = String, content_type = "text/plain; version=0.0.4"),
        MetricsProblems
    ),
    security((), ("token" = ["operate"]))
)]
async fn metrics_page(State(Ops { metrics, .. }): State<Ops>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render())
}
