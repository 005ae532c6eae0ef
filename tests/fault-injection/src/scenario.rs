//! Clusters by description, and the verbs that explicit scenarios are written in.

use std::collections::{BTreeMap, BTreeSet};

use zea_core::config::{DiskOptions, NetOptions, PeerConfig, ResourceConfig, VolumeConfig};
use zea_core::io::{AdminError, Command, Input, IoError, Op, Payload, ReqId, Request};
use zea_meta::create::{CreateParams, MdWrite, WriteContent, create_md};
use zea_meta::placement::{LayoutParams, Placement};
use zea_wire::ids::VolumeNr;
use zea_wire::state::{ConnState, DiskState, Role};

use crate::checks::Check;
use crate::disk::{Disk, DiskParams};
use crate::net::{Net, NetParams, NodeIx};
use crate::node::{MakeCore, Node, Pending, Purpose, Saved, real_core};
use crate::pool::POISON;
use crate::rng::Stream;
use crate::trace::Record;
use crate::world::{Outcome, World, node_id};

/// The first volume, the only one of most scenarios.
pub const V0: VolumeNr = VolumeNr(0);
/// A generous budget of virtual time for things that should not take long.
pub const BUDGET_MS: u64 = 120_000;
/// A cluster that has converged stays so for this long before it counts as at rest: peers that were resynced compare once more.
const CALM_MS: u64 = 5_000;

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Seed of the world.
    pub seed: u64,
    /// Number of nodes, 1 to 8.
    pub nodes: usize,
    /// Usable sectors of each volume; one size for all nodes.
    pub volume_sectors: Vec<u64>,
    /// Where the meta data lies.
    pub placement: Placement,
    /// Options of every connection.
    pub net: NetOptions,
    /// Options of every disk.
    pub disk: DiskOptions,
    /// Delays of the network.
    pub links: NetParams,
    /// Typical time of a disk command.
    pub disk_latency_ns: u64,
    /// Disks have a volatile write cache.
    pub volatile_cache: bool,
    /// A crash tears writes at 512 bytes, else at 4 KiB.
    pub tear_at_512: bool,
    /// Discards reach the disks.
    pub discard: bool,
    /// What is recorded.
    pub record: Record,
    /// Makes the cores.
    pub make_core: MakeCore,
}

impl Cluster {
    /// A cluster of `nodes` with one volume of 16 MiB, internal meta data, protocol C.
    pub fn new(nodes: usize) -> Cluster {
        Cluster {
            seed: 1,
            nodes,
            volume_sectors: vec![32_768],
            placement: Placement::Internal,
            net: NetOptions::default(),
            disk: DiskOptions { al_extents: 67, ..DiskOptions::default() },
            links: NetParams::default(),
            disk_latency_ns: 100_000,
            volatile_cache: true,
            tear_at_512: true,
            discard: true,
            record: record_from_environment(),
            make_core: real_core,
        }
    }

    /// The world, every node down.
    pub fn build(&self) -> World {
        let nodes = (0..self.nodes).map(|ix| self.node(ix)).collect();
        let net = Net::new(self.links);
        let mut world = World::new(self.seed, nodes, net, self.make_core, self.record);
        world.label = format!(
            "{} nodes, {:?}, sectors {:?}, {:?}, al-extents {}, disk {} us, net {} us, cache {}, discard {}",
            self.nodes,
            self.net.protocol,
            self.volume_sectors,
            self.placement,
            self.disk.al_extents,
            self.disk_latency_ns / 1000,
            self.links.latency_ns / 1000,
            self.volatile_cache,
            self.discard,
        );
        world
    }

    /// The world, every node up, attached and connected, all data Inconsistent.
    pub fn start(&self) -> World {
        let mut world = self.build();
        self.start_all(&mut world);
        world
    }

