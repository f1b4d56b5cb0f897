//! One connection: requests in, replies out, in the same order.

use std::io;
use std::time::Duration;

use futures::future::join_all;
use metrics::Counter;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::netstring::{self, Malformed};
use super::question::{self, Reply};
use crate::domain_name::DomainName;
use crate::query::domain::Domains;
use crate::query::lookup::look_up;
use crate::shutdown::Shutdown;

/// Longest request, in bytes: a map, a space and a key. Postfix cuts a line, and so an address, at 2048.
const LONGEST: usize = 4096;

/// Bytes of unanswered requests that a connection keeps: one of the longest, or more short ones. The rest
/// waits in the kernel, and then at the client.
const BUFFER: usize = 2 * LONGEST;

/// Requests of one connection that are looked up together.
const TOGETHER: usize = 100;

/// How long a connection may be idle. Postfix closes one after 10 s.
const IDLE: Duration = Duration::from_secs(75);

/// How long a request may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);

/// How long a client may leave its replies unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the server ended a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Offence {
    /// No request.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A request came too slowly.
    #[error("its request took longer than {} s to arrive", ARRIVAL.as_secs())]
    TooSlow,
    /// Replies were not read.
    #[error("it read no reply for {} s", WRITE_TIMEOUT.as_secs())]
    Unread,
}

/// The number of requests by reply.
#[derive(Clone, Debug)]
pub(super) struct Replies {
    ok: Counter,
    not_found: Counter,
    temporary: Counter,
    permanent: Counter,
}

impl Replies {
    pub(super) fn register() -> Self {
        let replied = |reply| metrics::counter!("catchall_socketmap_requests_total", "reply" => reply);
        Self {
            ok: replied("OK"),
            not_found: replied("NOTFOUND"),
            temporary: replied("TEMP"),
            permanent: replied("PERM"),
        }
    }

    fn count(&self, reply: &Reply) {
        let counter = match reply {
            Reply::Found(_) => &self.ok,
            Reply::NotFound => &self.not_found,
            Reply::Temporary(_) => &self.temporary,
            Reply::Permanent(_) => &self.permanent,
        };
        counter.increment(1);
    }
}

/// Answers requests until the client leaves, is idle for too long, or `stop` resolves; then requests that
/// have arrived are still answered.
///
/// # Errors
///
/// The fault of the client, if that is the reason for the end.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    domains: &Domains,
    replies: &Replies,
    mut stop: Shutdown,
) -> Result<(), Offence> {
    let mut buffer = Buffer::new();
    loop {
        let mut requests = Vec::new();
        let malformed = buffer.take(&mut requests);
        let count = requests.len();
        let mut written = Vec::new();
        for reply in join_all(requests.into_iter().map(|request| answer(request, domains))).await {
            replies.count(&reply);
            netstring::append(&reply.text(), &mut written);
        }
        match timeout(WRITE_TIMEOUT, stream.write_all(&written)).await {
            Ok(Ok(())) => malformed?,
            Ok(Err(_)) => return Ok(()),
            Err(_) => return Err(Offence::Unread),
        }
        if count == TOGETHER {
            // There may be more of them.
            continue;
        }
        let is_idle = buffer.filled == 0;
        let deadline = buffer.since + if is_idle { IDLE } else { ARRIVAL };
        tokio::select! {
            biased;
            read = timeout_at(deadline, buffer.fill(&mut stream)) => match read {
                Ok(Ok(1..)) => {}
                Ok(Ok(0) | Err(_)) => return Ok(()),
                Err(_) if is_idle => return Ok(()),
                Err(_) => return Err(Offence::TooSlow),
            },
            () = &mut stop, if is_idle => return Ok(()),
        }
    }
}

/// The domain that a request asks about, or its reply if that is already known.
type Question = Result<DomainName, Reply>;

async fn answer(request: Question, domains: &Domains) -> Reply {
    let name = match request {
        Ok(name) => name,
        Err(reply) => return reply,
    };
    match look_up(&domains.lookups, &name).await {
        Ok(known) => Reply::of(known.by(domains.threshold).status),
        Err(error) => Reply::Temporary(error.to_string()),
    }
}

/// The bytes that have arrived and are not answered yet.
struct Buffer {
    bytes: Box<[u8]>,
    filled: usize,
    /// When the first of the bytes came, or, without any, the last request.
    since: Instant,
}

impl Buffer {
    fn new() -> Self {
        Self { bytes: vec![0; BUFFER].into(), filled: 0, since: Instant::now() }
    }

    /// Takes out up to [`TOGETHER`] whole requests.
    fn take(&mut self, requests: &mut Vec<Question>) -> Result<(), Malformed> {
        let mut taken = 0;
        while requests.len() < TOGETHER
            && let Some((payload, length)) = netstring::first(&self.bytes[taken..self.filled], LONGEST)?
        {
            requests.push(question::domain(payload));
            taken += length;
        }
        if taken > 0 {
            self.bytes.copy_within(taken..self.filled, 0);
            self.filled -= taken;
            self.since = Instant::now();
        }
        Ok(())
    }

    /// Reads the next bytes. There is room for them: the rest after whole requests is shorter than a request.
    async fn fill(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        let read = stream.read(&mut self.bytes[self.filled..]).await?;
        if self.filled == 0 {
            self.since = Instant::now();
        }
        self.filled += read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
