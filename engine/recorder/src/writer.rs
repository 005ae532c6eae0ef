//! The thread that writes the recordings of a node: a ring of files for each resource.
//!
//! `DIR/RESOURCE/NUMBER.zeaflt`, one file a segment, the oldest first. Shards hand chunks over through a bounded queue and never
//! wait for a disk. What was written survives the end of the process, not the loss of power: nothing is synced.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{JoinHandle, Thread};
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use thiserror::Error;
use zea_core::Resource;
use zea_core::io::{Input, Outbox, Rng, Time};

use crate::limits::{CHUNKS_IN_FLIGHT, MAX_FILES, MAX_RING_BYTES, MIN_RING_BYTES, SPARE_BUFFERS};
use crate::record::{Chunk, Recorder};

/// Ending of a segment's file name.
pub(crate) const SUFFIX: &str = ".zeaflt";

/// Where a node's recordings are, and how large each may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingOptions {
    /// Folder of the rings; made if it is not there, for its owner only: recordings hold shared secrets.
    pub dir: PathBuf,
    /// Bytes of one resource's ring.
    pub ring_bytes: u64,
}

/// Why recordings cannot be written.
#[derive(Debug, Error)]
pub enum WriterError {
    /// Too small or too large.
    #[error("a ring has {MIN_RING_BYTES} to {MAX_RING_BYTES} bytes, not {0}")]
    Size(u64),
    /// No folder or no thread.
    #[error("cannot keep recordings in {dir}: {error}")]
    System {
        /// The folder.
        dir: PathBuf,
        /// Why.
        error: io::Error,
    },
}

enum Message {
    Chunk { resource: Arc<str>, run: u64, chunk: Chunk },
    Close(Arc<str>),
    Stop,
}

/// The way to the writer. Cheap to clone, for any thread.
#[derive(Debug, Clone)]
pub struct Outlet {
    chunks: Sender<Message>,
    /// Sleeps where nothing is on its way, and is woken: a receive that waits would look again and again first.
    thread: Thread,
    spare: Receiver<Vec<u8>>,
    ring_bytes: u64,
}

/// The running thread.
#[derive(Debug)]
pub struct Writer {
    outlet: Outlet,
    thread: JoinHandle<()>,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Message::Chunk { .. } => "Chunk",
            Message::Close(_) => "Close",
            Message::Stop => "Stop",
        })
    }
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// See [`WriterError`].
    pub fn start(options: &RingOptions) -> Result<Writer, WriterError> {
        let RingOptions { dir, ring_bytes } = options.clone();
        if !(MIN_RING_BYTES..=MAX_RING_BYTES).contains(&ring_bytes) {
            return Err(WriterError::Size(ring_bytes));
        }
        let failed = |error| WriterError::System { dir: dir.clone(), error };
        make_dir(&dir).map_err(failed)?;
        let (chunks, arriving) = bounded(CHUNKS_IN_FLIGHT);
        let (back, spare) = bounded(SPARE_BUFFERS);
        let rings = dir.clone();
        let work = move || write_all(&arriving, &back, &rings, ring_bytes);
        let thread = std::thread::Builder::new().name("recorder".into()).spawn(work).map_err(failed)?;
        Ok(Writer { outlet: Outlet { chunks, thread: thread.thread().clone(), spare, ring_bytes }, thread })
    }

    /// The way to it.
    pub fn outlet(&self) -> Outlet {
        self.outlet.clone()
    }

    /// Writes what is on its way and ends.
    pub fn stop(self) {
        // It waits for room where the queue is full, and the thread empties it.
        if self.outlet.chunks.send(Message::Stop).is_ok() {
            self.outlet.thread.unpark();
            if self.thread.join().is_err() {
                tracing::warn!("the recorder's thread had panicked");
            }
        }
    }
}

impl Outlet {
    /// Begins the recording of a resource that was just added. Its name is the name of a folder.
    pub fn record(&self, resource: &str, now: Time) -> Recording {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let run = u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX);
        let recorder = Recorder::new(resource, self.ring_bytes, now, run);
        Recording { recorder, outlet: self.clone(), resource: resource.into(), run }
    }
}

/// A recorder with its way to the disk. Dropping it ends the recording.
#[derive(Debug)]
pub struct Recording {
    recorder: Recorder,
    outlet: Outlet,
    resource: Arc<str>,
    run: u64,
}

