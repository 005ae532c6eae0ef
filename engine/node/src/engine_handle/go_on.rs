//! What an engine does with the block devices that a daemon left behind which was killed (see [`super::left`]).

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use tracing::{info, warn};
use zea_core::config::QuorumOptions;
use zea_core::io::Command as CoreCommand;

use super::devices::Owner;
use super::left::{self, Leftovers, Memory, Verdict};
use super::shards::{Resource, ShardEngine, ask, lock};
use crate::api::Failure;
use crate::config::ResourceFile;

/// How often the state of a resource is looked at.
const TICK: Duration = Duration::from_millis(20);

impl ShardEngine {
    /// Finds what an earlier daemon left of a resource that is being started.
    pub(super) fn claim_devices(&self, file: &ResourceFile, resource: &Resource) {
        let volumes: Vec<u16> = file.volumes.iter().map(|volume| volume.nr).collect();
        let mut left = self.devices.claim(&file.name, &volumes);
        let memory = Memory::new(&self.state_dir, &file.name);
        if left.is_empty() {
            memory.forget();
        } else {
            memory.recall(&mut left);
        }
        *lock(&resource.left) = left;
    }

    /// A disk was attached whose device was left behind: its generation is the one to go on with.
    pub(super) fn note_generation(&self, resource: &Resource, volume: u16) {
        let mut left = lock(&resource.left);
        if left.get(&volume).is_none_or(|left| left.generation.is_some()) {
            return;
        }
        let name = lock(&resource.file).name.clone();
        let Ok(status) = resource.shard.status(resource.id) else { return };
        let device = status.status.devices.iter().find(|device| device.volume.0 == volume);
        let untouched =
            status.status.connections.iter().all(|peer| peer.conn == zea_wire::state::ConnState::StandAlone);
        if let (Some(device), Some(left), true) = (device, left.get_mut(&volume), untouched) {
            left.generation = Some(device.current_uuid);
        }
        if let Err(error) = Memory::new(&self.state_dir, &name).keep(&left) {
            warn!("{name}: {error:#}");
            // Not to be gone on with after another crash: then not now either.
            left.values_mut().for_each(|left| left.generation = None);
        }
    }

    /// Goes on with what was left of a resource, or lets it go.
    pub(super) fn decide(&self, name: &str) {
        let Ok(resource) = self.resource(name) else { return };
        if lock(&resource.left).is_empty() {
            return;
        }
        let end = Instant::now() + left::PATIENCE;
        let result = loop {
            match self.try_to_go_on(name, &resource, end) {
                Ok(Verdict::Yes) => break Ok(()),
                Ok(Verdict::No(why)) => break Err(why),
                Ok(Verdict::Wait(why)) if Instant::now() >= end => break Err(why),
                Err(failure) if Instant::now() >= end => break Err(failure.to_string()),
                Ok(Verdict::Wait(_)) | Err(_) => {}
            }
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            thread::sleep(TICK);
        };
        if let Err(why) = result {
            let _table = lock(&resource.devices);
            for left in std::mem::take(&mut *lock(&resource.left)).values() {
                self.devices.let_go(left.id, &why);
            }
        }
        Memory::new(&self.state_dir, name).forget();
    }

    fn try_to_go_on(&self, name: &str, resource: &Resource, end: Instant) -> Result<Verdict, Failure> {
        let mut table = lock(&resource.devices);
        let left = lock(&resource.left).clone();
        if left.is_empty() {
            return Ok(Verdict::No("it was taken down".into()));
        }
        let verdict = judge(resource, &left)?;
        if verdict != Verdict::Yes {
            return Ok(verdict);
        }
        ask(resource.shard.admin(resource.id, CoreCommand::Promote { force: false }))?;
        // From here on nobody else becomes Primary; before it somebody may have.
        let verdict = judge(resource, &left)?;
        if verdict != Verdict::Yes {
            ask(resource.shard.admin(resource.id, CoreCommand::Demote))?;
            return Ok(verdict);
        }
        let owner = Owner { name, id: resource.id, shard: &resource.shard };
        for (nr, left) in left {
            match self.devices.take_over(owner, nr, left, end) {
                Ok(device) => {
                    info!("{name}: Primary again, and goes on with {}", device.link().display());
                    table.insert(nr, device);
                }
                Err(error) => self.devices.let_go(left.id, &error.to_string()),
            }
        }
        lock(&resource.left).clear();
        if let Err(error) = resource.sync(&self.devices, &mut table) {
            warn!("{name}: {error}");
        }
        Ok(Verdict::Yes)
    }
}

fn judge(resource: &Resource, left: &Leftovers) -> Result<Verdict, Failure> {
    let status = resource.shard.status(resource.id).map_err(|error| Failure::failed(error.to_string()))?.status;
    let has_quorum = lock(&resource.file).options.quorum_options().quorum != QuorumOptions::default().quorum;
    Ok(left::judge(&status, left, has_quorum))
}
