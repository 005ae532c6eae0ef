//! Resources come, change and go.

use std::path::Path;

use tracing::info;

use super::{MAX_RESOURCES, Node, Resource, lock};
use crate::api::{Done, EventAction, EventBody, Failure, Secret};
use crate::config::{self, Check, ResourceFile};
use crate::meta_device;
use crate::store::{Intent, Saved};

impl Node {
    /// Makes a resource: meta data, files, start.
    pub(super) fn create(
        &self,
        file: ResourceFile,
        secret: Option<Secret>,
        force: bool,
    ) -> Result<Done, Failure> {
        Check::new(&file).for_node(self.id).map_err(|problem| {
            Failure::usage(format!(
                "{}: {}: {}",
                problem.at, problem.message, problem.help
            ))
        })?;
        check_secret(&file, secret.as_ref())?;
        let name = file.name.clone();
        let new = Resource::new(Saved {
            file,
            secret,
            intent: Intent::default(),
        });
        // Taken before others can see the resource, and held until it is whole.
        let _admin = lock(&new.admin);
        {
            let mut resources = lock(&self.resources);
            if resources.contains_key(&name)
                || lock(&self.broken).iter().any(|broken| broken.name == name)
            {
                return Err(Failure::refused(
                    0,
                    format!(
                        "{name} exists: change it with `zea apply FILE`, or remove it with `zea resource delete {name}`"
                    ),
                ));
            }
            if resources.len() >= MAX_RESOURCES {
                return Err(Failure::refused(
                    0,
                    format!("this node has {MAX_RESOURCES} resources, which is the most"),
                ));
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
        let notes = meta_device::prepare(&saved.file, self.id, force)?;
        self.store
            .save(&mut saved)
            .map_err(|error| Failure::failed(format!("{error:#}")))?;
        *lock(&new.saved) = saved.clone();
        info!("{} is created", saved.file.name);
        self.bring_up(&saved)
            .map_err(|failure| failure.about("it is created, but"))?;
        Ok(Done { notes })
    }

    /// Two resources must not write to one device.
    fn refuse_shared_devices(&self, file: &ResourceFile) -> Result<(), Failure> {
        let paths = |file: &ResourceFile| -> Vec<std::path::PathBuf> {
            let both = |volume: &config::Volume| {
                [
                    Some(volume.disk.clone()),
                    volume.meta_disk.path().map(Path::to_owned),
                ]
            };
            file.volumes
                .iter()
                .flat_map(both)
                .flatten()
                .map(|path| path.canonicalize().unwrap_or(path))
                .collect()
        };
        let wanted = paths(file);
        for (name, other) in self.all() {
            let shared = paths(&other.saved().file)
                .into_iter()
                .find(|path| name != file.name && wanted.contains(path));
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

    /// Creates a resource from a file, or changes the one of that name.
    pub(super) fn apply(
        &self,
        file: &str,
        text: &str,
        secret: Option<Secret>,
        force: bool,
    ) -> Result<Done, Failure> {
        let wanted = config::parse(Path::new(file), text, Some(self.id))
            .map_err(|error| Failure::usage(error.to_string()))?;
        check_secret(&wanted, secret.as_ref())?;
        let Some(resource) = lock(&self.resources).get(&wanted.name).cloned() else {
            return self.create(wanted, secret, force);
        };
        let _admin = lock(&resource.admin);
        let name = wanted.name.clone();
        let old = resource.saved();
        let mut new = Saved {
            file: wanted,
            secret,
            intent: old.intent.clone(),
        };
        // The saved file names the daemon's own copy of the secret; what counts is what is in it.
        if old.secret.is_some() && new.secret.is_some() {
            new.file
                .net
                .secret_file
                .clone_from(&old.file.net.secret_file);
        }
        if (&new.file, &new.secret) == (&old.file, &old.secret) {
            return Ok(Done {
                notes: vec![format!("{name} is like this already")],
            });
        }
        let up = self.engine.status(&name).is_ok();
        let only_net = ResourceFile {
            net: old.file.net.clone(),
            ..new.file.clone()
        } == old.file;
        if up && !only_net {
            return Err(Failure::refused(
                0,
                format!(
                    "{name} is up, and only [net] can change meanwhile: `zea down {name}`, `zea apply {file}`, `zea up {name}`"
                ),
            ));
        }
        self.refuse_shared_devices(&new.file)?;
        let mut notes = if only_net {
            Vec::new()
        } else {
            meta_device::prepare(&new.file, self.id, force)?
        };
        self.store
            .save(&mut new)
            .map_err(|error| Failure::failed(format!("{error:#}")).about(&name))?;
        *lock(&resource.saved) = new.clone();
        if up {
            self.engine
                .set_net(&new.file, new.secret.as_ref())
                .map_err(|failure| failure.about(&name))?;
            notes.push(format!(
                "in force from the next connect: zea disconnect {name} && zea connect {name}"
            ));
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
                return Err(Failure::refused(
                    0,
                    format!("{name} is Primary: `zea demote {name}` first"),
                ));
            }
            self.engine
                .stop(name, None)
                .map_err(|failure| failure.about(name))?;
            self.publish(
                EventAction::Destroy,
                name,
                EventBody::Resource { role: None },
            );
            // Should the rest fail, it is not to come back by itself.
            self.intend(&resource, |intent| intent.up = false)?;
        }
        let notes = if wipe_metadata {
            meta_device::wipe(&resource.saved().file)?
        } else {
            Vec::new()
        };
        self.store
            .remove(name)
            .map_err(|error| Failure::failed(format!("{error:#}")).about(name))?;
        lock(&self.resources).remove(name);
        info!("{name} is deleted");
        Ok(Done { notes })
    }
}

fn check_secret(file: &ResourceFile, secret: Option<&Secret>) -> Result<(), Failure> {
    match (&file.net.secret_file, secret) {
        (Some(_), None) => Err(Failure::usage(
            "the request lacks the contents of the secret file",
        )),
        (None, Some(_)) => Err(Failure::usage("there is a secret, but no `cram-hmac-alg`")),
        (_, Some(Secret(text)))
            if text.is_empty() || text.len() > config::check::MAX_SECRET_BYTES =>
        {
            Err(Failure::usage(format!(
                "a secret has 1 to {} bytes",
                config::check::MAX_SECRET_BYTES
            )))
        }
        _ => Ok(()),
    }
}
