//! The maintenance of a store by operators: of the ledger on a Postgres primary, or of a data file.
//!
//! Each call is one transaction, so the caller may be killed at any moment. Work that takes many calls
//! records its progress in each of them.

use std::fmt::Write;

use crate::counters::{Counters, Status};
use crate::domain_name::DomainName;
use crate::process::ExitError;
use crate::tally::Tally;
use crate::utc_time::UtcTime;

/// Who did something, and why: for the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The name of a person or a program.
    pub by: String,
    /// The reason, in words.
    pub reason: String,
}

/// What a domain had before it was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetDomain {
    /// Its events.
    pub counters: Counters,
    /// Its recorded status.
    pub status: Status,
}

/// A run of a reclassification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Its number. A later run takes over the walk from all earlier ones.
    pub number: i64,
    /// The threshold that domains are classified by.
    pub threshold: u64,
    /// The threshold before.
    pub before: u64,
    /// Whether it continues where an earlier run stopped.
    pub is_resumed: bool,
}

/// The result of one step of a reclassification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Domains that it checked.
    pub domains: u64,
    /// Domains whose status it changed.
    pub changed: u64,
    /// Whether it was the last one.
    pub is_last: bool,
}

/// What identifies the content of a file: its SHA-256.
pub type FileDigest = [u8; 32];

/// A file of history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryFile {
    /// What identifies it.
    pub digest: FileDigest,
    /// Its name, for people.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Rows that can be counted.
    pub rows: u64,
    /// Lines that cannot be read.
    pub skipped: u64,
}

impl HistoryFile {
    /// Its digest, in hexadecimal.
    #[must_use]
    pub fn hex(&self) -> String {
        self.digest.iter().fold(String::new(), |mut digits, byte| {
            write!(digits, "{byte:02x}").expect("a string grows as it must");
            digits
        })
    }
}

/// How far a file has been imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportPosition {
    /// Everything before this byte has been counted.
    pub bytes_through: u64,
    /// Whether all of it has been counted.
    pub is_finished: bool,
    /// Whether it is new to the store.
    pub is_new: bool,
}

/// Some rows of a file.
#[derive(Clone, Debug)]
pub struct ImportStep {
    /// The byte where they begin.
    pub from: u64,
    /// The byte where they end.
    pub to: u64,
    /// How many there are.
    pub rows: u64,
    /// Their sum.
    pub tally: Tally,
}

/// An action of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// When.
    pub at: UtcTime,
    /// What: "reset", "reclassify" or "import".
    pub action: String,
    /// To what: a domain, a threshold, a file.
    pub subject: String,
    /// Who and why.
    pub signature: Signature,
    /// The numbers, as a JSON object.
    pub details: String,
}

/// An entry as both backends store it: its fields in their order.
pub(super) type AuditRow = (i64, String, String, String, String, String);

impl From<AuditRow> for AuditEntry {
    fn from((at, action, subject, by, reason, details): AuditRow) -> Self {
        Self { at: UtcTime(at), action, subject, signature: Signature { by, reason }, details }
    }
}

/// A store that operators can maintain.
///
/// Errors are sentences with the exit status of the process. After a failed step the same command can be run
/// again.
pub trait Maintenance {
    /// Rows that one step of an import may add. Other transactions may have to wait for a step.
    const IMPORT_ROWS: usize;

    /// How many domains there are.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    fn domains(&mut self) -> impl Future<Output = Result<u64, ExitError>>;

    /// Forgets all events of a domain: its count starts again at zero. `None`: it had none, and nothing was
    /// done.
    ///
    /// # Errors
    ///
    /// When it was not done.
    fn reset(
        &mut self,
        domain: &DomainName,
        signature: &Signature,
    ) -> impl Future<Output = Result<Option<ResetDomain>, ExitError>>;

    /// Sets the threshold, if one is given, and begins to walk through the domains. If a walk with that
    /// threshold has begun, this run continues it.
    ///
    /// # Errors
    ///
    /// When it was not done.
    fn begin_walk(
        &mut self,
        threshold: Option<u64>,
        signature: &Signature,
    ) -> impl Future<Output = Result<Walk, ExitError>>;

    /// Waits until no transaction counts with an earlier threshold.
    ///
    /// # Errors
    ///
    /// When it cannot be known.
    fn settle(&mut self) -> impl Future<Output = Result<(), ExitError>>;

    /// Classifies the next domains.
    ///
    /// # Errors
    ///
    /// When nothing was done, or another run has taken the walk over.
    fn walk(&mut self, walk: &Walk) -> impl Future<Output = Result<Walked, ExitError>>;

    /// Begins to import a file, or returns how far its import is.
    ///
    /// # Errors
    ///
    /// When it was not done.
    fn begin_import(
        &mut self,
        file: &HistoryFile,
        signature: &Signature,
    ) -> impl Future<Output = Result<ImportPosition, ExitError>>;

    /// Counts rows of a file, if its import has come exactly to their beginning, and returns how far it is
    /// now.
    ///
    /// # Errors
    ///
    /// When nothing was done.
    fn import(
        &mut self,
        file: &HistoryFile,
        step: ImportStep,
    ) -> impl Future<Output = Result<ImportPosition, ExitError>>;

    /// The actions of operators, the latest first.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    fn audit(&mut self, limit: u32) -> impl Future<Output = Result<Vec<AuditEntry>, ExitError>>;
}

/// The error of a run whose walk another one has taken over.
pub(super) fn taken_over() -> ExitError {
    ExitError::new(1, "another run has taken the reclassification over")
}
