//! The node: its resources, and what a request does to them.
//!
//! Locks: the table of resources is held for look-ups only. Commands that change configuration or intent hold their
//! resource's `admin` lock for as long as they run; status never waits for it.

mod admin;
mod change;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use crate::api::{
    Broken, Done, Event, EventAction, EventBody, Failure, Listed, ListedVolume, Request, StatusReply, Version,
};
use crate::engine_handle::{Command, Engine};
use crate::hub::{Hub, Subscription};
use crate::store::{Saved, Store};

/// Most resources on a node.
pub const MAX_RESOURCES: usize = 1024;

/// See the module.
pub struct Node {
    id: u8,
    store: Store,
    engine: Arc<dyn Engine>,
    hub: Arc<Hub>,
    nbd_socket: PathBuf,
    resources: Mutex<BTreeMap<String, Arc<Resource>>>,
    broken: Mutex<Vec<Broken>>,
    /// [`Node::start_all`] is done.
    ready: AtomicBool,
    /// Nothing is to be started any more.
    stopping: AtomicBool,
}

/// A configured resource.
#[derive(Debug)]
struct Resource {
    /// Held by whoever changes it.
    admin: Mutex<()>,
    saved: Mutex<Saved>,
}

impl Resource {
    fn new(saved: Saved) -> Arc<Resource> {
        Arc::new(Resource { admin: Mutex::new(()), saved: Mutex::new(saved) })
    }

    fn saved(&self) -> Saved {
        lock(&self.saved).clone()
    }
}

/// A mutex whose data is replaced as a whole and so is never found half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", &self.id).field("store", &self.store).finish_non_exhaustive()
    }
}

impl Node {
    /// A node with the resources of its store, none of them started.
    ///
    /// # Errors
    /// The state directory cannot be read. A single wrong file is no error: it shows in the status.
    pub fn open(
        id: u8,
        store: Store,
        engine: Arc<dyn Engine>,
        hub: Arc<Hub>,
        nbd_socket: PathBuf,
    ) -> anyhow::Result<Node> {
        let (mut resources, mut broken) = (BTreeMap::new(), Vec::new());
        for name in store.names()? {
            match store.load(&name) {
                Ok(saved) => {
                    resources.insert(name, Resource::new(saved));
                }
                Err(error) => {
                    error!("{name} is left out: {error:#}");
                    broken.push(Broken { name, error: format!("{error:#}") });
                }
            }
        }
        Ok(Node {
            id,
            store,
            engine,
            hub,
            nbd_socket,
            resources: Mutex::new(resources),
            broken: Mutex::new(broken),
            ready: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        })
    }

    /// Brings up what was up before, attached and connected as it was. Never promotes, but to go on with block devices that
    /// the daemon before left behind.
    pub fn start_all(&self) {
        for (name, resource) in self.all() {
            let _admin = lock(&resource.admin);
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            if !lock(&resource.saved).intent.up {
                info!("{name} stays down");
                continue;
            }
            if self.engine.status(&name).is_ok() {
                // An administrator was faster.
                continue;
            }
            match self.bring_up(&resource.saved()) {
                Ok(()) => info!("{name} is up"),
                Err(failure) => error!("{name}: {failure}"),
            }
            // On a thread of its own: peers may be waited for.
            let engine = Arc::clone(&self.engine);
            if let Err(error) = thread::Builder::new().name("go-on".into()).spawn(move || engine.go_on(&name)) {
                error!("cannot start a thread: {error}");
            }
        }
        self.engine.all_started();
        self.ready.store(true, Ordering::Release);
    }

