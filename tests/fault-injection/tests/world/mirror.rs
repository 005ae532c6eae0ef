//! A core that does next to nothing: it mirrors writes to its peers and keeps bits for those it cannot reach. It exists to
//! show that the world and its checkers work, so it can be broken on purpose.

use std::collections::{BTreeMap, BTreeSet};

use zea_core::config::{PeerConfig, ResourceConfig};
use zea_core::event::{ConnectionStatus, DeviceStatus, Event, PeerDeviceStatus, Status};
use zea_core::io::{
    Action, BufId, Command, DiskCmd, DiskTag, Input, LinkId, Op, Outbox, Payload, ReqId, Request, Rng, Time,
};
use zea_sim::node::Core;
use zea_wire::features::{Features, Negotiated};
use zea_wire::flags::DpFlags;
use zea_wire::ids::{BlockId, NodeId, VolumeNr};
use zea_wire::packet::{BlockAck, Data, Packet};
use zea_wire::state::{ConnState, DiskState, ReplState, Role};

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// Nothing.
    None,
    /// Completes writes when the local disk has them, without waiting for the peers.
    AckEarly,
    /// Does not mark what a lost peer lacks.
    SkipBits,
    /// Never gives a received buffer back.
    Leak,
    /// Writes what a peer sent one sector too far.
    WrongSector,
    /// Completes a flush without flushing.
    SkipFlush,
    /// Becomes Primary without asking.
    TwoPrimaries,
    /// Forgets what it was asked.
    LoseRequests,
}

#[derive(Debug)]
enum Job {
    Local(ReqId),
    Peer(NodeId, LinkId, Data, u32, BufId),
}

#[derive(Debug)]
struct Waiting {
    request: Request,
    local: bool,
    peers: BTreeSet<NodeId>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Mirror {
    mutation: Mutation,
    config: ResourceConfig,
    role: Role,
    peers: BTreeMap<NodeId, (PeerConfig, Option<LinkId>)>,
    size_sectors: u64,
    attached: bool,
    jobs: BTreeMap<DiskTag, Job>,
    next_tag: u64,
    waiting: BTreeMap<ReqId, Waiting>,
    bits: BTreeSet<(NodeId, u64)>,
}

/// A mirror that is broken in one way.
pub(crate) fn mirror(mutation: Mutation, config: ResourceConfig) -> Box<dyn Core> {
    Box::new(Mirror {
        mutation,
        config,
        role: Role::Secondary,
        peers: BTreeMap::new(),
        size_sectors: 0,
        attached: false,
        jobs: BTreeMap::new(),
        next_tag: 0,
        waiting: BTreeMap::new(),
        bits: BTreeSet::new(),
    })
}

impl Mirror {
    fn disk(&mut self, job: Job, cmd: DiskCmd, out: &mut Outbox) {
        self.next_tag += 1;
        let tag = DiskTag(self.next_tag);
        self.jobs.insert(tag, job);
        out.push(Action::Disk { tag, volume: VolumeNr(0), cmd });
    }

    fn admin(&mut self, command: Command, out: &mut Outbox) {
        match command {
            Command::AddPeer(peer) => {
                self.peers.insert(peer.node_id, (peer, None));
            }
            Command::Attach { backing, .. } => {
                self.attached = true;
                self.size_sectors = backing.size_bytes / 512 - 4096;
            }
            Command::Connect { peer, .. } => out.push(Action::Connect { peer }),
            Command::Promote { .. } => self.role = Role::Primary,
            Command::Demote => self.role = Role::Secondary,
            _ => {}
        }
    }

    fn request(&mut self, request: Request, out: &mut Outbox) {
        if self.mutation == Mutation::LoseRequests {
            return;
        }
        let (sector, payload) = (request.sector, request.payload);
        let fua = self.mutation != Mutation::SkipFlush;
        let cmd = match request.op {
            Op::Read => DiskCmd::Read { sector, payload: payload.expect("a read has a buffer") },
            Op::Flush if self.mutation == Mutation::SkipFlush => {
                return out.push(Action::Complete { req: request.id, result: Ok(()) });
            }
            Op::Flush => DiskCmd::Flush,
            _ => DiskCmd::Write { sector, payload: payload.expect("a write has a buffer"), fua },
        };
        let mut peers = BTreeSet::new();
        if request.op == Op::Write {
            self.replicate(&request, &mut peers, out);
        }
        self.waiting.insert(request.id, Waiting { request, local: true, peers });
        self.disk(Job::Local(request.id), cmd, out);
    }

    fn replicate(&mut self, request: &Request, peers: &mut BTreeSet<NodeId>, out: &mut Outbox) {
        for (peer, (_, link)) in &self.peers {
            let Some(link) = *link else {
                self.bits.insert((*peer, request.sector));
                continue;
            };
            let block_id = BlockId(request.id.0);
            let data = Data { sector: request.sector, block_id, seq_num: 0, dp_flags: DpFlags::SEND_WRITE_ACK };
            let packet = Packet::Data(data);
            out.push(Action::Send { peer: *peer, link, volume: Some(VolumeNr(0)), packet, payload: request.payload });
            peers.insert(*peer);
        }
    }

    fn step(&mut self, req: ReqId, out: &mut Outbox) {
        let Some(w) = self.waiting.get(&req) else {
            return;
        };
        let early = self.mutation == Mutation::AckEarly;
        if !w.local && (w.peers.is_empty() || early) {
            self.waiting.remove(&req);
            out.push(Action::Complete { req, result: Ok(()) });
        }
    }

