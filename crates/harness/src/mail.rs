//! Mail servers, as `./dev test` unpacks them from Debian's packages.

mod postfix;
mod rspamd;
mod server;

pub use postfix::{Postfix, Smtpd};
pub use rspamd::Rspamd;
