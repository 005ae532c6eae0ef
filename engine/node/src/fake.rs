//! An engine in memory, for tests of the control plane: it keeps states as an administrator sees them and moves no data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::api::{
    BlockDevices, ConnectionStatus, DeviceStatus, Event, EventAction, EventBody, Failure, PeerDeviceStatus,
    ResourceStatus, Secret,
};
use crate::config::{Disk, MetaDisk, Net, Options, Peer, ResourceFile, Size, Volume};
use crate::control::Server;
use crate::engine_handle::{Command, Engine};
use crate::hub::Hub;
use crate::node::Node;
use crate::store::Store;

/// Node 0 with a fake engine and a control socket, in a directory of its own.
#[derive(Debug)]
pub struct FakeNode {
    /// Its engine, to change states behind its back.
    pub engine: Arc<FakeEngine>,
    /// Its control socket.
    pub socket: PathBuf,
    server: Option<Server>,
}

impl FakeNode {
    /// Starts it on a state directory.
    ///
    /// # Errors
    /// The directory or the socket cannot be used.
    pub fn start(dir: &Path) -> anyhow::Result<FakeNode> {
        let hub = Hub::new();
        let engine = FakeEngine::new(0, Arc::clone(&hub));
        let store = Store::open(dir, 0)?;
        let node = Node::open(0, store, Arc::clone(&engine) as Arc<dyn Engine>, hub, dir.join("nbd.sock"))?;
        node.start_all();
        let socket = dir.join("control.sock");
        let server = Server::start(&socket, Arc::new(node))?;
        Ok(FakeNode { engine, socket, server: Some(server) })
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
        }
    }
}

/// DRBD's code for "no UpToDate data".
const SS_NO_UP_TO_DATE_DISK: i32 = -2;
/// DRBD's code for "held open".
const SS_DEVICE_IN_USE: i32 = -12;

/// See the module.
#[derive(Debug)]
pub struct FakeEngine {
    own: u8,
    hub: Arc<Hub>,
    resources: Mutex<BTreeMap<String, ResourceStatus>>,
}

impl FakeEngine {
    /// An engine without resources; changes are published on the hub.
    pub fn new(own: u8, hub: Arc<Hub>) -> Arc<FakeEngine> {
        Arc::new(FakeEngine { own, hub, resources: Mutex::default() })
    }

    /// Changes a resource behind the administrator's back, as peers and front ends do.
    ///
    /// # Panics
    /// If there is no such resource.
    pub fn edit(&self, name: &str, edit: impl FnOnce(&mut ResourceStatus)) {
        edit(self.lock().get_mut(name).expect("the resource is up"));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, ResourceStatus>> {
        self.resources.lock().expect("no panic while locked")
    }
}

fn device(volume: &Volume) -> DeviceStatus {
    DeviceStatus {
        volume: volume.nr,
        disk_state: "Diskless".into(),
        quorum: true,
        no_quorum: None,
        open: false,
        open_count: 0,
        backing_dev: volume.disk.display().to_string(),
        export: String::new(),
        device: None,
        device_node: None,
        size: 0,
        read: 0,
        written: 0,
        al_writes: 0,
        bm_writes: 0,
        upper_pending: 0,
        current_uuid: "0000000000000004".into(),
    }
}

fn connection(peer: &Peer, volumes: &[Volume]) -> ConnectionStatus {
    let peer_device = |volume: &Volume| PeerDeviceStatus {
        volume: volume.nr,
        replication_state: "Off".into(),
        peer_disk_state: "DUnknown".into(),
        received: 0,
        sent: 0,
        out_of_sync: 0,
        has_sync_details: false,
        has_online_verify_details: false,
        resync_suspended: "no".into(),
        resync_rate: None,
        percent_in_sync: 100.0,
        rs_total: None,
        percent_resync_done: None,
        ov_left: None,
        ov_skipped: None,
        last_verify: None,
        bitmap_uuid: "0000000000000000".into(),
        unverified: false,
    };
    ConnectionStatus {
        peer_node_id: peer.id,
        name: peer.name.clone(),
        connection_state: "StandAlone".into(),
        peer_role: "Unknown".into(),
        protocol_version: 0,
        last_error: None,
        last_split_brain: None,
        paths: Vec::new(),
        peer_devices: volumes.iter().map(peer_device).collect(),
    }
}

impl Engine for FakeEngine {
    fn go_on(&self, _name: &str) {}

    fn all_started(&self) {}

    fn block_devices(&self) -> BlockDevices {
        BlockDevices { features: None, missing: Some("this engine has no data".into()) }
    }

    fn start(&self, resource: &ResourceFile, _secret: Option<&Secret>) -> Result<(), Failure> {
        let status = ResourceStatus {
            name: resource.name.clone(),
            node_id: self.own,
            role: "Secondary".into(),
            suspended: false,
            suspended_user: false,
            suspended_no_data: false,
            suspended_fencing: false,
            suspended_quorum: false,
            write_ordering: "flush".into(),
            devices: resource.volumes.iter().map(device).collect(),
            connections: resource.peers(self.own).map(|peer| connection(peer, &resource.volumes)).collect(),
        };
        match self.lock().insert(resource.name.clone(), status) {
            None => Ok(()),
            Some(_) => Err(Failure::refused(0, "it is up already")),
        }
    }

