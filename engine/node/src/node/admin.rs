//! Commands that change the state of a resource, and the intent that is saved with them.

use std::sync::Arc;

use super::{Node, Resource, lock};
use crate::api::{Done, EventAction, EventBody, Failure};
use crate::config::Size;
use crate::engine_handle::Command;
use crate::store::{Intent, Saved};

/// DRBD's code and text for a demotion while somebody has a volume open.
const SS_DEVICE_IN_USE: i32 = -12;
/// DRBD's code for what needs a connection.
const SS_NEED_CONNECTION: i32 = -15;
/// DRBD's code for disconnecting what is not connected.
const SS_ALREADY_STANDALONE: i32 = -9;

impl Node {
    pub(super) fn promote(&self, name: &str, force: bool) -> Result<Done, Failure> {
        self.running(name)?;
        self.engine.command(name, Command::Promote { force }).map_err(|failure| failure.about(name))?;
        Ok(Done::default())
    }

    pub(super) fn demote(&self, name: &str) -> Result<Done, Failure> {
        self.running(name)?;
        self.refuse_if_open(name)?;
        self.engine.command(name, Command::Demote).map_err(|failure| failure.about(name))?;
        Ok(Done::default())
    }

    pub(super) fn connect(&self, name: &str, peer: Option<&str>, discard_my_data: bool) -> Result<Done, Failure> {
        let resource = self.running(name)?;
        let _admin = lock(&resource.admin);
        for peer in self.peers(&resource.saved(), peer)? {
            let command = Command::Connect { peer, discard_my_data };
            self.engine.command(name, command).map_err(|failure| failure.about(name))?;
            self.intend(&resource, |intent| {
                intent.disconnected.remove(&peer);
            })?;
        }
        Ok(Done::default())
    }

    pub(super) fn disconnect(&self, name: &str, peer: Option<&str>, force: bool) -> Result<Done, Failure> {
        let resource = self.running(name)?;
        let _admin = lock(&resource.admin);
        for peer in self.peers(&resource.saved(), peer)? {
            match self.engine.command(name, Command::Disconnect { peer, force }) {
                // What is wanted is so already; that it is to stay so is new.
                Err(failure) if failure.code == SS_ALREADY_STANDALONE => {}
                done => done.map_err(|failure| failure.about(name))?,
            }
            self.intend(&resource, |intent| {
                intent.disconnected.insert(peer);
            })?;
        }
        Ok(Done::default())
    }

    pub(super) fn attach(&self, name: &str, volume: Option<u16>) -> Result<Done, Failure> {
        let resource = self.running(name)?;
        let _admin = lock(&resource.admin);
        let status = self.engine.status(name).map_err(|failure| failure.about(name))?;
        let attached =
            |nr: u16| status.devices.iter().any(|device| device.volume == nr && device.disk_state != "Diskless");
        let mut notes = Vec::new();
        for nr in volumes(&resource.saved(), volume)? {
            if attached(nr) {
                notes.extend(volume.map(|nr| format!("{name}/{nr} is attached already")));
                continue;
            }
            let volume = nr;
            let about = format!("{name}/{volume}");
            self.engine.command(name, Command::Attach { volume }).map_err(|failure| failure.about(&about))?;
            self.intend(&resource, |intent| {
                intent.detached.remove(&volume);
            })?;
        }
        Ok(Done { notes })
    }

    pub(super) fn detach(&self, name: &str, volume: Option<u16>, force: bool) -> Result<Done, Failure> {
        let resource = self.running(name)?;
        let _admin = lock(&resource.admin);
        for volume in volumes(&resource.saved(), volume)? {
            let about = format!("{name}/{volume}");
            self.engine.command(name, Command::Detach { volume, force }).map_err(|failure| failure.about(&about))?;
            self.intend(&resource, |intent| {
                intent.detached.insert(volume);
            })?;
        }
        Ok(Done::default())
    }

    pub(super) fn invalidate(&self, name: &str, volume: u16) -> Result<Done, Failure> {
        let resource = self.running(name)?;
        volumes(&resource.saved(), Some(volume))?;
        let about = format!("{name}/{volume}");
        self.engine.command(name, Command::Invalidate { volume }).map_err(|failure| failure.about(&about))?;
        Ok(Done::default())
    }

    pub(super) fn invalidate_remote(&self, name: &str, peer: &str, volume: u16) -> Result<Done, Failure> {
        let resource = self.running(name)?;
        let saved = resource.saved();
        volumes(&saved, Some(volume))?;
        let about = format!("{name}/{volume}");
        for peer in self.peers(&saved, Some(peer))? {
            let command = Command::InvalidateRemote { peer, volume };
            self.engine.command(name, command).map_err(|failure| failure.about(&about))?;
        }
        Ok(Done::default())
    }

    /// Pauses resyncs, or lets them go on.
    pub(super) fn pause_sync(
        &self,
        name: &str,
        peer: Option<&str>,
        volume: Option<u16>,
        paused: bool,
    ) -> Result<Done, Failure> {
        let resource = self.running(name)?;
        let saved = resource.saved();
        for peer in self.peers(&saved, peer)? {
            for volume in volumes(&saved, volume)? {
                let command = Command::PauseSync { peer, volume, paused };
                self.engine.command(name, command).map_err(|failure| failure.about(&format!("{name}/{volume}")))?;
            }
        }
        Ok(Done::default())
    }

