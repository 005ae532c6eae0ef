//! Packets as bytes: every packet that a core sends is encoded by the wire crate and decoded again on the other side.

use zea_wire::digest::{Digest, DigestAlg, MAX_DIGEST_LEN};
use zea_wire::features::Negotiated;
use zea_wire::framer::{Framer, Progress};
use zea_wire::ids::VolumeNr;
use zea_wire::packet::{Packet, Scope, Stream};

use crate::pool::Tag;

/// A decoded packet.
#[derive(Debug)]
pub struct Decoded {
    /// Header volume, `None` for what concerns the connection.
    pub volume: Option<VolumeNr>,
    /// Header and fixed part.
    pub packet: Packet,
    /// The digest of the payload.
    pub digest: Option<Digest>,
}

/// Number of a stream in the network.
pub fn stream_index(packet: &Packet) -> usize {
    match packet.stream() {
        Stream::Data => 0,
        Stream::Control => 1,
    }
}

/// The digest of sectors, as packets with data carry it.
pub fn digest(alg: DigestAlg, tags: &[Tag]) -> Digest {
    let bytes: Vec<u8> = tags.iter().flat_map(|tag| tag.to_le_bytes()).collect();
    let mut out = [0; MAX_DIGEST_LEN];
    let len = alg.compute(&bytes, &mut out);
    Digest::new(&out[..len]).expect("1 to 64 bytes")
}

/// Header, fixed part and digest of a packet. Panics where the packet is not legal, and where decoding does not give it back.
pub fn encode(negotiated: &Negotiated, volume: Option<VolumeNr>, packet: &Packet, tags: Option<&[Tag]>) -> Vec<u8> {
    assert_eq!(packet.has_payload(), tags.is_some(), "{} with payload: {}", packet.name(), tags.is_some());
    let payload_len = tags.map_or(0, |tags| tags.len() * 512);
    let digest = negotiated.integrity_alg.zip(tags).map(|(alg, tags)| digest(alg, tags));
    let digest = digest.as_ref().map_or(&[][..], Digest::as_slice);
    let mut bytes = Vec::with_capacity(96);
    packet.encode_with_digest(negotiated, volume, digest, payload_len, &mut bytes);
    let again = decode(negotiated, stream_index(packet), &bytes, payload_len).expect("what was encoded decodes");
    assert_eq!(again.packet, *packet, "decode(encode(packet)) differs");
    assert_eq!(again.volume, volume, "volume of {}", packet.name());
    bytes
}

/// Decodes one whole packet.
///
/// # Errors
/// What the wire crate refuses, as text.
pub fn decode(negotiated: &Negotiated, stream: usize, bytes: &[u8], payload_len: usize) -> Result<Decoded, String> {
    let mut framer = Framer::new(if stream == 0 { Stream::Data } else { Stream::Control });
    framer.set_negotiated(*negotiated);
    match framer.next(bytes).map_err(|e| e.to_string())? {
        Progress::NeedMore { at_least } => Err(format!("{} bytes, the framer wants {at_least}", bytes.len())),
        Progress::Packet { consumed, header, packet, digest_len, payload_len: announced } => {
            if consumed != bytes.len() || announced != payload_len {
                return Err(format!("{} announces {announced} bytes of payload, {payload_len} follow", packet.name()));
            }
            let volume = match packet.scope() {
                Scope::Connection => None,
                Scope::Volume | Scope::Either => header.device_volume(),
            };
            Ok(Decoded { volume, packet, digest: Digest::new(&bytes[consumed - digest_len..]) })
        }
    }
}

/// Looks at the begin of a packet. Panics where the framer finds a packet in it, or an error: it has to wait for the rest.
pub fn decode_part(negotiated: &Negotiated, stream: usize, bytes: &[u8]) {
    let mut framer = Framer::new(if stream == 0 { Stream::Data } else { Stream::Control });
    framer.set_negotiated(*negotiated);
    match framer.next(bytes) {
        Ok(Progress::NeedMore { at_least }) => assert!(at_least > bytes.len(), "the framer wants what it has"),
        Ok(Progress::Packet { consumed, .. }) => assert_eq!(consumed, bytes.len(), "a packet beyond its bytes"),
        Err(error) => panic!("the framer refuses the begin of a packet: {error}"),
    }
}
