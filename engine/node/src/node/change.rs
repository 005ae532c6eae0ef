//! Resources come, change and go.

use std::net::IpAddr;
use std::path::Path;

use tracing::info;

use super::{MAX_RESOURCES, Node, Resource, lock};
use crate::api::{Done, EventAction, EventBody, Failure, ResourceStatus, Secret};
use crate::config::{self, Check, Disk, Net, ResourceFile};
use crate::meta_device;
use crate::store::{Intent, Saved};

impl Node {
    /// Makes a resource: meta data, files, start.
    pub(super) fn create(&self, file: ResourceFile, secret: Option<Secret>, force: bool) -> Result<Done, Failure> {
        Check::new(&file)
            .for_node(self.id)
            .map_err(|problem| Failure::usage(format!("{}: {}: {}", problem.at, problem.message, problem.help)))?;
        check_secret(&file, secret.as_ref())?;
        let name = file.name.clone();
        self.refuse_broken(&name)?;
        let new = Resource::new(Saved { file, secret, intent: Intent::default() });
        // Taken before others can see the resource, and held until it is whole.
        let _admin = lock(&new.admin);
        {
            let mut resources = lock(&self.resources);
            if resources.contains_key(&name) {
                return Err(Failure::refused(
                    0,
                    format!(
                        "{name} exists: change it with `zea apply FILE`, or remove it with `zea resource delete {name}`"
                    ),
                ));
            }
            if resources.len() >= MAX_RESOURCES {
                return Err(Failure::refused(0, format!("this node has {MAX_RESOURCES} resources, which is the most")));
            }
            resources.insert(name.clone(), std::sync::Arc::clone(&new));
        }
        let result = self.make(&new, force);
        if result.is_err() && self.store.load(&name).is_err() {
            lock(&self.resources).remove(&name);
        }
        result.map_err(|failure| failure.about(&name))
    }

    fn make(&self, new: &Resource, force: bool) -> Result<Done, Failure> {
        let mut saved = new.saved();
        self.refuse_shared_devices(&saved.file)?;
        self.refuse_shared_addresses(&saved.file)?;
        let notes = meta_device::prepare(&saved.file, self.id, force, |_| true)?;
        self.store.save(&mut saved).map_err(|error| Failure::failed(format!("{error:#}")))?;
        *lock(&new.saved) = saved.clone();
        info!("{} is created", saved.file.name);
        self.bring_up(&saved).map_err(|failure| failure.about("it is created, but"))?;
        Ok(Done { notes })
    }

    /// Two resources must not write to one device.
    fn refuse_shared_devices(&self, file: &ResourceFile) -> Result<(), Failure> {
        let paths = |file: &ResourceFile| -> Vec<std::path::PathBuf> {
            let both =
                |volume: &config::Volume| [Some(volume.disk.clone()), volume.meta_disk.path().map(Path::to_owned)];
            file.volumes.iter().flat_map(both).flatten().map(|path| path.canonicalize().unwrap_or(path)).collect()
        };
        let wanted = paths(file);
        for (name, other) in self.all() {
            let shared = paths(&other.saved().file).into_iter().find(|path| name != file.name && wanted.contains(path));
            if let Some(path) = shared {
                let path = path.display();
                return Err(Failure::refused(
                    0,
                    format!("{path} belongs to {name}: give every volume a device of its own"),
                ));
            }
        }
        Ok(())
    }

    /// DRBD's protocol has no resource name at its beginning: the addresses have to say which resource a call is for.
    fn refuse_shared_addresses(&self, file: &ResourceFile) -> Result<(), Failure> {
        let own = |file: &ResourceFile| file.node(self.id).map(|node| node.address.0);
        let hosts =
            |file: &ResourceFile| -> Vec<IpAddr> { file.peers(self.id).map(|peer| peer.address.0.ip()).collect() };
        let (wanted, wanted_hosts) = (own(file), hosts(file));
        for (name, other) in self.all() {
            let other = other.saved().file;
            let shared = name != file.name && own(&other) == wanted;
            if let Some(address) = wanted.filter(|_| shared && hosts(&other).iter().any(|ip| wanted_hosts.contains(ip)))
            {
                return Err(Failure::refused(
                    0,
                    format!("{name} has {address} towards the same host: give every resource a port of its own"),
                ));
            }
        }
        Ok(())
    }

