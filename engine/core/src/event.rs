//! Events for observers, and the status snapshot: what `zea events` and `zea status` show.

use rkyv::{Archive, Deserialize, Serialize};
use zea_wire::ids::{NodeId, VolumeNr};
use zea_wire::state::{ConnState, DiskState, ReplState, Role};

/// How serious a [`Event::Notice`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Archive, Serialize, Deserialize)]
pub enum Severity {
    /// Normal course of things.
    Info,
    /// Somebody should look.
    Warning,
    /// Redundancy or access was lost.
    Error,
}

/// Something that changed. The state is the new one.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Event {
    /// The role of this node.
    Role {
        /// New role.
        role: Role,
        /// I/O waits for quorum.
        suspended_quorum: bool,
    },
    /// The local disk of a volume.
    Device {
        /// Volume.
        volume: VolumeNr,
        /// New disk state.
        disk: DiskState,
        /// Usable size.
        size_sectors: u64,
        /// There is quorum, or it is not asked for.
        quorum: bool,
    },
    /// A connection.
    Connection {
        /// Peer.
        peer: NodeId,
        /// New connection state.
        conn: ConnState,
        /// The peer's role.
        role: Role,
    },
    /// A volume on a connection.
    PeerDevice {
        /// Peer.
        peer: NodeId,
        /// Volume.
        volume: VolumeNr,
        /// New replication state.
        repl: ReplState,
        /// The peer's disk.
        peer_disk: DiskState,
        /// Why no resync with it goes on.
        paused_by: PausedBy,
    },
    /// An online verify found different data.
    OutOfSync {
        /// Peer.
        peer: NodeId,
        /// Volume.
        volume: VolumeNr,
        /// First sector.
        sector: u64,
        /// Number of sectors.
        sectors: u64,
    },
    /// An online verify ended. Counts in sectors.
    VerifyDone {
        /// Peer.
        peer: NodeId,
        /// Volume.
        volume: VolumeNr,
        /// Compared.
        compared_sectors: u64,
        /// Different, among them.
        different_sectors: u64,
        /// Not compared, because they were written to.
        skipped_sectors: u64,
        /// All was looked at; else it was interrupted.
        complete: bool,
    },
    /// A message for people.
    Notice {
        /// How serious.
        severity: Severity,
        /// Text, with the next step where one is needed.
        text: String,
    },
}

/// Why a resync does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Archive, Serialize, Deserialize)]
pub struct PausedBy {
    /// Somebody on this node.
    pub user: bool,
    /// The peer, for either of the other two reasons.
    pub peer: bool,
    /// Another volume is to be resynced before.
    pub dependency: bool,
}

/// Snapshot of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub node_id: NodeId,
    /// Role.
    pub role: Role,
    /// I/O waits for quorum.
    pub suspended_quorum: bool,
    /// Local volumes, ascending.
    pub devices: Vec<DeviceStatus>,
    /// Connections, ascending by node id.
    pub connections: Vec<ConnectionStatus>,
}

/// Snapshot of a local volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Number.
    pub volume: VolumeNr,
    /// Disk state.
    pub disk: DiskState,
    /// Usable size, 0 if unknown.
    pub size_sectors: u64,
    /// There is quorum, or it is not asked for.
    pub quorum: bool,
    /// Why there is none, and what to do.
    pub no_quorum: Option<String>,
    /// Current UUID.
    pub current_uuid: u64,
    /// Requests of the front end that are not completed.
    pub requests_in_flight: u64,
    /// Front-end bytes read, written since start.
    pub read_bytes: u64,
    /// See `read_bytes`.
    pub written_bytes: u64,
    /// Activity log transactions since attach.
    pub al_writes: u64,
    /// Bitmap blocks written since attach.
    pub bm_writes: u64,
}

/// Snapshot of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionStatus {
    /// Peer.
    pub peer: NodeId,
    /// Its name in the configuration.
    pub name: String,
    /// State.
    pub conn: ConnState,
    /// Why it is not connected, if something is known.
    pub last_error: Option<String>,
    /// The last split brain with this peer that a policy ended, and whose changes are lost.
    pub last_split_brain: Option<String>,
    /// Role of the peer.
    pub role: Role,
    /// Agreed protocol version, 0 when not connected.
    pub version: u32,
    /// Volumes.
    pub peer_devices: Vec<PeerDeviceStatus>,
}

/// Snapshot of a volume on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerDeviceStatus {
    /// Volume.
    pub volume: VolumeNr,
    /// Replication state.
    pub repl: ReplState,
    /// The peer's disk.
    pub peer_disk: DiskState,
    /// Bits set towards this peer, in sectors.
    pub out_of_sync_sectors: u64,
    /// A kernel peer ignored bits that this node keeps: these sectors want an online verify.
    pub unverified: bool,
    /// Sectors that had to be resynced when the running resync began; 0 when none runs.
    pub resync_total_sectors: u64,
    /// How fast the resync that runs has moved of late, in KiB/s.
    pub resync_rate_kib: Option<u64>,
    /// Why no resync with this peer goes on.
    pub paused_by: PausedBy,
    /// The running online verify.
    pub verify: Option<VerifyStatus>,
    /// What came of the last one.
    pub last_verify: Option<VerifyStatus>,
    /// Sectors sent to the peer since connect.
    pub sent_sectors: u64,
    /// Sectors received from the peer since connect.
    pub received_sectors: u64,
    /// Bitmap UUID towards this peer.
    pub bitmap_uuid: u64,
}

/// An online verify that runs or is over. Counts in sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct VerifyStatus {
    /// To be looked at. On the side that is asked: up to the end of the volume.
    pub total_sectors: u64,
    /// Looked at.
    pub done_sectors: u64,
    /// Different, among them.
    pub different_sectors: u64,
    /// Not compared, because they were written to.
    pub skipped_sectors: u64,
    /// It looked at everything that it was to look at.
    pub complete: bool,
}
