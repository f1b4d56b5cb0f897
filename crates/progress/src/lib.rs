//! Progress: a bar on a terminal, a line every few seconds elsewhere. Always on standard error.

use std::io::{IsTerminal, stderr};
use std::pin::pin;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{MissedTickBehavior, interval};

pub use indicatif::HumanCount;

/// How often a bar is drawn.
const REDRAW: Duration = Duration::from_millis(200);

/// How often a line is written.
const LINE: Duration = Duration::from_secs(5);

/// Where progress is shown.
#[derive(Clone, Copy, Debug)]
pub enum Display {
    /// As a bar that moves.
    Terminal,
    /// As lines, as for a log.
    Lines,
}

/// The progress of some work.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// How many are done.
    pub done: u64,
    /// A text that follows the numbers.
    pub note: String,
    /// Lines that stay on the screen above the bar. Each is printed once.
    pub lines: Vec<String>,
}

impl Display {
    /// A terminal, if standard error is one.
    #[must_use]
    pub fn detect() -> Self {
        if stderr().is_terminal() { Self::Terminal } else { Self::Lines }
    }

    /// Shows progress while `work` runs: how many of `total` things, called `unit`, are done.
    pub async fn follow<F: Future>(
        self,
        phase: &'static str,
        unit: &'static str,
        total: u64,
        progress: impl Fn() -> Progress,
        work: F,
    ) -> F::Output {
        let mut meter = Meter::new(self, phase, unit, total);
        let mut ticks = interval(match self {
            Self::Terminal => REDRAW,
            Self::Lines => LINE,
        });
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                output = &mut work => {
                    meter.say(&progress().lines);
                    meter.bar.finish_and_clear();
                    return output;
                }
                _ = ticks.tick() => meter.show(&progress()),
            }
        }
    }
}

struct Meter {
    phase: &'static str,
    unit: &'static str,
    total: u64,
    bar: ProgressBar,
    /// The time and the progress of the last few ticks, oldest first.
    seen: Vec<(Instant, u64)>,
}

/// The rate is the mean over so many ticks, so that it is steady enough to read.
const SMOOTH: usize = 10;

impl Meter {
    fn new(display: Display, phase: &'static str, unit: &'static str, total: u64) -> Self {
        let bar = match display {
            Display::Terminal => ProgressBar::new(total),
            Display::Lines => ProgressBar::hidden(),
        };
        let style =
            ProgressStyle::with_template("{prefix} {wide_bar:.green} {percent:>3} %  {msg}  {eta} left");
        let style = style.expect("the template is well-formed").progress_chars("━╸─");
        bar.set_style(style);
        bar.set_prefix(phase);
        Self { phase, unit, total, bar, seen: vec![(Instant::now(), 0)] }
    }

    fn say(&self, lines: &[String]) {
        for line in lines {
            if self.bar.is_hidden() {
                eprintln!("{line}");
            } else {
                self.bar.println(line);
            }
        }
    }

    fn show(&mut self, progress: &Progress) {
        self.say(&progress.lines);
        let now = Instant::now();
        let (since, before) = self.seen[0];
        #[expect(clippy::cast_precision_loss, reason = "a rate to look at")]
        let rate = progress.done.saturating_sub(before) as f64 / now.duration_since(since).as_secs_f64();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is not negative")]
        let rate = HumanCount(if rate.is_finite() { rate as u64 } else { 0 });
        let (done, total) = (HumanCount(progress.done), HumanCount(self.total));
        if self.bar.is_hidden() {
            // The first tick comes at once, when nothing is done yet.
            if progress.done > 0 || self.seen.len() > 1 {
                eprintln!("{}: {done} of {total} {}, {rate}/s{}", self.phase, self.unit, progress.note);
            }
        } else {
            self.bar.set_message(format!("{done} {}, {rate}/s{}", self.unit, progress.note));
            self.bar.set_position(progress.done);
            self.bar.tick();
        }
        self.seen.push((now, progress.done));
        // A line shows the rate since the previous line; a bar is drawn too often for that.
        let keep = if self.bar.is_hidden() { 1 } else { SMOOTH };
        let surplus = self.seen.len().saturating_sub(keep);
        self.seen.drain(..surplus);
    }
}
