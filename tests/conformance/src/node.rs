//! Zea's core as one node of a recording, with simulated disks whose commands end at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use zea_core::Resource;
use zea_core::config::{DiskOptions, NetOptions, PeerConfig, ResourceConfig, VolumeConfig};
use zea_core::event::{Event, Status};
use zea_core::io::{
    Action, AdminTag, Command, DigestTag, DiskCmd, DiskTag, Input, LinkId, LinkLost, Op, Payload, ReqId, Request, Time,
};
use zea_meta::create::{CreateParams, WriteContent, create_md};
use zea_meta::placement::{LayoutParams, Placement};
use zea_sim::disk::{Disk, DiskParams, read_target};
use zea_sim::pool::{POISON, Pool, Tag};
use zea_sim::rng::Stream as Random;
use zea_wire::digest::MAX_DIGEST_LEN;
use zea_wire::features::Negotiated;
use zea_wire::ids::{NodeId, VolumeNr};
use zea_wire::packet::Packet;

use crate::contents::Contents;
use crate::res::Configuration;

/// Timer inputs at one instant that are taken for an endless loop.
const TIMERS_AT_ONCE: usize = 1000;

/// A packet that the core sent.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// To whom.
    pub peer: NodeId,
    /// On which link.
    pub link: LinkId,
    /// What was agreed then.
    pub neg: Negotiated,
    /// About which volume.
    pub volume: Option<VolumeNr>,
    /// Header and fixed part.
    pub packet: Packet,
    /// Its payload.
    pub tags: Option<Vec<Tag>>,
}

/// What every disk of a recording is like.
#[derive(Debug, Clone, Copy)]
pub struct DiskSize {
    /// Sectors of the device, meta data included.
    pub sectors: u64,
    /// Peers that the meta data has room for.
    pub max_peers: u32,
}

/// The node.
#[derive(Debug)]
pub struct Node<'a> {
    id: NodeId,
    size: DiskSize,
    /// The newest version that it offers.
    protocol_max: u32,
    contents: &'a Contents,
    core: Option<Resource>,
    disks: BTreeMap<VolumeNr, Disk>,
    attached: BTreeSet<VolumeNr>,
    pool: Pool,
    random: Random,
    disk_random: Random,
    now: u64,
    next_id: u64,
    queued: VecDeque<(VolumeNr, DiskTag)>,
    digests: VecDeque<(DigestTag, Vec<u8>)>,
    outgoing: VecDeque<Outgoing>,
    requests: BTreeMap<ReqId, Option<zea_core::io::BufId>>,
    links: BTreeMap<NodeId, (LinkId, Negotiated)>,
    wanted: BTreeSet<NodeId>,
    /// What the core had to say, newest last, and commands that it refused.
    pub notices: Vec<String>,
}

