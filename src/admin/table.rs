//! Plain tables: columns as wide as their longest cell, two spaces apart, no lines.

use std::fmt;

/// Rows under a head.
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    /// A table of what one thing is like; rows are added with [`Table::say`].
    pub fn sheet() -> Self {
        Self::new(&["WHAT", "NOW"])
    }

    /// Adds a row to a [`Table::sheet`].
    pub fn say(&mut self, what: &str, now: impl fmt::Display) {
        self.row(vec![what.to_owned(), now.to_string()]);
    }

    /// Adds a row for each of `lines`, or one with `none`.
    pub fn say_lines(&mut self, what: &str, lines: impl IntoIterator<Item = String>, none: &str) {
        let mut lines = lines.into_iter();
        self.say(what, lines.next().as_deref().unwrap_or(none));
        lines.for_each(|line| self.say("", line));
    }

    /// Adds a row with one cell for each column.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.head.len(), "a row has one cell for each column");
        self.rows.push(cells);
    }

    fn widths(&self) -> Vec<usize> {
        let cells = |column: usize| self.rows.iter().map(move |row| row[column].chars().count());
        self.head.iter().enumerate().map(|(column, name)| cells(column).fold(name.len(), usize::max)).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        line(f, self.head.iter().copied(), &widths)?;
        self.rows.iter().try_for_each(|row| line(f, row.iter().map(String::as_str), &widths))
    }
}

fn line<'a>(f: &mut fmt::Formatter<'_>, cells: impl Iterator<Item = &'a str>, widths: &[usize]) -> fmt::Result {
    let padded: Vec<String> = cells.zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
    writeln!(f, "{}", padded.join("  ").trim_end())
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (0..UNITS.len() - 1).find(|unit| bytes >> (10 * (unit + 1)) == 0).unwrap_or(UNITS.len() - 1);
    let value = bytes as f64 / (1u64 << (10 * unit)) as f64;
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A span of time for people.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// `3 regions`, `1 region`.
pub fn count(number: u64, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["ID", "STATE"]);
        table.row(vec!["s1".into(), "up".into()]);
        table.row(vec!["s1000".into(), "down".into()]);
        assert_eq!(table.to_string(), "ID     STATE\ns1     up\ns1000  down\n");
    }

    #[test]
    fn sizes_have_the_unit_that_fits() {
        let shown: Vec<String> = [0, 1023, 1024, 1536, 5 << 30, 3 << 50].map(size).into();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 GiB", "3072.0 TiB"]);
    }

    #[test]
    fn sheets_have_lines_below_each_other() {
        let mut sheet = Table::sheet();
        sheet.say("state", "up");
        sheet.say_lines("peers", ["p1".to_owned(), "p2".to_owned()], "none");
        sheet.say_lines("labels", [], "none");
        assert_eq!(sheet.to_string(), "WHAT    NOW\nstate   up\npeers   p1\n        p2\nlabels  none\n");
    }

    #[test]
    fn spans_have_the_unit_that_fits() {
        assert_eq!([0, 119, 120, 7_200, 200_000].map(span), ["0 s", "119 s", "2 min", "2 h", "2 days"]);
        assert_eq!([count(0, "region"), count(1, "region")], ["0 regions", "1 region"]);
    }
}
