//! Where the counts of a row are read, before and after it.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use catchall_load::counts::Counts;
use catchall_load::workload::Names;
use harness::processes;
use harness::servers::Servers;
use harness::sql;
use http_body_util::Full;
use hyper::{Request, StatusCode, header};
use serde::Deserialize;

use crate::clients::send_all;
use crate::system::{Processes, end, standalone};

/// How many domains are read at a time from the database.
const TOGETHER: usize = 10_000;

/// Connections over which domains are read from a standalone.
const CONNECTIONS: usize = 64;

/// Where the counts are.
#[derive(Clone, Debug)]
pub(crate) enum Books {
    /// In the primary with this URL.
    Database(String),
    /// In this data file, which no process uses. It may not exist yet.
    File(PathBuf),
}

impl Books {
    /// Where the counts of a row are while none of its processes runs.
    pub(crate) fn of(processes: &Processes, servers: &Servers) -> Self {
        match processes {
            Processes::Standalone(data) | Processes::Guarded(data, _) => Self::File(data.clone()),
            _ => Self::Database(servers.database_url.clone()),
        }
    }

    /// The sums of all counters.
    pub(crate) async fn sums(&self) -> anyhow::Result<Counts> {
        match self {
            Self::Database(url) => sql::sums(url).await,
            Self::File(data) if !data.exists() => Ok(Counts::default()),
            Self::File(data) => checked(data),
        }
    }

    /// The counters of each of these domains.
    pub(crate) async fn each(&self, numbers: &[u32], names: Names) -> anyhow::Result<Vec<Counts>> {
        match self {
            Self::Database(url) => {
                let mut all = Vec::with_capacity(numbers.len());
                for part in numbers.chunks(TOGETHER) {
                    let names: Vec<String> = part.iter().map(|domain| names.canonical(*domain)).collect();
                    let counted = sql::counts(url, &names).await?;
                    all.extend(names.iter().map(|name| counted.get(name).copied().unwrap_or_default()));
                }
                Ok(all)
            }
            Self::File(_) if numbers.is_empty() => Ok(Vec::new()),
            Self::File(data) => {
                // Not the process that was measured: what that had only in memory would be missing.
                let service = standalone(data).await?;
                let counts = served(&service.address(), numbers, names).await;
                end([service]).await;
                counts
            }
        }
    }
}

/// The sums that `catchall check` finds when it reads the whole file.
fn checked(data: &Path) -> anyhow::Result<Counts> {
    let path = data.to_str().context("the path of a data file is not UTF-8")?;
    let (status, found, errors) = processes::run("standalone", &["check"], &[("CATCHALL_DATA", path)]);
    ensure!(status.success(), "catchall check: {status}: {errors}");
    let before = |word: &str| {
        let words: Vec<&str> = found.split_ascii_whitespace().collect();
        let place = words.iter().rposition(|found| *found == word)?;
        words.get(place.checked_sub(1)?)?.parse::<u64>().ok()
    };
    let counts = before("delivered").zip(before("bounced"));
    let (delivered, bounced) = counts.ok_or_else(|| anyhow!("catchall check says {found:?}"))?;
    Ok(Counts { delivered, bounced })
}

/// The counters of each domain as a service answers them.
async fn served(address: &str, numbers: &[u32], names: Names) -> anyhow::Result<Vec<Counts>> {
    #[derive(Deserialize)]
    struct Served<'a> {
        domain: &'a str,
        delivered: u64,
        bounced: u64,
    }
    let mut all = vec![Counts::default(); numbers.len()];
    let requests = numbers.iter().map(|domain| {
        let request = Request::get(format!("/domains/{}", names.canonical(*domain)));
        let request = request.header(header::HOST, address).body(Full::default());
        request.expect("a domain fits into a path")
    });
    send_all(address, CONNECTIONS, requests, |answer| {
        let name = names.canonical(numbers[answer.request]);
        let served: Option<Served<'_>> = serde_json::from_slice(&answer.body).ok();
        let served = served.filter(|served| answer.status == StatusCode::OK && served.domain == name);
        let Some(Served { delivered, bounced, .. }) = served else {
            return Err(anyhow!("{name}: {} {}", answer.status, answer.body.escape_ascii()));
        };
        all[answer.request] = Counts { delivered, bounced };
        Ok(())
    })
    .await?;
    Ok(all)
}
