//! Just enough of pcap, IP and TCP to get at the streams of a recording.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

/// An end of a TCP connection: IPv4 address and port.
pub(crate) type End = ([u8; 4], u16);
/// Who sends to whom.
pub(crate) type Flow = (End, End);

/// New bytes of one direction of a TCP connection, in order and without gaps.
pub(crate) struct Segment {
    /// The number of the frame, from 1 on.
    pub(crate) frame: usize,
    pub(crate) flow: Flow,
    /// Counts the TCP connections of the recording; both directions have the same number.
    pub(crate) connection: usize,
    pub(crate) bytes: Vec<u8>,
}

/// One direction of a TCP connection.
struct Half {
    connection: usize,
    first: u32,
    next: u32,
    /// Segments that came early, by sequence number relative to `first`.
    early: BTreeMap<u32, Vec<u8>>,
}

impl Half {
    /// Takes a segment, returns what is new and in order.
    fn take(&mut self, sequence: u32, data: &[u8]) -> Vec<u8> {
        let at = sequence.wrapping_sub(self.first);
        let kept = self.early.entry(at).or_default();
        if kept.len() < data.len() {
            *kept = data.to_vec();
        }
        let mut new = Vec::new();
        while let Some(segment) = self.early.first_entry() {
            let done = self.next.wrapping_sub(self.first);
            if *segment.key() > done {
                break;
            }
            let (start, bytes) = segment.remove_entry();
            if let Some(fresh) = bytes.get((done - start) as usize..) {
                new.extend_from_slice(fresh);
                self.next = self.next.wrapping_add(fresh.len() as u32);
            }
        }
        new
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

struct Tcp<'a> {
    flow: Flow,
    sequence: u32,
    syn: bool,
    ack: bool,
    data: &'a [u8],
}

/// The TCP segment in an Ethernet frame.
fn tcp(frame: &[u8]) -> Option<Tcp<'_>> {
    if frame.len() < 54 || frame[12..14] != [8, 0] || frame[23] != 6 {
        return None;
    }
    let ip_header = usize::from(frame[14] & 15) * 4;
    // Segments that the network card would cut have no length.
    let total = match be16(frame, 16) {
        0 => frame.len() - 14,
        total => usize::from(total),
    };
    let end = |ip: usize, port: usize| (frame[ip..ip + 4].try_into().unwrap(), be16(frame, port));
    let at = 14 + ip_header;
    let tcp_header = usize::from(frame[at + 12] >> 4) * 4;
    Some(Tcp {
        flow: (end(26, at), end(30, at + 2)),
        sequence: be32(frame, at + 4),
        syn: frame[at + 13] & 2 != 0,
        ack: frame[at + 13] & 16 != 0,
        data: frame.get(at + tcp_header..14 + total).unwrap_or_default(),
    })
}

/// Calls `each` with the segments of a recording in the order of time.
pub(crate) fn read(path: &Path, mut each: impl FnMut(Segment)) {
    let mut file = Vec::new();
    GzDecoder::new(File::open(path).unwrap()).read_to_end(&mut file).unwrap();
    assert_eq!(file[..4], [0xd4, 0xc3, 0xb2, 0xa1], "{path:?} is no little endian pcap");
    let mut halves: BTreeMap<Flow, Half> = BTreeMap::new();
    let mut connections = 0;
    let (mut at, mut frame) = (24, 0);
    while at + 16 <= file.len() {
        let len = u32::from_le_bytes(file[at + 8..at + 12].try_into().unwrap()) as usize;
        let bytes = &file[at + 16..at + 16 + len];
        at += 16 + len;
        frame += 1;
        let Some(tcp) = tcp(bytes) else { continue };
        let back = (tcp.flow.1, tcp.flow.0);
        if tcp.syn {
            let first = tcp.sequence.wrapping_add(1);
            if halves.get(&tcp.flow).is_some_and(|half| half.first == first) {
                continue;
            }
            let connection = if tcp.ack {
                let Some(half) = halves.get(&back) else {
                    continue;
                };
                half.connection
            } else {
                connections += 1;
                halves.remove(&back);
                connections
            };
            let half = Half { connection, first, next: first, early: BTreeMap::new() };
            halves.insert(tcp.flow, half);
        } else if !tcp.data.is_empty() {
            let Some(half) = halves.get_mut(&tcp.flow) else {
                continue;
            };
            let connection = half.connection;
            // Keep-alive probes repeat one byte before the first.
            if tcp.sequence.wrapping_sub(half.first) > u32::MAX / 2 {
                continue;
            }
            let bytes = half.take(tcp.sequence, tcp.data);
            if !bytes.is_empty() {
                each(Segment { frame, flow: tcp.flow, connection, bytes });
            }
        }
    }
}
