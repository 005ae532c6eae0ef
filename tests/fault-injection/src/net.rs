//! The network, at the level of connections: a link is a pair of streams between two nodes, first in first out in each,
//! with delays of their own. A packet may arrive in parts. Links can break (of what is on its way, each stream delivers a
//! part that ends anywhere; both ends learn it after a while, or only one does), stall in one or both directions (nothing
//! arrives until the keepalive acts or the stall ends), be slow, or die with their node.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use zea_wire::features::Negotiated;

use crate::pool::Tag;
use crate::rng::Stream as Random;

/// Index of a node in the world; its node id is the same number.
pub type NodeIx = usize;

/// What travels on a stream.
#[derive(Debug, Clone)]
pub enum Frame {
    /// An encoded packet, its payload beside it.
    Packet {
        /// Header and fixed part.
        bytes: Vec<u8>,
        /// Bulk payload.
        tags: Option<Vec<Tag>>,
    },
    /// The sender closed the link.
    Eof,
}

/// What an end knows of its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndState {
    /// Its LinkUp is on the way.
    Coming,
    /// LinkUp was given.
    Up,
    /// LinkDown was given, or the core closed it, or the node died.
    Closed,
}

/// One end of a link.
#[derive(Debug, Clone)]
pub struct End {
    /// Node.
    pub node: NodeIx,
    /// State.
    pub state: EndState,
    /// When LinkUp reaches the node.
    pub up_at: u64,
    /// Packet format.
    pub negotiated: Negotiated,
}

/// Most parts that a packet arrives in.
const PARTS: usize = 3;

/// A frame on its way: it arrives in parts, those before the last end at these bytes.
#[derive(Debug, Clone)]
struct Travelling {
    frame: Frame,
    cuts: [u32; PARTS - 1],
    parts: usize,
}

#[derive(Debug, Default, Clone)]
struct Half {
    queue: VecDeque<Travelling>,
    /// Parts of the first frame that have arrived.
    parts_in: usize,
    last_arrival: u64,
    held: u32,
    /// The link broke: only so many parts arrive still.
    left: Option<usize>,
}

/// When the parts of a frame arrive.
#[derive(Debug, Clone, Copy)]
pub struct Arrivals {
    /// On which stream.
    pub stream: StreamId,
    at: [u64; PARTS],
    parts: usize,
}

impl Arrivals {
    /// One instant for each part.
    pub fn times(&self) -> &[u64] {
        &self.at[..self.parts]
    }
}

/// A pair of streams between two nodes.
#[derive(Debug, Clone)]
pub struct Link {
    /// Both ends; the second has the resolve-conflicts flag set.
    pub ends: [End; 2],
    /// Nothing that is sent from now on arrives.
    pub broken: bool,
    streams: [[Half; 2]; 2],
}

/// What came out of a stream.
#[derive(Debug)]
pub enum Arrival {
    /// A frame for the node at the other end.
    Frame(Frame),
    /// A part of a packet; so many bytes of its fixed part are there.
    Part {
        /// The fixed part of the packet as far as it has arrived.
        bytes: Vec<u8>,
    },
    /// The direction is stalled, or the link is no more.
    Nothing,
}

/// Delays of the network.
#[derive(Debug, Clone, Copy)]
pub struct NetParams {
    /// Typical one-way delay.
    pub latency_ns: u64,
    /// Typical time from both sides wanting a connection to LinkUp.
    pub dial_ns: u64,
    /// Typical time until an end learns that a link was cut.
    pub notice_ns: u64,
    /// Packets that arrive in parts, in 1000.
    pub split_per_mille: u64,
}

impl Default for NetParams {
    fn default() -> Self {
        NetParams { latency_ns: 100_000, dial_ns: 20_000_000, notice_ns: 50_000_000, split_per_mille: 0 }
    }
}

/// The network.
#[derive(Debug)]
pub struct Net {
    /// Delays.
    pub params: NetParams,
    links: BTreeMap<u64, Link>,
    next_link: u64,
    wants: BTreeSet<(NodeIx, NodeIx)>,
    cut: BTreeSet<(NodeIx, NodeIx)>,
    stalled: BTreeSet<(NodeIx, NodeIx)>,
    /// Streams by sender, receiver and number that take so many times as long.
    slow: BTreeMap<(NodeIx, NodeIx, usize), u64>,
    /// By sender and receiver: the next data that arrives is not what was sent.
    damaged: BTreeSet<(NodeIx, NodeIx)>,
    /// Packets sent, of all links.
    pub packets: u64,
}

/// A stream of a link in one direction: link, side that sends, stream.
pub type StreamId = (u64, usize, usize);

fn pair(a: NodeIx, b: NodeIx) -> (NodeIx, NodeIx) {
    (a.min(b), a.max(b))
}

impl Net {
    /// A network without links.
    pub fn new(params: NetParams) -> Net {
        Net {
            params,
            links: BTreeMap::new(),
            next_link: 0,
            wants: BTreeSet::new(),
            cut: BTreeSet::new(),
            stalled: BTreeSet::new(),
            slow: BTreeMap::new(),
            damaged: BTreeSet::new(),
            packets: 0,
        }
    }

