//! A comparison as one picture: a bar for each row, from 1 (as fast as the other) to the ratio, with its spread.
//!
//! ```text
//!              0.5×        1×         2×        4×
//!  put:64       ·          ├██████████┼─┤        ·   2.1×
//!  get:64       ·      ├─┼█┤          ·          ·   0.8×
//! ```
//!
//! The axis is logarithmic, so that twice as fast and half as fast are equally long. The file carries its colours for light
//! and for dark backgrounds.

use std::fmt::Write;

use super::{Outcome, Ratio};

/// One bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Its name, at the left.
    pub name: String,
    /// How long it is.
    pub ratio: Ratio,
    /// Shown behind the ratio.
    pub note: &'static str,
}

const WIDTH: f64 = 860.0;
const NAMES: f64 = 230.0;
const FIGURES: f64 = 170.0;
const TOP: f64 = 74.0;
const ROW: f64 = 26.0;
const BAR: f64 = 14.0;
const BOTTOM: f64 = 46.0;

/// Ratios beyond these are drawn at the edge; their figure says what they are.
const LEAST: f64 = 1.0 / 64.0;
const MOST: f64 = 1024.0;

const STYLE: &str = "\
  .back { fill: #ffffff } .text { fill: #1f2328 } .dim { fill: #59636e } .line { stroke: #d1d9e0 }
  .one { stroke: #59636e } .good { fill: #2f81c7 } .bad { fill: #d1622b } .spread { stroke: #1f2328 }
  @media (prefers-color-scheme: dark) {
    .back { fill: #0d1117 } .text { fill: #f0f6fc } .dim { fill: #9198a1 } .line { stroke: #3d444d }
    .one { stroke: #9198a1 } .good { fill: #4a9be8 } .bad { fill: #e58452 } .spread { stroke: #f0f6fc }
  }
  text { font: 13px system-ui, -apple-system, 'Segoe UI', sans-serif } .title { font-size: 16px; font-weight: 600 }";

/// The chart of a whole comparison.
pub fn of(outcome: &Outcome) -> String {
    let [a, b] = &outcome.sides;
    let bars: Vec<_> = outcome
        .rows
        .iter()
        .map(|row| Bar { name: row.row.clone(), ratio: row.ratio, note: row.yardstick.note() })
        .collect();
    let title = format!("{} over {}: how many times as fast", a.name, b.name);
    let below = format!(
        "{} and {}, {} members each, {} CPUs shared with the client, {} keys of {} bytes; lines: lowest to highest round",
        a.version, b.version, outcome.members, outcome.cpus, outcome.keys, outcome.value_bytes
    );
    svg(&title, &below, &bars)
}

/// Draws bars.
pub fn svg(title: &str, below: &str, bars: &[Bar]) -> String {
    let axis = Axis::over(bars);
    let plot_end = TOP + ROW * bars.len() as f64;
    let height = plot_end + BOTTOM;
    let mut out = String::new();
    push(
        &mut out,
        format_args!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="{}">"#,
            escaped(title)
        ),
    );
    push(&mut out, format_args!("<title>{}</title>\n<style>\n{STYLE}\n</style>", escaped(title)));
    push(&mut out, format_args!(r#"<rect class="back" width="{WIDTH}" height="{height}"/>"#));
    text(&mut out, "title text", "start", 16.0, 28.0, title);
    for tick in axis.ticks() {
        let (x, class) = (axis.x(tick), if tick == 1.0 { "one" } else { "line" });
        push(
            &mut out,
            format_args!(r#"<line class="{class}" x1="{x:.1}" x2="{x:.1}" y1="{:.1}" y2="{plot_end:.1}"/>"#, TOP - 6.0),
        );
        text(&mut out, "dim", "middle", x, TOP - 12.0, &format!("{}×", plain(tick)));
    }
    for (number, bar) in bars.iter().enumerate() {
        draw(&mut out, &axis, bar, TOP + ROW * number as f64);
    }
    let below_at = plot_end + 28.0;
    push(
        &mut out,
        format_args!(r#"<text class="dim" x="16" y="{below_at:.1}" style="font-size: 11px">{}</text>"#, escaped(below)),
    );
    out.push_str("</svg>\n");
    out
}

fn draw(out: &mut String, axis: &Axis, bar: &Bar, top: f64) {
    let middle = top + ROW / 2.0;
    text(out, "text", "end", NAMES - 10.0, middle + 4.5, &bar.name);
    let Ratio { median, min, max } = bar.ratio;
    if !median.is_finite() || median <= 0.0 {
        text(out, "dim", "start", axis.x(1.0) + 6.0, middle + 4.5, "no figure");
        return;
    }
    let (one, end) = (axis.x(1.0), axis.x(median));
    let class = if median >= 1.0 { "good" } else { "bad" };
    push(
        out,
        format_args!(
            r#"<rect class="{class}" x="{:.1}" y="{:.1}" width="{:.1}" height="{BAR}"/>"#,
            one.min(end),
            middle - BAR / 2.0,
            (one - end).abs().max(1.0)
        ),
    );
    let (low, high) = (axis.x(min), axis.x(max));
    push(
        out,
        format_args!(
            r#"<path class="spread" fill="none" stroke-width="1.2" d="M{low:.1} {middle:.1}H{high:.1}M{low:.1} {:.1}v8M{high:.1} {:.1}v8"/>"#,
            middle - 4.0,
            middle - 4.0
        ),
    );
    let figure = format!("{median:.2}× ({min:.2}..{max:.2}){}", bar.note);
    text(out, "text", "start", WIDTH - FIGURES - 8.0, middle + 4.5, &figure);
}

/// Where ratios lie.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    /// From a power of two below all of them to one above.
    fn over(bars: &[Bar]) -> Self {
        let all = bars.iter().flat_map(|bar| [bar.ratio.min, bar.ratio.median, bar.ratio.max]);
        let finite = all.filter(|ratio| ratio.is_finite() && *ratio > 0.0);
        let (low, high) = finite.fold((0.5_f64, 2.0_f64), |(low, high), ratio| (low.min(ratio), high.max(ratio)));
        Self { low: low.max(LEAST).log2().floor(), high: high.min(MOST).log2().ceil() }
    }

    fn x(&self, ratio: f64) -> f64 {
        let at = ratio.max(f64::MIN_POSITIVE).log2().clamp(self.low, self.high);
        NAMES + (WIDTH - NAMES - FIGURES - 24.0) * (at - self.low) / (self.high - self.low)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let step = if self.high - self.low > 8.0 { 2 } else { 1 };
        (self.low as i32..=self.high as i32).filter(move |power| power % step == 0).map(|power| 2.0_f64.powi(power))
    }
}

/// 2, 0.5, 0.125: as short as it can be exact.
fn plain(tick: f64) -> String {
    format!("{tick}")
}

fn text(out: &mut String, class: &str, anchor: &str, x: f64, y: f64, content: &str) {
    let content = escaped(content);
    push(out, format_args!(r#"<text class="{class}" text-anchor="{anchor}" x="{x:.1}" y="{y:.1}">{content}</text>"#));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn push(out: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(out, "{line}").expect("writing to a string never fails");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(name: &str, median: f64) -> Bar {
        Bar { name: name.into(), ratio: Ratio { median, min: median * 0.9, max: median * 1.1 }, note: "" }
    }

    /// Fails unless every element is closed by its own name, and no text holds what would end it.
    fn must_be_well_formed(svg: &str) {
        let mut open = Vec::new();
        let mut rest = svg;
        while let Some(start) = rest.find('<') {
            assert!(!rest[..start].contains('>'), "a stray > in {:?}", &rest[..start]);
            let end = start + rest[start..].find('>').expect("a tag that never ends");
            let tag = &rest[start + 1..end];
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            match tag.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name)),
                None if tag.ends_with('/') => {}
                None => open.push(tag.split([' ', '\n']).next().unwrap()),
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty(), "{open:?} are not closed");
    }

    #[test]
    fn the_picture_is_well_formed_whatever_the_names() {
        let bars = [bar("put:64", 2.0), bar("a<b>&\"c\"", 0.3), bar("huge", 1e9), bar("none", f64::NAN)];
        let picture = svg("A & <B>", "\"below\"", &bars);
        must_be_well_formed(&picture);
        for want in ["a&lt;b&gt;&amp;&quot;c&quot;", "2.00× (1.80..2.20)", "no figure", "prefers-color-scheme: dark"] {
            assert!(picture.contains(want), "{want} is missing in\n{picture}");
        }
        must_be_well_formed(&svg("nothing", "", &[]));
    }

    #[test]
    fn every_row_lies_within_the_picture_and_below_the_one_before() {
        let bars: Vec<_> = (0..20).map(|number| bar(&format!("row-{number}"), 2.0_f64.powi(number - 10))).collect();
        let picture = svg("many", "", &bars);
        let coordinate = |line: &str, name: &str| {
            let (_, rest) = line.split_once(&format!(" {name}=\"")).unwrap();
            rest.split('"').next().unwrap().parse::<f64>().unwrap()
        };
        let rects: Vec<_> =
            picture.lines().filter(|line| line.contains("good") || line.contains("class=\"bad")).collect();
        let rects: Vec<_> = rects.into_iter().filter(|line| line.starts_with("<rect")).collect();
        assert_eq!(rects.len(), 20);
        let mut above = 0.0;
        for rect in rects {
            let (x, y, width) = (coordinate(rect, "x"), coordinate(rect, "y"), coordinate(rect, "width"));
            assert!(x >= NAMES - 1.0 && x + width <= WIDTH - FIGURES, "{rect}");
            assert!(y > above, "{rect}");
            above = y;
        }
    }

    #[test]
    fn twice_and_half_are_equally_long() {
        let axis = Axis::over(&[bar("a", 4.0)]);
        assert!((axis.x(2.0) - axis.x(1.0) - (axis.x(1.0) - axis.x(0.5))).abs() < 1e-9);
        assert!(axis.ticks().any(|tick| tick == 1.0));
        assert!(axis.x(1e12) <= WIDTH - FIGURES && axis.x(0.0) >= NAMES);
    }
}
