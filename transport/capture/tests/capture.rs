//! Files made here: every container and link layer that is read, and what is wrong with a file.

use std::io::Write;
use std::path::PathBuf;

use etherparse::PacketBuilder;
use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;
use zea_capture::{CaptureError, Close, Event, Summary};
use zea_wire::features::{ConnectionFeatures, Features};
use zea_wire::{Negotiated, NodeId, Packet};

const ETHERNET: u32 = 1;
const RAW: u32 = 101;
const SLL2: u32 = 276;

/// What one side of a connection does.
#[derive(Clone, Copy)]
enum Step<'a> {
    Syn,
    SynAck,
    Data(&'a [u8]),
    Fin,
    Rst,
}

/// A frame from `from` to the other port, starting at its IP header.
fn ip_frame(from: u16, sequence: u32, step: Step<'_>, v6: bool) -> Vec<u8> {
    let (source, destination) = if from == 40000 { (1, 2) } else { (2, 1) };
    let builder = if v6 {
        let address = |last| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        PacketBuilder::ipv6(address(source), address(destination), 64)
    } else {
        PacketBuilder::ipv4([10, 0, 0, source], [10, 0, 0, destination], 64)
    };
    let tcp = builder.tcp(from, if from == 40000 { 7789 } else { 40000 }, sequence, 1000);
    let (tcp, data) = match step {
        Step::Syn => (tcp.syn(), &[][..]),
        Step::SynAck => (tcp.syn().ack(1), &[][..]),
        Step::Data(data) => (tcp.ack(1), data),
        Step::Fin => (tcp.fin().ack(1), &[][..]),
        Step::Rst => (tcp.rst(), &[][..]),
    };
    let mut frame = Vec::new();
    tcp.write(&mut frame, data).unwrap();
    frame
}

/// Puts a link header before an IP packet.
fn linked(link: u32, ip: Vec<u8>) -> Vec<u8> {
    let kind: [u8; 2] = if ip[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] };
    match link {
        ETHERNET => [&[0; 12], &kind[..], &ip].concat(),
        SLL2 => [&kind[..], &[0; 18], &ip].concat(),
        _ => ip,
    }
}

fn pcap(link: u32, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 4 << 16 | 2, 0, 0, 65535, link] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    for (i, frame) in frames.iter().enumerate() {
        for word in [1000, i as u32 * 1000, frame.len() as u32, frame.len() as u32] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(frame);
    }
    file
}

fn pcapng(link: u32, frames: &[Vec<u8>]) -> Vec<u8> {
    let block = |kind: u32, body: &[u8]| {
        let padded = body.len().next_multiple_of(4);
        let len = (padded + 12) as u32;
        let mut block = [&kind.to_le_bytes()[..], &len.to_le_bytes(), body].concat();
        block.resize(8 + padded, 0);
        block.extend_from_slice(&len.to_le_bytes());
        block
    };
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let mut file = block(0x0a0d_0d0a, &words(&[0x1a2b_3c4d, 1, u32::MAX, u32::MAX]));
    file.extend(block(1, &words(&[link, 65535])));
    for (i, frame) in frames.iter().enumerate() {
        let len = frame.len() as u32;
        let micros = 1_000_000_000 + i as u64 * 1000;
        let head = words(&[0, (micros >> 32) as u32, micros as u32, len, len]);
        file.extend(block(6, &[&head[..], frame].concat()));
    }
    file
}

fn encoded(packet: &Packet) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet.encode(&Negotiated::INITIAL, None, 0, &mut bytes);
    bytes
}

fn features(own: u8, peer: u8) -> Packet {
    let features = ConnectionFeatures::new(118, 124, Features::DRBD_93, NodeId(own), NodeId(peer));
    Packet::ConnectionFeatures(Box::new(features))
}

/// The beginning of a data stream: an initial packet and both feature packets, one of them in two pieces that come in
/// the wrong order.
fn handshake(link: u32, v6: bool) -> Vec<Vec<u8>> {
    let initial = encoded(&Packet::InitialData);
    let mine = encoded(&features(0, 1));
    let yours = encoded(&features(1, 0));
    let (first, second) = yours.split_at(30);
    [
        ip_frame(40000, 99, Step::Syn, v6),
        ip_frame(7789, 499, Step::SynAck, v6),
        ip_frame(40000, 100, Step::Data(&initial), v6),
        ip_frame(40000, 108, Step::Data(&mine), v6),
        ip_frame(7789, 530, Step::Data(second), v6),
        ip_frame(7789, 500, Step::Data(first), v6),
        ip_frame(40000, 108 + mine.len() as u32, Step::Fin, v6),
        ip_frame(7789, 500 + yours.len() as u32, Step::Rst, v6),
    ]
    .into_iter()
    .map(|ip| linked(link, ip))
    .collect()
}

