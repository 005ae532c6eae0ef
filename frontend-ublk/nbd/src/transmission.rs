//! Requests of the transmission phase ("Request message", "Request types", "Command flags", "Size constraints").

use thiserror::Error;

use crate::export::ExportInfo;
use crate::proto::{MAX_PAYLOAD, REQUEST_LEN, REQUEST_MAGIC, cmd, cmd_flag, tx_flag};
use crate::reply::{Errno, ReplyStyle};

/// What a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Data of the range.
    Read,
    /// The range becomes the payload that follows the request.
    Write,
    /// What was written and answered before becomes durable.
    Flush,
    /// The range is no longer needed; its content becomes undefined.
    Trim,
    /// The range reads as zeroes.
    WriteZeroes,
    /// The range will be read soon: a hint, to be answered without data.
    Cache,
}

impl Op {
    /// Whether the request changes the export.
    #[must_use]
    pub fn is_write(self) -> bool {
        matches!(self, Op::Write | Op::Trim | Op::WriteZeroes)
    }
}

/// How a request is to be carried out. A flag is only set where it was advertised and has a meaning for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestFlags {
    /// Durable before it is answered (requests that write).
    pub fua: bool,
    /// Do not leave a hole (write zeroes).
    pub no_hole: bool,
    /// Answer with one data chunk (read).
    pub df: bool,
    /// Fail with [`Errno::NotSup`], and at once, unless faster than a write (write zeroes).
    pub fast_zero: bool,
}

/// A valid request: inside the export, aligned, and of a kind that was advertised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The client's name for the request, to be repeated in the reply.
    pub cookie: u64,
    /// What to do.
    pub op: Op,
    /// How to do it.
    pub flags: RequestFlags,
    /// Start of the range in bytes; 0 for a flush.
    pub offset: u64,
    /// Length of the range in bytes; 0 for a flush and only there. At most `block_max` for reads and writes; the
    /// other requests may be longer than what their range would allow as payload.
    pub len: u32,
}

/// A request that is to be answered with an error and has no other effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The client's name for the request.
    pub cookie: u64,
    /// The request type as sent, known or not.
    pub command: u16,
    /// Offset as sent, in bytes.
    pub offset: u64,
    /// Length as sent, in bytes.
    pub len: u32,
    /// The error to send.
    pub errno: Errno,
    /// The reason to send, where replies are structured, and to log.
    pub reason: &'static str,
}

/// What the head of the stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The rest of the input does not hold a request header: come back with it and more behind it.
    NeedMore,
    /// A request. For a write its payload comes next in the stream: see [`RequestParser::payload_left`].
    Request(Request),
    /// A request to be answered with an error. A write's payload is skipped by the parser itself.
    Refused(Refused),
    /// The client leaves: answer what is under way, then close.
    Disconnect,
}

/// What ends the connection at once, without a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TransmissionError {
    /// The stream is out of step.
    #[error("request magic is {0:#010x}")]
    Magic(u32),
    /// A payload that is too long even to be skipped.
    #[error("write with a payload of {0} bytes")]
    Payload(u32),
}

/// Where the parser stands in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Header,
    /// The caller takes this many bytes.
    Payload(u32),
    /// The parser skips this many bytes.
    Skip(u32),
    Closed,
}

/// Turns the client's stream into requests. Holds no bytes: what it does not consume stays with the caller.
#[derive(Debug, Clone)]
pub struct RequestParser {
    size_bytes: u64,
    block_min: u32,
    block_max: u32,
    /// The transmission flags the client was told.
    advertised: u16,
    phase: Phase,
}

impl RequestParser {
    /// A parser for the requests to `export` on a connection that agreed on `style`.
    pub(crate) fn new(export: &ExportInfo, style: ReplyStyle) -> RequestParser {
        RequestParser {
            size_bytes: export.size_bytes,
            block_min: export.block_min,
            block_max: export.block_max,
            advertised: export.transmission_flags(style),
            phase: Phase::Header,
        }
    }