    /// Takes everything down within about `grace`; what is saved stays as it is.
    pub fn stop_all(&self, grace: Duration) {
        self.stopping.store(true, Ordering::Release);
        let end = Instant::now() + grace;
        for (name, _) in self.all() {
            if self.engine.status(&name).is_err() {
                continue;
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.engine.stop(&name, Some(left)) {
                Ok(()) => info!("{name} is down"),
                Err(failure) => warn!("{name}: {failure}"),
            }
        }
    }

    /// Carries out a request; the reply's form is written at [`Request`]. Streams go through [`Node::subscribe`].
    ///
    /// # Errors
    /// What went wrong, and the next step.
    pub fn handle(&self, request: Request) -> Result<serde_json::Value, Failure> {
        let value = match request {
            Request::Version => serde_json::to_value(self.version()),
            Request::ResourceList => serde_json::to_value(self.list()),
            Request::Status { name } => serde_json::to_value(self.status(name.as_deref())?),
            Request::Events { .. } => return Err(Failure::usage("events are a stream")),
            change => serde_json::to_value(self.change(change)?),
        };
        value.map_err(|error| Failure::failed(format!("cannot write the reply: {error}")))
    }

    fn change(&self, request: Request) -> Result<Done, Failure> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(Failure::failed("the daemon is stopping"));
        }
        match request {
            Request::ResourceCreate { resource, secret, force } => self.create(*resource, secret, force),
            Request::ResourceDelete { name, wipe_metadata } => self.delete(&name, wipe_metadata),
            Request::Apply { file, text, secret, force } => self.apply(&file, &text, secret, force),
            Request::Promote { name, force } => self.promote(&name, force),
            Request::Demote { name } => self.demote(&name),
            Request::Connect { name, peer, discard_my_data } => self.connect(&name, peer.as_deref(), discard_my_data),
            Request::Disconnect { name, peer, force } => self.disconnect(&name, peer.as_deref(), force),
            Request::Attach { name, volume } => self.attach(&name, volume),
            Request::Detach { name, volume, force } => self.detach(&name, volume, force),
            Request::Verify { name, peer, volume, start, stop } => {
                self.verify(&name, peer.as_deref(), volume, (start, stop))
            }
            Request::Resize { name, volume, size, assume_clean } => self.resize(&name, volume, size, assume_clean),
            Request::PauseSync { name, peer, volume } => self.pause_sync(&name, peer.as_deref(), volume, true),
            Request::ResumeSync { name, peer, volume } => self.pause_sync(&name, peer.as_deref(), volume, false),
            Request::Invalidate { name, volume } => self.invalidate(&name, volume),
            Request::InvalidateRemote { name, peer, volume } => self.invalidate_remote(&name, &peer, volume),
            Request::Up { name } => self.up(&name),
            Request::Down { name } => self.down(&name),
            Request::Version | Request::ResourceList | Request::Status { .. } | Request::Events { .. } => {
                unreachable!("answered by the caller")
            }
        }
    }

    /// The present state and then every change. Changes between the two may show twice, none is missed.
    ///
    /// # Errors
    /// There is no such resource.
    pub fn subscribe(&self, name: Option<&str>) -> Result<(Vec<Event>, Subscription), Failure> {
        let subscription = self.hub.subscribe(name);
        let mut dump: Vec<Event> = self.status(name)?.resources.iter().flat_map(Event::dump).collect();
        dump.push(Event::end_of_dump());
        Ok((dump, subscription))
    }

    fn version(&self) -> Version {
        Version {
            version: env!("CARGO_PKG_VERSION").into(),
            node_id: self.id,
            pid: std::process::id(),
            ready: self.ready.load(Ordering::Acquire),
        }
    }

    fn list(&self) -> Vec<Listed> {
        let entry = |(name, resource): (String, Arc<Resource>)| {
            let Saved { file, intent, .. } = resource.saved();
            let volume = |volume: &crate::config::Volume| ListedVolume {
                nr: volume.nr,
                disk: volume.disk.display().to_string(),
                export: self.export(&name, volume.nr),
            };
            let volumes = file.volumes.iter().map(volume).collect();
            let nodes = file.nodes.iter().map(|node| node.name.clone()).collect();
            Listed { name: file.name, up: intent.up, volumes, nodes }
        };
        self.all().into_iter().map(entry).collect()
    }

    fn status(&self, only: Option<&str>) -> Result<StatusReply, Failure> {
        let mut reply = StatusReply::default();
        if let Some(name) = only {
            self.find(name)?;
        }
        for (name, _) in self.all() {
            if only.is_some_and(|only| only != name) {
                continue;
            }
            match self.engine.status(&name) {
                Ok(mut status) => {
                    for device in &mut status.devices {
                        device.export = self.export(&name, device.volume);
                    }
                    reply.resources.push(status);
                }
                Err(_) => reply.down.push(name),
            }
        }
        if only.is_none() {
            reply.broken.clone_from(&lock(&self.broken));
            reply.block_devices = self.engine.block_devices();
        }
        Ok(reply)
    }

    fn export(&self, name: &str, volume: u16) -> String {
        format!("nbd+unix:///{name}/{volume}?socket={}", self.nbd_socket.display())
    }

    fn all(&self) -> Vec<(String, Arc<Resource>)> {
        lock(&self.resources).iter().map(|(name, resource)| (name.clone(), Arc::clone(resource))).collect()
    }

    fn find(&self, name: &str) -> Result<Arc<Resource>, Failure> {
        if let Some(resource) = lock(&self.resources).get(name) {
            return Ok(Arc::clone(resource));
        }
        self.refuse_broken(name)?;
        Err(Failure::failed(format!("{name}: No such resource; `zea resource list` shows those that there are")))
    }

    fn refuse_broken(&self, name: &str) -> Result<(), Failure> {
        match lock(&self.broken).iter().find(|broken| broken.name == name) {
            None => Ok(()),
            Some(broken) => Err(Failure::failed(format!(
                "{name} could not be read when the daemon started: {}\nmend the file and start the daemon again",
                broken.error
            ))),
        }
    }

    /// Starts a resource as its intent says. Goes on after a failure, so that one broken disk or peer does not take
    /// the others along, and reports the first.
    fn bring_up(&self, saved: &Saved) -> Result<(), Failure> {
        let Saved { file, secret, intent } = saved;
        self.engine.start(file, secret.as_ref())?;
        let mut first = Ok(());
        let volumes = file.volumes.iter().map(|volume| volume.nr).filter(|nr| !intent.detached.contains(nr));
        for volume in volumes {
            let result = self.engine.command(&file.name, Command::Attach { volume }).map_err(|failure| {
                failure
                    .about(&format!("volume {volume} is not attached (try again: zea attach {} {volume})", file.name))
            });
            first = first.and(result);
        }
        for peer in file.peers(self.id).filter(|peer| !intent.disconnected.contains(&peer.id)) {
            let connect = Command::Connect { peer: peer.id, discard_my_data: false };
            let result = self.engine.command(&file.name, connect).map_err(|failure| {
                failure.about(&format!("not connecting to {} (try again: zea connect {0} {0})", peer.name))
            });
            first = first.and(result);
        }
        let body = EventBody::Resource { role: Some("Secondary".into()), suspended: Some("no".into()) };
        self.publish(EventAction::Create, &file.name, body);
        first
    }

    fn publish(&self, action: EventAction, name: &str, body: EventBody) {
        self.hub.publish(&Event { action, name: name.into(), body });
    }
}
