//! The seam between control plane and data path: what the control plane asks of an engine.
//!
//! [`Engine`] is implemented over shards by [`ShardEngine`], and in memory by `fake` for tests of the control plane. Its
//! methods may block for the time of a two-phase commit; they are called from client threads only.

mod convert;
mod devices;
mod go_on;
mod left;
mod links;
mod protect;
mod repeats;
mod shards;
mod users;

use std::time::Duration;

pub use convert::recorded_status;
pub use devices::Frontend;
pub use shards::{ShardEngine, ShardOptions};

use crate::api::{BlockDevices, Failure, ResourceStatus, Secret};
use crate::config::ResourceFile;

/// A command to a resource that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Open the backing device and bring the volume up.
    Attach {
        /// Volume.
        volume: u16,
    },
    /// Give the backing device up.
    Detach {
        /// Volume.
        volume: u16,
        /// Do not ask the cluster.
        force: bool,
    },
    /// Begin to connect; does not wait until it is connected.
    Connect {
        /// Node id of the peer.
        peer: u8,
        /// Throw away what only this node has.
        discard_my_data: bool,
    },
    /// Disconnect.
    Disconnect {
        /// Node id of the peer.
        peer: u8,
        /// Do not ask the cluster.
        force: bool,
    },
    /// Become Primary.
    Promote {
        /// Accept data that is not known to be UpToDate.
        force: bool,
    },
    /// Become Secondary.
    Demote,
    /// Begin to compare a volume with a peer's.
    Verify {
        /// Node id of the peer.
        peer: u8,
        /// Volume.
        volume: u16,
        /// First sector; `None`: where the last one was interrupted, else 0.
        start: Option<u64>,
        /// Sector to stop at; `None`: the end.
        stop: Option<u64>,
    },
    /// Make a volume larger while it is in use.
    Resize {
        /// Volume.
        volume: u16,
        /// Its new size in sectors.
        size_sectors: u64,
        /// No resync of what is new.
        assume_clean: bool,
    },
    /// Pause resyncs of a volume with a peer, or let them go on.
    PauseSync {
        /// Node id of the peer.
        peer: u8,
        /// Volume.
        volume: u16,
        /// Pause.
        paused: bool,
    },
    /// Have a peer throw away its data of a volume and resync it from this node.
    InvalidateRemote {
        /// Node id of the peer.
        peer: u8,
        /// Volume.
        volume: u16,
    },
    /// Throw away the data of a volume and resync it.
    Invalidate {
        /// Volume.
        volume: u16,
    },
}

/// A data path.
pub trait Engine: Send + Sync {
    /// Adds a resource: Secondary, volumes Diskless, connections StandAlone.
    ///
    /// # Errors
    /// It is there already, or a limit is reached.
    fn start(&self, resource: &ResourceFile, secret: Option<&Secret>) -> Result<(), Failure>;

    /// Demotes, disconnects, detaches and removes a resource. Refused while a front end has a volume open, unless
    /// `grace` is given: then front ends are closed first, and what is not done after that time is forced.
    ///
    /// # Errors
    /// The refusal; the resource is then still there.
    fn stop(&self, name: &str, grace: Option<Duration>) -> Result<(), Failure>;

    /// Carries out a command and waits for its end.
    ///
    /// # Errors
    /// The refusal, with DRBD's code.
    fn command(&self, name: &str, command: Command) -> Result<(), Failure>;

    /// Takes over a changed resource file: options of connections, in force from the next connect, and backing devices
    /// of volumes that are detached, in force from the next attach. Nothing else differs.
    ///
    /// # Errors
    /// There is no such resource.
    fn reconfigure(&self, resource: &ResourceFile, secret: Option<&Secret>) -> Result<(), Failure>;

    /// Decides about the block devices that an earlier daemon left of a resource that is up again, attached and
    /// connecting: goes on with them as Primary, or lets them go. Takes up to half a minute; does nothing where none was left.
    fn go_on(&self, name: &str);

    /// All resources that are to be up are up: block devices of others are let go.
    fn all_started(&self);

    /// Whether volumes are block devices.
    fn block_devices(&self) -> BlockDevices;

    /// Snapshot of a resource.
    ///
    /// # Errors
    /// There is no such resource.
    fn status(&self, name: &str) -> Result<ResourceStatus, Failure>;
}
