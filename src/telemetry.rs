//! Logs and figures.

use std::io::IsTerminal;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// How the process speaks.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Config {
    /// What is logged: a level (error, warn, info, debug, trace) or a filter as of tracing-subscriber
    #[arg(long, env = "CATCHALL_LOG", value_name = "FILTER", default_value = "info,lapin=off,sqlx=error", value_parser = filter)]
    pub log: String,

    /// How it is logged: text for people, json for machines
    #[arg(long, env = "CATCHALL_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Format {
    /// A line for people.
    Text,
    /// One JSON object a line.
    Json,
}

fn filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Begins to log to standard error and to record figures, once per process.
///
/// # Errors
///
/// When it was begun before, or the filter cannot be read.
pub fn start(config: &Config) -> anyhow::Result<PrometheusHandle> {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&config.log)?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match config.log_format {
        Format::Text => subscriber.try_init(),
        Format::Json => subscriber.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))?;
    Ok(PrometheusBuilder::new().install_recorder()?)
}
