//! What a reader asks, and whether an answer is right.

use anyhow::{anyhow, ensure};
use bytes::Bytes;
use clap::ValueEnum;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode, header, http};
use serde::Deserialize;
use serde_json::Value;

/// Names of a look-up, and domains of a page.
const MANY: usize = 1000;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Question {
    /// One domain.
    Domain,
    /// A page of catch-alls, after any domain.
    Page,
    /// A thousand domains.
    LookUp,
    /// The totals.
    Totals,
    /// All catch-alls, as a stream.
    Export,
}

impl Question {
    /// How many domains it draws.
    pub(crate) fn draws(self) -> usize {
        match self {
            Self::Domain | Self::Page => 1,
            Self::LookUp => MANY,
            Self::Totals | Self::Export => 0,
        }
    }

    pub(crate) fn request(self, names: &[String], host: &str) -> http::Result<Request<Full<Bytes>>> {
        let get = |path: String| Request::get(path).header(header::HOST, host);
        match self {
            Self::Domain => get(format!("/domains/{}", names[0])).body(Full::default()),
            Self::Page => get(format!("/domains?status=catch-all&limit={MANY}&after={}", names[0]))
                .body(Full::default()),
            Self::Totals => get("/totals".into()).body(Full::default()),
            Self::Export => get("/domains?status=catch-all".into())
                .header(header::ACCEPT, "application/x-ndjson")
                .body(Full::default()),
            Self::LookUp => Request::post("/domains/lookup")
                .header(header::HOST, host)
                .header(header::CONTENT_TYPE, "application/json")
                .body(Value::from(names.to_vec()).to_string().into()),
        }
    }

    /// How many things a right answer tells: domains of a look-up, rows of an export, else one.
    pub(crate) async fn answered(self, answer: Response<Incoming>, names: &[String]) -> anyhow::Result<u64> {
        let (head, mut body) = answer.into_parts();
        if self == Self::Export {
            ensure!(head.status == StatusCode::OK, "{}", head.status);
            let mut rows = 0;
            while let Some(frame) = body.frame().await {
                let data = frame?.into_data().unwrap_or_default();
                rows += data.split(|byte| *byte == b'\n').count() - 1;
            }
            return Ok(rows as u64);
        }
        let body = body.collect().await?.to_bytes();
        let right = match self {
            Self::Domain => is_about(&body, &names[0]).map(|()| 1),
            Self::LookUp => count(&body, "\"domain\":").filter(|count| *count == MANY as u64),
            // The last pages are short.
            Self::Page => count(&body, "\"domain\":").map(|_| 1),
            Self::Totals | Self::Export => count(&body, "\"catch-all\":").map(|_| 1),
        };
        let wrong = || anyhow!("{}: {}", head.status, body[..body.len().min(300)].escape_ascii());
        right.filter(|_| head.status == StatusCode::OK).ok_or_else(wrong)
    }
}

/// How often a text is in a body, if it is. To parse the answers would cost more than to make them.
fn count(body: &[u8], text: &str) -> Option<u64> {
    let count = body.windows(text.len()).filter(|window| *window == text.as_bytes()).count();
    Some(count as u64).filter(|count| *count > 0)
}

/// Whether an answer is about this domain, and it has been counted.
fn is_about(body: &[u8], name: &str) -> Option<()> {
    #[derive(Deserialize)]
    struct Served<'a> {
        domain: &'a str,
        delivered: u64,
        bounced: u64,
    }
    let served: Served<'_> = serde_json::from_slice(body).ok()?;
    (served.domain == name && served.delivered + served.bounced > 0).then_some(())
}
