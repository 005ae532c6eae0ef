//! A node of the world: its saved configuration, its core while it runs, its disks, buffers and front end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Debug;

use zea_core::Resource;
use zea_core::config::{PeerConfig, ResourceConfig, VolumeConfig};
use zea_core::event::{ConnectionStatus, DeviceStatus, PeerDeviceStatus, Status};
use zea_core::io::{AdminTag, BufId, Command, Input, Outbox, ReqId, Request, Rng, Time};
use zea_wire::ids::{NodeId, VolumeNr};
use zea_wire::state::{ConnState, DiskState, ReplState, Role};

use crate::disk::Disk;
use crate::model::{FlushTicket, ReadTicket};
use crate::net::NodeIx;
use crate::pool::Pool;
use crate::rng::Stream;
use crate::world::Event;

/// The surface of a core, so that the world can be tested with a simple one.
pub trait Core: Debug {
    /// One event in, actions out.
    fn handle(&mut self, now: Time, rng: &mut dyn Rng, input: Input<'_>, out: &mut Outbox);
    /// When a timer input is wanted.
    fn deadline(&self) -> Option<Time>;
    /// Snapshot.
    fn status(&self) -> Status;
    /// Panics if an internal invariant is broken.
    fn check_invariants(&self);
    /// Whether the bitmap marks a sector out of sync towards a peer; `None` if it cannot tell.
    fn is_out_of_sync(&self, volume: VolumeNr, peer: NodeId, sector: u64) -> Option<bool>;
    /// Whether a sector lies in an active extent of the activity log.
    fn is_al_active(&self, volume: VolumeNr, sector: u64) -> bool;
    /// See [`Resource::is_al_in_use`].
    fn is_al_in_use(&self, volume: VolumeNr, sector: u64) -> bool;
}

impl Core for Resource {
    fn handle(&mut self, now: Time, rng: &mut dyn Rng, input: Input<'_>, out: &mut Outbox) {
        Resource::handle(self, now, rng, input, out);
    }

    fn deadline(&self) -> Option<Time> {
        Resource::deadline(self)
    }

    fn status(&self) -> Status {
        Resource::status(self)
    }

    fn check_invariants(&self) {
        Resource::check_invariants(self);
    }

    fn is_out_of_sync(&self, volume: VolumeNr, peer: NodeId, sector: u64) -> Option<bool> {
        Resource::is_out_of_sync(self, volume, peer, sector)
    }

    fn is_al_in_use(&self, volume: VolumeNr, sector: u64) -> bool {
        Resource::is_al_in_use(self, volume, sector)
    }
    fn is_al_active(&self, volume: VolumeNr, sector: u64) -> bool {
        Resource::is_al_active(self, volume, sector)
    }
}

/// Makes the core of a node.
pub type MakeCore = fn(ResourceConfig) -> Box<dyn Core>;

/// The real core.
pub fn real_core(config: ResourceConfig) -> Box<dyn Core> {
    Box::new(Resource::new(config))
}

/// What a node reads from its configuration when it starts.
#[derive(Debug, Clone)]
pub struct Saved {
    /// The resource.
    pub resource: ResourceConfig,
    /// Volumes, ascending.
    pub volumes: Vec<VolumeConfig>,
    /// Peers, ascending.
    pub peers: Vec<PeerConfig>,
    /// Volumes whose disk is not to be attached.
    pub diskless: BTreeSet<VolumeNr>,
    /// Peers that are not to be connected.
    pub unconnected: BTreeSet<NodeIx>,
}

/// A node's clock: where it stands when the world begins, and how much faster than the world's it runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    /// Added to the time of the world.
    pub offset_ns: u64,
    /// Parts per million.
    pub drift_ppm: u32,
}

impl Clock {
    /// What the clock shows.
    pub fn local(self, world_ns: u64) -> u64 {
        self.offset_ns + world_ns + (u128::from(world_ns) * u128::from(self.drift_ppm) / 1_000_000) as u64
    }

    /// The first instant of the world at which the clock shows at least this.
    pub fn world(self, local_ns: u64) -> u64 {
        let since = u128::from(local_ns.saturating_sub(self.offset_ns));
        (since * 1_000_000).div_ceil(1_000_000 + u128::from(self.drift_ppm)) as u64
    }
}

