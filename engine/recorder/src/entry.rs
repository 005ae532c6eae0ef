//! One entry: an input of the core with its time; behind it the random numbers that it drew, each an entry, too.
//!
//! Entries are packed by hand, and not archived: a replicated write costs three to five of them (`docs/adr`: the flight recorder).
//! Each tells by itself where it ends.

use std::borrow::Cow;
use std::collections::VecDeque;

use rkyv::rancor::Error as RkyvError;
use thiserror::Error;
use zea_core::io::{
    AdminTag, BufId, Command, DigestTag, DiskError, DiskTag, Input, LinkId, LinkLost, Op, Payload, ReqId, Request,
};
use zea_wire::features::Negotiated;
use zea_wire::header::{Header, HeaderFormat};
use zea_wire::ids::{NodeId, VolumeNr};
use zea_wire::packet::{Packet, rule};

use crate::bytes::{Fields, Reader, Short, put_fields};
use crate::links::Links;

const REQUEST: u8 = 1;
const DISK_DONE: u8 = 2;
const LINK_UP: u8 = 3;
const LINK_DOWN: u8 = 4;
const PACKET: u8 = 5;
const ADMIN: u8 = 6;
const TIMER: u8 = 7;
const RANDOM: u8 = 8;
const END: u8 = 9;
const DIGEST_DONE: u8 = 10;

/// What cannot be written down: a packet that is not legal on its link. A framer lets none through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unrecordable;

/// Why an entry with a good checksum is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum EntryError {
    #[error(transparent)]
    Short(#[from] Short),
    #[error("an entry of the unknown kind {0}")]
    Kind(u8),
    #[error("no legal packet: {0}")]
    Packet(String),
    #[error("no command: {0}")]
    Command(String),
    #[error("a value that is none of its kind")]
    Value,
}

/// A decoded entry, or several: an input with what it drew.
#[derive(Debug)]
pub(crate) enum Entry<'a> {
    /// An input.
    Input {
        /// Nanoseconds since the one before.
        since: u64,
        /// What the core was given.
        input: Input<'a>,
        /// The random numbers that it drew.
        words: VecDeque<u64>,
    },
    /// The resource was taken away, or the shard ended.
    End,
}

pub(crate) fn put_random(out: &mut Vec<u8>, word: u64) {
    put_fields(out, |fields| {
        fields.byte(RANDOM);
        fields.number(word);
    });
}

pub(crate) fn put_end(out: &mut Vec<u8>) {
    out.push(END);
}

