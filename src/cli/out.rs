//! The one place that prints. Foreign text (a registry's, an image's) reaches a terminal as plain characters only; code that
//! joins several lines marks each foreign piece first. A reader that went away is no error.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use crate::model::plain;
use std::io::{IsTerminal as _, Write as _};

/// Text of plain characters and line ends.
fn clean(text: &str) -> String {
    text.split('\n').map(plain::marked).collect::<Vec<_>>().join("\n")
}

/// One or more lines of the result.
pub(super) fn line(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{}", clean(text));
}

/// The answer as JSON.
pub(super) fn json(value: &serde_json::Value) {
    // Escapes only some control characters itself.
    let _ = writeln!(std::io::stdout().lock(), "{}", plain::json(&format!("{value:#}")));
}

/// A line for the user, beside the result.
pub(super) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", clean(text));
}

/// A failure.
pub(super) fn error(text: &str) {
    note(&format!("podwright: {text}"));
}

/// A block of lines at the bottom of a terminal, drawn again and again.
#[derive(Debug, Default)]
pub(super) struct Block {
    lines: usize,
}

impl Block {
    /// Whether standard error is a terminal.
    pub(super) fn is_possible() -> bool {
        std::io::stderr().is_terminal()
    }

    /// Columns and rows.
    pub(super) fn size() -> (usize, usize) {
        // The size of terminals that do not report it.
        let (mut columns, mut rows) = (80, 24);
        if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stderr())
            && size.ws_col > 0
            && size.ws_row > 0
        {
            (columns, rows) = (size.ws_col.into(), size.ws_row.into());
        }
        (columns, rows)
    }

    /// Puts `lines`, none wider than the terminal, in place of those drawn before.
    pub(super) fn draw(&mut self, lines: &[String]) {
        let mut text = self.up();
        for line in lines {
            text.push_str(&plain::marked(line));
            // Erases the rest of the line.
            text.push_str("\x1b[K\n");
        }
        // Erases lines that the block no longer has.
        text.push_str("\x1b[J");
        self.lines = lines.len();
        self.write(&text);
    }

    fn up(&self) -> String {
        if self.lines == 0 { String::new() } else { format!("\x1b[{}A\r", self.lines) }
    }

    fn write(&self, text: &str) {
        let mut stderr = std::io::stderr().lock();
        let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_escape_sequence_of_others_reaches_the_terminal() {
        assert_eq!(clean("a\x1b[2Jb\nc\u{9b}\u{202e}"), "a\u{fffd}[2Jb\nc\u{fffd}\u{fffd}");
    }
}
