//! The run length code of compressed bitmap parts (`handshake-and-states.md` section 6.2).
//!
//! A part is a list of run lengths of alternating polarity. Each is a code word of ten possible lengths,
//! put into the bit stream least significant bit first.

use thiserror::Error;

use crate::packet::CompressedBitmap;

/// One line of the code's table.
#[derive(Clone, Copy, Debug)]
struct Level {
    total_bits: u32,
    prefix_bits: u32,
    prefix: u64,
    /// The smallest run of this level.
    base: u64,
}

impl Level {
    const fn data_bits(self) -> u32 {
        self.total_bits - self.prefix_bits
    }

    const fn largest(self) -> u64 {
        self.base + (1 << self.data_bits()) - 1
    }
}

/// (total bits, prefix bits, prefix value); the bases follow from them.
const SHAPES: [(u32, u32, u64); 10] = [
    (2, 1, 0x00),
    (3, 2, 0x01),
    (5, 3, 0x03),
    (7, 4, 0x07),
    (10, 5, 0x0f),
    (14, 6, 0x1f),
    (21, 8, 0x3f),
    (29, 8, 0x7f),
    (42, 8, 0xbf),
    (64, 8, 0xff),
];

const LEVELS: [Level; 10] = {
    let mut levels = [Level { total_bits: 0, prefix_bits: 0, prefix: 0, base: 1 }; 10];
    let mut base = 1;
    let mut i = 0;
    while i < levels.len() {
        let (total_bits, prefix_bits, prefix) = SHAPES[i];
        levels[i] = Level { total_bits, prefix_bits, prefix, base };
        base = levels[i].largest() + 1;
        i += 1;
    }
    levels
};

/// The longest run that has a code word.
pub const MAX_RUN: u64 = LEVELS[9].largest();

/// The code number in the low bits of the encoding byte: RLE_VLI_Bits.
const CODE: u8 = 2;
const POLARITY: u8 = 0x80;

/// Why a compressed part is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum VliError {
    /// Not the run length code.
    #[error("bitmap encoding {encoding:#04x} has an unknown code")]
    UnknownCode {
        /// The encoding byte.
        encoding: u8,
    },
    /// The pad leaves no code, or there are no bytes.
    #[error("no code in {len} bytes with {pad_bits} pad bits")]
    Empty {
        /// Bytes.
        len: usize,
        /// Unused bits.
        pad_bits: u8,
    },
    /// The last code word is cut off: the pad or the length is wrong.
    #[error("a code word of {need} bits where {have} are left")]
    Truncated {
        /// Bits of the word.
        need: u64,
        /// Bits left.
        have: u64,
    },
    /// A run ends behind the last bit.
    #[error("a run of {len} from bit {start} on in a bitmap of {total_bits} bits")]
    PastEnd {
        /// First bit of the run.
        start: u64,
        /// Bits of the run.
        len: u64,
        /// Bits of the bitmap.
        total_bits: u64,
    },
}

/// A run of equal bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Run {
    /// Whether the bits are set.
    pub set: bool,
    /// The first bit.
    pub start: u64,
    /// How many.
    pub len: u64,
}

/// A compressed part and how much of the bitmap it covers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EncodedPart {
    /// The packet.
    pub part: CompressedBitmap,
    /// Bits covered.
    pub bits: u64,
    /// Runs taken from the iterator.
    pub runs: usize,
}

impl EncodedPart {
    /// True if the code is not longer than the bits it stands for; else the sender sends this part
    /// plain.
    #[must_use]
    pub fn is_worth_it(&self) -> bool {
        self.part.code.len() as u64 <= self.bits.div_ceil(8)
    }
}

