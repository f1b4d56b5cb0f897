//! The lines of a body of any length, while it arrives.

use std::collections::VecDeque;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::body::{root_cause, unpacked};
use super::problem::{Problem, ProblemType};
use super::transfer;
use crate::excerpt::excerpt;

/// How long a client may pause, however fast it was before: longer than any working connection is silent. A
/// stream that waits for its client occupies one of few places.
const PAUSE: Duration = Duration::from_secs(30);

/// The lines of a body. Only the beginning of a line that is too long is kept.
#[derive(Debug)]
pub struct Lines {
    body: Body,
    longest: usize,
    /// Bytes that have arrived but are not yet a whole line.
    rest: Vec<u8>,
    arrived: VecDeque<Vec<u8>>,
    ended: bool,
    /// Bytes that have arrived so far.
    moved: u64,
    /// The start of the body, shifted by the time spent not waiting for it.
    begun: Instant,
    /// The last time it was waited for.
    waited: Instant,
}

impl Lines {
    /// The lines of a request's body, of which each has at most `longest` bytes.
    ///
    /// # Errors
    ///
    /// When the body is compressed: its decompressed size would have no bound.
    pub fn of(request: Request, longest: usize) -> Result<Self, Problem> {
        Ok(Self::new(unpacked(request)?, longest))
    }

    fn new(body: Body, longest: usize) -> Self {
        let (rest, arrived, now) = (Vec::new(), VecDeque::new(), Instant::now());
        Self { body, longest, rest, arrived, ended: false, moved: 0, begun: now, waited: now }
    }

    /// The lines that have arrived, up to a maximum, or else the next one; `None` at the end. Blank lines are
    /// left out.
    ///
    /// # Errors
    ///
    /// When the body breaks off, arrives too slowly or pauses for too long.
    pub async fn next(&mut self, most: usize) -> Result<Option<Vec<Vec<u8>>>, Problem> {
        // Meanwhile the server worked, or waited for the client to read.
        self.begun += self.waited.elapsed();
        while self.arrived.is_empty() && !self.ended {
            let deadline = transfer::deadline(self.begun, self.moved).min(Instant::now() + PAUSE);
            // Bytes that have arrived are never late.
            match timeout_at(deadline, self.body.frame()).await {
                Err(_) => {
                    let detail = format!("the body arrived too slowly, or paused for {PAUSE:?}");
                    return Err(Problem::new(ProblemType::Timeout, detail));
                }
                Ok(Some(Err(error))) => {
                    let detail = excerpt(format_args!("the body cannot be read: {}", root_cause(&error)));
                    return Err(Problem::new(ProblemType::InvalidBody, detail));
                }
                // A frame without data is a trailer, which is ignored.
                Ok(Some(Ok(frame))) => self.push(&frame.into_data().unwrap_or_default()),
                Ok(None) => {
                    self.ended = true;
                    self.end_line();
                }
            }
        }
        self.waited = Instant::now();
        let read: Vec<_> = self.arrived.drain(..self.arrived.len().min(most)).collect();
        Ok((!read.is_empty()).then_some(read))
    }

    fn push(&mut self, bytes: &Bytes) {
        self.moved += bytes.len() as u64;
        let mut pieces = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            let room = self.longest.saturating_sub(self.rest.len());
            self.rest.extend_from_slice(&piece[..piece.len().min(room)]);
            if pieces.peek().is_some() {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.rest);
        if !line.trim_ascii().is_empty() {
            self.arrived.push_back(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::sync::mpsc;
    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn a_client_is_given_up_that_sends_too_slowly_and_not_one_that_is_made_to_wait() {
        let (pieces, sent) = mpsc::channel::<Bytes>(1);
        let body = Body::from_stream(futures::stream::unfold(sent, async |mut sent| {
            sent.recv().await.map(|piece| (Ok::<_, axum::Error>(piece), sent))
        }));
        let mut lines = Lines::new(body, 100);
        for _ in 0..3 {
            pieces.send(Bytes::from_static(b"a\n")).await.unwrap();
            assert_eq!(lines.next(9).await.unwrap(), Some(vec![b"a".to_vec()]));
            // Looking it up takes long.
            sleep(Duration::from_secs(1000)).await;
        }
        let begun = Instant::now();
        let slow = async {
            while pieces.send(Bytes::from_static(b"\n")).await.is_ok() {
                sleep(transfer::GRACE * 9 / 10).await;
            }
        };
        let given_up = tokio::select! {
            next = lines.next(9) => next.unwrap_err(),
            () = slow => unreachable!(),
        };
        assert_eq!(given_up.kind, ProblemType::Timeout);
        assert_eq!(begun.elapsed(), transfer::GRACE);
    }

    fn lines(chunks: &[Vec<u8>], longest: usize) -> Vec<Vec<u8>> {
        let mut lines = Lines::new(Body::empty(), longest);
        for chunk in chunks {
            lines.push(&chunk.clone().into());
        }
        lines.end_line();
        lines.arrived.into()
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_they_arrive(
            text in "[ab \\n]{0,60}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
            longest in 1usize..20,
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let chunks: Vec<Vec<u8>> =
                cuts.windows(2).map(|pair| text.as_bytes()[pair[0]..pair[1]].to_vec()).collect();
            let cut = |line: &str| line.as_bytes()[..line.len().min(longest)].to_vec();
            let expected: Vec<Vec<u8>> =
                text.split('\n').map(cut).filter(|line| !line.trim_ascii().is_empty()).collect();
            prop_assert_eq!(lines(&chunks, longest), expected);
        }
    }
}
