//! The parts of a bitmap exchange (`handshake-and-states.md` sections 6.1, 6.2).
//!
//! There is no end marker: both sides know the number of bits, at 4 KiB per bit. A part is plain (whole
//! 64 bit words) or compressed (runs). Plain parts always end with an empty one, a final compressed part
//! ends the exchange by itself.

use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

use crate::header::HeaderFormat;
use crate::packet::{Bitmap, CompressedBitmap};
use crate::vli::{self, Run, VliError};

/// Bytes of a bitmap packet, header included.
const MAX_PACKET: usize = 4096;

/// Bytes of device per bit on the wire, whatever the size of the local bitmap blocks.
pub const BYTES_PER_BIT: u64 = 4096;

/// The number of wire bits of a device.
#[must_use]
pub const fn wire_bits(capacity_sectors: u64) -> u64 {
    capacity_sectors.div_ceil(BYTES_PER_BIT / 512)
}

/// The most code bytes of a compressed part (the encoding byte is not counted).
#[must_use]
pub const fn max_code_bytes(format: HeaderFormat) -> usize {
    MAX_PACKET - format.len() - 1
}

/// The most bytes of a plain part: whole words, and whole groups of 2^`scale` words if a local bitmap
/// block stands for 2^`scale` wire bits.
#[must_use]
pub const fn max_plain_bytes(format: HeaderFormat, scale: u32) -> usize {
    let group = 8 << scale;
    (MAX_PACKET - format.len()) / group * group
}

/// Why a bitmap part is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BitmapError {
    /// A compressed part is broken.
    #[error(transparent)]
    Vli(#[from] VliError),
    /// A plain part has more words than the bitmap.
    #[error("{words} words where {remaining} are left")]
    PastEnd {
        /// Words that came.
        words: u64,
        /// Words left.
        remaining: u64,
    },
    /// A plain part is not whole words.
    #[error("a plain part of {bytes} bytes")]
    NotWords {
        /// Bytes.
        bytes: usize,
    },
    /// An empty part before the end.
    #[error("an empty part where {remaining} words are left")]
    Early {
        /// Words left.
        remaining: u64,
    },
    /// A part after the end.
    #[error("a part after the end of the bitmap")]
    Finished,
}

/// Where an exchange in one direction stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
struct Position {
    total_bits: u64,
    /// The next bit. Plain parts start at its word.
    bit: u64,
    finished: bool,
}

impl Position {
    const fn new(total_bits: u64) -> Position {
        Position { total_bits, bit: 0, finished: false }
    }

    const fn words_left(&self) -> u64 {
        // When all bits are there no word is left, even if the last word is only partly used.
        if self.bit == self.total_bits { 0 } else { self.total_bits.div_ceil(64) - self.bit / 64 }
    }

    fn advance_plain(&mut self, words: u64) {
        if words == 0 {
            self.finished = true;
        } else {
            self.bit = ((self.bit / 64 + words) * 64).min(self.total_bits);
        }
    }

    fn advance_compressed(&mut self, bit: u64) {
        self.bit = bit;
        self.finished = bit == self.total_bits;
    }
}

/// What the sender of a bitmap does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendStep {
    /// Send runs from bit `bit` on (then [`Sender::sent_compressed`]), or exactly `plain_bytes` bytes of
    /// words from bit `word_bit` on (then [`Sender::sent_plain`]). The last word is padded with zeros.
    Part {
        /// First bit for a compressed part.
        bit: u64,
        /// First bit for a plain part: the start of that bit's word.
        word_bit: u64,
        /// Bytes of a plain part.
        plain_bytes: usize,
    },
    /// Send an empty plain part, then [`Sender::sent_plain`].
    EmptyPlain,
    /// Nothing.
    Done,
}

/// The sender's side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sender {
    position: Position,
    max_plain_bytes: usize,
}