/// What stands behind the short fields of an input.
enum Behind<'a> {
    Nothing,
    Bytes(Cow<'a, [u8]>),
    /// How long its payload is, which is not recorded.
    Packet(&'a Packet, Negotiated, u32),
}

/// Appends an input that comes `since` nanoseconds after the one before; if it cannot, the bytes that it appended are none.
pub(crate) fn put_input(out: &mut Vec<u8>, links: &Links, since: u64, input: &Input<'_>) -> Result<(), Unrecordable> {
    match put_fields(out, |fields| put_short(fields, links, since, input)) {
        Behind::Nothing => {}
        Behind::Bytes(bytes) => out.extend_from_slice(&bytes),
        Behind::Packet(packet, negotiated, payload_len) => {
            let at = out.len();
            if (payload_len > 0 && !packet.has_payload()) || !packet.encode_body(&negotiated, out) {
                return Err(Unrecordable);
            }
            let len = u16::try_from(out.len() - at).map_err(|_| Unrecordable)?;
            out[at - 2..at].copy_from_slice(&len.to_le_bytes());
        }
    }
    Ok(())
}

#[inline]
fn put_short<'a>(fields: &mut Fields<'_>, links: &Links, since: u64, input: &'a Input<'_>) -> Behind<'a> {
    let mut head = |kind| {
        fields.byte(kind);
        fields.number(since);
    };
    match input {
        Input::Request(request) => {
            head(REQUEST);
            put_request(fields, request);
            Behind::Nothing
        }
        Input::DiskDone { tag, result, buf, meta, block } => {
            head(DISK_DONE);
            put_disk_done(fields, *tag, *result, *buf, block.is_some());
            counted(fields, meta)
        }
        Input::DigestDone { tag, digest } => {
            head(DIGEST_DONE);
            fields.number(tag.0);
            counted(fields, digest)
        }
        Input::LinkUp { peer, link, resolve_conflicts } => {
            head(LINK_UP);
            fields.byte(peer.0);
            fields.byte(u8::from(*resolve_conflicts));
            fields.number(link.0);
            Behind::Nothing
        }
        Input::LinkDown { peer, link, lost } => {
            head(LINK_DOWN);
            fields.byte(peer.0);
            fields.number(link.0);
            let (kind, why) = match lost {
                LinkLost::Closed => (0, ""),
                LinkLost::Network(why) => (1, why.as_str()),
                LinkLost::Protocol(why) => (2, why.as_str()),
                LinkLost::SendTimeout => (3, ""),
            };
            fields.byte(kind);
            counted(fields, why.as_bytes())
        }
        Input::Packet { peer, link, volume, packet, payload } => {
            head(PACKET);
            fields.byte(peer.0);
            fields.number(link.0);
            fields.number(volume.map_or(0, |v| u64::from(v.0) + 1));
            put_payload(fields, *payload);
            // The command, and what stands between header and payload: the header says nothing more.
            fields.number(packet.command().into());
            // Its length is known afterwards.
            fields.byte(0);
            fields.byte(0);
            Behind::Packet(packet, links.of(*link), payload.map_or(0, |p| p.len))
        }
        Input::Admin { tag, command } => {
            head(ADMIN);
            fields.number(tag.0);
            let archived = rkyv::to_bytes::<RkyvError>(command).expect("a command fits memory");
            fields.number(archived.len() as u64);
            Behind::Bytes(Cow::Owned(archived.to_vec()))
        }
        Input::Timer => {
            head(TIMER);
            Behind::Nothing
        }
    }
}

/// Bytes with their number in front.
fn counted<'a>(fields: &mut Fields<'_>, bytes: &'a [u8]) -> Behind<'a> {
    fields.number(bytes.len() as u64);
    if bytes.is_empty() { Behind::Nothing } else { Behind::Bytes(Cow::Borrowed(bytes)) }
}

/// The next entry, with the random numbers behind it.
pub(crate) fn get<'a>(r: &mut Reader<'a>, links: &Links) -> Result<Entry<'a>, EntryError> {
    let kind = r.byte()?;
    if kind == END {
        return Ok(Entry::End);
    }
    let (since, input, mut words) = (r.number()?, get_input(r, kind, links)?, VecDeque::new());
    while r.0.first() == Some(&RANDOM) {
        r.byte()?;
        words.push_back(r.number()?);
    }
    Ok(Entry::Input { since, input, words })
}

fn get_input<'a>(r: &mut Reader<'a>, kind: u8, links: &Links) -> Result<Input<'a>, EntryError> {
    Ok(match kind {
        REQUEST => Input::Request(get_request(r)?),
        DISK_DONE => get_disk_done(r)?,
        DIGEST_DONE => Input::DigestDone { tag: DigestTag(r.number()?), digest: r.bytes()? },
        LINK_UP => {
            let (peer, flag) = (node(r)?, r.byte()?);
            Input::LinkUp { peer, link: LinkId(r.number()?), resolve_conflicts: flag != 0 }
        }
        LINK_DOWN => {
            let (peer, link, kind) = (node(r)?, LinkId(r.number()?), r.byte()?);
            let why = std::str::from_utf8(r.bytes()?).map_err(|_| EntryError::Value)?.to_owned();
            let lost = match kind {
                0 => LinkLost::Closed,
                1 => LinkLost::Network(why),
                2 => LinkLost::Protocol(why),
                3 => LinkLost::SendTimeout,
                _ => return Err(EntryError::Value),
            };
            Input::LinkDown { peer, link, lost }
        }
        PACKET => {
            let (peer, link) = (node(r)?, LinkId(r.number()?));
            let volume = r.number()?.checked_sub(1).map(u16::try_from).transpose().map_err(|_| Short)?.map(VolumeNr);
            let payload = get_payload(r)?;
            let packet = get_packet(r, links, link, payload.map_or(0, |p| p.len))?;
            Input::Packet { peer, link, volume, packet, payload }
        }
        ADMIN => {
            let tag = AdminTag(r.number()?);
            let command = rkyv::from_bytes::<Command, RkyvError>(r.bytes()?);
            Input::Admin { tag, command: command.map_err(|e| EntryError::Command(e.to_string()))? }
        }
        TIMER => Input::Timer,
        other => return Err(EntryError::Kind(other)),
    })
}

