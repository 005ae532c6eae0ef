//! The recorder of one resource: makes segments of what its core is told. It does no IO; what it made is taken away in chunks.

use std::collections::VecDeque;

use zea_core::Resource;
use zea_core::io::{Action, Input, Outbox, Rng, Time};

use crate::entry;
use crate::frame;
use crate::limits::{
    CHUNK_BYTES, CHUNK_MS, ENTRIES_PER_SNAPSHOT, GAP_RETRY_MS, MAX_WAITING_BYTES, SEGMENTS, SNAPSHOTS, SPARE_BUFFERS,
    TOO_LARGE_RETRY_MS,
};
use crate::links::Links;
use crate::segment::{self, Cause, Header};

/// Bytes of a segment, in order: its beginning, or a frame of entries.
#[derive(Debug)]
pub struct Chunk {
    /// The segment, by its number in the run.
    pub segment: u64,
    /// Its next bytes.
    pub bytes: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub struct Recorder {
    resource: String,
    /// When the run began: nanoseconds since 1970, and the core's time then.
    run: (u64, Time),
    ring_bytes: u64,
    links: Links,
    /// Inputs of the run.
    inputs: u64,
    /// The next input begins a segment, and not before that instant.
    begins: Option<(Cause, Time)>,
    /// Number of the next segment.
    next_segment: u64,
    /// Time of the last entry.
    last: Time,
    /// Bytes of this segment's entries that are ready, and how many end it.
    entry_bytes: u64,
    full_at: u64,
    /// The frame that grows, when it got its first entry, and whether it goes with the end of the turn.
    out: Vec<u8>,
    out_since: Time,
    urgent: bool,
    ready: VecDeque<Chunk>,
    spare: Vec<Vec<u8>>,
}

impl Recorder {
    /// A recorder for a resource that was just added, at `now` of the core's time, which is `wall_ns` nanoseconds after 1970.
    pub fn new(resource: &str, ring_bytes: u64, now: Time, wall_ns: u64) -> Recorder {
        Recorder {
            resource: resource.to_owned(),
            run: (wall_ns, now),
            ring_bytes,
            links: Links::default(),
            inputs: 0,
            begins: Some((Cause::Start, now)),
            next_segment: 0,
            last: now,
            entry_bytes: 0,
            full_at: 0,
            out: Vec::new(),
            out_since: now,
            urgent: false,
            ready: VecDeque::new(),
            spare: Vec::new(),
        }
    }

    /// Gives an input to the core and writes down what is needed to do it again: the input before the core has it, random
    /// numbers as they are drawn. Inlined, as an input is large: it is moved once then.
    #[inline]
    pub fn handle(
        &mut self,
        core: &mut Resource,
        now: Time,
        rng: &mut dyn Rng,
        input: Input<'_>,
        actions: &mut Outbox,
    ) {
        let before = actions.len();
        self.input(now, &input, core);
        core.handle(now, &mut Drawn { rng, recorder: self }, input, actions);
        for action in &actions[before..] {
            self.links.follow(action);
            // Whoever hears of a change finds it in the recording.
            self.urgent |= matches!(action, Action::Event(_));
        }
    }

    fn input(&mut self, now: Time, input: &Input<'_>, core: &Resource) {
        if self.begins.is_none() && self.entry_bytes + self.out.len() as u64 >= self.full_at {
            self.begins = Some((Cause::Full, now));
        }
        if let Some((cause, from)) = self.begins
            && now >= from
        {
            self.begin(now, cause, core);
        }
        self.inputs += 1;
        if self.begins.is_some() {
            return;
        }
        let since = now.0.saturating_sub(self.last.0);
        self.last = now;
        self.open();
        let before = self.out.len();
        if entry::put_input(&mut self.out, &self.links, since, input).is_err() {
            self.out.truncate(before);
            self.begins = Some((Cause::Gap, now));
        }
    }

    fn random(&mut self, word: u64) {
        if self.begins.is_none() {
            self.open();
            entry::put_random(&mut self.out, word);
        }
    }

    /// The resource is taken away.
    pub fn end(&mut self) {
        if self.begins.is_none() {
            self.open();
            entry::put_end(&mut self.out);
        }
        self.close();
    }

    /// There is a frame for the next entry.
    fn open(&mut self) {
        if self.out.is_empty() {
            frame::begin(&mut self.out);
            self.out_since = self.last;
        }
    }

