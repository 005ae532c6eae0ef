//! What a shard keeps for a resource, around its core.

use std::collections::BTreeMap;
use std::sync::Arc;

use zea_core::Resource;
use zea_core::config::{NetOptions, ResourceConfig};
use zea_core::io::{Backing, Input, Outbox, Rng, Time};
use zea_recorder::Recording;
use zea_wire::ids::{NodeId, VolumeNr};
use zea_wire::state::Role;

use crate::disk::{DiskId, Hints};
use crate::frontend::{Export, ExportState};
use crate::handle::{ReplyTo, ResourceStatus};
use crate::link::{LinkSockets, SendTimeouts};
use crate::{AdminResult, ResourceId};

/// Sector size of an export whose volume has no local disk to ask.
pub(super) const DEFAULT_BLOCK_BYTES: u32 = 512;

/// A peer's connection, as far as it is the runtime's.
#[derive(Debug)]
pub(super) struct Peer {
    /// The core asked for a link and did not get one yet.
    pub(super) wanted: bool,
    /// Slot of the link that is up or ending.
    pub(super) link: Option<usize>,
    /// The next link, which waits for the end of that one.
    pub(super) next: Option<LinkSockets>,
    pub(super) timeouts: SendTimeouts,
}

impl Peer {
    fn new(net: &NetOptions) -> Peer {
        Peer { wanted: false, link: None, next: None, timeouts: timeouts(net) }
    }
}

/// A backing device that is open.
#[derive(Debug, Clone, Copy)]
pub(super) struct OpenDisk {
    pub(super) id: DiskId,
    pub(super) backing: Backing,
    pub(super) hints: Hints,
    /// The core gave it a command, so that the core also closes it.
    pub(super) used: bool,
}

/// An admin command that its core did not answer yet.
#[derive(Debug)]
pub(super) struct AdminWait {
    pub(super) reply: ReplyTo<AdminResult>,
    /// It was an attach: where it fails, the device is closed.
    pub(super) attach: Option<VolumeNr>,
}

/// A resource.
#[derive(Debug)]
pub(super) struct Res {
    pub(super) id: ResourceId,
    pub(super) name: Arc<str>,
    pub(super) core: Resource,
    /// What the core is told is written down.
    pub(super) recording: Option<Recording>,
    pub(super) peers: BTreeMap<NodeId, Peer>,
    pub(super) disks: BTreeMap<VolumeNr, OpenDisk>,
    pub(super) exports: Vec<Arc<Export>>,
    /// Admin commands that wait.
    pub(super) admins: usize,
    /// Requests of front ends in the core.
    pub(super) requests: usize,
    /// Inputs since the core's invariants were checked.
    pub(super) unchecked: u32,
    /// When the core wants to be called.
    pub(super) deadline: Option<Time>,
    /// It had inputs since `deadline` was asked.
    pub(super) fed: bool,
    /// What the exports show may have changed.
    pub(super) changed: bool,
}

impl Res {
    pub(super) fn new(id: ResourceId, config: ResourceConfig, recording: Option<Recording>) -> Res {
        Res {
            id,
            name: config.name.as_str().into(),
            core: Resource::new(config),
            recording,
            peers: BTreeMap::new(),
            disks: BTreeMap::new(),
            exports: Vec::new(),
            admins: 0,
            requests: 0,
            unchecked: 0,
            deadline: None,
            fed: true,
            changed: false,
        }
    }

    /// Takes note of a peer's options, in force from its next link.
    pub(super) fn set_net(&mut self, peer: NodeId, net: &NetOptions) {
        self.peers.entry(peer).or_insert_with(|| Peer::new(net)).timeouts = timeouts(net);
    }

    pub(super) fn peer(&mut self, peer: NodeId) -> &mut Peer {
        self.peers.entry(peer).or_insert_with(|| Peer::new(&NetOptions::default()))
    }

    /// Gives an input to the core.
    pub(super) fn handle(&mut self, now: Time, rng: &mut dyn Rng, input: Input<'_>, actions: &mut Outbox) {
        match &mut self.recording {
            Some(recording) => recording.handle(&mut self.core, now, rng, input, actions),
            None => self.core.handle(now, rng, input, actions),
        }
    }

    /// At the end of a turn: what depends on the core's state.
    pub(super) fn refresh(&mut self, now: Time) {
        if let Some(recording) = &mut self.recording {
            recording.end_turn(now);
        }
        if std::mem::take(&mut self.fed) {
            self.deadline = self.core.deadline();
        }
        if std::mem::take(&mut self.changed) {
            self.publish();
        }
    }

    pub(super) fn publish(&mut self) {
        if self.exports.is_empty() {
            return;
        }
        let status = self.core.status();
        for export in &self.exports {
            let device = status.devices.iter().find(|d| d.volume == export.volume);
            let backing = self.disks.get(&export.volume).map(|d| d.backing);
            export.publish(ExportState {
                primary: status.role == Role::Primary,
                size_bytes: device.map_or(0, |d| d.size_sectors * 512),
                block_bytes: backing.map_or(DEFAULT_BLOCK_BYTES, |b| b.logical_block_bytes),
                discard: backing.is_some_and(|b| b.discard),
                opens: 0,
            });
        }
    }

    pub(super) fn status(&self) -> ResourceStatus {
        ResourceStatus { id: self.id, name: Arc::clone(&self.name), status: self.core.status() }
    }

    /// What keeps the resource from being removed.
    pub(super) fn in_use(&self) -> Option<String> {
        let linked = |peer: &&Peer| peer.wanted || peer.link.is_some();
        let clients: u32 = self.exports.iter().map(|e| e.opens()).sum();
        let links = self.peers.values().filter(linked).count();
        let what = match () {
            () if clients > 0 => format!("{clients} clients use its exports"),
            () if links > 0 => format!("{links} of its connections are not StandAlone"),
            () if !self.disks.is_empty() => "a backing device is attached".to_owned(),
            () if self.admins > 0 => "a command is under way".to_owned(),
            () if self.requests > 0 => "requests are under way".to_owned(),
            () => return None,
        };
        Some(format!("resource {} is in use: {what}; take it down first", self.name))
    }
}

fn timeouts(net: &NetOptions) -> SendTimeouts {
    let control_ms = net.timeout_ms.max(1);
    SendTimeouts { data_ms: control_ms.saturating_mul(u64::from(net.ko_count.max(1))), control_ms }
}
