//! Messages of other threads.

use std::sync::Arc;

use zea_core::config::ResourceConfig;
use zea_core::io::{AdminError, AdminTag, Command, Input};
use zea_wire::ids::VolumeNr;

use super::Shard;
use super::resource::{AdminWait, OpenDisk, Res};
use crate::disk::{Disk, Fault};
use crate::frontend::{Export, Longest};
use crate::handle::{Message, ReplyTo, ResourceStatus, ShardError};
use crate::limits::{MAX_ADMINS, MAX_RESOURCES, MAX_SUBSCRIBERS};
use crate::pool::Purpose;
use crate::{AdminResult, ResourceId};

/// DRBD's codes for refusals of the runtime itself (handshake-and-states.md 2.3).
const SS_DEVICE_IN_USE: i32 = -12;

impl Shard {
    pub(super) fn message(&mut self, message: Message) {
        // An answer that nobody waits for any more is dropped.
        match message {
            Message::AddResource { id, config, reply } => drop(reply.try_send(self.add_resource(id, *config))),
            Message::RemoveResource { id, reply } => drop(reply.try_send(self.remove_resource(id))),
            Message::Admin { id, command, reply } => self.admin(id, *command, None, reply),
            Message::Attach { id, volume, disk, reply } => self.attach(id, volume, *disk, reply),
            Message::NewLink { id, peer, sockets } => self.new_link(id, peer, sockets),
            Message::Status { id, reply } => drop(reply.try_send(self.status(id))),
            Message::Subscribe(subscriber) => {
                if self.subscribers.len() < MAX_SUBSCRIBERS {
                    self.subscribers.push(subscriber);
                }
            }
            Message::SetFault { id, volume, fault, reply } => drop(reply.try_send(self.set_fault(id, volume, fault))),
            Message::AddExport { id, volume, name, reply } => drop(reply.try_send(self.add_export(id, volume, name))),
            Message::CloseExports { id, reply } => {
                self.close_exports(id);
                self.closers.push((id, reply));
            }
            Message::DeviceLimits { id, volume, reply } => drop(reply.try_send(self.device_limits(id, volume))),
            Message::ServeDevice { id, volume, queue, reply } => {
                drop(reply.try_send(self.serve_device(id, volume, queue)));
            }
            Message::Listen { fd, reply } => drop(reply.try_send(self.listen(fd))),
            Message::AdoptNbd(arrived) => self.adopt(*arrived),
            Message::Stop => self.stopping = true,
        }
    }

    fn add_resource(&mut self, id: ResourceId, config: ResourceConfig) -> Result<(), ShardError> {
        let taken = self.by_id.contains_key(&id) || self.resources.iter().any(|(_, r)| *r.name == *config.name);
        if taken {
            return Err(ShardError::Exists(config.name));
        }
        if self.resources.len() >= MAX_RESOURCES {
            return Err(ShardError::Limit(format!("more than {MAX_RESOURCES} resources on a shard")));
        }
        let recording = self.config.recordings.as_ref().map(|outlet| outlet.record(&config.name, self.now));
        let slot = self.resources.insert(Res::new(id, config, recording));
        self.by_id.insert(id, slot);
        Ok(())
    }

    fn remove_resource(&mut self, id: ResourceId) -> Result<(), ShardError> {
        let slot = self.resource_slot(id).ok_or(ShardError::NoResource)?;
        let resource = &self.resources[slot];
        for export in &resource.exports {
            export.shut();
        }
        if let Some(why) = resource.in_use() {
            self.resources[slot].changed = true;
            return Err(ShardError::InUse(why));
        }
        self.by_id.remove(&id);
        for export in self.resources.remove(slot).exports {
            self.config.exports.remove(&export.name);
        }
        Ok(())
    }