/// Reads a file with these bytes; returns what happens in it, as text, and how it ends.
fn read(file: &[u8]) -> (Vec<String>, Summary, Result<(), CaptureError>) {
    let dir = TempDir::new().unwrap();
    let path: PathBuf = dir.path().join("capture");
    std::fs::write(&path, file).unwrap();
    let mut seen = Vec::new();
    let (summary, end) = zea_capture::read(&path, |at, event| {
        let what = match event {
            Event::Opened => "opened".to_owned(),
            Event::Packet(recorded) => recorded.packet.name().to_owned(),
            Event::Undecodable(what) => format!("undecodable: {}", what.error),
            Event::Closed(Close::Finished) => "finished".to_owned(),
            Event::Closed(Close::Reset) => "reset".to_owned(),
        };
        seen.push(format!("{} {} {what}", at.frame, if at.from_opener { ">" } else { "<" }));
    });
    (seen, summary, end)
}

const HANDSHAKE: [&str; 6] = [
    "1 > opened",
    "3 > P_INITIAL_DATA",
    "4 > P_CONNECTION_FEATURES",
    "6 < P_CONNECTION_FEATURES",
    "7 > finished",
    "8 < reset",
];

#[test]
fn capture_reads_every_container_and_link_layer() {
    for (link, v6) in [(ETHERNET, false), (ETHERNET, true), (RAW, false), (RAW, true), (SLL2, false)] {
        let frames = handshake(link, v6);
        for file in [pcap(link, &frames), pcapng(link, &frames)] {
            let mut zipped = GzEncoder::new(Vec::new(), Compression::fast());
            zipped.write_all(&file).unwrap();
            for file in [file, zipped.finish().unwrap()] {
                let (seen, summary, end) = read(&file);
                assert_eq!(seen, HANDSHAKE, "link {link}, {v6}");
                assert_eq!(summary, Summary { packets: 3, ..Summary::default() });
                end.unwrap();
            }
        }
    }
}

#[test]
fn capture_says_what_is_wrong_with_a_file() {
    let whole = pcap(ETHERNET, &handshake(ETHERNET, false));
    let (_, _, end) = read(b"no capture at all, only text");
    assert!(matches!(end, Err(CaptureError::NotACapture { .. })), "{end:?}");
    let (seen, _, end) = read(&whole[..whole.len() - 3]);
    assert_eq!(seen, HANDSHAKE[..5]);
    assert!(matches!(end, Err(CaptureError::CutShort { frame: 8, .. })), "{end:?}");
    // The length of the first frame.
    let mut damaged = whole.clone();
    damaged[24 + 8..24 + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    let (seen, _, end) = read(&damaged);
    assert!(seen.is_empty());
    assert!(matches!(end, Err(CaptureError::Damaged { frame: 1, .. })), "{end:?}");
    let (_, _, end) = read(b"");
    assert!(end.is_err());
}

#[test]
fn capture_counts_what_is_not_decoded() {
    let frames = handshake(ETHERNET, false);
    let (seen, summary, _) = read(&pcap(ETHERNET, &frames[2..]));
    assert_eq!((seen.len(), summary.headless, summary.is_whole()), (0, 1, false));
    // Without the first part of a packet.
    let (_, summary, _) = read(&pcap(ETHERNET, &[&frames[..5], &frames[6..]].concat()));
    assert_eq!((summary.packets, summary.gaps, summary.is_whole()), (2, 1, false));
    // Another protocol.
    let http = linked(ETHERNET, ip_frame(40000, 100, Step::Data(b"GET / HTTP/1.1\r\n"), false));
    let (seen, summary, _) = read(&pcap(ETHERNET, &[&frames[..2], &[http]].concat()));
    assert_eq!((seen.len(), summary.foreign, summary.is_whole()), (1, 1, true));
    // DRBD's beginning, and then something else.
    let noise = linked(ETHERNET, ip_frame(40000, 108, Step::Data(&[7; 80]), false));
    let (seen, summary, _) = read(&pcap(ETHERNET, &[&frames[..3], &[noise]].concat()));
    assert_eq!(seen[2], "4 > undecodable: bad magic 0x07070707");
    assert_eq!((summary.undecodable, summary.is_whole()), (1, false));
}
