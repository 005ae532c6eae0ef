//! How many completions the next turn waits for.
//!
//! A write of protocol C is done when the local disk and every peer have it, and until then none of these legs gives the
//! shard anything to do. Where such a write is alone, which is what a client with a queue depth of one makes of it, being
//! woken for each leg costs more than the legs. With more than one request about, any completion may be one that somebody
//! waits for, and the turn ends with the first.

use std::mem;

/// Requests of front ends and what became of them since the last turn.
#[derive(Debug, Default)]
pub(super) struct Legs {
    /// Requests in the cores.
    requests: usize,
    /// Requests that came since the last turn.
    begun: usize,
    /// Disk writes begun and acks asked for since the last turn.
    legs: usize,
    /// Requests in a row that came when no other one was in a core.
    alone: u32,
}

impl Legs {
    /// A front end's request goes to its core.
    pub(super) fn request(&mut self) {
        self.alone = if self.requests == 0 { self.alone.saturating_add(1) } else { 0 };
        self.requests += 1;
        self.begun += 1;
    }

    /// A core answered one.
    pub(super) fn answer(&mut self) {
        self.requests -= 1;
    }

    /// Something was begun that ends with a completion of its own.
    pub(super) fn leg(&mut self) {
        self.legs += 1;
    }

    /// At the end of a turn: how many completions there have to be before there is something to do.
    pub(super) fn take(&mut self) -> usize {
        let (begun, legs) = (mem::take(&mut self.begun), mem::take(&mut self.legs));
        // The first of a queue that fills is alone for a moment, too: that the one before was is what tells.
        let lone = self.requests == 1 && begun == 1 && self.alone > 1;
        if lone { legs.max(1) } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_waits_for_all_legs_of_a_lone_write_only() {
        let mut legs = Legs::default();
        assert_eq!(legs.take(), 1);
        legs.request();
        legs.leg();
        legs.leg();
        assert_eq!(legs.take(), 1, "more may be coming");
        legs.answer();
        legs.request();
        legs.leg();
        legs.leg();
        legs.leg();
        assert_eq!(legs.take(), 3);
        assert_eq!(legs.take(), 1, "one of them may be late: from now on each counts");
        legs.request();
        legs.leg();
        legs.leg();
        assert_eq!(legs.take(), 1, "two are under way");
        legs.answer();
        assert_eq!(legs.take(), 1, "the one that is left is not new");
        legs.answer();
        legs.request();
        assert_eq!(legs.take(), 1, "it has no legs yet");
    }
}
