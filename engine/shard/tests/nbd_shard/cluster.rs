//! Nodes in one process: a shard each, real files, links over socket pairs.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use zea_core::config::{DiskOptions, NetOptions, PeerConfig, ResourceConfig, VolumeConfig};
use zea_core::io::Command;
use zea_meta::create::{CreateParams, WriteContent, create_md};
use zea_meta::placement::{LayoutParams, Placement};
use zea_recorder::limits::MIN_RING_BYTES;
use zea_recorder::{RingOptions, Writer};
use zea_shard::{BackingPaths, ExportDirectory, LinkMaker, LinkSockets, ResourceId, Shard, ShardConfig, ShardHandle};
use zea_wire::ids::{NodeId, VolumeNr};
use zea_wire::state::{ConnState, DiskState, ReplState};

pub(crate) const V0: VolumeNr = VolumeNr(0);
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until something is so.
pub(crate) fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One end of a wanted link.
type End = (usize, ResourceId, NodeId);

/// Makes a link as soon as both ends want it, on a thread of its own as a connector would.
#[derive(Default)]
pub(crate) struct Switchboard {
    shards: Mutex<Vec<ShardHandle>>,
    wants: Mutex<BTreeMap<(u8, u8), Vec<End>>>,
    /// While set, nobody gets a link.
    pub(crate) cut: std::sync::atomic::AtomicBool,
}

impl Switchboard {
    fn want(&self, own: NodeId, end: End) {
        let key = (own.0.min(end.2.0), own.0.max(end.2.0));
        let mut wants = self.wants.lock().expect("no panic");
        let ends = wants.entry(key).or_default();
        ends.retain(|other| other.0 != end.0);
        ends.push(end);
    }

    fn forget(&self, own: NodeId, end: End) {
        let key = (own.0.min(end.2.0), own.0.max(end.2.0));
        let mut wants = self.wants.lock().expect("no panic");
        wants.entry(key).or_default().retain(|other| other.0 != end.0);
    }

    /// Connects who waits on both sides.
    fn patch(&self) {
        if self.cut.load(std::sync::atomic::Ordering::SeqCst) {
            return;
        }
        let ready: Vec<[End; 2]> = {
            let mut wants = self.wants.lock().expect("no panic");
            let ready = wants.values().filter_map(|ends| ends.as_slice().try_into().ok()).collect();
            wants.retain(|_, ends| ends.len() != 2);
            ready
        };
        for [a, b] in ready {
            let (data_a, data_b) = UnixStream::pair().expect("sockets");
            let (control_a, control_b) = UnixStream::pair().expect("sockets");
            let shards = self.shards.lock().expect("no panic").clone();
            for (end, data, control, resolve_conflicts) in [(a, data_a, control_a, true), (b, data_b, control_b, false)]
            {
                let sockets = LinkSockets { data: data.into(), control: control.into(), resolve_conflicts };
                // A shard that was stopped takes none.
                let _ = shards[end.0].new_link(end.1, end.2, sockets);
            }
        }
    }
}

struct Maker {
    board: Arc<Switchboard>,
    shard: usize,
    own: NodeId,
}

impl LinkMaker for Maker {
    fn connect(&self, resource: ResourceId, peer: NodeId) {
        self.board.want(self.own, (self.shard, resource, peer));
    }

    fn disconnect(&self, resource: ResourceId, peer: NodeId) {
        self.board.forget(self.own, (self.shard, resource, peer));
    }
}

/// A node with one shard and the resource `r0` with one volume.
pub(crate) struct Node {
    pub(crate) shard: ShardHandle,
    pub(crate) id: ResourceId,
    pub(crate) exports: ExportDirectory,
    pub(crate) data: PathBuf,
    pub(crate) socket: PathBuf,
}

impl Node {
    /// Runs a command and expects the core to agree.
    pub(crate) fn admin(&self, command: Command) {
        let shown = format!("{command:?}");
        let answer = self.shard.admin(self.id, command).expect("the shard runs").wait_for(PATIENCE);
        let answer = answer.expect("the shard runs").unwrap_or_else(|| panic!("no answer to {shown}"));
        answer.unwrap_or_else(|e| panic!("{shown}: {e}"));
    }

