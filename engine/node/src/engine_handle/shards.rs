//! The engine of production: shards, the connector, and NBD listeners.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tracing::{error, info, warn};
use zea_core::config::ResourceConfig;
use zea_core::event::{Event as CoreEvent, Severity};
use zea_core::io::{AdminError, Command as CoreCommand};
use zea_recorder::{RingOptions, Writer};
use zea_shard::ring::RingError;
use zea_shard::{
    BackingPaths, EventStream, ExportDirectory, LinkMaker, OpenError, Pending, ResourceEvent, ResourceId, Shard,
    ShardConfig, ShardError, ShardHandle, SpawnError, shard_for,
};
use zea_tcp::ConnectorError;
use zea_wire::ids::{NodeId, VolumeNr};

use super::convert::{self, Around};
use super::devices::{Device, DeviceError, Devices, Frontend, Owner, Table};
use super::left::Leftovers;
use super::links::Links;
use super::repeats::Repeats;
use super::{Command, Engine};
use crate::api::{BlockDevices, Event, EventAction, Failure, ResourceStatus, Secret};
use crate::config::ResourceFile;
use crate::hub::Hub;
use crate::meta_device::placement;

/// Longest wait for the core's answer: less than a client waits for ours.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(120);
/// How long an attach waits for a device that is in use: a daemon that was killed may have I/O in the kernel that ends
/// after it (design.md section 3).
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a shard waits for memory that it may lock.
const RING_TIMEOUT: Duration = Duration::from_secs(5);
/// DRBD's code for a demotion while somebody has a volume open.
const SS_DEVICE_IN_USE: i32 = -12;
/// How often it looks.
const LOCK_TICK: Duration = Duration::from_millis(50);
/// How long a resource that is down may need for the last words of its links.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Events of a shard that wait to be handed out.
const EVENT_QUEUE: usize = 4096;

/// What a [`ShardEngine`] is made from.
#[derive(Debug, Clone)]
pub struct ShardOptions {
    /// This node.
    pub node_id: u8,
    /// Number of shards, 1 or more.
    pub shards: u16,
    /// Where flight recordings go; `None`: nothing is recorded.
    pub recordings: Option<RingOptions>,
    /// How volumes are offered to this machine.
    pub frontend: Frontend,
    /// What tells this daemon from another one on this machine.
    pub state_dir: PathBuf,
}

/// See the module.
pub struct ShardEngine {
    own: u8,
    shards: Vec<ShardHandle>,
    links: Arc<Links>,
    exports: ExportDirectory,
    pub(super) devices: Arc<Devices>,
    /// Until the shards have ended.
    recorder: Mutex<Option<Writer>>,
    running: Arc<Mutex<Running>>,
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) state_dir: PathBuf,
}

/// The resources that are up, by name.
type Running = BTreeMap<String, Arc<Resource>>;

pub(super) struct Resource {
    pub(super) id: ResourceId,
    pub(super) shard: ShardHandle,
    pub(super) file: Mutex<ResourceFile>,
    /// Held while devices are made or removed, and while the role changes.
    pub(super) devices: Mutex<Table>,
    /// Devices of an earlier daemon, until it is decided about them.
    pub(super) left: Mutex<Leftovers>,
}

impl Resource {
    /// Makes the block devices what the volumes say now.
    pub(super) fn sync(&self, devices: &Devices, table: &mut Table) -> Result<(), DeviceError> {
        let (name, volumes) = {
            let file = lock(&self.file);
            (file.name.clone(), file.volumes.iter().map(|volume| volume.nr).collect::<Vec<_>>())
        };
        devices.sync(Owner { name: &name, id: self.id, shard: &self.shard }, &volumes, table)
    }
}

