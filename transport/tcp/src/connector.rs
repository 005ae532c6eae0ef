//! The handle on the connector's thread: commands in, events out.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, eventfd};
use thiserror::Error;

use crate::address::{PathConfig, PathError};
use crate::limits;
use crate::reactor::{Command, Reactor};

/// Names a connection: the resource, and the node id of the peer.
pub type PeerKey = (u32, u8);

/// How the connector runs.
#[derive(Debug, Clone)]
pub struct ConnectorConfig {
    /// Name of the thread.
    pub thread_name: String,
    /// Seed of the waits' variation and of the coin after crossed sockets. The two nodes of a connection must
    /// not have the same one; the default is random.
    pub seed: u64,
}

impl Default for ConnectorConfig {
    fn default() -> Self {
        ConnectorConfig { thread_name: "zea-tcp".to_owned(), seed: RandomState::new().hash_one(0) }
    }
}

/// What the connector tells. The callback runs on the connector's thread and must be quick; it may call the
/// connector's methods.
#[derive(Debug)]
pub enum Event {
    /// A pair of sockets stands, both nonblocking, with only the initial packet behind them. It may be on its way
    /// while [`Connector::disconnect`] is called: who gets it unasked drops it, which closes both.
    Established {
        /// The connection.
        key: PeerKey,
        /// The data stream.
        data: OwnedFd,
        /// The control stream.
        control: OwnedFd,
        /// This node accepted the control socket, the peer initiated it: this node wins ties. The peer has it
        /// the other way round (`wire-protocol.md` section 2.2).
        resolve_conflicts: bool,
    },
    /// An own address cannot be listened on. It is tried again for ever; reported when the cause changes
    /// and every [`limits::LISTEN_REPORT_MS`].
    ListenFailed {
        /// The address.
        addr: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// An attempt came to nothing; the next follows. At most one per [`limits::ATTEMPT_REPORT_MS`] and peer.
    Attempt {
        /// The connection.
        key: PeerKey,
        /// Why.
        error: AttemptError,
    },
}

/// Why an attempt to connect came to nothing.
#[derive(Debug, Error)]
pub enum AttemptError {
    /// The peer cannot be reached.
    #[error("cannot connect to {peer}: {error}")]
    Connect {
        /// The peer's address.
        peer: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// No answer in time.
    #[error("no answer from {peer}")]
    Timeout {
        /// The peer's address.
        peer: SocketAddr,
    },
    /// A socket died before the pair stood; a peer that does not want to connect closes it at once.
    #[error("the peer closed a socket before the pair was complete")]
    Lost,
    /// A socket of the peer did not begin with an initial packet.
    #[error("the peer sent no initial packet: {0}")]
    Initial(InitialError),
}

/// What came instead of the initial packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InitialError {
    /// Other bytes.
    #[error("unknown bytes")]
    Unknown,
    /// The end of the stream.
    #[error("closed")]
    Closed,
    /// Nothing within four ping timeouts.
    #[error("timed out")]
    Timeout,
}

/// Why the connector refused a call.
#[derive(Debug, Error)]
pub enum ConnectorError {
    /// The thread or its wake-up cannot be had.
    #[error("cannot start the connector: {0}")]
    Spawn(#[source] io::Error),
    /// The addresses do not make a path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Another connection has this own address and this peer's host, so that incoming sockets of the two could
    /// not be told apart.
    #[error("resource {} already connects {own} with the host of {peer} (as node {})", other.0, other.1)]
    Ambiguous {
        /// The own address.
        own: SocketAddr,
        /// The peer's address.
        peer: SocketAddr,
        /// The connection that has it.
        other: PeerKey,
    },
    /// [`limits::PEERS`] are set.
    #[error("more than {} peers", limits::PEERS)]
    TooManyPeers,
    /// The key was never set, or is removed.
    #[error("resource {} has no peer {}", .0.0, .0.1)]
    UnknownPeer(PeerKey),
    /// [`limits::COMMANDS`] are waiting; nothing was done.
    #[error("the connector has too many commands waiting")]
    Busy,
    /// The thread is gone: the callback panicked.
    #[error("the connector has stopped")]
    Stopped,
}

/// The running connector. Dropping it closes all sockets that were not handed over and joins the thread.
pub struct Connector {
    commands: SyncSender<Command>,
    stop: Arc<AtomicBool>,
    wake: Arc<OwnedFd>,
    /// What is set, to answer at once.
    paths: Mutex<BTreeMap<PeerKey, PathConfig>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("paths", &*self.paths()).finish_non_exhaustive()
    }
}

impl Connector {
    /// Starts the thread. Errors: [`ConnectorError::Spawn`].
    pub fn spawn(config: ConnectorConfig, on_event: Box<dyn Fn(Event) + Send>) -> Result<Connector, ConnectorError> {
        let wake =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| ConnectorError::Spawn(e.into()))?;
        let wake = Arc::new(wake);
        let stop = Arc::new(AtomicBool::new(false));
        let (commands, inbox) = sync_channel(limits::COMMANDS);
        let mut reactor = Reactor::new(config.seed, inbox, Arc::clone(&stop), Arc::clone(&wake), on_event)
            .map_err(ConnectorError::Spawn)?;
        let thread = thread::Builder::new()
            .name(config.thread_name)
            .spawn(move || reactor.run())
            .map_err(ConnectorError::Spawn)?;
        Ok(Connector { commands, stop, wake, paths: Mutex::new(BTreeMap::new()), thread: Some(thread) })
    }

