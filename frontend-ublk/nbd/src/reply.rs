//! Replies of the transmission phase ("Simple reply message", "Structured reply chunk message", "Error values").
//!
//! Every encoder writes into the caller's buffer and returns how many bytes it wrote. The data of a read is not
//! touched: it follows the header in the stream, gathered by the send.

use crate::proto::{SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};

const SIMPLE_LEN: usize = 16;
const CHUNK_LEN: usize = 20;
const DATA_CHUNK_LEN: usize = CHUNK_LEN + 8;

/// Longest header of a reply without an error, in bytes.
pub const REPLY_LEN_MAX: usize = DATA_CHUNK_LEN;
/// An error reply without a message fits into this many bytes.
pub const ERROR_LEN_MIN: usize = CHUNK_LEN + 6;
/// Longest message of an error reply in bytes; what is longer is cut.
pub const MESSAGE_LEN_MAX: usize = 256;
/// An error reply with the longest message fits into this many bytes.
pub const ERROR_LEN_MAX: usize = ERROR_LEN_MIN + MESSAGE_LEN_MAX;

/// The errors a reply can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// EPERM: a write to a read-only export.
    Perm = 1,
    /// EIO.
    Io = 5,
    /// ENOMEM.
    NoMem = 12,
    /// EINVAL: a request that breaks the protocol or the export's constraints.
    Inval = 22,
    /// ENOSPC: also a write beyond the end.
    NoSpc = 28,
    /// EOVERFLOW: too long for one request.
    Overflow = 75,
    /// ENOTSUP: only for a fast zero that would not be fast.
    NotSup = 95,
    /// ESHUTDOWN: the client has to disconnect.
    Shutdown = 108,
}

impl Errno {
    /// The wire's name for a Linux errno, positive or negative. What the protocol has no name for is EIO.
    #[must_use]
    pub fn from_linux(errno: i32) -> Errno {
        match errno.unsigned_abs() {
            // EPERM, EACCES, EROFS
            1 | 13 | 30 => Errno::Perm,
            12 => Errno::NoMem,
            22 => Errno::Inval,
            // EFBIG, ENOSPC, EDQUOT: "Error values" asks for this.
            27 | 28 | 122 => Errno::NoSpc,
            75 => Errno::Overflow,
            95 => Errno::NotSup,
            108 => Errno::Shutdown,
            _ => Errno::Io,
        }
    }
}

/// The replies a connection agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyStyle {
    /// One simple reply for each request.
    Simple,
    /// Structured chunks for every request, so that the stream can be read without knowing the requests.
    Structured,
}

impl ReplyStyle {
    /// Header of a successful read whose `len` bytes from `offset` follow at once; ends the reply.
    ///
    /// All data must have been read: no error can be reported after this header.
    ///
    /// # Panics
    /// Where `out` is shorter than [`REPLY_LEN_MAX`].
    pub fn encode_read(self, out: &mut [u8], cookie: u64, offset: u64, len: u32) -> usize {
        match self {
            ReplyStyle::Simple => encode_simple(out, cookie, 0),
            ReplyStyle::Structured => encode_data_chunk(out, cookie, offset, len, chunk::FLAG_DONE),
        }
    }

    /// Header of one part of a read, structured replies only: `len` bytes from `offset` follow at once, and more
    /// chunks of the same reply later, in any order. The reply ends with [`ReplyStyle::encode_done`] or
    /// [`ReplyStyle::encode_error`]. Not for a read with [`RequestFlags::df`](crate::RequestFlags::df).
    ///
    /// With this a large read needs no more memory than its pieces under way.
    ///
    /// # Panics
    /// With simple replies, or where `out` is shorter than [`REPLY_LEN_MAX`].
    pub fn encode_read_part(self, out: &mut [u8], cookie: u64, offset: u64, len: u32) -> usize {
        assert!(self == ReplyStyle::Structured, "a simple reply has no parts");
        encode_data_chunk(out, cookie, offset, len, 0)
    }

    /// Success of a request without data, or the end of a read in parts.
    ///
    /// # Panics
    /// Where `out` is shorter than [`REPLY_LEN_MAX`].
    pub fn encode_done(self, out: &mut [u8], cookie: u64) -> usize {
        match self {
            ReplyStyle::Simple => encode_simple(out, cookie, 0),
            ReplyStyle::Structured => {
                encode_chunk(out, cookie, chunk::FLAG_DONE, chunk::NONE, 0);
                CHUNK_LEN
            }
        }
    }

