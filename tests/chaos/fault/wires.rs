//! Connections that are cut, slow, broken or silent.

use std::time::Duration;

use anyhow::Result;
use harness::proxy::{Proxy, Wire};

use super::lifted::Lifted;
use crate::cluster::Cluster;
use crate::rng::Rng;

/// Long enough for two heartbeats and for the check of the primary, so that the silence is noticed.
const SILENCE: (u64, u64) = (5000, 6500);

pub(super) async fn be(proxy: &Proxy, wire: Wire, rng: &mut Rng) -> Result<Lifted> {
    let (least, most) = if wire == Wire::Silent { SILENCE } else { (1000, 3000) };
    proxy.be(wire);
    rng.pause(least, most).await;
    proxy.mend();
    Ok(Lifted::now())
}

/// Long enough for some hundred requests to reach their deadline.
const LATE: Duration = Duration::from_secs(10);

pub(super) async fn late(cluster: &Cluster, delay: Duration) -> Result<Lifted> {
    cluster.broker_wire.be(Wire::LateConfirms(delay));
    tokio::time::sleep(LATE).await;
    cluster.broker_wire.mend();
    Ok(Lifted::now())
}

/// Cuts the connections after a random number of bytes, in the middle of a handshake or a message.
pub(super) async fn breaks(proxy: &Proxy, rng: &mut Rng) -> Result<Lifted> {
    let more = rng.number(1, 5000);
    proxy.be(Wire::Breaking(usize::try_from(more).unwrap_or(1)));
    tokio::time::sleep(Duration::from_millis(500)).await;
    proxy.cut();
    rng.pause(500, 2000).await;
    proxy.mend();
    Ok(Lifted { note: Some(format!("after {more} bytes")), ..Lifted::now() })
}