impl std::fmt::Debug for ShardEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardEngine").field("shards", &self.shards).finish_non_exhaustive()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ShardEngine {
    /// Starts shards and connector. Events go to the hub; the index of a shard that ends by itself goes to `ended`.
    ///
    /// # Errors
    /// A thread or a ring is not to be had.
    pub fn start(options: ShardOptions, hub: &Arc<Hub>, ended: &Sender<u16>) -> Result<Arc<ShardEngine>> {
        let devices = Arc::new(Devices::probe(options.frontend, &options.state_dir)?);
        let links = Links::start().context("cannot start the connector")?;
        let exports = ExportDirectory::new();
        let recorder = options.recordings.as_ref().and_then(start_recorder);
        let recordings = recorder.as_ref().map(Writer::outlet);
        let running = Arc::new(Mutex::new(Running::new()));
        let stopping = Arc::new(AtomicBool::new(false));
        let changed = follow(Arc::clone(&devices), Arc::clone(&running))?;
        let mut shards = Vec::new();
        for index in 0..options.shards {
            let config = || ShardConfig {
                recordings: recordings.clone(),
                ..ShardConfig::new(index, Arc::clone(&links) as Arc<dyn LinkMaker>, exports.clone())
            };
            let shard = spawn(config).with_context(|| format!("cannot start shard {index}"))?;
            let pump = EventPump {
                index,
                stream: shard.subscribe(EVENT_QUEUE)?,
                hub: Arc::clone(hub),
                running: Arc::clone(&running),
                stopping: Arc::clone(&stopping),
                ended: ended.clone(),
                changed: changed.clone(),
                repeats: Repeats::default(),
            };
            thread::Builder::new()
                .name(format!("events-{index}"))
                .spawn(move || pump.run())
                .context("cannot start a thread for events")?;
            shards.push(shard);
        }
        let recorder = Mutex::new(recorder);
        let own = options.node_id;
        let state_dir = options.state_dir;
        Ok(Arc::new(ShardEngine { own, shards, links, exports, devices, recorder, running, stopping, state_dir }))
    }

    /// Serves NBD clients of a listening socket.
    ///
    /// # Errors
    /// The shard does not take it.
    pub fn listen_nbd(&self, listener: impl Into<OwnedFd>) -> Result<()> {
        // Whichever shard accepts, a connection moves to the shard of its export.
        Ok(self.shards[0].listen_nbd(listener)?)
    }

    /// Ends the shards. What is still up ends as in a crash.
    pub fn shut_down(&self) {
        self.stopping.store(true, Ordering::Release);
        for shard in &self.shards {
            if let Err(error) = shard.stop() {
                warn!("shard {}: {error}", shard.index());
            }
        }
        // After them: what they recorded last is on its way.
        if let Some(recorder) = lock(&self.recorder).take() {
            recorder.stop();
        }
    }

    pub(super) fn resource(&self, name: &str) -> Result<Arc<Resource>, Failure> {
        lock(&self.running).get(name).cloned().ok_or_else(|| Failure::failed(format!("{name} is not up")))
    }

    /// Builds the resource up in its shard.
    fn build(&self, resource: &Resource, file: &ResourceFile, secret: Option<&Secret>) -> Result<(), Failure> {
        let Resource { id, shard, .. } = resource;
        let quorum = file.options.quorum_options();
        let config = ResourceConfig { quorum, ..ResourceConfig::new(&file.name, NodeId(self.own)) };
        shard.add_resource(*id, config).map_err(|e| convert::shard_failure(&e))?;
        let volumes = file.volumes.iter().map(|volume| CoreCommand::AddVolume(convert::volume_config(file, volume)));
        let peers = file.peers(self.own).map(|peer| CoreCommand::AddPeer(convert::peer_config(file, secret, peer)));
        for command in volumes.chain(peers).chain(convert::resync_orders(file)) {
            ask(shard.admin(*id, command))?;
        }
        for volume in &file.volumes {
            let export = format!("{}/{}", file.name, volume.nr);
            shard.add_export(*id, VolumeNr(volume.nr), export).map_err(|e| convert::shard_failure(&e))?;
        }
        Ok(())
    }

    /// Promotes, and then makes the block devices; or removes them, and then demotes.
    fn change_role(&self, name: &str, resource: &Resource, command: CoreCommand) -> Result<(), Failure> {
        let mut table = lock(&resource.devices);
        if !lock(&resource.left).is_empty() {
            let text = "the block devices of a daemon that was killed are not decided about yet: try again in a while";
            return Err(Failure::refused(0, text));
        }
        let promote = matches!(command, CoreCommand::Promote { .. });
        if !promote {
            self.devices.remove(&mut table, None).map_err(|error| device_failure(&error))?;
        }
        let changed = ask(resource.shard.admin(resource.id, command));
        // Also after a demotion that was refused: the resource is Primary as before.
        match resource.sync(&self.devices, &mut table) {
            Err(error) if promote && changed.is_ok() && self.devices.are_wanted() => {
                Err(Failure::failed(format!("it is Primary now, but not a block device: {error}")))
            }
            Err(error) => {
                warn!("{name}: {error}");
                changed
            }
            Ok(()) => changed,
        }
    }

    fn attach(&self, resource: &Resource, volume: u16) -> Result<(), Failure> {
        let paths = {
            let file = lock(&resource.file);
            let volume = file.volume(volume).ok_or_else(|| Failure::failed(format!("there is no volume {volume}")))?;
            BackingPaths {
                data: volume.disk.clone(),
                meta: volume.meta_disk.path().map(ToOwned::to_owned),
                placement: placement(volume),
            }
        };
        let end = Instant::now() + LOCK_TIMEOUT;
        loop {
            match resource.shard.open_backing(resource.id, VolumeNr(volume), &paths) {
                Err(ShardError::Open(OpenError::InUse { .. })) if Instant::now() < end => thread::sleep(LOCK_TICK),
                answer => return ask(answer).map(|()| self.note_generation(resource, volume)),
            }
        }
    }

    /// Links and names of a resource's block devices. Empty while they are being made or removed, which may take long.
    fn device_paths(&self, resource: &Resource) -> BTreeMap<u16, (String, String)> {
        let paths = |device: &Device| (device.link().display().to_string(), device.node().display().to_string());
        match resource.devices.try_lock() {
            Ok(table) => table.iter().map(|(nr, device)| (*nr, paths(device))).collect(),
            Err(_) => BTreeMap::new(),
        }
    }

    /// Waits until nothing of a resource that is down is left in the shard, and removes it there.
    fn dismantle(&self, name: &str, resource: &Resource) -> Result<(), Failure> {
        let end = Instant::now() + REMOVE_TIMEOUT;
        loop {
            match resource.shard.remove_resource(resource.id) {
                Err(ShardError::InUse(_)) if Instant::now() < end => thread::sleep(LOCK_TICK),
                Ok(()) | Err(ShardError::NoResource) => break,
                Err(error) => return Err(convert::shard_failure(&error)),
            }
        }
        self.links.remove(resource.id);
        lock(&self.running).remove(name);
        Ok(())
    }
}

