//! Links over socket pairs: framing under any segmentation, back-pressure, time-outs, the end.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use zea_wire::digest::DigestAlg;
use zea_wire::flags::DpFlags;
use zea_wire::ids::BlockId;
use zea_wire::packet::{Barrier, Data};

use super::*;
use crate::pool::{ClassConfig, PoolConfig};
use crate::ring::{RingConfig, RingCounters};

const V: VolumeNr = VolumeNr(3);

fn agreed() -> Negotiated {
    Negotiated { version: 124, ..Negotiated::INITIAL }
}

/// A link and the peer's ends of its sockets. The ring comes first: it is dropped first.
struct Rig {
    ring: Ring<Token>,
    pool: Pool,
    link: Link,
    data: UnixStream,
    control: UnixStream,
    now: Time,
}

impl Rig {
    fn new() -> Rig {
        let config = RingConfig { sq_entries: 16, cq_entries: 32 };
        let ring = Ring::new(&config, Arc::new(RingCounters::default())).expect("a ring");
        let classes = vec![ClassConfig { bytes: 4096, count: 256 }, ClassConfig { bytes: 1 << 20, count: 4 }];
        let pool = Pool::new(&PoolConfig { classes }).expect("a pool");
        let (data, ours) = UnixStream::pair().expect("sockets");
        let (control, our_control) = UnixStream::pair().expect("sockets");
        let sockets = LinkSockets { data: ours.into(), control: our_control.into(), resolve_conflicts: false };
        let timeouts = SendTimeouts { data_ms: 42_000, control_ms: 6_000 };
        let mut link = Link::new(LinkId(1), 0, 0, NodeId(1), sockets, timeouts);
        link.set_negotiated(agreed());
        Rig { ring, pool, link, data, control, now: Time(0) }
    }

    /// One turn; gives the packets that came and, at the end, why the link was lost.
    fn turn(&mut self, packets: &mut Vec<(Packet, Option<VolumeNr>, Vec<u8>)>) -> Result<(), LinkLost> {
        self.link.advance(self.now, false);
        self.link.flush(&mut self.ring, &self.pool, self.now);
        self.link.arm(&mut self.ring, &self.pool);
        let mut done = Vec::new();
        self.ring.turn(Some(Duration::from_millis(1)), 1, &mut done).expect("a turn");
        let mut end = Ok(());
        for done in done {
            let ended = match done.token {
                Token::LinkReceive { stream, .. } => {
                    let received = self.link.received(&mut self.pool, stream, done.result);
                    received.and_then(|()| self.packets(stream, packets))
                }
                Token::LinkSend { stream, .. } => self.link.sent(&mut self.pool, stream, done.result, self.now),
                other => panic!("{other:?}"),
            };
            end = end.and(ended);
        }
        end
    }

    fn packets(
        &mut self,
        stream: Stream,
        packets: &mut Vec<(Packet, Option<VolumeNr>, Vec<u8>)>,
    ) -> Result<(), LinkLost> {
        while self.link.is_up() {
            match self.link.next_packet(&mut self.pool, stream) {
                Step::NeedMore | Step::NeedBuffer => break,
                Step::Illegal(why) => return Err(LinkLost::Protocol(why)),
                Step::Packet { volume, packet, payload } => {
                    let mut bytes = vec![0; payload.map_or(0, |p| p.len as usize)];
                    if let Some(p) = payload {
                        self.pool.copy_out(Buf(p.buf.0), p.offset, &mut bytes);
                        self.pool.release(Buf(p.buf.0));
                    }
                    packets.push((packet, volume, bytes));
                }
            }
        }
        Ok(())
    }

    /// Turns until the link is over, then checks that nothing leaked.
    fn bury(mut self) {
        let mut none = Vec::new();
        while !self.link.is_over() {
            // A link that ends reports nothing of interest.
            let _ = self.turn(&mut none);
        }
        self.link.bury(&mut self.pool);
        assert_eq!((self.pool.in_use(), self.ring.in_flight()), (0, 0));
    }
}

fn data_packet(nr: u64, len: u32) -> (Packet, Vec<u8>) {
    let fixed = Data { sector: nr * 8, block_id: BlockId(nr), seq_num: nr as u32, dp_flags: DpFlags::EMPTY };
    let payload = (0..len).map(|i| (u64::from(i) * 7 + nr) as u8).collect();
    (Packet::Data(fixed), payload)
}

