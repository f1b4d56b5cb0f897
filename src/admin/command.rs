//! The commands and their options.

use std::path::PathBuf;
use std::process;

use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};

use crate::counters::Status;
use crate::domain_name::DomainName;
use crate::network::NetworkConfig;
use crate::row_format::RowFormat;
use crate::store::maintenance::{FileDigest, Signature};
use crate::store::postgres::PostgresUrl;
use crate::store::sqlite::DataConfig;

const AFTER_HELP: &str = "\
Examples:
  catchall-admin reset example.com --reason 'they changed their mail server'
          count example.com from zero again
  catchall-admin reclassify --threshold 500
          from now on, more than 500 delivered events make a catch-all, also among domains counted before
  catchall-admin import history.csv
          add earlier counts, from lines of domain,delivered,bounced
  catchall-admin export --status catch-all catch-alls.csv
          write all catch-alls to a file
  catchall-admin audit
          print who did what, when and why

Each command works on the Postgres primary that --database-url names, or on the data file that --data names.
Workers, or the process that serves the file, keep running meanwhile. On the primary, a command must connect
as the owner of the database, catchall; for export, any role that may read will do.

A command that was killed can be run again: it continues where it stopped, and nothing counts twice.

Exit status:
  0    done
  1    something failed or was not done
  2    the arguments are not valid
  10 to 18: something is wrong with the data file: `catchall --help` says what each of them means";

/// The command to run.
#[derive(Clone, Debug, Args)]
#[group(skip)]
#[command(after_help = AFTER_HELP)]
pub struct AdminConfig {
    #[command(subcommand)]
    pub(super) command: Command,

    #[command(flatten)]
    pub(super) network: NetworkConfig,
}

impl AdminConfig {
    /// Checks the values together. An error says what is wrong.
    pub(super) fn check(&self) -> Result<(), String> {
        const NAMES: [&str; 2] =
            ["CATCHALL_DATABASE_URL (--database-url <URL>)", "CATCHALL_DATA (--data <FILE>)"];
        let [url, data] = NAMES;
        let Target { database_url, data: file } = self.command.target();
        match (database_url, file) {
            (None, None) => Err(format!("{url} or {data} is required; see --help")),
            (Some(_), Some(_)) => Err(format!("{url} and {data} are both set: set only one of them")),
            _ => Ok(()),
        }
    }
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum Command {
    /// Remove all events of a domain: its count starts again at zero
    ///
    /// Keys stay used: a keyed event that was counted before the reset is not counted again.
    Reset(Reset),
    /// Change the threshold and reclassify all domains
    ///
    /// It goes through all domains in small steps while events are being counted, and shows its progress. If
    /// a run is stopped or killed, the next run continues it. A run with another threshold replaces it.
    /// Without a threshold, a run continues the unfinished one, or goes through all domains with the present
    /// threshold.
    Reclassify(Reclassify),
    /// Import earlier counts from a file
    ///
    /// FILE has lines of CSV or JSON (NDJSON). CSV begins with a header line that has the names domain,
    /// delivered and bounced in any order, or has these three columns and no header line. Each line of JSON
    /// is an object with these three members. Further columns and members are ignored, so the output of
    /// `export` can be imported. A file is identified by its content: it counts once, under any name and
    /// however often it is imported.
    Import(Import),
    /// Write all domains, in the order of their names
    ///
    /// Domains are read in parts. Each part shows them as they are when it is read.
    Export(Export),
    /// Print what was done by `reset`, `reclassify` and `import`, the latest first
    Audit(Audit),
}

impl Command {
    pub(super) fn target(&self) -> &Target {
        match self {
            Self::Reset(Reset { target, .. })
            | Self::Reclassify(Reclassify { target, .. })
            | Self::Import(Import { target, .. })
            | Self::Export(Export { target, .. })
            | Self::Audit(Audit { target, .. }) => target,
        }
    }
}

/// Where the domains are.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub(super) struct Target {
    /// Postgres primary: postgres://USER:PASSWORD@HOST:PORT/DATABASE. On another machine add
    /// ?sslmode=verify-full&sslrootcert=FILE
    #[arg(long, env = "CATCHALL_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    database_url: Option<PostgresUrl>,

    /// Data file of a standalone
    #[arg(long, env = "CATCHALL_DATA", value_name = "FILE")]
    data: Option<PathBuf>,
}

/// The location that a target names.
#[derive(Clone, Debug)]
pub(super) enum DataLocation {
    Ledger(Box<PostgresUrl>),
    File(DataConfig),
}