    /// Reads at most one request from the head of `staging`. Returns how many bytes it consumed, and what they were.
    ///
    /// After [`Parsed::Disconnect`] and after an error everything is consumed and answers `Disconnect`.
    ///
    /// # Errors
    /// What ends the connection.
    ///
    /// # Panics
    /// While payload of a write is left: the caller has to take it first.
    pub fn parse(&mut self, staging: &[u8]) -> Result<(usize, Parsed), TransmissionError> {
        let skipped = match self.phase {
            Phase::Header => 0,
            Phase::Payload(left) => panic!("{left} bytes of payload are still to be taken"),
            Phase::Skip(left) => self.skip(left, staging.len()),
            Phase::Closed => return Ok((staging.len(), Parsed::Disconnect)),
        };
        let Some(header) = staging[skipped..].first_chunk::<REQUEST_LEN>() else {
            return Ok((skipped, Parsed::NeedMore));
        };
        let parsed = self.header(header).inspect_err(|_| self.phase = Phase::Closed)?;
        Ok((skipped + REQUEST_LEN, parsed))
    }

    /// Bytes of a write's payload that the caller has not yet taken from the stream.
    #[must_use]
    pub fn payload_left(&self) -> u32 {
        match self.phase {
            Phase::Payload(left) => left,
            Phase::Header | Phase::Skip(_) | Phase::Closed => 0,
        }
    }

    /// The caller took `len` bytes of payload, from the staging buffer or from the socket.
    ///
    /// # Panics
    /// Where that is more than was left.
    pub fn payload_taken(&mut self, len: u32) {
        let left = self.payload_left().checked_sub(len).expect("payload taken beyond its end");
        if let Phase::Payload(_) = self.phase {
            self.phase = if left == 0 { Phase::Header } else { Phase::Payload(left) };
        }
    }

    /// Skips what is left of a write's payload: for a caller that refuses the write itself.
    pub fn skip_payload(&mut self) {
        if let Phase::Payload(left) = self.phase {
            self.phase = Phase::Skip(left);
        }
    }

    fn skip(&mut self, left: u32, available: usize) -> usize {
        // Not more than `left`, which is a u32.
        let skipped = available.min(left as usize);
        let left = left - skipped as u32;
        self.phase = if left == 0 { Phase::Header } else { Phase::Skip(left) };
        skipped
    }

    fn header(&mut self, header: &[u8; REQUEST_LEN]) -> Result<Parsed, TransmissionError> {
        let raw = RawRequest::decode(header)?;
        if raw.command == cmd::DISC {
            self.phase = Phase::Closed;
            return Ok(Parsed::Disconnect);
        }
        let verdict = self.check(&raw);
        if raw.command == cmd::WRITE && raw.len > 0 {
            self.phase = match verdict {
                Ok(_) => Phase::Payload(raw.len),
                Err(_) if raw.len > MAX_PAYLOAD => return Err(TransmissionError::Payload(raw.len)),
                Err(_) => Phase::Skip(raw.len),
            };
        }
        let RawRequest { cookie, command, offset, len, .. } = raw;
        Ok(match verdict {
            Ok((op, flags)) => Parsed::Request(Request { cookie, op, flags, offset, len }),
            Err((errno, reason)) => Parsed::Refused(Refused { cookie, command, offset, len, errno, reason }),
        })
    }

    fn check(&self, raw: &RawRequest) -> Result<(Op, RequestFlags), Refusal> {
        let op = self.op(raw.command)?;
        let flags = self.flags(op, raw.flags)?;
        if op == Op::Flush {
            if raw.offset != 0 || raw.len != 0 {
                return Err((Errno::Inval, "a flush has no range"));
            }
        } else {
            self.check_range(op, raw.offset, raw.len)?;
        }
        Ok((op, flags))
    }