fn barrier(nr: u32) -> Packet {
    Packet::Barrier(Barrier { barrier: nr })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// The bytes of the peer may be cut anywhere: the same packets come out, with their payload.
    #[test]
    fn link_frames_any_segmentation(
        sizes in proptest::collection::vec(prop_oneof![Just(0_u32), 1_u32..20, 1_u32..700], 1..25),
        cuts in proptest::collection::vec(prop_oneof![1_usize..50, 1_usize..70_000], 1..50),
    ) {
        let mut rig = Rig::new();
        let (mut bytes, mut sent) = (Vec::new(), Vec::new());
        for (nr, &sectors) in sizes.iter().enumerate() {
            let (packet, payload) = match sectors {
                0 => (barrier(nr as u32), Vec::new()),
                sectors => data_packet(nr as u64, sectors * 512),
            };
            let volume = (!payload.is_empty()).then_some(V);
            packet.encode(&agreed(), volume, payload.len(), &mut bytes);
            bytes.extend_from_slice(&payload);
            sent.push((packet, volume, payload));
        }
        let mut got = Vec::new();
        let mut rest = bytes.as_slice();
        rig.data.set_nonblocking(true).expect("a socket");
        for &cut in cuts.iter().cycle() {
            // What the socket does not take now goes with the next cut.
            let taken = rig.data.write(&rest[..cut.min(rest.len())]).unwrap_or(0);
            rest = &rest[taken..];
            rig.turn(&mut got).expect("a link");
            if rest.is_empty() {
                break;
            }
        }
        for _ in 0..5_000 {
            if got.len() == sent.len() {
                break;
            }
            rig.turn(&mut got).expect("a link");
        }
        prop_assert_eq!(got, sent);
        rig.link.kill();
        rig.bury();
    }
}

#[test]
fn link_sends_what_the_peer_can_frame() {
    let mut rig = Rig::new();
    let mut expected = Vec::new();
    for nr in 0..10 {
        let (packet, payload) = data_packet(nr, 8192);
        let buf = rig.pool.alloc(8192, Purpose::Request).or_else(|| rig.pool.alloc(8192, Purpose::Meta));
        let Some(buf) = buf else { break };
        rig.pool.fill(buf, 0, &payload);
        let named = Payload { buf: BufId(buf.0), offset: 512, len: 4096 };
        rig.link.send(&mut rig.pool, Some(V), &packet, Some(named)).expect("room");
        rig.pool.release(buf);
        packet.encode(&agreed(), Some(V), 4096, &mut expected);
        expected.extend_from_slice(&payload[512..4608]);
    }
    rig.link.send(&mut rig.pool, None, &Packet::Ping, None).expect("room");
    let mut control = Vec::new();
    Packet::Ping.encode(&agreed(), None, 0, &mut control);
    let before = rig.ring.counters().ops.load(std::sync::atomic::Ordering::Relaxed);
    rig.turn(&mut Vec::new()).expect("a link");
    let ops = rig.ring.counters().ops.load(std::sync::atomic::Ordering::Relaxed) - before;
    assert_eq!(ops, 4, "one send and one receive for each stream");
    let mut got = vec![0; expected.len()];
    rig.data.read_exact(&mut got).expect("the bytes");
    assert_eq!(got, expected);
    let mut got = vec![0; control.len()];
    rig.control.read_exact(&mut got).expect("the bytes");
    assert_eq!(got, control);
    rig.link.kill();
    rig.bury();
}

/// What the peer says of the data decides whether the core sees them.
#[test]
fn link_checks_the_digests_of_what_it_receives() {
    let with_digests = Negotiated { integrity_alg: Some(DigestAlg::Crc32c), ..agreed() };
    let (packet, payload) = data_packet(1, 4096);
    for damaged in [false, true] {
        let mut rig = Rig::new();
        rig.link.set_negotiated(with_digests);
        // What this end sends, the other end may send, too.
        let buf = rig.pool.alloc(4096, Purpose::Request).expect("a buffer");
        rig.pool.fill(buf, 0, &payload);
        let named = Payload { buf: BufId(buf.0), offset: 0, len: 4096 };
        rig.link.send(&mut rig.pool, Some(V), &packet, Some(named)).expect("room");
        rig.pool.release(buf);
        let mut got = Vec::new();
        rig.turn(&mut got).expect("a link");
        let mut bytes = vec![0; 16 + 24 + 4 + 4096];
        rig.data.read_exact(&mut bytes).expect("header, packet, digest, data");
        bytes[1000] ^= u8::from(damaged);
        rig.data.write_all(&bytes).expect("room");
        let ended = (0..20).map(|_| rig.turn(&mut got)).find_map(Result::err);
        let lost = LinkLost::Protocol(digest_mismatch(&packet));
        assert_eq!(ended, damaged.then_some(lost));
        assert_eq!(got.len(), usize::from(!damaged));
        rig.link.kill();
        rig.bury();
    }
}

#[test]
fn link_stops_receiving_without_buffers_and_goes_on_with_one() {
    let mut rig = Rig::new();
    let hogs: Vec<Buf> = std::iter::from_fn(|| rig.pool.alloc(1 << 20, Purpose::Meta)).collect();
    let (packet, payload) = data_packet(1, 1 << 20);
    let mut bytes = Vec::new();
    packet.encode(&agreed(), Some(V), payload.len(), &mut bytes);
    rig.data.write_all(&bytes).expect("room");
    let mut got = Vec::new();
    for _ in 0..20 {
        rig.turn(&mut got).expect("a link");
    }
    assert_eq!((got.len(), rig.link.starved()), (0, Some(Stream::Data)));
    assert_eq!(rig.ring.in_flight(), 1, "only the control stream receives");
    hogs.into_iter().for_each(|buf| rig.pool.release(buf));
    rig.packets(Stream::Data, &mut got).expect("a link");
    assert_eq!(rig.link.starved(), None);
    let mut peer = rig.data.try_clone().expect("a socket");
    let sent = payload.clone();
    let writer = std::thread::spawn(move || peer.write_all(&sent));
    while got.is_empty() {
        rig.turn(&mut got).expect("a link");
    }
    writer.join().expect("no panic").expect("written");
    assert_eq!(got, [(packet, Some(V), payload)]);
    rig.link.kill();
    rig.bury();
}

