//! Options of the handshake: their data, and the replies to them ("Option types", "Option reply types").

use crate::export::{ExportInfo, OpenError, is_protocol_string};
use crate::proto::{MAX_STRING_LEN, OPTION_REPLY_MAGIC, info, opt, rep};
use crate::reply::ReplyStyle;

/// Longest data of an option that is looked at, in bytes. What is longer is skipped and answered with an error.
pub const MAX_OPTION_LEN: u32 = 16 << 10;
/// Longest data of an option that is skipped, in bytes. What is longer ends the connection.
pub const MAX_SKIPPED_LEN: u32 = 1 << 20;
/// Longest answer to LIST, in bytes. A longer list is answered with an error.
pub const MAX_LIST_LEN: usize = 1 << 20;

/// Whether the data of an option matters, beyond its length.
pub(crate) fn has_data(option: u32) -> bool {
    matches!(option, opt::EXPORT_NAME | opt::INFO | opt::GO | opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT)
}

/// Why the data of an option is not valid; the text is sent to the client.
pub(crate) type Invalid = &'static str;

const TRUNCATED: Invalid = "the option's data is shorter than it says";
const TRAILING: Invalid = "the option's data is longer than it says";

/// Data of INFO and GO.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InfoRequest<'a> {
    pub(crate) name: &'a str,
    pub(crate) wants_name: bool,
}

/// Reads the data of INFO or GO.
pub(crate) fn parse_info(data: &[u8]) -> Result<InfoRequest<'_>, Invalid> {
    let mut reader = Reader(data);
    let name_len = reader.u32()?;
    let name = parse_string(reader.take(name_len)?)?;
    let count = reader.u16()?;
    let mut wants_name = false;
    for _ in 0..count {
        // Unknown requests are ignored. EXPORT and BLOCK_SIZE are sent whether or not they are asked for.
        wants_name |= reader.u16()? == info::NAME;
    }
    reader.end()?;
    Ok(InfoRequest { name, wants_name })
}

/// Reads the data of LIST_META_CONTEXT or SET_META_CONTEXT. No context exists, so only its form matters.
pub(crate) fn check_meta_context(data: &[u8]) -> Result<(), Invalid> {
    let mut reader = Reader(data);
    let name_len = reader.u32()?;
    parse_string(reader.take(name_len)?)?;
    let count = reader.u32()?;
    for _ in 0..count {
        let query_len = reader.u32()?;
        parse_string(reader.take(query_len)?)?;
    }
    reader.end()
}

/// Reads a string of the protocol.
pub(crate) fn parse_string(bytes: &[u8]) -> Result<&str, Invalid> {
    if bytes.len() > MAX_STRING_LEN {
        return Err("a string is longer than 4096 bytes");
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if is_protocol_string(text) => Ok(text),
        Ok(_) => Err("a string holds a NUL"),
        Err(_) => Err("a string is not UTF-8"),
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], Invalid> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u16(&mut self) -> Result<u16, Invalid> {
        self.chunk().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Invalid> {
        self.chunk().map(u32::from_be_bytes)
    }

    fn take(&mut self, len: u32) -> Result<&'a [u8], Invalid> {
        let len = usize::try_from(len).map_err(|_| TRUNCATED)?;
        let (head, rest) = self.0.split_at_checked(len).ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(head)
    }

    fn end(self) -> Result<(), Invalid> {
        if self.0.is_empty() { Ok(()) } else { Err(TRAILING) }
    }
}

/// Writes the replies to one option.
pub(crate) struct OptionReplies<'a> {
    out: &'a mut Vec<u8>,
    option: u32,
}

