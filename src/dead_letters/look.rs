//! Looking through the queue, without removing anything.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

use anyhow::{Context, bail};
use catchall_progress::{Display, Progress};
use uuid::Uuid;

use super::selection::Prefix;
use crate::broker::{DeadLetter, DeadLetterQueue};
use crate::shutdown::Shutdown;

/// Prints matching dead letters as they are found, at most `most`, and returns how many were printed.
pub(super) async fn print(
    mut letters: DeadLetterQueue,
    shutdown: Shutdown,
    matches: impl Fn(&DeadLetter) -> bool,
    most: u64,
    write: impl Fn(&DeadLetter, &mut io::StdoutLock<'_>) -> io::Result<()>,
) -> anyhow::Result<u64> {
    let (seen, printed) = (Cell::new(0), Cell::new(0));
    let total = letters.count();
    let work = async {
        while printed.get() < most
            && let Some(letter) = next(&mut letters, &shutdown).await?
        {
            seen.set(seen.get() + 1);
            if matches(&letter) {
                match write(&letter, &mut io::stdout().lock()) {
                    Ok(()) => printed.set(printed.get() + 1),
                    // The reader has seen enough, as `head` does.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
                    Err(error) => return Err(error).context("cannot print"),
                }
            }
        }
        Ok(())
    };
    let progress = || Progress { done: seen.get(), ..Progress::default() };
    // A progress bar would be drawn across the printed lines.
    let looked = Display::Lines.follow("looking", "letters", total, progress, work).await;
    // Also after an error: otherwise the next run would miss dead letters that the broker has not taken back
    // yet.
    give_back(letters).await?;
    looked?;
    Ok(printed.get())
}

/// Completes references. If one of them matches different dead letters, nothing is done. A reference that
/// matches none stays as it is.
pub(super) async fn resolve(
    prefixes: &BTreeSet<Prefix>,
    mut letters: DeadLetterQueue,
    shutdown: &Shutdown,
) -> anyhow::Result<BTreeSet<Prefix>> {
    let mut found: BTreeMap<&Prefix, Uuid> = BTreeMap::new();
    let seen = Cell::new(0);
    let total = letters.count();
    let work = async {
        while let Some(letter) = next(&mut letters, shutdown).await? {
            seen.set(seen.get() + 1);
            let reference = letter.reference();
            for prefix in prefixes.iter().filter(|prefix| prefix.is_of(reference)) {
                let first = *found.entry(prefix).or_insert(reference);
                if first != reference {
                    let (first, second) = (first.simple(), reference.simple());
                    bail!("{prefix} is the beginning of {first} and of {second}: nothing was done");
                }
            }
        }
        Ok(())
    };
    let progress = || Progress { done: seen.get(), ..Progress::default() };
    let resolved = Display::detect().follow("looking", "letters", total, progress, work).await;
    give_back(letters).await?;
    resolved?;
    let whole =
        |prefix| found.get(prefix).map_or_else(|| Prefix::clone(prefix), |found| Prefix::from(*found));
    Ok(prefixes.iter().map(whole).collect())
}

/// Gives back what was only looked at, and says what the next run may miss.
async fn give_back(letters: DeadLetterQueue) -> anyhow::Result<()> {
    if let Some(sentence) = not_back(letters.close().await?) {
        eprintln!("{sentence}");
    }
    Ok(())
}

/// A sentence about dead letters that are not back in the queue, if there are any.
pub(super) fn not_back(count: u64) -> Option<String> {
    let why = "it is slow, or somebody else is looking at them";
    (count > 0).then(|| format!("the broker has not put {count} of the dead letters back yet: {why}"))
}

/// The next dead letter. Fails on the shutdown.
pub(super) async fn next(
    letters: &mut DeadLetterQueue,
    shutdown: &Shutdown,
) -> anyhow::Result<Option<DeadLetter>> {
    tokio::select! {
        biased;
        () = shutdown.clone() => bail!("interrupted"),
        letter = letters.next() => Ok(letter?),
    }
}
