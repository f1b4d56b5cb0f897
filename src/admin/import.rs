//! `catchall-admin import`: adds earlier counts from a file.
//!
//! The file is read twice: first to compute its digest and check that all of it can be read, then to count
//! it.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, stdin};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, anyhow, bail};
use catchall_progress::{Display, Progress};
use futures::FutureExt;
use ring::digest;
use uuid::Uuid;

use super::command::Import;
use super::history::{History, Layout, Line};
use crate::counters::Counters;
use crate::shutdown::Shutdown;
use crate::store::maintenance::{FileDigest, HistoryFile, ImportPosition, ImportStep, Maintenance};

/// Unreadable lines that are listed, at most.
const NAMED: usize = 20;

/// Lines that are checked before other tasks of the process get a turn.
const CHECKED: usize = 10_000;

/// The error when the import ends early.
const STOPPED: &str = "stopped: run the same command again to continue where it stopped";

/// Checks the file, counts what has not been counted yet, and prints what the file has.
pub(super) async fn import<S: Maintenance>(
    store: &mut S,
    command: &Import,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let signature = command.author.sign(command.reason.as_ref())?;
    let mut source = ImportSource::open(&command.file)?;
    let checked = source.check(&shutdown).await?;
    let CheckedFile { digest, layout, rows, invalid, sum: (delivered, bounced), .. } = &checked;
    for (line, reason) in &checked.named {
        eprintln!("line {line}: {reason}");
    }
    if *invalid > NAMED as u64 {
        eprintln!("and {} more", invalid - NAMED as u64);
    }
    if *invalid > 0 && !command.skip_invalid {
        bail!(
            "{invalid} lines cannot be read, and nothing was imported: fix them, or leave them out with \
             --skip-invalid"
        );
    }
    let Some(layout) = layout.filter(|_| *rows > 0) else { bail!("{} has no rows", source.name) };
    let file = HistoryFile {
        digest: *digest,
        name: source.name.clone(),
        bytes: source.bytes,
        rows: *rows,
        skipped: *invalid,
    };
    if command.sha256.is_some_and(|wanted| wanted != file.digest) {
        bail!("{} has the SHA-256 {}, not that of --sha256: nothing was imported", file.name, file.hex());
    }
    let position = store.begin_import(&file, &signature).await?;
    let before = position.is_finished;
    count(store, &mut source, layout, &file, position, &shutdown).await?;
    let left_out = if *invalid > 0 { format!("; {invalid} lines were left out") } else { String::new() };
    let word = if before { "was already imported, so nothing was added" } else { "is imported" };
    println!(
        "{} {word}: {rows} rows with {delivered} delivered and {bounced} bounced events{left_out}",
        file.name
    );
    Ok(())
}

/// Counts what has not been counted yet.
async fn count<S: Maintenance>(
    store: &mut S,
    source: &mut ImportSource,
    layout: Layout,
    file: &HistoryFile,
    mut position: ImportPosition,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let done = Cell::new(position.bytes_through);
    let progress = || Progress { done: done.get(), ..Progress::default() };
    let work = async {
        let mut history = source.history(layout, position.bytes_through)?;
        while !position.is_finished {
            if history.position() != position.bytes_through {
                // Another run of the same import has counted some rows in between.
                history = source.history(layout, position.bytes_through)?;
            }
            let step = next_step(&mut history, S::IMPORT_ROWS)?;
            if source.has_changed()? {
                return Err(changed(file, position.bytes_through));
            }
            position = store.import(file, step).await?;
            done.set(position.bytes_through);
            if !position.is_finished && shutdown.clone().now_or_never().is_some() {
                bail!(STOPPED);
            }
        }
        anyhow::Ok(())
    };
    Display::detect().follow("importing", "bytes", file.bytes, progress, work).await
}

/// The error for a file that changed before anything was counted.
fn unusable(name: &str) -> anyhow::Error {
    anyhow!(
        "{name} has changed while it was read, and nothing was imported: import a file that does not change"
    )
}

/// The error for a file that changed while it was counted, with advice. The changed file has another digest,
/// under which the rows that are already counted would count again.
fn changed(file: &HistoryFile, through: u64) -> anyhow::Error {
    let HistoryFile { name, bytes, .. } = file;
    if through == 0 {
        return unusable(name);
    }
    let digest = file.hex();
    anyhow!(
        "{name} changed during the import: of its original {bytes} bytes, with the SHA-256 {digest}, the first \
         {through} are already counted. Do not import the changed file: its rows would count twice. Only the \
         original content can be continued. If lines were only added at the end, continue with \
         `head -c {bytes} FILE | catchall-admin import --sha256 {digest} -`"
    )
}

