//! Progress for people, on stderr: a bar with rate and time left on a terminal, otherwise a line at
//! most every ten seconds and one at the end.
//!
//! Silent until the program calls [`show`], so that library code and tests print nothing.

use crate::base::{human, terminal};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

const LINE_INTERVAL: Duration = Duration::from_secs(10);

static SHOWN: AtomicBool = AtomicBool::new(false);
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Shows progress from now on.
pub fn show() {
    SHOWN.store(true, Ordering::Relaxed);
}

/// Runs `write` while the bars are hidden.
pub fn suspend<R>(write: impl FnOnce() -> R) -> R {
    if SHOWN.load(Ordering::Relaxed) { BARS.suspend(write) } else { write() }
}

/// The progress of one task of known size. Threads may share it.
pub struct Progress(View);

enum View {
    Hidden,
    Bar(ProgressBar),
    Lines(Mutex<Lines>),
}

struct Lines {
    label: String,
    unit: String,
    total: u64,
    done: u64,
    skipped: u64,
    message: String,
    started: Instant,
    printed: Instant,
    printed_done: u64,
}

impl Progress {
    /// Starts a task of `total` `unit`s, such as `("sft", 600, "steps")`.
    pub fn new(label: &str, total: u64, unit: &str) -> Self {
        Self(if !SHOWN.load(Ordering::Relaxed) {
            View::Hidden
        } else if terminal::is_terminal(&std::io::stderr()) {
            View::Bar(bar(label, total, unit))
        } else {
            let lines = Lines::new(label, total, unit);
            terminal::line(format_args!("{label}: {} {unit}", human::count(total)));
            View::Lines(Mutex::new(lines))
        })
    }

    /// Starts a task that nobody watches.
    pub fn hidden() -> Self {
        Self(View::Hidden)
    }

    /// Counts `n` units that an earlier run did; they do not enter the rate.
    pub fn skip(&self, n: u64) {
        match &self.0 {
            View::Hidden => {}
            View::Bar(bar) => {
                bar.inc(n);
                bar.reset_eta();
            }
            View::Lines(lines) => {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.done += n;
                lines.skipped += n;
            }
        }
    }

    /// Counts `n` more units.
    pub fn inc(&self, n: u64) {
        match &self.0 {
            View::Hidden => {}
            View::Bar(bar) => bar.inc(n),
            View::Lines(lines) => {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.done += n;
                if lines.printed.elapsed() >= LINE_INTERVAL {
                    lines.print();
                }
            }
        }
    }

    /// Sets the text behind the numbers, such as the latest loss.
    pub fn set_message(&self, message: impl Into<String>) {
        match &self.0 {
            View::Hidden => {}
            View::Bar(bar) => bar.set_message(message.into()),
            View::Lines(lines) => {
                lines.lock().unwrap_or_else(PoisonError::into_inner).message = message.into();
            }
        }
    }

    /// Ends the task and leaves its last state on the screen.
    pub fn finish(self) {
        match &self.0 {
            View::Hidden => {}
            View::Bar(bar) => bar.abandon(),
            View::Lines(lines) => {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.printed_done != lines.done {
                    lines.print();
                }
            }
        }
    }
}

fn bar(label: &str, total: u64, unit: &str) -> ProgressBar {
    let template = format!(
        "{{prefix:<10}} {{bar:18.cyan/238}} {{human_pos}}/{{human_len}} {unit}  {{rate}}  \
         {{left}}  {{wide_msg}}"
    );
    let style = ProgressStyle::with_template(&template)
        .expect("invariant: the template is well formed")
        .with_key("rate", |state: &indicatif::ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = out.write_str(&rate(state.per_sec()));
        })
        .with_key("left", |state: &indicatif::ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = match state.len() {
                Some(len) if state.pos() >= len => {
                    write!(out, "in {}", human::duration(state.elapsed().as_secs_f64()))
                }
                _ if state.pos() == 0 => Ok(()),
                _ => write!(out, "{} left", human::duration(state.eta().as_secs_f64())),
            };
        })
        .progress_chars("━━━");
    let bar = BARS.add(ProgressBar::new(total).with_style(style));
    bar.set_prefix(label.to_owned());
    bar
}

fn rate(per_second: f64) -> String {
    match per_second {
        r if r >= 1000.0 => format!("{}/s", human::count(r as u64)),
        r if r >= 10.0 => format!("{r:.0}/s"),
        r if r >= 1.0 => format!("{r:.1}/s"),
        r if r > 0.0 => format!("{} each", human::duration(1.0 / r)),
        _ => "-".to_owned(),
    }
}

impl Lines {
    fn new(label: &str, total: u64, unit: &str) -> Self {
        let now = Instant::now();
        Self {
            label: label.to_owned(),
            unit: unit.to_owned(),
            total,
            done: 0,
            skipped: 0,
            message: String::new(),
            started: now,
            printed: now,
            printed_done: 0,
        }
    }

    fn print(&mut self) {
        terminal::line(self.text(self.started.elapsed().as_secs_f64()));
        self.printed = Instant::now();
        self.printed_done = self.done;
    }

    fn text(&self, elapsed_secs: f64) -> String {
        let per_second = (self.done - self.skipped) as f64 / elapsed_secs.max(1e-9);
        let left = self.total.saturating_sub(self.done) as f64;
        let time = match left {
            0.0 => format!("in {}", human::duration(elapsed_secs)),
            _ if per_second == 0.0 => "- left".to_owned(),
            left => format!("{} left", human::duration(left / per_second)),
        };
        let (done, total) = (human::count(self.done), human::count(self.total));
        let head = format!("{}: {done}/{total} {}", self.label, self.unit);
        format!("{head}  {}  {time}  {}", rate(per_second), self.message).trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_done_how_fast_and_what_is_left() {
        let mut lines = Lines::new("sft", 1_200, "steps");
        lines.done = 300;
        lines.skipped = 100;
        lines.message = "loss 1.25".into();
        assert_eq!(lines.text(10.0), "sft: 300/1,200 steps  20/s  45 s left  loss 1.25");
        lines.done = 1_200;
        lines.message.clear();
        assert_eq!(lines.text(2_200.0), "sft: 1,200/1,200 steps  2.0 s each  in 36 min 40 s");
    }

    #[test]
    fn nothing_is_shown_before_the_program_asks() {
        let progress = Progress::new("quiet", 3, "things");
        assert!(matches!(progress.0, View::Hidden));
        progress.inc(3);
        progress.finish();
    }

    #[test]
    fn the_bar_template_is_well_formed() {
        let bar = bar("sft", 10, "steps");
        bar.inc(1);
        bar.abandon();
    }
}
