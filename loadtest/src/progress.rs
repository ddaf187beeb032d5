//! One progress bar on the terminal; nothing if stderr is not one.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over a known number of things, with their rate and the time left.
pub fn counting(label: &str, total: u64) -> ProgressBar {
    styled(label, total, "{msg} [{bar:32}] {human_pos}/{human_len} {per_sec} {eta} left")
}

/// A bar over a known time, in milliseconds; the text after it is the caller's (`set_prefix`).
pub fn timing(label: &str, total: Duration) -> ProgressBar {
    styled(label, u64::try_from(total.as_millis()).unwrap_or(u64::MAX), "{msg} [{bar:32}] {prefix}")
}

fn styled(label: &str, total: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("constant template is valid").progress_chars("=> ");
    ProgressBar::new(total).with_style(style).with_message(label.to_owned())
}
