//! Links of the shard's resources: their coming, their packets, their end.

use zea_core::io::{Input, LinkId, LinkLost};
use zea_wire::ids::NodeId;
use zea_wire::packet::Stream;

use super::Shard;
use crate::ResourceId;
use crate::link::{Link, LinkSockets, Step};
use crate::metrics::Metrics;

/// Bits of a link number that count the links of one shard.
const LINK_COUNT_BITS: u32 = 48;

/// A link that was lost.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) resource: usize,
    pub(super) peer: NodeId,
    pub(super) link: LinkId,
    pub(super) why: LinkLost,
}

impl Shard {
    /// Slot of a link, if it is the peer's present one and up.
    pub(super) fn link_of(&self, slot: usize, peer: NodeId, link: LinkId) -> Option<usize> {
        let at = self.resources[slot].peers.get(&peer)?.link?;
        let found = &self.links[at];
        (found.id == link && found.is_up()).then_some(at)
    }

    /// The connector made a link.
    pub(super) fn new_link(&mut self, id: ResourceId, peer: NodeId, sockets: LinkSockets) {
        let Some(slot) = self.resource_slot(id) else {
            return;
        };
        let entry = self.resources[slot].peer(peer);
        if !entry.wanted {
            tracing::debug!(%peer, "a link that the core did not ask for is closed");
            return;
        }
        entry.next = Some(sockets);
        self.next_link(slot, peer);
    }

    /// Announces the link that waits, if the old one is gone.
    fn next_link(&mut self, slot: usize, peer: NodeId) {
        let entry = self.resources[slot].peer(peer);
        if entry.link.is_some() || !entry.wanted {
            return;
        }
        let Some(sockets) = entry.next.take() else {
            return;
        };
        let resolve_conflicts = sockets.resolve_conflicts;
        for fd in [&sockets.data, &sockets.control] {
            // The ring waits for them; a socket that says "would block" would make it spin.
            if let Err(e) = rustix::io::ioctl_fionbio(fd, false) {
                tracing::warn!(%peer, "cannot make a link's socket blocking: {e}");
            }
        }
        let timeouts = entry.timeouts;
        self.links_made += 1;
        let id = LinkId(u64::from(self.config.index) << LINK_COUNT_BITS | self.links_made);
        let vacant = self.links.vacant_entry();
        let at = vacant.key();
        vacant.insert(Link::new(id, at as u32, slot, peer, sockets, timeouts));
        let entry = self.resources[slot].peer(peer);
        entry.link = Some(at);
        entry.wanted = false;
        self.feed(slot, Input::LinkUp { peer, link: id, resolve_conflicts });
    }

    pub(super) fn link_received(&mut self, at: usize, stream: Stream, result: i32) {
        match self.links[at].received(&mut self.pool, stream, result) {
            Ok(()) => self.pump_link(at, stream),
            Err(why) => self.lose(at, why),
        }
    }

    pub(super) fn link_sent(&mut self, at: usize, stream: Stream, result: i32) {
        if let Err(why) = self.links[at].sent(&mut self.pool, stream, result, self.now) {
            self.lose(at, why);
            // One that was ending anyway has nothing to wait for.
            self.links[at].kill();
        }
    }

    /// Feeds the packets that arrived on a stream, one at a time: each may change how the next one is read.
    pub(super) fn pump_link(&mut self, at: usize, stream: Stream) {
        loop {
            let link = &mut self.links[at];
            if !link.is_up() {
                return;
            }
            match link.next_packet(&mut self.pool, stream) {
                Step::NeedMore | Step::NeedBuffer => return,
                Step::Illegal(why) => return self.lose(at, LinkLost::Protocol(why)),
                Step::Packet { volume, packet, payload } => {
                    let (slot, peer, id) = (link.resource, link.peer, link.id);
                    Metrics::add(&self.metrics.packets_received, 1);
                    self.feed(slot, Input::Packet { peer, link: id, volume, packet, payload });
                }
            }
        }
    }

    /// Tells the core of a loss.
    pub(super) fn link_lost(&mut self, lost: Lost) {
        let Lost { resource, peer, link, why } = lost;
        self.feed(resource, Input::LinkDown { peer, link, lost: why });
    }

    /// The core wants no link to this peer.
    pub(super) fn disconnect(&mut self, slot: usize, peer: NodeId) {
        let resource = &mut self.resources[slot];
        self.config.links.disconnect(resource.id, peer);
        let entry = resource.peer(peer);
        entry.wanted = false;
        entry.next = None;
        if let Some(at) = entry.link {
            let link = &mut self.links[at];
            link.drain(&mut self.pool, self.now);
            // It closed the link itself: a loss that it does not know of is not news any more.
            self.lost.retain(|lost| lost.link != link.id);
        }
    }

    pub(super) fn tick_links(&mut self) {
        let now = self.now;
        while let Some((at, _)) = self.links.iter().find(|(_, link)| link.send_timed_out(now)) {
            self.lose(at, LinkLost::SendTimeout);
        }
    }

    /// Moves the links on that are coming to their end.
    pub(super) fn end_links(&mut self) {
        for (_, link) in self.links.iter_mut().filter(|(_, link)| !link.is_up()) {
            let successor = self.resources[link.resource].peers.get(&link.peer).is_some_and(|p| p.next.is_some());
            link.advance(self.now, successor);
        }
    }

    /// Buries the links that are over, and announces those that waited for it.
    pub(super) fn bury_links(&mut self) -> bool {
        self.end_links();
        let Some((at, _)) = self.links.iter().find(|(_, link)| link.is_over()) else {
            return false;
        };
        // Its loss has to be known before its successor.
        assert!(self.lost.iter().all(|lost| lost.link != self.links[at].id), "a link is buried before its core knows");
        let link = self.links.remove(at);
        let (slot, peer) = (link.resource, link.peer);
        link.bury(&mut self.pool);
        self.resources[slot].peer(peer).link = None;
        self.next_link(slot, peer);
        true
    }
}
