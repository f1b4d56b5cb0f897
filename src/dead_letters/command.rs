//! What can be asked for.

use clap::{Args, Subcommand};

use super::selection::{Prefix, Selection};
use crate::broker;
use crate::store::ledger;

const AFTER_HELP: &str = "\
Examples:
  catchall-dead list
          a line for each letter: reference, when it died, size, message_id, reason, beginning of the body
  catchall-dead list --limit 1000000 --json | jq -r .reason | sort | uniq -c
          what is wrong with them?
  catchall-dead show 3f2a9c1b04de
          all there is to know of one
  catchall-dead replay --all --reason 'content type'
          send back what can be read now that the worker is mended
  catchall-dead discard 3f2a9c1b04de 77ab03c9e1f2
          take two out for good

A reference stays the same however often it is looked at. Its beginning is enough where no other dead letter has the
same. Letters without a message_id whose bodies are equal may share one, which then means all of them.

A replayed dead letter counts once: it keeps its message_id, or gets an id that was made when it died. Only dead letters
that neither the publisher nor the worker gave an id (moved by the broker, or kept by an old worker) count at
least once: again, if a replay is killed at the wrong moment. A replay that was killed is best run again soon,
before the workers prune what they have counted. What still cannot be read comes back as a dead letter.

Of a dead letter that no client library could read whole (a routing key that is not UTF-8, headers that nest too deep)
the rest is shown and replayed. One whose body is larger than CATCHALL_MAX_MESSAGE_BYTES is not replayed.

Every command gives back what it did not take, also when it is killed. Ctrl-C ends it between two dead letters. What
somebody else is looking at at the same time is not seen.

Exit status:
  0    all is done
  1    something failed, was skipped or is not known, and the rest is done
  2    the arguments are not valid";

/// What to do.
#[derive(Clone, Debug, Args)]
#[group(skip)]
#[command(after_help = AFTER_HELP)]
pub struct Config {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Clone, Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is but one of it")]
pub(super) enum Command {
    /// Print how many dead letters wait
    Count(Count),
    /// Print a line for each dead letter, about the oldest first
    List(List),
    /// Print all there is to know of a dead letter, or of each that shares the reference
    Show(Show),
    /// Send dead letters back to be counted, and take each out once the broker has it
    ///
    /// A dead letter is skipped, and named, if it may have been counted before it died, and died before the workers
    /// began to prune what they have counted, or so little after that that a worker may have held it since, and an hour
    /// for clocks that differ: with a `message_id` if the broker moved it, or with events that have ids. How long they
    /// remember is their `CATCHALL_MESSAGE_RETENTION_SECS` and `CATCHALL_EVENT_RETENTION_SECS`, and how long they hold a
    /// message `CATCHALL_ACK_DEADLINE_SECS`, which has to be theirs.
    Replay(Replay),
    /// Take dead letters out for good
    Discard(Discard),
}

#[derive(Clone, Debug, Args)]
pub(super) struct Count {
    #[command(flatten)]
    pub(super) broker: broker::Config,

    /// Print a JSON object
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    pub(super) broker: broker::Config,

    #[command(flatten)]
    pub(super) message: broker::MessageLimit,

    /// Most dead letters to print
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(super) limit: u64,

    /// Only dead letters whose reason contains this
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,

    /// Print a JSON object for each dead letter
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    pub(super) broker: broker::Config,

    #[command(flatten)]
    pub(super) message: broker::MessageLimit,

    /// A reference as `list` prints it, or its beginning
    #[arg(value_name = "REF")]
    pub(super) reference: Prefix,

    /// Print a JSON object for each dead letter
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Replay {
    #[command(flatten)]
    pub(super) broker: broker::Config,

    #[command(flatten)]
    pub(super) message: broker::MessageLimit,

    #[command(flatten)]
    pub(super) ledger: ledger::Config,

    #[command(flatten)]
    pub(super) ack_deadline: ledger::AckDeadline,

    #[command(flatten)]
    pub(super) chosen: Chosen,

    /// Replay also dead letters that may have been counted and would not be recognised any more
    #[arg(long)]
    pub(super) even_if_counted: bool,
}

#[derive(Clone, Debug, Args)]
#[command(mut_arg("all", |all| all.requires("yes")))]
pub(super) struct Discard {
    #[command(flatten)]
    pub(super) broker: broker::Config,

    #[command(flatten)]
    pub(super) message: broker::MessageLimit,

    #[command(flatten)]
    pub(super) chosen: Chosen,

    /// With --all: yes, for good
    #[arg(long)]
    pub(super) yes: bool,
}

/// Which dead letters.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub(super) struct Chosen {
    #[command(flatten)]
    letters: References,

    /// With --all: only dead letters whose reason contains this
    #[arg(long, value_name = "TEXT", requires = "all", conflicts_with = "references")]
    reason: Option<String>,
}

#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
struct References {
    /// References as `list` prints them, or their beginnings
    #[arg(value_name = "REF")]
    references: Vec<Prefix>,

    /// All dead letters
    #[arg(long)]
    all: bool,
}

impl From<Chosen> for Selection {
    fn from(Chosen { letters: References { references, all }, reason }: Chosen) -> Self {
        if all { Self::All { reason } } else { Self::Named(references.into_iter().collect()) }
    }
}