    pub(crate) fn disk_state(&self) -> DiskState {
        self.shard.status(self.id).expect("a status").status.devices[0].disk
    }

    /// The peer is connected, and nothing is being resynced.
    pub(crate) fn in_sync_with(&self, peer: NodeId) -> Option<()> {
        let status = self.shard.status(self.id).expect("a status").status;
        let connection = status.connections.iter().find(|c| c.peer == peer)?;
        let device = connection.peer_devices.first()?;
        let done = connection.conn == ConnState::Connected
            && device.repl == ReplState::Established
            && device.peer_disk == DiskState::UpToDate
            && status.devices[0].disk == DiskState::UpToDate;
        done.then_some(())
    }
}

pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) board: Arc<Switchboard>,
    pub(crate) dir: tempfile::TempDir,
    patcher: Option<std::thread::JoinHandle<()>>,
    stop: Arc<std::sync::atomic::AtomicBool>,
}

/// Writes fresh internal meta data, as `drbdmeta create-md` does.
pub(crate) fn create_meta(path: &Path, bytes: u64, peers: u32) {
    let file = File::create(path).expect("a file");
    file.set_len(bytes).expect("a sparse file");
    let created = create_md(&CreateParams::new(LayoutParams::internal(bytes / 512, peers))).expect("a sound layout");
    for write in created.writes {
        if let WriteContent::Bytes(bytes) = write.content {
            file.write_all_at(&bytes, write.offset_bytes).expect("written");
        }
    }
    file.sync_all().expect("synced");
}

impl Cluster {
    /// `nodes` connected nodes, diskful, the first one Primary with data that counts.
    pub(crate) fn start(nodes: usize, disk_bytes: u64) -> Cluster {
        Cluster::start_numbered(0, nodes, disk_bytes)
    }

    /// The same, with numbers of shards from `first_shard`.
    pub(crate) fn start_numbered(first_shard: u16, nodes: usize, disk_bytes: u64) -> Cluster {
        let cluster = Cluster::start_all(first_shard, nodes, disk_bytes);
        cluster.nodes[0].admin(Command::Promote { force: true });
        for peer in 1..nodes {
            let peer = NodeId(peer as u8);
            eventually("initial sync", || cluster.nodes[0].in_sync_with(peer));
        }
        cluster
    }

    /// The same, all Secondary and Inconsistent.
    pub(crate) fn start_secondary(nodes: usize, disk_bytes: u64) -> Cluster {
        Cluster::start_all(0, nodes, disk_bytes)
    }