/// What a front-end request was for.
#[derive(Debug)]
pub enum Purpose {
    /// A read.
    Read(ReadTicket),
    /// A write, discard or write-zeroes, by its number in the model.
    Write(u32),
    /// A flush.
    Flush(FlushTicket),
}

/// A front-end request in flight.
#[derive(Debug)]
pub struct Pending {
    /// The request.
    pub request: Request,
    /// What the model knows of it.
    pub purpose: Purpose,
    /// Its buffer.
    pub buf: Option<BufId>,
    /// When it was submitted.
    pub since: u64,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Index and node id.
    pub ix: NodeIx,
    /// Number of the current run, so that events for an earlier one are dropped.
    pub run: u32,
    /// The core, while the node is up.
    pub core: Option<Box<dyn Core>>,
    /// Saved configuration.
    pub saved: Saved,
    /// Disks by volume; they outlive crashes.
    pub disks: BTreeMap<VolumeNr, Disk>,
    /// Volumes whose disk the core may use.
    pub attached: BTreeSet<VolumeNr>,
    /// Buffers.
    pub pool: Pool,
    /// Randomness of the core.
    pub rng: Stream,
    /// Front-end requests in flight.
    pub requests: BTreeMap<ReqId, Pending>,
    /// Admin commands without a reply.
    pub admin: BTreeSet<AdminTag>,
    /// One of them is a promotion by force: what the node lacks when it takes effect is lost on purpose.
    pub forcing: bool,
    /// Commands of the start-up that follow, and the one that is waited for.
    pub boot: VecDeque<Command>,
    /// The start-up command that is waited for.
    pub boot_waits: Option<AdminTag>,
    /// What the start-up could not do.
    pub boot_errors: Vec<String>,
    /// Events that wait for the end of a pause.
    pub deferred: VecDeque<Event>,
    /// No event reaches the core.
    pub paused: bool,
    /// The instant of the timer event that is under way.
    pub timer_at: Option<u64>,
    /// Its clock.
    pub clock: Clock,
    /// Last status seen.
    pub status: Status,
    /// The source that a volume is resynced from, until it is UpToDate, and when the model saw that begin.
    pub target_of: BTreeMap<VolumeNr, (NodeIx, u64)>,
    /// Notices of this run, newest last.
    pub notices: VecDeque<String>,
}

impl Node {
    /// A node that is not started.
    pub fn new(ix: NodeIx, saved: Saved, disks: BTreeMap<VolumeNr, Disk>, rng: Stream) -> Node {
        Node {
            ix,
            run: 0,
            clock: Clock::default(),
            core: None,
            status: empty_status(saved.resource.node_id),
            saved,
            disks,
            attached: BTreeSet::new(),
            pool: Pool::default(),
            rng,
            requests: BTreeMap::new(),
            admin: BTreeSet::new(),
            forcing: false,
            boot: VecDeque::new(),
            boot_waits: None,
            boot_errors: Vec::new(),
            deferred: VecDeque::new(),
            paused: false,
            timer_at: None,
            target_of: BTreeMap::new(),
            notices: VecDeque::new(),
        }
    }

    /// Whether the node runs.
    pub fn is_up(&self) -> bool {
        self.core.is_some()
    }

    /// The process is gone: everything in memory with it. Disks and links are the world's affair.
    pub fn lose_memory(&mut self) {
        self.run += 1;
        self.core = None;
        self.attached.clear();
        self.pool = Pool::default();
        self.requests.clear();
        self.admin.clear();
        self.forcing = false;
        self.boot.clear();
        self.boot_waits = None;
        self.deferred.clear();
        self.paused = false;
        self.timer_at = None;
        self.status = empty_status(self.saved.resource.node_id);
        self.target_of.clear();
    }

    /// The commands that bring the node up from its saved configuration.
    pub fn boot_commands(&self) -> VecDeque<Command> {
        let volumes = self.saved.volumes.iter();
        let add_volumes = volumes.clone().map(|v| Command::AddVolume(v.clone()));
        let add_peers = self.saved.peers.iter().map(|p| Command::AddPeer(p.clone()));
        let attach = volumes
            .filter(|v| !self.saved.diskless.contains(&v.volume))
            .map(|v| Command::Attach { volume: v.volume, backing: self.disks[&v.volume].backing() });
        let wanted = self.saved.peers.iter().filter(|p| !self.saved.unconnected.contains(&p.node_id.index()));
        let connect = wanted.map(|p| Command::Connect { peer: p.node_id, discard_my_data: false });
        add_volumes.chain(add_peers).chain(attach).chain(connect).collect()
    }