fn node(r: &mut Reader<'_>) -> Result<NodeId, EntryError> {
    NodeId::new(r.byte()?).ok_or(EntryError::Value)
}

// ---- requests --------------------------------------------------------------------------------------------------

const FUA: u8 = 0x80;

fn put_request(fields: &mut Fields<'_>, request: &Request) {
    let op = match request.op {
        Op::Read => 0,
        Op::Write => 1,
        Op::Discard => 2,
        Op::WriteZeroes { unmap: false } => 3,
        Op::WriteZeroes { unmap: true } => 4,
        Op::Flush => 5,
    };
    fields.byte(op | if request.fua { FUA } else { 0 });
    fields.number(request.id.0);
    fields.number(request.volume.0.into());
    fields.number(request.sector);
    fields.number(request.len.into());
    put_payload(fields, request.payload);
}

fn get_request(r: &mut Reader<'_>) -> Result<Request, EntryError> {
    let op = r.byte()?;
    Ok(Request {
        op: match op & !FUA {
            0 => Op::Read,
            1 => Op::Write,
            2 => Op::Discard,
            3 => Op::WriteZeroes { unmap: false },
            4 => Op::WriteZeroes { unmap: true },
            5 => Op::Flush,
            _ => return Err(EntryError::Value),
        },
        fua: op & FUA != 0,
        id: ReqId(r.number()?),
        volume: VolumeNr(r.small()?),
        sector: r.number()?,
        len: r.small()?,
        payload: get_payload(r)?,
    })
}

/// 0, or the length and one, then the place.
fn put_payload(fields: &mut Fields<'_>, payload: Option<Payload>) {
    let Some(Payload { buf, offset, len }) = payload else {
        return fields.byte(0);
    };
    fields.number(u64::from(len) + 1);
    fields.number(buf.0.into());
    fields.number(offset.into());
}

fn get_payload(r: &mut Reader<'_>) -> Result<Option<Payload>, EntryError> {
    let Some(len) = r.number()?.checked_sub(1) else {
        return Ok(None);
    };
    let len = u32::try_from(len).map_err(|_| Short)?;
    Ok(Some(Payload { buf: BufId(r.small()?), offset: r.small()?, len }))
}

// ---- disk commands ---------------------------------------------------------------------------------------------

const HAS_BUF: u8 = 0x40;
const HAS_BLOCK: u8 = 0x80;

fn put_disk_done(
    fields: &mut Fields<'_>,
    tag: DiskTag,
    result: Result<(), DiskError>,
    buf: Option<BufId>,
    has_block: bool,
) {
    let kind = match result {
        Ok(()) => 0,
        Err(DiskError::Io(_)) => 1,
        Err(DiskError::NoSpace) => 2,
        Err(DiskError::Unsupported) => 3,
    };
    fields.byte(kind | if buf.is_some() { HAS_BUF } else { 0 } | if has_block { HAS_BLOCK } else { 0 });
    fields.number(tag.0);
    if let Err(DiskError::Io(errno)) = result {
        fields.number(u64::from(errno.cast_unsigned()));
    }
    if let Some(BufId(buf)) = buf {
        fields.number(buf.into());
    }
}

