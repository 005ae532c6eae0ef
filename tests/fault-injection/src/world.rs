//! The world: virtual time, the event heap, and the way of inputs and actions between cores, disks, network and front ends.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use zea_core::event::Event as CoreEvent;
use zea_core::io::{
    Action, AdminError, AdminTag, Command, DigestTag, DiskCmd, DiskTag, Input, IoError, LinkId, LinkLost, Outbox,
    Payload, ReqId, Time,
};
use zea_wire::digest::Digest;
use zea_wire::ids::{NodeId, VolumeNr};

use crate::checks::{Check, Checks};
use crate::codec;
use crate::disk::{self, Done};
use crate::model::Model;
use crate::net::{Arrival, EndState, Frame, Net, NodeIx, StreamId};
use crate::node::{MakeCore, Node};
use crate::rng::Stream;
use crate::trace::{Record, Trace, describe_action, describe_input};

/// More timer inputs than this at one instant are a livelock.
const TIMERS_AT_ONE_INSTANT: u32 = 1000;

/// Something that will happen.
#[derive(Debug, Clone)]
pub enum Event {
    /// A disk command ends.
    Disk { node: NodeIx, run: u32, volume: VolumeNr, tag: DiskTag },
    /// A digest is computed.
    Digest { node: NodeIx, run: u32, tag: DigestTag, digest: Digest },
    /// The deadline of a core.
    Timer { node: NodeIx, run: u32, at: u64 },
    /// Both ends of a new link.
    LinkUp { node: NodeIx, run: u32, link: u64 },
    /// A link is lost.
    LinkDown { node: NodeIx, run: u32, link: u64, lost: LinkLost },
    /// The next part of a frame of a stream arrives at this node.
    Frame { node: NodeIx, run: u32, stream: StreamId },
    /// Two nodes may connect.
    Dial { a: NodeIx, b: NodeIx },
    /// The start-up goes on.
    Boot { node: NodeIx, run: u32 },
    /// A crashed node starts again.
    Restart { node: NodeIx },
    /// The random driver does something.
    Driver { what: u32 },
}

impl Event {
    fn target(&self) -> Option<(NodeIx, u32)> {
        match *self {
            Event::Disk { node, run, .. }
            | Event::Digest { node, run, .. }
            | Event::Timer { node, run, .. }
            | Event::LinkUp { node, run, .. }
            | Event::LinkDown { node, run, .. }
            | Event::Frame { node, run, .. }
            | Event::Boot { node, run } => Some((node, run)),
            Event::Dial { .. } | Event::Restart { .. } | Event::Driver { .. } => None,
        }
    }
}

#[derive(Debug)]
struct Queued {
    at: u64,
    seq: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.seq) == (other.at, other.seq)
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

/// How a front-end request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The core answered.
    Done(Result<(), IoError>),
    /// The node died first.
    Lost,
}

/// The world.
#[derive(Debug)]
pub struct World {
    /// The seed, for reports.
    pub seed: u64,
    /// What kind of run it is, for reports.
    pub label: String,
    /// Virtual nanoseconds since the begin.
    pub now: u64,
    /// Nodes by index.
    pub nodes: Vec<Node>,
    /// Network.
    pub net: Net,
    /// What may be read.
    pub model: Model,
    /// Checks that span nodes.
    pub checks: Checks,
    /// What happened.
    pub trace: Trace,
    /// Outcomes of front-end requests.
    pub outcomes: BTreeMap<ReqId, Outcome>,
    /// Answers to admin commands.
    pub replies: BTreeMap<AdminTag, Result<(), AdminError>>,
    /// Driver events that fired and wait for the driver.
    pub driver: std::collections::VecDeque<u32>,
    /// Randomness of the network.
    pub net_rng: Stream,
    /// Randomness of the disks.
    pub disk_rng: Stream,
    /// Randomness of the faults.
    pub fault_rng: Stream,
    /// Events so far, and how many of them were inputs of a core.
    pub events: u64,
    /// See `events`.
    pub inputs: u64,
    pub(crate) make_core: MakeCore,
    pub(crate) next_id: u64,
    heap: BinaryHeap<Reverse<Queued>>,
    seq: u64,
    out: Outbox,
    timers_now: (u64, u32),
}

