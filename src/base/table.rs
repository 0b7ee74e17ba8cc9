//! Aligned text tables for a terminal: the first column to the left, the others to the right.

use std::fmt;

/// A table under construction. [`fmt::Display`] prints it.
#[derive(Debug, Clone)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    left: Vec<usize>,
}

impl Table {
    /// Starts a table with these column titles.
    pub fn new<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Self {
        let header = header.into_iter().map(Into::into).collect();
        Self { header, rows: Vec::new(), left: vec![0] }
    }

    /// Aligns a further column, counted from 0, to the left.
    pub fn left(mut self, column: usize) -> Self {
        self.left.push(column);
        self
    }

    /// Adds a row; missing cells stay empty.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) -> &mut Self {
        self.rows.push(cells.into_iter().map(Into::into).collect());
        self
    }

    fn width(&self, column: usize) -> usize {
        let lines = std::iter::once(&self.header).chain(&self.rows);
        lines.filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for (column, &width) in widths.iter().enumerate() {
            let cell = cells.get(column).map_or("", String::as_str);
            let gap = if column == 0 { "" } else { "  " };
            line.push_str(gap);
            line.push_str(&if self.left.contains(&column) {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            });
        }
        line.trim_end().to_owned()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0).max(self.header.len());
        let widths: Vec<usize> = (0..columns).map(|column| self.width(column)).collect();
        let rule = widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1);
        writeln!(f, "{}", self.line(&self.header, &widths))?;
        writeln!(f, "{}", "─".repeat(rule))?;
        for row in &self.rows {
            writeln!(f, "{}", self.line(row, &widths))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_have_no_trailing_space() {
        let mut table = Table::new(["model", "pass@1", "note"]).left(2);
        table.row(["base", "0.4 %", ""]).row(["SFT + RL", "41.0 %", "paired"]).row(["α"]);
        let expected = "\
model     pass@1  note
────────────────────────
base       0.4 %
SFT + RL  41.0 %  paired
α
";
        assert_eq!(table.to_string(), expected);
    }
}