impl Sender {
    /// A sender of `total_bits` bits ([`wire_bits`]), whose local bitmap blocks stand for 2^`scale` wire
    /// bits each. Panics without a bit or if `scale` leaves no room for a group of words.
    #[must_use]
    pub fn new(total_bits: u64, format: HeaderFormat, scale: u32) -> Sender {
        let max_plain_bytes = max_plain_bytes(format, scale);
        assert!(total_bits > 0 && max_plain_bytes > 0, "nothing to send");
        Sender { position: Position::new(total_bits), max_plain_bytes }
    }

    /// What to do next.
    #[must_use]
    pub fn step(&self) -> SendStep {
        if self.position.finished {
            return SendStep::Done;
        }
        let left = self.position.words_left().saturating_mul(8);
        if left == 0 {
            return SendStep::EmptyPlain;
        }
        SendStep::Part {
            bit: self.position.bit,
            word_bit: self.position.bit / 64 * 64,
            plain_bytes: (self.max_plain_bytes as u64).min(left) as usize,
        }
    }

    /// A plain part as [`Sender::step`] demanded was sent. Panics after the end.
    pub fn sent_plain(&mut self) {
        match self.step() {
            SendStep::Part { plain_bytes, .. } => {
                self.position.advance_plain(plain_bytes as u64 / 8);
            }
            SendStep::EmptyPlain => self.position.advance_plain(0),
            SendStep::Done => panic!("the bitmap was sent"),
        }
    }

    /// A compressed part of `bits` bits was sent. Panics past the end.
    pub fn sent_compressed(&mut self, bits: u64) {
        let bit = self.position.bit + bits;
        let open = !self.position.finished && bits > 0;
        assert!(open && bit <= self.position.total_bits, "{bits} bits are too many");
        self.position.advance_compressed(bit);
    }
}

/// The receiver's side.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Receiver {
    position: Position,
}

impl Receiver {
    /// A receiver of `total_bits` bits ([`wire_bits`]).
    #[must_use]
    pub const fn new(total_bits: u64) -> Receiver {
        Receiver { position: Position::new(total_bits) }
    }