    fn op(&self, command: u16) -> Result<Op, Refusal> {
        let (op, advertised_by) = match command {
            cmd::READ => (Op::Read, tx_flag::HAS_FLAGS),
            cmd::WRITE => (Op::Write, tx_flag::HAS_FLAGS),
            cmd::FLUSH => (Op::Flush, tx_flag::SEND_FLUSH),
            cmd::TRIM => (Op::Trim, tx_flag::SEND_TRIM),
            cmd::CACHE => (Op::Cache, tx_flag::SEND_CACHE),
            cmd::WRITE_ZEROES => (Op::WriteZeroes, tx_flag::SEND_WRITE_ZEROES),
            cmd::BLOCK_STATUS => return Err((Errno::Inval, "no metadata context is selected")),
            _ => return Err((Errno::Inval, "unknown command")),
        };
        if op.is_write() && self.advertised & tx_flag::READ_ONLY != 0 {
            return Err((Errno::Perm, "the export is read-only"));
        }
        if self.advertised & advertised_by == 0 {
            return Err((Errno::Inval, "the command was not advertised"));
        }
        Ok(op)
    }

    fn flags(&self, op: Op, sent: u16) -> Result<RequestFlags, Refusal> {
        let allowed = |bit, advertised_by| {
            if self.advertised & advertised_by != 0 { bit } else { 0 }
        };
        // Existing clients set FUA on commands that do not write: valid, and without meaning there.
        let valid = allowed(cmd_flag::FUA, tx_flag::SEND_FUA)
            | match op {
                Op::Read => allowed(cmd_flag::DF, tx_flag::SEND_DF),
                Op::WriteZeroes => cmd_flag::NO_HOLE | allowed(cmd_flag::FAST_ZERO, tx_flag::SEND_FAST_ZERO),
                Op::Write | Op::Flush | Op::Trim | Op::Cache => 0,
            };
        if sent & !valid != 0 {
            return Err((Errno::Inval, "a command flag is unknown or was not advertised"));
        }
        Ok(RequestFlags {
            fua: sent & cmd_flag::FUA != 0 && op.is_write(),
            no_hole: sent & cmd_flag::NO_HOLE != 0,
            df: sent & cmd_flag::DF != 0,
            fast_zero: sent & cmd_flag::FAST_ZERO != 0,
        })
    }

    fn check_range(&self, op: Op, offset: u64, len: u32) -> Result<(), Refusal> {
        if len == 0 {
            return Err((Errno::Inval, "the length is 0"));
        }
        if len > self.block_max && matches!(op, Op::Read | Op::Write) {
            // EOVERFLOW invites the client to read in smaller parts; "Error values" reserves it for reads where DF
            // is offered.
            let overflow = op == Op::Read && self.advertised & tx_flag::SEND_DF != 0;
            let errno = if overflow { Errno::Overflow } else { Errno::Inval };
            return Err((errno, "longer than the maximum payload"));
        }
        if offset.checked_add(u64::from(len)).is_none_or(|end| end > self.size_bytes) {
            let errno = match op {
                Op::Write | Op::WriteZeroes => Errno::NoSpc,
                Op::Read | Op::Flush | Op::Trim | Op::Cache => Errno::Inval,
            };
            return Err((errno, "beyond the end of the export"));
        }
        if !offset.is_multiple_of(u64::from(self.block_min)) || !len.is_multiple_of(self.block_min) {
            return Err((Errno::Inval, "not aligned to the minimum block size"));
        }
        Ok(())
    }
}

type Refusal = (Errno, &'static str);

struct RawRequest {
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    len: u32,
}

impl RawRequest {
    fn decode(bytes: &[u8; REQUEST_LEN]) -> Result<RawRequest, TransmissionError> {
        let [m0, m1, m2, m3, f0, f1, c0, c1, rest @ ..] = *bytes;
        let magic = u32::from_be_bytes([m0, m1, m2, m3]);
        if magic != REQUEST_MAGIC {
            return Err(TransmissionError::Magic(magic));
        }
        let [k0, k1, k2, k3, k4, k5, k6, k7, o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = rest;
        Ok(RawRequest {
            flags: u16::from_be_bytes([f0, f1]),
            command: u16::from_be_bytes([c0, c1]),
            cookie: u64::from_be_bytes([k0, k1, k2, k3, k4, k5, k6, k7]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            len: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }
}

#[cfg(test)]
mod tests;
