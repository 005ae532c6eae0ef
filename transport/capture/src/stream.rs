//! TCP streams out of segments.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::SocketAddr;
use std::time::Duration;

use crate::file::Frame;
use crate::frame::{Tcp, tcp};
use crate::limits::MAX_EARLY_BYTES;

/// Who sends to whom.
type Flow = (SocketAddr, SocketAddr);

/// Where in a recording something is, and who sent it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The number of the frame that completed it.
    pub frame: u64,
    /// The time of that frame, since the epoch.
    pub time: Duration,
    /// Counts the TCP connections of the recording from 1 on; both directions have the same number.
    pub connection: usize,
    /// The sender.
    pub from: SocketAddr,
    /// The receiver.
    pub to: SocketAddr,
    /// True if the sender opened the connection.
    pub from_opener: bool,
}

/// What a frame adds to one direction of a TCP connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Where.
    pub at: Place,
    /// The connection begins: its first SYN.
    pub opened: bool,
    /// New bytes, in order and without gaps.
    pub bytes: Vec<u8>,
    /// The direction ends.
    pub closed: Option<Close>,
}

/// How one direction of a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Close {
    /// By FIN: everything was sent.
    Finished,
    /// By RST.
    Reset,
}

/// One direction of a TCP connection.
#[derive(Debug)]
struct Half {
    connection: usize,
    from_opener: bool,
    /// The sequence number of the first byte.
    first: u32,
    /// Bytes that were handed out.
    done: u64,
    /// Segments that came early, by place in the stream.
    early: BTreeMap<u64, Vec<u8>>,
    early_bytes: usize,
    /// The place of the FIN.
    end: Option<u64>,
    closed: bool,
}

impl Half {
    fn new(connection: usize, from_opener: bool, first: u32) -> Half {
        Half {
            connection,
            from_opener,
            first,
            done: 0,
            early: BTreeMap::new(),
            early_bytes: 0,
            end: None,
            closed: false,
        }
    }

    /// The place of a sequence number; within 2 GiB before or behind what is expected.
    fn place(&self, sequence: u32) -> Option<u64> {
        let expected = self.first.wrapping_add(self.done as u32);
        self.done.checked_add_signed(sequence.wrapping_sub(expected).cast_signed().into())
    }

    /// Takes the bytes of a segment, returns what is new and in order.
    fn take(&mut self, sequence: u32, data: &[u8]) -> Vec<u8> {
        // Keep-alive probes repeat one byte before the first.
        let Some(at) = self.place(sequence) else {
            return Vec::new();
        };
        let is_new = at + data.len() as u64 > self.done;
        if is_new && self.early_bytes + data.len() <= MAX_EARLY_BYTES {
            let kept = self.early.entry(at).or_default();
            if kept.len() < data.len() {
                self.early_bytes += data.len() - kept.len();
                *kept = data.to_vec();
            }
        }
        let mut new = Vec::new();
        while let Some(segment) = self.early.first_entry() {
            if *segment.key() > self.done {
                break;
            }
            let (start, bytes) = segment.remove_entry();
            self.early_bytes -= bytes.len();
            if let Some(fresh) = bytes.get((self.done - start) as usize..) {
                new.extend_from_slice(fresh);
                self.done += fresh.len() as u64;
            }
        }
        new
    }

    /// Whether the direction ends now: by RST, or because all bytes before its FIN are there.
    fn close(&mut self, tcp: &Tcp<'_>) -> Option<Close> {
        if tcp.fin && self.end.is_none() {
            self.end = self.place(tcp.sequence.wrapping_add(tcp.data.len() as u32));
        }
        let how = match self.end {
            _ if tcp.rst => Close::Reset,
            Some(end) if end <= self.done => Close::Finished,
            _ => return None,
        };
        (!mem::replace(&mut self.closed, true)).then_some(how)
    }
}

/// Puts the streams of a recording together.
#[derive(Debug, Default)]
pub struct Streams {
    halves: BTreeMap<Flow, Half>,
    connections: usize,
    /// Connections whose beginning is not in the recording, by the smaller of their two flows.
    headless: BTreeSet<Flow>,
    /// Frames that lack bytes because the recorder kept only their beginning.
    cut_frames: u64,
    /// Directions that ended with a gap.
    gaps: usize,
}