impl<'a> OptionReplies<'a> {
    pub(crate) fn new(option: u32, out: &'a mut Vec<u8>) -> OptionReplies<'a> {
        OptionReplies { out, option }
    }

    pub(crate) fn ack(&mut self) {
        self.header(rep::ACK, 0);
    }

    /// `kind` is one of the `ERR_` reply types; `message` is shown to a human.
    pub(crate) fn error(&mut self, kind: u32, message: &str) {
        let message = &message[..message.floor_char_boundary(MAX_STRING_LEN)];
        self.header(kind, message.len());
        self.out.extend_from_slice(message.as_bytes());
    }

    pub(crate) fn open_error(&mut self, error: &OpenError) {
        let kind = match error {
            OpenError::Unknown(_) => rep::ERR_UNKNOWN,
            OpenError::Refused(_) => rep::ERR_POLICY,
            OpenError::ShuttingDown(_) => rep::ERR_SHUTDOWN,
        };
        self.error(kind, &error.to_string());
    }

    /// The whole answer to LIST.
    pub(crate) fn list(&mut self, names: &[String]) {
        let start = self.out.len();
        // A name that no string of the protocol can hold cannot be opened by a client either.
        for name in names.iter().filter(|name| is_protocol_string(name)) {
            self.header(rep::SERVER, 4 + name.len());
            self.out.extend_from_slice(&(name.len() as u32).to_be_bytes());
            self.out.extend_from_slice(name.as_bytes());
            if self.out.len() - start > MAX_LIST_LEN {
                self.out.truncate(start);
                return self.error(rep::ERR_TOO_BIG, "too many exports to list");
            }
        }
        self.ack();
    }

    /// The whole answer to INFO or GO for an export that may be used.
    pub(crate) fn info(&mut self, export: &ExportInfo, style: ReplyStyle, wants_name: bool) {
        self.header(rep::INFO, 12);
        self.out.extend_from_slice(&info::EXPORT.to_be_bytes());
        self.out.extend_from_slice(&export.size_bytes.to_be_bytes());
        self.out.extend_from_slice(&export.transmission_flags(style).to_be_bytes());
        if wants_name {
            self.header(rep::INFO, 2 + export.name.len());
            self.out.extend_from_slice(&info::NAME.to_be_bytes());
            self.out.extend_from_slice(export.name.as_bytes());
        }
        // Sent unasked too: the constraints are never the protocol's defaults.
        self.header(rep::INFO, 14);
        self.out.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        for size in [export.block_min, export.block_preferred, export.block_max] {
            self.out.extend_from_slice(&size.to_be_bytes());
        }
        self.ack();
    }

    fn header(&mut self, kind: u32, len: usize) {
        let len = u32::try_from(len).expect("replies are a few KiB");
        self.out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        for field in [self.option, kind, len] {
            self.out.extend_from_slice(&field.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nbd_option_info_data() {
        let parse = |data: &[u8]| parse_info(data).map(|r| (r.name.to_owned(), r.wants_name));
        assert_eq!(parse(b"\0\0\0\x02r0\0\0"), Ok(("r0".into(), false)));
        assert_eq!(parse(b"\0\0\0\0\0\0"), Ok((String::new(), false)));
        assert_eq!(parse(b"\0\0\0\x02r0\0\x03\0\x03\xff\xff\0\x01"), Ok(("r0".into(), true)));
        assert_eq!(parse(b"\0\0\0\x02r0\0\x02\0\x03"), Err(TRUNCATED));
        assert_eq!(parse(b"\0\0\0\x02r0\0\x00\0\x03"), Err(TRAILING));
        assert_eq!(parse(b"\0\0\0\x09r0\0\0"), Err(TRUNCATED));
        assert_eq!(parse(b"\xff\xff\xff\xffr0\0\0"), Err(TRUNCATED));
        assert_eq!(parse(b""), Err(TRUNCATED));
        assert_eq!(parse(b"\0\0\0\x02r\xff\0\0"), Err("a string is not UTF-8"));
        assert_eq!(parse(b"\0\0\0\x02r\0\0\0"), Err("a string holds a NUL"));
    }

    #[test]
    fn nbd_option_meta_context_data() {
        assert_eq!(check_meta_context(b"\0\0\0\x02r0\0\0\0\0"), Ok(()));
        assert_eq!(check_meta_context(b"\0\0\0\x02r0\0\0\0\x01\0\0\0\x05base:"), Ok(()));
        assert_eq!(check_meta_context(b"\0\0\0\x02r0\0\0\0\x02\0\0\0\x05base:"), Err(TRUNCATED));
        assert_eq!(check_meta_context(b"\0\0\0\x02r0\xff\xff\xff\xff"), Err(TRUNCATED));
        assert_eq!(check_meta_context(b"\0\0\0\x02r0\0\0\0\0\0"), Err(TRAILING));
    }

    #[test]
    fn nbd_option_list_is_bounded() {
        let mut out = vec![0xaa];
        OptionReplies::new(opt::LIST, &mut out).list(&vec!["x".repeat(4096); 300]);
        assert_eq!(out[1 + 12..1 + 16], rep::ERR_TOO_BIG.to_be_bytes());
        out.clear();
        OptionReplies::new(opt::LIST, &mut out).list(&["y".repeat(4097), "r0".into()]);
        assert_eq!(out.len(), 20 + 4 + 2 + 20, "the name that cannot be sent is left out");
    }
}
