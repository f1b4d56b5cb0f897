//! The faults: what each breaks, which services depend on it, and what clients may notice.

mod alarms;
mod clients;
mod database;
mod kills;
mod dead_letters;
mod lifted;
mod messages;
mod replication;
mod restarts;
mod sessions;
mod silence;
mod standalone;
mod strangers;
mod unreadable;
mod wires;

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use harness::proxy::Wire;

use crate::rng::Rng;
use crate::subject::{Form, Subject};

use lifted::Lifted;

/// How long the system may take to recover from a fault. The table shows how long it took; this limit only
/// detects a system that is stuck, and allows for a busy machine.
pub(crate) const RECOVERY_TIMEOUT: Duration = Duration::from_secs(90);

/// All faults, in the order in which they are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// ingest is killed and started again
    KillIngest,
    /// one of two workers is killed and started again
    KillOneWorker,
    /// the only worker is killed and started again
    KillEveryWorker,
    /// query is killed and started again
    KillQuery,
    /// the broker is killed and started again
    KillBroker,
    /// the Postgres primary is killed and started again
    KillPrimary,
    /// the Postgres replica is killed and started again
    KillReplica,
    /// one of two workers is stopped for longer than its heartbeats, then continues
    StallOneWorker,
    /// the broker closes every connection
    CloseConnections,
    /// the primary ends every session of the workers
    EndSessions,
    /// the connections of ingest and the workers to the broker are cut
    BrokerWireCut,
    /// the connections to the broker are delayed by 300 ms in each direction
    BrokerWireSlow,
    /// the connections to the broker are cut in the middle of a frame
    BrokerWireBreaks,
    /// the connections to the broker stay open and forward nothing
    BrokerWireSilent,
    /// the broker's confirms are one second late
    #[value(name = "late-confirms-1s")]
    LateConfirms1,
    /// the broker's confirms are three seconds late; ingest waits for five
    #[value(name = "late-confirms-3s")]
    LateConfirms3,
    /// the broker's confirms are four and a half seconds late; ingest waits for five
    #[value(name = "late-confirms-4.5s")]
    LateConfirms4,
    /// the connections of the workers to the primary are cut
    DatabaseWireCut,
    /// the connections to the primary are delayed by 300 ms in each direction
    DatabaseWireSlow,
    /// the connections to the primary are cut in the middle of a message
    DatabaseWireBreaks,
    /// the connections to the primary stay open and forward nothing
    DatabaseWireSilent,
    /// the broker is short of memory and blocks publishers
    MemoryAlarm,
    /// the broker is short of disk and blocks publishers
    DiskAlarm,
    /// the queue is at its length limit while no worker runs
    FullQueue,
    /// a thousand HTTP/1.1 connections whose bodies trickle in or whose answers nobody reads
    SlowConnections,
    /// a thousand HTTP/2 streams whose bodies trickle in or whose answers nobody reads
    SlowStreams,
    /// ten thousand HTTP/2 streams that announce packed bodies and send one byte of them, or nothing
    SilentStreams,
    /// a thousand slow heads, and floods of requests that are malformed, too large, half open or without a
    /// token
    Strangers,
    /// small requests whose error messages would repeat ten megabytes, and messages of the same kind
    Amplification,
    /// one message a second that no client library can parse, among a thousand good ones
    UnparsableMessages,
    /// messages with headers nested so deeply that a parser may overflow its stack
    DeepHeaders,
    /// the primary is slow, and the statement timeout is one second
    StatementTimeout,
    /// the primary does not wait for its disk: a crash may undo what it has committed
    UnsafeCommits,
    /// the clock of the primary was three days ahead and is set back
    ClockStepsBack,
    /// claims are pruned after seconds, while the same events come again and again
    ShortRetention,
    /// dead letters are replayed by a tool that is killed and run again
    ReplayDeadLetters,
    /// every message is delivered several times, to two workers at once
    DeliverTwice,
    /// two workers write the same thousand domains in opposite orders
    OppositeOrders,
    /// the replica pauses its replay
    PauseReplay,
    /// ingest is replaced by a new process on the same port
    ReplaceIngest,
    /// both workers are replaced by new processes, one after the other
    ReplaceWorkers,
    /// query is replaced by a new process on the same port
    ReplaceQuery,
    /// the primary is killed for good, and its synchronous replica takes its place
    FailOver,
    /// the standalone is killed again and again, and started again on its data
    StandaloneKilled,
    /// the standalone is stopped for seconds, then continues
    StandaloneStopped,
    /// the file system of the standalone is full, until there is room again
    StandaloneDiskFull,
    /// other processes are started on the data file of the standalone
    StandaloneSecondProcess,
    /// a backup that is stopped in the middle holds the WAL of the standalone
    StandaloneHeldWal,
    /// clients go over from the standalone to a cluster, and the move of its data is killed again and again
    StandaloneMoveKilled,
}