/// Starts the thread that follows changes of volumes with their block devices. It gets names of resources.
fn follow(devices: Arc<Devices>, running: Arc<Mutex<Running>>) -> Result<SyncSender<String>> {
    let (changed, names) = sync_channel::<String>(EVENT_QUEUE);
    let follow = move || {
        for name in names {
            let Some(resource) = lock(&running).get(&name).cloned() else { continue };
            let mut table = lock(&resource.devices);
            if let Err(error) = resource.sync(&devices, &mut table) {
                warn!("{name}: {error}");
            }
        }
    };
    thread::Builder::new().name("devices".into()).spawn(follow).context("cannot start a thread")?;
    Ok(changed)
}

/// A node that cannot record works all the same.
fn start_recorder(options: &RingOptions) -> Option<Writer> {
    Writer::start(options).inspect_err(|error| warn!("there is no flight recorder: {error}")).ok()
}

/// Starts a shard. The memory of rings counts against what a user may lock (RLIMIT_MEMLOCK), and so do the buffers that
/// other daemons of that user have registered; those of a daemon that was killed the kernel gives back a moment later.
fn spawn(config: impl Fn() -> ShardConfig) -> Result<ShardHandle> {
    let end = Instant::now() + RING_TIMEOUT;
    loop {
        match Shard::spawn(config()) {
            Err(SpawnError::Ring(RingError::Setup(error))) if error.kind() == ErrorKind::OutOfMemory => {
                if Instant::now() >= end {
                    let hint = "the daemons of this user have locked all the memory that they may: raise the limit \
                                (ulimit -l, LimitMEMLOCK= of systemd)";
                    return Err(anyhow::Error::from(error).context(hint));
                }
                thread::sleep(LOCK_TICK);
            }
            done => return Ok(done?),
        }
    }
}

/// Waits for a core's answer.
pub(super) fn ask(pending: Result<Pending<Result<(), AdminError>>, ShardError>) -> Result<(), Failure> {
    wait(pending, ADMIN_TIMEOUT)
}

