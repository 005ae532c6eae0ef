//! The world: virtual time, the event heap, and the way of inputs and actions between cores, disks, network and front ends.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use zea_core::io::{
    Action, AdminError, AdminTag, BufId, Command, DiskCmd, DiskTag, Input, IoError, LinkId, LinkLost, Outbox, Payload,
    ReqId, Time,
};
use zea_wire::ids::{NodeId, VolumeNr};

use crate::checks::Checks;
use crate::codec;
use crate::disk::{self, Done};
use crate::model::Model;
use crate::net::{Arrival, EndState, Frame, Net, NodeIx, StreamId};
use crate::node::{MakeCore, Node, Purpose};
use crate::rng::Stream;
use crate::trace::{Record, Trace};

/// More timer inputs than this at one instant are a livelock.
const TIMERS_AT_ONE_INSTANT: u32 = 1000;

/// Something that will happen.
#[derive(Debug, Clone)]
pub enum Event {
    /// A disk command ends.
    Disk { node: NodeIx, run: u32, volume: VolumeNr, tag: DiskTag },
    /// The deadline of a core.
    Timer { node: NodeIx, run: u32, at: u64 },
    /// Both ends of a new link.
    LinkUp { node: NodeIx, run: u32, link: u64 },
    /// A link is lost.
    LinkDown { node: NodeIx, run: u32, link: u64, lost: LinkLost },
    /// The next frame of a stream arrives at this node.
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
    /// Events so far.
    pub events: u64,
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
            make_core,
            next_id: 0,
            heap: BinaryHeap::new(),
            seq: 0,
            out: Vec::new(),
            timers_now: (0, 0),
        }
    }

    /// A violation: the run ends here.
    pub fn fail(&mut self, what: &str) -> ! {
        let now = self.now;
        self.trace.line(now, || format!("VIOLATION {what}"));
        panic!("seed {}, at {:.3} ms: {what}", self.seed, now as f64 / 1e6)
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
        self.trace.line(now, || format!("n{ix} <- {}", describe_input(&input)));
        let mut out = std::mem::take(&mut self.out);
        let node = &mut self.nodes[ix];
        let core = node.core.as_mut().expect("inputs go to nodes that are up");
        core.handle(Time(now), &mut node.rng, input, &mut out);
        core.check_invariants();
        let mut state_changed = false;
        for action in out.drain(..) {
            self.trace.line(now, || format!("n{ix} -> {}", describe_action(&action)));
            state_changed |= matches!(&action, Action::Event(e) if !matches!(e, zea_core::event::Event::Notice { .. }));
            self.carry_out(ix, action);
        }
        self.out = out;
        if state_changed {
            self.observe(ix);
        }
        self.arm_timer(ix);
    }

    fn arm_timer(&mut self, ix: NodeIx) {
        let node = &self.nodes[ix];
        let Some(core) = &node.core else { return };
        let Some(Time(deadline)) = core.deadline() else {
            return;
        };
        let at = deadline.max(self.now);
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
        let due = self.nodes[ix].core.as_ref().and_then(|c| c.deadline());
        if due.is_none_or(|Time(d)| d > self.now) {
            return self.arm_timer(ix);
        }
        self.timers_now = if self.timers_now.0 == self.now { (self.now, self.timers_now.1 + 1) } else { (self.now, 1) };
        if self.timers_now.1 > TIMERS_AT_ONE_INSTANT {
            self.fail(&format!(
                "node {ix} wants a timer at {at} again and again: a timer input does not move its deadline"
            ));
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
        let frame = match self.net.arrive(stream) {
            Arrival::Frame(frame) => frame,
            Arrival::Nothing => return,
        };
        let (id, side, nr) = stream;
        let (bytes, tags) = match frame {
            Frame::Eof => return self.link_down(ix, id, LinkLost::Closed),
            Frame::Packet { bytes, tags } => (bytes, tags),
        };
        self.trace.add_bytes(&bytes);
        let link = self.net.link(id).expect("it gave a frame");
        let (from, negotiated) = (link.ends[side].node, link.ends[1 - side].negotiated);
        let payload_len = tags.as_ref().map_or(0, |t| t.len() * 512);
        let decoded = match codec::decode(&negotiated, nr, &bytes, payload_len) {
            Ok(decoded) => decoded,
            Err(error) => self.fail(&format!("node {ix} cannot decode what node {from} sent: {error}")),
        };
        let payload = tags.map(|tags| {
            let len = payload_len as u32;
            Payload { buf: self.nodes[ix].pool.give_to_core(tags), offset: 0, len }
        });
        let codec::Decoded { volume, packet } = decoded;
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

    // ---- actions ---------------------------------------------------------------------------------------------------

    fn carry_out(&mut self, ix: NodeIx, action: Action) {
        match action {
            Action::Connect { peer } => {
                let peer = peer.index();
                self.net.set_want(ix, peer, true);
                self.dial_soon(ix, peer);
            }
            Action::Disconnect { peer } => self.disconnect(ix, peer.index()),
            Action::SetNegotiated { link: LinkId(id), negotiated, .. } => {
                if let Some(link) = self.net.link_mut(id)
                    && let Some(side) = link.side_of(ix)
                {
                    link.ends[side].negotiated = negotiated;
                }
            }
            Action::Send { link: LinkId(id), volume, packet, payload, .. } => {
                self.send(ix, id, volume, &packet, payload)
            }
            Action::Disk { tag, volume, cmd } => self.disk_submit(ix, volume, tag, cmd),
            Action::CloseDisk { volume } => {
                let node = &mut self.nodes[ix];
                assert!(
                    !node.disks[&volume].busy(),
                    "CloseDisk while commands are in flight: {}",
                    node.disks[&volume].describe_in_flight()
                );
                assert!(node.attached.remove(&volume), "CloseDisk of a volume that is not open");
            }
            Action::Complete { req, result } => self.complete(ix, req, result),
            Action::Copy { from, to } => self.nodes[ix].pool.copy(from, to),
            Action::FreeBuf(buf) => self.nodes[ix].pool.free(buf),
            Action::Event(event) => self.note_event(ix, event),
            Action::Reply { tag, result } => self.reply(ix, tag, result),
        }
    }

    fn disconnect(&mut self, ix: NodeIx, peer: NodeIx) {
        self.net.set_want(ix, peer, false);
        let Some(id) = self.net.live_link(ix, peer) else {
            return;
        };
        for stream in 0..2 {
            self.send_frame(ix, id, stream, Frame::Eof);
        }
        self.close_end(id, ix);
    }

    fn send(
        &mut self,
        ix: NodeIx,
        id: u64,
        volume: Option<VolumeNr>,
        packet: &zea_wire::packet::Packet,
        payload: Option<Payload>,
    ) {
        let tags = payload.map(|p| self.nodes[ix].pool.read(p));
        let Some(link) = self.net.link(id) else {
            return;
        };
        let Some(side) = link.side_of(ix) else { return };
        if link.ends[side].state != EndState::Up {
            return;
        }
        let bytes = codec::encode(&link.ends[side].negotiated, volume, packet, payload);
        self.send_frame(ix, id, codec::stream_index(packet), Frame::Packet { bytes, tags });
    }

    fn send_frame(&mut self, ix: NodeIx, id: u64, stream: usize, frame: Frame) {
        let Some((stream, at)) = self.net.send(id, ix, stream, frame, self.now, &mut self.net_rng) else {
            return;
        };
        let Some(peer) = self.net.link(id).and_then(|l| l.peer_of(ix)) else {
            return;
        };
        let run = self.nodes[peer].run;
        self.at(at, Event::Frame { node: peer, run, stream });
    }

    fn disk_submit(&mut self, ix: NodeIx, volume: VolumeNr, tag: DiskTag, cmd: DiskCmd) {
        let node = &mut self.nodes[ix];
        assert!(
            node.attached.contains(&volume),
            "node {ix}: a command for a disk that is not open: {}",
            disk::summary(&cmd)
        );
        let tags = match cmd {
            DiskCmd::Write { payload, .. } => node.pool.read(payload),
            DiskCmd::Read { payload, .. } => {
                node.pool.pin(payload);
                Vec::new()
            }
            _ => Vec::new(),
        };
        let latency = node.disks.get_mut(&volume).expect("it is attached").submit(tag, cmd, tags, &mut self.disk_rng);
        let run = node.run;
        self.at(self.now + latency, Event::Disk { node: ix, run, volume, tag });
    }

    fn complete(&mut self, ix: NodeIx, req: ReqId, result: Result<(), IoError>) {
        self.trace.add(req.0 ^ u64::from(result.is_err()) << 63);
        let Some(pending) = self.nodes[ix].requests.remove(&req) else {
            self.fail(&format!("node {ix} completes request {} that is not in flight", req.0))
        };
        let tags = pending.buf.map(|buf: BufId| self.nodes[ix].pool.finish_request(buf, req));
        self.outcomes.insert(req, Outcome::Done(result));
        let volume = pending.request.volume;
        match (pending.purpose, result) {
            (Purpose::Read(ticket), Ok(())) => {
                let tags = tags.expect("a read has a buffer");
                if let Err(error) = self.model.read_ended(&ticket, &tags) {
                    self.fail(&error);
                }
            }
            (Purpose::Write(write), Ok(())) => {
                let holders = self.holders(ix, volume, false);
                let stable = if pending.request.fua { self.holders(ix, volume, true) } else { Vec::new() };
                self.model.write_acked(write, &holders, &stable);
                if self.in_sync_without_waiting(ix, volume) {
                    self.model.write_is_weak(write);
                }
            }
            (Purpose::Write(write), Err(_)) => self.model.write_unknown(write),
            (Purpose::Flush(ticket), Ok(())) => {
                let nodes = self.holders(ix, volume, true);
                self.model.flush_acked(ticket, volume.0, &nodes);
            }
            (Purpose::Read(_) | Purpose::Flush(_), Err(_)) => {}
        }
    }

    fn note_event(&mut self, ix: NodeIx, event: zea_core::event::Event) {
        if let zea_core::event::Event::Notice { text, .. } = event {
            if text.contains("ProtocolError") && !self.checks.protocol_errors_expected {
                self.fail(&format!("node {ix} accuses its peer, which runs the same code: {text}"));
            }
            let notices = &mut self.nodes[ix].notices;
            if notices.len() == 64 {
                notices.pop_front();
            }
            notices.push_back(text);
        }
    }

    fn reply(&mut self, ix: NodeIx, tag: AdminTag, result: Result<(), AdminError>) {
        let node = &mut self.nodes[ix];
        if !node.admin.remove(&tag) {
            self.fail(&format!("node {ix} answers admin command {} that does not wait", tag.0));
        }
        if node.boot_waits == Some(tag) {
            node.boot_waits = None;
            if let Err(error) = &result {
                node.boot_errors.push(error.message.clone());
            }
            let run = node.run;
            self.at(self.now, Event::Boot { node: ix, run });
        }
        self.replies.insert(tag, result);
    }
}

/// The node id of an index.
pub fn node_id(ix: NodeIx) -> NodeId {
    NodeId::new(ix as u8).expect("worlds have at most 32 nodes")
}

fn describe_input(input: &Input<'_>) -> String {
    match input {
        Input::DiskDone { tag, result, buf, meta, .. } => {
            format!("DiskDone {} {result:?} buf {:?} meta {} bytes", tag.0, buf.map(|b| b.0), meta.len())
        }
        Input::Packet { peer, volume, packet, payload, .. } => {
            format!("n{peer} vol {:?} {packet:?} payload {:?}", volume.map(|v| v.0), payload.map(|p| p.len))
        }
        other => format!("{other:?}"),
    }
}

fn describe_action(action: &Action) -> String {
    match action {
        Action::Disk { tag, volume, cmd } => {
            format!("Disk {} vol {volume} {}", tag.0, disk::summary(cmd))
        }
        Action::Send { peer, volume, packet, payload, .. } => {
            format!("n{peer} vol {:?} {packet:?} payload {:?}", volume.map(|v| v.0), payload.map(|p| p.len))
        }
        other => format!("{other:?}"),
    }
}
