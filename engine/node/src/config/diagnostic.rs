//! An error that points into a file: what is wrong, where, and what to write instead.

use std::fmt;
use std::ops::Range;
use std::path::Path;

/// Longest part of a line that is shown, in characters; a configuration line beyond that is not for reading anyway.
const MAX_SHOWN_CHARS: usize = 120;

/// A mistake in a file, printed with the line and a caret under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// File as the user named it.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    source_line: String,
    width: usize,
}

impl Diagnostic {
    /// A mistake at the bytes `span` of `text`; `None` points at the beginning.
    pub fn new(file: &Path, text: &str, span: Option<Range<usize>>, message: String, help: Option<String>) -> Self {
        let span = span.unwrap_or(0..0);
        let start = floor_char(text, span.start);
        let end = floor_char(text, span.end).max(start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let column = text[line_start..start].chars().count() + 1;
        let width = text[start..end.min(line_end)].chars().count().max(1);
        Diagnostic {
            message,
            help,
            file: file.display().to_string(),
            line: text[..start].matches('\n').count() + 1,
            column,
            source_line: text[line_start..line_end].trim_end_matches('\r').chars().take(MAX_SHOWN_CHARS).collect(),
            width: width.min(MAX_SHOWN_CHARS.saturating_sub(column - 1).max(1)),
        }
    }
}

/// The greatest character boundary that is not above `at`.
fn floor_char(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        writeln!(f, "{}", self.message)?;
        writeln!(f, "{margin}--> {}:{}:{}", self.file, self.line, self.column)?;
        writeln!(f, "{margin} |")?;
        writeln!(f, "{number} | {}", self.source_line)?;
        // Tabs stay tabs, so that the caret stands under its character.
        let indent: String =
            self.source_line.chars().take(self.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        write!(f, "{margin} | {indent}{}", "^".repeat(self.width))?;
        match &self.help {
            Some(help) => write!(f, "\n{margin} = help: {help}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Diagnostic {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_diagnostic_points_at_characters_not_bytes() {
        let text = "a = 1\n\tnäme = \"ö\" # x\n";
        let at = text.find("\"ö").unwrap();
        let shown = Diagnostic::new(Path::new("r.toml"), text, Some(at..at + 4), "wrong".into(), None);
        assert_eq!((shown.line, shown.column), (2, 9));
        assert_eq!(shown.to_string(), "wrong\n --> r.toml:2:9\n  |\n2 | \tnäme = \"ö\" # x\n  | \t       ^^^");
    }

    #[test]
    fn config_diagnostic_survives_spans_outside_of_the_text() {
        for span in [None, Some(0..9), Some(50..60), Some(2..3)] {
            let shown = Diagnostic::new(Path::new("r"), "é\n", span, "m".into(), Some("h".into()));
            assert!(shown.to_string().contains("= help: h"));
        }
        assert_eq!(Diagnostic::new(Path::new("r"), "", Some(3..4), "m".into(), None).line, 1);
    }

    #[test]
    fn config_diagnostic_cuts_endless_lines() {
        let text = "x".repeat(100_000);
        let shown = Diagnostic::new(Path::new("r"), &text, Some(5..90_000), "m".into(), None).to_string();
        assert!(shown.len() < 600, "{}", shown.len());
    }
}
