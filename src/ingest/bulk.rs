//! `POST /events`: many events in one request.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::map_request;
use axum::response::Response;
use serde::Serialize;
use tokio::task::yield_now;
use utoipa::{IntoResponses, ToSchema};
use utoipa_axum::router::{UtoipaMethodRouter, UtoipaMethodRouterExt};
use utoipa_axum::routes;

use super::accept::{Intake, submit};
use super::key::{RequestKey, idempotency_key};
use crate::batch::Batch;
use crate::bulk::{self, MediaType};
use crate::event::{Event, Invalid};
use crate::excerpt::excerpt;
use crate::http::{self, BodyEncoding, BodyRules, Budget, Caller, Problem, ProblemType, Rejected, Share};
use crate::idempotency_key::IdempotencyKey;

/// The limits for bodies: 10,000 events of a kilobyte each.
const BODY: BodyRules =
    BodyRules { max: 10 * 1024 * 1024, refused: ProblemType::NotCounted, then: ": nothing was counted" };

/// Memory is taken from the budget in steps of this many bytes while a body is parsed: small enough to stay
/// near the truth, large enough to cost nothing.
const STEP: usize = 64 * 1024;

/// Events that are parsed before other tasks of the thread get their turn: some 100 µs. So many large bodies
/// slow every request down a little, and none has to wait until all of them are read.
const EVENTS_AT_A_STRETCH: usize = 256;

#[derive(Clone, Debug)]
struct Bulk {
    intake: Arc<Intake>,
    budget: Budget,
}

/// The route. Its events go to the intake, and its memory is taken from the budget.
pub(super) fn route(intake: Arc<Intake>, budget: Budget) -> UtoipaMethodRouter {
    routes!(post_events).layer(map_request(http::unpack)).with_state(Bulk { intake, budget })
}

/// A body of one event per line, for the API's document.
#[derive(ToSchema)]
#[schema(
    description = "One event per line, each a JSON object.",
    value_type = Vec<Event>,
    min_items = 1,
    max_items = 10_000
)]
struct EventLines(#[expect(dead_code, reason = "it only describes")] Vec<Event>);

/// A body that is an array, for the API's document.
#[derive(ToSchema)]
#[schema(as = EventArray, description = "An array of events.", value_type = Vec<Event>, max_items = 10_000)]
struct Array(#[expect(dead_code, reason = "it only describes")] Vec<Event>);

/// The response to a bulk request that was accepted at least in part.
#[derive(Serialize, ToSchema)]
struct BulkAnswer {
    /// How many events will be counted.
    accepted: usize,
    /// The events that are not valid.
    rejected: Vec<Rejected>,
}

/// The problems of a bulk request, for the API's document.
struct BulkProblems;

impl IntoResponses for BulkProblems {
    fn responses() -> http::Responses {
        use ProblemType::{
            InvalidBody, InvalidKey, MaybeCounted, MethodNotAllowed, NotCounted, NothingReadable, QueueFull,
            Timeout, TooLarge, UnsupportedMediaType,
        };
        http::problem_responses(&[
            InvalidBody,
            InvalidKey,
            NothingReadable,
            MethodNotAllowed,
            Timeout,
            TooLarge,
            UnsupportedMediaType,
            NotCounted,
            MaybeCounted,
            QueueFull,
        ])
    }
}

/// `POST /events`. The memory that the request holds is returned only when the response, whatever it is, has
/// been written.
#[utoipa::path(
    post,
    path = "/events",
    summary = "Send many events",
    description = "Counts the valid events of the request, at most 10,000, and lists the others by their \
        position. The body has at most 10 MiB, measured after decompression. Under an `Idempotency-Key`, \
        each event without an `id` counts once under that key and the event's position: so repeat such a \
        request unchanged.",
    tag = "Events",
    params(
        RequestKey,
        BodyEncoding,
    ),
    request_body(
        description = "The events. Members that are not described here are ignored.",
        content(
            (EventLines = "application/x-ndjson"),
            (Array = "application/json", example = json!([
                {"domain": "example.com", "event": "delivered", "count": 3},
                {"domain": "example.org", "event": "bounced", "id": "message-4711"}
            ])),
        )
    ),
    responses(
        (status = 202, description = "The valid events are on disk, and will be counted exactly once.",
            body = BulkAnswer, example = json!({"accepted": 1, "rejected": [{
                "index": 1, "type": "urn:catchall:problem:invalid-domain",
                "detail": "a domain name has at least two labels, as in example.com"
            }]})
        ),
        BulkProblems
    ),
    security((), ("token" = ["write"]))
)]
async fn post_events(State(bulk): State<Bulk>, request: Request) -> Result<Response, Problem> {
    let mut share = bulk.budget.share();
    let caller = request.extensions().get::<Caller>().cloned();
    let media_type = http::media_type(request.headers())?;
    let key = idempotency_key(request.headers())?;
    let body = http::read(request, BODY, &mut share).await?;
    let Read { batch, accepted, rejected } = read(body, media_type, key, &mut share).await?;
    let answer = if accepted == 0 && !rejected.is_empty() {
        let detail = "no event could be read";
        Problem { rejected, ..Problem::new(ProblemType::NothingReadable, detail) }.to_json()
    } else {
        if accepted > 0 {
            caller.map_or(Ok(()), |caller| caller.take_events(accepted))?;
            submit(&bulk.intake, accepted, |open| open.merge(batch)).await?;
        }
        http::json(StatusCode::ACCEPTED, &BulkAnswer { accepted, rejected })
    };
    share.shrink_to(http::REQUEST + answer.body().len());
    Ok(http::hold(answer, share))
}

