//! The operator's tool for access tokens: makes them. Only their digests are kept.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use ring::rand::{SecureRandom, SystemRandom};
use time::OffsetDateTime;

use crate::grant::{Expiry, Grant, Scopes, TokenName, grants};
use crate::process::{self, Process};
use crate::token::{SECRET_LEN, Token};

/// A service may run as another user and must read the file. Nothing in it is secret: a token cannot be found
/// from its digest.
const FILE_MODE: u32 = 0o644;

/// The command to run.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct TokenConfig {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Make a token, print it, and add it to a file
    ///
    /// The token is printed once, on standard output; it cannot be recovered from the file. Services that use
    /// the file accept it within 5 s. To revoke a token, remove its line.
    New(NewConfig),
}

/// The options of a new token.
#[derive(Clone, Debug, Args)]
#[group(skip)]
struct NewConfig {
    /// Name of the holder, made of letters, digits and . - _ @
    #[arg(long)]
    name: TokenName,

    /// What the token allows, separated by commas: write (send events), read (ask about domains), operate
    /// (metrics, and why a service is not ready)
    #[arg(long, value_name = "SCOPES")]
    scope: Scopes,

    /// When the token expires: after a time (90d, 12h), at a date or time (2027-01-31, 2027-01-31T12:00:00Z),
    /// or never
    #[arg(long, value_name = "WHEN", default_value = "never", value_parser = expiry)]
    expires: Expiry,

    /// File to add its line to, created if it does not exist. Without it, the line is printed on standard
    /// error
    #[arg(long)]
    file: Option<PathBuf>,
}

fn expiry(text: &str) -> Result<Expiry, String> {
    Expiry::from_argument(text, OffsetDateTime::now_utc())
}

/// The program: see [`process::main`].
#[must_use]
pub fn main() -> ExitCode {
    process::main("catchall-token", "Makes the tokens that let clients in", run)
}

/// Runs the command.
///
/// # Errors
///
/// When there is no randomness, or the file cannot be read or written; then no token was made.
pub async fn run(config: TokenConfig, _: Process) -> anyhow::Result<()> {
    let Command::New(NewConfig { name, scope, expires, file }) = config.command;
    let token = random()?;
    let grant = Grant { name, scopes: scope, digest: token.digest(), expiry: expires };
    match &file {
        Some(file) => add(&grant, file).with_context(|| format!("cannot add to {}", file.display()))?,
        None => eprintln!("{grant}"),
    }
    // Last, so that a printed token is always valid.
    writeln!(io::stdout(), "{}", token.expose()).context("cannot print the token")
}

fn random() -> anyhow::Result<Token> {
    let mut digits = Vec::with_capacity(SECRET_LEN);
    while digits.len() < SECRET_LEN {
        let mut bytes = [0; SECRET_LEN];
        SystemRandom::new().fill(&mut bytes).ok().context("the system gives no randomness")?;
        // The largest multiple of 62 that fits: beyond it, some digits would be more likely than others.
        digits.extend(bytes.into_iter().filter(|byte| *byte < 248).map(|byte| byte % 62));
    }
    let digits = digits.first_chunk().expect("there are enough digits");
    Ok(Token::from_digits(*digits))
}

/// Adds a line to a file and waits until it is on disk. A file that is not a token file is left unchanged.
fn add(grant: &Grant, path: &Path) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(FILE_MODE).open(path)?;
    file.lock()?;
    let mut text = String::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_string(&mut text)?;
    grants(&text).map_err(anyhow::Error::msg)?;
    let unfinished = !text.is_empty() && !text.ends_with('\n');
    let line = if unfinished { format!("\n{grant}\n") } else { format!("{grant}\n") };
    file.write_all(line.as_bytes())?;
    file.sync_all()?;
    sync_directory(path)
}

/// Makes the name of a new file durable.
fn sync_directory(path: &Path) -> anyhow::Result<()> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    Ok(File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?)
}
