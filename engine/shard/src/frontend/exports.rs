//! The exports of all shards of a node, for front ends that learn only from the client which one it wants.
//!
//! A shard keeps the state of its exports here up to date; the handshake of a connection, on whatever shard, reads it. The
//! lock is taken when a client opens an export and when a state changes, never for I/O.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use zea_core::limits::MAX_BIO_BYTES;
use zea_nbd::{ExportInfo, Exports, OpenError};
use zea_wire::ids::VolumeNr;

use crate::ResourceId;
use crate::handle::Message;
use crate::mailbox::Mail;

/// Why an export was not added.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExportError {
    /// The name is taken.
    #[error("there is an export {0:?} already")]
    Exists(String),
    /// The name cannot travel in the protocol.
    #[error("{0:?} is no export name: at most 255 bytes, no control characters")]
    BadName(String),
}

/// What a client may know of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ExportState {
    pub(crate) primary: bool,
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: u32,
    pub(crate) discard: bool,
    /// Clients that use it.
    pub(crate) opens: u32,
}

/// A volume under a name.
#[derive(Debug)]
pub(crate) struct Export {
    pub(crate) name: String,
    pub(crate) resource: ResourceId,
    pub(crate) resource_name: Arc<str>,
    pub(crate) volume: VolumeNr,
    /// Index of the shard that serves it.
    pub(crate) shard: u16,
    pub(crate) mail: Mail<Message>,
    pub(crate) longest: Longest,
    state: Mutex<ExportState>,
}

impl Export {
    pub(crate) fn new(
        name: String,
        (resource, resource_name, volume): (ResourceId, Arc<str>, VolumeNr),
        (shard, mail): (u16, Mail<Message>),
        longest: Longest,
    ) -> Export {
        let state = Mutex::default();
        Export { name, resource, resource_name, volume, shard, mail, longest, state }
    }

    fn state(&self) -> MutexGuard<'_, ExportState> {
        // A panic between two stores of plain numbers is not possible.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores what the core says now. The number of clients stays.
    pub(crate) fn publish(&self, new: ExportState) {
        let mut state = self.state();
        *state = ExportState { opens: state.opens, ..new };
    }

    /// Clients that use it.
    pub(crate) fn opens(&self) -> u32 {
        self.state().opens
    }

    /// Keeps new clients out if there are none, until the next [`Export::publish`]. Returns how many there are.
    pub(crate) fn shut(&self) -> u32 {
        let mut state = self.state();
        if state.opens == 0 {
            state.primary = false;
        }
        state.opens
    }

    fn info(&self, state: &ExportState) -> Result<ExportInfo, OpenError> {
        let Export { resource_name, volume, .. } = self;
        if !state.primary {
            let reason = format!("resource {resource_name} is Secondary on this node: promote it first");
            return Err(OpenError::Refused(reason));
        }
        if state.size_bytes == 0 {
            let reason =
                format!("volume {volume} of {resource_name} has no usable disk, neither here nor on a connected peer");
            return Err(OpenError::Refused(reason));
        }
        Ok(ExportInfo {
            name: self.name.clone(),
            size_bytes: state.size_bytes,
            read_only: false,
            block_min: state.block_bytes,
            block_preferred: 4096,
            block_max: self.longest.payload,
            // One core orders the requests of all connections.
            can_multi_conn: true,
            flush: true,
            fua: true,
            trim: state.discard,
            write_zeroes: true,
            fast_zero: false,
            cache: true,
            rotational: false,
        })
    }

    /// Counts a client in.
    pub(crate) fn open(self: &Arc<Self>) -> Result<OpenExport, OpenError> {
        let mut state = self.state();
        self.info(&state)?;
        state.opens += 1;
        Ok(OpenExport(Arc::clone(self)))
    }
}

/// A client's use of an export; ends when dropped.
#[derive(Debug)]
pub(crate) struct OpenExport(Arc<Export>);

impl OpenExport {
    pub(crate) fn export(&self) -> &Arc<Export> {
        &self.0
    }
}

impl Drop for OpenExport {
    fn drop(&mut self) {
        let mut state = self.0.state();
        assert!(state.opens > 0, "an export was closed more often than opened");
        state.opens -= 1;
    }
}

#[derive(Debug, Default)]
struct Directory {
    exports: BTreeMap<String, Arc<Export>>,
    default: Option<String>,
}

/// The exports of a node. Made once, given to every shard.
#[derive(Debug, Clone, Default)]
pub struct ExportDirectory(Arc<Mutex<Directory>>);

impl ExportDirectory {
    /// A directory without exports.
    pub fn new() -> ExportDirectory {
        ExportDirectory::default()
    }

    fn lock(&self) -> MutexGuard<'_, Directory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a client gets that asks for no name. Without this, the only export, if there is just one.
    pub fn set_default(&self, name: Option<String>) {
        self.lock().default = name;
    }

    /// Clients that use volumes of a resource (all of them with `None`).
    pub fn open_count(&self, resource: ResourceId, volume: Option<VolumeNr>) -> u32 {
        let matches = |e: &&Arc<Export>| e.resource == resource && volume.is_none_or(|v| e.volume == v);
        self.lock().exports.values().filter(matches).map(|e| e.opens()).sum()
    }

    /// The names of all exports.
    pub fn names(&self) -> Vec<String> {
        self.lock().exports.keys().cloned().collect()
    }

    pub(crate) fn add(&self, export: Arc<Export>) -> Result<(), ExportError> {
        let name = &export.name;
        if name.is_empty() || name.len() > 255 || name.chars().any(char::is_control) {
            return Err(ExportError::BadName(name.clone()));
        }
        let mut directory = self.lock();
        if directory.exports.contains_key(name) {
            return Err(ExportError::Exists(name.clone()));
        }
        directory.exports.insert(name.clone(), export);
        Ok(())
    }

    pub(crate) fn remove(&self, name: &str) {
        self.lock().exports.remove(name);
    }

    /// The export behind a name of a client.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Export>> {
        let directory = self.lock();
        if !name.is_empty() {
            return directory.exports.get(name).cloned();
        }
        match &directory.default {
            Some(name) => directory.exports.get(name).cloned(),
            None if directory.exports.len() == 1 => directory.exports.values().next().cloned(),
            None => None,
        }
    }
}

impl Exports for ExportDirectory {
    fn list(&self) -> Vec<String> {
        self.names()
    }

    fn open(&self, name: &str) -> Result<ExportInfo, OpenError> {
        let unknown = || OpenError::Unknown(format!("no export {name:?} on this node"));
        let export = self.find(name).ok_or_else(unknown)?;
        export.info(&export.state())
    }
}

/// The longest reads and writes of an export, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Longest {
    /// Of a client.
    pub(crate) payload: u32,
    /// Of the pieces that the core gets, a power of two.
    pub(crate) piece: u32,
}

impl Longest {
    /// For a pool that lends a connection `buffers` of its largest ones, each for a piece of up to 1 MiB: one less, because a range that is
    /// not aligned takes one more.
    pub(crate) fn new(buffers: u32, piece: u32) -> Longest {
        assert!(piece.is_power_of_two() && piece <= MAX_BIO_BYTES, "pieces of {piece} bytes");
        let whole = buffers.saturating_sub(1).clamp(1, crate::limits::NBD_MAX_PAYLOAD / MAX_BIO_BYTES);
        let bytes = whole * piece;
        Longest { payload: 1 << bytes.ilog2(), piece }
    }
}