impl Recording {
    /// Gives an input to the core and writes down what is needed to do it again.
    #[inline]
    pub fn handle(
        &mut self,
        core: &mut Resource,
        now: Time,
        rng: &mut dyn Rng,
        input: Input<'_>,
        actions: &mut Outbox,
    ) {
        self.recorder.handle(core, now, rng, input, actions);
    }

    /// At the end of a turn: hands over what is ready.
    #[inline]
    pub fn end_turn(&mut self, now: Time) {
        if self.recorder.has_ready(now) {
            self.hand_over(now);
        }
    }

    fn hand_over(&mut self, now: Time) {
        let Recording { recorder, outlet, resource, run } = self;
        let mut gave = false;
        let lost = recorder.hand_over(now, |chunk| {
            let message = Message::Chunk { resource: Arc::clone(resource), run: *run, chunk };
            gave = true;
            match outlet.chunks.try_send(message) {
                Err(TrySendError::Full(Message::Chunk { chunk, .. })) => Err(chunk),
                // A writer that is gone takes everything.
                _ => Ok(()),
            }
        });
        if gave {
            outlet.thread.unpark();
            outlet.spare.try_iter().for_each(|buffer| recorder.keep(buffer));
        }
        if lost {
            tracing::warn!("{resource}: the disk of the recordings does not keep up; there is a gap in the recording");
        }
    }

    /// When [`Recording::end_turn`] is wanted next, if nothing happens until then.
    pub fn due(&self, now: Time) -> Option<Time> {
        self.recorder.due(now)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // Also while a panic unwinds: then the last input is the one that is wanted most. Without an end, as it was none.
        if !std::thread::panicking() {
            self.recorder.end();
        }
        self.end_turn(Time(u64::MAX));
        let _ = self.outlet.chunks.try_send(Message::Close(Arc::clone(&self.resource)));
        self.outlet.thread.unpark();
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn write_all(arriving: &Receiver<Message>, back: &Sender<Vec<u8>>, dir: &Path, ring_bytes: u64) {
    let mut rings: BTreeMap<Arc<str>, Ring> = BTreeMap::new();
    loop {
        match arriving.try_recv() {
            Err(TryRecvError::Empty) => std::thread::park(),
            Err(TryRecvError::Disconnected) | Ok(Message::Stop) => return,
            Ok(Message::Close(resource)) => drop(rings.remove(&resource)),
            Ok(Message::Chunk { resource, run, chunk }) => {
                let ring =
                    rings.entry(Arc::clone(&resource)).or_insert_with(|| Ring::new(dir.join(&*resource), ring_bytes));
                if let Err(error) = ring.add((run, chunk.segment), &chunk.bytes) {
                    tracing::warn!("{resource}: cannot write its recording: {error}");
                }
                let mut buffer = chunk.bytes;
                buffer.clear();
                // Where nobody needs it, it is freed.
                let _ = back.try_send(buffer);
            }
        }
    }
}

/// The files of one resource.
struct Ring {
    dir: PathBuf,
    max_bytes: u64,
    /// Numbers and sizes, oldest first; `None`: not looked for yet.
    files: Option<VecDeque<(u64, u64)>>,
    /// The segment that is written, and its file; `None`: it failed.
    current: Option<((u64, u64), Option<File>)>,
}

impl Ring {
    fn new(dir: PathBuf, max_bytes: u64) -> Ring {
        Ring { dir, max_bytes, files: None, current: None }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:012}{SUFFIX}"))
    }

    /// Adds bytes to a segment, the newest or a new one. After a failure the rest of the segment is left out in silence.
    fn add(&mut self, segment: (u64, u64), bytes: &[u8]) -> io::Result<()> {
        if self.current.as_ref().is_none_or(|(current, _)| *current != segment) {
            self.current = Some((segment, None));
            let file = self.begin_file()?;
            self.current = Some((segment, Some(file)));
        }
        self.make_room(bytes.len() as u64)?;
        let Some((_, file)) = &mut self.current else { return Ok(()) };
        let Some(open) = file else { return Ok(()) };
        if let Err(error) = open.write_all(bytes) {
            *file = None;
            return Err(error);
        }
        if let Some((_, size)) = self.files.as_mut().and_then(VecDeque::back_mut) {
            *size += bytes.len() as u64;
        }
        Ok(())
    }

    fn begin_file(&mut self) -> io::Result<File> {
        if self.files.is_none() {
            make_dir(&self.dir)?;
            self.files = Some(list(&self.dir)?);
        }
        let number = self.files.as_ref().and_then(VecDeque::back).map_or(0, |(last, _)| last + 1);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.path(number))?;
        self.files.as_mut().expect("listed above").push_back((number, 0));
        Ok(file)
    }

