//! The commands and their options.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::http;
use crate::ingest::IntakeConfig;
use crate::network::NetworkConfig;
use crate::query::{LookupConfig, SocketmapConfig};
use crate::store::EventRetention;
use crate::store::postgres::PostgresUrl;
use crate::store::sqlite::DataConfig;

const AFTER_HELP: &str = "\
Without a command, catchall serves: `catchall --listen 127.0.0.1:8090` is `catchall serve --listen ...`.
`catchall serve --help` lists the options.

Exit status:
  0    done, or stopped by SIGINT or SIGTERM
  1    something failed
  2    the arguments are not valid
  10   the directory of the data file does not exist
  11   the data file or its directory cannot be written
  12   the file belongs to another program
  13   the data file is damaged
  14   the data file comes from a newer catchall
  15   another process uses the data file
  16   the disk is full
  17   the data file is on a network file system
  18   the content of the data file has been moved";

/// The command to run.
#[derive(Clone, Debug, Args)]
#[group(skip)]
#[command(after_help = AFTER_HELP)]
pub struct StandaloneConfig {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum Command {
    /// Take events and answer queries (the default)
    Serve(ServeConfig),
    /// Read the whole data file and report whether it is sound, even while it is served
    Check(CheckConfig),
    /// Write a consistent copy of the data file, even while it is served
    ///
    /// The copy appears under its name when it is complete and on disk. An older copy of that name is
    /// replaced. To restore a copy, stop catchall, remove the data file with its -wal and -shm, and put the
    /// copy in its place.
    Backup(BackupConfig),
    /// Move the contents of the data file to a Postgres database, for the services of a cluster
    ///
    /// Stop catchall first. The move brings the database schema up to date and adds to the counters in the
    /// database. It may be killed at any moment: run it again, and it continues where it stopped. From its
    /// first step on, the file is no longer served. docs/operating.md describes how to move without refusing
    /// clients.
    Move(MoveConfig),
}

/// The options of a check.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub(super) struct CheckConfig {
    #[command(flatten)]
    pub(super) data: DataConfig,
}

/// The options of a backup.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub(super) struct BackupConfig {
    #[command(flatten)]
    pub(super) data: DataConfig,

    /// Where to write the copy
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
}

/// The options of a move.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub(super) struct MoveConfig {
    #[command(flatten)]
    pub(super) data: DataConfig,

    /// Postgres primary: postgres://USER:PASSWORD@HOST:PORT/DATABASE. Other users of this machine can read a
    /// password given as an argument; they cannot read the variable
    #[arg(long, env = "CATCHALL_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub(super) to: PostgresUrl,

    #[command(flatten)]
    pub(super) network: NetworkConfig,
}

const THRESHOLD: &str = "\
Delivered events that a domain without a bounce must exceed to be a catch-all. The file keeps it (1000 in a \
new one). If it differs from the file's, all domains are reclassified while events are counted";

/// The options of the server.
#[derive(Clone, Debug, Args)]
#[group(skip)]
#[command(mut_arg("listen", |listen| listen.required(false).default_value("127.0.0.1:8080")))]
#[command(mut_arg("ops_listen", |listen| listen.required(false).default_value("127.0.0.1:9080")))]
#[command(mut_arg("threshold", |threshold| threshold.help(THRESHOLD)))]
pub struct ServeConfig {
    #[command(flatten)]
    pub(super) data: DataConfig,

    #[command(flatten)]
    pub(super) http: http::HttpConfig,

    #[command(flatten)]
    pub(super) ops: http::OpsConfig,

    #[command(flatten)]
    pub(super) guard: http::GuardConfig,

    #[command(flatten)]
    pub(super) lookup: LookupConfig,

    #[command(flatten)]
    pub(super) socketmap: SocketmapConfig,

    #[command(flatten)]
    pub(super) intake: IntakeConfig,

    #[command(flatten)]
    pub(super) retention: EventRetention,
}
