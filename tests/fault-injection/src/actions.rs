//! What cores want done: links, packets, disk commands, completions, answers.

use zea_core::event::Event as CoreEvent;
use zea_core::io::{Action, AdminError, AdminTag, BufId, DigestTag, DiskCmd, DiskTag, IoError, LinkId, Payload, ReqId};
use zea_wire::digest::DigestAlg;
use zea_wire::ids::VolumeNr;
use zea_wire::state::DiskState;

use crate::checks::Check;
use crate::codec;
use crate::disk;
use crate::net::{EndState, Frame, NodeIx};
use crate::node::Purpose;
use crate::world::{Event, Outcome, World};

/// Time that a digest takes.
const DIGEST_NS: u64 = 5_000;

impl World {
    pub(crate) fn carry_out(&mut self, ix: NodeIx, action: Action) {
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
            Action::Digest { tag, alg, payload } => self.digest(ix, tag, alg, payload),
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
        let peer = link.ends[1 - side].node;
        let bytes = codec::encode(&link.ends[side].negotiated, volume, packet, tags.as_deref());
        match self.checks.two_phase.sent(ix, peer, packet) {
            Ok(None) => {}
            Ok(Some((change, commits))) => self.checks.coverage.decided(change, commits),
            Err(error) => self.fail(Check::TwoPhase, &error),
        }
        self.check_verdict(ix, peer, volume, packet, id);
        self.send_frame(ix, id, codec::stream_index(packet), Frame::Packet { bytes, tags });
    }

    fn send_frame(&mut self, ix: NodeIx, id: u64, stream: usize, frame: Frame) {
        let Some(arrivals) = self.net.send(id, ix, stream, frame, self.now, &mut self.net_rng) else {
            return;
        };
        let Some(peer) = self.net.link(id).and_then(|l| l.peer_of(ix)) else {
            return;
        };
        let run = self.nodes[peer].run;
        for at in arrivals.times() {
            self.at(*at, Event::Frame { node: peer, run, stream: arrivals.stream });
        }
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

    /// What a digest stands for here: the tags of the sectors.
    fn digest(&mut self, ix: NodeIx, tag: DigestTag, alg: DigestAlg, payload: Payload) {
        let digest = codec::digest(alg, &self.nodes[ix].pool.read(payload));
        let run = self.nodes[ix].run;
        self.at(self.now + DIGEST_NS, Event::Digest { node: ix, run, tag, digest });
    }

    fn complete(&mut self, ix: NodeIx, req: ReqId, result: Result<(), IoError>) {
        self.trace.add(req.0 ^ u64::from(result.is_err()) << 63);
        let Some(pending) = self.nodes[ix].requests.remove(&req) else {
            self.fail(Check::Core, &format!("node {ix} completes request {} that is not in flight", req.0))
        };
        let tags = pending.buf.map(|buf: BufId| self.nodes[ix].pool.finish_request(buf, req));
        self.outcomes.insert(req, Outcome::Done(result));
        let volume = pending.request.volume;
        match (pending.purpose, result) {
            (Purpose::Read(ticket), Ok(())) => {
                let tags = tags.expect("a read has a buffer");
                let own_disk = self.nodes[ix].disk_state(volume) == DiskState::UpToDate;
                if let Err(error) = self.model.read_ended(&ticket, &tags, own_disk) {
                    self.fail(Check::Read, &error);
                }
            }
            (Purpose::Write(write), Ok(())) => {
                self.check_quorum(ix, volume, pending.since);
                let holders = self.holders(ix, volume, false);
                let stable = if pending.request.fua { self.holders(ix, volume, true) } else { Vec::new() };
                if self.in_sync_without_waiting(ix, volume) {
                    self.model.write_is_weak(write);
                }
                if !holders.contains(&ix) {
                    self.model.write_is_at(write, &self.good_replicas(ix, volume));
                }
                self.model.write_acked(write, &holders, &stable);
            }
            (Purpose::Write(write), Err(_)) => self.model.write_unknown(write),
            (Purpose::Flush(ticket), Ok(())) => {
                let nodes = self.holders(ix, volume, true);
                self.model.flush_acked(ticket, ix, volume.0, &nodes);
            }
            (Purpose::Flush(ticket), Err(_)) => self.model.flush_failed(ticket, ix, volume.0),
            (Purpose::Read(_), Err(_)) => {}
        }
    }

    fn note_event(&mut self, ix: NodeIx, event: CoreEvent) {
        if let CoreEvent::Notice { text, .. } = event {
            if text.contains("ProtocolError") && !self.checks.protocol_errors_expected {
                self.fail(Check::Protocol, &format!("node {ix} accuses its peer, which runs the same code: {text}"));
            }
            self.check_refusal(ix, &text);
            self.check_no_split_brain(ix, &text);
            self.excuse_victim(&text);
            if !self.speaks_84()
                && let Err(step) = self.checks.coverage.compared(&text)
            {
                self.fail(Check::Transition, &format!("node {ix} compares by no known rule: {step}"));
            }
            let notices = &mut self.nodes[ix].notices;
            if notices.len() == 64 {
                notices.pop_front();
            }
            notices.push_back(text);
        }
    }

    /// A policy gives up what a node wrote: the next resync towards it may throw acknowledged writes away.
    fn excuse_victim(&mut self, text: &str) {
        let Some((start, end)) = text.split_once(": split brain with node ") else { return };
        let volume = start.strip_prefix("volume ").expect("it names the volume");
        let victim =
            end.split_once("what node ").and_then(|(_, rest)| rest.split_once(' ')).expect("it names the node").0;
        let number = |text: &str| text.parse().expect("a number");
        self.model.forgive_volume(usize::from(number(victim)), number(volume));
    }

    fn reply(&mut self, ix: NodeIx, tag: AdminTag, result: Result<(), AdminError>) {
        let node = &mut self.nodes[ix];
        if !node.admin.remove(&tag) {
            self.fail(Check::Core, &format!("node {ix} answers admin command {} that does not wait", tag.0));
        }
        node.forcing &= !node.admin.is_empty();
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