    /// Removes the oldest files until so many bytes fit, but never the one that is written.
    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        loop {
            let Some(files) = self.files.as_mut() else { return Ok(()) };
            let total: u64 = files.iter().map(|(_, size)| size).sum();
            if files.len() < 2 || (total + bytes <= self.max_bytes && files.len() <= MAX_FILES) {
                return Ok(());
            }
            let (oldest, _) = files.pop_front().expect("more than one");
            match fs::remove_file(self.path(oldest)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
}

/// The segments in a folder, oldest first: numbers and sizes.
pub(crate) fn list(dir: &Path) -> io::Result<VecDeque<(u64, u64)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_suffix(SUFFIX)).and_then(|n| n.parse().ok());
        if let Some(number) = number {
            files.push((number, entry.metadata()?.len()));
        }
    }
    files.sort_unstable();
    Ok(files.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(dir: &Path) -> Vec<(u64, u64)> {
        list(dir).unwrap().into()
    }

    #[test]
    fn recorder_rings_keep_the_newest_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r0");
        let mut ring = Ring::new(path.clone(), 1000);
        for segment in 0..10 {
            for _ in 0..3 {
                ring.add((1, segment), &[7; 100]).unwrap();
            }
        }
        assert_eq!(sizes(&path), [(7, 300), (8, 300), (9, 300)]);
        // Another run goes on behind them, and a single segment may take more than there is.
        let mut ring = Ring::new(path.clone(), 1000);
        ring.add((2, 0), &[7; 100]).unwrap();
        assert_eq!(sizes(&path), [(7, 300), (8, 300), (9, 300), (10, 100)]);
        ring.add((2, 0), &[7; 2000]).unwrap();
        assert_eq!(sizes(&path), [(10, 2100)]);
        let mut ring = Ring::new(path.clone(), u64::MAX);
        for segment in 0..2 * MAX_FILES as u64 {
            ring.add((3, segment), &[7]).unwrap();
        }
        assert_eq!(sizes(&path).len(), MAX_FILES);
    }

    #[test]
    fn recorder_rings_leave_out_the_rest_of_a_segment_that_failed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r0");
        std::fs::write(&path, "in the way").unwrap();
        let mut ring = Ring::new(path.clone(), 1000);
        assert!(ring.add((1, 0), &[7; 100]).is_err());
        std::fs::remove_file(&path).unwrap();
        ring.add((1, 0), &[7; 100]).unwrap();
        assert!(!path.exists(), "its beginning is missing");
        ring.add((1, 1), &[7; 50]).unwrap();
        assert_eq!(sizes(&path), [(0, 50)]);
    }

    #[test]
    fn recorder_writes_for_its_owner_only_and_what_is_under_way_at_the_end() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let options = RingOptions { dir: dir.path().join("flight"), ring_bytes: MIN_RING_BYTES };
        let writer = Writer::start(&options).unwrap();
        let mut core = Resource::new(zea_core::config::ResourceConfig::new("r0", zea_wire::ids::NodeId(0)));
        let mut recording = writer.outlet().record("r0", Time(0));
        recording.handle(&mut core, Time(1), &mut NoRng, Input::Timer, &mut Vec::new());
        assert_eq!(recording.due(Time(1)), Some(Time(1).plus_ms(crate::limits::CHUNK_MS)));
        drop(recording);
        writer.stop();
        let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(options.dir.join("r0")), 0o700);
        assert_eq!(mode(options.dir.join("r0/000000000000.zeaflt")), 0o600);
        let wrong = RingOptions { ring_bytes: MIN_RING_BYTES - 1, ..options };
        assert!(matches!(Writer::start(&wrong), Err(WriterError::Size(_))));
    }

    struct NoRng;

    impl Rng for NoRng {
        fn next_u64(&mut self) -> u64 {
            panic!("nothing is drawn")
        }
    }
}
