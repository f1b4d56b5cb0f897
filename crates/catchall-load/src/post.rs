//! Events over HTTP: one per PUT, or many per POST.

use bytes::Bytes;
use http::{HeaderValue, Method};
use serde::Deserialize;
use uuid::Uuid;

use crate::body;
use crate::exchange::{Client, Failure, HttpRequest, HttpResponse};
use crate::run::{Request, RequestOutcome};
use crate::sender::Transport;
use crate::workload::{Draw, Names};

/// The problems that an event of a bulk request may have.
const INVALID: [&str; 3] = [
    "urn:catchall:problem:invalid-domain",
    "urn:catchall:problem:invalid-event",
    "urn:catchall:problem:invalid-key",
];

/// Bytes reserved for a path: names have at most 21 letters.
const PATH: usize = 48;

/// Sends one event per request, in the path.
#[derive(Debug)]
pub(crate) struct Put<C> {
    /// The HTTP client.
    pub(crate) client: C,
    /// How domains are spelled.
    pub(crate) names: Names,
}

impl<C: Client> Transport for Put<C> {
    fn capacity(&self) -> usize {
        1
    }

    async fn send(&mut self, requests: &[Request]) -> RequestOutcome {
        let request = &requests[0];
        let mut call = HttpRequest::new(Method::PUT, path(self.names, request.draws[0]));
        call.idempotency_key = request.keys.first().map(|key| {
            let mut text = Uuid::encode_buffer();
            let text = key.hyphenated().encode_lower(&mut text);
            HeaderValue::from_str(text).expect("a UUID is visible ASCII")
        });
        outcome(self.client.exchange(call).await, |_| RequestOutcome::Acknowledged)
    }
}

/// `/events/{domain}/{kind}`
fn path(names: Names, draw: Draw) -> Bytes {
    let mut path = Vec::with_capacity(PATH);
    path.extend_from_slice(b"/events/");
    names.spell(draw.domain, &mut path);
    path.push(b'/');
    path.extend_from_slice(draw.kind.as_str().as_bytes());
    // A boxed slice becomes `Bytes` without another allocation.
    path.into_boxed_slice().into()
}

/// Sends many events per request, one per line.
#[derive(Debug)]
pub(crate) struct Bulk<C> {
    /// The HTTP client.
    pub(crate) client: C,
    /// How domains are spelled.
    pub(crate) names: Names,
}

impl<C: Client> Transport for Bulk<C> {
    fn capacity(&self) -> usize {
        1
    }

    async fn send(&mut self, requests: &[Request]) -> RequestOutcome {
        let request = &requests[0];
        let mut call = HttpRequest::new(Method::POST, Bytes::from_static(b"/events"));
        call.content_type = Some(HeaderValue::from_static("application/x-ndjson"));
        call.body = body::lines(self.names, request).into();
        outcome(self.client.exchange(call).await, |answer| accepted(answer, request.draws.len()))
    }
}

/// What a response, or the lack of one, means for the events of a request. For a 2xx, `accepted` decides
/// which of them are accepted.
fn outcome(
    answer: Result<HttpResponse, Failure>,
    accepted: impl FnOnce(&HttpResponse) -> RequestOutcome,
) -> RequestOutcome {
    match answer {
        Ok(answer) if answer.status.is_success() => accepted(&answer),
        Ok(answer) if answer.says_send_again() => RequestOutcome::Unsent(answer.reason()),
        Ok(answer) if answer.status.is_client_error() => RequestOutcome::Refused(answer.reason()),
        Ok(answer) => RequestOutcome::Unknown(answer.reason()),
        Err(Failure::Unanswered(reason)) => RequestOutcome::Unknown(reason),
        Err(Failure::Unsent(reason)) => RequestOutcome::Unsent(reason),
    }
}

