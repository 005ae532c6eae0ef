//! Bytes that no honest peer sends: each has a name, none panics.

use proptest::prelude::*;
use zea_wire::features::{Features, Negotiated};
use zea_wire::framer::{Framer, Progress};
use zea_wire::fuzz;
use zea_wire::packet::{DecodeError, Packet, Stream};

use crate::strategy::any_sent;

/// The fuzz targets.
pub(crate) const TARGETS: [fn(&[u8]); 8] = [
    fuzz::fuzz_header,
    fuzz::fuzz_framer,
    fuzz::fuzz_packet,
    fuzz::fuzz_vli,
    fuzz::fuzz_bitmap,
    fuzz::fuzz_state,
    fuzz::fuzz_negotiate,
    fuzz::fuzz_auth,
];

/// A small generator for reproducible bytes (splitmix64).
pub(crate) struct Bytes(pub(crate) u64);

impl Bytes {
    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Bytes with many zeros and ones, as they are in packets.
    fn fill(&mut self, len: usize) -> Vec<u8> {
        let sparse = self.number() % 3;
        (0..len)
            .map(|_| {
                let n = self.number();
                if sparse > 0 && !n.is_multiple_of(4) { (n >> 8 & 1) as u8 } else { (n >> 16) as u8 }
            })
            .collect()
    }
}