    /// A node wants a link to a peer, or no longer.
    pub fn set_want(&mut self, node: NodeIx, peer: NodeIx, want: bool) {
        if want {
            self.wants.insert((node, peer));
        } else {
            self.wants.remove(&(node, peer));
        }
    }

    /// A node died: it wants nothing.
    pub fn forget_wants(&mut self, node: NodeIx) {
        self.wants.retain(|(from, _)| *from != node);
    }

    /// Both want a link and the way is free.
    pub fn can_connect(&self, a: NodeIx, b: NodeIx) -> bool {
        self.wants.contains(&(a, b))
            && self.wants.contains(&(b, a))
            && !self.cut.contains(&pair(a, b))
            && !self.stalled.contains(&(a, b))
            && !self.stalled.contains(&(b, a))
    }

    /// The link of a node to a peer that is up or coming up.
    pub fn live_link(&self, node: NodeIx, peer: NodeIx) -> Option<u64> {
        self.links
            .iter()
            .find(|(_, l)| {
                let here = l.side_of(node);
                here.is_some_and(|s| l.ends[s].state != EndState::Closed && l.ends[1 - s].node == peer)
            })
            .map(|(id, _)| *id)
    }

    /// Makes a link; both ends learn it at the times that its ends name.
    pub fn open(&mut self, a: NodeIx, b: NodeIx, now: u64, rng: &mut Random) -> (u64, &Link) {
        self.set_want(a, b, false);
        self.set_want(b, a, false);
        let (first, second) = if rng.chance(500) { (a, b) } else { (b, a) };
        let base = now + rng.delay_ns(self.params.latency_ns);
        let mut end = |node| End {
            node,
            state: EndState::Coming,
            up_at: base + rng.delay_ns(self.params.latency_ns),
            negotiated: Negotiated::INITIAL,
        };
        let link = Link { ends: [end(first), end(second)], broken: false, streams: Default::default() };
        self.next_link += 1;
        let id = self.next_link;
        (id, self.links.entry(id).or_insert(link))
    }

    /// A link by number.
    pub fn link(&self, id: u64) -> Option<&Link> {
        self.links.get(&id)
    }

    /// A link by number, to change its ends.
    pub fn link_mut(&mut self, id: u64) -> Option<&mut Link> {
        self.links.get_mut(&id)
    }

    /// Puts a frame on a stream; returns its stream and when it arrives. `None`: the link is gone for the sender.
    pub fn send(
        &mut self,
        id: u64,
        from: NodeIx,
        stream: usize,
        frame: Frame,
        now: u64,
        rng: &mut Random,
    ) -> Option<Arrivals> {
        let link = self.links.get_mut(&id)?;
        let side = link.side_of(from)?;
        if link.broken || link.ends[side].state != EndState::Up || link.ends[1 - side].state == EndState::Closed {
            return None;
        }
        self.packets += 1;
        let slowness = self.slow.get(&(from, link.ends[1 - side].node, stream)).copied().unwrap_or(1);
        let latency_ns = self.params.latency_ns * slowness;
        let earliest = link.ends[1 - side].up_at + 1;
        let half = &mut link.streams[side][stream];
        let travelling = Travelling::new(frame, self.params.split_per_mille, rng);
        let mut arrivals = Arrivals { stream: (id, side, stream), at: [0; PARTS], parts: travelling.parts };
        for at in &mut arrivals.at[..travelling.parts] {
            half.last_arrival = (now + rng.delay_ns(latency_ns)).max(half.last_arrival).max(earliest);
            *at = half.last_arrival;
        }
        half.queue.push_back(travelling);
        Some(arrivals)
    }

    /// The next part of a frame reaches the other end of a stream.
    pub fn arrive(&mut self, (id, side, stream): StreamId) -> Arrival {
        let Some(link) = self.links.get_mut(&id) else {
            return Arrival::Nothing;
        };
        let direction = (link.ends[side].node, link.ends[1 - side].node);
        let half = &mut link.streams[side][stream];
        if self.stalled.contains(&direction) {
            half.held += 1;
            return Arrival::Nothing;
        }
        match &mut half.left {
            Some(0) => return Arrival::Nothing,
            Some(left) => *left -= 1,
            None => {}
        }
        if link.ends[1 - side].state != EndState::Up {
            half.parts_in = 0;
            half.queue.pop_front();
            return Arrival::Nothing;
        }
        let Some(first) = half.queue.front() else {
            return Arrival::Nothing;
        };
        half.parts_in += 1;
        if half.parts_in < first.parts {
            return Arrival::Part { bytes: first.until(half.parts_in) };
        }
        half.parts_in = 0;
        let mut frame = half.queue.pop_front().expect("seen above").frame;
        if let Frame::Packet { tags: Some(tags), .. } = &mut frame
            && self.damaged.remove(&direction)
        {
            tags[0] ^= 1 << 62;
        }
        Arrival::Frame(frame)
    }

