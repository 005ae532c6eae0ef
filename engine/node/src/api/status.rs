//! Status as JSON. Shape and key names are those of `drbdsetup status --json` (`tooling-contract.md` section 7.2).
//!
//! Keys that Zea cannot know (device minors, TLS, requests in flight per connection) are left out rather than made up;
//! keys of its own are `no-quorum`, `open-count`, `backing-dev`, `export`, `device`, `device-node`, `current-uuid`, `bitmap-uuid`, `unverified`,
//! `last-verify`, `last-error`, `protocol-version`, `resync-rate`. Sizes are in KiB.

use serde::{Deserialize, Serialize};

/// Reply to [`super::Request::Status`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusReply {
    /// Resources that are up, by name.
    pub resources: Vec<ResourceStatus>,
    /// Names of resources that are configured and down.
    pub down: Vec<String>,
    /// Resource files that could not be read.
    pub broken: Vec<Broken>,
    /// Whether volumes are block devices.
    #[serde(default)]
    pub block_devices: BlockDevices,
}

/// Whether volumes are block devices on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockDevices {
    /// Features of the kernel's driver, by its names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<String>,
    /// Why there are none, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// A resource file that the daemon could not use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broken {
    /// Name of the resource.
    pub name: String,
    /// Why.
    pub error: String,
}

/// A resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ResourceStatus {
    /// Name.
    pub name: String,
    /// This node's id.
    pub node_id: u8,
    /// `Primary` or `Secondary`.
    pub role: String,
    /// I/O waits, for any of the four reasons that follow. Zea has only the last one.
    pub suspended: bool,
    /// See `suspended`.
    pub suspended_user: bool,
    /// See `suspended`.
    pub suspended_no_data: bool,
    /// See `suspended`.
    pub suspended_fencing: bool,
    /// I/O waits for quorum (`on-no-quorum suspend-io`).
    pub suspended_quorum: bool,
    /// `flush`, or `drain` where `disk-flushes` is off.
    pub write_ordering: String,
    /// Volumes.
    pub devices: Vec<DeviceStatus>,
    /// Peers.
    pub connections: Vec<ConnectionStatus>,
}

/// A volume on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeviceStatus {
    /// Volume number.
    pub volume: u16,
    /// `UpToDate`, `Inconsistent`, `Diskless`, …
    pub disk_state: String,
    /// There is quorum, or it is off.
    pub quorum: bool,
    /// Why there is none, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_quorum: Option<String>,
    /// Front ends have it open.
    pub open: bool,
    /// How many.
    pub open_count: u32,
    /// Path of the backing device.
    pub backing_dev: String,
    /// NBD address, `nbd+unix:///RESOURCE/VOLUME?socket=PATH`.
    pub export: String,
    /// Link to the block device, while there is one: `/dev/zea/RESOURCE/VOLUME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// What it links to: `/dev/ublkbN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_node: Option<String>,
    /// Usable size in KiB.
    pub size: u64,
    /// KiB read by front ends.
    pub read: u64,
    /// KiB written by front ends.
    pub written: u64,
    /// Activity log transactions since attach.
    pub al_writes: u64,
    /// Bitmap blocks written since attach.
    pub bm_writes: u64,
    /// Requests of front ends that are not completed.
    pub upper_pending: u64,
    /// Current UUID, 16 hex digits.
    pub current_uuid: String,
}

/// A connection to a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ConnectionStatus {
    /// Node id of the peer.
    pub peer_node_id: u8,
    /// Name of the peer.
    pub name: String,
    /// `Connected`, `Connecting`, `StandAlone`, …
    pub connection_state: String,
    /// Role of the peer.
    pub peer_role: String,
    /// Agreed protocol version, 0 when not connected.
    pub protocol_version: u32,
    /// Why it is not connected, if that is known.
    pub last_error: Option<String>,
    /// The last split brain that a policy ended, and whose changes are lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_split_brain: Option<String>,
    /// Addresses.
    pub paths: Vec<PathStatus>,
    /// Volumes.
    #[serde(rename = "peer_devices")]
    pub peer_devices: Vec<PeerDeviceStatus>,
}

