//! The one process with one file: what it survives, and what it says when something is wrong.

mod crashes;
mod failing;
mod moving;
mod space;
mod trouble;

use std::path::Path;

use harness::processes::Service;
use harness::servers::Servers;

/// Starts the process on this data file, with these settings more.
async fn start(data: &Path, more: &[(&str, &str)]) -> Service {
    let variables = [more, &[("CATCHALL_DATA", data.to_str().unwrap())]].concat();
    Service::ready("standalone", &Servers::none(), &variables).await
}