    /// Sets or changes how to reach a peer, and begins to listen. A changed path loses its half-made pair, and
    /// goes on connecting if it was. Errors: `Path`, `Ambiguous`, `TooManyPeers`, `Busy`, `Stopped`.
    pub fn set_peer(&self, key: PeerKey, path: PathConfig) -> Result<(), ConnectorError> {
        path.check()?;
        let mut paths = self.paths();
        if !paths.contains_key(&key) && paths.len() >= limits::PEERS {
            return Err(ConnectorError::TooManyPeers);
        }
        let same_ends = |p: &PathConfig| p.own == path.own && p.peer.ip() == path.peer.ip();
        if let Some((other, _)) = paths.iter().find(|(k, p)| **k != key && same_ends(p)) {
            return Err(ConnectorError::Ambiguous { own: path.own, peer: path.peer, other: *other });
        }
        self.send(Command::SetPeer(key, path))?;
        paths.insert(key, path);
        Ok(())
    }

    /// Forgets a peer, closes its half-made pair, and stops listening on an address that no other peer uses.
    /// Errors: `UnknownPeer`, `Busy`, `Stopped`.
    pub fn remove_peer(&self, key: PeerKey) -> Result<(), ConnectorError> {
        let mut paths = self.paths();
        self.send_known(&paths, key, Command::RemovePeer(key))?;
        paths.remove(&key);
        Ok(())
    }

    /// Tries for ever until the pair stands, or until [`Connector::disconnect`]. Does nothing if it is
    /// trying already. Errors: `UnknownPeer`, `Busy`, `Stopped`.
    pub fn connect(&self, key: PeerKey) -> Result<(), ConnectorError> {
        self.send_known(&self.paths(), key, Command::Connect(key))
    }

    /// Stops trying and closes a half-made pair. A pair that was handed over is not touched. Errors:
    /// `UnknownPeer`, `Busy`, `Stopped`.
    pub fn disconnect(&self, key: PeerKey) -> Result<(), ConnectorError> {
        self.send_known(&self.paths(), key, Command::Disconnect(key))
    }

    fn paths(&self) -> MutexGuard<'_, BTreeMap<PeerKey, PathConfig>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send_known(
        &self,
        paths: &BTreeMap<PeerKey, PathConfig>,
        key: PeerKey,
        command: Command,
    ) -> Result<(), ConnectorError> {
        if !paths.contains_key(&key) {
            return Err(ConnectorError::UnknownPeer(key));
        }
        self.send(command)
    }

    fn send(&self, command: Command) -> Result<(), ConnectorError> {
        self.commands.try_send(command).map_err(|e| match e {
            TrySendError::Full(_) => ConnectorError::Busy,
            TrySendError::Disconnected(_) => ConnectorError::Stopped,
        })?;
        self.wake();
        Ok(())
    }

    fn wake(&self) {
        // It fails only if the counter is full, and then the thread is being woken already.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // The callback may own the last handle; a thread cannot wait for itself.
            if thread.thread().id() != thread::current().id() {
                // An error is a panic of the callback, reported when it happened.
                let _ = thread.join();
            }
        }
    }
}
