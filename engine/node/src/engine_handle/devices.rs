//! The block devices of volumes: made when their resource becomes Primary, removed before it becomes Secondary.
//!
//! A device is made and removed on the thread of the client that promotes or demotes, under the lock of its resource's
//! devices; what changes by itself, such as a size, is followed by the thread `devices`.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::ValueEnum;
use rustix::io::Errno;
use tracing::{info, warn};
use zea_shard::limits::DEVICE_DEPTH;
use zea_shard::{ResourceId, ShardError, ShardHandle};
use zea_ublk::{Control, Features, Info, Limits, NewDevice, Queue, State, UblkError, block_path};
use zea_wire::ids::VolumeNr;

use super::left::{Left, Leftovers};
use super::protect::protect;
use super::users::{self, Numbers};

/// Where the links to devices are: RESOURCE/VOLUME.
const LINKS: &str = "/dev/zea";
/// Devices of the driver that are looked at for those of an earlier daemon.
const CHARACTER_DEVICES: &str = "/sys/class/ublk-char";

/// How long a user is waited for: udev looks at each device that was written to, as soon as it is closed.
const PASSING: Duration = Duration::from_secs(1);
/// How often a device that is busy is tried again.
const TICK: Duration = Duration::from_millis(20);

/// How volumes are offered to this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Frontend {
    /// Block devices where the kernel can, and NBD exports.
    Auto,
    /// Block devices, or the daemon does not start; and NBD exports.
    Ublk,
    /// NBD exports only.
    Export,
}

/// Why there is no block device, or not the wanted one.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeviceError {
    #[error(transparent)]
    Ublk(#[from] UblkError),
    #[error(transparent)]
    Shard(#[from] ShardError),
    #[error("cannot link {}: {error}", path.display())]
    Link { path: PathBuf, error: std::io::Error },
    #[error("{} is in use: {users}", path.display())]
    InUse { path: PathBuf, users: String },
}

/// What all devices of a node share.
#[derive(Debug)]
pub(super) struct Devices {
    frontend: Frontend,
    /// What the driver can do; `None`: there are no block devices, for this reason.
    driver: Result<Features, String>,
    /// Marks the devices of this daemon and its predecessors.
    own: u32,
    /// What an earlier daemon with this state directory left behind, and no resource asked for yet.
    unclaimed: Mutex<Vec<Info>>,
}

/// The devices of a resource, by volume.
pub(super) type Table = BTreeMap<u16, Device>;

/// A block device.
#[derive(Debug)]
pub(super) struct Device {
    id: u32,
    numbers: Numbers,
    size_sectors: u64,
    link: PathBuf,
    /// It cannot grow, and somebody was told.
    stuck: bool,
}

impl Device {
    /// The link, for people.
    pub(super) fn link(&self) -> &Path {
        &self.link
    }

    /// The kernel's name.
    pub(super) fn node(&self) -> PathBuf {
        block_path(self.id)
    }
}

/// Whose devices: a resource on its shard.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner<'a> {
    pub(super) name: &'a str,
    pub(super) id: ResourceId,
    pub(super) shard: &'a ShardHandle,
}

impl Devices {
    /// Looks at what the kernel can do. `state_dir` tells one daemon of a machine from another.
    ///
    /// # Errors
    /// There are to be block devices, and there cannot be.
    pub(super) fn probe(frontend: Frontend, state_dir: &Path) -> Result<Devices> {
        let driver = if frontend == Frontend::Export {
            Err("the daemon was started with --frontend export".to_owned())
        } else {
            let features = Control::open().and_then(|mut control| control.features());
            features.and_then(|features| features.check().map(|()| features)).map_err(|error| error.to_string())
        };
        match &driver {
            Ok(features) => info!("block devices by ublk, whose driver has: {features}"),
            Err(why) if frontend == Frontend::Ublk => bail!("no block devices: {why}"),
            Err(why) => info!("no block devices, NBD exports only: {why}"),
        }
        let own = hash(state_dir.as_os_str().as_encoded_bytes());
        let mut unclaimed = Vec::new();
        if driver.is_ok() {
            protect();
            unclaimed = found(own);
        }
        let devices = Devices { frontend, driver, own, unclaimed: Mutex::default() };
        unclaimed.retain(|info| {
            let started = info.state != State::Dead;
            if started {
                info!("{} is without its daemon since that was killed", block_path(info.id).display());
            } else {
                devices.let_go(info.id, "it was not started yet, or stopped already");
            }
            started
        });
        *lock(&devices.unclaimed) = unclaimed;
        Ok(devices)
    }

    /// A node that cannot have the devices that it is to have fails what makes them.
    pub(super) fn are_wanted(&self) -> bool {
        self.frontend == Frontend::Ublk
    }

