//! What the fuzz targets run: one function per decoder, fed with arbitrary bytes.
//!
//! Each panics only if a decoder does or if what it accepted does not survive a round trip. The crate's
//! tests run them too, over seeded bytes and over the recordings.

use crate::auth::{self, HmacAlg};
use crate::bitmap;
use crate::digest::DigestAlg;
use crate::features::{ConnectionFeatures, Features, Negotiated, negotiate};
use crate::framer::{Framer, Progress};
use crate::header::{Header, HeaderFormat};
use crate::ids::NodeId;
use crate::packet::{Bitmap, CHALLENGE_LEN, CompressedBitmap, MAX_PREFIX_BYTES, Packet, Stream};
use crate::state::StateBits;
use crate::vli;

/// Agreements that make every packet legal somewhere, and the edges between versions.
pub const AGREEMENTS: [Negotiated; 10] = [
    Negotiated::INITIAL,
    agreement(86, 0x0, None),
    agreement(88, 0x0, None),
    agreement(94, 0x3, Some(DigestAlg::Crc32c)),
    agreement(97, 0xf, None),
    agreement(101, 0xf, Some(DigestAlg::Sha1)),
    agreement(118, 0xf, None),
    agreement(121, 0x2f, Some(DigestAlg::Sha512)),
    agreement(122, 0x27f, Some(DigestAlg::Crc32c)),
    agreement(124, 0x3ff, None),
];

const fn agreement(version: u32, features: u32, integrity_alg: Option<DigestAlg>) -> Negotiated {
    Negotiated { version, features: Features(features), integrity_alg }
}

/// Splits off one byte that chooses something.
fn choice(data: &[u8]) -> (usize, &[u8]) {
    data.split_first().map_or((0, data), |(&b, rest)| (usize::from(b), rest))
}

/// Splits off a number.
fn number(data: &[u8]) -> (u64, &[u8]) {
    data.split_first_chunk::<8>().map_or((0, data), |(n, rest)| (u64::from_be_bytes(*n), rest))
}

/// [`Header::decode`].
pub fn fuzz_header(data: &[u8]) {
    if let Ok(header) = Header::decode(data) {
        let mut again = Vec::new();
        header.encode(&mut again);
        assert_eq!(again, data[..header.format.len()]);
    }
}

/// [`Framer`] over a stream of packets, under agreements chosen by the first byte.
pub fn fuzz_framer(data: &[u8]) {
    let (pick, data) = choice(data);
    for stream in [Stream::Data, Stream::Control] {
        let mut framer = Framer::new(stream);
        framer.set_negotiated(AGREEMENTS[pick % AGREEMENTS.len()]);
        let mut rest = data;
        loop {
            match framer.next(rest) {
                Ok(Progress::Packet { consumed, payload_len, packet, header, digest_len }) => {
                    let digest = &rest[consumed - digest_len..consumed];
                    round_trip(&framer, &header, &packet, digest, payload_len);
                    let Some(next) = rest.get(consumed + payload_len..) else {
                        break;
                    };
                    rest = next;
                }
                Ok(Progress::NeedMore { at_least }) => {
                    assert!(at_least > rest.len() && at_least <= MAX_PREFIX_BYTES);
                    break;
                }
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    break;
                }
            }
        }
    }
}

/// [`Packet::decode`] with a header made of the first bytes, so that every command is reached quickly.
pub fn fuzz_packet(data: &[u8]) {
    let (pick, data) = choice(data);
    let (command, body) = choice(data);
    let neg = AGREEMENTS[pick % AGREEMENTS.len()];
    let command = match command as u16 {
        0xff => 0xfffe,
        command => command,
    };
    let format = HeaderFormat::for_version(neg.version);
    let header = Header { format, raw_volume: 0, command, length: body.len() as u32 };
    for stream in [Stream::Data, Stream::Control] {
        let mut framer = Framer::new(stream);
        framer.set_negotiated(neg);
        if let Ok((packet, payload_len)) = Packet::decode(&header, stream, &neg, body) {
            let prefix = &body[..body.len() - payload_len];
            let digest_len = if packet.has_payload() { neg.digest_len() } else { 0 };
            let digest = &prefix[prefix.len() - digest_len..];
            round_trip(&framer, &header, &packet, digest, payload_len);
        }
    }
}