fn wait(pending: Result<Pending<Result<(), AdminError>>, ShardError>, timeout: Duration) -> Result<(), Failure> {
    let answer =
        pending.and_then(|pending| pending.wait_for(timeout)).map_err(|error| convert::shard_failure(&error))?;
    match answer {
        Some(answer) => answer.map_err(|error| convert::admin_failure(&error)),
        None => Err(Failure::timeout(format!("not done after {} s, and still under way", timeout.as_secs()))),
    }
}

impl Engine for ShardEngine {
    fn start(&self, file: &ResourceFile, secret: Option<&Secret>) -> Result<(), Failure> {
        let own = file.node(self.own).expect("checked: this node is one of the resource's");
        let shard = self.shards[shard_for(&file.name, self.shards.len())].clone();
        if lock(&self.running).contains_key(&file.name) {
            return Err(Failure::refused(0, "it is up already"));
        }
        let resource = Arc::new(Resource {
            id: ResourceId::next(),
            shard,
            file: Mutex::new(file.clone()),
            devices: Mutex::new(Table::new()),
            left: Mutex::default(),
        });
        let paths: Vec<_> = file.peers(self.own).map(|peer| (peer.id, convert::path(file, own, peer))).collect();
        let added = self.links.add(resource.id, &resource.shard, &paths).map_err(|error| connector_failure(&error));
        added.and_then(|()| self.build(&resource, file, secret)).inspect_err(|_| {
            if let Err(failure) = self.dismantle(&file.name, &resource) {
                warn!("{}: {failure}", file.name);
            }
        })?;
        self.claim_devices(file, &resource);
        // Seen by others when it is whole.
        lock(&self.running).insert(file.name.clone(), resource);
        Ok(())
    }

    fn stop(&self, name: &str, grace: Option<Duration>) -> Result<(), Failure> {
        let resource = self.resource(name)?;
        let mut timeout = ADMIN_TIMEOUT;
        let mut table = lock(&resource.devices);
        for left in std::mem::take(&mut *lock(&resource.left)).values() {
            self.devices.let_go(left.id, "its resource is taken down");
        }
        let begin = Instant::now();
        // One that takes longer, because a request is not answered, is left to the next daemon.
        let removed = self.devices.remove(&mut table, grace.map(|grace| grace / 4));
        match removed {
            Err(error) if grace.is_none() => return Err(device_failure(&error)),
            Err(error) => warn!("{name}: {error}"),
            Ok(()) => {}
        }
        if let Some(grace) = grace {
            let closed = resource.shard.close_exports(resource.id).and_then(|pending| pending.wait_for(grace / 2));
            if !matches!(closed, Ok(Some(()))) {
                warn!("{name}: NBD clients did not go in time");
            }
            timeout = grace.saturating_sub(begin.elapsed());
        }
        wait(resource.shard.admin(resource.id, CoreCommand::Down), timeout).inspect_err(|_| {
            if let Err(error) = resource.sync(&self.devices, &mut table) {
                warn!("{name}: {error}");
            }
        })?;
        self.dismantle(name, &resource)
    }

    fn command(&self, name: &str, command: Command) -> Result<(), Failure> {
        let resource = self.resource(name)?;
        match (convert::command(&command), command) {
            (Some(core), Command::Promote { .. } | Command::Demote) => self.change_role(name, &resource, core),
            (Some(command), _) => ask(resource.shard.admin(resource.id, command)),
            (None, Command::Attach { volume }) => self.attach(&resource, volume),
            (None, other) => unreachable!("{other:?} is a command of the core"),
        }
    }

    fn reconfigure(&self, file: &ResourceFile, secret: Option<&Secret>) -> Result<(), Failure> {
        let resource = self.resource(&file.name)?;
        let own = file.node(self.own).expect("checked: this node is one of the resource's");
        for peer in file.peers(self.own) {
            let path = convert::path(file, own, peer);
            self.links.set(resource.id, peer.id, &path).map_err(|error| connector_failure(&error))?;
            let net = convert::net_options(file, secret);
            ask(resource.shard.admin(resource.id, CoreCommand::SetNetOptions { peer: NodeId(peer.id), net }))?;
        }
        let options = file.options.quorum_options();
        ask(resource.shard.admin(resource.id, CoreCommand::SetQuorumOptions(options)))?;
        let options = file.disk.resync_options();
        for volume in &file.volumes {
            let command = CoreCommand::SetResyncOptions { volume: VolumeNr(volume.nr), options };
            ask(resource.shard.admin(resource.id, command))?;
        }
        for command in convert::resync_orders(file) {
            ask(resource.shard.admin(resource.id, command))?;
        }
        *lock(&resource.file) = file.clone();
        Ok(())
    }