    /// The driver's features, or why there are no block devices.
    pub(super) fn driver(&self) -> std::result::Result<String, String> {
        self.driver.as_ref().map(ToString::to_string).map_err(Clone::clone)
    }

    /// Makes the devices of a resource what its volumes say now: those that are missing, if it is Primary, and sizes.
    ///
    /// # Errors
    /// The first that cannot be; the others are done.
    pub(super) fn sync(
        &self,
        owner: Owner<'_>,
        volumes: &[u16],
        table: &mut Table,
    ) -> std::result::Result<(), DeviceError> {
        let Ok(features) = self.driver else {
            return Ok(());
        };
        let mut first = Ok(());
        for &nr in volumes {
            let limits = owner.shard.device_limits(owner.id, VolumeNr(nr));
            let done = match (limits, table.get_mut(&nr)) {
                (Err(error), _) => Err(error.into()),
                // A device whose volume cannot be used just now stays: its requests tell.
                (Ok(None), _) => Ok(()),
                (Ok(Some(limits)), Some(device)) => resize(device, features, limits.size_sectors),
                (Ok(Some(limits)), None) => self.make(owner, nr, &limits).map(|device| {
                    info!("{}/{nr} is {} ({})", owner.name, device.link.display(), device.node().display());
                    table.insert(nr, device);
                }),
            };
            first = first.and(done);
        }
        first
    }

    fn make(&self, owner: Owner<'_>, nr: u16, limits: &Limits) -> std::result::Result<Device, DeviceError> {
        let Owner { name, id, shard } = owner;
        let mut control = Control::open()?;
        let features = Features(self.driver.as_ref().map_or(0, |all| all.0 & Features::UPDATE_SIZE.0));
        let new = NewDevice {
            id: None,
            depth: DEVICE_DEPTH,
            max_io_bytes: limits.max_io_bytes,
            tag: self.tag(name, nr),
            features,
        };
        let device = control.add(&new)?.id;
        let made = control.set_params(device, limits).map_err(DeviceError::from).and_then(|()| {
            shard.serve_device(id, VolumeNr(nr), Queue::open(device, DEVICE_DEPTH)?)?;
            control.start(device)?;
            shown(&mut control, name, nr, device)
        });
        made.inspect_err(|_| {
            if let Err(error) = end(&mut control, device) {
                warn!("{name}/{nr}: {error}");
            }
        })
    }

    /// Removes the devices of a resource. Where `force` says how long it may take, also those that somebody uses.
    ///
    /// # Errors
    /// The first that is in use, and then none is removed; or the first that cannot be.
    pub(super) fn remove(&self, table: &mut Table, force: Option<Duration>) -> std::result::Result<(), DeviceError> {
        if force.is_none() {
            let end = Instant::now() + PASSING;
            for device in table.values() {
                while let Some(users) = users::describe(&device.node(), device.numbers) {
                    if Instant::now() >= end {
                        return Err(DeviceError::InUse { path: device.link.clone(), users });
                    }
                    thread::sleep(TICK);
                }
            }
        }
        let mut first = Ok(());
        table.retain(|_, device| {
            unlink(device);
            let control = Control::open().map(|control| match force {
                None => control,
                Some(patience) => control.with_patience(patience),
            });
            let ended = control.and_then(|mut control| end(&mut control, device.id));
            let stays = ended.is_err();
            first = std::mem::replace(&mut first, Ok(())).and(ended.map_err(DeviceError::from));
            stays
        });
        first
    }

    /// The devices that an earlier daemon left of a resource.
    pub(super) fn claim(&self, name: &str, volumes: &[u16]) -> Leftovers {
        let mut unclaimed = lock(&self.unclaimed);
        let of = |nr: u16| unclaimed.iter().position(|info| info.tag == self.tag(name, nr)).map(|at| (nr, at));
        let found: Vec<(u16, usize)> = volumes.iter().filter_map(|&nr| of(nr)).collect();
        let left = |&(nr, at): &(u16, usize)| {
            let info = unclaimed[at];
            (nr, Left { id: info.id, depth: info.depth, generation: None })
        };
        let left: Leftovers = found.iter().map(left).collect();
        unclaimed.retain(|info| !left.values().any(|left| left.id == info.id));
        left
    }

    /// All resources that are to be up have claimed theirs: what is left then is nobody's.
    pub(super) fn let_unclaimed_go(&self) {
        for info in std::mem::take(&mut *lock(&self.unclaimed)) {
            self.let_go(info.id, "no resource that is up has it");
        }
    }

    /// Removes a device that was left behind: what waits for it fails.
    pub(super) fn let_go(&self, device: u32, why: &str) {
        warn!("{} is removed, and what waits for it fails: {why}", block_path(device).display());
        if let Err(error) = Control::open().and_then(|mut control| end(&mut control, device)) {
            warn!("{error}");
        }
    }

