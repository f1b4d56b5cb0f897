//! The part of the page that is refreshed: totals, the last minutes, the latest changes.

use maud::{Markup, html};

use super::chart::{chart, minutes, rows};
use super::glance::Glance;
use super::words::{Number, ReadableTime, count};
use crate::classified::DomainReport;
use crate::counters::Status;
use crate::query::totals::MINUTES;

/// The notice that the data cannot be shown now.
pub(super) fn unreadable() -> Markup {
    html! {
        section class="notice" aria-labelledby="unreadable" {
            h2 id="unreadable" { "The totals cannot be read now" }
            p { "The database does not answer. " a href="/" { "Try again" } " in a moment." }
        }
    }
}

/// The whole part.
pub(super) fn live(glance: &Glance) -> Markup {
    html! {
        (totals(glance))
        (rate(glance))
        (latest(glance))
    }
}

fn totals(glance: &Glance) -> Markup {
    let (domains, events) = (&glance.totals.domains, &glance.totals.events);
    html! {
        section aria-labelledby="totals-title" {
            h2 id="totals-title" { "Domains by status" }
            div id="totals" {
                dl class="numbers" {
                    (figure(Status::CatchAll, domains.catch_all))
                    (figure(Status::NotCatchAll, domains.not_catch_all))
                    (figure(Status::Unknown, domains.unknown))
                }
                p class="soft" {
                    "By " (count(events.delivered, "delivered message", "delivered messages"))
                    " and " (count(events.bounced, "bounce", "bounces")) " in all."
                }
            }
        }
    }
}

fn figure(status: Status, number: u64) -> Markup {
    html! {
        div {
            dt { span class={ "mark " (status.slug()) } aria-hidden="true" {} (status.name()) }
            dd { (Number(number)) }
        }
    }
}

fn rate(glance: &Glance) -> Markup {
    let minutes = minutes(&glance.totals.minutes, glance.read_at, MINUTES);
    let recent = &glance.totals.recent;
    html! {
        section aria-labelledby="rate-title" {
            h2 id="rate-title" { "Events per minute" }
            div id="chart" {
                p class="soft" {
                    (count(recent.minute, "event", "events")) " in the last minute, "
                    (Number(recent.hour)) " in the last hour."
                }
                (chart(&minutes))
            }
            details {
                summary { "The same as a table" }
                table {
                    caption { "Events of each minute (UTC), the last one first" }
                    thead {
                        tr { @for name in ["Minute", "Delivered", "Bounced"] { th scope="col" { (name) } } }
                    }
                    tbody id="minutes" { (rows(&minutes)) }
                }
            }
        }
    }
}

fn latest(glance: &Glance) -> Markup {
    let (changes, position) = (&glance.latest.changes, glance.latest.position());
    html! {
        section aria-labelledby="latest-title" {
            h2 id="latest-title" { "Latest changes" }
            p id="state" class="soft" {
                "As of " time datetime=(glance.read_at) { (ReadableTime(glance.read_at)) } ". "
                a href="/" { "Read again" }
            }
            p id="none" class="nothing" hidden[!changes.is_empty()] {
                "No domain has changed its status yet."
            }
            ol id="changes" class="changes" data-position=(position) {
                @for change in changes { (row(Some(&change.report))) }
            }
            // The template from which the script makes further rows.
            template id="change" { (row(None)) }
        }
    }
}

fn row(report: Option<&DomainReport>) -> Markup {
    let status = report.map(|report| report.status);
    let domain = report.map(|report| report.domain.as_str());
    let link = domain.map(|domain| format!("/?domain={domain}"));
    let since = report.and_then(|report| report.since);
    let (delivered, bounced) = report.map(|report| (report.delivered, report.bounced)).unwrap_or_default();
    html! {
        li {
            a class="domain" href=[link] { (domain.unwrap_or_default()) }
            span class="status" {
                span class={ "mark " (status.map(Status::slug).unwrap_or_default()) } aria-hidden="true" {}
                span class="name" { (status.map(Status::name).unwrap_or_default()) }
            }
            span class="counts" {
                span class="delivered" { (Number(delivered)) } " delivered, "
                span class="bounced" { (Number(bounced)) } " bounced"
            }
            @if let Some(since) = since {
                time datetime=(since) { (ReadableTime(since)) }
            } @else {
                time {}
            }
        }
    }
}