    fn go_on(&self, name: &str) {
        self.decide(name);
    }

    fn all_started(&self) {
        self.devices.let_unclaimed_go();
    }

    fn block_devices(&self) -> BlockDevices {
        match self.devices.driver() {
            Ok(features) => BlockDevices { features: Some(features), missing: None },
            Err(why) => BlockDevices { features: None, missing: Some(why) },
        }
    }

    fn status(&self, name: &str) -> Result<ResourceStatus, Failure> {
        let resource = self.resource(name)?;
        let status = resource.shard.status(resource.id).map_err(|error| convert::shard_failure(&error))?.status;
        let file = lock(&resource.file).clone();
        let devices = self.device_paths(&resource);
        let around = Around {
            file: &file,
            own: self.own,
            open_count: &|volume| self.exports.open_count(resource.id, Some(VolumeNr(volume))),
            device: &|volume| devices.get(&volume).cloned(),
            link_error: &|peer| self.links.error(resource.id, peer),
        };
        Ok(convert::status(&status, &around))
    }
}

fn device_failure(error: &DeviceError) -> Failure {
    match error {
        DeviceError::InUse { .. } => {
            let text = format!("Device is held open by someone: {error}; end that, then try again");
            Failure::state_change(SS_DEVICE_IN_USE, &text)
        }
        other => Failure::failed(other.to_string()),
    }
}

fn connector_failure(error: &ConnectorError) -> Failure {
    match error {
        // DRBD's protocol has no resource name at its beginning: address and port have to say which one it is.
        ConnectorError::Ambiguous { own, .. } => Failure::refused(
            0,
            format!("another resource has {own} towards the same host: give every resource a port of its own"),
        ),
        other => Failure::failed(other.to_string()),
    }
}

/// The thread that hands a shard's events to the hub and the log.
struct EventPump {
    index: u16,
    stream: EventStream,
    hub: Arc<Hub>,
    running: Arc<Mutex<Running>>,
    stopping: Arc<AtomicBool>,
    ended: Sender<u16>,
    /// Resources whose volumes changed.
    changed: SyncSender<String>,
    repeats: Repeats,
}

impl EventPump {
    fn run(mut self) {
        // Events are only lost where some are left.
        while let Ok(event) = self.stream.wait() {
            self.hand_out(&event);
            let lost = self.stream.take_lost();
            if lost > 0 {
                self.hub.publish(&Event::skipped(lost));
            }
        }
        if !self.stopping.load(Ordering::Acquire) {
            error!("shard {} has ended", self.index);
            // Nobody listens only where the process ends anyway.
            self.ended.send(self.index).ok();
        }
    }

    fn hand_out(&mut self, event: &ResourceEvent) {
        let name = &event.name;
        if let CoreEvent::Notice { severity, text } = &event.event {
            let mut again = String::new();
            if *severity != Severity::Info {
                match self.repeats.say(name, text, Instant::now()) {
                    None => return,
                    Some(0) => {}
                    Some(held_back) => again = format!(" (and {held_back} times before)"),
                }
            }
            match severity {
                Severity::Info => info!("{name}: {text}{again}"),
                Severity::Warning => warn!("{name}: {text}{again}"),
                Severity::Error => error!("{name}: {text}{again}"),
            }
        }
        if matches!(event.event, CoreEvent::Device { .. } | CoreEvent::Role { .. }) {
            // With so many waiting, this one is among them.
            self.changed.try_send(name.to_string()).ok();
        }
        let action = match event.event {
            CoreEvent::Notice { .. } | CoreEvent::OutOfSync { .. } | CoreEvent::VerifyDone { .. } => {
                EventAction::Notice
            }
            _ => EventAction::Change,
        };
        let resource = lock(&self.running).get(&**name).cloned();
        let file = resource.as_ref().map(|resource| lock(&resource.file));
        let body = convert::event(&event.event, file.as_deref());
        drop(file);
        self.hub.publish(&Event { action, name: name.to_string(), body });
    }
}