impl<'a> Node<'a> {
    /// A node that is not configured yet.
    pub fn new(id: NodeId, size: DiskSize, protocol_max: u32, contents: &'a Contents, now: u64) -> Node<'a> {
        Node {
            id,
            size,
            protocol_max,
            contents,
            core: None,
            disks: BTreeMap::new(),
            attached: BTreeSet::new(),
            pool: Pool::default(),
            random: Random::new(u64::from(id.0), "core"),
            disk_random: Random::new(u64::from(id.0), "disk"),
            now,
            next_id: 0,
            queued: VecDeque::new(),
            digests: VecDeque::new(),
            outgoing: VecDeque::new(),
            requests: BTreeMap::new(),
            links: BTreeMap::new(),
            wanted: BTreeSet::new(),
            notices: Vec::new(),
        }
    }

    /// The instant.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// When the core wants a timer input next.
    pub fn deadline(&self) -> Option<u64> {
        self.core.as_ref().and_then(Resource::deadline).map(|Time(t)| t)
    }

    /// Time passes, without a timer that is due before.
    pub fn set_now(&mut self, now: u64) {
        self.now = self.now.max(now);
    }

    /// The timer input that is due.
    ///
    /// # Panics
    /// The core wants a timer at the same instant again and again.
    pub fn timer(&mut self) {
        for _ in 0..TIMERS_AT_ONCE {
            if self.deadline().is_none_or(|t| t > self.now) {
                return;
            }
            self.feed(Input::Timer);
            self.settle_disks();
        }
        panic!("the core wants a timer at {} again and again", self.now);
    }

    /// The core's state, if it is up.
    pub fn status(&self) -> Option<Status> {
        self.core.as_ref().map(Resource::status)
    }

    /// The links that are up, by peer.
    pub fn link(&self, peer: NodeId) -> Option<(LinkId, Negotiated)> {
        self.links.get(&peer).copied()
    }

    /// Whether the core wants a link to this peer.
    pub fn wants(&self, peer: NodeId) -> bool {
        self.wanted.contains(&peer)
    }

    /// The next packet that the core sent.
    pub fn sent(&mut self) -> Option<Outgoing> {
        self.outgoing.pop_front()
    }

    fn fresh(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    // ---- inputs -----------------------------------------------------------------------------------------------------

    fn feed(&mut self, input: Input<'_>) {
        let Some(core) = self.core.as_mut() else { return };
        let mut out = Vec::new();
        core.handle(Time(self.now), &mut self.random, input, &mut out);
        core.check_invariants();
        for action in out {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Connect { peer } => {
                self.wanted.insert(peer);
            }
            Action::Disconnect { peer } => {
                self.wanted.remove(&peer);
                self.links.remove(&peer);
            }
            Action::SetNegotiated { peer, link, negotiated } => {
                if let Some(live) = self.links.get_mut(&peer).filter(|live| live.0 == link) {
                    live.1 = negotiated;
                }
            }
            Action::Send { peer, link, volume, packet, payload } => {
                let tags = payload.map(|p| self.pool.read(p));
                if let Some(&(_, neg)) = self.links.get(&peer).filter(|live| live.0 == link) {
                    // What is not legal panics here.
                    zea_sim::codec::encode(&neg, volume, &packet, tags.as_deref());
                    self.outgoing.push_back(Outgoing { peer, link, neg, volume, packet, tags });
                }
            }
            Action::Disk { tag, volume, cmd } => self.disk(tag, volume, cmd),
            Action::CloseDisk { volume } => {
                self.attached.remove(&volume);
            }
            Action::Complete { req, .. } => {
                if let Some(Some(buf)) = self.requests.remove(&req) {
                    self.pool.finish_request(buf, req);
                }
            }
            Action::Copy { from, to } => self.pool.copy(from, to),
            Action::Digest { tag, alg, payload } => {
                let mut digest = [0; MAX_DIGEST_LEN];
                let len = alg.compute(&self.contents.bytes(&self.pool.read(payload)), &mut digest);
                self.digests.push_back((tag, digest[..len].to_vec()));
            }
            Action::FreeBuf(buf) => self.pool.free(buf),
            Action::Event(Event::Notice { text, .. }) => self.notices.push(text),
            Action::Event(_) => {}
            Action::Reply { result: Err(error), .. } => self.notices.push(format!("refused: {}", error.message)),
            Action::Reply { .. } => {}
        }
    }

    fn disk(&mut self, tag: DiskTag, volume: VolumeNr, cmd: DiskCmd) {
        let tags = match cmd {
            DiskCmd::Write { payload, .. } => self.pool.read(payload),
            DiskCmd::Read { payload, .. } => {
                self.pool.pin(payload);
                Vec::new()
            }
            _ => Vec::new(),
        };
        let disk = self.disks.get_mut(&volume).expect("a disk that is attached");
        disk.submit(tag, cmd, tags, &mut self.disk_random);
        self.queued.push_back((volume, tag));
    }

    /// Disk commands and digests end, in their order, until none is left.
    pub fn settle_disks(&mut self) {
        self.end_disk_commands();
        while let Some((tag, digest)) = self.digests.pop_front() {
            self.feed(Input::DigestDone { tag, digest: &digest });
            self.end_disk_commands();
        }
    }

    fn end_disk_commands(&mut self) {
        while let Some((volume, tag)) = self.queued.pop_front() {
            let disk = self.disks.get_mut(&volume).expect("a command was given to it");
            let done = disk.complete(tag, &mut self.disk_random);
            if let Some(payload) = read_target(&done.cmd) {
                self.pool.unpin(payload, done.result.is_ok().then_some(&done.tags[..]));
            }
            let buf = match &done.cmd {
                DiskCmd::ReadNew { .. } if done.result.is_ok() => Some(self.pool.give_to_core(done.tags)),
                _ => None,
            };
            let block = match done.cmd {
                DiskCmd::MetaWrite { block, .. } => Some(block),
                _ => None,
            };
            self.feed(Input::DiskDone { tag, result: done.result, buf, meta: &done.meta, block });
        }
    }

    /// A packet of a peer.
    pub fn receive(&mut self, peer: NodeId, volume: Option<VolumeNr>, packet: Packet, tags: Option<Vec<Tag>>) {
        let Some((link, _)) = self.link(peer) else { return };
        let payload = tags.map(|tags| {
            let len = (tags.len() * 512) as u32;
            Payload { buf: self.pool.give_to_core(tags), offset: 0, len }
        });
        self.feed(Input::Packet { peer, link, volume, packet, payload });
        self.settle_disks();
    }

    /// Both streams to a peer are up.
    pub fn link_up(&mut self, peer: NodeId, resolve_conflicts: bool) -> LinkId {
        let link = LinkId(self.fresh());
        self.wanted.remove(&peer);
        self.links.insert(peer, (link, Negotiated::INITIAL));
        self.feed(Input::LinkUp { peer, link, resolve_conflicts });
        self.settle_disks();
        link
    }

    /// A link is gone.
    pub fn link_down(&mut self, peer: NodeId) {
        if let Some((link, _)) = self.links.remove(&peer) {
            self.feed(Input::LinkDown { peer, link, lost: LinkLost::Closed });
            self.settle_disks();
        }
    }

    /// An administrator's command.
    pub fn admin(&mut self, command: Command) {
        let tag = AdminTag(self.fresh());
        if let Command::Attach { volume, .. } = command {
            self.attached.insert(volume);
        }
        self.feed(Input::Admin { tag, command });
        self.settle_disks();
    }

    /// A request of the front end.
    pub fn request(&mut self, volume: VolumeNr, op: Op, sector: u64, len: u32, tags: Option<Vec<Tag>>, fua: bool) {
        let id = ReqId(self.fresh());
        let tags = match op {
            Op::Read => Some(vec![POISON; len as usize / 512]),
            _ => tags,
        };
        let buf = tags.map(|tags| self.pool.give_to_request(tags, id));
        let payload = buf.map(|buf| Payload { buf, offset: 0, len });
        self.requests.insert(id, buf);
        self.feed(Input::Request(Request { id, volume, op, sector, len, payload, fua }));
        self.settle_disks();
    }

    // ---- configuration and disks --------------------------------------------------------------------------------------

    /// Fresh meta data on a disk, whose data stays.
    pub fn create_md(&mut self, volume: VolumeNr) {
        let layout = LayoutParams::internal(self.size.sectors, self.size.max_peers);
        let created = create_md(&CreateParams::new(layout)).expect("a sound layout");
        let end = created.layout.usable_sectors;
        let disk = self.disks.entry(volume).or_insert_with(|| {
            Disk::new(DiskParams {
                size_sectors: layout.backing_size_sectors,
                placement: Placement::Internal,
                data_end_sector: end,
                meta_size_bytes: layout.backing_size_sectors * 512,
                volatile_cache: false,
                tear_at_512: false,
                latency_ns: 0,
                discard: true,
            })
        });
        for write in created.writes {
            match write.content {
                WriteContent::Zeros(len) => {
                    for offset in (write.offset_bytes..write.offset_bytes + len).step_by(4096) {
                        disk.format_meta(offset, &[0; 4096]);
                    }
                }
                WriteContent::Bytes(bytes) => {
                    for (offset, block) in (write.offset_bytes..).step_by(4096).zip(bytes.chunks(4096)) {
                        disk.format_meta(offset, block.try_into().expect("whole blocks"));
                    }
                }
            }
        }
    }

    /// As [`Node::create_md`], on a disk that has none.
    pub fn create_md_if_none(&mut self, volume: VolumeNr) {
        if !self.disks.contains_key(&volume) {
            self.create_md(volume);
        }
    }

    /// Data on a disk, from outside.
    pub fn preset(&mut self, volume: VolumeNr, sector: u64, tags: &[Tag]) {
        if let Some(disk) = self.disks.get_mut(&volume) {
            disk.preset(sector, tags);
        }
    }

    /// Configures everything and brings it up. Peers are kernels: Zea's own feature is not offered.
    pub fn up(&mut self, configuration: &Configuration) {
        let Some(own) = configuration.node(self.id) else { return };
        self.pool = Pool::default();
        self.core = Some(Resource::new(ResourceConfig::new("r0", self.id)));
        for (nr, volume) in &own.volumes {
            let config = VolumeConfig { volume: *nr, size_sectors: volume.size_sectors, disk: DiskOptions::default() };
            self.admin(Command::AddVolume(config));
        }
        let peers: Vec<_> = configuration.nodes.iter().filter(|n| n.id != self.id).collect();
        for peer in &peers {
            let bitmap = !peer.volumes.values().all(|v| v.diskless);
            let net = NetOptions { bitmap, protocol_max: self.protocol_max, ..configuration.net_options() };
            self.admin(Command::AddPeer(PeerConfig { node_id: peer.id, name: peer.name.clone(), net }));
        }
        for (nr, _) in own.volumes.iter().filter(|(_, v)| !v.diskless) {
            self.attach(*nr);
        }
        for peer in &peers {
            self.admin(Command::Connect { peer: peer.id, discard_my_data: false });
        }
    }

    /// Takes the disk of a volume.
    pub fn attach(&mut self, volume: VolumeNr) {
        if let Some(disk) = self.disks.get(&volume) {
            let backing = disk.backing();
            self.admin(Command::Attach { volume, backing });
        }
    }

    /// The node dies: nothing but the disks is left.
    pub fn kill(&mut self) {
        self.core = None;
        self.attached.clear();
        self.queued.clear();
        self.digests.clear();
        self.links.clear();
        self.wanted.clear();
        self.requests.clear();
        self.pool = Pool::default();
        for disk in self.disks.values_mut() {
            disk.crash(&mut self.disk_random);
        }
    }
}
