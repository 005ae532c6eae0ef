//! Plays the other nodes of a recording against Zea's core.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use zea_core::io::{self, LinkId, Op};
use zea_core::limits::PROTOCOL_MAX;
use zea_wire::auth::{self, HmacAlg};
use zea_wire::features::{Features, Negotiated};
use zea_wire::flags::{DpFlags, UuidFlags};
use zea_wire::ids::{NodeId, VolumeNr};
use zea_wire::packet::{AuthResponse, BarrierAck, Packet, rule};
use zea_wire::state::{ConnState, ReplState, Role, StateBits};

use crate::commands::{Done, Io, Nanos};
use crate::compare::{Comparison, Difference, Kind};
use crate::names::with_block_id;
use crate::node::{DiskSize, Node, Outgoing};
use crate::recording::{Question, Recording, Sent, in_causal_order, written_tags};

/// Clocks of nodes and capture agree to about this.
const CLOCKS_NS: Nanos = 15_000_000;
/// A packet needs about this long from its node to the bridge where it was recorded.
const TO_THE_BRIDGE_NS: Nanos = 250_000;
/// A disk that was recorded has whole MiB, its meta data for 3 peers at the end.
const MIB: u64 = 2048;

/// A target asks for flushes when it enables replication (wire-protocol.md 11.2).
const FLUSHES: Features = Features::RESYNC_WITHOUT_REPLICATION;

/// What happens next in a recording, from one node's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Something was done on a node.
    Command(usize),
    /// A link came up.
    Up(usize),
    /// The packet at this place of the order was sent by the node, or to it.
    Packet(usize),
}

/// What the peer owes Zea for its epochs on one link.
#[derive(Debug, Default)]
struct Epochs {
    /// Writes that Zea sent, since the last barrier and in all.
    open: u64,
    sent: u64,
    /// Barriers of Zea that are not acked, with their number of writes, and of writes up to there.
    barriers: VecDeque<(u32, u64, u64)>,
    /// Writes that the recorded peer has confirmed by barrier acks.
    confirmed: u64,
}

/// A link of Zea that stands for one of the recording.
#[derive(Debug)]
struct Live {
    /// Its index in the recording.
    index: usize,
    link: LinkId,
    epochs: Epochs,
    challenge: Option<Box<[u8; 64]>>,
}

/// Zea in the place of one node.
#[derive(Debug)]
pub struct Replay<'a> {
    recording: &'a Recording,
    name: &'a str,
    id: NodeId,
    node: Node<'a>,
    order: Vec<usize>,
    /// For packets to the node that answer one of its own: which.
    origins: BTreeMap<usize, usize>,
    live: BTreeMap<NodeId, Live>,
    /// Nodes whose cable is pulled, and nodes that are dead.
    cut: BTreeSet<NodeId>,
    dead: BTreeSet<NodeId>,
    /// Whose configuration counts here: a node's, or the tag of a later one.
    configured: &'a str,
    comparison: Comparison<'a>,
    /// The frame that the replay has come to.
    frame: u64,
    log: Option<Vec<String>>,
}

/// What a replay shows.
#[derive(Debug)]
pub struct Replayed {
    /// Where Zea differs, in the order of the frames.
    pub differences: Vec<Difference>,
    /// What happened, line by line, if that was wanted.
    pub log: Vec<String>,
}

/// Plays `recording` with Zea in the place of `node`.
///
/// # Panics
/// There is no such node, or the core broke one of its own rules.
pub fn replay(recording: &Recording, node: &str, log: bool) -> Replayed {
    let mut replay = Replay::new(recording, node, log);
    replay.run();
    Replayed { differences: replay.comparison.differences, log: replay.log.unwrap_or_default() }
}

