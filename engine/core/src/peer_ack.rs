//! What is kept of a peer's writes until P_PEER_ACK says who has them, and the bits of what is missing elsewhere
//! (wire-protocol.md 10.5).

use zea_wire::features::Features;
use zea_wire::ids::NodeId;
use zea_wire::packet::{BlockDesc, Packet, PeerAck};
use zea_wire::state::{ConnState, ReplState};

use crate::connection::Kept;
use crate::limits;
use crate::resource::{Ctx, Resource};

impl Resource {
    /// A write that no P_PEER_ACK covers may be missing on every other node, and here or there compared with its origin.
    pub(crate) fn mark_unconfirmed(&mut self, cx: &mut Ctx<'_>, vidx: usize, origin: NodeId, sector: u64, len: u32) {
        for n in 0..self.conns.len() {
            let node = self.conns[n].node();
            if node != origin {
                self.mark_missing(cx, n, vidx, sector, len);
            }
        }
    }

    /// A write is, or may be, missing at a peer.
    pub(crate) fn mark_missing(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, sector: u64, len: u32) {
        let node = self.conns[cidx].node();
        if !broken!(SkipBitmap) {
            self.volumes[vidx].set_out_of_sync(node, sector, len);
        }
        self.volumes[vidx].void_verify(sector, u64::from(len) / 512);
        self.conns[cidx].pds[vidx].marked_at = Some(cx.now);
        self.tell_out_of_sync(cx, cidx, vidx, sector, len);
    }

    /// Before a target gets a block of this disk: what this disk has of the writes of a node that the target does not hear from is
    /// marked, as far as no peer ack has said who has it. Its image would show a later write without an earlier one if it learned of
    /// that one only then, and the resync may end before. Returns whether there was something to tell.
    pub(crate) fn mark_unheard(&mut self, cx: &mut Ctx<'_>, cidx: usize, index: usize) -> bool {
        let p = &self.peer_reqs[index];
        let (vidx, hears) = (p.vidx, (p.dagtag > 0).then_some(p.dagtag_node));
        if !self.conns[cidx].link.as_ref().is_some_and(|l| l.has(Features::RESYNC_DAGTAG)) {
            return false;
        }
        let target = self.conns[cidx].node();
        let mut ranges = Vec::new();
        for c in self.conns.iter_mut().filter(|c| c.node() != target && Some(c.node()) != hears) {
            // One that is not on this disk yet may lie in the very block that was read.
            let here = |k: &&mut Kept| k.vidx == vidx && k.active.is_none() && !k.marked.contains(target);
            for k in c.kept.iter_mut().filter(here) {
                k.marked.insert(target);
                ranges.push((k.sector, k.len));
            }
        }
        for &(sector, len) in &ranges {
            self.mark_missing(cx, cidx, vidx, sector, len);
        }
        !ranges.is_empty()
    }

    /// P_PEER_ACK: all writes up to this dagtag are on the nodes of the mask (wire-protocol.md 10.5).
    pub(crate) fn peer_ack_received(&mut self, cx: &mut Ctx<'_>, cidx: usize, ack: PeerAck) {
        let origin = self.conns[cidx].node();
        if self.conns[cidx].kept.binary_search_by_key(&ack.dagtag, |k| k.dagtag).is_err() {
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "peer request with dagtag not found");
        }
        let mask = if broken!(PeerAckNamesAll) { zea_wire::ids::NodeMask(u64::MAX) } else { ack.mask };
        while let Some(k) = self.conns[cidx].kept.front().copied() {
            if k.dagtag > ack.dagtag {
                break;
            }
            if k.active.is_some() {
                return self.drop_link(cx, cidx, ConnState::ProtocolError, "peer ack for a write that is not finished");
            }
            self.conns[cidx].kept.pop_front();
            for n in 0..self.conns.len() {
                let node = self.conns[n].node();
                if node == origin {
                    continue;
                }
                if mask.contains(node) && mask.contains(self.config.node_id) {
                    if k.overwritten {
                        continue;
                    }
                    self.volumes[k.vidx].set_in_sync(node, k.sector, k.len);
                } else if !mask.contains(node) && !k.marked.contains(node) {
                    self.mark_missing(cx, n, k.vidx, k.sector, k.len);
                    self.recheck_at.get_or_insert(cx.now.plus_ms(limits::RECHECK_MS));
                }
            }
            if k.al {
                self.al_put(k.vidx, k.sector, k.len);
            }
        }
    }

    /// Resync data replaces writes whose peer acks are still to come. Its source may not have had them.
    pub(crate) fn kept_is_overwritten(&mut self, vidx: usize, sector: u64, len: u32) {
        let end = sector + u64::from(len) / 512;
        for k in self.conns.iter_mut().flat_map(|c| &mut c.kept).filter(|k| k.vidx == vidx) {
            k.overwritten |= k.sector < end && sector < k.sector + u64::from(k.len) / 512;
        }
    }

    /// Everything up to this dagtag is stable, and there is no third node that might miss it.
    pub(crate) fn forget_kept(&mut self, cidx: usize, dagtag: u64) {
        while let Some(k) = self.conns[cidx].kept.front().copied().filter(|k| k.dagtag <= dagtag) {
            self.conns[cidx].kept.pop_front();
            if k.al {
                self.al_put(k.vidx, k.sector, k.len);
            }
        }
    }

    /// A SyncTarget must fetch what it does not have.
    fn tell_out_of_sync(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, sector: u64, len: u32) {
        let pd = &self.conns[cidx].pds[vidx];
        if self.conns[cidx].is_up() && (pd.is_sync_source() || pd.repl == ReplState::WFBitMapS) {
            self.send_out_of_sync(cx, cidx, vidx, sector, len);
        }
    }

    /// P_OUT_OF_SYNC, or what takes its place.
    pub(crate) fn send_out_of_sync(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, sector: u64, len: u32) {
        if self.conns[cidx].tells_out_of_sync() {
            let desc = BlockDesc { sector, blksize: len };
            self.send_volume(cx, cidx, vidx, Packet::OutOfSync(desc));
        } else {
            self.conns[cidx].pds[vidx].untold = true;
        }
    }

    /// The connection to the origin of these writes is gone: nobody will say who else has them.
    pub(crate) fn kept_lost_origin(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        let node = self.conns[cidx].node();
        let kept = std::mem::take(&mut self.conns[cidx].kept);
        for k in kept {
            if k.active.is_some() {
                continue;
            }
            self.mark_unconfirmed(cx, k.vidx, node, k.sector, k.len);
            if k.al {
                self.al_put(k.vidx, k.sector, k.len);
            }
        }
    }
}