/// A path of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStatus {
    /// Own end.
    pub this_host: SocketAddress,
    /// Peer's end.
    pub remote_host: SocketAddress,
    /// Both streams are up.
    pub established: bool,
}

/// One end of a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketAddress {
    /// IP address.
    pub address: String,
    /// Port.
    pub port: u16,
    /// `ipv4` or `ipv6`.
    pub family: String,
}

/// A volume on a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PeerDeviceStatus {
    /// Volume number.
    pub volume: u16,
    /// `Established`, `SyncSource`, `SyncTarget`, …
    pub replication_state: String,
    /// State of the peer's disk.
    pub peer_disk_state: String,
    /// KiB received since connect.
    pub received: u64,
    /// KiB sent since connect.
    pub sent: u64,
    /// KiB that differ or may differ.
    pub out_of_sync: u64,
    /// Why no resync with this peer goes on: `no`, or a list of `user`, `peer` and `dependency`.
    pub resync_suspended: String,
    /// KiB/s that the running resync has moved of late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resync_rate: Option<u64>,
    /// A resync or verify runs: `rs-total` and `percent-resync-done` are there.
    pub has_sync_details: bool,
    /// An online verify runs: `ov-left` and `ov-skipped` are there.
    pub has_online_verify_details: bool,
    /// Percent of the volume that is in sync.
    pub percent_in_sync: f64,
    /// Sectors that had to be resynced when the resync began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rs_total: Option<u64>,
    /// Percent of the resync that is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent_resync_done: Option<f64>,
    /// Sectors that the online verify has still to look at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ov_left: Option<u64>,
    /// Sectors that it did not compare, because they were written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ov_skipped: Option<u64>,
    /// What the last online verify found, since the resource is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_verify: Option<VerifyResult>,
    /// Bitmap UUID towards the peer, 16 hex digits.
    pub bitmap_uuid: String,
    /// The peer may have ignored out-of-sync marks: nothing proves those blocks equal.
    pub unverified: bool,
}

/// What an online verify found, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VerifyResult {
    /// It looked at everything that it was to look at; else it was interrupted.
    pub complete: bool,
    /// Compared.
    pub compared: u64,
    /// Not compared, because it was written to meanwhile.
    pub skipped: u64,
    /// Different, among what was compared.
    pub out_of_sync: u64,
}

impl PeerDeviceStatus {
    /// Percent of `size_sectors` that is in sync with `out_of_sync_sectors` that is not: two decimals, as DRBD prints.
    pub fn percent_in_sync(size_sectors: u64, out_of_sync_sectors: u64) -> f64 {
        if size_sectors == 0 {
            return 0.0;
        }
        two_decimals(100.0 * (1.0 - out_of_sync_sectors as f64 / size_sectors as f64))
    }

    /// Percent of a resync of `total_sectors` that is done with `left_sectors` to go.
    pub fn percent_resync_done(total_sectors: u64, left_sectors: u64) -> f64 {
        if total_sectors == 0 {
            return 100.0;
        }
        two_decimals(100.0 * total_sectors.saturating_sub(left_sectors) as f64 / total_sectors as f64)
    }
}

fn two_decimals(value: f64) -> f64 {
    (value.clamp(0.0, 100.0) * 100.0).floor() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_percentages_never_show_done_before_it_is() {
        assert!(PeerDeviceStatus::percent_in_sync(1 << 30, 0) == 100.0);
        assert!(PeerDeviceStatus::percent_in_sync(1 << 30, 8) < 100.0);
        assert!(PeerDeviceStatus::percent_in_sync(0, 0) == 0.0);
        assert!(PeerDeviceStatus::percent_resync_done(1 << 30, 8) < 100.0);
        assert!(PeerDeviceStatus::percent_resync_done(100, 25) == 75.0);
        // More marks than at the start (writes during the resync) is no progress, not a negative one.
        assert!(PeerDeviceStatus::percent_resync_done(100, 250) == 0.0);
    }
}