    fn start_all(&self, world: &mut World) {
        for ix in 0..self.nodes {
            world.start(ix);
        }
        let done = world.run_until(|w| w.nodes.iter().all(|n| n.boot.is_empty() && n.boot_waits.is_none()), BUDGET_MS);
        assert!(done, "the nodes do not start:\n{}", world.summary());
        for node in &world.nodes {
            assert!(node.boot_errors.is_empty(), "node {} starts with errors: {:?}", node.ix, node.boot_errors);
        }
        let connected = world.run_until(World::all_connected, BUDGET_MS);
        assert!(connected, "the nodes do not connect:\n{}", world.summary());
    }

    /// The world after `promote --force` on node 0 and the initial full sync; node 0 is Primary.
    pub fn synced(&self) -> World {
        let mut world = self.build();
        self.bring_up(&mut world);
        world
    }

    /// Brings a world that was built to where [`Cluster::synced`] gives it.
    pub fn bring_up(&self, world: &mut World) {
        self.start_all(world);
        world.must(0, Command::Promote { force: true });
        if !world.run_until(World::is_converged, BUDGET_MS) {
            let text = world.summary();
            world.fail(Check::Convergence, &format!("the initial sync does not end:\n{text}"));
        }
    }

    fn node(&self, ix: NodeIx) -> Node {
        let volumes = (0..self.volume_sectors.len()).map(|nr| VolumeConfig {
            volume: VolumeNr(nr as u16),
            size_sectors: None,
            disk: self.disk.clone(),
        });
        let peers = (0..self.nodes).filter(|p| *p != ix).map(|p| PeerConfig {
            node_id: node_id(p),
            name: format!("node{p}"),
            net: self.net.clone(),
        });
        let saved = Saved {
            resource: ResourceConfig::new("sim", node_id(ix)),
            volumes: volumes.collect(),
            peers: peers.collect(),
            diskless: BTreeSet::new(),
            unconnected: BTreeSet::new(),
        };
        let disks = self.volume_sectors.iter().enumerate();
        let disks: BTreeMap<VolumeNr, Disk> = disks.map(|(nr, size)| (VolumeNr(nr as u16), self.disk(*size))).collect();
        Node::new(ix, saved, disks, Stream::new(self.seed, &format!("core {ix}")))
    }

    /// A formatted disk whose usable size is at least this.
    pub fn disk(&self, usable_sectors: u64) -> Disk {
        let max_peers = (self.nodes.max(2) - 1) as u32;
        let layout = match self.placement {
            Placement::Internal => {
                let mut size = usable_sectors.max(2048);
                while !zea_meta::Layout::compute(&LayoutParams::internal(size, max_peers))
                    .is_ok_and(|l| l.usable_sectors >= usable_sectors)
                {
                    size += 8;
                }
                LayoutParams::internal(size, max_peers)
            }
            _ => LayoutParams::flex_external(usable_sectors, 4096, max_peers),
        };
        let created = create_md(&CreateParams::new(layout)).expect("a sound layout");
        let internal = self.placement == Placement::Internal;
        let md_sectors = if internal { layout.backing_size_sectors } else { layout.md_size_sectors };
        let mut disk = Disk::new(DiskParams {
            size_sectors: layout.backing_size_sectors,
            placement: self.placement,
            data_end_sector: created.layout.usable_sectors,
            meta_size_bytes: md_sectors * 512,
            volatile_cache: self.volatile_cache,
            tear_at_512: self.tear_at_512,
            latency_ns: self.disk_latency_ns,
            discard: self.discard,
        });
        for MdWrite { offset_bytes, content } in created.writes {
            match content {
                WriteContent::Zeros(_) => {}
                WriteContent::Bytes(bytes) => {
                    for (offset, block) in (offset_bytes..).step_by(4096).zip(bytes.chunks(4096)) {
                        disk.format_meta(offset, block.try_into().expect("whole blocks"));
                    }
                }
            }
        }
        disk
    }
}

/// `ZEA_SIM_TRACE=1` prints every event of explicit scenarios.
fn record_from_environment() -> Record {
    if std::env::var_os("ZEA_SIM_TRACE").is_some() { Record::Print } else { Record::Ring }
}

