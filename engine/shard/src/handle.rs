//! The outer side of a shard: what other threads can ask of it.
//!
//! Every call puts one message into the shard's bounded mailbox and, where there is an answer, waits for it. Opening a
//! backing device, which can block, happens on the caller's thread.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use thiserror::Error;
use zea_core::config::ResourceConfig;
use zea_core::event::Status;
use zea_core::io::{AdminError, Command};
use zea_ublk::{Limits, Queue};
use zea_wire::ids::{NodeId, VolumeNr};

use crate::ResourceId;
use crate::disk::{BackingPaths, Disk, Fault, OpenError};
use crate::events::{EventStream, Subscriber, subscription};
use crate::frontend::{ExportError, Transmission};
use crate::link::LinkSockets;
use crate::mailbox::{Mail, Undelivered};
use crate::metrics::Metrics;

/// Time that a full mailbox is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time that the shard may take for an answer that it gives at once.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// Why a shard did not do what it was asked.
#[derive(Debug, Error)]
pub enum ShardError {
    /// Its thread has ended.
    #[error("the shard has ended")]
    Gone,
    /// Its mailbox stayed full, or it did not answer in time.
    #[error("the shard does not keep up")]
    Busy,
    /// No such resource on this shard.
    #[error("no such resource on this shard")]
    NoResource,
    /// The name or id is taken.
    #[error("resource {0:?} is on this shard already")]
    Exists(String),
    /// The resource still uses something.
    #[error("{0}")]
    InUse(String),
    /// A limit of `limits.rs`.
    #[error("{0}")]
    Limit(String),
    /// The backing device cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The core refused or failed.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The export cannot be.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// What a core answers to an admin command.
pub type AdminResult = Result<(), AdminError>;

/// Where answers go.
pub(crate) type ReplyTo<T> = Sender<T>;

/// An answer that may take long.
#[derive(Debug)]
pub struct Pending<T>(Receiver<T>);

impl<T> Pending<T> {
    /// Waits for the answer.
    ///
    /// # Errors
    /// [`ShardError::Gone`] where the shard ended without one.
    pub fn wait(self) -> Result<T, ShardError> {
        self.0.recv().map_err(|_| ShardError::Gone)
    }

    /// Waits for up to `patience`; `None` if there is no answer yet.
    ///
    /// # Errors
    /// [`ShardError::Gone`] where the shard ended without one.
    pub fn wait_for(&self, patience: Duration) -> Result<Option<T>, ShardError> {
        match self.0.recv_timeout(patience) {
            Ok(answer) => Ok(Some(answer)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(ShardError::Gone),
        }
    }
}

/// A resource's state as its shard knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceStatus {
    /// Its number.
    pub id: ResourceId,
    /// Its name.
    pub name: Arc<str>,
    /// What the core says.
    pub status: Status,
}

/// What comes through the mailbox.
#[derive(Debug)]
pub(crate) enum Message {
    AddResource { id: ResourceId, config: Box<ResourceConfig>, reply: ReplyTo<Result<(), ShardError>> },
    RemoveResource { id: ResourceId, reply: ReplyTo<Result<(), ShardError>> },
    Admin { id: ResourceId, command: Box<Command>, reply: ReplyTo<AdminResult> },
    Attach { id: ResourceId, volume: VolumeNr, disk: Box<Disk>, reply: ReplyTo<AdminResult> },
    NewLink { id: ResourceId, peer: NodeId, sockets: LinkSockets },
    Status { id: Option<ResourceId>, reply: ReplyTo<Vec<ResourceStatus>> },
    Subscribe(Subscriber),
    SetFault { id: ResourceId, volume: VolumeNr, fault: Option<Fault>, reply: ReplyTo<Result<(), ShardError>> },
    AddExport { id: ResourceId, volume: VolumeNr, name: String, reply: ReplyTo<Result<(), ShardError>> },
    CloseExports { id: ResourceId, reply: ReplyTo<()> },
    DeviceLimits { id: ResourceId, volume: VolumeNr, reply: ReplyTo<Result<Option<Limits>, ShardError>> },
    ServeDevice { id: ResourceId, volume: VolumeNr, queue: Queue, reply: ReplyTo<Result<(), ShardError>> },
    Listen { fd: std::os::fd::OwnedFd, reply: ReplyTo<Result<(), ShardError>> },
    AdoptNbd(Box<Transmission>),
    Stop,
}

#[derive(Debug)]
struct Inner {
    index: u16,
    mail: Mail<Message>,
    metrics: Arc<Metrics>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Handle of a running shard. Cheap to clone, usable from any thread except the shard's own.
#[derive(Debug, Clone)]
pub struct ShardHandle(Arc<Inner>);

impl ShardHandle {
    pub(crate) fn new(index: u16, mail: Mail<Message>, metrics: Arc<Metrics>, thread: JoinHandle<()>) -> ShardHandle {
        ShardHandle(Arc::new(Inner { index, mail, metrics, thread: Mutex::new(Some(thread)) }))
    }

