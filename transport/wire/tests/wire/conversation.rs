//! Follows a recorded conversation: knows which stream a TCP connection is and what was agreed.

use std::collections::BTreeMap;

use zea_wire::digest::digest_len;
use zea_wire::features::{ConnectionFeatures, Negotiated, negotiate};
use zea_wire::framer::{Framer, Progress};
use zea_wire::header::Header;
use zea_wire::packet::{Packet, Stream};

use crate::pcap::{Flow, Segment};

type Ip = [u8; 4];

/// A packet of a recording.
pub(crate) struct Recorded<'a> {
    pub(crate) frame: usize,
    pub(crate) from: Ip,
    pub(crate) to: Ip,
    pub(crate) neg: Negotiated,
    pub(crate) header: Header,
    pub(crate) packet: &'a Packet,
    pub(crate) digest: &'a [u8],
    pub(crate) payload_len: usize,
    /// Header, prefix and digest.
    pub(crate) bytes: &'a [u8],
}

/// One direction of a TCP connection.
struct Direction {
    framer: Framer,
    bytes: Vec<u8>,
    /// Payload bytes still to be skipped.
    payload: usize,
}

/// What is incomplete at the end of a recording.
pub(crate) struct CutOff {
    /// Bytes that belong to no complete packet.
    pub(crate) bytes: usize,
    /// Payload bytes that were announced but did not come.
    pub(crate) missing_payload: usize,
}

/// All conversations of a recording.
#[derive(Default)]
pub(crate) struct Conversation {
    directions: BTreeMap<(usize, Flow), Direction>,
    /// The streams that the initial packets named, by TCP connection.
    streams: BTreeMap<usize, Stream>,
    /// Feature packets by data connection and sender.
    features: BTreeMap<(usize, Ip), ConnectionFeatures>,
}

impl Conversation {
    /// Takes a segment and calls `each` with the packets that it completes.
    pub(crate) fn take(&mut self, segment: Segment, each: &mut impl FnMut(Recorded<'_>)) {
        let Segment { frame, flow, connection, bytes } = segment;
        let stream = self.streams.get(&connection).copied().unwrap_or(Stream::Data);
        let direction = self.directions.entry((connection, flow)).or_insert_with(|| Direction {
            framer: Framer::new(stream),
            bytes: Vec::new(),
            payload: 0,
        });
        direction.bytes.extend_from_slice(&bytes);
        while let Some((consumed, packet)) = self.next(frame, connection, flow, each) {
            let direction = self.directions.get_mut(&(connection, flow)).unwrap();
            direction.bytes.drain(..consumed);
            self.learn(connection, flow, &packet);
        }
    }

    /// What the ends of the TCP connections cut off.
    pub(crate) fn cut_off(&self) -> CutOff {
        CutOff {
            bytes: self.directions.values().map(|d| d.bytes.len()).sum(),
            missing_payload: self.directions.values().map(|d| d.payload).sum(),
        }
    }

    fn next(
        &mut self,
        frame: usize,
        connection: usize,
        flow: Flow,
        each: &mut impl FnMut(Recorded<'_>),
    ) -> Option<(usize, Packet)> {
        let direction = self.directions.get_mut(&(connection, flow)).unwrap();
        let skipped = direction.payload.min(direction.bytes.len());
        direction.bytes.drain(..skipped);
        direction.payload -= skipped;
        if direction.payload > 0 || direction.bytes.is_empty() {
            return None;
        }
        let progress = direction.framer.next(&direction.bytes);
        let progress = progress.unwrap_or_else(|error| {
            let start = &direction.bytes[..direction.bytes.len().min(64)];
            panic!("frame {frame}, {flow:?}: {error}: {start:02x?}")
        });
        let Progress::Packet { consumed, header, packet, digest_len, payload_len } = progress else {
            return None;
        };
        direction.payload = payload_len;
        let bytes = &direction.bytes[..consumed];
        each(Recorded {
            frame,
            from: flow.0.0,
            to: flow.1.0,
            neg: *direction.framer.negotiated(),
            header,
            packet: &packet,
            digest: &bytes[consumed - digest_len..],
            payload_len,
            bytes,
        });
        Some((consumed, packet))
    }

    /// Draws the conclusions that both nodes draw from a packet.
    fn learn(&mut self, connection: usize, flow: Flow, packet: &Packet) {
        match packet {
            Packet::InitialData => self.name_stream(connection, flow, Stream::Data),
            Packet::InitialMeta => self.name_stream(connection, flow, Stream::Control),
            Packet::ConnectionFeatures(features) => {
                self.features.insert((connection, flow.0.0), **features);
                self.agree(connection, flow);
            }
            Packet::Protocol(protocol) | Packet::ProtocolUpdate(protocol) => {
                let len = digest_len(protocol.integrity_alg.as_str()).unwrap();
                let direction = self.directions.get_mut(&(connection, flow)).unwrap();
                let mut neg = *direction.framer.negotiated();
                neg.integrity_digest_len = len;
                // This is what the sender of these bytes has, so that they can be encoded again.
                neg.own_integrity_digest_len = len;
                direction.framer.set_negotiated(neg);
            }
            _ => {}
        }
    }

    fn name_stream(&mut self, connection: usize, flow: Flow, stream: Stream) {
        self.streams.insert(connection, stream);
        let direction = self.directions.get_mut(&(connection, flow)).unwrap();
        direction.framer = Framer::new(stream);
    }

    /// With both feature packets there, sets the result on both directions of the data stream and of the
    /// control streams of this pair of nodes that have none yet.
    fn agree(&mut self, connection: usize, flow: Flow) {
        let (from, to) = (flow.0.0, flow.1.0);
        let own = self.features.get(&(connection, from));
        let peer = self.features.get(&(connection, to));
        let (Some(own), Some(peer)) = (own, peer) else {
            return;
        };
        let neg = negotiate(own, peer).unwrap();
        for flow in [flow, (flow.1, flow.0)] {
            self.directions.entry((connection, flow)).and_modify(|d| d.framer.set_negotiated(neg));
        }
        let control: Vec<usize> = self
            .streams
            .iter()
            .filter(|(_, stream)| **stream == Stream::Control)
            .map(|(&connection, _)| connection)
            .collect();
        let pair = |f: &Flow| (f.0.0, f.1.0) == (from, to) || (f.0.0, f.1.0) == (to, from);
        let known: Vec<_> = self.directions.keys().copied().filter(|(_, f)| pair(f)).collect();
        for (connection, flow) in known.into_iter().filter(|(c, _)| control.contains(c)) {
            for flow in [flow, (flow.1, flow.0)] {
                let direction = self.directions.entry((connection, flow)).or_insert_with(|| Direction {
                    framer: Framer::new(Stream::Control),
                    bytes: Vec::new(),
                    payload: 0,
                });
                if *direction.framer.negotiated() == Negotiated::INITIAL {
                    direction.framer.set_negotiated(neg);
                }
            }
        }
    }
}