impl World {
    /// A world of these nodes, none of them started.
    pub fn new(seed: u64, nodes: Vec<Node>, net: Net, make_core: MakeCore, record: Record) -> World {
        World {
            seed,
            label: String::new(),
            now: 0,
            model: Model::new(nodes.len()),
            checks: Checks::default(),
            trace: Trace::new(record),
            nodes,
            net,
            outcomes: BTreeMap::new(),
            replies: BTreeMap::new(),
            driver: std::collections::VecDeque::new(),
            net_rng: Stream::new(seed, "network"),
            disk_rng: Stream::new(seed, "disk"),
            fault_rng: Stream::new(seed, "faults"),
            events: 0,
            inputs: 0,
            make_core,
            next_id: 0,
            heap: BinaryHeap::new(),
            seq: 0,
            out: Vec::new(),
            timers_now: (0, 0),
        }
    }

    /// A violation: the run ends here.
    pub fn fail(&mut self, check: Check, what: &str) -> ! {
        let now = self.now;
        self.trace.line(now, || format!("VIOLATION {what}"));
        panic!("[{}] seed {}, at {:.3} ms: {what}", check.name(), self.seed, now as f64 / 1e6)
    }

    /// Adds an event.
    pub fn at(&mut self, at: u64, event: Event) {
        self.seq += 1;
        self.heap.push(Reverse(Queued { at: at.max(self.now), seq: self.seq, event }));
    }

    /// A number that was not used before.
    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Handles the next event. `false`: there is none, or it lies behind `limit`; time stands at `limit` then.
    pub fn step(&mut self, limit: u64) -> bool {
        if self.heap.peek().is_none_or(|Reverse(q)| q.at > limit) {
            self.now = self.now.max(limit);
            return false;
        }
        let Reverse(Queued { at, event, .. }) = self.heap.pop().expect("peeked above");
        self.now = at;
        self.events += 1;
        self.trace.add(at);
        self.dispatch(event);
        true
    }

    pub(crate) fn dispatch(&mut self, event: Event) {
        if let Some((node, run)) = event.target() {
            let n = &mut self.nodes[node];
            if n.run != run || !n.is_up() {
                return;
            }
            if n.paused {
                n.deferred.push_back(event);
                return;
            }
        }
        match event {
            Event::Disk { node, volume, tag, .. } => self.disk_done(node, volume, tag),
            Event::Digest { node, tag, digest, .. } => {
                self.feed(node, Input::DigestDone { tag, digest: digest.as_slice() });
            }
            Event::Timer { node, at, .. } => self.timer(node, at),
            Event::LinkUp { node, link, .. } => self.link_up(node, link),
            Event::LinkDown { node, link, lost, .. } => self.link_down(node, link, lost),
            Event::Frame { node, stream, .. } => self.frame(node, stream),
            Event::Dial { a, b } => self.dial(a, b),
            Event::Boot { node, .. } => self.boot_step(node),
            Event::Restart { node } => self.start(node),
            Event::Driver { what } => self.driver.push_back(what),
        }
    }

    // ---- inputs ----------------------------------------------------------------------------------------------------

    /// Gives an input to a core and carries out what it wants.
    pub fn feed(&mut self, ix: NodeIx, input: Input<'_>) {
        let now = self.now;
        self.inputs += 1;
        self.trace.line(now, || format!("n{ix} <- {}", describe_input(&input)));
        let decides = crate::checks::may_decide(&input);
        if decides {
            self.refresh(ix);
        }
        let mut out = std::mem::take(&mut self.out);
        let node = &mut self.nodes[ix];
        let core = node.core.as_mut().expect("inputs go to nodes that are up");
        core.handle(Time(node.clock.local(now)), &mut node.rng, input, &mut out);
        core.check_invariants();
        let is_state = |a: &Action| matches!(a, Action::Event(e) if !matches!(e, CoreEvent::Notice { .. }));
        // What is completed below was completed in the state that the core is in now.
        let before = (decides || out.iter().any(is_state)).then(|| {
            let fresh = core.status();
            std::mem::replace(&mut node.status, fresh)
        });
        for action in out.drain(..) {
            self.trace.line(now, || format!("n{ix} -> {}", describe_action(&action)));
            self.carry_out(ix, action);
        }
        self.out = out;
        if let Some(before) = before {
            if decides {
                self.check_kept_bits(ix, &before);
            }
            self.observe(ix, &before);
        }
        self.arm_timer(ix);
    }

