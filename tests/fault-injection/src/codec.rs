//! Packets as bytes: every packet that a core sends is encoded by the wire crate and decoded again on the other side.

use zea_core::io::Payload;
use zea_wire::features::Negotiated;
use zea_wire::framer::{Framer, Progress};
use zea_wire::ids::VolumeNr;
use zea_wire::packet::{Packet, Scope, Stream};

/// A decoded packet.
#[derive(Debug)]
pub struct Decoded {
    /// Header volume, `None` for what concerns the connection.
    pub volume: Option<VolumeNr>,
    /// Header and fixed part.
    pub packet: Packet,
}

/// Number of a stream in the network.
pub fn stream_index(packet: &Packet) -> usize {
    match packet.stream() {
        Stream::Data => 0,
        Stream::Control => 1,
    }
}

/// Header and fixed part of a packet. Panics where the packet is not legal, and where decoding does not give it back.
pub fn encode(negotiated: &Negotiated, volume: Option<VolumeNr>, packet: &Packet, payload: Option<Payload>) -> Vec<u8> {
    assert_eq!(packet.has_payload(), payload.is_some(), "{} with payload {payload:?}", packet.name());
    let payload_len = payload.map_or(0, |p| p.len as usize);
    let mut bytes = Vec::with_capacity(96);
    packet.encode(negotiated, volume, payload_len, &mut bytes);
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
        Progress::Packet { consumed, header, packet, payload_len: announced, .. } => {
            if consumed != bytes.len() || announced != payload_len {
                return Err(format!("{} announces {announced} bytes of payload, {payload_len} follow", packet.name()));
            }
            let volume = match packet.scope() {
                Scope::Connection => None,
                Scope::Volume => header.device_volume(),
                Scope::Either => header.volume(),
            };
            Ok(Decoded { volume, packet })
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