    /// Creates a resource from a file, or changes the one of that name.
    pub(super) fn apply(&self, file: &str, text: &str, secret: Option<Secret>, force: bool) -> Result<Done, Failure> {
        let wanted =
            config::parse(Path::new(file), text, Some(self.id)).map_err(|error| Failure::usage(error.to_string()))?;
        check_secret(&wanted, secret.as_ref())?;
        let Some(resource) = lock(&self.resources).get(&wanted.name).cloned() else {
            return self.create(wanted, secret, force);
        };
        let _admin = lock(&resource.admin);
        let name = wanted.name.clone();
        let old = resource.saved();
        let mut new = Saved { file: wanted, secret, intent: old.intent.clone() };
        // The saved file names the daemon's own copy of the secret; what counts is what is in it.
        if old.secret.is_some() && new.secret.is_some() {
            new.file.net.secret_file.clone_from(&old.file.net.secret_file);
        }
        let status = self.engine.status(&name).ok();
        let diskless = |nr: u16| {
            let device = |status: &ResourceStatus| {
                status.devices.iter().any(|device| device.volume == nr && device.disk_state == "Diskless")
            };
            status.as_ref().is_none_or(device)
        };
        if status.is_some() && !can_change_live(&old.file, &new.file, diskless) {
            return Err(Failure::refused(
                0,
                format!(
                    "{name} is up, and only [net] (but for protocol-version-max), [options], the speed of resyncs and the devices of detached volumes can change meanwhile: \
                     `zea down {name}`, `zea apply {file}`, `zea up {name}`"
                ),
            ));
        }
        refuse_resize(&old.file, &new.file).map_err(|failure| failure.about(&name))?;
        let same_net = (&new.file.net, &new.secret) == (&old.file.net, &old.secret);
        let mut notes = Vec::new();
        // A change of [net] alone leaves broken disks alone. Everything else, no change included, makes the disks ready
        // that are not attached: this is how a new disk gets its meta data.
        if same_net || new.file.volumes != old.file.volumes || new.file.nodes != old.file.nodes {
            self.refuse_shared_devices(&new.file)?;
            self.refuse_shared_addresses(&new.file)?;
            notes =
                meta_device::prepare(&new.file, self.id, force, diskless).map_err(|failure| failure.about(&name))?;
        }
        if same_net && new.file == old.file {
            if notes.is_empty() {
                notes.push(format!("{name} is like this already"));
            }
            return Ok(Done { notes });
        }
        self.store.save(&mut new).map_err(|error| Failure::failed(format!("{error:#}")).about(&name))?;
        *lock(&resource.saved) = new.clone();
        if status.is_some() {
            self.engine.reconfigure(&new.file, new.secret.as_ref()).map_err(|failure| failure.about(&name))?;
            if !same_net {
                notes.push(format!("in force from the next connect: zea disconnect {name} && zea connect {name}"));
            }
        }
        Ok(Done { notes })
    }

    /// Forgets a resource.
    pub(super) fn delete(&self, name: &str, wipe_metadata: bool) -> Result<Done, Failure> {
        let resource = self.find(name)?;
        let _admin = lock(&resource.admin);
        if let Ok(status) = self.engine.status(name) {
            self.refuse_if_open(name)?;
            if status.role == "Primary" {
                return Err(Failure::refused(0, format!("{name} is Primary: `zea demote {name}` first")));
            }
            self.engine.stop(name, None).map_err(|failure| failure.about(name))?;
            self.publish(EventAction::Destroy, name, EventBody::gone_resource());
            // Should the rest fail, it is not to come back by itself.
            self.intend(&resource, |intent| intent.up = false)?;
        }
        let notes = if wipe_metadata { meta_device::wipe(&resource.saved().file)? } else { Vec::new() };
        self.store.remove(name).map_err(|error| Failure::failed(format!("{error:#}")).about(name))?;
        lock(&self.resources).remove(name);
        info!("{name} is deleted");
        Ok(Done { notes })
    }
}

/// Whether a resource that is up can become `new`: the options of its connections and its own may differ, and the devices of volumes that
/// are `diskless`.
fn can_change_live(old: &ResourceFile, new: &ResourceFile, diskless: impl Fn(u16) -> bool) -> bool {
    // Requests of the volumes are cut for it.
    let net = Net { protocol_version_max: new.net.protocol_version_max, ..old.net.clone() };
    // Of the options of the disks those about the speed of resyncs.
    let disk = Disk { al_extents: new.disk.al_extents, disk_flushes: new.disk.disk_flushes, ..old.disk.clone() };
    let mut masked = ResourceFile { net, disk, options: old.options.clone(), ..new.clone() };
    for volume in &mut masked.volumes {
        let Some(old) = old.volume(volume.nr) else { continue };
        volume.resync_after = old.resync_after;
        if diskless(volume.nr) {
            volume.disk.clone_from(&old.disk);
            volume.meta_disk.clone_from(&old.meta_disk);
        }
    }
    masked == *old
}

/// The engine takes the size of a volume from its meta data: another one in the file would be believed by nobody.
fn refuse_resize(old: &ResourceFile, new: &ResourceFile) -> Result<(), Failure> {
    let size = |volume: &config::Volume| volume.size.map_or("all of the device".to_owned(), |size| size.to_string());
    for volume in &new.volumes {
        if let Some(was) = old.volume(volume.nr).filter(|was| was.size != volume.size) {
            return Err(Failure::refused(
                0,
                format!(
                    "volume {} has the size {} and cannot be given another ({}) here: `zea resize` makes it larger while it is up",
                    volume.nr,
                    size(was),
                    size(volume)
                ),
            ));
        }
    }
    Ok(())
}

fn check_secret(file: &ResourceFile, secret: Option<&Secret>) -> Result<(), Failure> {
    match (&file.net.secret_file, secret) {
        (Some(_), None) => Err(Failure::usage("the request lacks the contents of the secret file")),
        (None, Some(_)) => Err(Failure::usage("there is a secret, but no `cram-hmac-alg`")),
        (_, Some(Secret(text))) if text.is_empty() || text.len() > config::check::MAX_SECRET_BYTES => {
            Err(Failure::usage(format!("a secret has 1 to {} bytes", config::check::MAX_SECRET_BYTES)))
        }
        _ => Ok(()),
    }
}
