//! Block devices that a daemon left behind which was killed: what was written to them meanwhile waits in the kernel. Its
//! successor goes on with them when it is sure that nobody else has gone on, else it lets them go: whoever uses them gets errors.
//!
//! Sure means: the resource is Primary again, by a two-phase commit like any other, its disks are UpToDate in the very generation
//! that they had when the daemon was killed, and every peer that was connected then is connected again, unless quorum says
//! that those who are missing cannot go on. That generation is the one in the meta data when the disk is attached, before anything
//! is connected; it is kept in a file until the matter is decided, because a successor may be killed, too.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zea_core::event::{ConnectionStatus, Status};
use zea_wire::state::{ConnState, DiskState, Role};

/// How long peers may take to connect and to agree, before the devices are let go.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// The low bit of a current UUID says that its node was Primary, not which data it has.
const PRIMARY_BIT: u64 = 1;

/// A device without a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Left {
    /// Number of the device.
    pub(super) id: u32,
    /// Requests at once.
    pub(super) depth: u16,
    /// The current UUID of the data behind it, once that is known.
    pub(super) generation: Option<u64>,
}

/// Those of a resource, by volume.
pub(super) type Leftovers = BTreeMap<u16, Left>;

/// Whether to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nobody else has.
    Yes,
    /// Not known yet.
    Wait(String),
    /// Never.
    No(String),
}

/// What the state of a resource says about going on with its devices.
pub(super) fn judge(status: &Status, left: &Leftovers, has_quorum: bool) -> Verdict {
    if let Some(primary) = status.connections.iter().find(|peer| peer.role == Role::Primary) {
        return Verdict::No(format!("{} is Primary", primary.name));
    }
    let mut wait = None;
    for (nr, left) in left {
        let Some(held) = left.generation else {
            return Verdict::No(format!("the disk of volume {nr} was not attached"));
        };
        let Some(device) = status.devices.iter().find(|device| device.volume.0 == *nr) else {
            return Verdict::No(format!("there is no volume {nr} any more"));
        };
        // Without a disk there is no UUID to look at.
        if device.disk == DiskState::UpToDate && !is_same(device.current_uuid, held) {
            return Verdict::No(format!("volume {nr} has data of another generation: another node has gone on"));
        }
        if device.disk != DiskState::UpToDate {
            wait = Some(format!("volume {nr} is {}", device.disk));
        }
    }
    let missing = status.connections.iter().find(|peer| !has_quorum && was_connected(peer, left));
    if let Some(peer) = missing {
        wait = Some(format!("{} was connected and has to be asked", peer.name));
    }
    wait.map_or(Verdict::Yes, Verdict::Wait)
}

/// A peer that is not connected and had the same data. From one that was lost before, writes have been kept apart by a bitmap UUID.
fn was_connected(peer: &ConnectionStatus, left: &Leftovers) -> bool {
    let behind = |nr: &u16| peer.peer_devices.iter().any(|d| d.volume.0 == *nr && d.bitmap_uuid != 0);
    peer.conn != ConnState::Connected && !left.keys().all(behind)
}

fn is_same(one: u64, other: u64) -> bool {
    one | PRIMARY_BIT == other | PRIMARY_BIT
}

/// The file about the devices that a resource left behind.
pub(super) struct Memory(PathBuf);

impl Memory {
    pub(super) fn new(state_dir: &Path, name: &str) -> Memory {
        Memory(state_dir.join("left").join(name))
    }

    /// Takes what an earlier successor wrote down, about the same devices.
    pub(super) fn recall(&self, left: &mut Leftovers) {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        for line in text.lines() {
            let mut words = line.split(' ');
            let mut number = |radix| u64::from_str_radix(words.next()?, radix).ok();
            let (Some(nr), Some(id), Some(generation)) = (number(10), number(10), number(16)) else { continue };
            if let Some(left) =
                u16::try_from(nr).ok().and_then(|nr| left.get_mut(&nr)).filter(|l| u64::from(l.id) == id)
            {
                left.generation = Some(generation);
            }
        }
    }

    /// Writes down what is known, before anything is connected.
    pub(super) fn keep(&self, left: &Leftovers) -> anyhow::Result<()> {
        let line = |(nr, left): (&u16, &Left)| Some(format!("{nr} {} {:x}\n", left.id, left.generation?));
        let text: String = left.iter().filter_map(line).collect();
        if let Some(folder) = self.0.parent() {
            fs::create_dir_all(folder)?;
        }
        crate::store::write_atomic(&self.0, text.as_bytes(), 0o600)
    }

