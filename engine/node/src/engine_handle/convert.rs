//! Between the control plane's words and the core's.

use zea_core::config as core;
use zea_core::event::{Event as CoreEvent, PeerDeviceStatus as CorePeerDevice, Severity, Status, VerifyStatus};
use zea_core::io::{AdminError, Command as CoreCommand};
use zea_shard::ShardError;
use zea_tcp::{PathConfig, PathOptions};
use zea_wire::ids::{NodeId, VolumeNr};
use zea_wire::state::ConnState;

use super::Command;
use crate::api::{
    ConnectionStatus, DeviceStatus, EventBody, Failure, PathStatus, PeerDeviceStatus, ResourceStatus, Secret,
    SocketAddress, VerifyResult, suspended,
};
use crate::config::{Address, Peer, Protocol, ResourceFile, Volume};

/// DRBD's code for a cluster that did not answer in time.
const SS_TIMEOUT: i32 = -23;

/// What the control plane knows beside the core's status.
pub(super) struct Around<'a> {
    pub(super) file: &'a ResourceFile,
    pub(super) own: u8,
    /// NBD clients of a volume.
    pub(super) open_count: &'a dyn Fn(u16) -> u32,
    /// The block device of a volume: its link and the kernel's name.
    pub(super) device: &'a dyn Fn(u16) -> Option<(String, String)>,
    /// Why a peer cannot be reached.
    pub(super) link_error: &'a dyn Fn(u8) -> Option<String>,
}

pub(super) fn net_options(file: &ResourceFile, secret: Option<&Secret>) -> core::NetOptions {
    let net = &file.net;
    core::NetOptions {
        protocol: match net.protocol {
            Protocol::A => core::Protocol::A,
            Protocol::B => core::Protocol::B,
            Protocol::C => core::Protocol::C,
        },
        ping_int_ms: net.ping_int_ms,
        ping_timeout_ms: net.ping_timeout_ms,
        timeout_ms: net.timeout_ms,
        ko_count: net.ko_count,
        verify_alg: net.verify_alg.map(|alg| alg.0),
        csums_alg: net.csums_alg.map(|alg| alg.0),
        use_rle: net.use_rle,
        protocol_max: net.protocol_version_max.unwrap_or(zea_core::limits::PROTOCOL_MAX),
        after_sb_0pri: net.after_sb_0pri.0,
        after_sb_1pri: net.after_sb_1pri.0,
        integrity_alg: net.data_integrity_alg.map(|alg| alg.0),
        cram_hmac_alg: net.cram_hmac_alg.map(|algorithm| algorithm.name().to_owned()),
        shared_secret: secret.map(|secret| secret.0.clone()).unwrap_or_default(),
        ..core::NetOptions::default()
    }
}

pub(super) fn peer_config(file: &ResourceFile, secret: Option<&Secret>, peer: &Peer) -> core::PeerConfig {
    core::PeerConfig { node_id: NodeId(peer.id), name: peer.name.clone(), net: net_options(file, secret) }
}

pub(super) fn volume_config(file: &ResourceFile, volume: &Volume) -> core::VolumeConfig {
    let disk = core::DiskOptions {
        al_extents: file.disk.al_extents,
        disk_flushes: file.disk.disk_flushes,
        resync: file.disk.resync_options(),
        ..core::DiskOptions::default()
    };
    core::VolumeConfig { volume: VolumeNr(volume.nr), size_sectors: volume.size.map(|size| size.sectors()), disk }
}

/// Which volumes are resynced after others. All orders go before the first is given: one that is turned round would be a circle in between.
pub(super) fn resync_orders(file: &ResourceFile) -> impl Iterator<Item = CoreCommand> + use<> {
    let order =
        |nr: u16, after: Option<u16>| CoreCommand::SetResyncAfter { volume: VolumeNr(nr), after: after.map(VolumeNr) };
    let none: Vec<_> = file.volumes.iter().map(|volume| order(volume.nr, None)).collect();
    let given = file.volumes.iter().filter(|volume| volume.resync_after.is_some());
    let given: Vec<_> = given.map(|volume| order(volume.nr, volume.resync_after)).collect();
    none.into_iter().chain(given)
}

pub(super) fn path(file: &ResourceFile, own: &Peer, peer: &Peer) -> PathConfig {
    // Both are at most two minutes by the checks of the resource file.
    let ms = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let options = PathOptions {
        timeout_ms: ms(file.net.timeout_ms),
        ping_timeout_ms: ms(file.net.ping_timeout_ms),
        ..PathOptions::default()
    };
    PathConfig { own: own.address.0, peer: peer.address.0, options }
}

