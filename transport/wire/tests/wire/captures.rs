//! The recordings of the kernel decode and encode to the same bytes.
//!
//! They are those of the conformance replay, `tests/conformance/recordings`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use zea_capture::{Event, Place, Recorded, Summary};
use zea_wire::auth::{HmacAlg, check_challenge, check_response, respond};
use zea_wire::bitmap::{Receiver, max_code_bytes, wire_bits};
use zea_wire::features::Negotiated;
use zea_wire::fuzz::{self, AGREEMENTS};
use zea_wire::header::Header;
use zea_wire::ids::NodeId;
use zea_wire::packet::{MAX_PREFIX_BYTES, Packet, Scope};
use zea_wire::vli;

use crate::hostile::Bytes;

/// The recordings, by folder.
fn recordings() -> Vec<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance/recordings");
    let mut found: Vec<_> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path().join("capture.pcap.gz")))
        .filter(|(_, file)| file.is_file())
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no recordings in {}", root.display());
    found
}

/// Calls `each` with the packets of a recording; returns what else is in it.
fn follow(file: &Path, mut each: impl FnMut(Place, Recorded<'_>)) -> Summary {
    let (summary, end) = zea_capture::read(file, |at, event| match event {
        Event::Packet(packet) => each(at, packet),
        Event::Undecodable(what) => panic!("{file:?}, {at:?}: {what:?}"),
        Event::Opened | Event::Closed(_) => {}
    });
    end.unwrap();
    summary
}

fn check_again(place: &str, recorded: &Recorded<'_>) {
    let Recorded { ref neg, header, packet, digest, payload_len, bytes, .. } = *recorded;
    let mut again = Vec::with_capacity(bytes.len());
    packet.encode_with_digest(neg, header.volume(), digest, payload_len, &mut again);
    assert_eq!(again, bytes, "{place}: {packet:?}");
}

/// 9 puts no volume into packets about the connection and one into all others; 8.4 always 0.
fn check_scope(place: &str, recorded: &Recorded<'_>) {
    let Recorded { ref header, packet, .. } = *recorded;
    if recorded.neg.version < 110 {
        return;
    }
    let none = header.raw_volume == Header::NO_VOLUME;
    let fits = match packet.scope() {
        Scope::Connection => none,
        Scope::Volume => !none,
        Scope::Either => true,
    };
    assert!(fits, "{place}: {} with volume {:?}", packet.name(), header.volume());
}

#[test]
fn wire_captures_decode_and_encode_again() {
    let recordings = recordings();
    let mut by_name: BTreeMap<&str, usize> = BTreeMap::new();
    let mut versions = BTreeSet::new();
    for (folder, file) in &recordings {
        let mut packets = 0_usize;
        let summary = follow(file, |at, recorded| {
            let place = format!("{folder} frame {}", at.frame);
            check_again(&place, &recorded);
            check_scope(&place, &recorded);
            *by_name.entry(recorded.packet.name()).or_default() += 1;
            versions.insert((recorded.neg.version, recorded.neg.features.0));
            packets += 1;
        });
        let Summary { left_over, missing_payload, .. } = summary;
        println!("{packets:6} packets, {left_over} + {missing_payload} bytes cut off: {folder}");
        assert!(summary.is_whole(), "{folder}: {summary:?}");
        // A connection that is torn down may lose the rest of a packet, but never the thread.
        assert!(left_over < MAX_PREFIX_BYTES, "undecoded bytes in {folder}");
        assert!(packets > 0, "no packets in {folder}");
    }
    for (name, count) in &by_name {
        println!("{count:6} {name}");
    }
    let total: usize = by_name.values().sum();
    let folders = recordings.len();
    println!("{total} packets of {} kinds in {folders} recordings", by_name.len());
    assert!(total > 0);
    // The initial one, 8.4 and 9.3.3: nothing else was recorded.
    assert_eq!(versions, BTreeSet::from([(80, 0), (101, 0x00f), (124, 0x3ff)]));
}

/// The bitmaps of all recordings go through the receiver; every compressed part is encoded by us as the
/// kernel did.
#[test]
fn wire_captures_bitmaps_are_complete() {
    let recordings = recordings();
    let (mut compressed, mut plain, mut complete) = (0, 0, 0);
    for (folder, file) in &recordings {
        let mut sizes = BTreeMap::new();
        let mut receivers = BTreeMap::new();
        follow(file, |at, Recorded { header, packet, .. }| {
            let way = (at.from.ip(), at.to.ip(), header.raw_volume);
            let frame = at.frame;
            if let Packet::Sizes(s) = packet {
                sizes.insert(way, wire_bits(if s.c_size > 0 { s.c_size } else { s.d_size }));
                receivers.remove(&way);
            }
            let receiver = match packet {
                Packet::Bitmap(_) | Packet::CompressedBitmap(_) => {
                    receivers.entry(way).or_insert_with(|| Receiver::new(sizes[&way]))
                }
                _ => return,
            };
            match packet {
                Packet::Bitmap(part) => {
                    plain += 1;
                    let words = receiver.plain(part).map(Iterator::count);
                    words.unwrap_or_else(|e| panic!("{folder} frame {frame}: {e}"));
                }
                Packet::CompressedBitmap(part) => {
                    compressed += 1;
                    let runs: Vec<_> =
                        receiver.compressed(part).unwrap_or_else(|e| panic!("{folder} frame {frame}: {e}")).collect();
                    let lens = runs.iter().map(|run| run.len);
                    let room = max_code_bytes(header.format);
                    let again = vli::encode_part(lens, runs[0].set, room).unwrap();
                    assert_eq!(again.part, *part, "{folder} frame {frame}");
                }
                _ => {}
            }
            if receiver.is_finished() {
                complete += 1;
                receivers.remove(&way);
            }
        });
        assert!(receivers.is_empty(), "{folder}: a bitmap is incomplete: {receivers:?}");
    }
    println!("{compressed} compressed and {plain} plain parts, {complete} bitmaps");
    assert!(compressed > 0 && plain > 0 && complete > 0);
}

/// The responses of the recording with the right secret are ours.
#[test]
fn wire_captures_authentication_is_ours() {
    const SECRET: &[u8] = b"golden secret";
    let recordings = recordings();
    let (_, file) = recordings.iter().find(|(f, _)| f.starts_with("09c-")).expect("no 09c-");
    let mut challenges = BTreeMap::new();
    let mut checked = 0;
    follow(file, |at, Recorded { packet, .. }| match packet {
        Packet::AuthChallenge(c) => {
            challenges.insert(at.from.ip(), c.challenge.clone());
        }
        Packet::AuthResponse(r) => {
            let response = r.response.as_slice();
            let alg = if response.len() == 20 { HmacAlg::Sha1 } else { HmacAlg::Sha256 };
            // Node ids are the last part of the addresses, counted from 0.
            let IpAddr::V4(from) = at.from.ip() else { panic!("{at:?}") };
            let id = NodeId::new(from.octets()[3] - 1);
            let own = &challenges[&at.to.ip()];
            assert_eq!(check_challenge(own, &challenges[&at.from.ip()]), Ok(()));
            assert_eq!(check_response(alg, SECRET, own, id, response), Ok(()));
            assert_eq!(respond(alg, SECRET, own, id), r.response);
            checked += 1;
        }
        _ => {}
    });
    assert_eq!(checked, 4);
}

/// Packets of the recordings, damaged, through the fuzz targets.
#[test]
fn wire_fuzz_targets_survive_damaged_captures() {
    let recordings = recordings();
    let mut seen: BTreeMap<(u16, u32, usize), usize> = BTreeMap::new();
    let mut random = Bytes(1);
    let mut runs = 0_usize;
    for (_, file) in &recordings {
        follow(file, |_, Recorded { neg, header, packet, bytes, .. }| {
            let count = seen.entry((packet.command(), neg.version, bytes.len())).or_default();
            *count += 1;
            if *count > 3 {
                return;
            }
            for _ in 0..8 {
                fuzz_damaged(&neg, &header, bytes, &mut random);
                runs += 1;
            }
        });
    }
    println!("{runs} damaged packets of {} kinds and sizes", seen.len());
    assert!(runs > 0);
}

fn fuzz_damaged(neg: &Negotiated, header: &Header, bytes: &[u8], random: &mut Bytes) {
    let same = |a: &Negotiated| a.version == neg.version && a.features == neg.features;
    let pick = AGREEMENTS.iter().position(same).expect("recorded agreements are in the list") as u8;
    let mut damaged = vec![pick];
    damaged.extend_from_slice(bytes);
    for _ in 0..1 + random.number() % 3 {
        let at = 1 + random.number() as usize % bytes.len();
        damaged[at] ^= 1 << (random.number() % 8);
    }
    fuzz::fuzz_header(&damaged[1..]);
    fuzz::fuzz_framer(&damaged);
    let body = &damaged[1 + header.format.len()..];
    let mut packet = vec![pick, header.command as u8];
    packet.extend_from_slice(body);
    fuzz::fuzz_packet(&packet);
    // A compressed bitmap part at the start of a bitmap of the recordings' size.
    let mut part = [0_u64.to_be_bytes(), 4086_u64.to_be_bytes()].concat();
    part.extend_from_slice(body);
    fuzz::fuzz_vli(&part);
    fuzz::fuzz_bitmap(&part[8..]);
    fuzz::fuzz_state(body);
}