    /// The matter is decided.
    pub(super) fn forget(&self) {
        // There is none where nothing was left.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use zea_core::event::{DeviceStatus, PausedBy, PeerDeviceStatus};
    use zea_wire::ids::{NodeId, VolumeNr};
    use zea_wire::state::ReplState;

    use super::*;

    const HELD: u64 = 0xabcd_0000_0000_0002;

    fn device(disk: DiskState, current_uuid: u64) -> DeviceStatus {
        DeviceStatus {
            volume: VolumeNr(0),
            disk,
            size_sectors: 2048,
            quorum: true,
            no_quorum: None,
            current_uuid,
            requests_in_flight: 0,
            read_bytes: 0,
            written_bytes: 0,
            al_writes: 0,
            bm_writes: 0,
        }
    }

    fn peer(conn: ConnState, role: Role, bitmap_uuid: u64) -> ConnectionStatus {
        ConnectionStatus {
            peer: NodeId(1),
            name: "bravo".into(),
            conn,
            last_error: None,
            last_split_brain: None,
            role,
            version: 0,
            peer_devices: vec![PeerDeviceStatus {
                volume: VolumeNr(0),
                repl: ReplState::Off,
                peer_disk: DiskState::DUnknown,
                out_of_sync_sectors: 0,
                unverified: false,
                resync_total_sectors: 0,
                verify: None,
                last_verify: None,
                sent_sectors: 0,
                received_sectors: 0,
                resync_rate_kib: None,
                paused_by: PausedBy::default(),
                bitmap_uuid,
            }],
        }
    }

    fn verdict(device: DeviceStatus, peer: ConnectionStatus, has_quorum: bool) -> Verdict {
        let status = Status {
            node_id: NodeId(0),
            role: Role::Secondary,
            suspended_quorum: false,
            devices: vec![device],
            connections: vec![peer],
        };
        let left = Leftovers::from([(0, Left { id: 3, depth: 128, generation: Some(HELD) })]);
        judge(&status, &left, has_quorum)
    }

    #[test]
    fn ublk_a_daemon_goes_on_only_where_nobody_else_has() {
        let (away, here) = (ConnState::Connecting, ConnState::Connected);
        let secondary = |conn, bitmap| peer(conn, Role::Secondary, bitmap);
        let good = || device(DiskState::UpToDate, HELD | 1);
        assert_eq!(verdict(good(), secondary(here, 0), false), Verdict::Yes);
        assert_eq!(verdict(good(), secondary(away, 7), false), Verdict::Yes, "it was lost before");
        assert_eq!(verdict(good(), secondary(away, 0), true), Verdict::Yes, "it has no quorum");
        assert!(matches!(verdict(good(), secondary(away, 0), false), Verdict::Wait(why) if why.contains("bravo")));
        let resynced = device(DiskState::Inconsistent, HELD);
        assert!(matches!(verdict(resynced, secondary(here, 0), false), Verdict::Wait(_)));
        let other = device(DiskState::UpToDate, HELD + 2);
        assert!(matches!(verdict(other, secondary(here, 0), false), Verdict::No(why) if why.contains("gone on")));
        assert!(matches!(verdict(good(), peer(here, Role::Primary, 0), true), Verdict::No(_)));
    }

    #[test]
    fn ublk_the_generation_is_remembered_for_the_same_device() {
        let dir = tempfile::tempdir().expect("a folder");
        let memory = Memory::new(dir.path(), "r0");
        let mut left = Leftovers::from([
            (0, Left { id: 3, depth: 128, generation: Some(HELD) }),
            (1, Left { id: 4, depth: 128, generation: None }),
        ]);
        memory.keep(&left).expect("written");
        left.values_mut().for_each(|left| left.generation = None);
        memory.recall(&mut left);
        assert_eq!((left[&0].generation, left[&1].generation), (Some(HELD), None));
        left.insert(0, Left { id: 5, depth: 128, generation: None });
        memory.recall(&mut left);
        assert_eq!(left[&0].generation, None, "another device");
        memory.forget();
        left.insert(0, Left { id: 3, depth: 128, generation: None });
        memory.recall(&mut left);
        assert_eq!(left[&0].generation, None);
    }
}