    /// Makes a volume larger, and then its file true.
    pub(super) fn resize(&self, name: &str, volume: u16, size: Size, assume_clean: bool) -> Result<Done, Failure> {
        let resource = self.running(name)?;
        let _admin = lock(&resource.admin);
        let mut new = resource.saved();
        volumes(&new, Some(volume))?;
        let about = format!("{name}/{volume}");
        let command = Command::Resize { volume, size_sectors: size.sectors(), assume_clean };
        self.engine.command(name, command).map_err(|failure| failure.about(&about))?;
        for volume in new.file.volumes.iter_mut().filter(|it| it.nr == volume) {
            volume.size = Some(size);
        }
        self.store
            .save(&mut new)
            .map_err(|error| Failure::failed(format!("it has grown, but its file has the old size: {error:#}")))?;
        *lock(&resource.saved) = new.clone();
        self.engine.reconfigure(&new.file, new.secret.as_ref()).map_err(|failure| failure.about(&about))?;
        Ok(Done::default())
    }

    pub(super) fn verify(
        &self,
        name: &str,
        peer: Option<&str>,
        volume: Option<u16>,
        (start, stop): (Option<u64>, Option<u64>),
    ) -> Result<Done, Failure> {
        let resource = self.running(name)?;
        let status = self.engine.status(name).map_err(|failure| failure.about(name))?;
        let connected = |id: &u8| {
            let mut peers = status.connections.iter().filter(|c| c.peer_node_id == *id);
            peers.any(|c| c.connection_state == "Connected")
        };
        let mut peers = self.peers(&resource.saved(), peer)?;
        if peer.is_none() {
            peers.retain(connected);
        }
        if peers.is_empty() {
            return Err(Failure::state_change(SS_NEED_CONNECTION, "no peer is connected").about(name));
        }
        for volume in volumes(&resource.saved(), volume)? {
            let about = format!("{name}/{volume}");
            for &peer in &peers {
                let command = Command::Verify { peer, volume, start, stop };
                self.engine.command(name, command).map_err(|failure| failure.about(&about))?;
            }
        }
        Ok(Done::default())
    }

    pub(super) fn up(&self, name: &str) -> Result<Done, Failure> {
        let resource = self.find(name)?;
        let _admin = lock(&resource.admin);
        if self.engine.status(name).is_ok() {
            return Ok(Done { notes: vec![format!("{name} is up already")] });
        }
        self.intend(&resource, |intent| *intent = Intent::default())?;
        self.bring_up(&resource.saved()).map_err(|failure| failure.about(name))?;
        Ok(Done::default())
    }

    pub(super) fn down(&self, name: &str) -> Result<Done, Failure> {
        let resource = self.find(name)?;
        let _admin = lock(&resource.admin);
        if self.engine.status(name).is_err() {
            self.intend(&resource, |intent| intent.up = false)?;
            return Ok(Done { notes: vec![format!("{name} is down already")] });
        }
        self.refuse_if_open(name)?;
        self.engine.stop(name, None).map_err(|failure| failure.about(name))?;
        self.intend(&resource, |intent| intent.up = false)?;
        self.publish(EventAction::Destroy, name, EventBody::gone_resource());
        Ok(Done::default())
    }

    /// A resource that is up.
    fn running(&self, name: &str) -> Result<Arc<Resource>, Failure> {
        let resource = self.find(name)?;
        match self.engine.status(name) {
            Ok(_) => Ok(resource),
            Err(_) => Err(Failure::refused(0, format!("{name} is down: bring it up with `zea up {name}`"))),
        }
    }

    /// Refuses while a front end has a volume open, and says how many.
    pub(super) fn refuse_if_open(&self, name: &str) -> Result<(), Failure> {
        let status = self.engine.status(name).map_err(|failure| failure.about(name))?;
        match status.devices.iter().find(|device| device.open_count > 0) {
            None => Ok(()),
            Some(device) => {
                let (nr, count) = (device.volume, device.open_count);
                let clients = if count == 1 { "1 NBD client has" } else { &format!("{count} NBD clients have") };
                let text = format!(
                    "Device is held open by someone: {clients} {name}/{nr} open; \
                     unmount and disconnect them, then try again"
                );
                Err(Failure::state_change(SS_DEVICE_IN_USE, &text).about(name))
            }
        }
    }

    /// Node ids of the peer with this name or id, or of all.
    fn peers(&self, saved: &Saved, peer: Option<&str>) -> Result<Vec<u8>, Failure> {
        let Some(wanted) = peer else {
            return Ok(saved.file.peers(self.id).map(|peer| peer.id).collect());
        };
        let id = wanted.parse::<u8>().ok();
        let found = saved.file.peers(self.id).find(|peer| peer.name == wanted || Some(peer.id) == id);
        found.map(|peer| vec![peer.id]).ok_or_else(|| {
            let known: Vec<&str> = saved.file.peers(self.id).map(|peer| peer.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Failure::failed(format!("{} has no peer `{wanted}`; its peers: {known}", saved.file.name))
        })
    }

    /// Changes what is wanted of a resource, on disk first.
    pub(super) fn intend(&self, resource: &Resource, change: impl FnOnce(&mut Intent)) -> Result<(), Failure> {
        let Saved { file, mut intent, .. } = resource.saved();
        change(&mut intent);
        self.store
            .save_intent(&file.name, &intent)
            .map_err(|error| Failure::failed(format!("it is done, but will not survive a restart: {error:#}")))?;
        lock(&resource.saved).intent = intent;
        Ok(())
    }
}

fn volumes(saved: &Saved, volume: Option<u16>) -> Result<Vec<u16>, Failure> {
    let all: Vec<u16> = saved.file.volumes.iter().map(|volume| volume.nr).collect();
    match volume {
        None => Ok(all),
        Some(nr) if all.contains(&nr) => Ok(vec![nr]),
        Some(nr) => {
            let known: Vec<String> = all.iter().map(u16::to_string).collect();
            let name = &saved.file.name;
            Err(Failure::failed(format!("{name} has no volume {nr}; its volumes are {}", known.join(", "))))
        }
    }
}
