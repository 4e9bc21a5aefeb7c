//! What commands print: aligned text for people, JSON for scripts; errors go elsewhere.

use crate::failure::{Code, Failure};
use crate::sizes;
use clap::{Args, ValueEnum};
use serde_json::Value;
use std::io::Write;

/// Form of the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// Aligned text.
    Table,
    /// One JSON document.
    Json,
    /// One JSON value a line.
    Jsonl,
}

/// The options that every command has.
#[derive(Args, Clone, Debug)]
pub struct OutputOptions {
    /// Form of the output.
    #[arg(short = 'o', long = "output", value_enum, default_value = "table", global = true)]
    format: Format,
    /// The same as `-o json`.
    #[arg(long, global = true)]
    json: bool,
    /// Print nothing but errors; the exit status tells.
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Leave out the heads of tables.
    #[arg(long, global = true)]
    no_headers: bool,
    /// Print sizes as plain numbers of bytes.
    #[arg(short = 'p', long, global = true)]
    bytes: bool,
}

/// Where a command prints.
#[derive(Clone, Debug)]
pub struct Output {
    /// Form of the output.
    pub format: Format,
    quiet: bool,
    headers: bool,
    bytes: bool,
}

impl Output {
    /// As the options want it.
    pub fn new(options: &OutputOptions) -> Output {
        let format = if options.json { Format::Json } else { options.format };
        Output { format, quiet: options.quiet, headers: !options.no_headers, bytes: options.bytes }
    }

    /// Whether progress may be shown on standard error.
    pub fn shows_progress(&self) -> bool {
        !self.quiet && self.format == Format::Table
    }

    /// A size, as the options want it.
    pub fn size(&self, bytes: u64) -> String {
        if self.bytes { bytes.to_string() } else { sizes::readable(bytes) }
    }

    /// Prints `text` as it is, whatever the options say.
    pub fn raw(&self, text: &[u8]) -> Result<Code, Failure> {
        match std::io::stdout().lock().write_all(text) {
            // Whoever reads has read enough.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Failure::output(error))
            }
            _ => Ok(Code::Ok),
        }
    }

    /// Prints either the text for people or the value; of a list, JSON lines has an item each.
    pub fn print(&self, text: impl FnOnce() -> String, value: &Value) -> Result<Code, Failure> {
        if self.quiet {
            return Ok(Code::Ok);
        }
        let text = match (self.format, value) {
            (Format::Table, _) => text(),
            (Format::Json, value) => format!("{value:#}\n"),
            (Format::Jsonl, Value::Array(items)) => {
                items.iter().map(|item| format!("{item}\n")).collect()
            }
            (Format::Jsonl, value) => format!("{value}\n"),
        };
        self.raw(text.as_bytes())
    }

    /// A table; numbers line up on the right.
    pub fn table(&self, heads: &[&str], rows: &[Vec<String>]) -> String {
        let heads: Vec<String> = heads.iter().map(|head| (*head).to_string()).collect();
        let shown = heads.iter().enumerate().map(|(column, head)| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain(self.headers.then_some(head.len())).max().unwrap_or(0)
        });
        let widths: Vec<usize> = shown.collect();
        let numeric = |column: usize| {
            let starts = |row: &Vec<String>| row[column].starts_with(|c: char| c.is_ascii_digit());
            rows.iter().all(|row| starts(row) || row[column] == "-")
        };
        let right: Vec<bool> = (0..heads.len()).map(numeric).collect();
        let mut text = String::new();
        for row in self.headers.then_some(&heads).into_iter().chain(rows) {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[column] - cell.chars().count());
                let gap = if column == 0 { "" } else { "  " };
                let (before, after) =
                    if right[column] { (pad, "".into()) } else { ("".into(), pad) };
                line.push_str(&format!("{gap}{before}{cell}{after}"));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// Names and values, one below the other.
    pub fn pairs(&self, pairs: &[(&str, String)]) -> String {
        let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        pairs.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let output = Output { format: Format::Table, quiet: false, headers: true, bytes: true };
        let rows = [vec!["a".into(), "10".into()], vec!["long".into(), "5".into()]];
        assert_eq!(output.table(&["NAME", "N"], &rows), "NAME   N\na     10\nlong   5\n");
        let bare = Output { headers: false, ..output };
        assert_eq!(bare.table(&["NAME", "N"], &rows), "a     10\nlong   5\n");
        let pairs = [("one", "1".to_string()), ("three", "3".to_string())];
        assert_eq!(bare.pairs(&pairs), "one    1\nthree  3\n");
        assert_eq!(bare.size(2048), "2048");
    }
}