impl World {
    /// Runs until `done`, at most `budget_ms` of virtual time. Whether it came to that.
    pub fn run_until(&mut self, done: impl Fn(&World) -> bool, budget_ms: u64) -> bool {
        let limit = self.now + budget_ms * 1_000_000;
        while !done(self) {
            if !self.step(limit) {
                return done(self);
            }
        }
        true
    }

    /// Lets virtual time pass.
    pub fn run_ms(&mut self, ms: u64) {
        let limit = self.now + ms * 1_000_000;
        while self.step(limit) {}
    }

    /// Runs until `done` and fails if it does not come to that.
    pub fn expect(&mut self, what: &str, done: impl Fn(&World) -> bool) {
        if !self.run_until(done, BUDGET_MS) {
            let text = self.summary();
            self.fail(Check::Stuck, &format!("{what} does not happen:\n{text}"));
        }
    }

    /// Gives an admin command and waits for the answer.
    ///
    /// # Errors
    /// What the node answered.
    pub fn command(&mut self, ix: NodeIx, command: Command) -> Result<(), AdminError> {
        let text = format!("the answer of node {ix} to {command:?}");
        let tag = self.admin(ix, command);
        self.expect(&text, |w| w.replies.contains_key(&tag) || !w.nodes[ix].is_up());
        self.replies.remove(&tag).expect("the node did not die")
    }

    /// Gives an admin command that has to succeed.
    pub fn must(&mut self, ix: NodeIx, command: Command) {
        let text = format!("{command:?}");
        if let Err(error) = self.command(ix, command) {
            self.fail(Check::Core, &format!("node {ix} refuses {text}: {} ({})", error.message, error.code));
        }
    }

    /// Submits a request to the front end of a node.
    pub fn submit(&mut self, ix: NodeIx, volume: VolumeNr, op: Op, sector: u64, sectors: u64, fua: bool) -> ReqId {
        let id = ReqId(self.fresh_id());
        let key = (volume.0, sector);
        let followers: Vec<NodeIx> =
            (0..self.nodes.len()).filter(|o| *o != ix && self.nodes[ix].sees_in_sync(*o, volume)).collect();
        let (purpose, tags) = match op {
            Op::Read => (
                Purpose::Read(self.model.read_begins(ix, &self.servers(ix, volume), key, sectors)),
                Some(vec![POISON; sectors as usize]),
            ),
            Op::Write => {
                let (write, tags) = self.model.write_begins(ix, &followers, key, sectors, false);
                (Purpose::Write(write), Some(tags))
            }
            Op::Discard | Op::WriteZeroes { .. } => {
                (Purpose::Write(self.model.write_begins(ix, &followers, key, sectors, true).0), None)
            }
            Op::Flush => (Purpose::Flush(self.model.flush_begins()), None),
        };
        let len = (sectors * 512) as u32;
        let node = &mut self.nodes[ix];
        let buf = tags.map(|tags| node.pool.give_to_request(tags, id));
        let payload = buf.map(|buf| Payload { buf, offset: 0, len });
        let request = Request { id, volume, op, sector, len, payload, fua };
        node.requests.insert(id, Pending { request, purpose, buf });
        self.feed(ix, Input::Request(request));
        id
    }

    /// Submits a write to volume 0.
    pub fn write(&mut self, ix: NodeIx, sector: u64, sectors: u64) -> ReqId {
        self.submit(ix, V0, Op::Write, sector, sectors, false)
    }

    /// Submits a read of volume 0.
    pub fn read(&mut self, ix: NodeIx, sector: u64, sectors: u64) -> ReqId {
        self.submit(ix, V0, Op::Read, sector, sectors, false)
    }

    /// Submits a flush of volume 0.
    pub fn flush(&mut self, ix: NodeIx) -> ReqId {
        self.submit(ix, V0, Op::Flush, 0, 0, false)
    }

