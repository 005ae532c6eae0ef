//! The state directory: what survives a restart.
//!
//! ```text
//! DIR/lock                    held while a daemon runs
//! DIR/node-id                 whose directory this is
//! DIR/resources/NAME.toml     resource files
//! DIR/intent/NAME.toml        what the administrator wants of a resource: up, connected, attached
//! DIR/secrets/NAME            shared secrets, mode 0600
//! DIR/flight/NAME/            flight recordings, written by the recorder; they go when their resource is forgotten
//! ```
//! A resource exists when its resource file does: it is written last and removed first.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::api::Secret;
use crate::config::{self, ResourceFile, check};

/// What the administrator wants of a resource. Kept apart from the resource file, which is the administrator's own text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Intent {
    /// The resource is to run.
    pub up: bool,
    /// Volumes that are to stay detached.
    pub detached: BTreeSet<u16>,
    /// Node ids of peers that are to stay disconnected.
    pub disconnected: BTreeSet<u8>,
}

impl Default for Intent {
    fn default() -> Self {
        Intent { up: true, detached: BTreeSet::new(), disconnected: BTreeSet::new() }
    }
}

/// A resource as it was saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Its configuration.
    pub file: ResourceFile,
    /// Its shared secret.
    pub secret: Option<Secret>,
    /// What is wanted of it.
    pub intent: Intent,
}

/// An open and locked state directory.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    node_id: u8,
    _lock: File,
}

impl Store {
    /// Opens the state directory of a node, made if it is not there, and locks it.
    ///
    /// # Errors
    /// Another daemon runs on it, it belongs to another node, or it cannot be read and written.
    pub fn open(dir: &Path, node_id: u8) -> Result<Store> {
        for (sub, mode) in [("", 0o755), ("resources", 0o755), ("intent", 0o755), ("secrets", 0o700), ("flight", 0o700)]
        {
            let path = dir.join(sub);
            DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(&path)
                .with_context(|| format!("cannot make the directory {}: choose another --state-dir", path.display()))?;
        }
        let lock = lock(&dir.join("lock"))?;
        let store = Store { dir: dir.to_owned(), node_id, _lock: lock };
        store.check_node_id()?;
        store.remove_orphans()?;
        Ok(store)
    }

