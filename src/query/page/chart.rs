//! The events of the last minutes, as a chart and as rows of a table.

use maud::{Markup, html};

use super::words::{Minute, Number, count};
use crate::totals::MinuteTotals;
use crate::utc_time::UtcTime;

const MINUTE: i64 = 60_000;

/// The drawing's own units. It is stretched to the available space.
const BAR: usize = 10;
const GAP: usize = 2;
const HEIGHT: u64 = 1000;

/// Each of the last minutes, the oldest first, including those in which nothing was counted.
pub(super) fn minutes(counted: &[MinuteTotals], now: UtcTime, number: u32) -> Vec<MinuteTotals> {
    let newest = counted.last().map_or(now, |last| last.at.max(now)).0.div_euclid(MINUTE);
    let at = (0..i64::from(number)).rev().map(|ago| UtcTime((newest - ago) * MINUTE));
    let of = |at: UtcTime| counted.iter().find(|minute| minute.at == at).copied();
    at.map(|at| of(at).unwrap_or(MinuteTotals { at, delivered: 0, bounced: 0 })).collect()
}

fn sum(minute: &MinuteTotals) -> u64 {
    minute.delivered.saturating_add(minute.bounced)
}

/// The height of a bar. A minute with any events gets at least a fiftieth, so that it can be seen.
fn height(events: u64, peak: u64) -> u64 {
    let part = u128::from(events) * u128::from(HEIGHT) / u128::from(peak.max(1));
    let least = if events == 0 { 0 } else { HEIGHT / 50 };
    u64::try_from(part).unwrap_or(HEIGHT).max(least)
}

/// The chart, with its description in words.
pub(super) fn chart(minutes: &[MinuteTotals]) -> Markup {
    let peak = minutes.iter().map(sum).max().unwrap_or_default();
    let number = minutes.len();
    if peak == 0 {
        return html! { p class="nothing" { "No event was counted in the last " (number) " minutes." } };
    }
    let label = format!(
        "Bar chart of the last {number} minutes: at most {} in one, and {} in the last. The table has all.",
        count(peak, "event", "events"),
        Number(minutes.last().map(sum).unwrap_or_default())
    );
    let view = format!("0 0 {} {HEIGHT}", number * BAR);
    html! {
        p class="peak" { "Peak: " (count(peak, "event", "events")) " in a minute" }
        svg role="img" aria-label=(label) viewBox=(view) preserveAspectRatio="none" {
            @for (place, minute) in minutes.iter().enumerate() {
                @let (all, bounced) = (height(sum(minute), peak), height(minute.bounced, peak));
                g {
                    title { (Minute(minute.at)) ": " (words(minute)) }
                    rect class="delivered" x=(place * BAR) y=(HEIGHT - all) width=(BAR - GAP) height=(all) {}
                    rect class="bounced" x=(place * BAR) y=(HEIGHT - all) width=(BAR - GAP)
                        height=(bounced.min(all)) {}
                }
            }
        }
        p class="axis" aria-hidden="true" {
            span { (minutes.first().map(|first| Minute(first.at).to_string()).unwrap_or_default()) }
            span { (minutes.last().map(|last| Minute(last.at).to_string()).unwrap_or_default()) " UTC" }
        }
        p class="key" {
            span { span class="swatch delivered" aria-hidden="true" {} "delivered" }
            span { span class="swatch bounced" aria-hidden="true" {} "bounced" }
        }
    }
}

fn words(minute: &MinuteTotals) -> String {
    format!("{} delivered, {} bounced", Number(minute.delivered), Number(minute.bounced))
}

/// The rows of the table, the last minute first.
pub(super) fn rows(minutes: &[MinuteTotals]) -> Markup {
    html! {
        @for minute in minutes.iter().rev() {
            tr {
                th scope="row" { time datetime=(minute.at) { (Minute(minute.at)) } }
                td { (Number(minute.delivered)) }
                td { (Number(minute.bounced)) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_without_events_are_filled_in() {
        let counted = [MinuteTotals { at: UtcTime(2 * MINUTE), delivered: 5, bounced: 1 }];
        let filled = minutes(&counted, UtcTime(4 * MINUTE + 59_999), 4);
        let seen: Vec<_> = filled.iter().map(|minute| (minute.at.0 / MINUTE, sum(minute))).collect();
        assert_eq!(seen, [(1, 0), (2, 6), (3, 0), (4, 0)]);
        // A server whose clock is ahead of this one.
        let filled = minutes(&counted, UtcTime(MINUTE), 2);
        assert_eq!(filled.last().map(|last| last.at), Some(UtcTime(2 * MINUTE)));
    }

    #[test]
    fn whatever_was_counted_can_be_seen() {
        assert_eq!(height(0, 7), 0);
        assert_eq!(height(7, 7), HEIGHT);
        assert_eq!(height(1, u64::MAX), HEIGHT / 50);
        assert_eq!(height(u64::MAX, u64::MAX), HEIGHT);
    }
}
