//! What the recorded node sent, beside what Zea sends in its place.

use std::collections::BTreeMap;

use zea_capture::{Value, fields};
use zea_sim::pool::Tag;
use zea_wire::features::Negotiated;
use zea_wire::flags::UuidFlags;
use zea_wire::ids::{BlockId, NodeId, VolumeNr};
use zea_wire::packet::{Packet, Stream, Uuids110};

use crate::commands::Nanos;
use crate::names::{Names, block_id, past};
use crate::recording::{Question, Sent};

/// An announcement that Zea sends may stand for one that the node sent so much later.
const AHEAD_NS: Nanos = 250_000_000;

/// One way in which Zea and the recorded node differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The frame of the recording at or before which it shows.
    pub frame: u64,
    /// The packet's name; empty if it is about none.
    pub packet: &'static str,
    /// What differs.
    pub kind: Kind,
}

/// See [`Difference`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The node sent it, Zea did not.
    Missing(String),
    /// Zea sent it, the node did not.
    Extra(String),
    /// Zea sends it only after a packet that the peer sent when it had it.
    Late(u64),
    /// Zea sends it in another order than the node, on the same stream: after what came in this frame.
    Order(u64),
    /// A field.
    Field {
        /// Its name.
        name: String,
        /// What the node sent.
        recorded: String,
        /// What Zea sends, in the words of the recording.
        own: String,
    },
    /// The replay cannot go on as recorded.
    Stuck(String),
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "frame {:5} {}: ", self.frame, self.packet)?;
        match &self.kind {
            Kind::Missing(what) => write!(f, "missing: {what}"),
            Kind::Extra(what) => write!(f, "extra: {what}"),
            Kind::Late(after) => write!(f, "late: only after frame {after} of the peer"),
            Kind::Order(after) => write!(f, "out of order: after what was sent in frame {after}"),
            Kind::Field { name, recorded, own } => write!(f, "{name}: recorded {recorded}, Zea {own}"),
            Kind::Stuck(why) => write!(f, "stuck: {why}"),
        }
    }
}

/// How packets of a kind are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// One for one, in order.
    Each,
    /// One for one, in any order among themselves: answers come as disks and networks will have it.
    Answer,
    /// As an answer, and as early or late as the sender's window allows.
    Paced,
    /// Only the last one counts.
    Cumulative,
    /// Not at all: signs of life, hints, and epochs.
    Not,
}

fn manner(packet: &Packet) -> Manner {
    match packet {
        Packet::Ping | Packet::PingAck | Packet::UnplugRemote | Packet::Barrier(_) | Packet::Dagtag(_) => Manner::Not,
        Packet::PeerAck(_) => Manner::Cumulative,
        Packet::PeersInSync(_) => Manner::Answer,
        packet if Question::answered_by(packet).is_some() => Manner::Answer,
        Packet::RsDagtagReq(_)
        | Packet::RsThinDagtagReq(_)
        | Packet::RsCsumDagtagReq(_)
        | Packet::RsDataRequest(_)
        | Packet::RsThinReq(_)
        | Packet::CsumRsRequest(_) => Manner::Answer,
        Packet::OvRequest(_) | Packet::OvDagtagReq(_) => Manner::Paced,
        _ => Manner::Each,
    }
}

/// An announcement says how something is: one that says the same as the last one on its link says nothing.
fn is_announcement(packet: &Packet) -> bool {
    matches!(packet, Packet::State(_) | Packet::Uuids110(_) | Packet::Uuids(_) | Packet::CurrentUuid(_))
}

/// A packet that the recorded node sent.
#[derive(Debug)]
struct Expected {
    /// Index in the recording.
    index: usize,
    /// Zea sent it.
    found: bool,
    /// Zea did not when the peer had it.
    late: bool,
}

/// One direction of a stream.
#[derive(Debug, Default)]
struct Queue {
    expected: Vec<Expected>,
    /// All before are found.
    first: usize,
}

