//! The establishment of one connection, as a state machine without sockets, clock or randomness.
//!
//! It collects two sockets, one per stream, from its own outgoing attempts and from what the peer initiates,
//! and confirms the pair once both have lived together for the check time (`wire-protocol.md` sections 2.1
//! and 2.2). The rules that keep two nodes, each doing this, from undoing each other's work for ever:
//!
//! * After an outgoing socket was made the peer gets a whole `connect-int` to bring the other one.
//! * After an incoming one the missing one is initiated at once.
//! * An incoming socket for a role that is filled replaces the old one ("crossed"): the peer has given the old
//!   one up, or is about to. Both nodes may do that to each other at once and lose all; so after a crossing
//!   each waits, with probability 1/2, a `connect-int` for the other before it initiates anything again.
//! * Waits vary by a seventh, and grow from [`BACKOFF_START_MS`] to `connect-int` while nothing succeeds.

use zea_wire::Stream;

/// First wait after a failed attempt, milliseconds.
pub(crate) const BACKOFF_START_MS: u64 = 50;

/// Names a socket to its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SocketId(pub(crate) u64);

/// The times and the address order of a path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Longest wait between attempts, milliseconds.
    pub(crate) connect_int_ms: u64,
    /// Longest outgoing attempt, milliseconds.
    pub(crate) connect_timeout_ms: u64,
    /// How long a pair must live to be confirmed, milliseconds.
    pub(crate) check_ms: u64,
    /// What the first outgoing socket becomes.
    pub(crate) first_outgoing: Stream,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// A pair is wanted.
    Start,
    /// No pair is wanted any more.
    Stop,
    /// The outgoing attempt succeeded.
    Connected(SocketId),
    /// The outgoing attempt failed.
    ConnectFailed,
    /// The peer initiated a socket and said what it is.
    Accepted(SocketId, Stream),
    /// A socket that was Connected or Accepted, and not closed since, is no longer alive.
    Lost(SocketId),
    /// Time has passed. Whatever socket is dead by now must have been reported Lost before.
    Timer,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Begin an outgoing attempt; answered by Connected or ConnectFailed.
    Connect,
    /// Give the outgoing attempt up; there will be no answer.
    CancelConnect,
    /// Send the initial packet on a socket.
    SendInitial(SocketId, Stream),
    /// Close a socket.
    Close(SocketId),
    /// Hand the pair over; the machine is stopped and has forgotten both sockets.
    Confirmed(Pair),
}

/// A confirmed pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pair {
    /// The data stream.
    pub(crate) data: SocketId,
    /// The control stream.
    pub(crate) control: SocketId,
    /// This node accepted the control socket, which makes it the tie-break winner.
    pub(crate) resolve_conflicts: bool,
}

/// A socket that fills a role.
#[derive(Debug, Clone, Copy)]
struct Held {
    id: SocketId,
    accepted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing is wanted, nothing is held.
    Stopped,
    /// An outgoing attempt is under way; at least one role is free.
    Connecting { until_ms: u64 },
    /// Waiting for the peer to connect; at least one role is free.
    Waiting { until_ms: u64 },
    /// Both roles are filled; confirmed if it stays so.
    Checking { until_ms: u64 },
}

/// The machine of one (resource, peer).
#[derive(Debug)]
pub(crate) struct Establish {
    rules: Rules,
    phase: Phase,
    data: Option<Held>,
    control: Option<Held>,
    backoff_ms: u64,
    /// No outgoing attempt before this time: the 1/2 chance after a crossing.
    hold_until_ms: u64,
}

impl Establish {
    /// A stopped machine.
    pub(crate) fn new(rules: Rules) -> Establish {
        Establish {
            rules,
            phase: Phase::Stopped,
            data: None,
            control: None,
            backoff_ms: BACKOFF_START_MS,
            hold_until_ms: 0,
        }
    }

    /// Whether a pair is wanted.
    pub(crate) fn is_wanted(&self) -> bool {
        self.phase != Phase::Stopped
    }