#[test]
fn link_send_without_progress_times_out() {
    let mut rig = Rig::new();
    let buf = rig.pool.alloc(1 << 20, Purpose::Meta).expect("a buffer");
    let payload = Payload { buf: BufId(buf.0), offset: 0, len: 1 << 20 };
    let (packet, _) = data_packet(1, 1 << 20);
    for _ in 0..4 {
        // Nobody reads: the socket takes a part of it.
        rig.link.send(&mut rig.pool, Some(V), &packet, Some(payload)).expect("room");
        rig.turn(&mut Vec::new()).expect("a link");
    }
    rig.pool.release(buf);
    assert!(!rig.link.send_timed_out(rig.now));
    rig.now = rig.now.plus_ms(41_000);
    assert!(!rig.link.send_timed_out(rig.now));
    rig.now = rig.now.plus_ms(1_000);
    assert!(rig.link.send_timed_out(rig.now));
    rig.link.kill();
    rig.bury();
}

#[test]
fn link_that_drains_sends_its_last_words() {
    let mut rig = Rig::new();
    let buf = rig.pool.alloc(1 << 20, Purpose::Meta).expect("a buffer");
    let payload = Payload { buf: BufId(buf.0), offset: 0, len: 1 << 20 };
    let (packet, _) = data_packet(1, 1 << 20);
    rig.link.send(&mut rig.pool, Some(V), &packet, Some(payload)).expect("room");
    rig.pool.release(buf);
    rig.link.send(&mut rig.pool, None, &Packet::Disconnect, None).expect("room");
    rig.link.drain(&mut rig.pool, rig.now);
    assert!(!rig.link.is_up());
    // What the peer still says is of no interest.
    rig.data.write_all(&[0xff; 100]).expect("room");
    let (mut data, mut control) = (rig.data.try_clone().expect("a socket"), rig.control.try_clone().expect("a socket"));
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        data.read_to_end(&mut all).and_then(|_| control.read_to_end(&mut Vec::new())).map(|_| all)
    });
    for _ in 0..20_000 {
        rig.turn(&mut Vec::new()).expect("an orderly end");
        if reader.is_finished() {
            break;
        }
    }
    let all = reader.join().expect("no panic").expect("an end of file, not a reset");
    let mut last = Vec::new();
    Packet::Disconnect.encode(&agreed(), None, 0, &mut last);
    assert!(all.ends_with(&last) && all.len() > 1 << 20);
    // The peer closes, too: that is the end, before the lingering time is over.
    drop((rig.data.shutdown(std::net::Shutdown::Both), rig.control.shutdown(std::net::Shutdown::Both)));
    rig.bury();
}

#[test]
fn link_that_cannot_drain_gives_up_in_time() {
    let mut rig = Rig::new();
    let buf = rig.pool.alloc(1 << 20, Purpose::Meta).expect("a buffer");
    let payload = Payload { buf: BufId(buf.0), offset: 0, len: 1 << 20 };
    let (packet, _) = data_packet(1, 1 << 20);
    for _ in 0..3 {
        rig.link.send(&mut rig.pool, Some(V), &packet, Some(payload)).expect("room");
    }
    rig.pool.release(buf);
    rig.link.drain(&mut rig.pool, rig.now);
    for _ in 0..5 {
        rig.turn(&mut Vec::new()).expect("it waits");
    }
    assert!(!rig.link.is_over());
    rig.now = rig.now.plus_ms(6_001);
    rig.bury();
}

#[test]
fn link_reports_the_end_and_nonsense_of_the_peer() {
    let mut rig = Rig::new();
    rig.data.write_all(&[0x55; 64]).expect("room");
    let lost = (0..1000).find_map(|_| rig.turn(&mut Vec::new()).err());
    assert!(matches!(lost, Some(LinkLost::Protocol(_))), "{lost:?}");
    rig.link.kill();
    rig.bury();

    let mut rig = Rig::new();
    // In the middle of a payload.
    let (packet, payload) = data_packet(1, 65536);
    let mut bytes = Vec::new();
    packet.encode(&agreed(), Some(V), payload.len(), &mut bytes);
    bytes.extend_from_slice(&payload[..1000]);
    rig.data.write_all(&bytes).expect("room");
    for _ in 0..10 {
        rig.turn(&mut Vec::new()).expect("a link");
    }
    drop(std::mem::replace(&mut rig.data, UnixStream::pair().expect("sockets").0));
    let lost = (0..1000).find_map(|_| rig.turn(&mut Vec::new()).err());
    assert_eq!(lost, Some(LinkLost::Closed));
    rig.link.kill();
    rig.bury();
}
