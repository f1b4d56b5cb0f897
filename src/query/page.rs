//! The page for people: `GET /`. It is complete without its script, which only keeps it up to date.

mod words;
mod glance;
mod chart;
mod live;
mod view;
mod files;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::Markup;
use utoipa::IntoParams;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt};
use utoipa_axum::routes;

use super::answer::{NO_CACHE, hold};
use super::domain::Domains;
use super::lookup::look_up;
use super::parameters::Parameters;
use super::source::Source;
use crate::domain_name::{DomainName, DomainNameError, DomainSpelling};
use crate::excerpt::excerpt;
use crate::http::{Budget, Problem};
use files::PageProblems;
use glance::Glances;
use view::Finding;

pub(super) use glance::LastGlance;

/// The page may load its own files and send its form to itself.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
    img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// Sent instead of a page for which there is no memory.
const BUSY: &str = "<!DOCTYPE html><html lang=\"en\"><title>catchall</title>\
    <p>The service is busy. Try again in a moment.</html>";

/// Shared by the handlers of one thread.
#[derive(Clone)]
pub(super) struct PageState {
    domains: Domains,
    glances: Glances,
    /// Memory for pages that are read slowly.
    budget: Budget,
}

impl PageState {
    pub(super) fn new(domains: Domains, source: Source, budget: Budget, last: LastGlance) -> Self {
        Self { domains, glances: Glances::new(source, last), budget }
    }
}

/// The page with everything that it loads.
pub(super) fn routes(page: PageState) -> OpenApiRouter {
    OpenApiRouter::default()
        .routes(routes!(get_page).with_state(page.clone()))
        .routes(routes!(get_live).with_state(page))
        .routes(routes!(files::style))
        .routes(routes!(files::script))
        .routes(routes!(files::icon))
}

/// The parameters of the page, for the API's document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it only describes")]
struct PageParameters {
    /// A domain to look up.
    #[param(inline, value_type = Option<DomainSpelling>)]
    domain: Option<String>,
}

/// `GET /`
#[utoipa::path(
    get,
    path = "/",
    operation_id = "page",
    summary = "Show the page for people",
    description = "A page for people: look up a domain, and see the totals, the rate of the last minutes and \
        the latest changes. If the service uses tokens, the browser asks for a name and a password: the \
        password is the token, and the name can be anything.",
    tag = "Page",
    params(PageParameters),
    responses(
        (status = 200, description = "The page.", body = String, content_type = "text/html; charset=utf-8"),
        (status = 400, description = "The page, with the reason why the domain is not valid.",
            body = String, content_type = "text/html; charset=utf-8"),
        (status = 503, description = "The page, with a sentence in place of data that could not be read.",
            body = String, content_type = "text/html; charset=utf-8",
            headers(("Retry-After" = u32, description = "Seconds to wait before the next try."))),
        PageProblems
    ),
    security((), ("token" = ["read"]))
)]
async fn get_page(State(page): State<PageState>, parameters: Result<Parameters, Problem>) -> Response {
    let PageState { domains: Domains { lookups, threshold }, glances, budget } = page;
    let asked = parameters.and_then(asked);
    let look_up = async {
        match asked {
            Ok(None) => Finding::Nothing,
            Ok(Some(Err((text, reason)))) => Finding::Invalid { text, reason },
            Err(problem) => Finding::Invalid { text: String::new(), reason: problem.detail },
            Ok(Some(Ok(domain))) => match look_up(&lookups, &domain).await {
                Ok(known) => Finding::Known(domain, known.by(threshold)),
                Err(_) => Finding::Unreadable(domain),
            },
        }
    };
    let (answer, glance) = tokio::join!(look_up, glances.take());
    let status = match &answer {
        Finding::Invalid { .. } => StatusCode::BAD_REQUEST,
        Finding::Unreadable(_) => StatusCode::SERVICE_UNAVAILABLE,
        _ if glance.is_none() => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    html(&budget, status, view::page(&answer, glance.as_deref(), threshold)).await
}

/// The name to look up, or the beginning of an invalid one and the reason.
type Asked = Option<Result<DomainName, (String, String)>>;

fn asked(mut parameters: Parameters) -> Result<Asked, Problem> {
    let text = parameters.take::<String>("domain")?;
    parameters.end()?;
    let parse = |text: String| {
        DomainName::parse(text.trim()).map_err(|error| (excerpt(text.trim()), sentence(error)))
    };
    Ok(text.map(parse))
}

fn sentence(error: DomainNameError) -> String {
    match error {
        DomainNameError::Empty => "Write a domain name, as in example.com.".to_owned(),
        error => format!("This is not a domain name: {error}."),
    }
}

/// `GET /page/live`
#[utoipa::path(
    get,
    path = "/page/live",
    operation_id = "page_live",
    summary = "Get the part of the page that changes",
    description = "Totals, the rate of the last minutes and the latest changes, for the script of the page. \
        Programs should use `/totals` and `/changes`.",
    tag = "Page",
    responses(
        (status = 200, description = "The part.", body = String, content_type = "text/html; charset=utf-8"),
        (status = 503, description = "A sentence in its place: the data cannot be read.",
            body = String, content_type = "text/html; charset=utf-8",
            headers(("Retry-After" = u32, description = "Seconds to wait before the next try."))),
        PageProblems
    ),
    security((), ("token" = ["read"]))
)]
async fn get_live(State(page): State<PageState>) -> Response {
    match page.glances.take().await {
        Some(glance) => html(&page.budget, StatusCode::OK, live::live(&glance)).await,
        None => html(&page.budget, StatusCode::SERVICE_UNAVAILABLE, live::unreadable()).await,
    }
}

async fn html(budget: &Budget, status: StatusCode, markup: Markup) -> Response {
    let mut response = Response::new(markup.into_string().into_bytes());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(header::CACHE_CONTROL, NO_CACHE);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    let busy = || {
        let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::RETRY_AFTER, "1")];
        (StatusCode::SERVICE_UNAVAILABLE, headers, BUSY).into_response()
    };
    hold(budget, response).await.unwrap_or_else(|_| busy())
}