    fn packet(&mut self, peer: NodeId, link: LinkId, packet: Packet, payload: Option<Payload>, out: &mut Outbox) {
        match packet {
            Packet::Data(data) => {
                let payload = payload.expect("the wire crate checked it");
                let sector = data.sector + u64::from(self.mutation == Mutation::WrongSector);
                self.disk(
                    Job::Peer(peer, link, data, payload.len, payload.buf),
                    DiskCmd::Write { sector, payload, fua: true },
                    out,
                );
            }
            Packet::WriteAck(ack) => {
                let req = ReqId(ack.block_id.0);
                if let Some(w) = self.waiting.get_mut(&req) {
                    w.peers.remove(&peer);
                }
                self.step(req, out);
            }
            other => panic!("the mirror does not know {}", other.name()),
        }
    }

    fn disk_done(&mut self, tag: DiskTag, out: &mut Outbox) {
        match self.jobs.remove(&tag).expect("a job of ours") {
            Job::Local(req) => {
                if let Some(w) = self.waiting.get_mut(&req) {
                    w.local = false;
                }
                self.step(req, out);
            }
            Job::Peer(peer, link, data, blksize, buf) => {
                if self.mutation != Mutation::Leak {
                    out.push(Action::FreeBuf(buf));
                }
                let ack = BlockAck { sector: data.sector, block_id: data.block_id, blksize, seq_num: 0 };
                let (volume, packet) = (Some(VolumeNr(0)), Packet::WriteAck(ack));
                out.push(Action::Send { peer, link, volume, packet, payload: None });
            }
        }
    }

    fn link_down(&mut self, peer: NodeId, out: &mut Outbox) {
        self.peers.get_mut(&peer).expect("a peer").1 = None;
        let reqs: Vec<ReqId> = self.waiting.keys().copied().collect();
        for req in reqs {
            let w = self.waiting.get_mut(&req).expect("listed above");
            if w.peers.remove(&peer) && self.mutation != Mutation::SkipBits {
                self.bits.insert((peer, w.request.sector));
            }
            self.step(req, out);
        }
        out.push(Action::Connect { peer });
    }
}

impl Core for Mirror {
    fn handle(&mut self, _now: Time, _rng: &mut dyn Rng, input: Input<'_>, out: &mut Outbox) {
        match input {
            Input::Admin { tag, command } => {
                self.admin(command, out);
                out.push(Action::Reply { tag, result: Ok(()) });
            }
            Input::Request(request) => return self.request(request, out),
            Input::DiskDone { tag, .. } => return self.disk_done(tag, out),
            Input::Packet { peer, link, packet, payload, .. } => return self.packet(peer, link, packet, payload, out),
            Input::LinkUp { peer, link, .. } => {
                self.peers.get_mut(&peer).expect("a peer").1 = Some(link);
                let negotiated = Negotiated { version: 124, features: Features::DRBD_93, ..Negotiated::INITIAL };
                out.push(Action::SetNegotiated { peer, link, negotiated });
            }
            Input::LinkDown { peer, .. } => self.link_down(peer, out),
            Input::Timer | Input::DigestDone { .. } => {}
        }
        out.push(Action::Event(Event::Role { role: self.role, suspended_quorum: false }));
    }

    fn deadline(&self) -> Option<Time> {
        None
    }

    fn status(&self) -> Status {
        let connections = self.peers.iter().map(|(peer, (config, link))| ConnectionStatus {
            peer: *peer,
            name: config.name.clone(),
            conn: if link.is_some() { ConnState::Connected } else { ConnState::Connecting },
            last_error: None,
            last_split_brain: None,
            role: Role::Unknown,
            version: 124,
            peer_devices: vec![PeerDeviceStatus {
                resync_rate_kib: None,
                paused_by: Default::default(),
                volume: VolumeNr(0),
                repl: ReplState::Established,
                peer_disk: DiskState::UpToDate,
                out_of_sync_sectors: self.bits.iter().filter(|(p, _)| p == peer).count() as u64,
                unverified: false,
                resync_total_sectors: 0,
                verify: None,
                last_verify: None,
                sent_sectors: 0,
                received_sectors: 0,
                bitmap_uuid: 0,
            }],
        });
        let device = DeviceStatus {
            volume: VolumeNr(0),
            disk: DiskState::UpToDate,
            size_sectors: self.size_sectors,
            quorum: true,
            no_quorum: None,
            current_uuid: 1,
            requests_in_flight: self.waiting.len() as u64,
            read_bytes: 0,
            written_bytes: 0,
            al_writes: 0,
            bm_writes: 0,
        };
        Status {
            node_id: self.config.node_id,
            role: self.role,
            suspended_quorum: false,
            // Its disk comes up in one step: before there is no device.
            devices: self.attached.then_some(device).into_iter().collect(),
            connections: connections.collect(),
        }
    }

    fn check_invariants(&self) {
        assert!(self.jobs.len() < 10_000);
    }

    fn is_out_of_sync(&self, _volume: VolumeNr, peer: NodeId, sector: u64) -> Option<bool> {
        Some(self.bits.contains(&(peer, sector)))
    }

    fn is_al_in_use(&self, _volume: VolumeNr, _sector: u64) -> bool {
        false
    }

    fn is_al_active(&self, _volume: VolumeNr, _sector: u64) -> bool {
        false
    }
}
