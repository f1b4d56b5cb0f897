//! The commands and their options.

use clap::{Args, Subcommand};

use super::selection::{Prefix, Selection};
use crate::broker;
use crate::network::NetworkConfig;
use crate::store::ledger;

const AFTER_HELP: &str = "\
Examples:
  catchall-dead list
          a line for each: reference, time of dead-lettering, size, message_id, reason, beginning of the body
  catchall-dead list --limit 1000000 --json | jq -r .reason | sort | uniq -c
          what is wrong with them?
  catchall-dead show 3f2a9c1b04de
          everything about one
  catchall-dead replay --all --reason 'content type'
          send back what a repaired worker can now read
  catchall-dead discard 3f2a9c1b04de 77ab03c9e1f2
          remove two for good

The reference of a dead letter never changes. A unique beginning of it is enough. Dead letters with equal
bodies and without a message_id may share a reference, which then stands for all of them.

A replayed dead letter counts once: it keeps its message_id, or gets the id it was given when it was dead-
lettered. Only dead letters without an id from the publisher or the worker (moved by the broker, or kept by
an old worker) count at least once: twice, if a replay is killed at the wrong moment. Run a killed replay
again soon, before the workers prune what they have counted. A message that still cannot be read comes back
as a dead letter.

If no client library can read all of a dead letter (a routing key that is not UTF-8, headers nested too
deep), the rest is shown and replayed. A dead letter whose body is larger than CATCHALL_MAX_MESSAGE_BYTES is
not replayed.

Every command returns what it did not remove, even if it is killed. Ctrl-C ends it between two dead
letters. While another person looks at dead letters, they are not visible.

Exit status:
  0    everything was done
  1    something failed, was skipped or is unknown; the rest was done
  2    the arguments are not valid";

/// The command to run.
#[derive(Clone, Debug, Args)]
#[group(skip)]
#[command(after_help = AFTER_HELP)]
pub struct DeadLettersConfig {
    #[command(subcommand)]
    pub(super) command: Command,

    #[command(flatten)]
    pub(super) network: NetworkConfig,
}

#[derive(Clone, Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is but one of it")]
pub(super) enum Command {
    /// Print the number of waiting dead letters
    Count(Count),
    /// Print one line per dead letter, roughly oldest first
    List(List),
    /// Print everything about a dead letter, or about all that share the reference
    Show(Show),
    /// Send dead letters back to be counted, and remove each once the broker has confirmed it
    ///
    /// A dead letter is skipped, and reported, if it may have been counted and its claim may have been
    /// pruned. It may have been counted if the broker moved it and it has a `message_id`, or if it has events
    /// with ids. Its claim may have been pruned if the message became a dead letter before the time up to
    /// which the workers have pruned, or less than the ack deadline and an hour (for clock differences) after
    /// that time. The workers keep claims for `CATCHALL_MESSAGE_RETENTION_SECS` and
    /// `CATCHALL_EVENT_RETENTION_SECS`. Set `CATCHALL_ACK_DEADLINE_SECS` to the same value here as for the
    /// workers.
    Replay(Replay),
    /// Remove dead letters for good
    Discard(Discard),
}

impl Command {
    /// The broker of any command.
    pub(super) fn broker(&self) -> &broker::BrokerConfig {
        match self {
            Self::Count(Count { broker, .. })
            | Self::List(List { broker, .. })
            | Self::Show(Show { broker, .. })
            | Self::Replay(Replay { broker, .. })
            | Self::Discard(Discard { broker, .. }) => broker,
        }
    }

    /// The variables of the URLs, and what strangers on the network path can do.
    pub(super) fn exposures(&self) -> Vec<(&'static str, Option<&'static str>)> {
        let primary = match self {
            Self::Replay(Replay { ledger, .. }) => Some(&ledger.primary),
            _ => None,
        };
        [self.broker().exposure()].into_iter().chain(primary.map(ledger::Primary::exposure)).collect()
    }
}

#[derive(Clone, Debug, Args)]
pub(super) struct Count {
    #[command(flatten)]
    pub(super) broker: broker::BrokerConfig,

    /// Print a JSON object
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    pub(super) broker: broker::BrokerConfig,

    #[command(flatten)]
    pub(super) message: broker::MessageLimit,

    /// The most dead letters to print
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
    pub(super) broker: broker::BrokerConfig,

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
    pub(super) broker: broker::BrokerConfig,

    #[command(flatten)]
    pub(super) message: broker::MessageLimit,

    #[command(flatten)]
    pub(super) ledger: ledger::LedgerConfig,

    #[command(flatten)]
    pub(super) ack_deadline: ledger::AckDeadline,

    #[command(flatten)]
    pub(super) chosen: Chosen,

    /// Also replay dead letters that would be skipped: if they were counted before, they count twice
    #[arg(long)]
    pub(super) even_if_counted: bool,
}

#[derive(Clone, Debug, Args)]
#[command(mut_arg("all", |all| all.requires("yes")))]
pub(super) struct Discard {
    #[command(flatten)]
    pub(super) broker: broker::BrokerConfig,

    #[command(flatten)]
    pub(super) message: broker::MessageLimit,

    #[command(flatten)]
    pub(super) chosen: Chosen,

    /// Confirm --all: the dead letters are removed for good
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
