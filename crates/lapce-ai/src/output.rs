//! Standard output and standard error, for people and for scripts.

use std::borrow::Cow;
use std::io::{self, IsTerminal, StdoutLock, Write};

use serde::Serialize;

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Standard output.
pub(crate) struct Output<W = StdoutLock<'static>> {
    to: W,
    terminal: bool,
    dim: bool,
    at_line_start: bool,
}

impl Output {
    pub(crate) fn stdout() -> Self {
        let stdout = io::stdout();
        Self::new(stdout.lock(), stdout.is_terminal())
    }
}

impl<W: Write> Output<W> {
    pub(crate) fn new(to: W, terminal: bool) -> Self {
        Self {
            to,
            terminal,
            dim: false,
            at_line_start: true,
        }
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Writes text that must be seen at once.
    pub(crate) fn text(&mut self, text: &str) -> io::Result<()> {
        self.set_dim(false)?;
        self.put(text)?;
        self.to.flush()
    }

    /// The same, standing back where the terminal can show that.
    pub(crate) fn dimmed(&mut self, text: &str) -> io::Result<()> {
        self.set_dim(true)?;
        self.put(text)?;
        self.to.flush()
    }

    /// Writes text on a line of its own.
    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        self.end_line()?;
        self.put(text)?;
        self.put("\n")
    }

    /// Bytes as they are, and the end of the line.
    pub(crate) fn raw_line(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        self.to.write_all(b"\n")?;
        self.to.flush()
    }

    /// A value as JSON: in many lines on a terminal, in one elsewhere.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        let bytes = if self.terminal {
            serde_json::to_vec_pretty(value)
        } else {
            serde_json::to_vec(value)
        };
        self.raw_line(&bytes?)
    }

    /// Goes to the start of a line, unless it is there already.
    pub(crate) fn end_line(&mut self) -> io::Result<()> {
        self.set_dim(false)?;
        if !self.at_line_start {
            self.put("\n")?;
        }
        self.to.flush()
    }

    fn set_dim(&mut self, dim: bool) -> io::Result<()> {
        if self.terminal && self.dim != dim {
            self.to
                .write_all(if dim { DIM } else { PLAIN }.as_bytes())?;
        }
        self.dim = dim;
        Ok(())
    }

    fn put(&mut self, text: &str) -> io::Result<()> {
        if let Some(last) = text.chars().next_back() {
            self.at_line_start = last == '\n';
        }
        let text = if self.terminal {
            clean(text)
        } else {
            Cow::Borrowed(text)
        };
        self.to.write_all(text.as_bytes())
    }
}

/// Text from outside without the control characters by which it could command a terminal.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(harmful) {
        Cow::Owned(text.replace(harmful, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// Tells a person something beside the output.
pub(crate) fn note(text: &str) {
    // Where standard error is closed nobody wants to be told.
    let _ = writeln!(io::stderr().lock(), "{}", clean(text));
}

/// Columns, each as wide as its widest cell.
pub(crate) fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(
        terminal: bool,
        write: impl FnOnce(&mut Output<&mut Vec<u8>>) -> io::Result<()>,
    ) -> String {
        let mut bytes = Vec::new();
        write(&mut Output::new(&mut bytes, terminal)).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn only_a_terminal_sees_colours_and_only_it_is_protected() {
        let say = |out: &mut Output<&mut Vec<u8>>| {
            out.dimmed("hm")?;
            out.text("a\x1b[2Jb")?;
            out.end_line()
        };
        assert_eq!(written(true, say), "\x1b[2mhm\x1b[0ma\u{fffd}[2Jb\n");
        assert_eq!(written(false, say), "hma\x1b[2Jb\n");
    }

    #[test]
    fn a_line_ends_once() {
        let say = |out: &mut Output<&mut Vec<u8>>| {
            out.text("a\n")?;
            out.line("b")?;
            out.text("c")?;
            out.line("d")
        };
        assert_eq!(written(false, say), "a\nb\nc\nd\n");
    }

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        assert_eq!(
            table(&[row(["a", "bb"]), row(["ccc", ""])]),
            ["a    bb", "ccc"]
        );
    }
}
