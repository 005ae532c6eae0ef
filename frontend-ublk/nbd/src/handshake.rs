//! The fixed newstyle handshake as a state machine ("Handshake", "Fixed newstyle negotiation").

use thiserror::Error;

use crate::export::{ExportInfo, Exports, OpenError};
use crate::options::{
    MAX_OPTION_LEN, MAX_SKIPPED_LEN, OptionReplies, check_meta_context, has_data, parse_info, parse_string,
};
use crate::proto::{INIT_MAGIC, OPTION_MAGIC, handshake_flag, opt, rep};
use crate::reply::ReplyStyle;
use crate::transmission::RequestParser;

/// Most options of one connection: an end to haggling that leads nowhere.
pub const MAX_OPTIONS: u32 = 1024;

const OPTION_HEADER_LEN: usize = 16;
const EXPORT_NAME_ZEROES: usize = 124;

/// What [`Handshake::feed`] came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// All input is consumed; more is needed.
    NeedInput,
    /// One option was answered: feed the rest of the input.
    Answered,
    /// The client uses an export: send the output, then go on with [`Negotiated::parser`] and the rest of the input.
    Ready(Negotiated),
    /// The client gave up: send the output, then close.
    Aborted,
}

/// What a connection agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    /// The export, as [`Exports::open`] described it.
    pub export: ExportInfo,
    /// How requests are answered.
    pub style: ReplyStyle,
}

impl Negotiated {
    /// The parser for the requests that follow.
    #[must_use]
    pub fn parser(&self) -> RequestParser {
        RequestParser::new(&self.export, self.style)
    }
}

/// What ends the connection without a reply.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// Client flags that were not offered.
    #[error("client flags {0:#010x} hold one that was not offered")]
    ClientFlags(u32),
    /// The stream is out of step.
    #[error("option magic is {0:#018x}")]
    Magic(u64),
    /// Data too long even to be skipped.
    #[error("option {option} has {len} bytes of data")]
    OptionLen {
        /// The option.
        option: u32,
        /// Length of its data in bytes.
        len: u32,
    },
    /// More than [`MAX_OPTIONS`] options.
    #[error("more than {MAX_OPTIONS} options")]
    TooManyOptions,
    /// EXPORT_NAME with a name that is no string; the option has no way to report errors.
    #[error("export name: {0}")]
    ExportName(&'static str),
    /// EXPORT_NAME for an export that cannot be used.
    #[error("export {name:?}: {error}")]
    Export {
        /// The name that the client asked for.
        name: String,
        /// Why it cannot be used.
        error: OpenError,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    ClientFlags,
    OptionHeader,
    /// Collects an option's data.
    OptionData {
        option: u32,
        len: usize,
    },
    /// Skips an option's data.
    OptionSkip {
        option: u32,
        len: u32,
        left: usize,
    },
    Closed,
}

/// The server's side of one connection's handshake.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    /// The part of the current item that has arrived.
    held: Vec<u8>,
    no_zeroes: bool,
    style: ReplyStyle,
    options: u32,
}

impl Default for Handshake {
    fn default() -> Self {
        Handshake::new()
    }
}

impl Handshake {
    /// What the server sends as soon as a client is connected.
    pub const GREETING: [u8; 18] = greeting();

    /// The handshake of a new connection.
    #[must_use]
    pub fn new() -> Handshake {
        Handshake {
            state: State::ClientFlags,
            held: Vec::new(),
            no_zeroes: false,
            style: ReplyStyle::Simple,
            options: 0,
        }
    }