    fn admin(&mut self, id: ResourceId, command: Command, attach: Option<VolumeNr>, reply: ReplyTo<AdminResult>) {
        let refusal = match self.resource_slot(id) {
            None => Some((0, "no such resource on this shard".to_owned())),
            Some(slot) => self.refusal(slot, &command, attach),
        };
        if let Some((code, message)) = refusal {
            let _ = reply.try_send(Err(AdminError { code, message }));
            return;
        }
        let slot = self.resource_slot(id).expect("was found above");
        let resource = &mut self.resources[slot];
        match &command {
            Command::AddPeer(peer) => resource.set_net(peer.node_id, &peer.net),
            Command::SetNetOptions { peer, net } => resource.set_net(*peer, net),
            _ => {}
        }
        resource.admins += 1;
        let tag = AdminTag(self.admins.insert(AdminWait { reply, attach }) as u64);
        self.feed(slot, Input::Admin { tag, command });
    }

    /// What the runtime has against a command.
    fn refusal(&mut self, slot: usize, command: &Command, attach: Option<VolumeNr>) -> Option<(i32, String)> {
        if self.admins.len() >= MAX_ADMINS {
            return Some((0, format!("{MAX_ADMINS} commands are under way: try again later")));
        }
        match command {
            Command::Attach { .. } if attach.is_none() => {
                Some((0, "a disk is attached by opening its backing device".to_owned()))
            }
            Command::Demote | Command::Down => {
                let resource = &mut self.resources[slot];
                // From here on nobody new comes in; the core's answer publishes what is true then.
                let clients: u32 = resource.exports.iter().map(|e| e.shut()).sum();
                resource.changed = true;
                let (id, name) = (resource.id, Arc::clone(&resource.name));
                if self.has_device(id) {
                    return Some((SS_DEVICE_IN_USE, format!("{name} has block devices: they have to go first")));
                }
                (clients > 0).then(|| {
                    (
                        SS_DEVICE_IN_USE,
                        format!("{clients} clients use exports of {name}: unmount or disconnect them first"),
                    )
                })
            }
            _ => None,
        }
    }

    fn attach(&mut self, id: ResourceId, volume: VolumeNr, disk: Disk, reply: ReplyTo<AdminResult>) {
        let slot = self.resource_slot(id);
        if slot.is_some_and(|slot| self.resources[slot].disks.contains_key(&volume)) {
            let message = format!("volume {volume} has a backing device already: detach it first");
            let _ = reply.try_send(Err(AdminError { code: 0, message }));
            return;
        }
        let (backing, hints) = (disk.backing(), disk.hints());
        if let Some(slot) = slot {
            let id = self.disks.attach(disk);
            self.resources[slot].disks.insert(volume, OpenDisk { id, backing, hints, used: false });
        }
        self.admin(id, Command::Attach { volume, backing }, Some(volume), reply);
    }

    fn status(&self, id: Option<ResourceId>) -> Vec<ResourceStatus> {
        let mut all: Vec<ResourceStatus> = match id {
            Some(id) => self.resource_slot(id).map(|slot| self.resources[slot].status()).into_iter().collect(),
            None => self.resources.iter().map(|(_, resource)| resource.status()).collect(),
        };
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn set_fault(&mut self, id: ResourceId, volume: VolumeNr, fault: Option<Fault>) -> Result<(), ShardError> {
        let slot = self.resource_slot(id).ok_or(ShardError::NoResource)?;
        let disk = self.resources[slot].disks.get(&volume);
        let disk = disk.ok_or_else(|| ShardError::InUse(format!("volume {volume} has no backing device")))?;
        self.disks.set_fault(disk.id, fault);
        Ok(())
    }

    fn add_export(&mut self, id: ResourceId, volume: VolumeNr, name: String) -> Result<(), ShardError> {
        let slot = self.resource_slot(id).ok_or(ShardError::NoResource)?;
        let resource = &mut self.resources[slot];
        let place = (id, Arc::clone(&resource.name), volume);
        let home = (self.config.index, self.mail.clone());
        let longest = Longest::new(self.pool.largest(Purpose::Request), resource.core.max_bio_bytes());
        let export = Arc::new(Export::new(name, place, home, longest));
        self.config.exports.add(Arc::clone(&export))?;
        resource.exports.push(export);
        resource.publish();
        Ok(())
    }
}