/// Both streams of one link, in the direction from the node.
#[derive(Debug, Default)]
struct Way {
    queues: BTreeMap<bool, Queue>,
    /// The last announcement of each kind and volume that Zea sent.
    announced: BTreeMap<(u16, Option<VolumeNr>), Packet>,
    /// The last peer ack of both.
    peer_acks: [Option<(usize, Packet)>; 2],
    /// Dagtags of both, as far as the peer knows them.
    dagtag: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Comparison<'a> {
    sent: &'a [Sent],
    /// Configured peers: bitmap UUIDs of others are not compared.
    peers: Vec<NodeId>,
    ways: BTreeMap<usize, Way>,
    /// The dagtag that the peer gives to each recorded write.
    dagtags: BTreeMap<usize, u64>,
    /// Names of Zea and of the recording.
    pub names: Names,
    /// The block id that Zea chose for a recorded packet.
    pub block_ids: BTreeMap<usize, BlockId>,
    /// What differs so far.
    pub differences: Vec<Difference>,
}

impl<'a> Comparison<'a> {
    /// A comparison with what `node` sent; only packets whose index `counts` are expected.
    pub fn new(sent: &'a [Sent], peers: Vec<NodeId>, expected: impl Iterator<Item = usize>) -> Comparison<'a> {
        let mut ways: BTreeMap<usize, Way> = BTreeMap::new();
        let mut announced: BTreeMap<(usize, u16, Option<VolumeNr>), &Packet> = BTreeMap::new();
        let mut dagtags = BTreeMap::new();
        for index in expected {
            let s = &sent[index];
            let way = ways.entry(s.link).or_default();
            if let Some(dagtag) = dagtag_after(way.dagtag, &s.packet, s.tags.as_deref()) {
                way.dagtag = dagtag;
                dagtags.insert(index, dagtag);
            }
            if is_announcement(&s.packet) {
                let old = announced.insert((s.link, s.packet.command(), s.volume), &s.packet);
                if old.is_some_and(|old| says_same(old, &s.packet, &peers)) {
                    continue;
                }
            }
            match manner(&s.packet) {
                Manner::Not => {}
                Manner::Cumulative => way.peer_acks[0] = Some((index, s.packet.clone())),
                Manner::Each | Manner::Answer | Manner::Paced => {
                    let queue = way.queues.entry(s.stream == Stream::Data).or_default();
                    queue.expected.push(Expected { index, found: false, late: false });
                }
            }
        }
        ways.values_mut().for_each(|way| way.dagtag = 0);
        let (names, block_ids, differences) = Default::default();
        Comparison { sent, peers, ways, dagtags, names, block_ids, differences }
    }

    /// Adds a difference.
    pub fn differ(&mut self, frame: u64, packet: &'static str, kind: Kind) {
        self.differences.push(Difference { frame, packet, kind });
    }

    /// Whether Zea sent this packet of the recording, or need not.
    pub fn is_found(&self, index: usize) -> bool {
        let s = &self.sent[index];
        let queue = self.ways.get(&s.link).and_then(|way| way.queues.get(&(s.stream == Stream::Data)));
        let expected = queue.and_then(|q| q.expected.iter().find(|e| e.index == index));
        expected.is_none_or(|e| e.found)
    }

    /// A packet of the peer is about to be delivered: what the node had sent before it on this link must be there.
    pub fn delivering(&mut self, link: usize, place: usize, order: &[usize]) {
        let Some(way) = self.ways.get_mut(&link) else { return };
        let frame = self.sent[order[place]].frame;
        let sent = self.sent;
        let before = |index: usize| order[..place].contains(&index);
        let mut late = Vec::new();
        for queue in way.queues.values_mut() {
            let from = queue.first;
            for e in queue.expected[from..].iter_mut().take_while(|e| sent[e.index].frame <= frame) {
                let paced = manner(&sent[e.index].packet) == Manner::Paced;
                if !e.found && !e.late && !paced && before(e.index) {
                    e.late = true;
                    late.push(e.index);
                }
            }
        }
        for index in late {
            self.differ(sent[index].frame, sent[index].packet.name(), Kind::Late(frame));
        }
    }

    /// Zea sent a packet at this instant.
    pub fn sent(
        &mut self,
        link: usize,
        now: Nanos,
        neg: &Negotiated,
        volume: Option<VolumeNr>,
        packet: &Packet,
        tags: Option<&[Tag]>,
    ) {
        let way = self.ways.entry(link).or_default();
        let dagtag = dagtag_after(way.dagtag, packet, tags);
        way.dagtag = dagtag.unwrap_or(way.dagtag);
        if is_announcement(packet) {
            let old = way.announced.insert((packet.command(), volume), packet.clone());
            if old.is_some_and(|old| says_same(&old, packet, &self.peers)) {
                return;
            }
        }
        match manner(packet) {
            Manner::Not => {}
            Manner::Cumulative => way.peer_acks[1] = Some((0, packet.clone())),
            Manner::Each | Manner::Answer | Manner::Paced => self.find(link, now, neg, volume, packet, tags, dagtag),
        }
    }

    #[expect(clippy::too_many_arguments)]
    fn find(
        &mut self,
        link: usize,
        now: Nanos,
        neg: &Negotiated,
        volume: Option<VolumeNr>,
        packet: &Packet,
        tags: Option<&[Tag]>,
        dagtag: Option<u64>,
    ) {
        let is_data = packet.stream() == Stream::Data;
        let candidates: Vec<usize> = self.ways[&link]
            .queues
            .get(&is_data)
            .into_iter()
            .flat_map(|q| &q.expected[q.first..])
            .filter(|e| !e.found)
            .map(|e| e.index)
            .filter(|i| self.sent[*i].packet.command() == packet.command() && self.sent[*i].volume == volume)
            .filter(|i| sector(packet).is_some() || self.sent[*i].time <= now + AHEAD_NS)
            .filter(|i| sector(packet) == sector(&self.sent[*i].packet))
            .collect();
        let mut best: Option<(usize, Vec<Kind>, Names)> = None;
        for index in candidates {
            let recorded = &self.sent[index];
            let mut names = self.names.clone();
            names.learn(packet, &recorded.packet);
            let own = names.recorded(packet);
            let mut kinds = self.field_differences(&own, neg, &recorded.packet, &recorded.neg);
            kinds.extend(content_difference(tags, recorded.tags.as_deref()));
            if let (Some(own), Some(recorded)) = (dagtag, self.dagtags.get(&index))
                && own != *recorded
            {
                kinds.push(field("dagtag behind it", recorded, own));
            }
            if best.as_ref().is_none_or(|(_, old, _)| kinds.len() < old.len()) {
                let done = kinds.is_empty();
                best = Some((index, kinds, names));
                if done {
                    break;
                }
            }
        }
        let Some((index, kinds, names)) = best else {
            let text = describe(&self.names.recorded(packet), neg);
            let near = self.sent.iter().filter(|s| s.time <= now).map(|s| s.frame).next_back().unwrap_or(0);
            return self.differ(near, packet.name(), Kind::Extra(text));
        };
        self.names = names;
        if let Some(id) = block_id(packet) {
            self.block_ids.insert(index, id);
        }
        let frame = self.sent[index].frame;
        for kind in kinds {
            self.differ(frame, packet.name(), kind);
        }
        self.mark_found(link, is_data, index);
    }

    /// A packet is found; one that should have come before a packet that was found already is out of order.
    fn mark_found(&mut self, link: usize, is_data: bool, index: usize) {
        let sent = self.sent;
        let queue = self.ways.get_mut(&link).and_then(|w| w.queues.get_mut(&is_data)).expect("it was found there");
        let at = queue.expected.iter().position(|e| e.index == index).expect("it was found there");
        queue.expected[at].found = true;
        while queue.expected.get(queue.first).is_some_and(|e| e.found) {
            queue.first += 1;
        }
        let free = |index: usize| matches!(manner(&sent[index].packet), Manner::Answer | Manner::Paced);
        let overtaken = queue.expected[at + 1..].iter().find(|e| e.found && !(free(index) && free(e.index)));
        if let Some(e) = overtaken {
            let after = sent[e.index].frame;
            self.differ(sent[index].frame, sent[index].packet.name(), Kind::Order(after));
        }
    }

    /// The recording is over.
    pub fn finish(&mut self) {
        let mut missing = Vec::new();
        for way in self.ways.values() {
            for queue in way.queues.values() {
                missing.extend(queue.expected.iter().filter(|e| !e.found).map(|e| e.index));
            }
        }
        missing.sort_unstable();
        for index in &missing {
            let s = &self.sent[*index];
            let is_late =
                |d: &Difference| d.frame == s.frame && d.packet == s.packet.name() && matches!(d.kind, Kind::Late(_));
            self.differences.retain(|d| !is_late(d));
            let text = describe(&s.packet, &s.neg);
            self.differ(s.frame, s.packet.name(), Kind::Missing(text));
        }
        let acks: Vec<_> = self.ways.values().map(|way| way.peer_acks.clone()).collect();
        for [recorded, own] in acks {
            let show = |ack: &Option<(usize, Packet)>| match ack {
                Some((_, Packet::PeerAck(ack))) => format!("mask {} dagtag {}", ack.mask, ack.dagtag),
                _ => "none".to_owned(),
            };
            if show(&recorded) != show(&own) {
                let frame = recorded.as_ref().map_or(0, |(index, _)| self.sent[*index].frame);
                self.differ(frame, "PEER_ACK", field("last", show(&recorded), show(&own)));
            }
        }
        self.differences.sort_by_key(|d| d.frame);
    }

    fn field_differences(&self, own: &Packet, neg: &Negotiated, recorded: &Packet, theirs: &Negotiated) -> Vec<Kind> {
        if let (Packet::Uuids110(own), Packet::Uuids110(recorded)) = (own, recorded) {
            return uuid_differences(own, recorded, &self.peers);
        }
        let (own, recorded) = (without_role_bits(own), without_role_bits(recorded));
        let (own, recorded) = (fields(&own, neg), fields(&recorded, theirs));
        let mut kinds = Vec::new();
        for (name, value) in &recorded {
            if may_differ(name) {
                continue;
            }
            let other = own.iter().find(|(n, _)| n == name).map_or(&Value::None, |(_, v)| v);
            if other != value {
                kinds.push(field(name, value, other));
            }
        }
        let more = own.iter().filter(|(name, _)| recorded.iter().all(|(n, _)| n != name));
        kinds.extend(more.map(|(name, value)| field(name, "none", value)));
        kinds
    }
}

/// P_UUIDS and P_SYNC_UUID without bit 0 of UUIDs that are not current.
fn without_role_bits(packet: &Packet) -> Packet {
    let mut packet = packet.clone();
    match &mut packet {
        Packet::Uuids(u) => {
            for uuid in [&mut u.bitmap, &mut u.history0, &mut u.history1] {
                *uuid &= !1;
            }
        }
        Packet::SyncUuid(u) => u.uuid &= !1,
        _ => {}
    }
    packet
}

/// Fields that each node chooses for itself. Those that are given back are put right on the way: see [`Names`] and
/// [`Comparison::block_ids`].
fn may_differ(name: &str) -> bool {
    matches!(name, "block_id" | "seq_num" | "challenge" | "flush_sequence" | "pad")
}

fn field(name: &str, recorded: impl ToString, own: impl ToString) -> Kind {
    Kind::Field { name: name.to_owned(), recorded: recorded.to_string(), own: own.to_string() }
}

/// P_UUIDS110 without what is about a node that is no configured peer: the sender itself, and a slot that was never
/// used. Former generations are a set: each node has its own order.
fn uuid_differences(own: &Uuids110, recorded: &Uuids110, peers: &[NodeId]) -> Vec<Kind> {
    let flags = |u: &Uuids110| UuidFlags(u.uuid_flags.0 & 0xffff).without(UuidFlags::HAS_UNALLOC);
    let mut kinds = Vec::new();
    let mut check = |name: &str, own: String, recorded: String| {
        if own != recorded {
            kinds.push(field(name, recorded, own));
        }
    };
    check("current", format!("{:016X}", own.current), format!("{:016X}", recorded.current));
    check("dirty_bits", own.dirty_bits.to_string(), recorded.dirty_bits.to_string());
    check("uuid_flags", flags(own).to_string(), flags(recorded).to_string());
    check("node_mask", own.node_mask.to_string(), recorded.node_mask.to_string());
    for peer in peers {
        let towards =
            |u: &Uuids110| u.bitmap_uuids.get(*peer).map_or("none".to_owned(), |uuid| format!("{:016X}", uuid & !1));
        check(&format!("bitmap UUID towards {peer}"), towards(own), towards(recorded));
    }
    let former = |u: &Uuids110| {
        let mut past = past(u);
        past.sort_unstable();
        past.iter().map(|uuid| format!("{uuid:016X}")).collect::<Vec<_>>().join(" ")
    };
    check("former generations", former(own), former(recorded));
    kinds
}

fn says_same(old: &Packet, new: &Packet, peers: &[NodeId]) -> bool {
    match (old, new) {
        (Packet::Uuids110(old), Packet::Uuids110(new)) => {
            // That nobody is weak adds nothing.
            let mut new = new.clone();
            if new.uuid_flags.contains(UuidFlags::STABLE) && new.node_mask.is_empty() {
                new.node_mask = old.node_mask;
            }
            uuid_differences(&new, old, peers).is_empty()
        }
        _ => without_role_bits(old) == without_role_bits(new),
    }
}

fn content_difference(own: Option<&[Tag]>, recorded: Option<&[Tag]>) -> Option<Kind> {
    let (own, recorded) = (own.unwrap_or_default(), recorded.unwrap_or_default());
    if own.len() != recorded.len() {
        return Some(field("bytes of payload", recorded.len() * 512, own.len() * 512));
    }
    let at = own.iter().zip(recorded).position(|(a, b)| a != b)?;
    Some(field("payload", format!("sector {at} of it is {:x}", recorded[at]), format!("{:x}", own[at])))
}

/// The first sector of packets that are about a range: it tells which is which.
fn sector(packet: &Packet) -> Option<u64> {
    Some(match packet {
        Packet::Data(d) | Packet::DataReply(d) | Packet::RsDataReply(d) => d.sector,
        Packet::Trim(t) | Packet::Zeroes(t) => t.sector,
        Packet::DataRequest(r) | Packet::RsDataRequest(r) | Packet::RsThinReq(r) | Packet::OvRequest(r) => r.sector,
        Packet::CsumRsRequest(r) | Packet::OvReply(r) => r.req.sector,
        Packet::RsDagtagReq(r) | Packet::RsThinDagtagReq(r) | Packet::OvDagtagReq(r) => r.sector,
        Packet::RsCsumDagtagReq(r) | Packet::OvDagtagReply(r) => r.req.sector,
        Packet::WriteAck(a)
        | Packet::RecvAck(a)
        | Packet::NegAck(a)
        | Packet::WriteAckInSync(a)
        | Packet::RsWriteAck(a)
        | Packet::RsNegAck(a)
        | Packet::RsIsInSync(a)
        | Packet::RsDeallocatedId(a)
        | Packet::NegDreply(a)
        | Packet::NegRsDreply(a)
        | Packet::OvResult(a)
        | Packet::RsCancel(a) => a.sector,
        Packet::OvResultId(r) => r.sector,
        Packet::OutOfSync(d) => d.sector,
        Packet::PeersInSync(d) => d.sector,
        _ => return None,
    })
}

/// The dagtag that a receiver has after this packet, if it moves it.
fn dagtag_after(before: u64, packet: &Packet, tags: Option<&[Tag]>) -> Option<u64> {
    match packet {
        Packet::Dagtag(d) => Some(d.dagtag),
        Packet::Data(_) => Some(before + tags.map_or(0, |t| t.len() as u64)),
        Packet::Trim(t) | Packet::Zeroes(t) => Some(before + u64::from(t.size) / 512),
        _ => None,
    }
}

/// A packet for people.
pub fn describe(packet: &Packet, neg: &Negotiated) -> String {
    let words: Vec<String> = fields(packet, neg).iter().map(|(name, value)| format!("{name}={value}")).collect();
    words.join(" ")
}