    /// Waits for a request.
    ///
    /// # Errors
    /// What the front end got.
    pub fn wait(&mut self, req: ReqId) -> Result<(), IoError> {
        self.expect(&format!("the end of request {}", req.0), |w| w.outcomes.contains_key(&req));
        match self.outcomes[&req] {
            Outcome::Done(result) => result,
            Outcome::Lost => panic!("the node died before request {} ended", req.0),
        }
    }

    /// Writes to volume 0 and waits; it has to succeed.
    pub fn write_ok(&mut self, ix: NodeIx, sector: u64, sectors: u64) {
        let req = self.write(ix, sector, sectors);
        let result = self.wait(req);
        assert_eq!(result, Ok(()), "write of {sectors} sectors at {sector} on node {ix}");
    }

    /// Reads from volume 0 and waits; it has to succeed, the model checks what it returns.
    pub fn read_ok(&mut self, ix: NodeIx, sector: u64, sectors: u64) {
        let req = self.read(ix, sector, sectors);
        let result = self.wait(req);
        assert_eq!(result, Ok(()), "read of {sectors} sectors at {sector} on node {ix}");
    }

    /// Flushes volume 0 and waits; it has to succeed.
    pub fn flush_ok(&mut self, ix: NodeIx) {
        let req = self.flush(ix);
        assert_eq!(self.wait(req), Ok(()), "flush on node {ix}");
    }

    /// Whether every pair of nodes is connected.
    pub fn all_connected(&self) -> bool {
        let count = self.nodes.len();
        (0..count).all(|a| (0..count).all(|b| a == b || self.is_connected(a, b)))
    }

    /// Whether both nodes see each other as connected.
    pub fn is_connected(&self, a: NodeIx, b: NodeIx) -> bool {
        self.nodes[a].conn_state(b) == ConnState::Connected && self.nodes[b].conn_state(a) == ConnState::Connected
    }

    /// Connection state as one node sees it.
    pub fn conn(&self, ix: NodeIx, peer: NodeIx) -> ConnState {
        self.nodes[ix].conn_state(peer)
    }

    /// Disk state of volume 0.
    pub fn disk(&self, ix: NodeIx) -> DiskState {
        self.nodes[ix].disk_state(V0)
    }

    /// Role of a node.
    pub fn role(&self, ix: NodeIx) -> Role {
        self.nodes[ix].role()
    }

    /// Sectors of volume 0 that a node marks out of sync towards a peer.
    pub fn out_of_sync(&mut self, ix: NodeIx, peer: NodeIx) -> u64 {
        self.refresh(ix);
        self.nodes[ix].peer_device(peer, V0).map_or(0, |p| p.out_of_sync_sectors)
    }

    /// Everything connects, is UpToDate, comes to rest, and is equal.
    pub fn settle(&mut self) {
        let budget = self.now + BUDGET_MS * 1_000_000;
        loop {
            self.expect("convergence", World::is_converged);
            self.run_ms(CALM_MS);
            if self.is_calm() || self.now > budget {
                break;
            }
        }
        self.check_at_rest();
    }

    /// Data on the disk of one node before the world begins.
    pub fn preset(&mut self, ix: NodeIx, volume: VolumeNr, sector: u64, sectors: u64) {
        let tags = self.model.preset(ix, (volume.0, sector), sectors);
        self.nodes[ix].disks.get_mut(&volume).expect("a volume of this node").preset(sector, &tags);
    }

    /// Changes the saved configuration of a node and tells its core.
    pub fn set_net_options(&mut self, ix: NodeIx, peer: NodeIx, net: NetOptions) {
        for saved in self.nodes[ix].saved.peers.iter_mut().filter(|p| p.node_id.index() == peer) {
            saved.net = net.clone();
        }
        if self.nodes[ix].is_up() {
            self.must(ix, Command::SetNetOptions { peer: node_id(peer), net });
        }
    }
}