fn next_step(history: &mut History<File>, most: usize) -> anyhow::Result<ImportStep> {
    let (from, mut rows) = (history.position(), Vec::new());
    while rows.len() < most {
        match history.next()? {
            Some(Line::Row(domain, counters)) => rows.push((domain, counters)),
            Some(Line::Invalid(..)) => {}
            None => break,
        }
    }
    let (to, count) = (history.position(), rows.len() as u64);
    // A domain without events is the same as one that was never seen.
    let rows = rows.into_iter().filter(|(_, counters)| *counters != Counters::default());
    Ok(ImportStep { from, to, rows: count, tally: rows.collect() })
}

/// What the first reading found.
struct CheckedFile {
    digest: FileDigest,
    layout: Option<Layout>,
    rows: u64,
    invalid: u64,
    named: Vec<(u64, String)>,
    /// Delivered and bounced events.
    sum: (u128, u128),
}

/// A file that can be read twice.
struct ImportSource {
    /// Its name.
    name: String,
    file: File,
    bytes: u64,
    modified: Option<SystemTime>,
}

impl ImportSource {
    fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            let file = spool().context("cannot keep standard input in a temporary file")?;
            return Self::of(file, "standard input".into()).context("cannot read the temporary file");
        }
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let cannot = || format!("cannot read {}", path.display());
        let file = File::open(path).with_context(cannot)?;
        if !file.metadata().with_context(cannot)?.is_file() {
            bail!("{} is not a file: give - to read standard input", path.display());
        }
        Self::of(file, name).with_context(cannot)
    }

    fn of(file: File, name: String) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { name, bytes: metadata.len(), modified: metadata.modified().ok(), file })
    }

    /// Reads and checks the whole file.
    async fn check(&mut self, shutdown: &Shutdown) -> anyhow::Result<CheckedFile> {
        let mut input = self.file.try_clone()?;
        input.seek(SeekFrom::Start(0))?;
        let mut history =
            History::new(Hashed { inner: input, digest: digest::Context::new(&digest::SHA256) });
        let done = Cell::new(0);
        let progress = || Progress { done: done.get(), ..Progress::default() };
        let work = async {
            let mut found = CheckedFile {
                digest: [0; 32],
                layout: None,
                rows: 0,
                invalid: 0,
                named: Vec::new(),
                sum: (0, 0),
            };
            while !found.read(&mut history)? {
                done.set(history.position());
                tokio::task::yield_now().await;
                if shutdown.clone().now_or_never().is_some() {
                    bail!("stopped before all lines were checked: nothing was imported");
                }
            }
            anyhow::Ok(found)
        };
        let mut found = Display::detect().follow("checking", "bytes", self.bytes, progress, work).await?;
        found.layout = history.layout();
        found.digest = history.into_inner().digest();
        if self.has_changed()? {
            return Err(unusable(&self.name));
        }
        Ok(found)
    }

    /// The lines after a position.
    fn history(&self, layout: Layout, position: u64) -> anyhow::Result<History<File>> {
        let mut input = self.file.try_clone()?;
        if position == 0 {
            input.seek(SeekFrom::Start(0))?;
            // The header line is found again.
            return Ok(History::new(input));
        }
        input.seek(SeekFrom::Start(position))?;
        Ok(History::at(input, layout, position))
    }

    /// Whether the content may differ from what was checked.
    fn has_changed(&self) -> io::Result<bool> {
        let now = self.file.metadata()?;
        Ok(now.len() != self.bytes || now.modified().ok() != self.modified)
    }
}

impl CheckedFile {
    /// Reads some more lines. Returns whether they were the last ones.
    fn read<R: Read>(&mut self, history: &mut History<R>) -> anyhow::Result<bool> {
        for _ in 0..CHECKED {
            match history.next()? {
                Some(Line::Row(_, Counters { delivered, bounced })) => {
                    self.rows += 1;
                    self.sum.0 += u128::from(delivered);
                    self.sum.1 += u128::from(bounced);
                }
                Some(Line::Invalid(line, reason)) => {
                    self.invalid += 1;
                    if self.named.len() < NAMED {
                        self.named.push((line, reason));
                    }
                }
                None => return Ok(true),
            }
        }
        Ok(false)
    }
}

/// A file whose digest is computed while it is read.
struct Hashed {
    inner: File,
    digest: digest::Context,
}

impl Hashed {
    fn digest(self) -> FileDigest {
        let digest = self.digest.finish();
        digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.digest.update(&buffer[..read]);
        Ok(read)
    }
}

/// Keeps standard input in a file without a name, which disappears when this process ends.
fn spool() -> io::Result<File> {
    let path = std::env::temp_dir().join(format!("catchall-import-{}", Uuid::now_v7()));
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    io::copy(&mut stdin().lock(), &mut file)?;
    Ok(file)
}
