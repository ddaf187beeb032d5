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
}