/// The core's command; attaching goes another way, because the shard opens the device.
pub(super) fn command(command: &Command) -> Option<CoreCommand> {
    Some(match *command {
        Command::Attach { .. } => return None,
        Command::Detach { volume, force } => CoreCommand::Detach { volume: VolumeNr(volume), force },
        Command::Connect { peer, discard_my_data } => CoreCommand::Connect { peer: NodeId(peer), discard_my_data },
        Command::Disconnect { peer, force } => CoreCommand::Disconnect { peer: NodeId(peer), force },
        Command::Promote { force } => CoreCommand::Promote { force },
        Command::Demote => CoreCommand::Demote,
        Command::Verify { peer, volume, start, stop } => {
            CoreCommand::Verify { peer: NodeId(peer), volume: VolumeNr(volume), start_sector: start, stop_sector: stop }
        }
        Command::Resize { volume, size_sectors, assume_clean } => {
            CoreCommand::Resize { volume: VolumeNr(volume), size_sectors, assume_clean }
        }
        Command::PauseSync { peer, volume, paused } => {
            CoreCommand::PauseSync { peer: NodeId(peer), volume: VolumeNr(volume), paused }
        }
        Command::InvalidateRemote { peer, volume } => {
            CoreCommand::InvalidateRemote { peer: NodeId(peer), volume: VolumeNr(volume) }
        }
        Command::Invalidate { volume } => CoreCommand::Invalidate { volume: VolumeNr(volume) },
    })
}

pub(super) fn admin_failure(error: &AdminError) -> Failure {
    match error.code {
        0 => Failure::refused(0, error.message.clone()),
        SS_TIMEOUT => Failure::timeout(format!("State change failed: ({SS_TIMEOUT}) {}", error.message)),
        code => Failure::state_change(code, &error.message),
    }
}

pub(super) fn shard_failure(error: &ShardError) -> Failure {
    match error {
        ShardError::Admin(error) => admin_failure(error),
        ShardError::InUse(message) => Failure::refused(0, message.clone()),
        ShardError::NoResource => Failure::failed("it is not up"),
        other => Failure::failed(other.to_string()),
    }
}

pub(super) fn status(status: &Status, around: &Around<'_>) -> ResourceStatus {
    let file = around.file;
    ResourceStatus {
        name: file.name.clone(),
        node_id: status.node_id.0,
        role: status.role.to_string(),
        suspended: status.suspended_quorum,
        suspended_user: false,
        suspended_no_data: false,
        suspended_fencing: false,
        suspended_quorum: status.suspended_quorum,
        write_ordering: if file.disk.disk_flushes { "flush" } else { "drain" }.into(),
        devices: status.devices.iter().map(|device| self::device(device, around)).collect(),
        connections: status.connections.iter().map(|connection| self::connection(status, connection, around)).collect(),
    }
}

/// The status of a core that is known by its recording alone: without paths, backing devices and clients.
pub fn recorded_status(name: &str, status: &Status) -> ResourceStatus {
    let (net, disk, options, nodes, volumes) = Default::default();
    let file = ResourceFile { name: name.to_owned(), net, disk, options, nodes, volumes };
    let around =
        Around { file: &file, own: status.node_id.0, open_count: &|_| 0, device: &|_| None, link_error: &|_| None };
    self::status(status, &around)
}

fn device(device: &zea_core::event::DeviceStatus, around: &Around<'_>) -> DeviceStatus {
    let nr = device.volume.0;
    let open_count = (around.open_count)(nr);
    let device_paths = (around.device)(nr);
    DeviceStatus {
        volume: nr,
        disk_state: device.disk.to_string(),
        quorum: device.quorum,
        no_quorum: device.no_quorum.clone(),
        open: open_count > 0,
        open_count,
        backing_dev: around.file.volume(nr).map(|volume| volume.disk.display().to_string()).unwrap_or_default(),
        // The node knows its sockets.
        export: String::new(),
        device: device_paths.as_ref().map(|(link, _)| link.clone()),
        device_node: device_paths.map(|(_, node)| node),
        size: device.size_sectors / 2,
        read: device.read_bytes / 1024,
        written: device.written_bytes / 1024,
        al_writes: device.al_writes,
        bm_writes: device.bm_writes,
        upper_pending: device.requests_in_flight,
        current_uuid: zea_meta::uuid::format_uuid(device.current_uuid),
    }
}