    /// True when everything came.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.position.finished
    }

    /// Takes a plain part; returns its words, each with the number of the bit that its lowest bit stands
    /// for. Bits behind the end of the bitmap are cleared. Any number of words that are left is taken,
    /// since a sender with bigger bitmap blocks rounds down.
    ///
    /// Errors: see [`BitmapError`]; a refused part has no effect.
    pub fn plain<'a>(&mut self, part: &'a Bitmap) -> Result<impl Iterator<Item = (u64, u64)> + use<'a>, BitmapError> {
        let bytes = part.words.len();
        if self.position.finished {
            return Err(BitmapError::Finished);
        }
        if !bytes.is_multiple_of(8) {
            return Err(BitmapError::NotWords { bytes });
        }
        let (words, remaining) = (bytes as u64 / 8, self.position.words_left());
        if words > remaining {
            return Err(BitmapError::PastEnd { words, remaining });
        }
        if words == 0 && remaining > 0 {
            return Err(BitmapError::Early { remaining });
        }
        let (first, end) = (self.position.bit / 64 * 64, self.position.total_bits);
        self.position.advance_plain(words);
        let (chunks, _) = part.words.as_chunks::<8>();
        Ok((first..).step_by(64).zip(chunks).map(move |(bit, word)| {
            let mask = if end - bit >= 64 { u64::MAX } else { (1 << (end - bit)) - 1 };
            (bit, u64::from_le_bytes(*word) & mask)
        }))
    }

    /// Takes a compressed part and returns its runs. Errors: see [`BitmapError`]; the part was looked at
    /// as a whole, so a refused one has no effect.
    pub fn compressed<'a>(
        &mut self,
        part: &'a CompressedBitmap,
    ) -> Result<impl Iterator<Item = Run> + use<'a>, BitmapError> {
        if self.position.finished {
            return Err(BitmapError::Finished);
        }
        let Position { bit, total_bits, .. } = self.position;
        let end = vli::check_part(part, bit, total_bits)?;
        self.position.advance_compressed(end);
        let runs = vli::decode_part(part, bit, total_bits)?;
        Ok(runs.map(|run| run.expect("the part was checked")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(n: usize) -> Bitmap {
        Bitmap { words: vec![0; 8 * n].into() }
    }

    fn runs(lens: &[u64]) -> CompressedBitmap {
        vli::encode_part(lens.iter().copied(), false, 4079).unwrap().part
    }

    #[test]
    fn wire_bitmap_sizes_follow_the_header() {
        assert_eq!(max_plain_bytes(HeaderFormat::H100, 0), 4080);
        assert_eq!(max_plain_bytes(HeaderFormat::H80, 0), 4088);
        assert_eq!(max_plain_bytes(HeaderFormat::H100, 4), 3968);
        assert_eq!(max_code_bytes(HeaderFormat::H100), 4079);
        assert_eq!(wire_bits(32_688), 4086);
        assert_eq!(wire_bits(1), 1);
    }

    #[test]
    fn wire_bitmap_plain_exchange_ends_with_an_empty_part() {
        let total = 40_000;
        let mut sender = Sender::new(total, HeaderFormat::H100, 0);
        let mut receiver = Receiver::new(total);
        let mut sizes = Vec::new();
        loop {
            let bytes = match sender.step() {
                SendStep::Part { plain_bytes, word_bit, .. } => {
                    let part = words(plain_bytes / 8);
                    let (first, _) = receiver.plain(&part).unwrap().next().unwrap();
                    assert_eq!(first, word_bit);
                    plain_bytes
                }
                SendStep::EmptyPlain => {
                    assert!(!receiver.is_finished());
                    assert!(receiver.plain(&words(0)).is_ok());
                    0
                }
                SendStep::Done => break,
            };
            sender.sent_plain();
            sizes.push(bytes);
        }
        assert_eq!(sizes, [4080, 920, 0]);
        assert!(receiver.is_finished());
        let late = receiver.plain(&words(0)).map(Iterator::count);
        assert_eq!(late, Err(BitmapError::Finished));
    }

    #[test]
    fn wire_bitmap_compressed_end_needs_no_empty_part() {
        let mut sender = Sender::new(4086, HeaderFormat::H100, 0);
        let mut receiver = Receiver::new(4086);
        sender.sent_compressed(100);
        let part = runs(&[60, 40]);
        let taken: Vec<_> = receiver.compressed(&part).unwrap().collect();
        assert_eq!((taken[1].set, taken[1].start, taken[1].len), (true, 60, 40));
        // The next plain part repeats the bits from the start of the word on.
        let SendStep::Part { bit, word_bit, plain_bytes } = sender.step() else { panic!("not done") };
        assert_eq!((bit, word_bit, plain_bytes), (100, 64, 63 * 8));
        let mut plain = receiver;
        assert_eq!(plain.plain(&words(63)).unwrap().last(), Some((64 + 62 * 64, 0)));
        sender.sent_compressed(3986);
        assert_eq!(sender.step(), SendStep::Done);
        assert!(receiver.compressed(&runs(&[3986])).is_ok() && receiver.is_finished());
    }

    #[test]
    fn wire_bitmap_receiver_refuses_by_name() {
        let mut receiver = Receiver::new(100);
        let mut plain = |len: usize| {
            let part = Bitmap { words: vec![0xff; len].into() };
            receiver.plain(&part).map(Iterator::collect::<Vec<_>>)
        };
        assert_eq!(plain(24), Err(BitmapError::PastEnd { words: 3, remaining: 2 }));
        assert_eq!(plain(0), Err(BitmapError::Early { remaining: 2 }));
        assert_eq!(plain(9), Err(BitmapError::NotWords { bytes: 9 }));
        let long = receiver.compressed(&runs(&[101])).map(Iterator::count);
        assert!(matches!(long, Err(BitmapError::Vli(VliError::PastEnd { .. }))));
        assert_eq!(receiver, Receiver::new(100));
        // Bits behind the end are dropped.
        let part = Bitmap { words: vec![0xff; 16].into() };
        let taken: Vec<_> = receiver.plain(&part).unwrap().collect();
        assert_eq!(taken, [(0, u64::MAX), (64, (1 << 36) - 1)]);
    }
}