    pub(crate) fn arm_timer(&mut self, ix: NodeIx) {
        let node = &self.nodes[ix];
        let Some(core) = &node.core else { return };
        let Some(Time(deadline)) = core.deadline() else {
            return;
        };
        let at = node.clock.world(deadline).max(self.now);
        if node.timer_at.is_some_and(|t| t <= at && t > self.now) {
            return;
        }
        let run = node.run;
        self.nodes[ix].timer_at = Some(at);
        self.at(at, Event::Timer { node: ix, run, at });
    }

    fn timer(&mut self, ix: NodeIx, at: u64) {
        if self.nodes[ix].timer_at != Some(at) {
            return;
        }
        self.nodes[ix].timer_at = None;
        let node = &self.nodes[ix];
        let due = node.core.as_ref().and_then(|c| c.deadline());
        if due.is_none_or(|Time(d)| d > node.clock.local(self.now)) {
            return self.arm_timer(ix);
        }
        self.timers_now = if self.timers_now.0 == self.now { (self.now, self.timers_now.1 + 1) } else { (self.now, 1) };
        if self.timers_now.1 > TIMERS_AT_ONE_INSTANT {
            self.fail(
                Check::Stuck,
                &format!("node {ix} wants a timer at {at} again and again: a timer input does not move its deadline"),
            );
        }
        self.feed(ix, Input::Timer);
    }

    fn disk_done(&mut self, ix: NodeIx, volume: VolumeNr, tag: DiskTag) {
        let node = &mut self.nodes[ix];
        let disk = node.disks.get_mut(&volume).expect("a command was given to it");
        let Done { cmd, result, tags, meta } = disk.complete(tag, &mut self.disk_rng);
        self.trace.add(tag.0 ^ u64::from(result.is_err()));
        if let Some(payload) = disk::read_target(&cmd) {
            node.pool.unpin(payload, result.is_ok().then_some(&tags[..]));
        }
        let buf = match &cmd {
            DiskCmd::ReadNew { .. } if result.is_ok() => Some(node.pool.give_to_core(tags)),
            _ => None,
        };
        let block = match cmd {
            DiskCmd::MetaWrite { block, .. } => Some(block),
            _ => None,
        };
        self.feed(ix, Input::DiskDone { tag, result, buf, meta: &meta, block });
    }

    fn dial(&mut self, a: NodeIx, b: NodeIx) {
        let up = self.nodes[a].is_up() && self.nodes[b].is_up();
        let free = self.net.live_link(a, b).is_none() && self.net.live_link(b, a).is_none();
        if !(up && free && self.net.can_connect(a, b)) {
            return;
        }
        let (id, link) = self.net.open(a, b, self.now, &mut self.net_rng);
        let ends = link.ends.clone();
        for end in ends {
            let run = self.nodes[end.node].run;
            self.at(end.up_at, Event::LinkUp { node: end.node, run, link: id });
        }
    }

    fn link_up(&mut self, ix: NodeIx, id: u64) {
        let Some(link) = self.net.link_mut(id) else {
            return;
        };
        let side = link.side_of(ix).expect("an end of this link");
        if link.ends[side].state != EndState::Coming {
            return;
        }
        link.ends[side].state = EndState::Up;
        let peer = node_id(link.ends[1 - side].node);
        self.feed(ix, Input::LinkUp { peer, link: LinkId(id), resolve_conflicts: side == 1 });
    }

    fn link_down(&mut self, ix: NodeIx, id: u64, lost: LinkLost) {
        let Some(link) = self.net.link(id) else {
            return;
        };
        let side = link.side_of(ix).expect("an end of this link");
        let (peer, state) = (link.ends[1 - side].node, link.ends[side].state);
        match state {
            EndState::Closed => return,
            // The end never learned of the link, so it still wants one.
            EndState::Coming => {
                self.close_end(id, ix);
                self.net.set_want(ix, peer, true);
                self.dial_soon(ix, peer);
                return;
            }
            EndState::Up => {}
        }
        self.close_end(id, ix);
        self.feed(ix, Input::LinkDown { peer: node_id(peer), link: LinkId(id), lost });
    }