impl Streams {
    /// Takes the next frame; returns what it adds to a stream, if anything.
    pub fn take(&mut self, frame: &Frame) -> Option<Segment> {
        let tcp = tcp(frame)?;
        self.cut_frames += u64::from(frame.cut > 0);
        let flow = (tcp.from, tcp.to);
        if tcp.syn {
            let opened = self.open(flow, tcp.sequence.wrapping_add(1), tcp.ack);
            return opened.then(|| self.segment(frame, flow, true, Vec::new(), None)).flatten();
        }
        let Some(half) = self.halves.get_mut(&flow) else {
            if !tcp.data.is_empty() {
                self.headless.insert(flow.min((flow.1, flow.0)));
            }
            return None;
        };
        let bytes = if tcp.data.is_empty() { Vec::new() } else { half.take(tcp.sequence, tcp.data) };
        let closed = half.close(&tcp);
        if bytes.is_empty() && closed.is_none() {
            return None;
        }
        self.segment(frame, flow, false, bytes, closed)
    }

    fn segment(
        &self,
        frame: &Frame,
        flow: Flow,
        opened: bool,
        bytes: Vec<u8>,
        closed: Option<Close>,
    ) -> Option<Segment> {
        let Half { connection, from_opener, .. } = *self.halves.get(&flow)?;
        let Frame { number, time, .. } = *frame;
        let at = Place { frame: number, time, connection, from: flow.0, to: flow.1, from_opener };
        Some(Segment { at, opened, bytes, closed })
    }

    /// A connection begins, or the other direction of one. True for a new connection.
    fn open(&mut self, flow: Flow, first: u32, answer: bool) -> bool {
        if self.halves.get(&flow).is_some_and(|half| half.first == first) {
            return false;
        }
        let back = (flow.1, flow.0);
        let connection = if answer {
            let Some(half) = self.halves.get(&back) else {
                return false;
            };
            half.connection
        } else {
            self.connections += 1;
            self.forget(back);
            self.connections
        };
        self.forget(flow);
        self.halves.insert(flow, Half::new(connection, !answer, first));
        !answer
    }

    fn forget(&mut self, flow: Flow) {
        self.gaps += usize::from(self.halves.remove(&flow).is_some_and(|half| !half.early.is_empty()));
    }

    /// TCP connections that began before the recording: nothing of them is seen.
    #[must_use]
    pub fn headless(&self) -> usize {
        self.headless.len()
    }

    /// Frames of which the recorder kept only the beginning.
    #[must_use]
    pub const fn cut_frames(&self) -> u64 {
        self.cut_frames
    }

    /// Directions of connections that end with a gap: frames are missing in the recording.
    #[must_use]
    pub fn gaps(&self) -> usize {
        self.gaps + self.halves.values().filter(|half| !half.early.is_empty()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half() -> Half {
        Half::new(1, true, u32::MAX - 2)
    }

    #[test]
    fn capture_streams_are_put_in_order_over_the_wrap() {
        let mut half = half();
        assert_eq!(half.take(u32::MAX - 2, b"abc"), b"abc");
        assert_eq!(half.take(3, b"gh"), b"");
        assert_eq!(half.take(0, b"def"), b"defgh");
        assert_eq!((half.done, half.early_bytes), (8, 0));
    }

    #[test]
    fn capture_streams_drop_what_comes_again() {
        let mut half = half();
        assert_eq!(half.take(u32::MAX - 3, b"!"), b"", "a keep-alive probe");
        assert_eq!(half.take(u32::MAX - 2, b"abc"), b"abc");
        assert_eq!(half.take(u32::MAX - 2, b"abc"), b"");
        assert_eq!(half.take(u32::MAX, b"cde"), b"de");
        assert_eq!(half.take(9, b"late"), b"");
        assert_eq!(half.take(9, b"later"), b"");
        assert_eq!(half.early_bytes, 5);
    }

    #[test]
    fn capture_streams_hold_a_bounded_number_of_bytes_behind_a_gap() {
        let mut half = half();
        let chunk = vec![0; 1 << 20];
        for i in 1..64 {
            assert_eq!(half.take((i << 20) - 3, &chunk), b"");
        }
        assert_eq!(half.early_bytes, MAX_EARLY_BYTES);
    }
}
