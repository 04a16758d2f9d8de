//! What the command says: answers on stdout, as text or JSON; notices, progress and errors on stderr.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::exit::Failure;

/// How to say things.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// Answers.
    pub(crate) fn answer(self, text: &str, json: &Value) -> Result<(), Failure> {
        let line = if self.json { json.to_string() } else { text.to_owned() };
        let mut stdout = io::stdout().lock();
        stdout.write_all(line.as_bytes()).and_then(|()| stdout.write_all(b"\n")).and_then(|()| stdout.flush()).map_err(
            |error| match error.kind() {
                io::ErrorKind::BrokenPipe => Failure::Closed,
                _ => Failure::File { doing: "write to", path: "standard output".into(), source: error },
            },
        )
    }

    /// Says something that is no answer.
    pub(crate) fn notice(self, text: &str) {
        // Where even stderr is gone there is nobody left to tell.
        let _ = writeln!(io::stderr(), "overbank: {text}");
    }

    /// Says why it failed.
    pub(crate) fn failure(self, failure: &Failure) {
        if matches!(failure, Failure::Closed | Failure::Program(_)) {
            return;
        }
        let mut stderr = io::stderr();
        let _ = if self.json {
            writeln!(stderr, "{}", failure.to_json())
        } else if coloured() {
            writeln!(stderr, "\x1b[1;31merror:\x1b[0m {failure}")
        } else {
            writeln!(stderr, "error: {failure}")
        };
    }

    /// A bar for a transfer of `bytes`: on a terminal, and for people only.
    pub(crate) fn progress(self, what: &'static str, bytes: u64) -> ProgressBar {
        if self.json || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let template = "{msg} [{wide_bar}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(bytes).with_style(style).with_message(what);
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}

/// Whether errors may be coloured: on a terminal, unless <https://no-color.org> asks not to.
fn coloured() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Rows with their columns aligned; no trailing blanks.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// What another party wrote, fit for a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_without_trailing_blanks() {
        let rows = [vec!["a".to_owned(), "bb".to_owned()], vec!["ccc".to_owned(), String::new()]];
        assert_eq!(table(&rows), "a    bb\nccc");
        assert_eq!(table(&[]), "");
    }
}
