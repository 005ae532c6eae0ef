//! What a node learns from a peer's UUIDs about resyncs that ended without it (reference handshake-and-states.md
//! section 5.6, "bookkeeping").

use zea_wire::flags::UuidFlags;
use zea_wire::ids::{NodeId, NodeMask};

use super::rotate::Uuids;
use super::view::UuidView;
use super::{NODES, is_generation, is_zero, same};

/// What has to be known besides the UUIDs.
#[derive(Debug, Clone, Copy)]
pub struct BookkeepingContext {
    /// This node.
    pub own: NodeId,
    /// Agreed protocol version with the peer.
    pub agreed_version: u32,
    /// The peer device is in state Off: this is part of a handshake.
    pub handshake: bool,
    /// The own current UUID as sent: the source's while being synced.
    pub resolved_current: u64,
    /// This node is being synced (it sends the flag SYNC_TARGET).
    pub being_synced: bool,
    /// The bitmap UUID that was sent to the peer for itself.
    pub sent_bitmap_uuid: u64,
    /// Bits set towards the peer.
    pub dirty_bits: u64,
    /// Connected nodes, the peer included.
    pub connected: NodeMask,
    /// Nodes in a resync or verify with this one (above Established).
    pub busy: NodeMask,
    /// Nodes with a bitmap slot.
    pub slots: NodeMask,
}

/// A change of bits that belongs to a change of UUIDs, to be done in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitmapAction {
    /// That node is in sync: clear its slot.
    Clear(NodeId),
    /// The slot of `to` becomes a copy of the slot of `from`.
    Copy {
        /// Whose bits.
        from: NodeId,
        /// Where to.
        to: NodeId,
    },
}

/// Who has missed the end of a resync between the two (rules 4 and 5 of the comparison will find it).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissedEnd {
    /// Nobody.
    None,
    /// The peer, as source.
    Peer,
    /// This node, as source.
    Own,
}

/// Result: if anything changed, write the bitmap and the meta data, and send the UUIDs to the other peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bookkeeping {
    /// The UUIDs have changed.
    pub changed: bool,
    /// What to do with the bits.
    pub actions: Vec<BitmapAction>,
    /// Whether an end was missed.
    pub missed_end: MissedEnd,
}

impl Uuids {
    /// Brings the bitmap UUIDs up to date with what `peer` says. Not on any data path: may allocate.
    pub fn detect_finished_resyncs(&mut self, cx: &BookkeepingContext, peer: &UuidView) -> Bookkeeping {
        let mut result = Bookkeeping { changed: false, actions: Vec::new(), missed_end: MissedEnd::None };
        let syncing = cx.being_synced || peer.flags.contains(UuidFlags::SYNC_TARGET);
        let equal = same(peer.current, cx.resolved_current) && !syncing;
        if cx.handshake && equal && self.missed_end(cx, peer, &mut result) {
            return result;
        }
        let nodes = (0..NODES as u8).map(NodeId).filter(|node| *node != cx.own);
        for node in nodes.clone().filter(|node| !cx.busy.contains(*node) || *node == peer.node) {
            let towards = if node == peer.node { peer.bitmap_towards(cx.own) } else { peer.bitmap_towards(node) };
            if is_zero(towards) && is_generation(self.bitmap[node.index()]) {
                self.node_is_in_sync_with_peer(cx, peer, node, equal, &mut result);
            }
        }
        self.same_generation_elsewhere(cx, peer, &mut result);
        result
    }

    /// At a handshake with equal current UUIDs. True if that explains everything.
    fn missed_end(&mut self, cx: &BookkeepingContext, peer: &UuidView, result: &mut Bookkeeping) -> bool {
        let (to_peer, from_peer) = (cx.sent_bitmap_uuid, peer.bitmap_towards(cx.own));
        let older = |uuid| is_generation(uuid) && !same(uuid, cx.resolved_current);
        let no_bits = cx.agreed_version >= 124 && cx.dirty_bits == 0 && peer.dirty_bits == 0;
        if older(from_peer) && is_zero(to_peer) {
            if !no_bits {
                result.missed_end = MissedEnd::Peer;
            }
            return true;
        }
        if is_zero(from_peer) && older(to_peer) {
            if no_bits {
                self.retire_bitmap_uuid(peer.node);
                result.changed = true;
            } else {
                result.missed_end = MissedEnd::Own;
            }
            return true;
        }
        false
    }

    /// The peer needs no bits for `node`, this node has some.
    fn node_is_in_sync_with_peer(
        &mut self,
        cx: &BookkeepingContext,
        peer: &UuidView,
        node: NodeId,
        equal: bool,
        result: &mut Bookkeeping,
    ) {
        if equal {
            self.retire_bitmap_uuid(node);
            result.changed = true;
            if node != peer.node && cx.slots.contains(node) {
                result.actions.push(BitmapAction::Clear(node));
            }
            return;
        }
        if peer.flags.contains(UuidFlags::SYNC_TARGET) {
            return;
        }
        // The peer, and so `node`, is at a generation that I have bits for.
        let at_peers = cx.slots.iter().find(|from| {
            let newer = self.bitmap_dagtag[from.index()] > self.bitmap_dagtag[node.index()];
            *from != node && newer && same(self.bitmap[from.index()], peer.current)
        });
        if let Some(from) = at_peers.filter(|_| cx.slots.contains(node)) {
            self.copy_slot(from, node, result);
        }
    }

    /// The peer has the same bitmap UUID for two nodes that are not connected to me: they are at the same generation.
    fn same_generation_elsewhere(&mut self, cx: &BookkeepingContext, peer: &UuidView, result: &mut Bookkeeping) {
        let absent = cx.slots.without(cx.connected);
        let absent = absent.without(cx.own.mask() | peer.node.mask());
        for from in absent.iter() {
            let uuid = peer.bitmap_towards(from);
            if !same(uuid, self.bitmap[from.index()]) {
                continue;
            }
            for to in absent.iter().filter(|to| same(peer.bitmap_towards(*to), uuid)) {
                if !same(self.bitmap[to.index()], uuid) {
                    self.copy_slot(from, to, result);
                }
            }
        }
    }

    fn copy_slot(&mut self, from: NodeId, to: NodeId, result: &mut Bookkeeping) {
        let (f, t) = (from.index(), to.index());
        let old = self.bitmap[t];
        self.bitmap[t] = self.bitmap[f];
        self.bitmap_dagtag[t] = self.bitmap_dagtag[f];
        self.push_history(old);
        result.changed = true;
        result.actions.push(BitmapAction::Copy { from, to });
    }
}