/// Encodes runs of alternating polarity, the first of which is set if `first_set`, into at most
/// `max_code_bytes` bytes of code ([`crate::bitmap::max_code_bytes`]). Whole runs only: the next part
/// starts with the first run that found no room. `None` if there was no run.
///
/// Panics on an empty run, one above [`MAX_RUN`], or less than eight bytes of room.
pub fn encode_part(runs: impl IntoIterator<Item = u64>, first_set: bool, max_code_bytes: usize) -> Option<EncodedPart> {
    assert!(max_code_bytes >= 8, "no room for the longest code word in {max_code_bytes} bytes");
    let mut out = BitWriter::default();
    let (mut bits, mut count) = (0, 0);
    for run in runs {
        let (word, word_bits) = code_word(run);
        if out.bits + u64::from(word_bits) > 8 * max_code_bytes as u64 {
            break;
        }
        out.push(word, word_bits);
        bits += run;
        count += 1;
    }
    if count == 0 {
        return None;
    }
    let pad_bits = (out.bytes.len() as u64 * 8 - out.bits) as u8;
    let polarity = if first_set { POLARITY } else { 0 };
    let part = CompressedBitmap { encoding: CODE | pad_bits << 4 | polarity, code: out.bytes.into() };
    Some(EncodedPart { part, bits, runs: count })
}

/// The code word of a run and its length in bits.
fn code_word(run: u64) -> (u64, u32) {
    assert!((1..=MAX_RUN).contains(&run), "a run of {run} bits");
    let level = LEVELS.iter().find(|l| run <= l.largest()).expect("the last level holds the longest run");
    let word = (run - level.base) << level.prefix_bits | level.prefix;
    (word, level.total_bits)
}

#[derive(Debug, Default)]
struct BitWriter {
    bytes: Vec<u8>,
    bits: u64,
}

impl BitWriter {
    fn push(&mut self, word: u64, bits: u32) {
        let used = (self.bits % 8) as u32;
        let mut rest = u128::from(word) << used;
        if used > 0 {
            let last = self.bytes.last_mut().expect("a partly used byte is there");
            *last |= rest as u8;
            rest >>= 8;
        }
        self.bits += u64::from(bits);
        let len = self.bits.div_ceil(8) as usize;
        while self.bytes.len() < len {
            self.bytes.push(rest as u8);
            rest >>= 8;
        }
    }
}

/// The runs of a part that starts at bit `start` of a bitmap of `total_bits` bits. After an error the
/// iterator ends. [`check_part`] looks at a whole part before any of it is used.
///
/// Errors: the code is not known or empty.
pub fn decode_part(part: &CompressedBitmap, start: u64, total_bits: u64) -> Result<Runs<'_>, VliError> {
    let CompressedBitmap { encoding, ref code } = *part;
    if encoding & 0x0f != CODE {
        return Err(VliError::UnknownCode { encoding });
    }
    let pad_bits = encoding >> 4 & 7;
    let code_bits = (code.len() as u64 * 8).saturating_sub(u64::from(pad_bits));
    if code_bits == 0 {
        return Err(VliError::Empty { len: code.len(), pad_bits });
    }
    Ok(Runs { code, code_bits, at: 0, set: encoding & POLARITY != 0, position: start, total_bits })
}

/// Checks a whole part and returns the position behind it, in bits. Errors as from [`decode_part`] and
/// [`Runs`].
pub fn check_part(part: &CompressedBitmap, start: u64, total_bits: u64) -> Result<u64, VliError> {
    let mut runs = decode_part(part, start, total_bits)?;
    runs.try_for_each(|run| run.map(|_| ())).map(|()| runs.position)
}

/// The runs of a compressed part.
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    code: &'a [u8],
    code_bits: u64,
    at: u64,
    set: bool,
    position: u64,
    total_bits: u64,
}

impl Runs<'_> {
    /// The next (up to) 64 bits of the stream, zeros behind its end.
    fn window(&self) -> u64 {
        let first = (self.at / 8) as usize;
        let mut bytes = [0; 16];
        let there = &self.code[first..self.code.len().min(first + 9)];
        bytes[..there.len()].copy_from_slice(there);
        (u128::from_le_bytes(bytes) >> (self.at % 8)) as u64
    }

    fn step(&mut self) -> Result<Run, VliError> {
        let have = self.code_bits - self.at;
        let window = self.window();
        let level = LEVELS
            .iter()
            .find(|l| window & ((1 << l.prefix_bits) - 1) == l.prefix)
            .expect("the prefixes cover all bit patterns");
        let need = u64::from(level.total_bits);
        if need > have {
            return Err(VliError::Truncated { need, have });
        }
        let data = window >> level.prefix_bits & ((1 << level.data_bits()) - 1);
        let run = Run { set: self.set, start: self.position, len: level.base + data };
        match run.start.checked_add(run.len) {
            Some(end) if end <= self.total_bits => self.position = end,
            _ => {
                return Err(VliError::PastEnd { start: run.start, len: run.len, total_bits: self.total_bits });
            }
        }
        self.at += need;
        self.set = !self.set;
        Ok(run)
    }
}

