//! The daemon's side of the control socket: one thread that accepts, one per client.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::{debug, info, warn};

use super::line::{Line, read_line};
use crate::api::{Event, Failure, MAX_REQUEST_BYTES, Reply, Request};
use crate::node::Node;

/// Most clients at a time.
pub const MAX_CLIENTS: usize = 32;
/// A client that asks nothing for this long is let go.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// A client that reads nothing for this long is let go.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stop waits for commands that run, and how often it looks.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// See [`STOP_TIMEOUT`].
const STOP_TICK: Duration = Duration::from_millis(5);
/// How often an idle event stream looks whether its reader is still there.
const STREAM_TICK: Duration = Duration::from_millis(200);
/// How long the accepting thread rests after an error (out of file descriptors, for one).
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// A running control server. Dropping it leaves it running; [`Server::stop`] ends it.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    listener: Arc<UnixListener>,
    shared: Arc<Shared>,
    acceptor: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    node: Arc<Node>,
    stopping: AtomicBool,
    next_id: AtomicU64,
    /// Streams of the clients, to end them at stop.
    clients: Mutex<BTreeMap<u64, UnixStream>>,
}

impl Shared {
    fn clients(&self) -> MutexGuard<'_, BTreeMap<u64, UnixStream>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

impl Server {
    /// Listens on a Unix socket that only this user can open.
    ///
    /// # Errors
    /// The socket cannot be made, or another daemon listens on it.
    pub fn start(path: &Path, node: Arc<Node>) -> Result<Server> {
        let listener = Arc::new(bind(path, Duration::ZERO)?);
        let clients = Mutex::default();
        let shared = Arc::new(Shared { node, stopping: AtomicBool::new(false), next_id: AtomicU64::new(0), clients });
        let for_thread = (Arc::clone(&listener), Arc::clone(&shared));
        let acceptor = thread::Builder::new()
            .name("control".into())
            .spawn(move || accept(&for_thread.0, &for_thread.1))
            .context("cannot start the control thread")?;
        Ok(Server { path: path.to_owned(), listener, shared, acceptor })
    }

    /// Stops accepting, ends all clients and removes the socket. Waits at most 5 s for commands that run.
    pub fn stop(self) {
        self.shared.stopping.store(true, Ordering::Release);
        // Wakes the thread that accepts; a connect would not if somebody has removed the socket.
        if let Err(error) = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both) {
            warn!("cannot end the control thread: {error}");
            return;
        }
        if self.acceptor.join().is_err() {
            warn!("the control thread had panicked");
        }
        for client in self.shared.clients().values() {
            client.shutdown(Shutdown::Both).ok();
        }
        std::fs::remove_file(&self.path).ok();
        let end = Instant::now() + STOP_TIMEOUT;
        while Arc::strong_count(&self.shared) > 1 && Instant::now() < end {
            thread::sleep(STOP_TICK);
        }
    }
}

/// Makes the socket beside its place and moves it there, so that it is never open to others, not even for a moment.
/// `patience`: how long a listener that still answers may need to go.
pub(crate) fn bind(path: &Path, patience: Duration) -> Result<UnixListener> {
    if path.symlink_metadata().is_ok_and(|meta| !meta.file_type().is_socket()) {
        bail!("{} is not a socket: choose another path", path.display());
    }
    let end = Instant::now() + patience;
    while UnixStream::connect(path).is_ok() {
        if Instant::now() >= end {
            bail!("another daemon listens on {}: stop it, or choose another socket", path.display());
        }
        thread::sleep(ACCEPT_REST);
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    std::fs::remove_file(&temporary).ok();
    let listener = UnixListener::bind(&temporary).with_context(|| {
        format!("cannot listen on {} (the path of a Unix socket has at most 107 bytes)", path.display())
    })?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("cannot make the socket {}", path.display()))?;
    Ok(listener)
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stopping() {
            return;
        }
        if let Err(error) = stream.and_then(|stream| admit(stream, shared)) {
            warn!("cannot take a client: {error}");
            thread::sleep(ACCEPT_REST);
        }
    }
}