/// What clients may notice of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visible {
    /// Nothing: every request is answered as usual.
    Nothing,
    /// At most one request in a hundred is answered with 503.
    Few,
    /// Many requests are answered with 503, but almost all of these say that nothing was counted.
    Uncounted,
    /// Some requests may be answered with 503.
    Refusals,
    /// Some requests must be answered with 503: the fault lasts longer than the deadline.
    CertainRefusals,
    /// Some requests must be answered with 503, and all of these must say that nothing was counted.
    CertainlyUncounted,
    /// Some requests are not answered, because no process listens.
    Silence,
}

impl Fault {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    pub(crate) fn what(self) -> String {
        let value = self.to_possible_value();
        value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
    }

    /// The services whose `/readyz` must turn red and then green again.
    pub(crate) fn reddens(self) -> &'static [&'static str] {
        match self {
            Self::KillBroker | Self::BrokerWireCut | Self::BrokerWireBreaks | Self::BrokerWireSilent => {
                &["ingest", "worker"]
            }
            Self::KillPrimary
            | Self::EndSessions
            | Self::DatabaseWireCut
            | Self::DatabaseWireBreaks
            | Self::DatabaseWireSilent
            | Self::UnsafeCommits
            | Self::FailOver => &["worker"],
            Self::MemoryAlarm | Self::DiskAlarm => &["ingest"],
            Self::KillReplica => &["query"],
            Self::StandaloneDiskFull => &["standalone"],
            _ => &[],
        }
    }

    /// What clients that send events may notice.
    pub(crate) fn visible_to_senders(self) -> Visible {
        match self {
            Self::KillIngest | Self::StandaloneKilled => Visible::Silence,
            Self::StandaloneDiskFull => Visible::CertainlyUncounted,
            Self::LateConfirms1 | Self::LateConfirms3 => Visible::Few,
            Self::LateConfirms4 => Visible::Uncounted,
            // A debug build decompresses so slowly that the threads of ingest have little time for other
            // requests. What was waiting when the standalone was stopped may be too late when it continues.
            Self::Amplification | Self::StandaloneStopped => Visible::Refusals,
            Self::MemoryAlarm | Self::DiskAlarm | Self::FullQueue => Visible::CertainRefusals,
            Self::KillBroker | Self::BrokerWireCut | Self::BrokerWireBreaks | Self::BrokerWireSilent => {
                Visible::Refusals
            }
            _ => Visible::Nothing,
        }
    }

    /// What clients that read domains may notice.
    pub(crate) fn visible_to_readers(self) -> Visible {
        match self {
            Self::KillQuery | Self::StandaloneKilled => Visible::Silence,
            Self::KillReplica | Self::StandaloneStopped => Visible::Refusals,
            _ => Visible::Nothing,
        }
    }

    /// Whether it is a routine operation, during which no client may need to retry.
    pub(crate) fn is_routine(self) -> bool {
        matches!(
            self,
            Self::ReplaceIngest | Self::ReplaceWorkers | Self::ReplaceQuery | Self::StandaloneSecondProcess
        )
    }

    /// Why the recovery takes longer than ten seconds, if it does.
    pub(crate) fn takes_time(self) -> Option<&'static str> {
        match self {
            Self::BrokerWireSilent => Some("an attempt to connect that nobody answers ends after 10 s"),
            Self::DatabaseWireSilent => {
                Some("a silent primary is given up after 9 s here, by default after 90 s")
            }
            _ => None,
        }
    }

    /// Which form of the system it breaks.
    pub(crate) fn form(self) -> Form {
        match self {
            Self::StandaloneKilled
            | Self::StandaloneStopped
            | Self::StandaloneSecondProcess
            | Self::StandaloneHeldWal => Form::Standalone,
            Self::StandaloneDiskFull => Form::StandaloneOnSmallDisk,
            Self::StandaloneMoveKilled => Form::StandaloneBeforeMove,
            _ => Form::Cluster,
        }
    }

    /// Whether the next round needs a new system.
    pub(crate) fn uses_up_the_system(self) -> bool {
        // The clock and the retention change times and claims in the database.
        let fault = matches!(self, Self::FailOver | Self::ClockStepsBack | Self::ShortRetention);
        fault || self == Self::StandaloneMoveKilled
    }

    /// Breaks something, waits, and repairs it.
    pub(crate) async fn inflict(self, subject: &mut Subject, rng: &mut Rng, label: &str) -> Result<Lifted> {
        let slow = Wire::Slow(Duration::from_millis(300));
        match self {
            Self::KillIngest => kills::ingest(subject.cluster()?, rng).await,
            Self::KillOneWorker => kills::one_worker(subject.cluster()?, rng).await,
            Self::KillEveryWorker => kills::every_worker(subject.cluster()?, rng).await,
            Self::KillQuery => kills::query(subject.cluster()?, rng).await,
            Self::KillBroker => kills::server("rabbitmq", rng).await,
            Self::KillPrimary => kills::server("primary", rng).await,
            Self::KillReplica => kills::server("replica", rng).await,
            Self::StallOneWorker => sessions::stall(subject.cluster()?, rng).await,
            Self::CloseConnections => sessions::close_connections(subject.cluster()?).await,
            Self::EndSessions => sessions::end_sessions(subject.cluster()?).await,
            Self::BrokerWireCut => wires::be(&subject.cluster()?.broker_wire, Wire::Cut, rng).await,
            Self::BrokerWireSlow => wires::be(&subject.cluster()?.broker_wire, slow, rng).await,
            Self::BrokerWireBreaks => wires::breaks(&subject.cluster()?.broker_wire, rng).await,
            Self::BrokerWireSilent => wires::be(&subject.cluster()?.broker_wire, Wire::Silent, rng).await,
            Self::LateConfirms1 => wires::late(subject.cluster()?, Duration::from_secs(1)).await,
            Self::LateConfirms3 => wires::late(subject.cluster()?, Duration::from_secs(3)).await,
            Self::LateConfirms4 => wires::late(subject.cluster()?, Duration::from_millis(4500)).await,
            Self::DatabaseWireCut => wires::be(&subject.cluster()?.database_wire, Wire::Cut, rng).await,
            Self::DatabaseWireSlow => wires::be(&subject.cluster()?.database_wire, slow, rng).await,
            Self::DatabaseWireBreaks => wires::breaks(&subject.cluster()?.database_wire, rng).await,
            Self::DatabaseWireSilent => wires::be(&subject.cluster()?.database_wire, Wire::Silent, rng).await,
            Self::MemoryAlarm => alarms::memory(rng).await,
            Self::DiskAlarm => alarms::disk(rng).await,
            Self::FullQueue => alarms::full_queue(subject.cluster()?, rng).await,
            Self::SlowConnections => clients::slow_connections(subject.cluster()?, label).await,
            Self::SlowStreams => clients::slow_streams(subject.cluster()?, label).await,
            Self::SilentStreams => silence::streams(subject.cluster()?, label).await,
            Self::Strangers => strangers::attack(subject.cluster()?, label).await,
            Self::Amplification => unreadable::amplification(subject.cluster()?, label).await,
            Self::UnparsableMessages => unreadable::unparsable(subject.cluster()?, label).await,
            Self::DeepHeaders => unreadable::deep_headers(subject.cluster()?, label).await,
            Self::StatementTimeout => database::statement_timeout(subject.cluster()?, label).await,
            Self::UnsafeCommits => database::unsafe_commits(subject.cluster()?, label).await,
            Self::ClockStepsBack => database::clock_steps_back(subject.cluster()?, label).await,
            Self::ShortRetention => database::short_retention(subject.cluster()?, label).await,
            Self::ReplayDeadLetters => dead_letters::replay(subject.cluster()?, rng, label).await,
            Self::DeliverTwice => messages::deliver_twice(subject.cluster()?, label).await,
            Self::OppositeOrders => messages::opposite_orders(subject.cluster()?, label).await,
            Self::PauseReplay => replication::pause_replay(subject.cluster()?, rng).await,
            Self::ReplaceIngest => restarts::ingest(subject.cluster()?, rng).await,
            Self::ReplaceWorkers => restarts::workers(subject.cluster()?, rng).await,
            Self::ReplaceQuery => restarts::query(subject.cluster()?, rng).await,
            Self::FailOver => replication::fail_over(subject.cluster()?, rng).await,
            Self::StandaloneKilled => standalone::killed(subject.standalone()?, rng).await,
            Self::StandaloneStopped => standalone::stopped(subject.standalone()?, rng).await,
            Self::StandaloneDiskFull => standalone::disk_full(subject.standalone()?, rng).await,
            Self::StandaloneSecondProcess => standalone::second_process(subject.standalone()?, rng).await,
            Self::StandaloneHeldWal => standalone::held_wal(subject.standalone()?, label).await,
            Self::StandaloneMoveKilled => standalone::move_killed(subject.standalone()?, rng).await,
        }
    }
}
