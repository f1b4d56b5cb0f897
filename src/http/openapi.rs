//! The OpenAPI document of a port, made from its handlers, and the routes that serve it.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Components, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::page;
use super::problem::{ProblemDocument, with_problems};

/// The beginning of a document.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// The name of the program.
    pub title: &'static str,
    /// What it does.
    pub description: &'static str,
    /// Its default address, for examples.
    pub address: &'static str,
}

/// The part that is the same for every port.
const EVERYWHERE: &str = "Every error is a problem document (RFC 9457); its `type` is for programs. Some \
    refusals have no document: a request of HTTP/1.1 whose head cannot be read gets a bare `400`, one whose \
    head is larger than 16 kB a bare `431`, and a connection beyond the limit is closed. `OPTIONS` on a \
    known path answers `204` with `Allow`, and `HEAD` answers like `GET` without the body. The port speaks \
    HTTP/1.1 and HTTP/2.";

const TOKEN: &str = "Needed if the service uses tokens. A token has one or more of three scopes: `write` \
    (send events), `read` (ask about domains) and `operate` (read the metrics). A `GET` also accepts it as \
    an HTTP Basic password, with any user name; browsers send it that way.";

/// The page may load its own style and nothing else.
const POLICY: &str =
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The document in its two forms.
struct Documents {
    json: Bytes,
    page: Bytes,
}

impl Documents {
    fn of(api: &OpenApi, address: &str) -> Self {
        let document = serde_json::to_value(api).expect("a document is made of strings and numbers");
        Self { json: document.to_string().into(), page: page::render(&document, address).into() }
    }
}

/// The routes with their document at `/openapi.json` and as a page at `/docs`, and with problem documents for
/// unknown paths and methods.
pub fn documented(about: About, routes: OpenApiRouter) -> Router {
    let (router, api) = OpenApiRouter::with_openapi(beginning(about))
        .merge(routes.with_state(()))
        .routes(routes!(openapi_json))
        .routes(routes!(docs))
        .routes(routes!(style))
        .split_for_parts();
    with_problems(router.with_state(Arc::new(Documents::of(&api, about.address))))
}

/// A document without any request yet.
fn beginning(About { title, description, .. }: About) -> OpenApi {
    let license = LicenseBuilder::new().name("MIT or Apache-2.0").identifier(Some(env!("CARGO_PKG_LICENSE")));
    let info = InfoBuilder::new()
        .title(title)
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(format!("{description} {EVERYWHERE}")))
        .license(Some(license.build()));
    let mut token = Http::new(HttpAuthScheme::Bearer);
    token.description = Some(TOKEN.into());
    let mut components = Components::new();
    components.add_security_scheme("token", SecurityScheme::Http(token));
    // The responses with problems are not seen by the macros, which gather the other schemas.
    let mut schemas = vec![(ProblemDocument::name().into_owned(), ProblemDocument::schema())];
    <ProblemDocument as ToSchema>::schemas(&mut schemas);
    components.schemas.extend(schemas);
    OpenApiBuilder::new().info(info.build()).components(Some(components)).build()
}

/// `GET /openapi.json`
#[utoipa::path(
    get,
    path = "/openapi.json",
    summary = "Get the OpenAPI document",
    description = "An OpenAPI 3.1 document of all requests that this port answers.",
    tag = "This document",
    responses((status = 200, description = "The document.", body = HashMap<String, Value>,
        content_type = "application/json")),
    security(())
)]
async fn openapi_json(State(documents): State<Arc<Documents>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], documents.json.clone())
}

/// `GET /docs`
#[utoipa::path(
    get,
    path = "/docs",
    summary = "Show the API documentation as a page",
    description = "The same as one page, without scripts and without files from other servers.",
    tag = "This document",
    responses(
        (status = 200, description = "The page.", body = String, content_type = "text/html; charset=utf-8")
    ),
    security(())
)]
async fn docs(State(documents): State<Arc<Documents>>) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, documents.page.clone())
}

/// `GET /docs/style.css`
#[utoipa::path(
    get,
    path = "/docs/style.css",
    summary = "The style of the page",
    tag = "This document",
    responses(
        (status = 200, description = "The style.", body = String, content_type = "text/css; charset=utf-8")
    ),
    security(())
)]
async fn style() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("page.css"))
}
