//! A blocking server with RAM disks on a Unix socket: the smallest driver of the protocol there can be.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use zea_nbd::{
    ERROR_LEN_MAX, Errno, ExportInfo, Exports, Handshake, Negotiated, Op, OpenError, Parsed, Progress, REPLY_LEN_MAX,
    ReplyStyle, Request, RequestParser, pieces,
};

/// The engine takes at most this much at once.
const MAX_PIECE: u32 = 1 << 20;
/// Small and odd, so that requests and payloads straddle its end.
const STAGING_LEN: usize = 1000;

/// What the clients did.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) connections: AtomicU64,
    pub(crate) read: AtomicU64,
    pub(crate) read_in_parts: AtomicU64,
    pub(crate) write: AtomicU64,
    pub(crate) fua: AtomicU64,
    pub(crate) flush: AtomicU64,
    pub(crate) trim: AtomicU64,
    pub(crate) write_zeroes: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) structured: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

struct Disk {
    info: ExportInfo,
    data: Mutex<Vec<u8>>,
}

#[derive(Default)]
struct Shared {
    disks: BTreeMap<String, Disk>,
    secondary: Vec<String>,
    counts: Counts,
    stop: AtomicBool,
}

impl Exports for Shared {
    fn list(&self) -> Vec<String> {
        self.disks.keys().chain(&self.secondary).cloned().collect()
    }

    fn open(&self, name: &str) -> Result<ExportInfo, OpenError> {
        if let Some(disk) = self.disks.get(name) {
            return Ok(disk.info.clone());
        }
        if self.secondary.iter().any(|s| s == name) {
            let reason = format!("resource {name} is Secondary here: promote it first");
            return Err(OpenError::Refused(reason));
        }
        Err(OpenError::Unknown(format!("no resource {name:?} here")))
    }
}

/// Exports for a [`RamServer`].
#[derive(Default)]
pub(crate) struct Builder(Shared);

impl Builder {
    /// A writable disk that offers everything.
    pub(crate) fn disk(mut self, name: &str, size_bytes: u64, change: impl FnOnce(&mut ExportInfo)) -> Builder {
        let mut info = ExportInfo {
            name: name.into(),
            size_bytes,
            read_only: false,
            block_min: 512,
            block_preferred: 4096,
            block_max: zea_nbd::MAX_PAYLOAD,
            can_multi_conn: true,
            flush: true,
            fua: true,
            trim: true,
            write_zeroes: true,
            fast_zero: true,
            cache: false,
            rotational: false,
        };
        change(&mut info);
        let data = Mutex::new(vec![0; usize::try_from(size_bytes).expect("a small disk")]);
        self.0.disks.insert(name.into(), Disk { info, data });
        self
    }

    /// An export that exists and cannot be used.
    pub(crate) fn secondary(mut self, name: &str) -> Builder {
        self.0.secondary.push(name.into());
        self
    }

    pub(crate) fn start(self) -> RamServer {
        let dir = tempfile::tempdir().expect("a directory for the socket");
        let socket = dir.path().join("nbd");
        let listener = UnixListener::bind(&socket).expect("bind");
        let shared = Arc::new(self.0);
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || accept_all(&listener, &for_thread));
        RamServer { shared, socket, thread: Some(thread), dir }
    }
}

/// The running server; stops when dropped.
pub(crate) struct RamServer {
    shared: Arc<Shared>,
    socket: PathBuf,
    thread: Option<JoinHandle<()>>,
    dir: tempfile::TempDir,
}

impl RamServer {
    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).expect("connect")
    }

    /// A directory for the test's own files.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    pub(crate) fn data(&self, export: &str) -> MutexGuard<'_, Vec<u8>> {
        self.shared.disks[export].data.lock().expect("no panic")
    }
}

impl Drop for RamServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the accept loop, which then sees the flag.
        drop(UnixStream::connect(&self.socket));
        let ended = self.thread.take().expect("runs until here").join();
        if !std::thread::panicking() {
            ended.expect("the server did not panic");
        }
    }
}

fn accept_all(listener: &UnixListener, shared: &Arc<Shared>) {
    let mut connections = Vec::new();
    for stream in listener.incoming() {
        if shared.stop.load(Ordering::SeqCst) {
            break;
        }
        let stream = stream.expect("accept");
        count(&shared.counts.connections);
        let shared = Arc::clone(shared);
        connections.push(std::thread::spawn(move || match serve(stream, &shared) {
            // Clients may leave without a word.
            Err(error) if is_disconnect(&error) => {}
            other => other.expect("a clean connection"),
        }));
    }
    for connection in connections {
        connection.join().expect("no panic while serving");
    }
}

fn is_disconnect(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | BrokenPipe | ConnectionReset)
}

/// Received bytes that are not consumed yet.
struct Staging {
    bytes: [u8; STAGING_LEN],
    filled: Range<usize>,
}

impl Staging {
    fn unread(&self) -> &[u8] {
        &self.bytes[self.filled.clone()]
    }

    fn consume(&mut self, len: usize) {
        self.filled.start += len;
    }

    fn receive(&mut self, stream: &mut UnixStream) -> io::Result<()> {
        self.bytes.copy_within(self.filled.clone(), 0);
        self.filled = 0..self.filled.len();
        let len = stream.read(&mut self.bytes[self.filled.end..])?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.filled.end += len;
        Ok(())
    }
}