/// Which events the response to a bulk request accepts.
fn accepted(answer: &HttpResponse, events: usize) -> RequestOutcome {
    #[derive(Deserialize)]
    struct Accepted {
        accepted: usize,
        rejected: Vec<Rejected>,
    }

    #[derive(Deserialize)]
    struct Rejected {
        index: usize,
        #[serde(rename = "type")]
        kind: String,
        detail: String,
    }

    let Ok(Accepted { accepted, rejected }) = serde_json::from_slice(&answer.body) else {
        return RequestOutcome::Unknown(format!("an answer that cannot be read: {}", answer.reason()));
    };
    let mut places: Vec<usize> = rejected.iter().map(|rejected| rejected.index).collect();
    places.sort_unstable();
    places.dedup();
    if places.len() != rejected.len() || accepted + places.len() != events || places.last() >= Some(&events) {
        return RequestOutcome::Unknown(format!("an answer that does not add up: {}", answer.reason()));
    }
    if let Some(odd) = rejected.iter().find(|rejected| !INVALID.contains(&&*rejected.kind)) {
        return RequestOutcome::Unknown(format!("event {} has a problem of type {:?}", odd.index, odd.kind));
    }
    match rejected.into_iter().min_by_key(|rejected| rejected.index) {
        None => RequestOutcome::Acknowledged,
        Some(first) => RequestOutcome::Partly(places, format!("event {}: {}", first.index, first.detail)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counts::EventKind;
    use catchall::http::ProblemType;
    use http::StatusCode;

    fn answer(status: u16, body: &str) -> HttpResponse {
        let status = StatusCode::from_u16(status).unwrap();
        HttpResponse { status, body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    #[test]
    fn the_status_and_the_type_of_a_problem_tell_what_became_of_it() {
        let of = |answer| outcome(answer, |_| RequestOutcome::Acknowledged);
        let of_answer = |answer| of(Ok(answer));
        assert_eq!(of_answer(answer(202, "")), RequestOutcome::Acknowledged);
        assert_eq!(of_answer(answer(200, "")), RequestOutcome::Acknowledged);
        assert_eq!(of_answer(answer(400, "no")), RequestOutcome::Refused("400 Bad Request: no".into()));
        assert_eq!(of_answer(answer(408, "")), RequestOutcome::Refused("408 Request Timeout".into()));
        assert_eq!(of_answer(answer(503, "")), RequestOutcome::Unknown("503 Service Unavailable".into()));
        for kind in ProblemType::ALL {
            let body = format!(r#"{{"type":"{}","detail":"wait"}}"#, kind.urn());
            let reason = format!("{}: wait", kind.status());
            let expected = match kind {
                ProblemType::NotCounted | ProblemType::Timeout | ProblemType::TooManyRequests => {
                    RequestOutcome::Unsent(reason)
                }
                _ if kind.status().is_client_error() => RequestOutcome::Refused(reason),
                _ => RequestOutcome::Unknown(reason),
            };
            assert_eq!(of_answer(answer(kind.status().as_u16(), &body)), expected, "{kind:?}");
        }
        assert_eq!(of_answer(answer(302, "")), RequestOutcome::Unknown("302 Found".into()));
        assert_eq!(of(Err(Failure::Unsent("a".into()))), RequestOutcome::Unsent("a".into()));
        assert_eq!(of(Err(Failure::Unanswered("a".into()))), RequestOutcome::Unknown("a".into()));
    }

    #[test]
    fn rejected_events_are_not_accepted() {
        let of = |body: &str| outcome(Ok(answer(202, body)), |answer| accepted(answer, 3));
        assert_eq!(of(r#"{"accepted":3,"rejected":[]}"#), RequestOutcome::Acknowledged);
        let rejected = |index: usize, kind: ProblemType, detail: &str| {
            format!(r#"{{"index":{index},"type":"{}","detail":"{detail}"}}"#, kind.urn())
        };
        let (key, event) = (ProblemType::InvalidKey, ProblemType::InvalidEvent);
        let domain = rejected(0, ProblemType::InvalidDomain, "a");
        let partly = format!(
            r#"{{"accepted":0,"rejected":[{},{},{domain}]}}"#,
            rejected(2, key, "c"),
            rejected(1, event, "b")
        );
        assert_eq!(of(&partly), RequestOutcome::Partly(vec![0, 1, 2], "event 0: a".into()));
        let one = |rejected: &str| format!(r#"{{"accepted":2,"rejected":[{rejected}]}}"#);
        assert_eq!(of(&one(&domain)), RequestOutcome::Partly(vec![0], "event 0: a".into()));
        for odd in [
            "",
            "{}",
            &one(""),
            &one(&rejected(3, event, "")),
            &one(&rejected(0, ProblemType::NotFound, "")),
            &one(r#"{"index":0,"detail":""}"#),
            &format!(r#"{{"accepted":1,"rejected":[{domain},{domain}]}}"#),
        ] {
            assert!(matches!(of(odd), RequestOutcome::Unknown(_)), "{odd}");
        }
    }

    #[test]
    fn a_path_names_domain_and_kind() {
        let draw = Draw { domain: 0, kind: EventKind::Bounced };
        assert_eq!(path(Names::Waves { seed: 42 }, draw), "/events/dtGNMCFbOFiYVA.gov/bounced");
    }
}
