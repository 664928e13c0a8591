//! What goes to standard output: tables for people, JSON and ids for programs.

use std::io::{self, Write};

use serde::Serialize;

use super::error::Failure;

/// How a listing is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Columns for people
    #[default]
    Table,
    /// One JSON value
    Json,
}

/// `-o`, for verbs that list, inspect or change.
#[derive(Debug, clap::Args)]
pub(super) struct FormatArgs {
    /// Output format
    #[arg(
        short = 'o',
        long = "format",
        alias = "output",
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub(super) format: Format,
}

impl FormatArgs {
    pub(super) fn is_json(&self) -> bool {
        self.format == Format::Json
    }
}

/// `-o` and `-q`, for verbs that list.
#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    pub(super) format: FormatArgs,
    /// Show ids only
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// Writes a line to standard output.
#[expect(clippy::print_stdout, reason = "this is where cocoon prints")]
pub(super) fn line(text: impl std::fmt::Display) {
    println!("{text}");
}

/// Writes a line for each of many to standard output, at once.
pub(super) fn lines<T: std::fmt::Display>(texts: impl IntoIterator<Item = T>) {
    let mut lines = String::new();
    for text in texts {
        lines.push_str(&text.to_string());
        lines.push('\n');
    }
    if !lines.is_empty() {
        line(lines.trim_end());
    }
}

/// Writes a line for people to standard error.
#[expect(clippy::print_stderr, reason = "this is where cocoon speaks to people")]
pub(super) fn note(text: impl std::fmt::Display) {
    eprintln!("{text}");
}

/// Writes bytes as they are to standard output.
pub(super) fn raw(bytes: &[u8]) -> Result<(), Failure> {
    io::stdout().write_all(bytes).map_err(Failure::Output)
}

/// Writes one JSON value, indented, to standard output.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| Failure::Output(error.into()))?;
    line(text);
    Ok(())
}

/// Writes rows under a header in left-aligned columns, two spaces apart.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) {
    line(columns(header, rows).trim_end());
}

/// Rows under a header in left-aligned columns, two spaces apart; each line with its end.
pub(super) fn columns(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let cells = cells.map(|cell| width_of(cell));
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut lines = String::new();
    add_row(&mut lines, header.iter().copied(), &widths);
    for cells in rows {
        add_row(&mut lines, cells.iter().map(String::as_str), &widths);
    }
    lines
}

/// A cell, which is never empty.
pub(super) fn or_dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}

fn add_row<'a>(lines: &mut String, cells: impl Iterator<Item = &'a str>, widths: &[usize]) {
    for (cell, width) in cells.zip(widths) {
        let blanks = width.saturating_sub(width_of(cell)) + 2;
        lines.push_str(cell);
        lines.extend(std::iter::repeat_n(' ', blanks));
    }
    lines.truncate(lines.trim_end_matches(' ').len());
    lines.push('\n');
}

/// Characters of a cell, of which nearly all are bytes.
fn width_of(cell: &str) -> usize {
    if cell.is_ascii() {
        cell.len()
    } else {
        cell.chars().count()
    }
}

/// A time as tables show it: local, to the second.
pub(super) fn local_time(time: jiff::Timestamp) -> String {
    time.to_zoned(jiff::tz::TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_two_spaces_apart_and_lines_have_no_trailing_blanks() {
        let row = ["é2", "name-1", "x"].map(str::to_owned).to_vec();
        assert_eq!(
            columns(&["ID", "NAME", "X"], &[row]),
            "ID  NAME    X\né2  name-1  x\n"
        );
    }
}