    /// The number it was given.
    pub fn index(&self) -> u16 {
        self.0.index
    }

    /// Its counters.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    fn send(&self, message: Message) -> Result<(), ShardError> {
        self.0.mail.send(message, PATIENCE).map_err(|e| match e {
            Undelivered::Full(_) => ShardError::Busy,
            Undelivered::Gone(_) => ShardError::Gone,
        })
    }

    fn ask<T>(&self, message: impl FnOnce(ReplyTo<T>) -> Message) -> Result<Pending<T>, ShardError> {
        let (reply, answer) = bounded(1);
        self.send(message(reply))?;
        Ok(Pending(answer))
    }

    fn call<T>(&self, message: impl FnOnce(ReplyTo<T>) -> Message) -> Result<T, ShardError> {
        self.ask(message)?.wait_for(ANSWER_PATIENCE)?.ok_or(ShardError::Busy)
    }

    /// Adds a resource; its id must be new on this node ([`ResourceId::next`]).
    ///
    /// # Errors
    /// Name or id are taken, or the shard has too many.
    pub fn add_resource(&self, id: ResourceId, config: ResourceConfig) -> Result<(), ShardError> {
        self.call(|reply| Message::AddResource { id, config: Box::new(config), reply })?
    }

    /// Removes a resource that is down: no links, no disks, no clients. Its exports go with it.
    ///
    /// # Errors
    /// It is in use.
    pub fn remove_resource(&self, id: ResourceId) -> Result<(), ShardError> {
        self.call(|reply| Message::RemoveResource { id, reply })?
    }

    /// Gives a command to the core. [`Command::Attach`] goes through [`ShardHandle::open_backing`] instead.
    /// [`Command::Demote`] and [`Command::Down`] are refused while clients use the resource's exports.
    ///
    /// # Errors
    /// The shard cannot be reached. The core's own answer is what is pending.
    pub fn admin(&self, id: ResourceId, command: Command) -> Result<Pending<AdminResult>, ShardError> {
        self.ask(|reply| Message::Admin { id, command: Box::new(command), reply })
    }

    /// [`ShardHandle::admin`], waiting for the core's answer however long that takes.
    ///
    /// # Errors
    /// The shard is gone, or the core refused.
    pub fn admin_wait(&self, id: ResourceId, command: Command) -> Result<(), ShardError> {
        Ok(self.admin(id, command)?.wait()??)
    }

    /// Opens and locks the backing device of a volume on this thread, then has the core attach it.
    ///
    /// # Errors
    /// The device cannot be used, or the shard cannot be reached. The core's own answer is what is pending.
    pub fn open_backing(
        &self,
        id: ResourceId,
        volume: VolumeNr,
        paths: &BackingPaths,
    ) -> Result<Pending<AdminResult>, ShardError> {
        let disk = Box::new(Disk::open(paths)?);
        self.ask(|reply| Message::Attach { id, volume, disk, reply })
    }

    /// Hands over the sockets of a new link, in answer to [`crate::LinkMaker::connect`]. Sockets that the core did not ask
    /// for, or does not want any more, are closed.
    ///
    /// # Errors
    /// The shard cannot be reached; the sockets are closed.
    pub fn new_link(&self, id: ResourceId, peer: NodeId, sockets: LinkSockets) -> Result<(), ShardError> {
        self.send(Message::NewLink { id, peer, sockets })
    }

