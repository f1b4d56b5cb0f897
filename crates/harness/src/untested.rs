//! What this user or this machine cannot test.

use std::io::{Write, stderr};

/// Says that something is not tested, and why, also where the output of a test that passes is not shown: only
/// what the macros print is kept back.
pub fn not_tested(reason: &str) {
    let _ = writeln!(stderr(), "NOT TESTED: {reason}");
}
