//! Follows something that takes its time, until it has ended or patience has.
//!
//! Placement is asked again and again: it tells nobody by itself. An answer that does not come (a leader is being elected,
//! a proxy is restarted) is asked for again, at another endpoint if need be.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::MissedTickBehavior;

use super::connection::Connection;
use crate::args::types::Output;

/// Time between two questions.
const LOOK: Duration = Duration::from_millis(500);
/// Least time between two lines where there is no terminal.
const LINE: Duration = Duration::from_secs(2);
/// Steps of the bar.
const STEPS: u64 = 1_000;

/// What was seen.
pub enum Look<T> {
    /// It goes on.
    Going {
        /// How much of it is done, 0 to 1.
        share: f64,
        /// Where it is, and for what it waits.
        said: String,
    },
    /// It has ended, so.
    Ended(T),
}

/// Follows `what` with `look`, which fails only where it cannot ask.
pub async fn follow<T>(
    connection: &mut Connection,
    output: Output,
    patience: Duration,
    what: &str,
    mut look: impl AsyncFnMut(&mut Connection) -> Result<Look<T>>,
) -> Result<T> {
    let (begun, mut progress) = (Instant::now(), Progress::new(output));
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let last = match look(connection).await {
            Ok(Look::Ended(end)) => {
                progress.clear();
                return Ok(end);
            }
            Ok(Look::Going { share, said }) => {
                progress.show(Some(share), &said);
                said
            }
            Err(error) => {
                let said = format!("{error:#}");
                progress.show(None, &said);
                // The next look says what is wrong if nobody can be dialled.
                _ = connection.reopen().await;
                said
            }
        };
        if begun.elapsed() >= patience {
            progress.clear();
            bail!("{what} is not done after {} s: {last}", patience.as_secs());
        }
    }
}

/// How progress is shown: never on stdout, which has the answer only.
enum Progress {
    Bar(ProgressBar),
    Lines(Lines),
    /// Programs want the answer only.
    Silent,
}

impl Progress {
    fn new(output: Output) -> Self {
        match output {
            Output::Json => Self::Silent,
            Output::Table if io::stderr().is_terminal() => {
                let style = ProgressStyle::with_template("{percent:>3} % [{bar:30}] {elapsed} {wide_msg}");
                let style = style.expect("the template is right").progress_chars("=> ");
                let bar = ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::stderr());
                Self::Bar(bar.with_style(style))
            }
            Output::Table => Self::Lines(Lines::default()),
        }
    }

    fn show(&mut self, share: Option<f64>, said: &str) {
        match self {
            Self::Bar(bar) => {
                if let Some(share) = share {
                    bar.set_position((share.clamp(0.0, 1.0) * STEPS as f64) as u64);
                }
                bar.set_message(said.to_owned());
            }
            Self::Lines(lines) => {
                if let Some(line) = lines.next(share, said, Instant::now()) {
                    // Nobody reads it any more: that ends nothing.
                    _ = writeln!(io::stderr(), "{line}");
                }
            }
            Self::Silent => {}
        }
    }

    fn clear(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// A line for each thing that is new, not more often than [`LINE`].
#[derive(Default)]
struct Lines {
    last: Option<(Instant, String)>,
    share: f64,
}

impl Lines {
    fn next(&mut self, share: Option<f64>, said: &str, now: Instant) -> Option<String> {
        self.share = share.unwrap_or(self.share);
        let line = format!("{:>3.0} %  {said}", self.share.clamp(0.0, 1.0) * 100.0);
        if self.last.as_ref().is_some_and(|(at, last)| *last == line || now.duration_since(*at) < LINE) {
            return None;
        }
        self.last = Some((now, line.clone()));
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_what_is_new_and_not_too_often() {
        let (mut lines, begun) = (Lines::default(), Instant::now());
        let mut at = |millis, share, said: &str| lines.next(share, said, begun + Duration::from_millis(millis));
        assert_eq!(at(0, Some(0.0), "a").as_deref(), Some("  0 %  a"));
        assert_eq!(at(500, Some(0.1), "b"), None, "too soon");
        assert_eq!(at(2_000, Some(0.255), "b").as_deref(), Some(" 26 %  b"));
        assert_eq!(at(60_000, Some(0.255), "b"), None, "nothing new");
        assert_eq!(at(61_000, None, "no answer").as_deref(), Some(" 26 %  no answer"));
        assert_eq!(at(64_000, Some(7.0), "c").as_deref(), Some("100 %  c"));
    }
}