/// The block of a write comes back for its memory only: here an empty one.
fn get_disk_done<'a>(r: &mut Reader<'a>) -> Result<Input<'a>, EntryError> {
    let kind = r.byte()?;
    let tag = DiskTag(r.number()?);
    let result = match kind & !(HAS_BUF | HAS_BLOCK) {
        0 => Ok(()),
        1 => Err(DiskError::Io(r.small::<u32>()?.cast_signed())),
        2 => Err(DiskError::NoSpace),
        3 => Err(DiskError::Unsupported),
        _ => return Err(EntryError::Value),
    };
    let buf = if kind & HAS_BUF != 0 { Some(BufId(r.small()?)) } else { None };
    let block = (kind & HAS_BLOCK != 0).then(|| Box::new([0; 4096]));
    Ok(Input::DiskDone { tag, result, buf, meta: r.bytes()?, block })
}

// ---- packets ---------------------------------------------------------------------------------------------------

fn get_packet(r: &mut Reader<'_>, links: &Links, link: LinkId, payload_len: u32) -> Result<Packet, EntryError> {
    let negotiated = links.of(link);
    let command = r.small()?;
    let len = u16::from_le_bytes([r.byte()?, r.byte()?]);
    let body = r.take(len.into())?;
    let rule = rule(command).ok_or_else(|| EntryError::Packet(format!("command {command:#x}")))?;
    let length = u32::try_from(body.len()).ok().and_then(|len| len.checked_add(payload_len)).ok_or(Short)?;
    let header = Header {
        format: HeaderFormat::for_packet(negotiated.version, length as usize),
        raw_volume: Header::NO_VOLUME,
        command,
        length,
    };
    match Packet::decode(&header, rule.stream(), &negotiated, body) {
        Ok((packet, len)) if len == payload_len as usize => Ok(packet),
        Ok((_, len)) => Err(EntryError::Packet(format!("{len} bytes of payload instead of {payload_len}"))),
        Err(e) => Err(EntryError::Packet(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zea_core::io::Action;
    use zea_wire::features::{Features, Negotiated};

    use super::*;

    /// Links as a core agrees on them.
    fn links() -> Links {
        let mut links = Links::default();
        for (peer, link, version) in [(1, 1, 118), (2, 8, 118), (2, 2, 124), (3, 3, 101), (4, 4, 96)] {
            let features = if version < 118 { Features::DRBD_84 } else { Features::DRBD_93 };
            let negotiated = Negotiated { version, features, ..Negotiated::INITIAL };
            links.follow(&Action::SetNegotiated { peer: NodeId(peer), link: LinkId(link), negotiated });
        }
        links
    }

    proptest! {
        #[test]
        fn recorder_entries_of_anything_are_read_without_a_panic(
            kind in 0..=10_u8,
            head in prop::collection::vec(0..6_u8, 0..8),
            rest in prop::collection::vec(any::<u8>(), 0..120),
        ) {
            let body = [&[kind][..], &head, &rest].concat();
            if let Ok(Entry::Input { since, input, .. }) = get(&mut Reader(&body), &links()) {
                // What was read is written and read as the same.
                let mut again = Vec::new();
                prop_assert_eq!(put_input(&mut again, &links(), since, &input), Ok(()));
                let mut rest = Reader(&again);
                let Ok(Entry::Input { since: since_again, input: input_again, .. }) = get(&mut rest, &links()) else { panic!("{input:?}") };
                prop_assert!(rest.0.is_empty());
                prop_assert_eq!((since_again, format!("{input_again:?}")), (since, format!("{input:?}")));
            }
        }
    }

    #[test]
    fn recorder_does_not_write_what_is_not_legal() {
        let packet = Packet::PeerAck(zea_wire::packet::PeerAck { mask: NodeId(1).mask(), dagtag: 1 });
        let input = |link| Input::Packet {
            peer: NodeId(1),
            link: LinkId(link),
            volume: None,
            packet: packet.clone(),
            payload: None,
        };
        let mut out = Vec::new();
        assert_eq!(put_input(&mut out, &links(), 0, &input(1)), Ok(()));
        assert_eq!(put_input(&mut out, &links(), 0, &input(2)), Ok(()));
        assert_eq!(put_input(&mut out, &links(), 0, &input(8)), Err(Unrecordable), "a link of before");
    }
}
