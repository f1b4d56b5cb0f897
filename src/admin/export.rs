//! `catchall-admin export`: all domains as rows.

use std::cell::Cell;
use std::error::Error;
use std::io::{BufWriter, IsTerminal, Write, stderr, stdout};

use anyhow::{Context, bail};
use catchall_progress::{Display, Progress};
use futures::FutureExt;

use super::command::{DataLocation, Export};
use super::output::Output;
use crate::counters::Status;
use crate::process::ExitError;
use crate::row_format::RowFormat;
use crate::shutdown::Shutdown;
use crate::store::replica::{Replica, ReplicaConfig};
use crate::store::sqlite::{DataError, Reader};
use crate::store::{DomainSource, PageRequest, Unreadable};
use crate::totals::DomainTotals;

/// Domains that are read at a time.
const PAGE: u32 = 5_000;

/// Writes the domains of a location.
pub(super) async fn export(command: &Export, place: DataLocation, shutdown: Shutdown) -> anyhow::Result<()> {
    match place {
        DataLocation::Ledger(url) => {
            let replica = Replica::new(&ReplicaConfig { replica_url: *url }, 1);
            replica.check().await?;
            export_from(&replica, command, shutdown).await
        }
        DataLocation::File(data) => {
            let reader = Reader::open(&data).await.map_err(ExitError::from)?;
            export_from(&reader, command, shutdown).await
        }
    }
}

async fn export_from<S: DomainSource>(
    source: &S,
    command: &Export,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let Export { file, status, format, .. } = command;
    let DomainTotals { catch_all, not_catch_all, unknown } = source.totals(1).await.map_err(ended)?.domains;
    let total = match status {
        None => catch_all + not_catch_all + unknown,
        Some(Status::CatchAll) => catch_all,
        Some(Status::NotCatchAll) => not_catch_all,
        Some(Status::Unknown) => unknown,
    };
    let done = Cell::new(0);
    let rows = Rows { source, status: *status, format: (*format).into(), done: &done, shutdown };
    let Some(file) = file else {
        // Rows and a progress bar on the same terminal would get in each other's way.
        let mut out = BufWriter::new(stdout().lock());
        return shown(!stdout().is_terminal(), total, &done, rows.write(&mut out)).await;
    };
    let cannot = || format!("cannot write {}", file.display());
    let mut out = Output::open(file).with_context(cannot)?;
    let is_replaced = out.is_replaced();
    shown(is_replaced, total, &done, rows.write(&mut out)).await?;
    out.finish().with_context(cannot)?;
    if is_replaced {
        // For a pipe or device such as /dev/stdout, this line could end up after the rows.
        println!("{} has {} domains", file.display(), done.get());
    }
    Ok(())
}

/// Does the work, and shows its progress if standard error is a terminal.
async fn shown(
    may_show: bool,
    total: u64,
    done: &Cell<u64>,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    if !may_show || !stderr().is_terminal() {
        return work.await;
    }
    let progress = || Progress { done: done.get(), ..Progress::default() };
    Display::Terminal.follow("exporting", "domains", total, progress, work).await
}

/// The rows to write.
struct Rows<'a, S> {
    source: &'a S,
    status: Option<Status>,
    format: RowFormat,
    /// How many rows have been written.
    done: &'a Cell<u64>,
    shutdown: Shutdown,
}

impl<S: DomainSource> Rows<'_, S> {
    async fn write(&self, out: &mut impl Write) -> anyhow::Result<()> {
        let mut request =
            PageRequest { status: self.status, prefix: String::new(), after: None, limit: PAGE };
        let mut rows = self.format.head().as_bytes().to_vec();
        loop {
            let page = self.source.list(request.clone()).await.map_err(ended)?;
            page.domains.iter().for_each(|report| self.format.write(&mut rows, report));
            out.write_all(&rows).context("cannot write")?;
            rows.clear();
            self.done.set(self.done.get() + page.domains.len() as u64);
            let Some(next) = page.next else { return out.flush().context("cannot write") };
            request.after = Some(next);
            if self.shutdown.clone().now_or_never().is_some() {
                bail!("stopped before all domains were written");
            }
        }
    }
}

/// Gives a fault of the data file its exit status, also if the fault is found while reading.
fn ended(error: Unreadable) -> anyhow::Error {
    let file = error.source().and_then(|cause| cause.source()?.downcast_ref::<DataError>());
    match file.map(DataError::exit_status) {
        Some(status) => ExitError::of(status, error).into(),
        None => error.into(),
    }
}