impl Target {
    /// The location that a [checked](AdminConfig::check) target names.
    pub(super) fn place(&self) -> DataLocation {
        match &self.database_url {
            Some(url) => DataLocation::Ledger(Box::new(url.clone())),
            None => DataLocation::File(DataConfig { data: self.data.clone().unwrap_or_default() }),
        }
    }
}

/// Who takes an action, for the audit log.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub(super) struct Author {
    /// Your name, for the audit log [default: the user of the operating system]
    #[arg(long, value_name = "NAME", value_parser = short_text)]
    by: Option<String>,
}

/// Longest name or reason, in bytes.
const MAX_TEXT: usize = 1000;

/// A text for people, on one line.
fn short_text(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("it is empty".into());
    }
    if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
        return Err(format!("it has to be one line of up to {MAX_TEXT} bytes"));
    }
    Ok(text.to_owned())
}

/// A SHA-256 of 64 hexadecimal digits.
fn digest(text: &str) -> Result<FileDigest, String> {
    let mut digest = FileDigest::default();
    if text.len() != 2 * digest.len() || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(format!("it has to be {} hexadecimal digits", 2 * digest.len()));
    }
    for (place, byte) in digest.iter_mut().enumerate() {
        let digits = &text[2 * place..2 * place + 2];
        *byte = u8::from_str_radix(digits, 16).map_err(|error| error.to_string())?;
    }
    Ok(digest)
}

impl Author {
    /// Signs an action, with its reason.
    pub(super) fn sign(&self, reason: Option<&String>) -> anyhow::Result<Signature> {
        let by = match &self.by {
            Some(by) => by.clone(),
            None => user()?,
        };
        Ok(Signature { by, reason: reason.cloned().unwrap_or_default() })
    }
}

/// The user of the operating system.
fn user() -> anyhow::Result<String> {
    let output = process::Command::new("id").arg("-un").output();
    let name = output.ok().filter(|output| output.status.success());
    let name = name.and_then(|output| short_text(&String::from_utf8(output.stdout).ok()?).ok());
    match name {
        Some(name) => Ok(name),
        None => bail!("cannot find out your user name: give it with --by NAME"),
    }
}

#[derive(Clone, Debug, Args)]
pub(super) struct Reset {
    /// The domain
    #[arg(value_name = "DOMAIN", value_parser = DomainName::parse)]
    pub(super) domain: DomainName,

    /// The reason, for the audit log
    #[arg(long, value_name = "TEXT", value_parser = short_text)]
    pub(super) reason: String,

    #[command(flatten)]
    pub(super) author: Author,

    #[command(flatten)]
    pub(super) target: Target,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Reclassify {
    /// Delivered events that a domain without a bounce must exceed to be a catch-all [default: the present
    /// threshold]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub(super) threshold: Option<u64>,

    /// The reason, for the audit log
    #[arg(long, value_name = "TEXT", value_parser = short_text)]
    pub(super) reason: Option<String>,

    #[command(flatten)]
    pub(super) author: Author,

    #[command(flatten)]
    pub(super) target: Target,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Import {
    /// The file, or - for standard input
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,

    /// Leave out lines that cannot be read, instead of importing nothing
    #[arg(long)]
    pub(super) skip_invalid: bool,

    /// Import nothing unless this is the SHA-256 of the file, as `sha256sum` prints it
    #[arg(long, value_name = "HEX", value_parser = digest)]
    pub(super) sha256: Option<FileDigest>,

    /// The reason, for the audit log
    #[arg(long, value_name = "TEXT", value_parser = short_text)]
    pub(super) reason: Option<String>,

    #[command(flatten)]
    pub(super) author: Author,

    #[command(flatten)]
    pub(super) target: Target,
}

/// How an export is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ExportFormat {
    /// Comma-separated values, with a header line
    Csv,
    /// A JSON object on each line
    Ndjson,
}

impl From<ExportFormat> for RowFormat {
    fn from(format: ExportFormat) -> Self {
        match format {
            ExportFormat::Csv => Self::Csv,
            ExportFormat::Ndjson => Self::Ndjson,
        }
    }
}

#[derive(Clone, Debug, Args)]
pub(super) struct Export {
    /// Output file, pipe or device. A file that exists is replaced only once the export is complete [default:
    /// standard output]
    #[arg(value_name = "FILE")]
    pub(super) file: Option<PathBuf>,

    /// Only domains with this status: catch-all, not-catch-all or unknown
    #[arg(long, value_name = "STATUS")]
    pub(super) status: Option<Status>,

    /// The format of the output
    #[arg(long, value_enum, default_value = "csv")]
    pub(super) format: ExportFormat,

    #[command(flatten)]
    pub(super) target: Target,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Audit {
    /// Print at most this many entries
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(super) limit: u32,

    /// Print a JSON object for each entry
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    pub(super) target: Target,
}
