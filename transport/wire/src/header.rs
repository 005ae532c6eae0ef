//! The three packet headers (`wire-protocol.md` section 3).

use thiserror::Error;

use crate::ids::VolumeNr;

/// Which header a packet has. Decoded by magic, chosen for sending by the agreed version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum HeaderFormat {
    /// 8 bytes: magic u32, command u16, length u16.
    H80,
    /// 8 bytes: magic u16, command u16, length u32.
    H95,
    /// 16 bytes: magic u32, volume u16, command u16, length u32, pad u32 of zero.
    H100,
}

const MAGIC_80: u32 = 0x8374_0267;
const MAGIC_95: u16 = 0x835a;
const MAGIC_100: u32 = 0x8620_ec20;

/// Versions 95..=99 use [`HeaderFormat::H95`] for packets of more bytes than this, header included.
const H80_MAX_PACKET: usize = 32_768;

impl HeaderFormat {
    /// The format of ordinary packets at an agreed version: header100 from 100 on, else header80.
    #[must_use]
    pub const fn for_version(agreed: u32) -> HeaderFormat {
        if agreed >= 100 { HeaderFormat::H100 } else { HeaderFormat::H80 }
    }

    /// The format for a packet of `body_len` bytes behind the header: as
    /// [`HeaderFormat::for_version`], and header95 for big packets at 95..=99.
    #[must_use]
    pub const fn for_packet(agreed: u32, body_len: usize) -> HeaderFormat {
        let big = body_len > H80_MAX_PACKET - HeaderFormat::H80.len();
        if agreed >= 95 && agreed < 100 && big { HeaderFormat::H95 } else { HeaderFormat::for_version(agreed) }
    }

    /// Bytes of the header.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a header is never empty")]
    pub const fn len(self) -> usize {
        match self {
            HeaderFormat::H80 | HeaderFormat::H95 => 8,
            HeaderFormat::H100 => 16,
        }
    }
}

/// Why bytes are not a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum HeaderError {
    /// More bytes are needed to tell.
    #[error("a header needs {need} bytes, {have} are there")]
    Truncated {
        /// Bytes wanted.
        need: usize,
        /// Bytes given.
        have: usize,
    },
    /// No known magic.
    #[error("bad magic {magic:#010x}")]
    BadMagic {
        /// The first four bytes.
        magic: u32,
    },
    /// The pad of a header100 is not zero.
    #[error("the header's pad is {pad:#x} instead of zero")]
    NonZeroPad {
        /// The pad.
        pad: u32,
    },
}

/// A decoded header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Header {
    /// The layout it came in.
    pub format: HeaderFormat,
    /// The volume as sent; 0xffff for "none" and for formats without a volume. 8.4 puts 0 into connection
    /// wide packets, so it says nothing for those; see [`crate::Packet::scope`].
    pub raw_volume: u16,
    /// The command.
    pub command: u16,
    /// Bytes that follow the header.
    pub length: u32,
}

impl Header {
    /// The raw volume number that means "no volume".
    pub const NO_VOLUME: u16 = 0xffff;

    /// The volume, or `None` in connection wide packets of 9 and in formats without a volume.
    #[must_use]
    pub const fn volume(&self) -> Option<VolumeNr> {
        if self.raw_volume == Self::NO_VOLUME { None } else { Some(VolumeNr(self.raw_volume)) }
    }

    /// The volume that a packet about a volume concerns: formats without a volume know only volume 0.
    #[must_use]
    pub const fn device_volume(&self) -> Option<VolumeNr> {
        match self.format {
            HeaderFormat::H100 => self.volume(),
            HeaderFormat::H80 | HeaderFormat::H95 => Some(VolumeNr(0)),
        }
    }

