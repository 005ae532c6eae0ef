//! Cutting a large request into what the engine takes at once.

use std::iter::FusedIterator;

/// A part of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Offset in the export, in bytes.
    pub offset: u64,
    /// Offset in the request's payload, in bytes.
    pub at: u32,
    /// Length in bytes, never 0.
    pub len: u32,
}

/// The pieces of a request, in ascending order; see [`pieces`].
#[derive(Debug, Clone)]
pub struct Pieces {
    offset: u64,
    at: u32,
    left: u32,
    max_piece: u32,
}

/// Cuts `offset..offset + len` at every multiple of `max_piece`, all in bytes.
///
/// The cuts are at multiples in the export, not in the request: with 1 MiB pieces none crosses an activity log
/// extent (4 MiB). The iterator knows its length, so that the caller can set its completion count first.
///
/// # Panics
/// Where `max_piece` is no power of two, or the range does not fit 64 bits.
#[must_use]
pub fn pieces(offset: u64, len: u32, max_piece: u32) -> Pieces {
    assert!(max_piece.is_power_of_two(), "pieces of {max_piece} bytes");
    assert!(offset.checked_add(u64::from(len)).is_some(), "{len} bytes at {offset} pass the end of 64 bits");
    Pieces { offset, at: 0, left: len, max_piece }
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.left == 0 {
            return None;
        }
        let len = self.left.min(self.max_piece - self.past_cut());
        let piece = Piece { offset: self.offset, at: self.at, len };
        self.offset += u64::from(len);
        self.at += len;
        self.left -= len;
        Some(piece)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let span = u64::from(self.past_cut()) + u64::from(self.left);
        let count = if self.left == 0 { 0 } else { span.div_ceil(u64::from(self.max_piece)) };
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        (count, Some(count))
    }
}

impl Pieces {
    /// How far the next piece starts behind a multiple of `max_piece`.
    fn past_cut(&self) -> u32 {
        // The remainder of a division by a u32 is a u32.
        (self.offset % u64::from(self.max_piece)) as u32
    }
}

impl ExactSizeIterator for Pieces {}
impl FusedIterator for Pieces {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nbd_pieces_cut_at_multiples() {
        let cut = |offset, len| pieces(offset, len, 4096).map(|p| (p.offset, p.at, p.len)).collect::<Vec<_>>();
        assert_eq!(cut(0, 4096), [(0, 0, 4096)]);
        assert_eq!(cut(512, 4096), [(512, 0, 3584), (4096, 3584, 512)]);
        assert_eq!(cut(4096, 8192), [(4096, 0, 4096), (8192, 4096, 4096)]);
        assert_eq!(cut(77, 0), []);
        assert_eq!(pieces(0, u32::MAX, 1 << 20).len(), 4096);
        assert_eq!(pieces(u64::MAX - 1, 1, 1).count(), 1);
    }

    proptest! {
        #[test]
        fn nbd_pieces_cover_the_range_once(offset in 0u64..1 << 40, len in 0u32..1 << 20, shift in 9u32..21) {
            let max_piece = 1 << shift;
            let all: Vec<Piece> = pieces(offset, len, max_piece).collect();
            prop_assert_eq!(pieces(offset, len, max_piece).len(), all.len());
            let mut at = 0;
            for piece in all {
                prop_assert_eq!((piece.at, piece.offset), (at, offset + u64::from(at)));
                prop_assert!(piece.len > 0);
                let last = piece.offset + u64::from(piece.len) - 1;
                prop_assert_eq!(piece.offset / u64::from(max_piece), last / u64::from(max_piece));
                at += piece.len;
            }
            prop_assert_eq!(at, len);
        }
    }
}
