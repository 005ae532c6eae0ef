//! The server side of the NBD protocol, without IO.
//!
//! **Purpose.** A resource's device is offered as an NBD export to any client: nbd.ko, qemu, libnbd. This crate
//! turns bytes into requests and completions into bytes. Sockets, timers and buffers belong to the caller.
//!
//! **Owner thread.** The thread that owns the connection, normally the resource's shard. Nothing here is shared.
//!
//! **Order of use.**
//! 1. Send [`Handshake::GREETING`], then [`Handshake::feed`] what arrives until [`Progress::Ready`].
//! 2. [`Negotiated::parser`] gives the [`RequestParser`]; what `feed` left unconsumed is its first input.
//! 3. Answer each request through [`ReplyStyle`], in any order; [`pieces`] cuts large requests for the engine.
//!
//! **Invariants.**
//! * The transmission phase allocates nothing; the handshake holds at most [`MAX_OPTION_LEN`] bytes of a client.
//! * No input of a client panics: it is answered with an error, or ends the connection with a named one.
//! * How the stream is cut into slices never changes what comes out.
//! * A [`Request`] that is handed out is inside the export, aligned to its minimum block, not longer than
//!   [`ExportInfo::block_max`] where it carries a payload, and uses only what was advertised.
//!
//! **Reference.** `doc/proto.md` of NetworkBlockDevice/nbd: the baseline plus structured replies and size
//! constraints, in NOTLS mode; no metadata contexts, no extended headers. Section names in the module docs are its.

#![deny(missing_docs)]

mod export;
mod handshake;
mod options;
mod pieces;
mod proto;
mod reply;
mod transmission;

pub use export::{BadExport, ExportInfo, Exports, OpenError};
pub use handshake::{Handshake, HandshakeError, MAX_OPTIONS, Negotiated, Progress};
pub use options::{MAX_LIST_LEN, MAX_OPTION_LEN, MAX_SKIPPED_LEN};
pub use pieces::{Piece, Pieces, pieces};
pub use proto::{MAX_PAYLOAD, MAX_STRING_LEN, REQUEST_LEN};
pub use reply::{ERROR_LEN_MAX, ERROR_LEN_MIN, Errno, MESSAGE_LEN_MAX, REPLY_LEN_MAX, ReplyStyle};
pub use transmission::{Op, Parsed, Refused, Request, RequestFlags, RequestParser, TransmissionError};