    fn stop(&self, name: &str, grace: Option<Duration>) -> Result<(), Failure> {
        let mut resources = self.lock();
        let resource = resources.get(name).ok_or_else(|| Failure::failed("it is not up"))?;
        if grace.is_none() && resource.devices.iter().any(|device| device.open) {
            return Err(Failure::state_change(SS_DEVICE_IN_USE, "Device is held open by someone"));
        }
        resources.remove(name);
        Ok(())
    }

    fn command(&self, name: &str, command: Command) -> Result<(), Failure> {
        let mut resources = self.lock();
        let resource = resources.get_mut(name).ok_or_else(|| Failure::failed("it is not up"))?;
        match command {
            Command::Attach { volume } => device_of(resource, volume)?.disk_state = "Inconsistent".into(),
            Command::Resize { volume, size_sectors, .. } => device_of(resource, volume)?.size = size_sectors / 2,
            Command::PauseSync { peer, volume, paused } => {
                let suspended = if paused { "user" } else { "no" };
                peer_device_of(resource, peer, volume)?.resync_suspended = suspended.into();
            }
            Command::InvalidateRemote { peer, volume } => {
                peer_device_of(resource, peer, volume)?.peer_disk_state = "Inconsistent".into();
            }
            Command::Invalidate { volume } => device_of(resource, volume)?.disk_state = "Inconsistent".into(),
            Command::Detach { volume, .. } => device_of(resource, volume)?.disk_state = "Diskless".into(),
            Command::Verify { peer, volume, .. } => {
                peer_device_of(resource, peer, volume)?.replication_state = "VerifyS".into();
            }
            Command::Connect { peer, .. } => connection_of(resource, peer)?.connection_state = "Connecting".into(),
            Command::Disconnect { peer, .. } => connection_of(resource, peer)?.connection_state = "StandAlone".into(),
            Command::Promote { force } => {
                if !force && resource.devices.iter().any(|device| device.disk_state != "UpToDate") {
                    return Err(Failure::state_change(SS_NO_UP_TO_DATE_DISK, "Need access to UpToDate data"));
                }
                resource.devices.iter_mut().for_each(|device| device.disk_state = "UpToDate".into());
                resource.role = "Primary".into();
            }
            Command::Demote => resource.role = "Secondary".into(),
        }
        let body = EventBody::of_resource(resource);
        self.hub.publish(&Event { action: EventAction::Change, name: name.into(), body });
        Ok(())
    }

    fn reconfigure(&self, resource: &ResourceFile, _secret: Option<&Secret>) -> Result<(), Failure> {
        self.status(&resource.name).map(|_| ())
    }

    fn status(&self, name: &str) -> Result<ResourceStatus, Failure> {
        self.lock().get(name).cloned().ok_or_else(|| Failure::failed("it is not up"))
    }
}

fn device_of(resource: &mut ResourceStatus, nr: u16) -> Result<&mut DeviceStatus, Failure> {
    let found = resource.devices.iter_mut().find(|device| device.volume == nr);
    found.ok_or_else(|| Failure::failed("no such volume"))
}

fn connection_of(resource: &mut ResourceStatus, peer: u8) -> Result<&mut ConnectionStatus, Failure> {
    let found = resource.connections.iter_mut().find(|connection| connection.peer_node_id == peer);
    found.ok_or_else(|| Failure::failed("no such peer"))
}

fn peer_device_of(resource: &mut ResourceStatus, peer: u8, nr: u16) -> Result<&mut PeerDeviceStatus, Failure> {
    let found = connection_of(resource, peer)?.peer_devices.iter_mut().find(|it| it.volume == nr);
    found.ok_or_else(|| Failure::failed("no such volume"))
}

/// A resource of two nodes, 0 `alpha` and 1 `bravo`, with one volume of 4 MiB in a file of `dir`.
///
/// # Panics
/// Never: the addresses are well formed.
pub fn sample_resource(name: &str, dir: &Path) -> ResourceFile {
    // Every resource needs a port of its own: r0 has 7789, r1 has 7790.
    let port = 7789 + name.bytes().last().map_or(0, |byte| u16::from(byte.saturating_sub(b'0')));
    let peer = |id: u8, node: &str| Peer {
        id,
        name: node.into(),
        address: format!("127.0.0.{}:{port}", id + 1).parse().expect("an address"),
    };
    ResourceFile {
        name: name.into(),
        net: Net::default(),
        disk: Disk::default(),
        options: Options::default(),
        nodes: vec![peer(0, "alpha"), peer(1, "bravo")],
        volumes: vec![Volume {
            nr: 0,
            disk: dir.join(format!("{name}.img")),
            size: Some(Size(4 << 20)),
            meta_disk: MetaDisk::Internal,
            resync_after: None,
        }],
    }
}
