//! The network, at the level of connections: a link is a pair of streams between two nodes, first in first out in each,
//! with delays of their own. Links can be cut (both ends learn it after a while), stalled in one or both directions
//! (nothing arrives until the keepalive acts or the stall ends), or die with their node.

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

#[derive(Debug, Default, Clone)]
struct Half {
    queue: VecDeque<Frame>,
    last_arrival: u64,
    held: u32,
}

/// A pair of streams between two nodes.
#[derive(Debug, Clone)]
pub struct Link {
    /// Both ends; the second has the resolve-conflicts flag set.
    pub ends: [End; 2],
    /// A reset: what is on the way is lost.
    pub dead: bool,
    streams: [[Half; 2]; 2],
}

/// What came out of a stream.
#[derive(Debug)]
pub enum Arrival {
    /// A frame for the node at the other end.
    Frame(Frame),
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
}

impl Default for NetParams {
    fn default() -> Self {
        NetParams { latency_ns: 100_000, dial_ns: 20_000_000, notice_ns: 50_000_000 }
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
        let link = Link { ends: [end(first), end(second)], dead: false, streams: Default::default() };
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
    ) -> Option<(StreamId, u64)> {
        let latency_ns = self.params.latency_ns;
        let link = self.links.get_mut(&id)?;
        let side = link.side_of(from)?;
        if link.dead || link.ends[side].state != EndState::Up || link.ends[1 - side].state == EndState::Closed {
            return None;
        }
        self.packets += 1;
        let earliest = link.ends[1 - side].up_at + 1;
        let half = &mut link.streams[side][stream];
        half.last_arrival = (now + rng.delay_ns(latency_ns)).max(half.last_arrival).max(earliest);
        half.queue.push_back(frame);
        Some(((id, side, stream), half.last_arrival))
    }

    /// The next frame of a stream reaches the other end.
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
        match half.queue.pop_front() {
            Some(frame) if link.ends[1 - side].state == EndState::Up && !link.dead => Arrival::Frame(frame),
            _ => Arrival::Nothing,
        }
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
            }
        }
        if link.ends.iter().all(|e| e.state == EndState::Closed) {
            self.links.remove(&id);
        }
    }

    /// Cuts or heals the way between two nodes. Returns the links that are reset.
    pub fn set_cut(&mut self, a: NodeIx, b: NodeIx, cut: bool) -> Vec<u64> {
        if !cut {
            self.cut.remove(&pair(a, b));
            return Vec::new();
        }
        self.cut.insert(pair(a, b));
        self.links_between(a, b)
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