    /// When [`Input::Timer`] is due.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        match self.phase {
            Phase::Stopped => None,
            Phase::Connecting { until_ms } | Phase::Waiting { until_ms } | Phase::Checking { until_ms } => {
                Some(until_ms)
            }
        }
    }

    /// The sockets that fill a role.
    pub(crate) fn held(&self) -> impl Iterator<Item = SocketId> + use<> {
        [self.data, self.control].into_iter().flatten().map(|h| h.id)
    }

    /// Handles one input at a time that never goes back; `random` is a fresh random number.
    pub(crate) fn handle(&mut self, now_ms: u64, random: u32, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Start if !self.is_wanted() => {
                self.backoff_ms = BACKOFF_START_MS;
                self.hold_until_ms = 0;
                self.connect(now_ms, out);
            }
            Input::Start => {}
            Input::Stop => self.stop(out),
            Input::Connected(id) => self.connected(now_ms, random, id, out),
            Input::ConnectFailed => {
                if let Phase::Connecting { .. } = self.phase {
                    self.back_off(now_ms, random);
                }
            }
            Input::Accepted(id, stream) => self.accepted(now_ms, random, id, stream, out),
            Input::Lost(id) => self.lost(now_ms, random, id),
            Input::Timer => self.timer(now_ms, random, out),
        }
    }

    fn slot(&mut self, stream: Stream) -> &mut Option<Held> {
        match stream {
            Stream::Data => &mut self.data,
            Stream::Control => &mut self.control,
        }
    }

    fn connect(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        self.phase = Phase::Connecting { until_ms: now_ms.saturating_add(self.rules.connect_timeout_ms) };
        out.push(Output::Connect);
    }

    fn stop(&mut self, out: &mut Vec<Output>) {
        if let Phase::Connecting { .. } = self.phase {
            out.push(Output::CancelConnect);
        }
        self.phase = Phase::Stopped;
        out.extend(self.held().map(Output::Close));
        self.data = None;
        self.control = None;
    }

    fn connected(&mut self, now_ms: u64, random: u32, id: SocketId, out: &mut Vec<Output>) {
        let Phase::Connecting { .. } = self.phase else {
            out.push(Output::Close(id));
            return;
        };
        let stream = match (self.data, self.control) {
            (None, None) => self.rules.first_outgoing,
            (None, Some(_)) => Stream::Data,
            (Some(_), _) => Stream::Control,
        };
        let filled = self.slot(stream).replace(Held { id, accepted: false });
        assert!(filled.is_none(), "connecting with both roles filled");
        out.push(Output::SendInitial(id, stream));
        if !self.check_if_complete(now_ms) {
            // The peer is there and will bring the other one; connecting as well would only cross it.
            let wait = jitter(self.rules.connect_int_ms, random);
            self.phase = Phase::Waiting { until_ms: now_ms.saturating_add(wait) };
        }
    }

    fn accepted(&mut self, now_ms: u64, random: u32, id: SocketId, stream: Stream, out: &mut Vec<Output>) {
        if !self.is_wanted() {
            out.push(Output::Close(id));
            return;
        }
        // The peer is there and wants a pair: what went wrong before says nothing any more.
        self.backoff_ms = BACKOFF_START_MS;
        self.hold_until_ms = 0;
        if let Some(old) = self.slot(stream).replace(Held { id, accepted: true }) {
            out.push(Output::Close(old.id));
            if coin(random) {
                let wait = jitter(self.rules.connect_int_ms, random);
                self.hold_until_ms = now_ms.saturating_add(wait);
            }
        }
        let connecting = matches!(self.phase, Phase::Connecting { .. });
        if self.check_if_complete(now_ms) {
            if connecting {
                out.push(Output::CancelConnect);
            }
        } else if !connecting {
            if self.hold_until_ms > now_ms {
                self.phase = Phase::Waiting { until_ms: self.hold_until_ms };
            } else {
                self.connect(now_ms, out);
            }
        }
    }

    /// Starts the check if both roles are filled.
    fn check_if_complete(&mut self, now_ms: u64) -> bool {
        let complete = self.data.is_some() && self.control.is_some();
        if complete {
            self.phase = Phase::Checking { until_ms: now_ms.saturating_add(self.rules.check_ms) };
        }
        complete
    }

    fn lost(&mut self, now_ms: u64, random: u32, id: SocketId) {
        let slot = [&mut self.data, &mut self.control].into_iter().find(|slot| slot.is_some_and(|held| held.id == id));
        let Some(slot) = slot else { return };
        *slot = None;
        match self.phase {
            Phase::Checking { .. } | Phase::Waiting { .. } => self.back_off(now_ms, random),
            Phase::Connecting { .. } | Phase::Stopped => {}
        }
    }

    /// Waits for the next attempt, longer each time.
    fn back_off(&mut self, now_ms: u64, random: u32) {
        let longest = self.rules.connect_int_ms;
        let wait = jitter(self.backoff_ms.min(longest), random);
        self.backoff_ms = self.backoff_ms.saturating_mul(3).div_ceil(2).min(longest.max(1));
        self.phase = Phase::Waiting { until_ms: now_ms.saturating_add(wait).max(self.hold_until_ms) };
    }

    fn timer(&mut self, now_ms: u64, random: u32, out: &mut Vec<Output>) {
        if self.deadline_ms().is_none_or(|deadline| deadline > now_ms) {
            return;
        }
        match self.phase {
            Phase::Stopped => {}
            Phase::Connecting { .. } => {
                out.push(Output::CancelConnect);
                self.back_off(now_ms, random);
            }
            Phase::Waiting { .. } => self.connect(now_ms, out),
            Phase::Checking { .. } => {
                let (Some(data), Some(control)) = (self.data.take(), self.control.take()) else {
                    unreachable!("checking without both sockets");
                };
                self.phase = Phase::Stopped;
                out.push(Output::Confirmed(Pair {
                    data: data.id,
                    control: control.id,
                    resolve_conflicts: control.accepted,
                }));
            }
        }
    }
}

/// The top bit of a random number; [`jitter`] uses the others.
fn coin(random: u32) -> bool {
    random >> 31 == 1
}

/// A time between 6/7 and 8/7 of `base_ms`, so that two nodes fall out of step.
fn jitter(base_ms: u64, random: u32) -> u64 {
    let seventh = base_ms / 7;
    let below = u64::from(random & 0x7fff_ffff) % (2 * seventh + 1);
    base_ms - seventh + below
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
