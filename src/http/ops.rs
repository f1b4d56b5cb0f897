//! The operations routes: `/livez`, `/readyz` and `/metrics`.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use futures::FutureExt;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Semaphore;

use super::listen::{bind, cannot_listen, listen};
use super::problem::with_problems;
use super::server;
use crate::health::Health;
use crate::shutdown::Shutdown;

/// Connections of operators and their collectors at a time: far more than there are.
const OPS_CONNECTIONS: usize = 100;

/// Where a process answers its operators.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct OpsConfig {
    /// Address and port of /livez, /readyz and /metrics; with port 0 one is chosen and logged
    #[arg(long, env = "CATCHALL_OPS_LISTEN", value_name = "ADDRESS:PORT")]
    pub ops_listen: SocketAddr,
}

impl OpsConfig {
    /// Opens the socket of the operations routes, which is never shared: that would hide one process from
    /// its operators.
    ///
    /// # Errors
    ///
    /// When the address is not this machine's or the port is taken.
    pub fn bind(&self) -> anyhow::Result<TcpListener> {
        let socket = bind(self.ops_listen, false).and_then(|socket| listen(&socket).map(|()| socket));
        socket.with_context(|| cannot_listen(self.ops_listen, "CATCHALL_OPS_LISTEN"))
    }
}

/// Serves `/livez`, `/readyz` and `/metrics` for as long as it is polled.
///
/// `/livez` says that the process runs and its main event loop turns; no fault outside the process turns it
/// red, because a restart would not mend one. `/readyz` says whether every dependency is available, and if not
/// what is wrong with it; from the shutdown on it is red, so that whoever sends clients sends no more.
///
/// # Errors
///
/// When the server fails.
pub async fn serve_ops(
    socket: TcpListener,
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
    let connections = Arc::new(Semaphore::new(OPS_CONNECTIONS));
    // It answers until the process has ended: operators want to see it stop.
    server::serve(socket, with_problems(routes), connections, never()).await.context("the HTTP server failed")
}

fn never() -> Shutdown {
    std::future::pending().boxed().shared()
}

/// What the routes tell of.
#[derive(Clone)]
struct Ops {
    health: Health,
    metrics: PrometheusHandle,
    shutdown: Shutdown,
}

async fn livez() -> &'static str {
    "alive\n"
}

async fn readyz(State(Ops { health, shutdown, .. }): State<Ops>) -> (StatusCode, String) {
    if shutdown.peek().is_some() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".into());
    }
    let ready = health.missing().is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{health}\n"))
}

async fn metrics_page(State(Ops { metrics, .. }): State<Ops>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render())
}