fn serve(mut stream: UnixStream, shared: &Shared) -> io::Result<()> {
    stream.write_all(&Handshake::GREETING)?;
    let mut staging = Staging { bytes: [0; STAGING_LEN], filled: 0..0 };
    let Some(negotiated) = negotiate(&mut stream, &mut staging, shared)? else {
        return Ok(());
    };
    if negotiated.style == ReplyStyle::Structured {
        count(&shared.counts.structured);
    }
    let disk = &shared.disks[&negotiated.export.name];
    let style = negotiated.style;
    transmit(&mut Connection { stream, staging, parser: negotiated.parser(), style, disk, shared })
}

fn negotiate(stream: &mut UnixStream, staging: &mut Staging, shared: &Shared) -> io::Result<Option<Negotiated>> {
    let mut handshake = Handshake::new();
    let mut out = Vec::new();
    loop {
        let fed = handshake.feed(shared, staging.unread(), &mut out);
        stream.write_all(&out)?;
        out.clear();
        let Ok((consumed, progress)) = fed else {
            return Ok(None);
        };
        staging.consume(consumed);
        match progress {
            Progress::NeedInput => staging.receive(stream)?,
            Progress::Answered => {}
            Progress::Ready(negotiated) => return Ok(Some(negotiated)),
            Progress::Aborted => return Ok(None),
        }
    }
}

struct Connection<'a> {
    stream: UnixStream,
    staging: Staging,
    parser: RequestParser,
    style: ReplyStyle,
    disk: &'a Disk,
    shared: &'a Shared,
}

fn transmit(connection: &mut Connection<'_>) -> io::Result<()> {
    loop {
        let unread = connection.staging.unread();
        let (consumed, parsed) = connection.parser.parse(unread).map_err(io::Error::other)?;
        connection.staging.consume(consumed);
        match parsed {
            Parsed::NeedMore => connection.staging.receive(&mut connection.stream)?,
            Parsed::Disconnect => return Ok(()),
            Parsed::Refused(refused) => {
                count(&connection.shared.counts.refused);
                connection.fail(refused.cookie, refused.errno, refused.reason)?;
            }
            Parsed::Request(request) => connection.carry_out(&request)?,
        }
    }
}

impl Connection<'_> {
    fn carry_out(&mut self, request: &Request) -> io::Result<()> {
        let counts = &self.shared.counts;
        if request.flags.fua {
            count(&counts.fua);
        }
        match request.op {
            Op::Read => {
                count(&counts.read);
                return self.read(request);
            }
            Op::Write => {
                count(&counts.write);
                let payload = self.payload()?;
                let mut data = self.disk.data.lock().expect("no panic");
                for piece in pieces(request.offset, request.len, MAX_PIECE) {
                    data[range(piece.offset, piece.len)].copy_from_slice(&payload[range(piece.at.into(), piece.len)]);
                }
            }
            Op::Flush => count(&counts.flush),
            Op::Trim | Op::WriteZeroes => {
                count(if request.op == Op::Trim { &counts.trim } else { &counts.write_zeroes });
                let mut data = self.disk.data.lock().expect("no panic");
                for piece in pieces(request.offset, request.len, MAX_PIECE) {
                    data[range(piece.offset, piece.len)].fill(0);
                }
            }
            Op::Cache => {}
        }
        let mut header = [0; REPLY_LEN_MAX];
        let len = self.style.encode_done(&mut header, request.cookie);
        self.stream.write_all(&header[..len])
    }

    /// Takes a write's payload: what is staged is copied, the rest comes straight from the socket.
    fn payload(&mut self) -> io::Result<Vec<u8>> {
        let mut payload = vec![0; self.parser.payload_left() as usize];
        let staged = payload.len().min(self.staging.unread().len());
        payload[..staged].copy_from_slice(&self.staging.unread()[..staged]);
        self.staging.consume(staged);
        self.parser.payload_taken(staged as u32);
        self.stream.read_exact(&mut payload[staged..])?;
        self.parser.payload_taken((payload.len() - staged) as u32);
        assert_eq!(self.parser.payload_left(), 0);
        Ok(payload)
    }

    fn read(&mut self, request: &Request) -> io::Result<()> {
        let Request { cookie, offset, len, .. } = *request;
        let mut header = [0; REPLY_LEN_MAX];
        let data = self.disk.data.lock().expect("no panic")[range(offset, len)].to_vec();
        let in_parts = self.style == ReplyStyle::Structured && !request.flags.df && len > MAX_PIECE;
        if !in_parts {
            let header_len = self.style.encode_read(&mut header, cookie, offset, len);
            self.stream.write_all(&header[..header_len])?;
            return self.stream.write_all(&data);
        }
        count(&self.shared.counts.read_in_parts);
        // Parts may come in any order: the last goes first, as if the disk had been fastest there.
        let mut parts: Vec<_> = pieces(offset, len, MAX_PIECE).collect();
        parts.reverse();
        for part in parts {
            let header_len = self.style.encode_read_part(&mut header, cookie, part.offset, part.len);
            self.stream.write_all(&header[..header_len])?;
            self.stream.write_all(&data[range(part.at.into(), part.len)])?;
        }
        let header_len = self.style.encode_done(&mut header, cookie);
        self.stream.write_all(&header[..header_len])
    }

    fn fail(&mut self, cookie: u64, errno: Errno, reason: &str) -> io::Result<()> {
        let mut reply = [0; ERROR_LEN_MAX];
        let len = self.style.encode_error(&mut reply, cookie, errno, reason);
        self.stream.write_all(&reply[..len])
    }
}

fn range(offset: u64, len: u32) -> Range<usize> {
    let start = usize::try_from(offset).expect("inside a RAM disk");
    start..start + len as usize
}