    /// The role as of the last status.
    pub fn role(&self) -> Role {
        self.status.role
    }

    /// Status of a volume.
    pub fn device(&self, volume: VolumeNr) -> Option<&DeviceStatus> {
        self.status.devices.iter().find(|d| d.volume == volume)
    }

    /// Disk state of a volume, Diskless if it is not there.
    pub fn disk_state(&self, volume: VolumeNr) -> DiskState {
        self.device(volume).map_or(DiskState::Diskless, |d| d.disk)
    }

    /// Status of a connection.
    pub fn connection(&self, peer: NodeIx) -> Option<&ConnectionStatus> {
        self.status.connections.iter().find(|c| c.peer.index() == peer)
    }

    /// Connection state, StandAlone if it is not there.
    pub fn conn_state(&self, peer: NodeIx) -> ConnState {
        self.connection(peer).map_or(ConnState::StandAlone, |c| c.conn)
    }

    /// Status of a volume on a connection.
    pub fn peer_device(&self, peer: NodeIx, volume: VolumeNr) -> Option<&PeerDeviceStatus> {
        self.connection(peer)?.peer_devices.iter().find(|p| p.volume == volume)
    }

    /// Connected, UpToDate as this node sees it.
    pub fn sees_up_to_date(&self, peer: NodeIx, volume: VolumeNr) -> bool {
        self.conn_state(peer) == ConnState::Connected
            && self.peer_device(peer, volume).is_some_and(|p| p.peer_disk == DiskState::UpToDate)
    }

    /// Connected to a peer whose disk is a mixture of old and new.
    pub fn sees_resynced(&self, peer: NodeIx, volume: VolumeNr) -> bool {
        let inconsistent = self.peer_device(peer, volume).is_some_and(|p| p.peer_disk == DiskState::Inconsistent);
        self.conn_state(peer) == ConnState::Connected && inconsistent
    }

    /// Connected, replicating, UpToDate as this node sees it.
    pub fn sees_in_sync(&self, peer: NodeIx, volume: VolumeNr) -> bool {
        let replicates =
            |repl: ReplState| matches!(repl, ReplState::Established | ReplState::VerifyS | ReplState::VerifyT);
        self.sees_up_to_date(peer, volume) && self.peer_device(peer, volume).is_some_and(|p| replicates(p.repl))
    }

    /// No resync and no verify runs.
    pub fn is_quiet(&self) -> bool {
        self.status.connections.iter().all(|c| c.peer_devices.iter().all(|p| p.repl <= ReplState::Established))
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        if !self.is_up() {
            return format!("node {} is down", self.ix);
        }
        let disks: Vec<String> = self.status.devices.iter().map(|d| format!("{}:{}", d.volume, d.disk)).collect();
        let conns: Vec<String> = self
            .status
            .connections
            .iter()
            .map(|c| {
                let pds: Vec<String> = c
                    .peer_devices
                    .iter()
                    .map(|p| format!("{}:{}/{} oos {}", p.volume, p.repl, p.peer_disk, p.out_of_sync_sectors))
                    .collect();
                format!(
                    "->{} {} {} [{}]{}",
                    c.peer,
                    c.conn,
                    c.role,
                    pds.join(" "),
                    c.last_error.as_deref().unwrap_or("")
                )
            })
            .collect();
        format!(
            "node {} {}{} {} {}",
            self.ix,
            self.role(),
            if self.paused { " paused" } else { "" },
            disks.join(" "),
            conns.join(" ")
        )
    }
}

fn empty_status(node_id: NodeId) -> Status {
    let (devices, connections) = Default::default();
    Status { node_id, role: Role::Secondary, suspended_quorum: false, devices, connections }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sim_clocks_reach_a_deadline_at_the_instant_that_they_name() {
        for clock in [Clock::default(), Clock { offset_ns: 77, drift_ppm: 0 }, Clock { offset_ns: 5, drift_ppm: 333 }] {
            for local in [0, 5, 77, 1_000, 123_456_789_012] {
                let at = clock.world(local);
                assert!(clock.local(at) >= local, "{clock:?}");
                assert!(at == 0 || clock.local(at - 1) < local, "{clock:?}");
            }
        }
    }
}
