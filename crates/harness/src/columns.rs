//! Tables as text.

use std::fmt::Write;

/// The lines of a table. The first column is left-aligned, the others are right-aligned.
#[must_use]
pub fn align<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let written = match column {
                0 => write!(line, "{cell:width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
            written.expect("a string takes any text");
        }
        line
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_left_aligned_and_numbers_are_right_aligned() {
        let rows = [["row", "µs", "MB"], ["put", "1234.5", "7"], ["uniform", "9", "128"]];
        let lines = align(&rows.map(|row| row.map(str::to_owned)));
        assert_eq!(lines, ["row          µs   MB", "put      1234.5    7", "uniform       9  128"]);
    }
}
