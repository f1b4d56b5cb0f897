//! The ledger on the Postgres primary: every message and every keyed event counted once.

mod clock;
mod durability;
mod ack_deadline;
mod apply_request;
mod claims;
mod apply;
mod retention;

pub use ack_deadline::AckDeadline;
pub use apply::{Ledger, LedgerConfig, Primary};
pub(super) use apply::{add, check_durability};
pub use apply_request::{ApplyError, ApplyRequest, Entry};
pub use clock::Moment;
pub use retention::{ClaimKind, Horizon, Pruning, RetentionConfig, Watermark};