#[test]
fn wire_fuzz_targets_survive_seeded_bytes() {
    for (seed, target) in TARGETS.into_iter().enumerate() {
        let mut bytes = Bytes(seed as u64);
        for round in 0..8_000 {
            let len = (bytes.number() % [8, 40, 90, 400][round % 4]) as usize;
            target(&bytes.fill(len));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn wire_damaged_packets_do_not_panic(
        sent in any_sent(), at in any::<prop::sample::Index>(), bits in 1..=255_u8
    ) {
        let mut bytes = sent.encode();
        let at = at.index(bytes.len());
        bytes[at] ^= bits;
        for stream in [Stream::Data, Stream::Control] {
            let mut framer = Framer::new(stream);
            framer.set_negotiated(sent.neg);
            if let Err(error) = framer.next(&bytes) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
        for (pick, neg) in fuzz::AGREEMENTS.iter().enumerate() {
            if *neg == sent.neg {
                bytes.insert(0, pick as u8);
                fuzz::fuzz_framer(&bytes);
                break;
            }
        }
    }
}

const V124: Negotiated = Negotiated { version: 124, features: Features::DRBD_93, ..Negotiated::INITIAL };
const V101: Negotiated = Negotiated { version: 101, features: Features::DRBD_84, ..Negotiated::INITIAL };

/// What a framer says to a header100 with this command and body.
fn framed(stream: Stream, neg: Negotiated, command: u16, body: &[u8]) -> Result<Packet, DecodeError> {
    let mut bytes = vec![0x86, 0x20, 0xec, 0x20, 0, 0];
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(body);
    let mut framer = Framer::new(stream);
    framer.set_negotiated(neg);
    framer.next(&bytes).map(|progress| match progress {
        Progress::Packet { packet, .. } => packet,
        Progress::NeedMore { .. } => panic!("the packet is complete"),
    })
}

/// sector, block id, then 32 bit words.
fn block(sector: u64, words: &[u32]) -> Vec<u8> {
    let mut body = sector.to_be_bytes().to_vec();
    body.extend_from_slice(&[7; 8]);
    words.iter().for_each(|w| body.extend_from_slice(&w.to_be_bytes()));
    body
}

#[test]
fn wire_breaches_have_names() {
    use DecodeError as E;
    use Stream::{Control, Data};
    let v124 = |stream, command, body: &[u8]| framed(stream, V124, command, body);
    assert_eq!(v124(Data, 0x77, &[]), Err(E::UnknownCommand { command: 0x77 }));
    assert_eq!(v124(Data, 0x05, &[]), Err(E::UnknownCommand { command: 5 }));
    assert!(matches!(v124(Data, 0x13, &[]), Err(E::WrongStream { name: "P_PING", .. })));
    assert!(matches!(v124(Control, 0x07, &[]), Err(E::WrongStream { .. })));
    assert!(matches!(v124(Control, 0x13, &[0]), Err(E::BadLength { max: 0, .. })));
    assert!(matches!(v124(Data, 0x0c, &[0; 48]), Err(E::WrongVersion { name: "P_UUIDS", .. })));
    assert!(matches!(v124(Data, 0xfff2, &[]), Err(E::WrongVersion { .. })));
    assert!(matches!(framed(Data, V101, 0x42, &[0; 40]), Err(E::WrongVersion { .. })));
    assert!(matches!(framed(Data, V101, 0x58, &[0; 4]), Err(E::MissingFeature { .. })));
    assert!(matches!(framed(Data, Negotiated::INITIAL, 0x0b, &[0; 25]), Err(E::WrongVersion { .. })));
    // Sizes.
    assert!(matches!(v124(Data, 0x09, &block(0, &[0, 0])), Err(E::BadSize { .. })));
    assert!(matches!(v124(Data, 0x09, &block(0, &[513, 0])), Err(E::BadSize { .. })));
    assert!(matches!(v124(Data, 0x09, &block(0, &[(1 << 20) + 512, 0])), Err(E::BadSize { .. })));
    assert!(v124(Data, 0x09, &block(0, &[1 << 20, 0])).is_ok());
    assert!(matches!(v124(Data, 0x31, &block(0, &[0, 0, (128 << 20) + 512])), Err(E::BadSize { .. })));
    assert!(v124(Data, 0x31, &block(0, &[0, 0, 128 << 20])).is_ok());
    assert!(matches!(v124(Data, 0x09, &block(1 << 54, &[512, 0])), Err(E::BadSector { .. })));
    assert!(matches!(v124(Data, 0x09, &block(u64::MAX, &[512, 0])), Err(E::BadSector { .. })));
    // Data: whole sectors, at most 1 MiB, empty only with a flush.
    let mut write = block(0, &[1, 0]);
    assert!(matches!(v124(Data, 0x00, &write), Err(E::BadSize { size: 0, .. })));
    write[23] = 32;
    assert!(v124(Data, 0x00, &write).is_ok());
    write.extend_from_slice(&[0; 100]);
    assert!(matches!(v124(Data, 0x00, &write), Err(E::BadSize { size: 100, .. })));
    write.resize(24 + (1 << 20) + 512, 0);
    assert!(matches!(v124(Data, 0x00, &write), Err(E::BadLength { .. })));
    // Contents.
    assert!(matches!(v124(Data, 0x0e, &[0, 0, 0, 3]), Err(E::BadState(_))));
    assert!(matches!(v124(Data, 0x04, &[0; 9]), Err(E::BadBitmapLength { len: 9 })));
    assert!(matches!(v124(Data, 0x04, &[0; 4088]), Err(E::BadLength { .. })));
    assert!(matches!(v124(Data, 0x0b, &[1; 26]), Err(E::BadName)));
    assert!(matches!(v124(Data, 0x43, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32]), Err(E::BadNodeId { id: 32 })));
    assert!(matches!(v124(Data, 0x2e, &[0; 36]), Err(E::BadTwopcFlags { flags: 0 })));
    assert!(matches!(v124(Control, 0x53, &block(0, &[512, 1, 3, 0])), Err(E::BadVerdict { result: 3 })));
    let mut uuids = [0; 48];
    uuids[39] = 3;
    assert!(matches!(v124(Data, 0x42, &uuids), Err(E::BadBitmapUuids { .. })));
    uuids[39] = 1;
    assert!(v124(Data, 0x42, &uuids).is_ok());
    uuids[35] = 1;
    assert!(matches!(v124(Data, 0x42, &uuids), Err(E::BadBitmapUuids { .. })));
}

#[test]
fn wire_header_formats_are_bound_to_versions_on_the_data_stream_only() {
    let unplug = [0x83, 0x74, 2, 0x67, 0, 7, 0, 0];
    let mut framer = Framer::new(Stream::Data);
    framer.set_negotiated(V124);
    assert!(matches!(framer.next(&unplug), Err(DecodeError::WrongHeaderFormat { .. })));
    framer.set_negotiated(Negotiated { version: 94, ..Negotiated::INITIAL });
    assert!(framer.next(&unplug).is_ok());
    let unplug95 = [0x83, 0x5a, 0, 7, 0, 0, 0, 0];
    assert!(matches!(framer.next(&unplug95), Err(DecodeError::WrongHeaderFormat { .. })));
    framer.set_negotiated(Negotiated { version: 96, ..Negotiated::INITIAL });
    assert!(framer.next(&unplug).is_ok() && framer.next(&unplug95).is_ok());
    // A ping may overtake the feature packet.
    let ping = [0x86, 0x20, 0xec, 0x20, 0xff, 0xff, 0, 0x13, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut framer = Framer::new(Stream::Control);
    assert!(matches!(framer.next(&ping), Ok(Progress::Packet { packet: Packet::Ping, .. })));
    framer.set_negotiated(V124);
    let ping = [0x83, 0x74, 2, 0x67, 0, 0x13, 0, 0];
    assert!(matches!(framer.next(&ping), Ok(Progress::Packet { packet: Packet::Ping, .. })));
}

#[test]
#[should_panic(expected = "P_UUIDS110 is not legal")]
fn wire_packets_of_9_are_never_sent_to_84() {
    Packet::Uuids110(Box::default()).encode(&V101, None, 0, &mut Vec::new());
}