    /// Failure of any request. `message` is for a human; it is cut to what `out` holds and to
    /// [`MESSAGE_LEN_MAX`], and simple replies have no place for it.
    ///
    /// # Panics
    /// Where `out` is shorter than [`ERROR_LEN_MIN`].
    pub fn encode_error(self, out: &mut [u8], cookie: u64, errno: Errno, message: &str) -> usize {
        match self {
            ReplyStyle::Simple => encode_simple(out, cookie, errno as u32),
            ReplyStyle::Structured => {
                let room = out.len().checked_sub(ERROR_LEN_MIN).expect("room for an error reply");
                let message = &message[..message.floor_char_boundary(room.min(MESSAGE_LEN_MAX))];
                // At most MESSAGE_LEN_MAX, which fits both fields.
                let message_len = message.len() as u16;
                encode_chunk(out, cookie, chunk::FLAG_DONE, chunk::ERROR, 6 + u32::from(message_len));
                out[20..24].copy_from_slice(&(errno as u32).to_be_bytes());
                out[24..26].copy_from_slice(&message_len.to_be_bytes());
                let end = ERROR_LEN_MIN + message.len();
                out[ERROR_LEN_MIN..end].copy_from_slice(message.as_bytes());
                end
            }
        }
    }
}

fn encode_simple(out: &mut [u8], cookie: u64, error: u32) -> usize {
    out[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out[4..8].copy_from_slice(&error.to_be_bytes());
    out[8..16].copy_from_slice(&cookie.to_be_bytes());
    SIMPLE_LEN
}

fn encode_chunk(out: &mut [u8], cookie: u64, flags: u16, kind: u16, payload_len: u32) {
    out[0..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    out[4..6].copy_from_slice(&flags.to_be_bytes());
    out[6..8].copy_from_slice(&kind.to_be_bytes());
    out[8..16].copy_from_slice(&cookie.to_be_bytes());
    out[16..20].copy_from_slice(&payload_len.to_be_bytes());
}

fn encode_data_chunk(out: &mut [u8], cookie: u64, offset: u64, len: u32, flags: u16) -> usize {
    assert!((1..=crate::proto::MAX_PAYLOAD).contains(&len), "a data chunk of {len} bytes");
    encode_chunk(out, cookie, flags, chunk::OFFSET_DATA, 8 + len);
    out[20..28].copy_from_slice(&offset.to_be_bytes());
    DATA_CHUNK_LEN
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOKIE: u64 = 0x0102_0304_0506_0708;

    fn bytes(encode: impl FnOnce(&mut [u8]) -> usize) -> Vec<u8> {
        let mut out = [0xee; ERROR_LEN_MAX];
        let len = encode(&mut out);
        assert!(out[len..].iter().all(|&b| b == 0xee), "wrote past the length it returned");
        out[..len].to_vec()
    }

    #[test]
    fn nbd_reply_simple_bytes() {
        let s = ReplyStyle::Simple;
        let ok = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(bytes(|o| s.encode_read(o, COOKIE, 4096, 512)), ok);
        assert_eq!(bytes(|o| s.encode_done(o, COOKIE)), ok);
        assert_eq!(
            bytes(|o| s.encode_error(o, COOKIE, Errno::NoSpc, "unseen")),
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8]
        );
    }

    #[test]
    fn nbd_reply_structured_bytes() {
        let s = ReplyStyle::Structured;
        assert_eq!(
            bytes(|o| s.encode_read(o, COOKIE, 0x1000, 0x200)),
            [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 2, 8, 0, 0, 0, 0, 0, 0, 0x10, 0]
        );
        assert_eq!(bytes(|o| s.encode_read_part(o, COOKIE, 0x1000, 0x200))[4..6], [0, 0]);
        assert_eq!(
            bytes(|o| s.encode_done(o, COOKIE)),
            [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0]
        );
        assert_eq!(
            bytes(|o| s.encode_error(o, COOKIE, Errno::Io, "no")),
            [0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 8, 0, 0, 0, 5, 0, 2, b'n', b'o']
        );
    }

    #[test]
    fn nbd_reply_message_is_cut_at_a_character() {
        let s = ReplyStyle::Structured;
        let mut small = [0; ERROR_LEN_MIN + 4];
        assert_eq!(s.encode_error(&mut small, 1, Errno::Io, "abcä"), ERROR_LEN_MIN + 3);
        assert_eq!(small[24..29], [0, 3, b'a', b'b', b'c']);
        let long = "x".repeat(5000);
        assert_eq!(bytes(|o| s.encode_error(o, 1, Errno::Io, &long)).len(), ERROR_LEN_MAX);
        let mut wide = [0; 2 * ERROR_LEN_MAX];
        assert_eq!(s.encode_error(&mut wide, 1, Errno::Io, &long), ERROR_LEN_MAX);
        let mut least = [0; ERROR_LEN_MIN];
        assert_eq!(s.encode_error(&mut least, 1, Errno::Io, &long), ERROR_LEN_MIN);
    }

    #[test]
    fn nbd_reply_errno_mapping() {
        let same = [1, 5, 12, 22, 28, 75, 95, 108];
        for errno in same {
            assert_eq!(Errno::from_linux(errno) as i32, errno);
            assert_eq!(Errno::from_linux(-errno) as i32, errno);
        }
        assert_eq!(Errno::from_linux(30), Errno::Perm);
        assert_eq!(Errno::from_linux(122), Errno::NoSpc);
        assert_eq!(Errno::from_linux(27), Errno::NoSpc);
        assert_eq!(Errno::from_linux(110), Errno::Io);
        assert_eq!(Errno::from_linux(i32::MIN), Errno::Io);
    }
}