    /// The links of these two are whole, and nothing is on its way.
    pub fn is_quiet(&self, a: NodeIx, b: NodeIx) -> bool {
        let between = |l: &&Link| l.side_of(a).is_some() && l.side_of(b).is_some();
        let is_empty = |l: &Link| l.streams.iter().flatten().all(|half| half.queue.is_empty());
        self.links.values().filter(between).all(|l| !l.broken && is_empty(l))
    }

    /// A link breaks.
    pub fn break_link(&mut self, id: u64, rng: &mut Random) {
        let Some(link) = self.links.get_mut(&id).filter(|l| !l.broken) else {
            return;
        };
        link.broken = true;
        for half in link.streams.iter_mut().flatten() {
            let parts: usize = half.queue.iter().map(|t| t.parts).sum();
            half.left = Some(rng.below((parts - half.parts_in) as u64 + 1) as usize);
        }
    }

    /// No stream is slow any more.
    pub fn all_fast(&mut self) {
        self.slow.clear();
    }

    /// One direction of one stream takes so many times as long from now on.
    pub fn set_slow(&mut self, from: NodeIx, to: NodeIx, stream: usize, times: u64) {
        self.slow.insert((from, to, stream), times);
    }

    /// One sector of the next data from one node to another changes on its way.
    pub fn damage_next(&mut self, from: NodeIx, to: NodeIx) {
        self.damaged.insert((from, to));
    }

    /// An end is closed: by its core, by LinkDown, by the death of its node. Links that nobody has are forgotten.
    pub fn close_end(&mut self, id: u64, node: NodeIx) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        if let Some(side) = link.side_of(node) {
            link.ends[side].state = EndState::Closed;
            for half in &mut link.streams[1 - side] {
                half.queue.clear();
                half.parts_in = 0;
            }
        }
        if link.ends.iter().all(|e| e.state == EndState::Closed) {
            self.links.remove(&id);
        }
    }

    /// Cuts or heals the way between two nodes.
    pub fn set_cut(&mut self, a: NodeIx, b: NodeIx, cut: bool) {
        if cut {
            self.cut.insert(pair(a, b));
        } else {
            self.cut.remove(&pair(a, b));
        }
    }

    /// Stalls one direction, or ends the stall. Returns the streams whose frames arrive now.
    pub fn set_stall(&mut self, from: NodeIx, to: NodeIx, stalled: bool) -> Vec<(StreamId, u32)> {
        if stalled {
            self.stalled.insert((from, to));
            return Vec::new();
        }
        self.stalled.remove(&(from, to));
        let mut released = Vec::new();
        for id in self.links_between(from, to) {
            let link = self.links.get_mut(&id).expect("listed above");
            let side = link.side_of(from).expect("an end of this link");
            for stream in 0..2 {
                let held = std::mem::take(&mut link.streams[side][stream].held);
                released.push(((id, side, stream), held));
            }
        }
        released
    }

    /// Every link between two nodes that at least one of them has.
    pub fn links_between(&self, a: NodeIx, b: NodeIx) -> Vec<u64> {
        let between = |l: &Link| l.side_of(a).is_some() && l.side_of(b).is_some();
        self.links.iter().filter(|(_, l)| between(l)).map(|(id, _)| *id).collect()
    }

    /// Every link of a node that at least one end has.
    pub fn links_of(&self, node: NodeIx) -> Vec<u64> {
        self.links.iter().filter(|(_, l)| l.side_of(node).is_some()).map(|(id, _)| *id).collect()
    }

    /// Whether the way between two nodes is cut or stalled.
    pub fn is_disturbed(&self, a: NodeIx, b: NodeIx) -> bool {
        self.cut.contains(&pair(a, b)) || self.stalled.contains(&(a, b)) || self.stalled.contains(&(b, a))
    }
}

impl Travelling {
    fn new(frame: Frame, split_per_mille: u64, rng: &mut Random) -> Travelling {
        let mut travelling = Travelling { frame, cuts: [0; PARTS - 1], parts: 1 };
        if let Frame::Packet { bytes, .. } = &travelling.frame
            && split_per_mille > 0
            && rng.chance(split_per_mille)
        {
            travelling.parts = rng.between(2, PARTS as u64) as usize;
            travelling.cuts = std::array::from_fn(|_| rng.below(bytes.len() as u64 + 1) as u32);
            travelling.cuts[..travelling.parts - 1].sort_unstable();
        }
        travelling
    }

    /// The bytes of the fixed part that have arrived with so many parts.
    fn until(&self, parts: usize) -> Vec<u8> {
        match &self.frame {
            Frame::Packet { bytes, .. } => bytes[..self.cuts[parts - 1] as usize].to_vec(),
            Frame::Eof => Vec::new(),
        }
    }
}

impl Link {
    /// 0 or 1, the end that belongs to this node.
    pub fn side_of(&self, node: NodeIx) -> Option<usize> {
        self.ends.iter().position(|e| e.node == node)
    }

    /// The other end's node.
    pub fn peer_of(&self, node: NodeIx) -> Option<NodeIx> {
        self.side_of(node).map(|s| self.ends[1 - s].node)
    }
}
