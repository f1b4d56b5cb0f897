//! The frontier as an SVG picture without dependencies, for light and dark pages.

use std::fmt::Write;

use crate::stats::Step;

/// Sizes in pixels.
const WIDTH: f64 = 860.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 136.0;
const TOP: f64 = 40.0;
const PANEL: f64 = 190.0;
const GAP: f64 = 46.0;
const BOTTOM: f64 = 56.0;

/// Follows the colour scheme of the page; the default is light.
const STYLE: &str = "\
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .page { fill: #ffffff } .small { font-size: 12px }
.grid { stroke: #d1d9e0; stroke-width: 1 } .line { fill: none; stroke-width: 2.2 }
.system { stroke: #0969da } .floor { stroke: #8a6d00; stroke-dasharray: 6 4 } .tail { stroke: #bc4c00 }
circle { stroke: none } circle.system { fill: #0969da } circle.floor { fill: #8a6d00 }
circle.tail { fill: #bc4c00 }
text.system { fill: #0969da; stroke: none } text.floor { fill: #8a6d00; stroke: none }
text.tail { fill: #bc4c00; stroke: none }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .page { fill: #0d1117 } .grid { stroke: #3d444d }
.system { stroke: #58a6ff } .floor { stroke: #d29922 } .tail { stroke: #ff9a4d }
circle.system, text.system { fill: #58a6ff } circle.floor, text.floor { fill: #d29922 }
circle.tail, text.tail { fill: #ff9a4d }
}";

/// The scale of an axis.
#[derive(Clone, Copy)]
enum Axis {
    /// It starts at zero.
    Linear,
    /// Each power of ten has the same height.
    Logarithmic,
}

/// A line: its label, its CSS class and its values.
type Line<'a> = (&'a str, &'a str, Vec<f64>);

/// Draws the steps.
pub(crate) fn svg(steps: &[Step]) -> String {
    let values = |of: fn(&Step) -> f64| steps.iter().map(of).collect::<Vec<f64>>();
    let panels: [(&str, Axis, Vec<Line<'_>>); 3] = [
        (
            "events per second",
            Axis::Linear,
            vec![
                ("PUT", "system", values(|step| step.rate)),
                ("does nothing", "floor", values(|step| step.floor)),
            ],
        ),
        (
            "latency in ms",
            Axis::Logarithmic,
            vec![
                ("PUT, p99", "tail", values(|step| step.p99_ms)),
                ("PUT, p50", "system", values(|step| step.p50_ms)),
                ("does nothing, p50", "floor", values(|step| step.floor_p50_ms)),
            ],
        ),
        (
            "processor time in µs per event, all processes",
            Axis::Logarithmic,
            vec![("PUT", "system", values(|step| step.micros))],
        ),
    ];
    let height = TOP + 3.0 * PANEL + 2.0 * GAP + BOTTOM;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <title>PUT over HTTP/1.1 by number of connections</title>\n\
         <desc>Rate, latency and cost from 1 to 2,048 connections, \
         beside an HTTP server that does nothing</desc>\n\
         <style>{STYLE}</style>\n<rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\" rx=\"6\"/>\n"
    );
    let tops = [0.0, 1.0, 2.0].map(|above| TOP + above * (PANEL + GAP));
    for ((title, axis, lines), top) in panels.into_iter().zip(tops) {
        panel(&mut svg, steps, top, title, axis, &lines);
    }
    let (middle, bottom) = ((LEFT + WIDTH - RIGHT) / 2.0, height - 14.0);
    text(&mut svg, middle, bottom, "middle", "", "connections, each with one request on its way");
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, steps: &[Step], top: f64, title: &str, axis: Axis, lines: &[Line<'_>]) {
    let bottom = top + PANEL;
    let all = lines.iter().flat_map(|(_, _, values)| values).copied().filter(|value| *value > 0.0);
    let (least, most) =
        all.fold((f64::MAX, f64::MIN), |(least, most), value| (least.min(value), most.max(value)));
    let (ticks, low, high) = axis.ticks(least, most);
    let y = |value: f64| bottom - PANEL * axis.share(value, low, high);
    text(svg, LEFT, top - 10.0, "start", "", title);
    for tick in ticks {
        grid(svg, LEFT, y(tick), WIDTH - RIGHT, y(tick));
        text(svg, LEFT - 8.0, y(tick) + 4.0, "end", "small", &grouped(tick));
    }
    let last = steps.last().map_or(2, |step| step.connections.max(2));
    let x = |connections: u32| {
        LEFT + (WIDTH - LEFT - RIGHT) * f64::from(connections).log2() / f64::from(last).log2()
    };
    for power in (0..32).map(|power| 1_u32 << power).take_while(|power| *power <= last) {
        grid(svg, x(power), top, x(power), bottom);
        text(svg, x(power), bottom + 17.0, "middle", "small", &grouped(f64::from(power)));
    }
    let mut labels = Vec::new();
    for (name, class, values) in lines {
        let points = steps.iter().zip(values).filter(|(_, value)| **value > 0.0);
        let points: Vec<(f64, f64)> = points.map(|(step, value)| (x(step.connections), y(*value))).collect();
        let path = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ");
        let _ = writeln!(svg, "<polyline class=\"line {class}\" points=\"{path}\"/>");
        for (x, y) in &points {
            let _ = writeln!(svg, "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>");
        }
        labels.extend(points.last().map(|(_, y)| (*y, *name, *class)));
    }
    // From the top down, without overlap.
    labels.sort_by(|left, right| left.0.total_cmp(&right.0));
    let mut free = top;
    for (y, name, class) in labels {
        let y = y.max(free);
        text(svg, WIDTH - RIGHT + 10.0, y + 4.0, "start", class, name);
        free = y + 16.0;
    }
}

impl Axis {
    /// The grid lines, and the range of the axis.
    fn ticks(self, least: f64, most: f64) -> (Vec<f64>, f64, f64) {
        match self {
            Self::Linear => {
                let rough = most.max(1.0) / 4.0;
                let power = 10_f64.powf(rough.log10().floor());
                let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|times| times * power);
                let step = step.into_iter().find(|step| *step >= rough).unwrap_or(10.0 * power);
                let ticks: Vec<f64> = (0..=4).map(|place| f64::from(place) * step).collect();
                (ticks, 0.0, 4.0 * step)
            }
            Self::Logarithmic => {
                let (low, high) =
                    (least.log10().floor(), most.log10().ceil().max(least.log10().floor() + 1.0));
                let ticks = (0..).map(|place| low + f64::from(place)).take_while(|power| *power <= high);
                (ticks.map(|power| 10_f64.powf(power)).collect(), 10_f64.powf(low), 10_f64.powf(high))
            }
        }
    }

    /// The height of a value as a share of the panel.
    fn share(self, value: f64, low: f64, high: f64) -> f64 {
        match self {
            Self::Linear => (value - low) / (high - low),
            Self::Logarithmic => (value / low).log10() / (high / low).log10(),
        }
    }
}

fn grid(svg: &mut String, x1: f64, y1: f64, x2: f64, y2: f64) {
    let _ =
        writeln!(svg, "<line class=\"grid\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>");
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, class: &str, words: &str) {
    let _ = writeln!(
        svg,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
    );
}

/// A number with commas between the thousands.
fn grouped(number: f64) -> String {
    if number < 1.0 && number > 0.0 {
        return format!("{number}");
    }
    let digits = format!("{number:.0}");
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