/// The contents of a body.
#[derive(Default)]
struct Read {
    batch: Batch,
    /// How many events are in the batch.
    accepted: usize,
    rejected: Vec<Rejected>,
}

/// Reads the events of a body. If the request has a key, each event without a key gets one that is derived
/// from it and the event's position, so that the same request sent again counts nothing.
///
/// Each thread parses only one event at a time, so the memory that parsing needs only temporarily is not part
/// of the share.
async fn read(
    body: Vec<u8>,
    media_type: MediaType,
    request_key: Option<IdempotencyKey>,
    share: &mut Share,
) -> Result<Read, Problem> {
    let mut read = Read::default();
    let events = bulk::events(&body, media_type).map_err(|error| match error {
        bulk::BodyError::TooMany => Problem::new(ProblemType::TooLarge, error.to_string()),
        bulk::BodyError::Unreadable(_) | bulk::BodyError::Empty => {
            Problem::new(ProblemType::InvalidBody, excerpt(error))
        }
    })?;
    let body_takes = http::REQUEST + body.capacity() + events.len() * size_of::<&[u8]>();
    let (mut result_takes, mut held) = (0, body_takes);
    for (index, event) in events.enumerate() {
        match event {
            Ok(mut event) => {
                result_takes += takes(&event);
                read.accepted += 1;
                event.key = event.key.or_else(|| request_key.map(|key| key.of_event(index)));
                read.batch.record(event);
            }
            Err(error) => {
                let kind = match error.invalid {
                    Invalid::Domain => ProblemType::InvalidDomain,
                    Invalid::Key => ProblemType::InvalidKey,
                    Invalid::Event => ProblemType::InvalidEvent,
                };
                let detail = excerpt(error);
                result_takes += takes_rejected(&detail);
                read.rejected.push(Rejected { index, kind, detail });
            }
        }
        if body_takes + result_takes > held {
            held = body_takes + result_takes + STEP;
            share.hold(held).await.map_err(|error| BODY.exhausted(error))?;
        }
        if index % EVENTS_AT_A_STRETCH == EVENTS_AT_A_STRETCH - 1 {
            yield_now().await;
        }
    }
    drop(body);
    share.shrink_to(http::REQUEST + result_takes);
    Ok(read)
}

/// The most memory that an event takes in a batch, whether in the list of keyed events or in the tally.
fn takes(event: &Event) -> usize {
    /// A node of the tally, half of which may be empty. A list that has doubled its length takes less.
    const ENTRY: usize = 2 * size_of::<(IdempotencyKey, Event)>();
    ENTRY + event.domain.as_str().len()
}

/// The memory of a rejected event: its detail, then its JSON, in which every character may be escaped.
fn takes_rejected(detail: &str) -> usize {
    /// The name of its type.
    const TYPE: usize = 64;
    2 * size_of::<Rejected>() + 2 * (TYPE + detail.len())
}