    fn start_all(first_shard: u16, nodes: usize, disk_bytes: u64) -> Cluster {
        let dir = tempfile::tempdir().expect("a directory");
        let board = Arc::new(Switchboard::default());
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let all: Vec<Node> = (0..nodes)
            .map(|nr| {
                create_meta(&dir.path().join(format!("disk{nr}")), disk_bytes, (nodes.max(2) - 1) as u32);
                Node::start(&board, dir.path(), (nr, first_shard + nr as u16), nodes)
            })
            .collect();
        *board.shards.lock().expect("no panic") = all.iter().map(|n| n.shard.clone()).collect();
        let (patching, stopping) = (Arc::clone(&board), Arc::clone(&stop));
        let patcher = std::thread::spawn(move || {
            while !stopping.load(std::sync::atomic::Ordering::SeqCst) {
                patching.patch();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        for (nr, node) in all.iter().enumerate() {
            for peer in (0..nodes).filter(|&p| p != nr) {
                node.admin(Command::Connect { peer: NodeId(peer as u8), discard_my_data: false });
            }
        }
        Cluster { nodes: all, board, dir, patcher: Some(patcher), stop }
    }

    /// Ends everything in order and checks that nothing leaked.
    pub(crate) fn stop(self) {
        for node in &self.nodes {
            node.shard
                .close_exports(node.id)
                .expect("the shard runs")
                .wait_for(PATIENCE)
                .expect("runs")
                .expect("in time");
        }
        for node in &self.nodes {
            node.admin(Command::Down);
            eventually("the resource can be removed", || match node.shard.remove_resource(node.id) {
                Ok(()) => Some(()),
                Err(zea_shard::ShardError::InUse(_)) => None,
                Err(e) => panic!("{e}"),
            });
        }
        for node in &self.nodes {
            let metrics = node.shard.metrics();
            let in_use = || metrics.buffers_in_use.load(std::sync::atomic::Ordering::Relaxed);
            eventually("all buffers are back", || {
                // The gauges are set at the end of a turn.
                let _ = node.shard.status_all();
                (in_use() == 0).then_some(())
            });
        }
    }
}

impl Cluster {
    /// Stops a node's shard as a crash would, and starts it again on the same disk.
    pub(crate) fn crash(&mut self, nr: usize) {
        self.nodes[nr].shard.stop().expect("the shard did not panic");
        std::fs::remove_file(&self.nodes[nr].socket).expect("the socket");
        let nodes = self.nodes.len();
        let started = Node::start(&self.board, self.dir.path(), (nr, nr as u16), nodes);
        self.board.shards.lock().expect("no panic")[nr] = started.shard.clone();
        self.nodes[nr] = started;
        for peer in (0..nodes).filter(|&p| p != nr) {
            self.nodes[nr].admin(Command::Connect { peer: NodeId(peer as u8), discard_my_data: false });
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        for node in &self.nodes {
            let stopped = node.shard.stop();
            if !std::thread::panicking() {
                stopped.expect("the shard did not panic");
            }
        }
        if let Some(patcher) = self.patcher.take() {
            let ended = patcher.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

/// A shard whose links are made by the switchboard, with a flight recorder, and a socket for its clients.
pub(crate) fn shard(
    board: &Arc<Switchboard>,
    (nr, number, own): (usize, u16, NodeId),
    exports: &ExportDirectory,
    socket: &Path,
) -> ShardHandle {
    let maker = Maker { board: Arc::clone(board), shard: nr, own };
    // The writer's thread ends with the shard.
    let recordings = RingOptions { dir: socket.with_extension("flight"), ring_bytes: MIN_RING_BYTES };
    let recordings = Some(Writer::start(&recordings).expect("a recorder").outlet());
    let config = ShardConfig { recordings, ..ShardConfig::new(number, Arc::new(maker), exports.clone()) };
    let shard = Shard::spawn(config).expect("a shard");
    let listener = UnixListener::bind(socket).expect("bound");
    shard.listen_nbd(OwnedFd::from(listener)).expect("listens");
    shard
}

impl Node {
    fn start(board: &Arc<Switchboard>, dir: &Path, (nr, number): (usize, u16), nodes: usize) -> Node {
        let own = NodeId(nr as u8);
        let exports = ExportDirectory::new();
        let socket = dir.join(format!("nbd{nr}"));
        let shard = shard(board, (nr, number, own), &exports, &socket);
        let data = dir.join(format!("disk{nr}"));
        let node = Node::on(shard, "r0", own, exports, data, socket);
        for peer in (0..nodes).filter(|&p| p != nr) {
            let node_id = NodeId(peer as u8);
            let net = NetOptions::default();
            node.admin(Command::AddPeer(PeerConfig { node_id, name: format!("n{peer}"), net }));
        }
        node.add_volume();
        node
    }

    /// An empty resource on a shard.
    pub(crate) fn on(
        shard: ShardHandle,
        name: &str,
        own: NodeId,
        exports: ExportDirectory,
        data: PathBuf,
        socket: PathBuf,
    ) -> Node {
        let id = ResourceId::next();
        shard.add_resource(id, ResourceConfig::new(name, own)).expect("added");
        Node { shard, id, exports, data, socket }
    }

    /// Adds the volume, attaches its disk, exports it under the resource's name.
    pub(crate) fn add_volume(&self) {
        let disk = DiskOptions::default();
        self.admin(Command::AddVolume(VolumeConfig { volume: V0, size_sectors: None, disk }));
        self.attach().expect("attached");
        let name = self.shard.status(self.id).expect("a status").name;
        self.shard.add_export(self.id, V0, &*name).expect("exported");
    }

    pub(crate) fn attach(&self) -> Result<(), zea_core::io::AdminError> {
        let paths = BackingPaths { data: self.data.clone(), meta: None, placement: Placement::Internal };
        let attached = self.shard.open_backing(self.id, V0, &paths).expect("opened").wait_for(PATIENCE);
        attached.expect("the shard runs").expect("in time")
    }
}
