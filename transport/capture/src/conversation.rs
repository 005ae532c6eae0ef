//! Follows DRBD conversations: knows which stream a TCP connection is, and what was agreed.

use std::collections::BTreeMap;
use std::mem;
use std::net::{IpAddr, SocketAddr};

use zea_wire::digest::DigestAlg;
use zea_wire::features::{ConnectionFeatures, Negotiated, negotiate};
use zea_wire::framer::{Framer, Progress};
use zea_wire::header::{Header, HeaderError};
use zea_wire::packet::{DecodeError, Packet, Stream};

use crate::stream::{Close, Place, Segment, Streams};

/// What happens in a recording.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A TCP connection begins: the opener's SYN.
    Opened,
    /// A packet.
    Packet(Recorded<'a>),
    /// Bytes that are no packet. Nothing that follows them in the same direction of their connection is decoded.
    Undecodable(Undecodable),
    /// A direction of a TCP connection ends.
    Closed(Close),
}

/// A packet of a recording.
#[derive(Clone, Copy, Debug)]
pub struct Recorded<'a> {
    /// The stream it came on.
    pub stream: Stream,
    /// What was agreed when it was sent. Both digest lengths are the sender's, so that it can be encoded again.
    pub neg: Negotiated,
    /// Its header.
    pub header: Header,
    /// The packet.
    pub packet: &'a Packet,
    /// Header, prefix and digest.
    pub bytes: &'a [u8],
    /// The end of `bytes`: the digest of the payload; empty without data-integrity-alg.
    pub digest: &'a [u8],
    /// The bulk payload; shorter than `payload_len` if the end of the connection cut it off.
    pub payload: &'a [u8],
    /// Bytes of payload that the packet announces.
    pub payload_len: usize,
}

/// Bytes that are no packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Undecodable {
    /// The stream they came on.
    pub stream: Stream,
    /// Why they are no packet.
    pub error: DecodeError,
    /// The first of them, at most 64.
    pub start: Vec<u8>,
}

/// What is in a recording beside whole packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Packets, with those that were cut off in their payload.
    pub packets: u64,
    /// Directions that ended with bytes that are no packet.
    pub undecodable: usize,
    /// Bytes at the ends of connections that belong to no complete packet.
    pub left_over: usize,
    /// Payload bytes that were announced but did not come.
    pub missing_payload: usize,
    /// TCP connections that do not speak DRBD.
    pub foreign: usize,
    /// TCP connections whose beginning is not in the recording.
    pub headless: usize,
    /// Frames of which the recorder kept only the beginning.
    pub cut_frames: u64,
    /// Directions of TCP connections that end with a gap.
    pub gaps: usize,
}

impl Summary {
    pub(crate) fn add_streams(&mut self, streams: &Streams) {
        self.headless = streams.headless();
        self.cut_frames = streams.cut_frames();
        self.gaps = streams.gaps();
    }

    /// True if all that the recording has of DRBD was decoded, apart from what the ends of connections cut off.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.undecodable == 0 && self.headless == 0 && self.cut_frames == 0 && self.gaps == 0
    }
}

/// One direction of a TCP connection.
#[derive(Debug)]
struct Direction {
    framer: Framer,
    /// What is not decoded yet.
    bytes: Vec<u8>,
    features: Option<ConnectionFeatures>,
    /// Where the last bytes came from.
    last: Option<Place>,
    undecodable: bool,
}

impl Direction {
    const fn new() -> Direction {
        let framer = Framer::new(Stream::Data);
        Direction { framer, bytes: Vec::new(), features: None, last: None, undecodable: false }
    }
}

/// A TCP connection: one stream of a conversation.
#[derive(Debug)]
struct Connection {
    opener: SocketAddr,
    listener: SocketAddr,
    /// The stream that an initial packet named.
    stream: Option<Stream>,
    /// Its first bytes are not DRBD's.
    foreign: bool,
    /// From the opener, and from the listener.
    directions: [Direction; 2],
}