fn connection(
    status: &Status,
    connection: &zea_core::event::ConnectionStatus,
    around: &Around<'_>,
) -> ConnectionStatus {
    let peer = connection.peer.0;
    let established = connection.conn == ConnState::Connected;
    let reason = || connection.last_error.clone().or_else(|| (around.link_error)(peer));
    let path = around.file.node(around.own).zip(around.file.node(peer)).map(|(own, peer)| PathStatus {
        this_host: socket_address(&own.address),
        remote_host: socket_address(&peer.address),
        established,
    });
    ConnectionStatus {
        peer_node_id: peer,
        name: connection.name.clone(),
        connection_state: connection.conn.to_string(),
        peer_role: connection.role.to_string(),
        protocol_version: connection.version,
        last_error: if established { None } else { reason() },
        last_split_brain: connection.last_split_brain.clone(),
        paths: path.into_iter().collect(),
        peer_devices: connection.peer_devices.iter().map(|it| peer_device(status, it)).collect(),
    }
}

fn peer_device(status: &Status, it: &CorePeerDevice) -> PeerDeviceStatus {
    let size_sectors =
        status.devices.iter().find(|device| device.volume == it.volume).map_or(0, |device| device.size_sectors);
    let resync = (it.resync_total_sectors > 0).then_some((it.resync_total_sectors, it.out_of_sync_sectors));
    let verify = it.verify.map(|v| (v.total_sectors, v.total_sectors.saturating_sub(v.done_sectors)));
    let progress = resync.or(verify);
    let kib = |v: VerifyStatus| VerifyResult {
        complete: v.complete,
        compared: (v.done_sectors - v.skipped_sectors) / 2,
        skipped: v.skipped_sectors / 2,
        out_of_sync: v.different_sectors / 2,
    };
    PeerDeviceStatus {
        volume: it.volume.0,
        replication_state: it.repl.to_string(),
        peer_disk_state: it.peer_disk.to_string(),
        received: it.received_sectors / 2,
        sent: it.sent_sectors / 2,
        out_of_sync: it.out_of_sync_sectors / 2,
        resync_suspended: it.paused_by.to_string(),
        resync_rate: it.resync_rate_kib,
        has_sync_details: progress.is_some(),
        has_online_verify_details: verify.is_some(),
        percent_in_sync: PeerDeviceStatus::percent_in_sync(size_sectors, it.out_of_sync_sectors),
        rs_total: progress.map(|(total, _)| total),
        percent_resync_done: progress.map(|(total, left)| PeerDeviceStatus::percent_resync_done(total, left)),
        ov_left: verify.map(|(_, left)| left),
        ov_skipped: it.verify.map(|v| v.skipped_sectors),
        last_verify: it.last_verify.map(kib),
        bitmap_uuid: zea_meta::uuid::format_uuid(it.bitmap_uuid),
        unverified: it.unverified,
    }
}

fn socket_address(address: &Address) -> SocketAddress {
    SocketAddress {
        address: address.0.ip().to_string(),
        port: address.0.port(),
        family: if address.0.is_ipv4() { "ipv4" } else { "ipv6" }.into(),
    }
}

/// An event of the core in the words of the event stream.
pub(super) fn event(event: &CoreEvent, file: Option<&ResourceFile>) -> EventBody {
    let name_of = |peer: &NodeId| {
        let node = file.and_then(|file| file.node(peer.0));
        node.map_or_else(|| peer.to_string(), |node| node.name.clone())
    };
    match event {
        CoreEvent::Role { role, suspended_quorum } => {
            EventBody::Resource { role: Some(role.to_string()), suspended: Some(suspended(*suspended_quorum).into()) }
        }
        CoreEvent::Device { volume, disk, size_sectors, quorum } => {
            EventBody::Device { volume: volume.0, disk: disk.to_string(), quorum: *quorum, size: size_sectors / 2 }
        }
        CoreEvent::Connection { peer, conn, role } => EventBody::Connection {
            peer_node_id: peer.0,
            conn_name: name_of(peer),
            connection: conn.to_string(),
            role: role.to_string(),
        },
        CoreEvent::PeerDevice { peer, volume, repl, peer_disk, paused_by } => EventBody::PeerDevice {
            peer_node_id: peer.0,
            conn_name: name_of(peer),
            volume: volume.0,
            replication: repl.to_string(),
            peer_disk: peer_disk.to_string(),
            resync_suspended: paused_by.to_string(),
        },
        CoreEvent::OutOfSync { peer, volume, sector, sectors } => EventBody::OutOfSync {
            peer_node_id: peer.0,
            conn_name: name_of(peer),
            volume: volume.0,
            start: *sector,
            size: *sectors,
        },
        CoreEvent::VerifyDone { peer, volume, compared_sectors, different_sectors, skipped_sectors, complete } => {
            EventBody::Verify {
                peer_node_id: peer.0,
                conn_name: name_of(peer),
                volume: volume.0,
                result: VerifyResult {
                    complete: *complete,
                    compared: compared_sectors / 2,
                    skipped: skipped_sectors / 2,
                    out_of_sync: different_sectors / 2,
                },
            }
        }
        CoreEvent::Notice { severity, text } => {
            EventBody::Text { severity: severity_name(*severity).into(), text: text.clone() }
        }
    }
}

