//! Clients that announce what they never send, which normal clients must not notice.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use anyhow::Result;
use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use h2::client::{self, SendRequest};
use hyper::{Request, header};
use tokio::net::TcpStream;

use super::clients::{BACK, Honest, Present, come};
use super::lifted::Lifted;
use crate::cluster::Cluster;

/// Connections, and streams of each: as many as it may have.
const CONNECTIONS: usize = 50;
const STREAMS: usize = 200;

/// One stream in so many sends a byte. What these would need is twice what there is for all bodies.
const SENDS_A_BYTE: usize = 4;

/// The first byte of a body that is packed with zstd.
const BYTE: Bytes = Bytes::from_static(b"\x28");

pub(super) async fn streams(cluster: &mut Cluster, label: &str) -> Result<Lifted> {
    let honest = Honest { url: &cluster.ingest_url, bearer: None };
    let address = honest.address()?;
    let present = Arc::new(AtomicUsize::new(0));
    let silent = {
        let present = Arc::clone(&present);
        async move {
            let connections = (0..CONNECTIONS).map(async |number| {
                come(number, CONNECTIONS).await;
                loop {
                    let _ = connection(address, &present).await;
                    tokio::time::sleep(BACK).await;
                }
            });
            join_all(connections).await;
        }
    };
    honest.beside(label, silent, CONNECTIONS * STREAMS, &present).await
}

/// Silent streams of one connection, each opened again when it is refused, until the connection ends.
async fn connection(address: SocketAddr, present: &AtomicUsize) -> Result<()> {
    let (requests, connection) = client::handshake(TcpStream::connect(address).await?).await?;
    let streams = (0..STREAMS).map(|number| silent(requests.clone(), number, present));
    tokio::select! {
        ended = connection => Ok(ended?),
        ended = try_join_all(streams) => ended.map(drop),
    }
}

async fn silent(mut requests: SendRequest<Bytes>, number: usize, present: &AtomicUsize) -> Result<()> {
    loop {
        poll_fn(|context| requests.poll_ready(context)).await?;
        let request = Request::post("http://localhost/events").header(header::CONTENT_ENCODING, "zstd");
        let request = request.header(header::CONTENT_TYPE, "application/x-ndjson").body(())?;
        let (answer, mut body) = requests.send_request(request, false)?;
        let _present = Present::new(present);
        if number.is_multiple_of(SENDS_A_BYTE) {
            body.send_data(BYTE, false)?;
        }
        answer.await?;
        tokio::time::sleep(BACK).await;
    }
}
