//! Encoding and decoding of whole packets.

use super::body::{Context, Shape, check_range};
use super::rules::{Packet, Rule, Stream, rule};
use super::{DecodeError, MAX_DATA_BYTES};
use crate::bytes::Reader;
use crate::features::Negotiated;
use crate::flags::DpFlags;
use crate::header::{Header, HeaderFormat};
use crate::ids::VolumeNr;

/// The rule of a header's command and the legal shape of its body.
fn look_up<'a>(header: &Header, neg: &'a Negotiated) -> Result<(&'static Rule, Context<'a>, Shape), DecodeError> {
    let command = header.command;
    let rule = rule(command).ok_or(DecodeError::UnknownCommand { command })?;
    rule.check_legal(neg)?;
    let digest_len = neg.digest_len();
    let ctx = Context { neg, format: header.format, command, digest_len };
    let shape = rule.shape(&ctx);
    let Shape { min, max, .. } = shape;
    if !(min..=max).contains(&(header.length as usize)) {
        return Err(DecodeError::BadLength { name: rule.name, length: header.length, min, max });
    }
    Ok((rule, ctx, shape))
}

/// How many bytes behind the header [`Packet::decode`] needs: the whole body, or for packets with bulk
/// payload the part in front of it, digest included. At most [`super::MAX_PREFIX_BYTES`] with the header.
///
/// Errors: the command is unknown, illegal with these agreements, or of an impossible length.
pub fn prefix_len(header: &Header, neg: &Negotiated) -> Result<usize, DecodeError> {
    let (_, _, shape) = look_up(header, neg)?;
    Ok(shape.bulk_prefix.unwrap_or(header.length as usize))
}

impl Packet {
    /// Decodes the packet behind `header`, which came on `stream`. `body` starts right behind the
    /// header and has at least [`prefix_len`] bytes; more are not looked at.
    ///
    /// Returns the packet and the number of bulk payload bytes that follow the prefix on the stream. With
    /// an integrity algorithm the last `neg.digest_len()` bytes of the prefix of a packet with
    /// payload are the payload's digest; it is up to whoever receives the payload to compare it.
    ///
    /// Errors: any breach of the rules of sections 3, 7, 8 and 9, by name.
    pub fn decode(
        header: &Header,
        stream: Stream,
        neg: &Negotiated,
        body: &[u8],
    ) -> Result<(Packet, usize), DecodeError> {
        let (rule, ctx, shape) = look_up(header, neg)?;
        rule.check_stream(stream, header.format, neg.version)?;
        let length = header.length as usize;
        let need = shape.bulk_prefix.unwrap_or(length);
        let prefix = body.get(..need).ok_or(DecodeError::Truncated { need, have: body.len() })?;
        let mut reader = Reader::new(prefix);
        let packet = Packet::get_body(&mut reader, &ctx)?;
        assert_eq!(reader.remaining(), 0, "{} leaves bytes", rule.name);
        let payload_len = length - need;
        packet.check_payload(payload_len)?;
        Ok((packet, payload_len))
    }

    /// Payload is whole sectors; only a flush may come without any.
    fn check_payload(&self, payload_len: usize) -> Result<(), DecodeError> {
        let size = payload_len as u32;
        match self {
            Packet::Data(d) => {
                let min = if d.dp_flags.contains(DpFlags::FLUSH) { 0 } else { 512 };
                check_range(d.sector, size, min, MAX_DATA_BYTES)
            }
            Packet::DataReply(d) | Packet::RsDataReply(d) => check_range(d.sector, size, 512, MAX_DATA_BYTES),
            Packet::Wsame(w) => check_range(w.trim.sector, size, 512, MAX_DATA_BYTES),
            _ => Ok(()),
        }
    }

    /// Appends header and fixed part to `out`. `volume` is `None` for packets about the connection. The
    /// `payload_len` bytes of bulk payload that the header counts are sent by the caller right behind
    /// (only P_DATA, P_DATA_REPLY, P_RS_DATA_REPLY, P_WSAME). Allocates only if `out` has no room.
    ///
    /// Panics if the packet is not legal with these agreements, or if it has payload and a digest is
    /// needed: then use [`Packet::encode_with_digest`].
    pub fn encode(&self, neg: &Negotiated, volume: Option<VolumeNr>, payload_len: usize, out: &mut Vec<u8>) {
        self.encode_with_digest(neg, volume, &[], payload_len, out);
    }

    /// Appends what stands between header and payload, without the digest of the payload. `false`, and nothing is appended:
    /// the packet is not legal with `neg`.
    #[must_use]
    pub fn encode_body(&self, neg: &Negotiated, out: &mut Vec<u8>) -> bool {
        let legal = self.rule().is_legal(neg);
        if legal {
            let format = HeaderFormat::for_version(neg.version);
            self.put_body(out, &Context { neg, format, command: self.command(), digest_len: 0 });
        }
        legal
    }

    /// As [`Packet::encode`], with the digest of the payload: `neg.digest_len()` bytes for
    /// packets with payload, none for others.
    pub fn encode_with_digest(
        &self,
        neg: &Negotiated,
        volume: Option<VolumeNr>,
        digest: &[u8],
        payload_len: usize,
        out: &mut Vec<u8>,
    ) {
        let rule = self.rule();
        assert!(rule.is_legal(neg), "{} is not legal with {neg:?}", rule.name);
        let has_payload = self.has_payload();
        assert!(has_payload || payload_len == 0, "{} has no payload", rule.name);
        let digest_len = if has_payload { neg.digest_len() } else { 0 };
        assert_eq!(digest.len(), digest_len, "digest length of {}", rule.name);

        // header80 and header95 have one length, so the format may be settled when the body is known.
        let start = out.len();
        let space = HeaderFormat::for_version(neg.version);
        out.extend_from_slice(&[0; 16][..space.len()]);
        let body = out.len();
        let command = self.command();
        let ctx = Context { neg, format: space, command, digest_len: digest.len() };
        self.put_body(out, &ctx);
        out.extend_from_slice(digest);
        let length = out.len() - body + payload_len;
        let shape = rule.shape(&ctx);
        assert!((shape.min..=shape.max).contains(&length), "{} of {length} bytes", rule.name);
        let header = Header {
            format: HeaderFormat::for_packet(neg.version, length),
            raw_volume: volume.map_or(Header::NO_VOLUME, |v| v.0),
            command,
            length: length as u32,
        };
        header.write(&mut out[start..body]);
    }
}