    fn check_node_id(&self) -> Result<()> {
        let path = self.dir.join("node-id");
        match fs::read_to_string(&path) {
            Ok(text) if text.trim() == self.node_id.to_string() => Ok(()),
            Ok(text) => bail!(
                "{} belongs to node {}, and this is node {}: give this node a --state-dir of its own",
                self.dir.display(),
                text.trim(),
                self.node_id
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write_atomic(&path, format!("{}\n", self.node_id).as_bytes(), 0o644)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Removes what a crash between the writes of [`Store::save`] or [`Store::remove`] left behind.
    fn remove_orphans(&self) -> Result<()> {
        let names: BTreeSet<String> = self.names()?.into_iter().collect();
        for (sub, suffix) in [("resources", ".toml"), ("intent", ".toml"), ("secrets", "")] {
            for file in file_names(&self.dir.join(sub))? {
                let owner = file.strip_suffix(suffix).unwrap_or_default();
                if file.starts_with('.') || (sub != "resources" && !names.contains(owner)) {
                    remove_if_there(&self.dir.join(sub).join(&file))?;
                }
            }
        }
        let mut recordings = file_names(&self.recordings())?.into_iter().filter(|name| !names.contains(name));
        recordings.try_for_each(|name| self.remove_recording(&name))
    }

    /// Folder of the flight recordings, one folder a resource.
    pub fn recordings(&self) -> PathBuf {
        self.dir.join("flight")
    }

    fn remove_recording(&self, name: &str) -> Result<()> {
        let path = self.recordings().join(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Names of the saved resources, sorted.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = file_names(&self.dir.join("resources"))?
            .iter()
            .filter_map(|file| file.strip_suffix(".toml"))
            .filter(|name| check::check_name(name).is_ok())
            .map(str::to_owned)
            .collect();
        names.sort();
        Ok(names)
    }

    /// Reads a resource.
    ///
    /// # Errors
    /// A file cannot be read or is wrong; the text names file, line and column.
    pub fn load(&self, name: &str) -> Result<Saved> {
        let path = self.resource_path(name);
        let text = read_bounded(&path, config::load::MAX_FILE_BYTES)?;
        let file = config::parse(&path, &text, Some(self.node_id))?;
        if file.name != name {
            bail!("{} is for resource {:?}: a resource file is called NAME.toml", path.display(), file.name);
        }
        let secret = file.net.secret_file.is_some().then(|| read_secret(&self.secret_path(name))).transpose()?;
        let path = self.intent_path(name);
        let intent = if path.exists() {
            let text = read_bounded(&path, config::load::MAX_FILE_BYTES)?;
            toml::from_str(&text)
                .map_err(|error| anyhow!("{}: {error}remove the file to bring {name} up whole", path.display()))?
        } else {
            Intent::default()
        };
        Ok(Saved { file, secret, intent })
    }

    /// Saves a resource. Its secret file becomes the daemon's own copy.
    ///
    /// # Errors
    /// A file cannot be written; the resource is then saved as before.
    pub fn save(&self, saved: &mut Saved) -> Result<()> {
        let name = saved.file.name.clone();
        if let Some(secret) = &saved.secret {
            write_atomic(&self.secret_path(&name), secret.0.as_bytes(), 0o600)?;
            saved.file.net.secret_file = Some(Path::new("../secrets").join(&name));
        }
        self.save_intent(&name, &saved.intent)?;
        write_atomic(&self.resource_path(&name), saved.file.to_toml().as_bytes(), 0o644)?;
        if saved.secret.is_none() {
            remove_if_there(&self.secret_path(&name))?;
        }
        Ok(())
    }

    /// Saves what is wanted of a resource.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_intent(&self, name: &str, intent: &Intent) -> Result<()> {
        let text = toml::to_string(intent).context("intent")?;
        write_atomic(&self.intent_path(name), text.as_bytes(), 0o644)
    }

    /// Forgets a resource.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove(&self, name: &str) -> Result<()> {
        remove_if_there(&self.resource_path(name))?;
        // Before the secret goes: a resource that came back after a crash without it could not be read.
        let dir = self.dir.join("resources");
        let sync = File::open(&dir).and_then(|dir| dir.sync_all());
        sync.with_context(|| format!("cannot write {}", dir.display()))?;
        remove_if_there(&self.intent_path(name))?;
        remove_if_there(&self.secret_path(name))?;
        self.remove_recording(name)
    }

    fn resource_path(&self, name: &str) -> PathBuf {
        self.dir.join("resources").join(format!("{name}.toml"))
    }

    fn intent_path(&self, name: &str) -> PathBuf {
        self.dir.join("intent").join(format!("{name}.toml"))
    }

    fn secret_path(&self, name: &str) -> PathBuf {
        self.dir.join("secrets").join(name)
    }
}

/// Reads a shared secret; a line end after it does not count.
///
/// # Errors
/// It cannot be read, is empty or too long.
pub fn read_secret(path: &Path) -> Result<Secret> {
    let text = read_bounded(path, 4096)?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() || secret.len() > check::MAX_SECRET_BYTES {
        bail!("{} holds a secret of {} bytes: write 1 to {}", path.display(), secret.len(), check::MAX_SECRET_BYTES);
    }
    Ok(Secret(secret.to_owned()))
}

/// Reads a text file of at most `limit` bytes.
///
/// # Errors
/// It cannot be read, is longer or no UTF-8.
pub fn read_bounded(path: &Path, limit: usize) -> Result<String> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut text = String::new();
    file.take(limit as u64 + 1).read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
    if text.len() > limit {
        bail!("{} is longer than {limit} bytes", path.display());
    }
    Ok(text)
}

fn lock(path: &Path) -> Result<File> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    if let Err(error) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
        let mut owner = String::new();
        (&file).take(32).read_to_string(&mut owner).ok();
        let dir = path.parent().unwrap_or(path).display();
        bail!("{dir} is in use by the daemon with pid {}: stop it, or choose another --state-dir", owner.trim());
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// Writes a file so that after a crash it is either the old or the new one.
pub(crate) fn write_atomic(path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    let dir = path.parent().context("a file lies in a directory")?;
    let name = path.file_name().context("a file has a name")?.to_string_lossy();
    let temporary = dir.join(format!(".{name}.new"));
    let write = || -> io::Result<()> {
        remove_if_there(&temporary).map_err(io::Error::other)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn file_names(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read the directory {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::fake::sample_resource;

    fn saved(name: &str, secret: Option<&str>) -> Saved {
        let mut file = sample_resource(name, Path::new("/nowhere"));
        if secret.is_some() {
            file.net.cram_hmac_alg = Some(config::Algorithm::Sha256);
            file.net.secret_file = Some("s".into());
        }
        Saved { file, secret: secret.map(|s| Secret(s.into())), intent: Intent::default() }
    }

    #[test]
    fn store_brings_back_what_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = saved("r0", Some("hush"));
        one.intent.detached.insert(3);
        one.intent.disconnected.insert(1);
        {
            let store = Store::open(dir.path(), 0).unwrap();
            store.save(&mut one).unwrap();
            store.save(&mut saved("r1", None)).unwrap();
        }
        let store = Store::open(dir.path(), 0).unwrap();
        assert_eq!(store.names().unwrap(), ["r0", "r1"]);
        assert_eq!(store.load("r0").unwrap(), one);
        let mode = |file: &str| fs::metadata(dir.path().join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("secrets/r0"), 0o600);
        assert_eq!(mode("secrets"), 0o700);
        assert!(!fs::read_to_string(dir.path().join("resources/r0.toml")).unwrap().contains("hush"));
        store.remove("r0").unwrap();
        assert_eq!(store.names().unwrap(), ["r1"]);
        assert!(!dir.path().join("secrets/r0").exists());
    }

    #[test]
    fn store_is_locked_and_belongs_to_a_node() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 0).unwrap();
        let error = Store::open(dir.path(), 0).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(store);
        let error = Store::open(dir.path(), 1).unwrap_err().to_string();
        assert!(error.contains("belongs to node 0"), "{error}");
    }

    #[test]
    fn store_cleans_up_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(dir.path(), 0).unwrap());
        for file in ["resources/.r0.toml.new", "secrets/r0", "intent/r0.toml", "secrets/.r1.new"] {
            fs::write(dir.path().join(file), "half").unwrap();
        }
        fs::create_dir(dir.path().join("flight/r0")).unwrap();
        fs::write(dir.path().join("flight/r0/000000000000.zeaflt"), "").unwrap();
        let store = Store::open(dir.path(), 0).unwrap();
        assert!(store.names().unwrap().is_empty());
        for sub in ["resources", "secrets", "intent", "flight"] {
            assert!(file_names(&dir.path().join(sub)).unwrap().is_empty(), "{sub}");
        }
    }

    #[test]
    fn store_names_the_place_of_a_mistake() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 0).unwrap();
        let path = dir.path().join("resources/r0.toml");
        fs::write(&path, "name = \"r0\"\nnodes = 3\n").unwrap();
        let error = format!("{:#}", store.load("r0").unwrap_err());
        assert!(error.contains("r0.toml:2:1") && error.contains("did you mean `node`"), "{error}");
        store.save(&mut saved("r1", None)).unwrap();
        fs::rename(dir.path().join("resources/r1.toml"), &path).unwrap();
        assert!(store.load("r0").unwrap_err().to_string().contains("\"r1\""));
        fs::write(&path, vec![0xff; 100]).unwrap();
        assert!(store.load("r0").is_err());
    }

    #[test]
    fn store_refuses_odd_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        for (text, good) in
            [("", false), ("\n", false), ("hush\n", true), (&"x".repeat(64), true), (&"x".repeat(65), false)]
        {
            fs::write(&path, text).unwrap();
            assert_eq!(read_secret(&path).is_ok(), good, "{text:?}");
        }
    }
}