/// Starts a thread for a client, or tells it that there are too many.
fn admit(mut stream: UnixStream, shared: &Arc<Shared>) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
    {
        let mut clients = shared.clients();
        if clients.len() >= MAX_CLIENTS {
            let failure =
                Failure::failed(format!("{MAX_CLIENTS} clients are connected, which is the most: try again later"));
            // The client may be gone already; that is its own affair.
            write_reply(&mut stream, &Reply::Error(failure)).ok();
            return Ok(());
        }
        clients.insert(id, stream.try_clone()?);
    }
    let seat = Seat { id, shared: Arc::clone(shared) };
    thread::Builder::new().name(format!("client-{id}")).spawn(move || serve(stream, &seat)).map(|_| ())
}

/// A client's place among [`MAX_CLIENTS`]; free again when dropped, also by a panic.
struct Seat {
    id: u64,
    shared: Arc<Shared>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.clients().remove(&self.id);
    }
}

fn serve(stream: UnixStream, seat: &Seat) {
    let mut reader = BufReader::new(stream);
    loop {
        let result = match read_line(&mut reader, MAX_REQUEST_BYTES) {
            Ok(Line::Text(text)) => answer(&text, reader.get_mut(), seat),
            Ok(Line::TooLong) => {
                let failure = Failure::usage(format!("a request has at most {MAX_REQUEST_BYTES} bytes"));
                write_reply(reader.get_mut(), &Reply::Error(failure)).ok();
                return;
            }
            Ok(Line::End) => return,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            debug!("client {} is let go: {error}", seat.id);
            return;
        }
    }
}

/// Answers one request line. An error means that the client cannot be answered any more.
fn answer(text: &[u8], stream: &mut UnixStream, seat: &Seat) -> io::Result<()> {
    let request = match serde_json::from_slice::<Request>(text) {
        Ok(request) => request,
        Err(error) => {
            let failure = Failure::usage(format!("this is no request: {error}"));
            return write_reply(stream, &Reply::Error(failure));
        }
    };
    debug!("client {}: {request:?}", seat.id);
    if let Request::Events { name } = request {
        return events(name.as_deref(), stream, seat);
    }
    let reply = match seat.shared.node.handle(request) {
        Ok(value) => Reply::Ok(value),
        Err(failure) => {
            info!("refused or failed: {failure}");
            Reply::Error(failure)
        }
    };
    write_reply(stream, &reply)
}

/// Sends events until the client closes its side.
fn events(name: Option<&str>, stream: &mut UnixStream, seat: &Seat) -> io::Result<()> {
    let (dump, subscription) = match seat.shared.node.subscribe(name) {
        Ok(found) => found,
        Err(failure) => return write_reply(stream, &Reply::Error(failure)),
    };
    dump.into_iter().try_for_each(|event| write_event(stream, event))?;
    while !seat.shared.stopping() {
        match subscription.next(STREAM_TICK) {
            Some(event) => write_event(stream, event)?,
            None if reader_is_gone(stream)? => break,
            None => {}
        }
    }
    Err(io::Error::other("end of the event stream"))
}

/// True if the client closed, or said something, which ends a stream as well.
fn reader_is_gone(stream: &mut UnixStream) -> io::Result<bool> {
    let mut fds = [PollFd::new(stream, PollFlags::IN | PollFlags::RDHUP)];
    if poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? == 0 {
        return Ok(false);
    }
    stream.read(&mut [0]).map(|_| true)
}

fn write_event(stream: &mut UnixStream, event: Event) -> io::Result<()> {
    write_reply(stream, &Reply::Event(event))
}

fn write_reply(stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    let mut text = serde_json::to_vec(reply)?;
    text.push(b'\n');
    stream.write_all(&text)
}

#[cfg(test)]
mod tests;