fn severity_name(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use zea_wire::state::{DiskState, ReplState, Role};

    use super::*;
    use crate::api::FailureKind;
    use crate::fake::sample_resource;

    #[test]
    fn engine_status_of_a_running_resync() {
        let file = sample_resource("r0", Path::new("/dev"));
        let core = Status {
            node_id: NodeId(0),
            role: Role::Primary,
            suspended_quorum: false,
            devices: vec![zea_core::event::DeviceStatus {
                volume: VolumeNr(0),
                disk: DiskState::UpToDate,
                size_sectors: 8192,
                quorum: true,
                no_quorum: None,
                current_uuid: 0xabcd,
                requests_in_flight: 3,
                read_bytes: 2048,
                written_bytes: 4096,
                al_writes: 5,
                bm_writes: 6,
            }],
            connections: vec![zea_core::event::ConnectionStatus {
                peer: NodeId(1),
                name: "bravo".into(),
                conn: ConnState::Connected,
                last_error: None,
                last_split_brain: None,
                role: Role::Secondary,
                version: 122,
                peer_devices: vec![CorePeerDevice {
                    paused_by: Default::default(),
                    resync_rate_kib: None,
                    volume: VolumeNr(0),
                    repl: ReplState::SyncSource,
                    peer_disk: DiskState::Inconsistent,
                    out_of_sync_sectors: 2048,
                    unverified: false,
                    resync_total_sectors: 8192,
                    verify: None,
                    last_verify: None,
                    sent_sectors: 6144,
                    received_sectors: 0,
                    bitmap_uuid: 1,
                }],
            }],
        };
        let around = Around {
            file: &file,
            own: 0,
            open_count: &|_| 2,
            device: &|_| None,
            link_error: &|_| Some("not shown when connected".into()),
        };
        insta::assert_json_snapshot!(status(&core, &around));
    }

    #[test]
    fn engine_status_of_a_verify_that_runs_after_another() {
        let verify = |done, complete| VerifyStatus {
            total_sectors: 4000,
            done_sectors: done,
            different_sectors: 16,
            skipped_sectors: 8,
            complete,
        };
        let it = CorePeerDevice {
            paused_by: Default::default(),
            resync_rate_kib: None,
            volume: VolumeNr(0),
            repl: ReplState::VerifyS,
            peer_disk: DiskState::UpToDate,
            out_of_sync_sectors: 16,
            unverified: false,
            resync_total_sectors: 0,
            verify: Some(verify(1000, false)),
            last_verify: Some(verify(4000, true)),
            sent_sectors: 0,
            received_sectors: 0,
            bitmap_uuid: 1,
        };
        let nobody = Status {
            node_id: NodeId(0),
            role: Role::Primary,
            suspended_quorum: false,
            devices: vec![],
            connections: vec![],
        };
        let shown = peer_device(&nobody, &it);
        assert_eq!((shown.rs_total, shown.percent_resync_done, shown.ov_left), (Some(4000), Some(25.0), Some(3000)));
        assert_eq!((shown.has_online_verify_details, shown.ov_skipped), (true, Some(8)));
        let last = VerifyResult { complete: true, compared: 1996, skipped: 4, out_of_sync: 8 };
        assert_eq!(shown.last_verify, Some(last));
    }

    #[test]
    fn engine_refusals_keep_their_code() {
        let failure = |code| admin_failure(&AdminError { code, message: "no".into() });
        assert_eq!(
            (failure(-2).kind, failure(-2).message.as_str()),
            (FailureKind::Refused, "State change failed: (-2) no")
        );
        assert_eq!((failure(0).kind, failure(0).message.as_str()), (FailureKind::Refused, "no"));
        assert_eq!(failure(SS_TIMEOUT).kind, FailureKind::Timeout);
    }
}
