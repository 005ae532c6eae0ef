//! The incremental decoder over one stream of a connection.

use crate::features::Negotiated;
use crate::header::{Header, HeaderError};
use crate::packet::{DecodeError, Packet, Stream, prefix_len};

/// What is at the start of the bytes that are there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Come back when this many bytes (counted from the start of the same input) are there; at most
    /// [`crate::packet::MAX_PREFIX_BYTES`].
    NeedMore {
        /// Bytes.
        at_least: usize,
    },
    /// A packet.
    Packet {
        /// Bytes of the input that header and prefix take. The last `digest_len` of them are the
        /// digest of the payload.
        consumed: usize,
        /// The header.
        header: Header,
        /// The packet.
        packet: Packet,
        /// Bytes of digest at the end of the consumed bytes; 0 for packets without payload.
        digest_len: usize,
        /// Bytes of bulk payload that follow on the stream. The caller takes them before it asks for
        /// the next packet.
        payload_len: usize,
    },
}

/// Finds packets in the bytes of one stream. It holds no bytes itself: the caller keeps what was not
/// consumed and comes back with more.
#[derive(Clone, Copy, Debug)]
pub struct Framer {
    stream: Stream,
    neg: Negotiated,
}

impl Framer {
    /// A framer for a new stream, before the feature exchange.
    #[must_use]
    pub const fn new(stream: Stream) -> Framer {
        Framer { stream, neg: Negotiated::INITIAL }
    }

    /// Sets what was agreed, or what changed since (digest lengths). It counts from the next packet on.
    pub fn set_negotiated(&mut self, neg: Negotiated) {
        self.neg = neg;
    }

    /// What is agreed.
    #[must_use]
    pub const fn negotiated(&self) -> &Negotiated {
        &self.neg
    }

    /// The stream.
    #[must_use]
    pub const fn stream(&self) -> Stream {
        self.stream
    }

    /// Decodes the packet at the start of `input`. Errors end the connection; `Truncated` errors do
    /// not occur, they are [`Progress::NeedMore`].
    pub fn next(&mut self, input: &[u8]) -> Result<Progress, DecodeError> {
        let header = match Header::decode(input) {
            Ok(header) => header,
            Err(HeaderError::Truncated { need, .. }) => {
                return Ok(Progress::NeedMore { at_least: need });
            }
            Err(error) => return Err(error.into()),
        };
        let head = header.format.len();
        let consumed = head + prefix_len(&header, &self.neg)?;
        if input.len() < consumed {
            return Ok(Progress::NeedMore { at_least: consumed });
        }
        let body = &input[head..consumed];
        let (packet, payload_len) = Packet::decode(&header, self.stream, &self.neg, body)?;
        let digest_len = if packet.has_payload() { self.neg.digest_len() } else { 0 };
        Ok(Progress::Packet { consumed, header, packet, digest_len, payload_len })
    }
}