    /// Decodes the header at the start of `input`, by magic. Errors: see [`HeaderError`];
    /// `Truncated` says how many bytes to come back with.
    pub fn decode(input: &[u8]) -> Result<Header, HeaderError> {
        let have = input.len();
        let short = HeaderError::Truncated { need: HeaderFormat::H80.len(), have };
        let first = input.first_chunk::<8>().ok_or(short)?;
        let [m0, m1, m2, m3, b4, b5, b6, b7] = *first;
        let magic = u32::from_be_bytes([m0, m1, m2, m3]);
        let no_volume = |format, command, length| Header { format, raw_volume: Self::NO_VOLUME, command, length };
        if magic == MAGIC_80 {
            let length = u32::from(u16::from_be_bytes([b6, b7]));
            return Ok(no_volume(HeaderFormat::H80, u16::from_be_bytes([b4, b5]), length));
        }
        if u16::from_be_bytes([m0, m1]) == MAGIC_95 {
            let length = u32::from_be_bytes([b4, b5, b6, b7]);
            return Ok(no_volume(HeaderFormat::H95, u16::from_be_bytes([m2, m3]), length));
        }
        if magic != MAGIC_100 {
            return Err(HeaderError::BadMagic { magic });
        }
        let long = HeaderError::Truncated { need: HeaderFormat::H100.len(), have };
        let rest = input.get(8..).and_then(|i| i.first_chunk::<8>()).ok_or(long)?;
        let [l0, l1, l2, l3, p0, p1, p2, p3] = *rest;
        let pad = u32::from_be_bytes([p0, p1, p2, p3]);
        if pad != 0 {
            return Err(HeaderError::NonZeroPad { pad });
        }
        Ok(Header {
            format: HeaderFormat::H100,
            raw_volume: u16::from_be_bytes([b4, b5]),
            command: u16::from_be_bytes([b6, b7]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    /// Writes the header over the first `format.len()` bytes of `out`. Panics if `out` is shorter or
    /// the length does not fit header80.
    pub fn write(&self, out: &mut [u8]) {
        match self.format {
            HeaderFormat::H80 => {
                let length = u16::try_from(self.length).expect("header80 holds up to 65535 bytes");
                out[0..4].copy_from_slice(&MAGIC_80.to_be_bytes());
                out[4..6].copy_from_slice(&self.command.to_be_bytes());
                out[6..8].copy_from_slice(&length.to_be_bytes());
            }
            HeaderFormat::H95 => {
                out[0..2].copy_from_slice(&MAGIC_95.to_be_bytes());
                out[2..4].copy_from_slice(&self.command.to_be_bytes());
                out[4..8].copy_from_slice(&self.length.to_be_bytes());
            }
            HeaderFormat::H100 => {
                out[0..4].copy_from_slice(&MAGIC_100.to_be_bytes());
                out[4..6].copy_from_slice(&self.raw_volume.to_be_bytes());
                out[6..8].copy_from_slice(&self.command.to_be_bytes());
                out[8..12].copy_from_slice(&self.length.to_be_bytes());
                out[12..16].copy_from_slice(&[0; 4]);
            }
        }
    }

    /// Appends the header to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut bytes = [0; 16];
        self.write(&mut bytes);
        out.extend_from_slice(&bytes[..self.format.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(header: Header) -> Vec<u8> {
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        assert_eq!(Header::decode(&bytes), Ok(header));
        for cut in 0..bytes.len() {
            let cut = Header::decode(&bytes[..cut]);
            assert!(matches!(cut, Err(HeaderError::Truncated { .. })), "{cut:?}");
        }
        bytes
    }

    #[test]
    fn wire_headers_have_the_layouts_of_the_reference() {
        let mut header =
            Header { format: HeaderFormat::H80, raw_volume: Header::NO_VOLUME, command: 0xfff2, length: 0 };
        assert_eq!(round_trip(header), [0x83, 0x74, 2, 0x67, 0xff, 0xf2, 0, 0]);
        assert_eq!(header.volume(), None);
        assert_eq!(header.device_volume(), Some(VolumeNr(0)));
        header = Header { format: HeaderFormat::H95, command: 0, length: 0x0002_0018, ..header };
        assert_eq!(round_trip(header), [0x83, 0x5a, 0, 0, 0, 2, 0, 0x18]);
        header = Header { format: HeaderFormat::H100, raw_volume: 1, command: 0x16, length: 24 };
        let bytes = round_trip(header);
        assert_eq!(bytes, [0x86, 0x20, 0xec, 0x20, 0, 1, 0, 0x16, 0, 0, 0, 24, 0, 0, 0, 0]);
        assert_eq!(header.device_volume(), Some(VolumeNr(1)));
    }

    #[test]
    fn wire_headers_refuse_bad_magic_and_pad() {
        let bad = Header::decode(&[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bad, Err(HeaderError::BadMagic { magic: 0x0102_0304 }));
        let mut bytes = vec![0x86, 0x20, 0xec, 0x20, 0, 1, 0, 0x16, 0, 0, 0, 24, 0, 0, 0, 9];
        assert_eq!(Header::decode(&bytes), Err(HeaderError::NonZeroPad { pad: 9 }));
        bytes[15] = 0;
        assert!(Header::decode(&bytes).is_ok());
    }

    #[test]
    fn wire_header_format_follows_the_agreed_version() {
        use HeaderFormat::{H80, H95, H100};
        assert_eq!(HeaderFormat::for_packet(94, 40_000), H80);
        assert_eq!(HeaderFormat::for_packet(95, 32_760), H80);
        assert_eq!(HeaderFormat::for_packet(95, 32_761), H95);
        assert_eq!(HeaderFormat::for_packet(99, 32_761), H95);
        assert_eq!(HeaderFormat::for_packet(100, 0), H100);
        assert_eq!(HeaderFormat::for_version(80), H80);
    }
}
