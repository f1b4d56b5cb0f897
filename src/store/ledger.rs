//! The ledger on the Postgres primary: every message and every keyed event counted once.

mod clock;
mod durability;
mod ack_deadline;
mod apply_request;
mod claims;
mod statuses;
mod totals;
mod count;
mod apply;
mod retention;
mod audit;
mod reset;
mod reclassify;
mod import;
mod admin;
mod relay;

pub use ack_deadline::AckDeadline;
pub use admin::LedgerAdmin;
pub(super) use apply::check_durability;
pub use apply::{Ledger, LedgerConfig, Primary};
pub use apply_request::{ApplyError, ApplyRequest, Entry};
pub use clock::Moment;
pub(super) use count::{begin, count_old, rule};
pub use relay::{RelayTurn, Relayed};
pub use retention::{ClaimKind, Horizon, Pruning, RetentionConfig, Watermark};