    /// Takes input, up to the end of one option, and appends what is to be sent to `out`. Returns how many bytes of
    /// `input` it consumed. Call it again with the rest until it says [`Progress::NeedInput`].
    ///
    /// A client may not send an option before the last one is answered; one answer for each call keeps `out` small
    /// also where a client does.
    ///
    /// # Errors
    /// What ends the connection. Send `out` before closing it.
    ///
    /// # Panics
    /// When called after the handshake has ended in any way.
    pub fn feed(
        &mut self,
        exports: &dyn Exports,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, Progress), HandshakeError> {
        let mut consumed = 0;
        loop {
            let rest = &input[consumed..];
            let (taken, complete) = self.take(rest);
            consumed += taken;
            if !complete {
                return Ok((consumed, Progress::NeedInput));
            }
            let held = std::mem::take(&mut self.held);
            let step = self.item(&held, exports, out);
            self.held = held;
            self.held.clear();
            match step {
                Ok(None) => {}
                Ok(Some(progress)) => {
                    if matches!(progress, Progress::Ready(_) | Progress::Aborted) {
                        self.state = State::Closed;
                    }
                    return Ok((consumed, progress));
                }
                Err(error) => {
                    self.state = State::Closed;
                    return Err(error);
                }
            }
        }
    }

    /// Takes bytes of the current item; tells how many, and whether it is complete.
    fn take(&mut self, rest: &[u8]) -> (usize, bool) {
        let missing = match &mut self.state {
            State::ClientFlags => 4 - self.held.len(),
            State::OptionHeader => OPTION_HEADER_LEN - self.held.len(),
            State::OptionData { len, .. } => *len - self.held.len(),
            State::OptionSkip { left, .. } => {
                let taken = rest.len().min(*left);
                *left -= taken;
                return (taken, *left == 0);
            }
            State::Closed => panic!("the handshake has ended"),
        };
        let taken = rest.len().min(missing);
        self.held.extend_from_slice(&rest[..taken]);
        (taken, taken == missing)
    }

