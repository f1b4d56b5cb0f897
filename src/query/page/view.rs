//! The page as HTML.

use maud::{DOCTYPE, Markup, html};

use super::glance::Glance;
use super::live;
use super::words::{Number, ReadableTime, freshness, reason, verdict};
use crate::classified::Classified;
use crate::domain_name::DomainName;

/// The query and its result.
#[derive(Debug)]
pub(super) enum Finding {
    /// Nothing was asked.
    Nothing,
    /// The query is not a domain name.
    Invalid {
        /// The beginning of it.
        text: String,
        reason: String,
    },
    /// It cannot be read now.
    Unreadable(DomainName),
    /// What is known.
    Known(DomainName, Classified),
}

impl Finding {
    fn field(&self) -> &str {
        match self {
            Self::Nothing => "",
            Self::Invalid { text, .. } => text,
            Self::Unreadable(domain) | Self::Known(domain, _) => domain.as_str(),
        }
    }

    fn title(&self) -> String {
        match self {
            Self::Nothing => "catchall".to_owned(),
            Self::Invalid { .. } => "Not a domain name · catchall".to_owned(),
            Self::Unreadable(domain) => format!("{domain} cannot be looked up now · catchall"),
            Self::Known(domain, known) => format!("{domain} {} · catchall", verdict(known.status)),
        }
    }
}

/// The page. `threshold` is the one that look-ups of this process use, if it is not the store's.
pub(super) fn page(answer: &Finding, glance: Option<&Glance>, threshold: Option<u64>) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (answer.title()) }
                link rel="icon" type="image/svg+xml" href="/page/icon.svg";
                link rel="stylesheet" href="/page/style.css";
                script src="/page/script.js" defer {}
            }
            body {
                header { a class="home" href="/" { "catchall" } }
                main {
                    (form(answer))
                    (told(answer, glance, threshold))
                    div id="live" {
                        @match glance {
                            Some(glance) => (live::live(glance)),
                            None => (live::unreadable()),
                        }
                    }
                }
                p id="announcement" class="unseen" role="status" {}
                footer {
                    "catchall " (env!("CARGO_PKG_VERSION")) ". For programs: "
                    a href="/docs" { "the API documentation" } " and the "
                    a href="/openapi.json" { "OpenAPI document" } "."
                }
            }
        }
    }
}

fn form(answer: &Finding) -> Markup {
    let error = match answer {
        Finding::Invalid { reason, .. } => Some(reason),
        _ => None,
    };
    let described = if error.is_some() { "domain-error domain-hint" } else { "domain-hint" };
    html! {
        h1 { "Is a domain a catch-all?" }
        form action="/" method="get" role="search" {
            label for="domain" { "Domain" }
            div class="field" {
                input id="domain" name="domain" type="text" inputmode="url" autocomplete="off"
                    autocapitalize="none" spellcheck="false" value=(answer.field())
                    aria-describedby=(described) aria-invalid=[error.map(|_| "true")]
                    autofocus[error.is_some()];
                button type="submit" { "Look up" }
            }
            @if let Some(reason) = error {
                p id="domain-error" class="error" { (reason) }
            }
            p id="domain-hint" class="soft" {
                "As in example.com or müller.example. Case does not matter, and Unicode is fine."
            }
        }
    }
}

fn told(answer: &Finding, glance: Option<&Glance>, threshold: Option<u64>) -> Markup {
    match answer {
        Finding::Nothing | Finding::Invalid { .. } => html! {},
        Finding::Unreadable(domain) => html! {
            section class="notice" aria-labelledby="answer" {
                h2 id="answer" { (domain) " cannot be looked up now" }
                p {
                    "The database does not answer. "
                    a href={ "/?domain=" (domain) } { "Try again" } " in a moment."
                }
            }
        },
        Finding::Known(domain, known) => {
            let threshold = threshold.or(glance.map(|glance| glance.standing.threshold));
            known_domain(domain, *known, threshold, glance)
        }
    }
}

fn known_domain(
    domain: &DomainName,
    known: Classified,
    threshold: Option<u64>,
    glance: Option<&Glance>,
) -> Markup {
    html! {
        section class={ "answer " (known.status.slug()) } aria-labelledby="answer" {
            h2 id="answer" { span class="domain" { (domain) } " " (verdict(known.status)) }
            @if let Some(unicode) = domain.unicode() {
                p class="soft" { "In Unicode it is written " bdi { (unicode) } "." }
            }
            @if let Some(threshold) = threshold {
                p { (reason(known, threshold)) }
            }
            @if let Some(since) = known.since {
                p { "Since " time datetime=(since) { (ReadableTime(since)) } "." }
            }
            dl class="facts" {
                div { dt { "Delivered" } dd { (Number(known.counters.delivered)) } }
                div { dt { "Bounced" } dd { (Number(known.counters.bounced)) } }
                @if let Some(threshold) = threshold {
                    div { dt { "Threshold" } dd { (Number(threshold)) } }
                }
            }
            p class="soft" {
                @if let Some(glance) = glance { (freshness(glance.standing.lag)) " " }
                a href={ "/domains/" (domain) } { "The same as JSON" }
            }
        }
    }
}