    /// Closes an end; the way may be free now for a new link.
    pub(crate) fn close_end(&mut self, id: u64, ix: NodeIx) {
        let peer = self.net.link(id).and_then(|l| l.peer_of(ix));
        self.net.close_end(id, ix);
        if let Some(peer) = peer {
            self.dial_soon(ix, peer);
        }
    }

    /// Two nodes may be able to connect in a while.
    pub(crate) fn dial_soon(&mut self, a: NodeIx, b: NodeIx) {
        let delay = self.net_rng.delay_ns(self.net.params.dial_ns);
        self.at(self.now + delay, Event::Dial { a, b });
    }

    fn frame(&mut self, ix: NodeIx, stream: StreamId) {
        let (id, side, nr) = stream;
        let frame = match self.net.arrive(stream) {
            Arrival::Frame(frame) => frame,
            Arrival::Nothing => return,
            Arrival::Part { bytes } => {
                let link = self.net.link(id).expect("it gave a part");
                return codec::decode_part(&link.ends[1 - side].negotiated, nr, &bytes);
            }
        };
        let (bytes, tags) = match frame {
            // As in a real link: what was sent on the data stream before the end is seen.
            Frame::Eof if nr == 0 => return self.link_down(ix, id, LinkLost::Closed),
            Frame::Eof => return,
            Frame::Packet { bytes, tags } => (bytes, tags),
        };
        self.trace.add_bytes(&bytes);
        let link = self.net.link(id).expect("it gave a frame");
        let (from, negotiated) = (link.ends[side].node, link.ends[1 - side].negotiated);
        let payload_len = tags.as_ref().map_or(0, |t| t.len() * 512);
        let decoded = match codec::decode(&negotiated, nr, &bytes, payload_len) {
            Ok(decoded) => decoded,
            Err(error) => {
                self.fail(Check::Protocol, &format!("node {ix} cannot decode what node {from} sent: {error}"))
            }
        };
        let codec::Decoded { volume, packet, digest } = decoded;
        if let (Some(alg), Some(tags)) = (negotiated.integrity_alg, &tags)
            && digest != Some(codec::digest(alg, tags))
        {
            let why = format!("the digest of {} is another", packet.name());
            return self.link_down(ix, id, LinkLost::Protocol(why));
        }
        let payload = tags.map(|tags| {
            let len = payload_len as u32;
            Payload { buf: self.nodes[ix].pool.give_to_core(tags), offset: 0, len }
        });
        self.checks.two_phase.delivered(ix, from, &packet);
        self.feed(ix, Input::Packet { peer: node_id(from), link: LinkId(id), volume, packet, payload });
    }

    /// Gives an admin command to a node.
    pub fn admin(&mut self, ix: NodeIx, command: Command) -> AdminTag {
        let tag = AdminTag(self.fresh_id());
        let node = &mut self.nodes[ix];
        node.admin.insert(tag);
        if let Command::Attach { volume, .. } = command {
            node.attached.insert(volume);
        }
        self.feed(ix, Input::Admin { tag, command });
        tag
    }

    /// Starts a node that is down.
    pub fn start(&mut self, ix: NodeIx) {
        if self.nodes[ix].is_up() {
            return;
        }
        let now = self.now;
        self.trace.line(now, || format!("n{ix} starts"));
        let node = &mut self.nodes[ix];
        node.core = Some((self.make_core)(node.saved.resource.clone()));
        node.boot = node.boot_commands();
        node.boot_errors.clear();
        self.reset_links_to_former_runs(ix);
        self.boot_step(ix);
    }

    fn boot_step(&mut self, ix: NodeIx) {
        while self.nodes[ix].boot_waits.is_none() {
            let Some(command) = self.nodes[ix].boot.pop_front() else {
                return;
            };
            // The answer may come at once, so the tag has to be known before the command is given.
            self.nodes[ix].boot_waits = Some(AdminTag(self.next_id + 1));
            self.admin(ix, command);
        }
    }
}

/// The node id of an index.
pub fn node_id(ix: NodeIx) -> NodeId {
    NodeId::new(ix as u8).expect("worlds have at most 32 nodes")
}
