//! `catchall-admin audit`: who did what, when and why.

use std::io::{self, Write};

use anyhow::Context;
use serde_json::{Value, json};

use super::command::Audit;
use crate::store::maintenance::{AuditEntry, Maintenance};

/// Prints the latest entries.
pub(super) async fn audit<S: Maintenance>(store: &mut S, command: &Audit) -> anyhow::Result<()> {
    let mut lines = String::new();
    for entry in store.audit(command.limit).await? {
        lines += &if command.json { object(&entry) } else { line(&entry) };
        lines.push('\n');
    }
    io::stdout().write_all(lines.as_bytes()).context("cannot print")
}

fn line(entry: &AuditEntry) -> String {
    let AuditEntry { at, action, subject, signature, details } = entry;
    let reason = if signature.reason.is_empty() { "-" } else { &signature.reason };
    printable(&format!("{at}  {action}  {subject}  {}  {reason}  {details}", signature.by))
}

fn object(entry: &AuditEntry) -> String {
    let AuditEntry { at, action, subject, signature, details } = entry;
    let details: Value = serde_json::from_str(details).unwrap_or_default();
    let (by, reason) = (&signature.by, &signature.reason);
    json!({"at": at, "action": action, "subject": subject, "by": by, "reason": reason, "details": details})
        .to_string()
}

/// Replaces control characters, which would act on the terminal: the name of a file can be anything.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
