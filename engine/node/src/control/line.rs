//! Lines of bounded length.

use std::io::{self, BufRead, Read};

/// What reading a line gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line without its end.
    Text(Vec<u8>),
    /// The other side closed, perhaps in the middle of a line.
    End,
    /// More than the limit came without a line end.
    TooLong,
}

/// Reads up to the next `\n`, and never more than `limit` bytes.
pub(super) fn read_line(reader: &mut impl BufRead, limit: usize) -> io::Result<Line> {
    let mut text = Vec::new();
    let read = reader.take(limit as u64).read_until(b'\n', &mut text)?;
    if text.pop_if(|last| *last == b'\n').is_some() {
        return Ok(Line::Text(text));
    }
    Ok(if read == limit { Line::TooLong } else { Line::End })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_lines_are_bounded() {
        let mut input: &[u8] = b"one\n\n12345678\nhalf";
        assert_eq!(read_line(&mut input, 8).unwrap(), Line::Text(b"one".to_vec()));
        assert_eq!(read_line(&mut input, 8).unwrap(), Line::Text(Vec::new()));
        assert_eq!(read_line(&mut input, 8).unwrap(), Line::TooLong);
        let mut input: &[u8] = b"half";
        assert_eq!(read_line(&mut input, 8).unwrap(), Line::End);
        assert_eq!(read_line(&mut input, 8).unwrap(), Line::End);
    }
}
