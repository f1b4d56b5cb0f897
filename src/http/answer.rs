//! The body of a response on its way to a client, and the memory it holds until it is written.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::response::Response;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;

use super::activity::ActiveRequest;
use super::budget::Share;
use super::transfer;

/// Most bytes handed to the connection at a time. The connection buffers one step beyond its own limits, and
/// each step shows how fast the client reads.
pub(super) const STEP: usize = 16 * 1024;

/// A body and its share of a budget. The connection holds slices of the body until they are written; dropping
/// the last slice returns the share.
struct Held {
    bytes: Vec<u8>,
    _share: Arc<Share>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Makes the response's body hold `share` until it is written.
#[must_use]
pub fn hold(response: Response<Vec<u8>>, share: Share) -> Response {
    let share = Arc::new(share);
    let (mut head, bytes) = response.into_parts();
    head.extensions.insert(Arc::clone(&share));
    Response::from_parts(head, Body::from(Bytes::from_owner(Held { bytes, _share: share })))
}

/// The body of a response as a connection sends it.
pub(super) struct Answer {
    body: Body,
    /// The unsent rest of the last frame of the body.
    rest: Bytes,
    request: ActiveRequest,
    /// The budget share that holds the response's memory.
    share: Option<Arc<Share>>,
    begun: Instant,
    moved: u64,
    /// Whether the body is a stream, made while it is sent. Such a body may pause for any time and have any
    /// length.
    streams: bool,
}

impl Answer {
    /// The response to a request. The request is under way until its response is sent.
    pub(super) fn to(mut request: ActiveRequest, response: Response) -> Response<Self> {
        let (mut head, body) = response.into_parts();
        let share = head.extensions.remove::<Arc<Share>>();
        let begun = Instant::now();
        if let Some(share) = &share {
            share.begin_transfer(begun, Arc::clone(request.activity().give_up()));
        }
        let streams = body.size_hint().exact().is_none();
        if !body.is_end_stream() && !streams {
            request.answers(begun, 0);
        }
        let answer = Self { body, rest: Bytes::new(), request, share, begun, moved: 0, streams };
        Response::from_parts(head, answer)
    }

    /// Records the next step of a stream, which the client now has to read. If the client has kept up so far,
    /// its time starts again, so that it cannot save up time in which it reads nothing. Otherwise it stays as
    /// late as it was.
    fn owes(&mut self, bytes: usize) {
        let now = Instant::now();
        let keeps_up = transfer::deadline(self.begun, self.moved) >= now + transfer::GRACE;
        if self.moved == 0 || keeps_up {
            (self.begun, self.moved) = (now, 0);
        }
        self.moved += bytes as u64;
        self.request.answers(self.begun, self.moved);
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    /// The connection asks for more once the previous step is on its way.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if this.moved > 0 && !this.streams {
            this.request.answers(this.begun, this.moved);
            if let Some(share) = &this.share {
                share.moved(this.moved);
            }
        }
        if this.rest.is_empty() {
            let frame = Pin::new(&mut this.body).poll_frame(context);
            if frame.is_pending() && this.streams {
                // Everything has been taken, so the client is not late.
                this.request.waits();
                this.moved = 0;
            }
            match ready!(frame) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let step = this.rest.split_to(this.rest.len().min(STEP));
        if this.streams {
            this.owes(step.len());
        } else {
            this.moved += step.len() as u64;
        }
        Poll::Ready(Some(Ok(Frame::data(step))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, mut hint) = (self.rest.len() as u64, self.body.size_hint());
        match hint.exact() {
            Some(exact) => hint.set_exact(exact + rest),
            None => hint.set_lower(hint.lower() + rest),
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::activity::{Activity, Decision};
    use super::super::budget::Budget;
    use super::*;
    use axum::http::Version;
    use http_body_util::BodyExt;

    #[tokio::test(start_paused = true)]
    async fn a_stream_may_pause_but_what_it_gave_has_to_be_read() {
        let (steps, given) = tokio::sync::mpsc::channel::<Bytes>(1);
        let body = Body::from_stream(futures::stream::unfold(given, async |mut given| {
            given.recv().await.map(|step| (Ok::<_, axum::Error>(step), given))
        }));
        let activity = Activity::new();
        let mut answer = Answer::to(activity.begin(Version::HTTP_11), Response::new(body)).into_body();
        for _ in 0..3 {
            // Nothing to read for a long time.
            let waits = tokio::time::timeout(Duration::from_secs(1000), answer.frame()).await;
            assert!(waits.is_err());
            assert!(matches!(activity.look(), Decision::Keep(_)));
            steps.send(Bytes::from_static(b"step")).await.unwrap();
            answer.frame().await.unwrap().unwrap();
        }
        // The last step is not read.
        tokio::time::advance(transfer::GRACE + Duration::from_secs(1)).await;
        assert_eq!(activity.look(), Decision::Stuck);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_has_to_be_read_fast_enough_and_not_only_again_and_again() {
        let steps = futures::stream::repeat_with(|| Ok::<_, axum::Error>(Bytes::from(vec![0; STEP])));
        let activity = Activity::new();
        let answer = Response::new(Body::from_stream(steps));
        let mut answer = Answer::to(activity.begin(Version::HTTP_2), answer).into_body();
        for _ in 0..100 {
            answer.frame().await.unwrap().unwrap();
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(matches!(activity.look(), Decision::Keep(_)));
        }
        // From now on each step is read well before a client that reads nothing would be given up.
        let begun = Instant::now();
        while matches!(activity.look(), Decision::Keep(_)) {
            answer.frame().await.unwrap().unwrap();
            tokio::time::advance(transfer::GRACE / 2).await;
            assert!(begun.elapsed() < 2 * transfer::GRACE, "it takes its time for ever");
        }
        assert!(begun.elapsed() > transfer::GRACE);
    }

    #[tokio::test]
    async fn a_large_answer_goes_in_steps_and_is_held_until_the_last_is_gone() {
        let budget = Budget::new(1024 * 1024);
        let mut share = budget.share();
        share.hold(100_000).await.unwrap();
        let bytes: Vec<u8> = (0..=255).cycle().take(3 * STEP + 7).collect();
        let response = hold(Response::new(bytes.clone()), share);
        let mut answer = Answer::to(Activity::new().begin(Version::HTTP_2), response).into_body();
        let (mut sent, mut buffered) = (Vec::new(), Vec::new());
        for left in [3 * STEP + 7, 2 * STEP + 7, STEP + 7, 7] {
            assert!(!answer.is_end_stream());
            assert_eq!(answer.size_hint().exact(), Some(left as u64));
            let step = answer.frame().await.unwrap().unwrap().into_data().unwrap();
            sent.extend_from_slice(&step);
            buffered.push(step);
        }
        assert!(answer.is_end_stream());
        assert_eq!(sent, bytes);
        drop(answer);
        buffered.drain(1..);
        assert_eq!(budget.held(), 100_000);
        drop(buffered);
        assert_eq!(budget.held(), 0);
    }
}
