//! The data file: counters and claims in one SQLite database, for a system of one process.
//!
//! One connection writes everything that waits in one transaction at a time; others read. A lock beside the
//! file ensures that one process serves it at a time. An operator's tool may write between its transactions.

mod data_error;
mod mount;
mod lock;
mod schema;
mod data_file;
mod claims;
mod statuses;
mod totals;
mod count;
mod apply;
mod prune;
mod checkpoint;
mod writer;
mod reader;
mod audit;
mod export;
mod reset;
mod reclassify;
mod import;
mod file_admin;
mod walker;
mod file_store;
mod check;
mod backup;

pub use backup::back_up;
pub use check::{Checked, check};
pub use data_error::DataError;
pub use data_file::DataConfig;
pub(super) use export::{FileExport, Imported, MoveState, Noted};
pub use file_admin::FileAdmin;
pub use file_store::FileStore;
pub use reader::Reader;
pub use writer::Writer;