    /// The state of one resource.
    ///
    /// # Errors
    /// There is no such resource.
    pub fn status(&self, id: ResourceId) -> Result<ResourceStatus, ShardError> {
        self.call(|reply| Message::Status { id: Some(id), reply })?.pop().ok_or(ShardError::NoResource)
    }

    /// The state of all resources, by name.
    ///
    /// # Errors
    /// The shard cannot be reached.
    pub fn status_all(&self) -> Result<Vec<ResourceStatus>, ShardError> {
        self.call(|reply| Message::Status { id: None, reply })
    }

    /// Events of all resources from now on. Beyond `capacity` unread ones the oldest are lost and counted.
    ///
    /// # Errors
    /// The shard cannot be reached.
    pub fn subscribe(&self, capacity: usize) -> Result<EventStream, ShardError> {
        let (subscriber, stream) = subscription(capacity);
        self.send(Message::Subscribe(subscriber))?;
        Ok(stream)
    }

    /// For tests: makes disk commands of a volume fail, or stops that (`None`).
    ///
    /// # Errors
    /// No such volume, or it has no disk.
    pub fn set_fault(&self, id: ResourceId, volume: VolumeNr, fault: Option<Fault>) -> Result<(), ShardError> {
        self.call(|reply| Message::SetFault { id, volume, fault, reply })?
    }

    /// Exports a volume over NBD under `name`. Clients can use it while the resource is Primary.
    ///
    /// # Errors
    /// No such resource, or the name is taken.
    pub fn add_export(&self, id: ResourceId, volume: VolumeNr, name: impl Into<String>) -> Result<(), ShardError> {
        let name = name.into();
        self.call(|reply| Message::AddExport { id, volume, name, reply })?
    }

    /// What the block device of a volume has to look like; `None` while the volume cannot be used: its resource is not
    /// Primary, or it has no size.
    ///
    /// # Errors
    /// No such resource.
    pub fn device_limits(&self, id: ResourceId, volume: VolumeNr) -> Result<Option<Limits>, ShardError> {
        self.call(|reply| Message::DeviceLimits { id, volume, reply })?
    }

    /// Serves a volume as the block device that this queue is of, until the device is stopped. From the answer on the device
    /// can be started. While it is there, [`Command::Demote`] and [`Command::Down`] are refused.
    ///
    /// # Errors
    /// No such resource, or the shard has too many devices; the queue is closed.
    pub fn serve_device(&self, id: ResourceId, volume: VolumeNr, queue: Queue) -> Result<(), ShardError> {
        self.call(|reply| Message::ServeDevice { id, volume, queue, reply })?
    }

    /// Ends all clients' use of a resource: requests under way are answered, then the connections are closed. The answer
    /// comes when the last one is gone.
    ///
    /// # Errors
    /// The shard cannot be reached.
    pub fn close_exports(&self, id: ResourceId) -> Result<Pending<()>, ShardError> {
        self.ask(|reply| Message::CloseExports { id, reply })
    }

    /// Serves NBD clients of a listening socket, Unix or TCP: all exports of the node's directory.
    ///
    /// # Errors
    /// The shard cannot be reached.
    pub fn listen_nbd(&self, listener: impl Into<std::os::fd::OwnedFd>) -> Result<(), ShardError> {
        let fd = listener.into();
        self.call(|reply| Message::Listen { fd, reply })?
    }

    /// The thread has ended: stopped, or by a broken invariant. Then its resources are gone, and the process should end.
    pub fn has_ended(&self) -> bool {
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Stops the shard as a crash would: links are cut, requests are not answered. For an orderly end give
    /// [`Command::Down`] to its resources first.
    ///
    /// # Errors
    /// [`ShardError::Gone`] if its thread panicked.
    pub fn stop(&self) -> Result<(), ShardError> {
        // Gone already is as good.
        let _ = self.send(Message::Stop);
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        match thread {
            Some(thread) => thread.join().map_err(|_| ShardError::Gone),
            None => Ok(()),
        }
    }
}