    /// Serves a device that was left behind; what waits for it goes on.
    pub(super) fn take_over(
        &self,
        owner: Owner<'_>,
        nr: u16,
        left: Left,
        end: Instant,
    ) -> std::result::Result<Device, DeviceError> {
        let mut control = Control::open()?;
        // The kernel may still be at the end of the daemon that was killed.
        while let Err(error) = control.start_recovery(left.id) {
            if error.errno() != Some(Errno::BUSY.raw_os_error()) || Instant::now() >= end {
                return Err(error.into());
            }
            thread::sleep(TICK);
        }
        owner.shard.serve_device(owner.id, VolumeNr(nr), Queue::open(left.id, left.depth)?)?;
        control.end_recovery(left.id)?;
        shown(&mut control, owner.name, nr, left.id)
    }

    /// What a device is known by.
    fn tag(&self, name: &str, nr: u16) -> u64 {
        u64::from(self.own) << 32 | u64::from(hash(format!("{name}/{nr}").as_bytes()))
    }
}

/// The devices of a daemon and its predecessors.
fn found(own: u32) -> Vec<Info> {
    let Ok(mut control) = Control::open() else { return Vec::new() };
    let entries = fs::read_dir(CHARACTER_DEVICES).into_iter().flatten().filter_map(std::result::Result::ok);
    let ids = entries.filter_map(|entry| entry.file_name().to_string_lossy().strip_prefix("ublkc")?.parse().ok());
    let infos = ids.filter_map(|id| control.info(id).ok().flatten());
    infos.filter(|info| (info.tag >> 32) as u32 == own).collect()
}

/// A device that was started, with its link.
fn shown(control: &mut Control, name: &str, nr: u16, id: u32) -> std::result::Result<Device, DeviceError> {
    let disk = control.disk(id)?;
    let numbers = Numbers { major: disk.major, minor: disk.minor };
    Ok(Device { id, numbers, size_sectors: disk.size_sectors, link: link(name, nr, id)?, stuck: false })
}

/// Stops and deletes a device.
fn end(control: &mut Control, device: u32) -> std::result::Result<(), UblkError> {
    control.stop(device)?;
    control.delete(device)
}

fn resize(device: &mut Device, features: Features, size_sectors: u64) -> std::result::Result<(), DeviceError> {
    if device.size_sectors == size_sectors {
        return Ok(());
    }
    if !features.has(Features::UPDATE_SIZE) {
        if !std::mem::replace(&mut device.stuck, true) {
            warn!(
                "{} keeps its size until the next promotion: this kernel cannot resize it (Linux 6.16 can)",
                device.link.display()
            );
        }
        return Ok(());
    }
    Control::open()?.update_size(device.id, size_sectors)?;
    device.size_sectors = size_sectors;
    info!("{} has {size_sectors} sectors", device.link.display());
    Ok(())
}

/// Links a device, in place of what was there.
fn link(name: &str, nr: u16, device: u32) -> std::result::Result<PathBuf, DeviceError> {
    let folder = Path::new(LINKS).join(name);
    let path = folder.join(nr.to_string());
    let failed = |error| DeviceError::Link { path: path.clone(), error };
    fs::create_dir_all(&folder).map_err(failed)?;
    let fresh = folder.join(format!(".{nr}.{device}"));
    match symlink(block_path(device), &fresh) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    fs::rename(&fresh, &path).map_err(failed)?;
    Ok(path)
}

/// Removes a device's link, unless it is somebody else's by now.
fn unlink(device: &Device) {
    if fs::read_link(&device.link).is_ok_and(|to| to == device.node()) {
        // The folder goes with its last link.
        let _ = fs::remove_file(&device.link);
        let _ = device.link.parent().map(fs::remove_dir);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(state_dir: &str) -> Devices {
        Devices::probe(Frontend::Export, Path::new(state_dir)).expect("exports are always there")
    }

    #[test]
    fn ublk_devices_are_known_by_daemon_resource_and_volume() {
        let tags = [("/a", "r0", 0), ("/a", "r0", 1), ("/a", "r1", 0), ("/b", "r0", 0)]
            .map(|(dir, name, nr)| devices(dir).tag(name, nr));
        let mut distinct = tags.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), tags.len());
        assert_eq!(tags[0] >> 32, tags[2] >> 32, "those of a daemon are known without the resource");
    }

    #[test]
    fn ublk_without_devices_says_why() {
        let devices = devices("/a");
        assert!(devices.driver().expect_err("none").contains("--frontend export"));
        assert!(!devices.are_wanted());
    }
}
