//! The operations routes: `/livez`, `/readyz` and `/metrics`.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::Context;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Extension, Router};
use futures::FutureExt;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Semaphore;

use super::access::Caller;
use super::guard::Guard;
use super::listen::{bind, cannot_listen, listen};
use super::problem::with_problems;
use super::server;
use crate::grant::Scope;
use crate::health::Health;
use crate::shutdown::Shutdown;

/// Most connections of operators and metrics collectors at a time: far more than any setup needs.
pub(super) const OPS_CONNECTIONS: u32 = 100;

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
    let routes = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_page))
        .with_state(state);
    let connections = Arc::new(Semaphore::new(OPS_CONNECTIONS as usize));
    // It answers until the process ends, so operators can watch it stop.
    server::serve(socket, guard.operations(), with_problems(routes), connections, never())
        .await
        .context("the HTTP server failed")
}

fn never() -> Shutdown {
    std::future::pending().boxed().shared()
}

/// The state that the routes report.
#[derive(Clone)]
struct Ops {
    health: Health,
    metrics: PrometheusHandle,
    shutdown: Shutdown,
}

async fn livez() -> &'static str {
    "alive\n"
}

/// The reasons name servers, and are for operators.
async fn readyz(
    State(Ops { health, shutdown, .. }): State<Ops>,
    Extension(caller): Extension<Caller>,
) -> (StatusCode, String) {
    if shutdown.peek().is_some() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".into());
    }
    let ready = health.missing().is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let reasons = if ready || caller.may(Scope::Operate) { health.to_string() } else { "not ready".into() };
    (status, reasons + "\n")
}

async fn metrics_page(State(Ops { metrics, .. }): State<Ops>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render())
}
