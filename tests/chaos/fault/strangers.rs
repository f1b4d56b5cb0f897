//! Everything that strangers can do at once to a service that asks for tokens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::{join, join_all};
use harness::access::Access;
use harness::processes::Service;
use harness::usage;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::clients::{BACK, Honest, Present, SLOW, TRICKLE, come};
use super::lifted::Lifted;
use crate::cluster::Cluster;

/// Strangers that send as fast as they are answered, with this pause: they share two cores with the service.
const FLOODING: usize = 40;
const PAUSE: Duration = Duration::from_millis(20);

/// A head that never ends is trickled, because no body is read without a token.
const HEAD: &str = "POST /events HTTP/1.1\r\nhost: slow\r\n";

/// What a stranger sends next, and how the answer may begin; nothing where the connection may just be closed.
const REQUESTS: [(&str, &str); 8] = [
    ("PUT /events/example.com/bounced HTTP/1.1\r\nhost: x\r\n\r\n", "HTTP/1.1 4"),
    (
        "GET /domains/example.com HTTP/1.1\r\nhost: x\r\nauthorization: Bearer catchall_0\r\n\r\n",
        "HTTP/1.1 4",
    ),
    ("GET /metrics HTTP/1.1\r\nhost: x\r\nauthorization: Basic eDp4\r\n\r\n", "HTTP/1.1 4"),
    ("POST /events HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999999\r\n\r\n", "HTTP/1.1 4"),
    ("POST /events HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", "HTTP/1.1 400"),
    ("\0\x16\x03\x01 nonsense\r\n\r\n", "HTTP/1.1 400"),
    ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nno frame at all", ""),
    // The beginning of a head; the rest never comes.
    ("PUT /events/example.com/bounc", ""),
];

/// How long a stranger waits for an answer.
const ANSWER: Duration = Duration::from_millis(500);

/// Most memory of the attacked ingest, in megabytes: what a quiet one takes, and 80 kB for each connection.
const MEMORY: u64 = 128;

/// The domain that no stranger may touch.
const DOMAIN: &str = "example.com";

/// Attacks an ingest of its own, which asks for tokens.
pub(super) async fn attack(cluster: &mut Cluster, label: &str) -> Result<Lifted> {
    let ingest = Service::guarded("ingest", &cluster.servers, &[], Access::by_token()).await;
    let url = ingest.url();
    let honest = Honest { url: &url, bearer: ingest.access().bearer.as_deref() };
    let address = honest.address()?;
    let present = Arc::new(AtomicUsize::new(0));
    let answered = Arc::new(AtomicU64::new(0));
    let attack = {
        let (present, answered) = (Arc::clone(&present), Arc::clone(&answered));
        async move {
            let slow = (0..SLOW).map(|number| slow_head(address, number, Arc::clone(&present)));
            let floods = (0..FLOODING).map(|number| flood(address, number, Arc::clone(&answered)));
            join(join_all(slow), join_all(floods)).await;
        }
    };
    let mut lifted = honest.beside(label, attack, SLOW, &present).await?;
    lifted.expected.expect(DOMAIN.into(), 0, 0);
    let answered = answered.load(Ordering::Relaxed);
    if answered < 1000 {
        lifted.failures.push(format!("only {answered} requests of strangers were answered"));
    }
    let megabytes = usage::peak_megabytes(ingest.pid());
    let megabytes = megabytes.context("the memory of the attacked ingest cannot be read")?;
    if megabytes > MEMORY {
        lifted.failures.push(format!("the attacked ingest used {megabytes} MB; the limit is {MEMORY}"));
    }
    let note = lifted.note.take().unwrap_or_default();
    lifted.note = Some(format!("{note} and {answered} refused requests; {megabytes} MB"));
    Ok(lifted)
}

/// Opens a connection and sends a head, slowly, again and again.
async fn slow_head(address: SocketAddr, number: usize, present: Arc<AtomicUsize>) {
    let once = async || -> Result<()> {
        let mut stream = TcpStream::connect(address).await?;
        let _present = Present::new(&present);
        for byte in HEAD.bytes().chain(std::iter::repeat(b'x')) {
            stream.write_all(&[byte]).await?;
            tokio::time::sleep(TRICKLE).await;
        }
        Ok(())
    };
    come(number, SLOW).await;
    loop {
        let _ = once().await;
        tokio::time::sleep(BACK).await;
    }
}

/// Sends one request after another, each on a connection of its own. A wrong answer ends the attack, and so
/// fails the round.
async fn flood(address: SocketAddr, number: usize, answered: Arc<AtomicU64>) {
    for (request, begins) in REQUESTS.iter().cycle().skip(number) {
        if let Ok(answer) = ask(address, request).await {
            assert!(answer.starts_with(begins), "{request:?} was answered by {answer:?}");
            answered.fetch_add(u64::from(!answer.is_empty()), Ordering::Relaxed);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn ask(address: SocketAddr, request: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = vec![0; 64];
    let size = tokio::time::timeout(ANSWER, stream.read(&mut answer)).await.context("no answer")??;
    answer.truncate(size);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