/// What was decoded encodes to something that decodes to the same.
fn round_trip(framer: &Framer, header: &Header, packet: &Packet, digest: &[u8], payload_len: usize) {
    let mut bytes = Vec::new();
    let neg = framer.negotiated();
    packet.encode_with_digest(neg, header.volume(), digest, payload_len, &mut bytes);
    match framer.clone().next(&bytes) {
        Ok(Progress::Packet { packet: again, consumed, payload_len: len, .. }) => {
            assert_eq!((&again, consumed, len), (packet, bytes.len(), payload_len));
        }
        other => panic!("{packet:?} came back as {other:?}"),
    }
}

/// [`vli::decode_part`]: the first bytes are the place and the size of the bitmap.
pub fn fuzz_vli(data: &[u8]) {
    let (start, data) = number(data);
    let (total_bits, data) = number(data);
    let (encoding, code) = choice(data);
    let part = CompressedBitmap { encoding: encoding as u8, code: code.into() };
    let Ok(end) = vli::check_part(&part, start, total_bits) else {
        return;
    };
    assert!(end <= total_bits);
    let runs = vli::decode_part(&part, start, total_bits).expect("a checked part decodes");
    let lens: Vec<u64> = runs.map(|run| run.expect("a checked part decodes").len).collect();
    assert_eq!(lens.iter().sum::<u64>(), end - start);
    let room = part.code.len().max(8);
    let again = vli::encode_part(lens, part.encoding & 0x80 != 0, room).expect("runs are there");
    assert_eq!(again.bits, end - start);
    assert_eq!(vli::check_part(&again.part, start, total_bits), Ok(end));
}

/// [`bitmap::Receiver`]: parts as length, kind and bytes.
pub fn fuzz_bitmap(data: &[u8]) {
    let (total_bits, mut data) = number(data);
    let mut receiver = bitmap::Receiver::new(total_bits);
    while !data.is_empty() {
        let (kind, rest) = choice(data);
        let (len, rest) = choice(rest);
        let (bytes, rest) = rest.split_at(len.min(rest.len()));
        let words = bytes.into();
        let before = receiver;
        let accepted = if kind % 2 == 0 {
            let part = Bitmap { words };
            let words = receiver.plain(&part);
            words.map(|w| assert!(w.last().is_none_or(|(bit, _)| bit < total_bits))).is_ok()
        } else {
            let part = CompressedBitmap { encoding: kind as u8 & !1 | 2, code: words };
            let runs = receiver.compressed(&part);
            runs.map(|r| assert!(r.last().is_some_and(|r| r.start < total_bits))).is_ok()
        };
        assert!(accepted || receiver == before);
        data = rest;
    }
}

/// [`StateBits::word`].
pub fn fuzz_state(data: &[u8]) {
    let (bits, _) = number(data);
    let bits = StateBits((bits >> 32) as u32);
    for agreed in [101, 124] {
        if let Ok(word) = bits.word(agreed) {
            assert_eq!(word.bits(agreed).0, bits.0 & 0x00ff_ffff);
        }
    }
}

/// [`negotiate`] with two arbitrary feature packets.
pub fn fuzz_negotiate(data: &[u8]) {
    let (own, data) = features(data);
    let (peer, _) = features(data);
    if let Ok(neg) = negotiate(&own, &peer) {
        assert_eq!(negotiate(&peer, &own), Ok(neg));
        assert!(neg.version >= own.protocol_min && neg.version >= peer.protocol_min);
        assert!(!(102..=117).contains(&neg.version));
    }
}

fn features(data: &[u8]) -> (ConnectionFeatures, &[u8]) {
    let (versions, data) = number(data);
    let (flags, data) = number(data);
    let (ids, data) = choice(data);
    let features = ConnectionFeatures {
        protocol_min: (versions >> 32) as u32,
        feature_flags: Features(flags as u32),
        protocol_max: versions as u32,
        sender_node_id: (ids & 1) as u32,
        receiver_node_id: (ids >> 1 & 1) as u32,
    };
    (features, data)
}

/// [`auth::check_response`]: arbitrary responses are refused or right, never a panic.
pub fn fuzz_auth(data: &[u8]) {
    let (pick, data) = choice(data);
    let alg = [HmacAlg::Md5, HmacAlg::Sha1, HmacAlg::Sha256, HmacAlg::Sha512][pick % 4];
    let id = NodeId::new((pick >> 2) as u8);
    let (secret, response) = data.split_at(data.len().min(8));
    let challenge = [pick as u8; CHALLENGE_LEN];
    let right = auth::respond(alg, secret, &challenge, id);
    let verdict = auth::check_response(alg, secret, &challenge, id, response);
    assert_eq!(verdict.is_ok(), right.as_slice() == response);
}
