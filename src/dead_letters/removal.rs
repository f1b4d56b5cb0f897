//! Removes dead letters from the queue: replays or discards them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::mem;
use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

use super::doubts::Doubts;
use super::look::{next, not_back};
use super::print::short_reference;
use super::selection::{Prefix, Selection};
use crate::broker::{DeadLetter, DeadLetterQueue, DeadLetterTag, Message, Publisher};
use crate::shutdown::Shutdown;
use catchall_progress::{Display, HumanCount, Progress};

/// How long the broker may take to confirm a replayed message: longer than any working broker takes.
pub(super) const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// Dead letters that are published together: each batch waits once for the broker's disk.
const BATCH_DEAD_LETTERS: usize = 100;

/// Bytes after which a batch is full, however few dead letters it has: they are in memory.
const BATCH_BYTES: usize = 8 << 20;

/// How a dead letter is removed.
pub(super) enum Removal {
    /// It is published again.
    Replay {
        /// Where.
        publisher: Publisher,
        /// Which dead letters to skip.
        doubts: Doubts,
    },
    /// Nothing.
    Discard,
}

/// The result so far.
#[derive(Debug, Default)]
struct Done {
    seen: Cell<u64>,
    removed: Cell<u64>,
    skipped: Cell<u64>,
    /// Lines to print about single dead letters.
    lines: RefCell<Vec<String>>,
}

/// Removes the selected dead letters and prints the result. Fails unless all of them were removed.
pub(super) async fn remove(
    mut letters: DeadLetterQueue,
    selection: Selection,
    mut removal: Removal,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let (phase, past) = match removal {
        Removal::Replay { .. } => ("replaying", "replayed"),
        Removal::Discard => ("discarding", "discarded"),
    };
    let done = Done::default();
    let total = letters.count();
    let mut found = BTreeMap::new();
    let progress = || Progress {
        done: done.seen.get(),
        note: format!(
            ", {} {past}, {} skipped",
            HumanCount(done.removed.get()),
            HumanCount(done.skipped.get())
        ),
        lines: done.lines.take(),
    };
    let work = async {
        let ended = remove_all(&mut letters, &selection, &mut removal, &mut found, &done, shutdown).await;
        // Removals are certain only once the channel is closed.
        let closed = letters.close().await.map(|count| done.lines.borrow_mut().extend(not_back(count)));
        ended.and(closed.map_err(Into::into))
    };
    let ended = Display::detect().follow(phase, "letters", total, progress, work).await;
    let (removed, skipped) = (done.removed.get(), done.skipped.get());
    let left = total.saturating_sub(removed);
    println!("{past} {removed}, skipped {skipped}, left {left}");
    ended?;
    let mut unknown = 0;
    if let Selection::Named(references) = &selection {
        for reference in references {
            match found.get(reference) {
                None => {
                    unknown += 1;
                    eprintln!("{reference}: no dead letter has this reference");
                }
                Some(1) => {}
                Some(alike) => {
                    eprintln!("{reference}: {alike} dead letters are alike and have this reference");
                }
            }
        }
    }
    match (skipped, unknown) {
        (0, 0) => Ok(()),
        (_, 0) => bail!("skipped {skipped} of the dead letters"),
        (0, _) => bail!("{unknown} of the references match no dead letter"),
        (_, _) => bail!("skipped {skipped} of the dead letters, and {unknown} of the references match none"),
    }
}

async fn remove_all(
    letters: &mut DeadLetterQueue,
    selection: &Selection,
    removal: &mut Removal,
    found: &mut BTreeMap<Prefix, u64>,
    done: &Done,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while let Some(letter) = next(letters, shutdown).await? {
        done.seen.set(done.seen.get() + 1);
        if !selection.takes(&letter) {
            continue;
        }
        if let Selection::Named(_) = selection {
            *found.entry(Prefix::from(letter.reference())).or_default() += 1;
        }
        if let Removal::Replay { doubts, .. } = removal
            && let Some(obstacle) = unread(&letter).or_else(|| doubts.about(&letter))
        {
            done.skipped.set(done.skipped.get() + 1);
            done.lines.borrow_mut().push(format!("{} is skipped: {obstacle}", short_reference(&letter)));
            continue;
        }
        bytes += letter.body().len();
        batch.push(letter);
        if batch.len() >= BATCH_DEAD_LETTERS || bytes >= BATCH_BYTES {
            remove_batch(letters, removal, mem::take(&mut batch), done).await?;
            bytes = 0;
        }
    }
    remove_batch(letters, removal, batch, done).await
}

/// Why a dead letter cannot be replayed: its body was not read.
fn unread(letter: &DeadLetter) -> Option<String> {
    let size = letter.unread()?;
    Some(format!(
        "its body of {size} bytes was not read; CATCHALL_MAX_MESSAGE_BYTES says how large it may be"
    ))
}

async fn remove_batch(
    letters: &mut DeadLetterQueue,
    removal: &mut Removal,
    batch: Vec<DeadLetter>,
    done: &Done,
) -> anyhow::Result<()> {
    let tags: Vec<DeadLetterTag> = batch.iter().map(DeadLetter::tag).collect();
    let outcomes = match removal {
        Removal::Replay { publisher, .. } => {
            let messages: Vec<Message> = batch.into_iter().map(DeadLetter::into_original).collect();
            publisher.publish_each(messages, Instant::now() + CONFIRM_TIMEOUT).await
        }
        Removal::Discard => vec![Ok(()); tags.len()],
    };
    let mut failed = None;
    for (tag, outcome) in tags.into_iter().zip(outcomes) {
        match outcome {
            Ok(()) => {
                letters.take(tag).await?;
                done.removed.set(done.removed.get() + 1);
            }
            Err(error) => _ = failed.get_or_insert(error),
        }
    }
    // Unpublished dead letters are returned, and so are all behind them: the broker would not accept those
    // either.
    failed.map_or(Ok(()), |error| Err(error.into()))
}