impl<'a> Replay<'a> {
    fn new(recording: &'a Recording, name: &str, log: bool) -> Replay<'a> {
        let (name, &id) = recording.nodes.get_key_value(name).expect("a node of the recording");
        let mine: Vec<usize> = (0..recording.sent.len())
            .filter(|i| [recording.sent[*i].from, recording.sent[*i].to].contains(&id))
            .collect();
        let packets: Vec<&Sent> = mine.iter().map(|i| &recording.sent[*i]).collect();
        let order: Vec<usize> = in_causal_order(&packets).into_iter().map(|i| mine[i]).collect();
        let peers = recording.configuration(name).nodes.iter().map(|n| n.id).filter(|n| *n != id).collect();
        let expected = order.iter().copied().filter(|i| recording.sent[*i].from == id);
        let offered = offered(recording, name, id);
        let expected = expected.filter(|i| zea_speaks(&recording.sent[*i], offered));
        let comparison = Comparison::new(&recording.sent, peers, expected);
        let begin = recording.commands.first().map_or(0, |c| c.time);
        Replay {
            recording,
            name,
            id,
            node: Node::new(id, disk_size(recording), protocol_max(recording, id), &recording.contents, begin),
            origins: origins(recording, &order, id),
            order,
            live: BTreeMap::new(),
            cut: BTreeSet::new(),
            dead: BTreeSet::new(),
            configured: name,
            comparison,
            frame: 0,
            log: log.then(Vec::new),
        }
    }

    fn say(&mut self, text: impl FnOnce() -> String) {
        if let Some(log) = self.log.as_mut() {
            let line = text();
            log.push(line);
        }
    }

    fn stuck(&mut self, why: String) {
        self.comparison.differ(self.frame, "", Kind::Stuck(why));
    }

    fn run(&mut self) {
        for (time, step) in self.steps() {
            self.advance(time);
            match step {
                Step::Command(index) => self.command(index),
                Step::Up(link) => self.link_up(link),
                Step::Packet(place) => self.packet(place),
            }
            self.settle();
        }
        self.comparison.finish();
    }

    /// Everything that happens, in order of time; packets in their causal order. It ends with the last packet: what was done after
    /// it shows nowhere.
    fn steps(&self) -> Vec<(Nanos, Step)> {
        let mut steps: Vec<(Nanos, Step)> = Vec::new();
        let mut commands: VecDeque<(Nanos, usize)> = self.command_times();
        let mut seen = BTreeSet::new();
        let mut now = 0;
        for (place, index) in self.order.iter().enumerate() {
            let sent = &self.recording.sent[*index];
            now = now.max(sent.time);
            while let Some((time, command)) = commands.pop_front_if(|(time, _)| *time <= now) {
                steps.push((time, Step::Command(command)));
            }
            if seen.insert(sent.link) {
                steps.push((now, Step::Up(sent.link)));
            }
            steps.push((now, Step::Packet(place)));
        }
        steps
    }

    /// When each command takes effect: when it shows as a packet, else at its end.
    fn command_times(&self) -> VecDeque<(Nanos, usize)> {
        let mut used = BTreeSet::new();
        let mut times: Vec<(Nanos, usize)> = Vec::new();
        for (i, command) in self.recording.commands.iter().enumerate() {
            let during = command.time..command.end + CLOCKS_NS;
            let shown = self.order.iter().map(|index| (index, &self.recording.sent[*index])).find(|(index, s)| {
                let here = command.node == self.name && s.from == self.id && during.contains(&s.time);
                here && shows(&command.done, &s.packet) && !used.contains(*index)
            });
            let time = match (shown, &command.done) {
                (Some((index, sent)), _) => {
                    used.insert(*index);
                    let left = sent.time.saturating_sub(TO_THE_BRIDGE_NS);
                    self.crossed_by(sent).map_or(left, |crossing| left.min(crossing)).max(command.time)
                }
                (None, Done::Io(_) | Done::Disk(_)) => command.time,
                (None, _) => command.end,
            };
            times.push((time, i));
        }
        times.sort_unstable();
        times.into()
    }

    /// Two nodes of 8.4 that ask at once: who refuses because of that had asked before it was asked, though the bridge saw its request
    /// later. When it was asked.
    fn crossed_by(&self, request: &Sent) -> Option<Nanos> {
        const CONCURRENTLY: i32 = -19;
        let on_link = || self.order.iter().map(|i| &self.recording.sent[*i]).filter(|s| s.link == request.link);
        let before = request.time.saturating_sub(CLOCKS_NS)..request.time;
        let asks = |s: &&Sent| matches!(s.packet, Packet::ConnStChgReq(_) | Packet::StateChgReq(_));
        let asked =
            on_link().find(|s| s.to == self.id && asks(s) && before.contains(&s.time)).filter(|_| asks(&request))?;
        let answer = on_link().find_map(|s| match &s.packet {
            Packet::ConnStChgReply(r) | Packet::StateChgReply(r) if s.from == self.id && s.time >= asked.time => {
                Some(r.retcode)
            }
            _ => None,
        });
        (answer == Some(CONCURRENTLY)).then_some(asked.time)
    }

    // ---- time and what Zea does by itself ---------------------------------------------------------------------------

    fn advance(&mut self, time: Nanos) {
        while let Some(deadline) = self.node.deadline().filter(|t| *t <= time) {
            self.node.set_now(deadline);
            self.node.timer();
            self.settle();
        }
        self.node.set_now(time);
    }

    /// Looks at what Zea sent, and answers what the harness answers in the peer's place.
    fn settle(&mut self) {
        self.node.settle_disks();
        while let Some(outgoing) = self.node.sent() {
            self.look_at(outgoing);
        }
        let notices = std::mem::take(&mut self.node.notices);
        for notice in notices {
            self.say(|| format!("      | {notice}"));
        }
    }

    fn look_at(&mut self, outgoing: Outgoing) {
        let Outgoing { peer, link, neg, volume, packet, tags } = outgoing;
        self.say(|| format!("   => {peer} {} {}", packet.name(), crate::compare::describe(&packet, &neg)));
        let reachable = !self.cut.contains(&self.id);
        let answers = reachable && !self.cut.contains(&peer) && !self.dead.contains(&peer);
        let Some(live) = self.live.get_mut(&peer).filter(|live| live.link == link) else { return };
        let index = live.index;
        match &packet {
            Packet::AuthChallenge(c) => live.challenge = Some(c.challenge.clone()),
            Packet::Data(_) | Packet::Trim(_) | Packet::Zeroes(_) => {
                live.epochs.open += 1;
                live.epochs.sent += 1;
            }
            Packet::Barrier(b) => {
                let epochs = &mut live.epochs;
                epochs.barriers.push_back((b.barrier, std::mem::take(&mut epochs.open), epochs.sent));
            }
            _ => {}
        }
        if reachable {
            let now = self.node.now();
            self.comparison.sent(index, now, &neg, volume, &packet, tags.as_deref());
        }
        if matches!(packet, Packet::Ping) && answers {
            self.node.receive(peer, None, Packet::PingAck, None);
        }
        self.confirm_epochs(peer);
    }

    /// Acks the epochs of Zea whose writes the recorded peer has confirmed.
    fn confirm_epochs(&mut self, peer: NodeId) {
        while let Some(live) = self.live.get_mut(&peer) {
            let epochs = &mut live.epochs;
            if epochs.barriers.front().is_none_or(|(_, _, upto)| *upto > epochs.confirmed) {
                return;
            }
            let (barrier, writes, _) = epochs.barriers.pop_front().expect("looked at above");
            let ack = BarrierAck { barrier, set_size: writes as u32 };
            self.node.receive(peer, None, Packet::BarrierAck(ack), None);
        }
    }

    // ---- steps ------------------------------------------------------------------------------------------------------

    fn link_up(&mut self, index: usize) {
        let link = &self.recording.links[index];
        let peer = if link.opener == self.id { link.accepter } else { link.opener };
        let resolve_conflicts = link.accepter == self.id;
        self.dead.remove(&peer);
        self.node.link_down(peer);
        self.live.remove(&peer);
        self.settle();
        if !self.node.wants(peer) {
            let state = self.node.status().map(|s| s.connections);
            return self.stuck(format!("Zea does not want to connect to node {peer}: {state:?}"));
        }
        self.say(|| format!("----- link to {peer}"));
        // The link must be known before the first packet on it is looked at.
        let link = self.node.link_up(peer, resolve_conflicts);
        self.live.insert(peer, Live { index, link, epochs: Epochs::default(), challenge: None });
    }

    fn packet(&mut self, place: usize) {
        let index = self.order[place];
        let sent = &self.recording.sent[index];
        self.frame = sent.frame;
        if sent.from == self.id {
            self.say(|| format!("{:6} -> {} {} {}", sent.frame, sent.to, sent.packet.name(), text(sent)));
            self.front_end(index);
        } else {
            self.say(|| format!("{:6} <- {} {} {}", sent.frame, sent.from, sent.packet.name(), text(sent)));
            self.deliver(place);
        }
    }

    /// What the recorded node sent because of its front end, Zea's front end asks for at the same place.
    fn front_end(&mut self, index: usize) {
        if self.comparison.is_found(index) {
            return;
        }
        let sent = &self.recording.sent[index];
        let volume = sent.volume.unwrap_or_default();
        let fua = |flags: DpFlags| flags.contains(DpFlags::FUA);
        match &sent.packet {
            Packet::Data(d) => {
                let tags = sent.tags.clone().unwrap_or_default();
                let len = (tags.len() * 512) as u32;
                self.node.request(volume, Op::Write, d.sector, len, Some(tags), fua(d.dp_flags));
            }
            Packet::Trim(t) => self.node.request(volume, Op::Discard, t.sector, t.size, None, fua(t.dp_flags)),
            Packet::Zeroes(t) => {
                let unmap = t.dp_flags.contains(DpFlags::DISCARD);
                self.node.request(volume, Op::WriteZeroes { unmap }, t.sector, t.size, None, fua(t.dp_flags));
            }
            Packet::DataRequest(r) => self.node.request(volume, Op::Read, r.sector, r.blksize, None, false),
            _ => {}
        }
    }

    fn deliver(&mut self, place: usize) {
        let index = self.order[place];
        let sent = &self.recording.sent[index];
        let peer = sent.from;
        if self.cut.contains(&self.id) {
            return;
        }
        let Some(live) = self.live.get_mut(&peer).filter(|live| live.index == sent.link) else { return };
        let Some((_, neg)) = self.node.link(peer) else { return };
        let unasked = matches!(sent.packet, Packet::FlushRequestsAck(_)) && !neg.has(FLUSHES);
        if !is_legal(sent, &neg) || unasked || matches!(sent.packet, Packet::PingAck) {
            return;
        }
        if let Packet::BarrierAck(ack) = &sent.packet {
            live.epochs.confirmed += u64::from(ack.set_size);
            return self.confirm_epochs(peer);
        }
        self.comparison.delivering(sent.link, place, &self.order);
        let mut packet = self.comparison.names.delivered(&sent.packet);
        if let Some(origin) = self.origins.get(&index) {
            match self.comparison.block_ids.get(origin) {
                Some(id) => packet = with_block_id(&packet, *id),
                None => return self.stuck(format!("{} answers what Zea did not send", sent.packet.name())),
            }
        }
        if let (Packet::AuthResponse(_), Some(challenge)) = (&packet, self.live[&peer].challenge.as_ref()) {
            let net = self.recording.configuration(self.name).net_options();
            let alg = net.cram_hmac_alg.as_deref().and_then(HmacAlg::from_name);
            if let Some(alg) = alg {
                let response = auth::respond(alg, net.shared_secret.as_bytes(), challenge, Some(peer));
                packet = Packet::AuthResponse(AuthResponse { response });
            }
        }
        self.node.receive(peer, sent.volume, packet, sent.tags.clone());
        if self.node.link(peer).is_none() {
            self.say(|| format!("----- Zea has closed the link to {peer}"));
        }
    }

    fn command(&mut self, index: usize) {
        let command = &self.recording.commands[index];
        let here = command.node == self.name;
        let node = self.recording.nodes.get(&command.node).copied();
        self.say(|| format!("{:>6} {}: {:?}", if here { "####" } else { "" }, command.node, command.done));
        match (&command.done, node) {
            (Done::Cable(true), Some(node)) => {
                self.cut.insert(node);
            }
            (Done::Cable(false), Some(node)) => {
                self.cut.remove(&node);
            }
            (Done::Killed, Some(node)) if !here => {
                self.dead.insert(node);
            }
            _ if here => self.do_here(index),
            _ => {}
        }
    }

    fn do_here(&mut self, index: usize) {
        let command = &self.recording.commands[index];
        let configuration = self.recording.configuration(self.name);
        let peers = || configuration.nodes.iter().map(|n| n.id).filter(|n| *n != self.id).collect::<Vec<_>>();
        let volume = VolumeNr(0);
        match &command.done {
            Done::CreateMd(named) => self.node.create_md(named.unwrap_or(volume)),
            Done::Up => self.node.up(configuration),
            Done::Down => self.node.admin(io::Command::Down),
            Done::Promote { force } => self.node.admin(io::Command::Promote { force: *force }),
            Done::Demote => self.node.admin(io::Command::Demote),
            Done::Connect { discard_my_data } => {
                for peer in peers() {
                    self.node.admin(io::Command::Connect { peer, discard_my_data: *discard_my_data });
                }
            }
            Done::Disconnect => {
                for peer in peers() {
                    self.node.admin(io::Command::Disconnect { peer, force: false });
                }
            }
            Done::Verify { start_sector, stop_sector } => {
                for peer in peers() {
                    let (start_sector, stop_sector) = (*start_sector, *stop_sector);
                    self.node.admin(io::Command::Verify { peer, volume, start_sector, stop_sector });
                }
            }
            Done::Configured(tag) => self.configured = tag,
            Done::Resize { assume_clean } => {
                let size = self.recording.configuration(self.configured).nodes.iter().find(|n| n.id == self.id);
                let size = size.and_then(|n| n.volumes[&volume].size_sectors);
                let (size_sectors, assume_clean) = (size.expect("a size is configured"), *assume_clean);
                self.node.admin(io::Command::Resize { volume, size_sectors, assume_clean });
            }
            Done::PauseSync(paused) => {
                for peer in peers() {
                    self.node.admin(io::Command::PauseSync { peer, volume, paused: *paused });
                }
            }
            Done::Invalidate => self.node.admin(io::Command::Invalidate { volume }),
            Done::Detach => self.node.admin(io::Command::Detach { volume, force: false }),
            Done::Attach => self.node.attach(volume),
            Done::Io(Io::Flush) => self.node.request(volume, Op::Flush, 0, 0, None, false),
            Done::Io(Io::Write { offset, len, tag, fua }) => {
                if !self.shows_as_packet(index) {
                    let tags = written_tags(offset / 512, len / 512, tag);
                    self.node.request(volume, Op::Write, offset / 512, *len as u32, Some(tags), *fua);
                }
            }
            Done::Disk(Io::Write { offset, len, tag, .. }) => {
                // The disk may not have meta data yet.
                self.node.create_md_if_none(volume);
                self.node.preset(volume, offset / 512, &written_tags(offset / 512, len / 512, tag));
            }
            Done::Disk(Io::Flush) => {}
            Done::Killed => self.node.kill(),
            Done::Cable(_) => {}
            Done::NewCurrentUuid => self.node.admin(io::Command::NewCurrentUuid { volume }),
            Done::Unknown(_) => {
                self.stuck(format!("the core has no command for {:?}", command.done));
            }
        }
    }

    /// A write that the node sent to a peer is asked for where it was sent.
    fn shows_as_packet(&self, index: usize) -> bool {
        let command = &self.recording.commands[index];
        let Done::Io(Io::Write { offset, .. }) = &command.done else { return false };
        let first = offset / 512;
        let during = command.time.saturating_sub(CLOCKS_NS)..command.end + CLOCKS_NS;
        self.recording.sent.iter().filter(|s| s.from == self.id && during.contains(&s.time)).any(|s| match &s.packet {
            Packet::Data(d) => d.sector == first,
            Packet::Trim(t) | Packet::Zeroes(t) => t.sector == first,
            _ => false,
        })
    }
}

/// The disk of a node, from what the nodes tell of theirs.
fn disk_size(recording: &Recording) -> DiskSize {
    let told = recording.sent.iter().filter_map(|s| match &s.packet {
        Packet::Sizes(sizes) => Some(sizes.d_size),
        _ => None,
    });
    let usable = told.max().filter(|usable| *usable > 0).unwrap_or(16 * MIB);
    DiskSize { sectors: usable.next_multiple_of(MIB), max_peers: 3 }
}

/// Whether this packet is the first that a command causes.
fn shows(done: &Done, packet: &Packet) -> bool {
    let asked = match packet {
        Packet::TwopcPrepare(request) => request.body.mask_val(),
        Packet::StateChgReq(request) | Packet::ConnStChgReq(request) => Some((request.mask, request.val)),
        // Nobody is asked whether a node may be Secondary again: 8.4 tells.
        Packet::State(s) if *done == Done::Demote => Some((StateBits::ROLE, s.state)),
        _ => None,
    };
    let role = |role: Role| {
        asked.is_some_and(|(mask, val)| {
            mask.names(StateBits::ROLE) && !mask.names(StateBits::CONN) && val.role() == Some(role)
        })
    };
    let leaves = || {
        asked.is_some_and(|(mask, val)| {
            mask.names(StateBits::CONN) && val.conn().and_then(|c| c.conn_state()) == Some(ConnState::Disconnecting)
        })
    };
    let begins = |wanted| {
        let conn = |(_, val): (StateBits, StateBits)| val.conn().and_then(|conn| conn.repl_state());
        asked.and_then(conn) == Some(wanted)
    };
    match done {
        Done::Promote { .. } => role(Role::Primary),
        Done::Demote => role(Role::Secondary),
        Done::Disconnect => leaves(),
        Done::Down => leaves() || role(Role::Secondary),
        Done::Verify { .. } => begins(ReplState::VerifyS),
        Done::Invalidate => begins(ReplState::StartingSyncT),
        Done::Resize { .. } => matches!(packet, Packet::TwopcPrepRsz(_)),
        Done::NewCurrentUuid => match packet {
            Packet::Uuids110(u) => u.uuid_flags.contains(UuidFlags::SKIP_INITIAL_SYNC),
            Packet::Uuids(u) => u.uuid_flags.contains(UuidFlags::SKIP_INITIAL_SYNC),
            _ => false,
        },
        _ => false,
    }
}

fn text(sent: &Sent) -> String {
    crate::compare::describe(&sent.packet, &sent.neg)
}

/// Which packet of the node each packet to it answers, where the answer has a name that the node chose.
fn origins(recording: &Recording, order: &[usize], id: NodeId) -> BTreeMap<usize, usize> {
    let mut asked: BTreeMap<(usize, Question), usize> = BTreeMap::new();
    let mut origins = BTreeMap::new();
    for index in order {
        let sent = &recording.sent[*index];
        if sent.from == id {
            if let Some(question) = Question::asked_by(&sent.packet).filter(Question::names_a_block) {
                asked.insert((sent.link, question), *index);
            }
        } else if let Some(question) = Question::answered_by(&sent.packet)
            && let Some(origin) = asked.get(&(sent.link, question))
        {
            origins.insert(*index, *origin);
        }
    }
    origins
}

/// Whether Zea has the feature that this packet goes with.
fn zea_speaks(sent: &Sent, offered: Features) -> bool {
    let neg = Negotiated { features: sent.neg.features & offered, ..sent.neg };
    let goes_along = matches!(sent.packet, Packet::FlushRequests(_));
    (!goes_along || neg.has(FLUSHES)) && is_legal(sent, &neg)
}

fn is_legal(sent: &Sent, neg: &Negotiated) -> bool {
    rule(sent.packet.command()).is_some_and(|rule| rule.is_legal(neg))
}

/// Zea is as old as the node that it stands for: two peers agree on what the older one speaks.
fn protocol_max(recording: &Recording, id: NodeId) -> u32 {
    recording.protocol_max(id).map_or(PROTOCOL_MAX, |max| max.min(PROTOCOL_MAX))
}

/// What Zea offers: as its first packet says.
fn offered(recording: &Recording, name: &str, id: NodeId) -> Features {
    let mut node = Node::new(id, disk_size(recording), protocol_max(recording, id), &recording.contents, 0);
    node.create_md(VolumeNr(0));
    let configuration = recording.configuration(name);
    node.up(configuration);
    let peer = configuration.nodes.iter().map(|n| n.id).find(|n| *n != id).expect("a peer");
    node.link_up(peer, false);
    match node.sent().map(|outgoing| outgoing.packet) {
        Some(Packet::ConnectionFeatures(features)) => features.feature_flags,
        other => panic!("Zea begins with {other:?}"),
    }
}