impl Iterator for Runs<'_> {
    type Item = Result<Run, VliError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.code_bits {
            return None;
        }
        let run = self.step();
        if run.is_err() {
            self.at = self.code_bits;
        }
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(bytes: &[u8]) -> CompressedBitmap {
        CompressedBitmap { encoding: bytes[0], code: bytes[1..].into() }
    }

    #[test]
    fn wire_vli_levels_are_those_of_the_reference() {
        let smallest: Vec<u64> = LEVELS.iter().map(|l| l.base).collect();
        let expected = [1, 3, 5, 9, 17, 49, 305, 8497, 2_105_649, 17_181_974_833];
        assert_eq!(smallest, expected);
        assert_eq!(MAX_RUN, (1 << 56) + 17_181_974_832);
    }

    #[test]
    fn wire_vli_part_of_the_recordings() {
        let bytes = [0xb2, 0x3f, 0xc5, 0x0e];
        let runs: Vec<_> = decode_part(&part(&bytes), 0, 4086).unwrap().collect();
        let run = Run { set: true, start: 0, len: 4086 };
        assert_eq!(runs, [Ok(run)]);
        let encoded = encode_part([4086], true, 4079).unwrap();
        assert_eq!((encoded.part.clone(), encoded.bits, encoded.runs), (part(&bytes), 4086, 1));
        assert!(encoded.is_worth_it());
    }

    #[test]
    fn wire_vli_run_of_three_is_written_low_bit_first() {
        let encoded = encode_part([3], false, 8).unwrap();
        assert_eq!(encoded.part, part(&[CODE | 5 << 4, 0b001]));
        assert!(encoded.is_worth_it());
        // Single bits cost two bits each.
        let encoded = encode_part([1; 32], false, 4079).unwrap();
        assert_eq!((encoded.part.code.len(), encoded.bits), (8, 32));
        assert!(!encoded.is_worth_it());
    }

    #[test]
    fn wire_vli_refuses_by_name() {
        let whole = part(&[0xb2, 0x3f, 0xc5, 0x0e]);
        let past = check_part(&whole, 1, 4086);
        assert!(matches!(past, Err(VliError::PastEnd { start: 1, len: 4086, .. })));
        let far = check_part(&whole, u64::MAX - 5, u64::MAX);
        assert!(matches!(far, Err(VliError::PastEnd { .. })));
        let cut = check_part(&part(&[0xb2, 0x3f, 0xc5]), 0, 4086);
        assert!(matches!(cut, Err(VliError::Truncated { .. })), "{cut:?}");
        let code = check_part(&part(&[0xb1, 0x3f]), 0, 9);
        assert_eq!(code, Err(VliError::UnknownCode { encoding: 0xb1 }));
        let none = check_part(&part(&[0xb2]), 0, 9);
        assert_eq!(none, Err(VliError::Empty { len: 0, pad_bits: 3 }));
        let mut runs = decode_part(&whole, 0, 10).unwrap();
        assert!(runs.next().is_some_and(|r| r.is_err()) && runs.next().is_none());
    }

    #[test]
    fn wire_vli_stops_at_the_budget() {
        let runs = [MAX_RUN, 1, 1 << 40, 1 << 40];
        let first = encode_part(runs, true, 16).unwrap();
        assert_eq!(first.runs, 2);
        assert!(first.part.code.len() <= 16);
        let second = encode_part(runs[2..].iter().copied(), true, 16).unwrap();
        assert_eq!((second.runs, second.bits), (2, 1 << 41));
        assert_eq!(check_part(&first.part, 0, u64::MAX), Ok(first.bits));
        assert_eq!(encode_part([], true, 16), None);
    }
}
