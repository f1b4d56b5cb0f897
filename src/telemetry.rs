//! Logs and metrics.

use std::io::IsTerminal;
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::time::{MissedTickBehavior, interval};
use tracing_subscriber::EnvFilter;

/// The histograms, and the upper bounds of their buckets in seconds. They are the same in every instance and
/// release, so that metrics can be summed: a bound may be added, but none removed.
const HISTOGRAMS: [(&str, &[f64]); 3] = [
    // From the first event of a message to its confirm: a disk and a round trip or two, and at most
    // CATCHALL_PUBLISH_DEADLINE_MS, by default 5 s.
    (
        "catchall_ingest_confirm_seconds",
        &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0],
    ),
    // A transaction of up to CATCHALL_MAX_ROWS rows. Each statement takes at most
    // CATCHALL_STATEMENT_TIMEOUT_SECS, by default 60 s.
    (
        "catchall_worker_commit_seconds",
        &[0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0],
    ),
    // A lookup by primary key; one query serves many lookups.
    (
        "catchall_query_read_seconds",
        &[0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5],
    ),
];

/// How often observations are sorted into buckets. Until then the exporter keeps 16 bytes for each, even if
/// the metrics are never read; a busy process makes some thousands per second.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// What the process logs, and in which format.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct TelemetryConfig {
    /// What to log: a level (error, warn, info, debug, trace) or a tracing-subscriber filter
    // h2 warns of frames that any stranger can send by the thousand.
    #[arg(
        long,
        env = "CATCHALL_LOG",
        value_name = "FILTER",
        default_value = "info,lapin=off,sqlx=error,h2=error",
        value_parser = filter,
        global = true
    )]
    pub log: String,

    /// Format of the log: text for people, json for machines
    #[arg(long, env = "CATCHALL_LOG_FORMAT", value_name = "FORMAT", default_value = "text", global = true)]
    pub log_format: LogFormat,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// One JSON object per line.
    Json,
}

fn filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Starts logging to standard error and recording metrics. Call it once per process.
///
/// # Errors
///
/// When it was started before, or the filter is invalid.
pub fn start(config: &TelemetryConfig) -> anyhow::Result<PrometheusHandle> {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&config.log)?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match config.log_format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))?;
    Ok(recorder()?.install_recorder()?)
}

/// Sorts observations into their buckets until it is dropped.
pub async fn upkeep(metrics: PrometheusHandle) {
    let mut ticks = interval(UPKEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}

fn recorder() -> Result<PrometheusBuilder, BuildError> {
    HISTOGRAMS.into_iter().try_fold(PrometheusBuilder::new(), |builder, (name, bounds)| {
        builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), bounds)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn names(folder: &Path, found: &mut Vec<String>) {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                names(&path, found);
            } else {
                let text = fs::read_to_string(path).unwrap();
                let uses = text.split("histogram!(\"").skip(1);
                found.extend(uses.filter_map(|rest| rest.split('"').next()).map(str::to_owned));
            }
        }
    }

    #[test]
    fn every_histogram_has_its_buckets() {
        let mut used = Vec::new();
        names(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut used);
        used.retain(|name| name.starts_with("catchall_"));
        used.sort();
        used.dedup();
        let mut known = HISTOGRAMS.map(|(name, _)| name);
        known.sort_unstable();
        assert_eq!(used, known);
    }

    #[test]
    fn what_is_observed_is_counted_in_buckets() {
        let recorder = recorder().unwrap().build_recorder();
        let metrics = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            for (name, bounds) in HISTOGRAMS {
                assert!(bounds.is_sorted_by(|left, right| left < right), "{name}");
                metrics::histogram!(name).record(bounds[1]);
            }
        });
        let page = metrics.render();
        for (name, bounds) in HISTOGRAMS {
            let count = |bound: &str| format!("{name}_bucket{{le=\"{bound}\"}}");
            assert!(page.contains(&format!("{} 0\n", count(&bounds[0].to_string()))), "{page}");
            assert!(page.contains(&format!("{} 1\n", count(&bounds[1].to_string()))), "{page}");
            assert!(page.contains(&format!("{} 1\n", count("+Inf"))), "{page}");
        }
        assert!(!page.contains("quantile"), "{page}");
    }
}
