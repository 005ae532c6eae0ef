//! Clusters by description.

use std::collections::{BTreeMap, BTreeSet};

use zea_core::config::{DiskOptions, NetOptions, PeerConfig, Quorum, QuorumOptions, ResourceConfig, VolumeConfig};
use zea_core::io::Command;
use zea_meta::create::{CreateParams, MdWrite, WriteContent, create_md};
use zea_meta::placement::{LayoutParams, Placement};
use zea_wire::ids::VolumeNr;

use crate::checks::Check;
use crate::disk::{Disk, DiskParams};
use crate::net::{Net, NetParams, NodeIx};
use crate::node::{MakeCore, Node, Saved, real_core};
use crate::rng::Stream;
use crate::trace::Record;
use crate::world::{World, node_id};

/// The first volume, the only one of most scenarios.
pub const V0: VolumeNr = VolumeNr(0);
/// A generous budget of virtual time for things that should not take long.
pub const BUDGET_MS: u64 = 120_000;

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Seed of the world.
    pub seed: u64,
    /// Number of nodes, 1 to 8.
    pub nodes: usize,
    /// Usable sectors of each volume; one size for all nodes.
    pub volume_sectors: Vec<u64>,
    /// Nodes that have no disk and are not to get one.
    pub diskless: BTreeSet<NodeIx>,
    /// Where the meta data lies.
    pub placement: Placement,
    /// Options of every connection.
    pub net: NetOptions,
    /// Options of every disk.
    pub disk: DiskOptions,
    /// Quorum. Where votes count, nodes without a disk are known not to vote.
    pub quorum: QuorumOptions,
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
            diskless: BTreeSet::new(),
            placement: Placement::Internal,
            net: NetOptions::default(),
            disk: DiskOptions { al_extents: 67, ..DiskOptions::default() },
            quorum: QuorumOptions::default(),
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
        if self.quorum.quorum != Quorum::Off {
            world.label += &format!(", {:?}, diskless {:?}", self.quorum, self.diskless);
        }
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

    /// The world after `promote --force` on the first node with a disk and the initial full sync; that node is Primary.
    pub fn synced(&self) -> World {
        let mut world = self.build();
        self.bring_up(&mut world);
        world
    }

    /// Brings a world that was built to where [`Cluster::synced`] gives it.
    pub fn bring_up(&self, world: &mut World) {
        self.start_all(world);
        let first = (0..self.nodes).find(|ix| !self.diskless.contains(ix)).expect("somebody has a disk");
        world.must(first, Command::Promote { force: true });
        if !world.run_until(World::is_converged, BUDGET_MS) {
            let text = world.summary();
            world.fail(Check::Convergence, &format!("the initial sync does not end:\n{text}"));
        }
        world.checks.is_set_up = true;
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
            net: NetOptions {
                bitmap: self.net.bitmap && !(self.quorum.quorum != Quorum::Off && self.diskless.contains(&p)),
                ..self.net.clone()
            },
        });
        let saved = Saved {
            resource: ResourceConfig { quorum: self.quorum, ..ResourceConfig::new("sim", node_id(ix)) },
            volumes: volumes.clone().collect(),
            peers: peers.collect(),
            diskless: if self.diskless.contains(&ix) {
                volumes.clone().map(|v| v.volume).collect()
            } else {
                BTreeSet::new()
            },
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