impl Connection {
    fn is_between(&self, pair: (IpAddr, IpAddr)) -> bool {
        let own = (self.opener.ip(), self.listener.ip());
        own == pair || own == (pair.1, pair.0)
    }

    /// A control stream that waits for the agreement on its data stream.
    fn awaits_agreement(&self) -> bool {
        let initial = |direction: &Direction| *direction.framer.negotiated() == Negotiated::INITIAL;
        self.stream == Some(Stream::Control) && self.directions.iter().any(initial)
    }

    fn agree(&mut self, neg: Negotiated) {
        self.directions.iter_mut().for_each(|direction| direction.framer.set_negotiated(neg));
    }
}

/// A packet, without the bytes.
struct Found {
    header: Header,
    packet: Packet,
    digest_len: usize,
    prefix_len: usize,
    payload_len: usize,
}

/// All conversations of a recording.
#[derive(Debug, Default)]
pub struct Conversation {
    /// By number.
    connections: BTreeMap<usize, Connection>,
    summary: Summary,
}

impl Conversation {
    /// Takes a segment and calls `each` with the packets that it completes.
    pub fn take(&mut self, segment: Segment, each: &mut impl FnMut(Place, Event<'_>)) {
        let Segment { at, opened, bytes, closed } = segment;
        if opened {
            each(at, Event::Opened);
        }
        if !bytes.is_empty() {
            self.take_bytes(at, &bytes, each);
        }
        if let Some(how) = closed {
            each(at, Event::Closed(how));
        }
    }

    fn take_bytes(&mut self, at: Place, new: &[u8], each: &mut impl FnMut(Place, Event<'_>)) {
        let connection = self.connections.entry(at.connection).or_insert_with(|| {
            let (opener, listener) = if at.from_opener { (at.from, at.to) } else { (at.to, at.from) };
            let directions = [Direction::new(), Direction::new()];
            Connection { opener, listener, stream: None, foreign: false, directions }
        });
        let direction = &mut connection.directions[side(at)];
        if connection.foreign || direction.undecodable {
            return;
        }
        let mut bytes = mem::take(&mut direction.bytes);
        bytes.extend_from_slice(new);
        direction.last = Some(at);
        let mut done = 0;
        while let Some(found) = self.next(at, &bytes[done..], each) {
            let whole = found.prefix_len + found.payload_len;
            if bytes.len() - done < whole {
                break;
            }
            self.show(at, &found, &bytes[done..done + whole], each);
            done += whole;
            self.learn(at, &found.packet);
        }
        bytes.drain(..done);
        self.direction(at).bytes = bytes;
    }

    /// Calls `each` with the packets whose payload was cut off; returns what there is beside packets.
    pub fn finish(mut self, each: &mut impl FnMut(Place, Event<'_>)) -> Summary {
        let directions = self.connections.values_mut().filter(|c| !c.foreign).flat_map(|c| &mut c.directions);
        let ends = directions.filter(|d| !d.undecodable && !d.bytes.is_empty());
        let ends: Vec<(Place, Vec<u8>)> = ends.filter_map(|d| Some((d.last?, mem::take(&mut d.bytes)))).collect();
        for (at, bytes) in ends {
            match self.next(at, &bytes, each) {
                Some(found) => {
                    self.summary.missing_payload += found.prefix_len + found.payload_len - bytes.len();
                    self.show(at, &found, &bytes, each);
                }
                None => self.summary.left_over += bytes.len(),
            }
        }
        self.summary
    }

    fn connection(&mut self, at: Place) -> &mut Connection {
        self.connections.get_mut(&at.connection).expect("it sent something")
    }

    fn direction(&mut self, at: Place) -> &mut Direction {
        &mut self.connection(at).directions[side(at)]
    }

    /// The packet at the start of `bytes`, if its prefix is there.
    fn next(&mut self, at: Place, bytes: &[u8], each: &mut impl FnMut(Place, Event<'_>)) -> Option<Found> {
        let connection = self.connection(at);
        let direction = &mut connection.directions[side(at)];
        match direction.framer.next(bytes) {
            Ok(Progress::NeedMore { .. }) => None,
            Ok(Progress::Packet { consumed, header, packet, digest_len, payload_len }) => {
                Some(Found { header, packet, digest_len, prefix_len: consumed, payload_len })
            }
            Err(DecodeError::Header(HeaderError::BadMagic { .. })) if connection.stream.is_none() => {
                connection.foreign = true;
                self.summary.foreign += 1;
                None
            }
            Err(error) => {
                direction.undecodable = true;
                let (stream, start) = (direction.framer.stream(), bytes[..bytes.len().min(64)].to_vec());
                self.summary.undecodable += 1;
                each(at, Event::Undecodable(Undecodable { stream, error, start }));
                None
            }
        }
    }

    /// Calls `each` with a packet. `bytes` are all of it, or what is there of it.
    fn show(&mut self, at: Place, found: &Found, bytes: &[u8], each: &mut impl FnMut(Place, Event<'_>)) {
        self.summary.packets += 1;
        let framer = &self.direction(at).framer;
        let (prefix, payload) = bytes.split_at(found.prefix_len);
        let recorded = Recorded {
            // It is what names the stream.
            stream: if found.packet == Packet::InitialMeta { Stream::Control } else { framer.stream() },
            neg: *framer.negotiated(),
            header: found.header,
            packet: &found.packet,
            bytes: prefix,
            digest: &prefix[prefix.len() - found.digest_len..],
            payload,
            payload_len: found.payload_len,
        };
        each(at, Event::Packet(recorded));
    }

    /// Draws the conclusions that both nodes draw from a packet.
    fn learn(&mut self, at: Place, packet: &Packet) {
        match packet {
            Packet::InitialData => self.name_stream(at, Stream::Data),
            Packet::InitialMeta => self.name_stream(at, Stream::Control),
            Packet::ConnectionFeatures(features) => {
                self.direction(at).features = Some(**features);
                self.agree(at);
            }
            Packet::Protocol(protocol) | Packet::ProtocolUpdate(protocol) => {
                let integrity_alg = DigestAlg::from_name(protocol.integrity_alg.as_str());
                let framer = &mut self.direction(at).framer;
                let neg = *framer.negotiated();
                framer.set_negotiated(Negotiated { integrity_alg, ..neg });
            }
            _ => {}
        }
    }

    fn name_stream(&mut self, at: Place, stream: Stream) {
        let connection = self.connection(at);
        connection.stream = Some(stream);
        connection.directions.iter_mut().for_each(|direction| direction.framer = Framer::new(stream));
    }

    /// With both feature packets there, sets the result on this data stream and on the control stream beside it.
    fn agree(&mut self, at: Place) {
        let data = self.connection(at);
        let [Some(own), Some(peer)] = data.directions.each_ref().map(|direction| direction.features) else {
            return;
        };
        // Nodes that do not agree send nothing more.
        let Ok(neg) = negotiate(&own, &peer) else {
            return;
        };
        data.agree(neg);
        let (pair, port) = ((data.opener.ip(), data.listener.ip()), data.listener.port());
        let waiting = |c: &&mut Connection| c.is_between(pair) && c.awaits_agreement();
        let mut controls: Vec<&mut Connection> = self.connections.values_mut().filter(waiting).collect();
        // Other resources of the same nodes have other ports. The two nodes of one may have different ones, too.
        if controls.iter().any(|control| control.listener.port() == port) {
            controls.retain(|control| control.listener.port() == port);
        }
        controls.into_iter().for_each(|control| control.agree(neg));
    }
}

/// The index of a direction.
const fn side(at: Place) -> usize {
    if at.from_opener { 0 } else { 1 }
}
