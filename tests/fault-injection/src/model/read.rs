//! What a read may return.

use super::{Held, Id, Key, Model, WriteIx};
use crate::pool::Tag;

/// A read between submission and completion: for each sector the writes that its node held when it began.
#[derive(Debug)]
pub struct ReadTicket {
    node: usize,
    first: Key,
    began: u64,
    /// All sectors one after the other; where each one ends.
    held: Vec<WriteIx>,
    ends: Vec<usize>,
}

impl Model {
    /// A read begins, of a node that is served by one of the replicas of `servers`.
    pub fn read_begins(&mut self, node: usize, servers: &[usize], first: Key, sectors: u64) -> ReadTicket {
        let began = self.tick();
        let mut ticket =
            ReadTicket { node, first, began, held: Vec::new(), ends: Vec::with_capacity(sectors as usize) };
        for sector in first.1..first.1 + sectors {
            if let Some(id) = self.id((first.0, sector)) {
                let of_all = |w: &WriteIx| servers.iter().all(|s| self.held_writes(*s, id).any(|h| h == *w));
                if let Some(server) = servers.first() {
                    ticket.held.extend(self.held_writes(*server, id).filter(of_all));
                }
            }
            ticket.ends.push(ticket.held.len());
        }
        ticket
    }

    /// A read ended well with these values, those of the node's own disk or of a peer's.
    ///
    /// # Errors
    /// The first sector that holds what it may not.
    pub fn read_ended(&mut self, ticket: &ReadTicket, tags: &[Tag], own_disk: bool) -> Result<(), String> {
        self.tick();
        let mut from = 0;
        for ((offset, end), tag) in (0..).zip(&ticket.ends).zip(tags) {
            let key = (ticket.first.0, ticket.first.1 + offset);
            let held = &ticket.held[std::mem::replace(&mut from, *end)..*end];
            match self.id(key) {
                Some(id) => {
                    self.check_value(ticket.node, id, held.iter().copied(), *tag, "a read")?;
                    if own_disk {
                        self.observe(ticket, id, *tag);
                    }
                }
                None if *tag == 0 => {}
                None => return Err(self.not_allowed(ticket.node, key, &[], *tag, "a read")),
            }
        }
        Ok(())
    }

    /// What a read saw without a write going on must be seen again by its node.
    fn observe(&mut self, ticket: &ReadTicket, id: Id, tag: Tag) {
        let sector = &self.sectors[id];
        if sector.open > 0 || sector.last_end >= ticket.began {
            return;
        }
        let seen = match tag {
            0 => sector.history.iter().rev().find(|w| self.writes[**w as usize].zero).copied(),
            _ => self.write_of(id, tag),
        };
        if let Some(write) = seen
            && !self.held_writes(ticket.node, id).any(|h| h == write)
        {
            self.hold(ticket.node, id, Held { write, since: self.now, stable: false, observed: true });
        }
    }
}