    /// Handles a complete item.
    fn item(
        &mut self,
        held: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<Option<Progress>, HandshakeError> {
        match self.state {
            State::ClientFlags => self.client_flags(held).map(|()| None),
            State::OptionHeader => self.option_header(held).map(|()| None),
            State::OptionData { option, .. } => {
                self.state = State::OptionHeader;
                self.option_with_data(option, held, exports, out).map(Some)
            }
            State::OptionSkip { option, len, .. } => {
                self.state = State::OptionHeader;
                Ok(Some(self.option_without_data(option, len, exports, out)))
            }
            State::Closed => unreachable!("take() does not complete an item here"),
        }
    }

    fn client_flags(&mut self, held: &[u8]) -> Result<(), HandshakeError> {
        let flags = u32::from_be_bytes(held.try_into().expect("4 bytes"));
        if flags & !u32::from(handshake_flag::ALL) != 0 {
            return Err(HandshakeError::ClientFlags(flags));
        }
        // A client without the fixed newstyle flag is served all the same: it will only send EXPORT_NAME.
        self.no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
        self.state = State::OptionHeader;
        Ok(())
    }

    fn option_header(&mut self, held: &[u8]) -> Result<(), HandshakeError> {
        let (magic, rest) = held.split_first_chunk::<8>().expect("16 bytes");
        let (option, len) = rest.split_first_chunk::<4>().expect("16 bytes");
        let magic = u64::from_be_bytes(*magic);
        let option = u32::from_be_bytes(*option);
        let len = u32::from_be_bytes(len.try_into().expect("16 bytes"));
        if magic != OPTION_MAGIC {
            return Err(HandshakeError::Magic(magic));
        }
        self.options += 1;
        if self.options > MAX_OPTIONS {
            return Err(HandshakeError::TooManyOptions);
        }
        let too_long = len > MAX_OPTION_LEN;
        if len > MAX_SKIPPED_LEN || (too_long && option == opt::EXPORT_NAME) {
            return Err(HandshakeError::OptionLen { option, len });
        }
        self.state = if has_data(option) && !too_long {
            State::OptionData { option, len: len as usize }
        } else {
            State::OptionSkip { option, len, left: len as usize }
        };
        Ok(())
    }

    /// An option whose data was skipped: it should have none, is unknown, or has too much.
    fn option_without_data(&mut self, option: u32, len: u32, exports: &dyn Exports, out: &mut Vec<u8>) -> Progress {
        let mut replies = OptionReplies::new(option, out);
        match option {
            opt::ABORT => {
                replies.ack();
                return Progress::Aborted;
            }
            opt::LIST | opt::STRUCTURED_REPLY | opt::STARTTLS if len > 0 => {
                replies.error(rep::ERR_INVALID, "the option has no data");
            }
            opt::LIST => replies.list(&exports.list()),
            opt::STRUCTURED_REPLY => {
                self.style = ReplyStyle::Structured;
                replies.ack();
            }
            opt::STARTTLS => replies.error(rep::ERR_POLICY, "TLS is not offered here"),
            _ if has_data(option) => replies.error(rep::ERR_TOO_BIG, "the option has too much data"),
            _ => replies.error(rep::ERR_UNSUP, "unknown option"),
        }
        Progress::Answered
    }

    fn option_with_data(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<Progress, HandshakeError> {
        match option {
            opt::EXPORT_NAME => self.export_name(data, exports, out),
            opt::INFO | opt::GO => Ok(self.info_or_go(option, data, exports, out)),
            _ => {
                self.meta_context(option, data, out);
                Ok(Progress::Answered)
            }
        }
    }

    /// EXPORT_NAME: success enters transmission, every failure can only close.
    fn export_name(&self, data: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Result<Progress, HandshakeError> {
        let name = parse_string(data).map_err(HandshakeError::ExportName)?;
        let export = open(exports, name).map_err(|error| HandshakeError::Export { name: name.to_owned(), error })?;
        out.extend_from_slice(&export.size_bytes.to_be_bytes());
        out.extend_from_slice(&export.transmission_flags(self.style).to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; EXPORT_NAME_ZEROES]);
        }
        Ok(Progress::Ready(Negotiated { export, style: self.style }))
    }

    fn info_or_go(&self, option: u32, data: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Progress {
        let mut replies = OptionReplies::new(option, out);
        let request = match parse_info(data) {
            Ok(request) => request,
            Err(reason) => {
                replies.error(rep::ERR_INVALID, reason);
                return Progress::Answered;
            }
        };
        match open(exports, request.name) {
            Ok(export) => {
                replies.info(&export, self.style, request.wants_name);
                if option == opt::GO {
                    return Progress::Ready(Negotiated { export, style: self.style });
                }
            }
            Err(error) => replies.open_error(&error),
        }
        Progress::Answered
    }

    /// No context exists: the answer to a well-formed query is an empty list.
    fn meta_context(&self, option: u32, data: &[u8], out: &mut Vec<u8>) {
        let mut replies = OptionReplies::new(option, out);
        if option == opt::SET_META_CONTEXT && self.style != ReplyStyle::Structured {
            return replies.error(rep::ERR_INVALID, "structured replies have to be negotiated first");
        }
        match check_meta_context(data) {
            Ok(()) => replies.ack(),
            Err(reason) => replies.error(rep::ERR_INVALID, reason),
        }
    }
}

/// Opens an export and holds it against the protocol's constraints: what breaks them is not offered.
fn open(exports: &dyn Exports, name: &str) -> Result<ExportInfo, OpenError> {
    let export = exports.open(name)?;
    match export.check() {
        Ok(()) => Ok(export),
        Err(bad) => Err(OpenError::Refused(bad.to_string())),
    }
}

const fn greeting() -> [u8; 18] {
    let mut out = [0; 18];
    let (magic, rest) = out.split_at_mut(8);
    magic.copy_from_slice(&INIT_MAGIC.to_be_bytes());
    let (magic, flags) = rest.split_at_mut(8);
    magic.copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    flags.copy_from_slice(&handshake_flag::ALL.to_be_bytes());
    out
}

#[cfg(test)]
mod tests;
