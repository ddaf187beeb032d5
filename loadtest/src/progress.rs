//! One progress bar on the terminal; a plain line now and then if stderr is none, so that a log of a long run shows that
//! it goes on.

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

/// From one plain line to the next.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A bar over a known number of things, with their rate and the time left.
pub fn counting(label: &str, total: u64) -> ProgressBar {
    styled(label, total, "{msg} [{bar:32}] {human_pos}/{human_len} {per_sec} {eta} left")
}

/// A bar over a known time, in milliseconds; the text after it is the caller's (`set_prefix`).
pub fn timing(label: &str, total: Duration) -> ProgressBar {
    styled(label, u64::try_from(total.as_millis()).unwrap_or(u64::MAX), "{msg} [{bar:32}] {percent}% {prefix}")
}

fn styled(label: &str, total: u64, template: &str) -> ProgressBar {
    let (template, target) = match io::stderr().is_terminal() {
        true => (template.to_owned(), ProgressDrawTarget::stderr()),
        false => {
            let lines = Lines::new(LINE_EVERY, Box::new(io::stderr()));
            (template.replace("[{bar:32}] ", ""), ProgressDrawTarget::term_like_with_hz(Box::new(lines), 1))
        }
    };
    let style = ProgressStyle::with_template(&template).expect("constant template is valid").progress_chars("=> ");
    ProgressBar::with_draw_target(Some(total), target).with_style(style).with_message(label.to_owned())
}

/// Takes what is drawn for a terminal and lets through what a log should hold: one line in so much time, no cursor.
struct Lines {
    every: Duration,
    state: Mutex<State>,
}

struct State {
    /// What was drawn since the last flush.
    drawn: String,
    last: Instant,
    out: Box<dyn Write + Send>,
}

impl Lines {
    fn new(every: Duration, out: Box<dyn Write + Send>) -> Self {
        Self { every, state: Mutex::new(State { drawn: String::new(), last: Instant::now(), out }) }
    }

    fn with(&self, action: impl FnOnce(&mut State) -> io::Result<()>) -> io::Result<()> {
        action(&mut self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("every", &self.every).finish_non_exhaustive()
    }
}

impl TermLike for Lines {
    fn width(&self) -> u16 {
        100
    }

    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(text)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.with(|state| {
            state.drawn.push_str(text);
            Ok(())
        })
    }

    fn clear_line(&self) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let every = self.every;
        self.with(|state| {
            let line = std::mem::take(&mut state.drawn);
            let line = line.trim();
            if line.is_empty() || state.last.elapsed() < every {
                return Ok(());
            }
            state.last = Instant::now();
            writeln!(state.out, "{line}")
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn drawn(every: Duration) -> String {
        let log = Log::default();
        let target = ProgressDrawTarget::term_like(Box::new(Lines::new(every, Box::new(log.clone()))));
        let style = ProgressStyle::with_template("{msg} {pos}/{len}").unwrap();
        let bar = ProgressBar::with_draw_target(Some(3), target).with_style(style).with_message("loading");
        bar.tick();
        bar.set_position(2);
        bar.tick();
        bar.finish_and_clear();
        let bytes = log.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_log_gets_plain_lines() {
        let text = drawn(Duration::ZERO);
        assert!(text.lines().any(|line| line == "loading 2/3"), "{text:?}");
        assert!(!text.contains(['\r', '\u{1b}']), "{text:?}");
    }

    #[test]
    fn lines_are_not_written_more_often_than_they_should() {
        assert_eq!(drawn(Duration::from_secs(3_600)), "");
    }
}