    /// The frame is ready to be taken.
    fn close(&mut self) {
        if !self.out.is_empty() {
            frame::end(&mut self.out, 0);
            self.entry_bytes += self.out.len() as u64;
            let bytes = std::mem::replace(&mut self.out, self.spare.pop().unwrap_or_default());
            self.ready.push_back(Chunk { segment: self.next_segment - 1, bytes });
        }
        self.urgent = false;
    }

    /// Begins a segment; if the state is too large, later.
    fn begin(&mut self, now: Time, cause: Cause, core: &Resource) {
        self.close();
        let mut snapshot = self.spare.pop().unwrap_or_default();
        let limit = usize::try_from(self.ring_bytes / SNAPSHOTS).unwrap_or(usize::MAX);
        if core.snapshot(limit, &mut snapshot).is_err() {
            return self.begins = Some((Cause::Gap, now.plus_ms(TOO_LARGE_RETRY_MS)));
        }
        let (run, began) = self.run;
        let header = Header {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            resource: self.resource.clone(),
            run,
            segment: self.next_segment,
            cause,
            inputs: self.inputs,
            at: now,
            wall_ns: run.saturating_add(now.0.saturating_sub(began.0)),
            links: self.links.known().to_vec(),
        };
        let mut bytes = self.spare.pop().unwrap_or_default();
        segment::put(&mut bytes, &header, &snapshot);
        self.ready.push_back(Chunk { segment: self.next_segment, bytes });
        self.entry_bytes = 0;
        self.full_at = (self.ring_bytes / SEGMENTS).max(snapshot.len() as u64 * ENTRIES_PER_SNAPSHOT);
        self.begins = None;
        self.last = now;
        self.next_segment += 1;
        self.keep(snapshot);
    }

    /// Something is to be handed over: it is large, old or urgent enough, or there was no room for it.
    #[inline]
    pub fn has_ready(&self, now: Time) -> bool {
        !self.ready.is_empty() || self.is_frame_ready(now)
    }

    fn is_frame_ready(&self, now: Time) -> bool {
        let old = self.out_since.plus_ms(CHUNK_MS) <= now;
        !self.out.is_empty() && (self.urgent || old || self.out.len() >= CHUNK_BYTES)
    }

    /// At the end of a turn: gives `take` the chunks that are ready. It gives a chunk back that it has no room for;
    /// when too many of those wait they are dropped, and recording begins again later. True if that happened.
    pub fn hand_over(&mut self, now: Time, mut take: impl FnMut(Chunk) -> Result<(), Chunk>) -> bool {
        if self.is_frame_ready(now) {
            self.close();
        }
        while let Some(chunk) = self.ready.pop_front() {
            if let Err(chunk) = take(chunk) {
                self.ready.push_front(chunk);
                break;
            }
        }
        let waiting = |chunk: &Chunk| chunk.bytes.len();
        // The first may be a snapshot, of whatever size.
        let lost = self.ready.iter().skip(1).map(waiting).sum::<usize>() > MAX_WAITING_BYTES;
        if lost {
            self.ready.clear();
            self.out.clear();
            self.begins = Some((Cause::Gap, now.plus_ms(GAP_RETRY_MS)));
        }
        lost
    }

    /// When [`Recorder::hand_over`] is wanted next, if nothing happens until then.
    pub fn due(&self, now: Time) -> Option<Time> {
        match (self.ready.is_empty(), self.out.is_empty()) {
            (true, true) => None,
            (true, false) => Some(self.out_since.plus_ms(CHUNK_MS)),
            (false, _) => Some(now.plus_ms(CHUNK_MS)),
        }
    }

    /// Memory for the next chunks.
    pub fn keep(&mut self, mut buffer: Vec<u8>) {
        // One that held a large snapshot is not kept for good.
        if self.spare.len() < SPARE_BUFFERS && buffer.capacity() <= MAX_WAITING_BYTES {
            buffer.clear();
            self.spare.push(buffer);
        }
    }
}

/// Random numbers that are written down as they are drawn.
struct Drawn<'a> {
    rng: &'a mut dyn Rng,
    recorder: &'a mut Recorder,
}

impl Rng for Drawn<'_> {
    fn next_u64(&mut self) -> u64 {
        let word = self.rng.next_u64();
        self.recorder.random(word);
        word
    }
}
