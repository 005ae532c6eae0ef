//! What is known about third nodes: P_PEERS_IN_SYNC, and marks that are left over (wire-protocol.md 10.5).

use zea_meta::flags::DeviceFlags;
use zea_wire::flags::UuidFlags;
use zea_wire::ids::{NodeId, NodeMask};
use zea_wire::packet::{Packet, PeerBlockDesc};
use zea_wire::state::{ConnState, DiskState, ReplState, Role};

use crate::activity_log;
use crate::connection::Connection;
use crate::limits;
use crate::meta_queue::Step;
use crate::request::WriteReq;
use crate::resource::{Ctx, Resource};

/// Sectors of one step of P_PEERS_IN_SYNC: an activity log extent.
const IN_SYNC_STEP: u64 = 8192;
/// Sectors of one step of a sweep over the whole volume, between Zea nodes.
const IN_SYNC_SWEEP: u64 = 1 << 18;

impl Resource {
    /// When a whole step is in sync with a peer, tell everybody who is in sync there (wire-protocol.md 10.5).
    pub(crate) fn maybe_peers_in_sync(&mut self, cx: &mut Ctx<'_>, vidx: usize, sector: u64) {
        let start = sector - sector % IN_SYNC_STEP;
        // Otherwise the Primary will say.
        if self.role == Role::Primary || !self.keeps_any(vidx, start, 1) {
            self.tell_range_in_sync(cx, vidx, start, IN_SYNC_STEP);
        }
    }

    /// Connected nodes that have nothing to get from this node, or from which it has nothing to get, in a range.
    fn nodes_in_sync(&self, vidx: usize, sector: u64, bytes: u32) -> NodeMask {
        let v = &self.volumes[vidx];
        let mut mask = NodeMask::EMPTY;
        for c in self.conns.iter().filter(|c| c.is_up()) {
            let pd = &c.pds[vidx];
            // What another node is resyncing at this moment is not known here; nor what the node has marked towards this one.
            let settled = pd.disk == DiskState::UpToDate && pd.says.uuids.as_ref().is_some_and(|u| u.dirty_bits == 0);
            let known = settled || pd.repl == ReplState::SyncSource;
            if known && v.slot(c.node()).is_some() && !v.any_out_of_sync(c.node(), sector, bytes) {
                mask.insert(c.node());
            }
        }
        mask
    }

    fn tell_in_sync(&mut self, cx: &mut Ctx<'_>, vidx: usize, desc: PeerBlockDesc) {
        if desc.mask.len() < 2 {
            // With one node alone both sides know it already.
            return;
        }
        for cidx in self.up_conns() {
            let c = &self.conns[cidx];
            if desc.mask.contains(c.node()) && (c.keeps_bits() || u64::from(desc.size) <= IN_SYNC_STEP * 512) {
                self.send_volume(cx, cidx, vidx, Packet::PeersInSync(desc));
            }
        }
    }

    /// A Primary tells its Secondaries of the whole volume: whatever they had marked towards each other before is settled. If it
    /// serves their data they tell each other.
    pub(crate) fn tell_all_in_sync(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        let knows = self.role == Role::Primary || self.served_primary(vidx).is_some();
        if !knows || self.volumes[vidx].disk != DiskState::UpToDate {
            return;
        }
        for sector in (0..self.volumes[vidx].size_sectors).step_by(IN_SYNC_SWEEP as usize) {
            if self.role == Role::Primary || !self.keeps_any(vidx, sector, IN_SYNC_SWEEP) {
                self.tell_range_in_sync(cx, vidx, sector, IN_SYNC_SWEEP);
                continue;
            }
            for step in (sector..sector + IN_SYNC_SWEEP).step_by(IN_SYNC_STEP as usize) {
                if step < self.volumes[vidx].size_sectors && !self.keeps_any(vidx, step, IN_SYNC_STEP) {
                    self.tell_range_in_sync(cx, vidx, step, IN_SYNC_STEP);
                }
            }
        }
    }

    fn tell_range_in_sync(&mut self, cx: &mut Ctx<'_>, vidx: usize, sector: u64, sectors: u64) {
        let size = u32::try_from(sectors.min(self.volumes[vidx].size_sectors - sector) * 512).expect("128 MiB");
        let mask = self.nodes_in_sync(vidx, sector, size);
        let mask = mask.without(self.nodes_passed_by(vidx, sector, sectors, mask));
        self.tell_in_sync(cx, vidx, PeerBlockDesc { sector, mask, size });
    }

    /// Nodes of a mask to which a write of this node in the range is still under way, that another one of them got by a resync: no
    /// peer ack will tell that one who lacks it.
    fn nodes_passed_by(&self, vidx: usize, sector: u64, sectors: u64, mask: NodeMask) -> NodeMask {
        let here = |w: &&WriteReq| {
            w.vidx == vidx && w.req.sector < sector + sectors && sector < w.req.sector + u64::from(w.req.len) / 512
        };
        let writes = self.transfer_log.iter().map(|&index| &self.writes[index]).filter(here);
        let resynced = writes.filter(|w| !mask.without(w.sent).is_empty());
        resynced.fold(NodeMask::EMPTY, |late, w| late | w.unstable)
    }

    /// Of writes in this range no peer ack has come: who else has them, this node does not know.
    fn keeps_any(&self, vidx: usize, sector: u64, sectors: u64) -> bool {
        let attached = self.volumes[vidx].attached.as_ref();
        attached.is_some_and(|a| activity_log::extents_of(sector, sectors).any(|extent| a.al.refs(extent) > 0))
    }

    /// P_PEERS_IN_SYNC: the sender and the nodes of the mask are equal there.
    pub(crate) fn peers_in_sync(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, desc: PeerBlockDesc) {
        let sender = self.conns[cidx].node();
        let own = self.config.node_id;
        let v = &self.volumes[vidx];
        let inside =
            desc.sector.checked_add(u64::from(desc.size) / 512).is_some_and(|e| e <= v.size_sectors) && desc.size > 0;
        if !inside {
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "in-sync area outside of the device");
        }
        // Proven only where this node itself is equal to the sender.
        if !desc.mask.contains(own) || self.volumes[vidx].any_out_of_sync(sender, desc.sector, desc.size) {
            return;
        }
        // A Primary that is connected to both is what both are measured by, and its word comes in the order of its writes.
        let c = &self.conns[cidx];
        let from_primary = c.role == Role::Primary && c.pds[vidx].disk == DiskState::UpToDate;
        for node in desc.mask.iter().filter(|&n| n != own && n != sender) {
            // What a verify found different is not equal because somebody else says so.
            let found = self.cidx(node).is_some_and(|c| self.conns[c].pds[vidx].verify.found);
            if !found && (from_primary || self.believes_in_sync(cx, vidx, node)) {
                let lacking = self.on_their_way(vidx, sender, node);
                self.volumes[vidx].set_in_sync(node, desc.sector, desc.size);
                lacking.into_iter().for_each(|(sector, len)| self.volumes[vidx].set_out_of_sync(node, sector, len));
                self.retire_if_in_sync(vidx, node);
            }
        }
    }

    /// What this node has written and marked towards one node, and is on its way still to another one, which calls itself equal to that.
    fn on_their_way(&self, vidx: usize, sender: NodeId, node: NodeId) -> Vec<(u64, u32)> {
        let v = &self.volumes[vidx];
        let writes = self.transfer_log.iter().map(|&index| &self.writes[index]);
        let lacking = writes.filter(|w| w.vidx == vidx && w.unstable.contains(sender) && !w.sent.contains(node));
        let ranges = lacking.map(|w| (w.req.sector, w.req.len));
        ranges.filter(|(sector, len)| v.any_out_of_sync(node, *sector, *len)).collect()
    }

    /// Nothing is marked any more towards a node of the same generation: its bitmap UUID has served.
    fn retire_if_in_sync(&mut self, vidx: usize, node: NodeId) {
        let Some(cidx) = self.cidx(node) else { return };
        let v = &self.volumes[vidx];
        let current = v.uuids.current & !1;
        let says = self.conns[cidx].pds[vidx].says.uuids.as_ref();
        let same_generation = self.conns[cidx].is_up() && says.is_some_and(|u| u.current & !1 == current);
        if same_generation && v.dirty_bits(node) == 0 && v.uuids.bitmap[node.index()] != 0 {
            let v = &mut self.volumes[vidx];
            v.uuids.retire_bitmap_uuid(node);
            v.meta.push(Step::SuperBlock);
        }
    }

    /// Writes of other nodes that no P_PEER_ACK covers may be missing on this one. That will be told when the disk is gone.
    pub(crate) fn mark_kept(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let others = self.conns.iter().enumerate().filter(|(other, _)| *other != cidx);
        let kept = others.flat_map(|(_, c)| &c.kept).filter(|k| k.vidx == vidx);
        let ranges: Vec<(u64, u32)> = kept.map(|k| (k.sector, k.len)).collect();
        for (sector, len) in ranges {
            self.mark_missing(cx, cidx, vidx, sector, len);
        }
    }

    /// Likewise what this node wrote and a peer has not called stable: that peer may be lost with it.
    pub(crate) fn mark_unstable(&mut self, vidx: usize) {
        for (_, w) in self.writes.iter().filter(|(_, w)| w.vidx == vidx) {
            for node in w.unstable.iter() {
                self.volumes[vidx].set_out_of_sync(node, w.req.sector, w.req.len);
            }
        }
    }

    /// Whether a third party's word about this node may clear bits. The word may be older than a mark made here: not while the
    /// node is known to be at another generation, and not soon after a mark (`docs/adr`: keep bits).
    fn believes_in_sync(&self, cx: &Ctx<'_>, vidx: usize, node: NodeId) -> bool {
        let Some(c) = self.cidx(node).map(|c| &self.conns[c]) else { return false };
        let pd = &c.pds[vidx];
        let current = self.volumes[vidx].uuids.current & !1;
        let same_generation = pd.says.uuids.as_ref().is_some_and(|u| u.current & !1 == current);
        let doubt = pd.marked_at.is_some_and(|t| cx.now < t.plus_ms(limits::IN_SYNC_DOUBT_MS));
        c.is_up() && !doubt && (same_generation || pd.disk == DiskState::Inconsistent)
    }

    /// UpToDate peers that still have bits towards each other, though nothing is being resynced, compare again.
    pub(crate) fn recheck(&mut self, cx: &mut Ctx<'_>) {
        if self.recheck_at.is_none_or(|t| cx.now < t) {
            return;
        }
        self.recheck_at = None;
        for vidx in 0..self.volumes.len() {
            self.tell_all_in_sync(cx, vidx);
        }
        for vidx in 0..self.volumes.len() {
            self.recheck_own_disk(cx, vidx);
            self.ask_about_bits(cx, vidx);
            self.tell_cleared_bits(cx, vidx);
            self.forget_lost_writes(vidx, None);
        }
        for cidx in self.up_conns() {
            let paused = self.conns[cidx].pds.iter().any(|pd| pd.repl == ReplState::PausedSyncT);
            if paused {
                self.recheck_at = Some(cx.now.plus_ms(limits::RECHECK_MS));
            }
            let left =
                (0..self.volumes.len()).any(|v| self.has_left_over_bits(cidx, v) || self.waits_for_nothing(cidx, v));
            if left && self.conns[cidx].is_up() {
                self.reconnect(cx, cidx, "to resync blocks that are still marked out of sync");
            }
        }
    }

    /// A disk that is only Outdated, next to an UpToDate Primary of its generation, has everything (2.4 no. 12), or gets it.
    fn recheck_own_disk(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        if self.role == Role::Primary {
            return self.recheck_disk_of_primary(cx, vidx);
        }
        // A Primary without UpToDate data of its own serves that of another peer.
        let up_to_date = |c: &usize| self.conns[*c].pds[vidx].disk == DiskState::UpToDate;
        let cidx = match self.primary_peer().and_then(|node| self.cidx(node)) {
            Some(primary) => Some(primary).filter(up_to_date).or(self.up_to_date_peer(vidx)),
            None => self.stable_peer(vidx),
        };
        let Some(cidx) = cidx else { return };
        let node = self.conns[cidx].node();
        let pd = &self.conns[cidx].pds[vidx];
        let unsure = matches!(self.volumes[vidx].disk, DiskState::Outdated | DiskState::Consistent);
        if !unsure || pd.disk != DiskState::UpToDate {
            return;
        }
        self.recheck_at = Some(cx.now.plus_ms(limits::RECHECK_MS));
        if pd.repl != ReplState::Established || self.sync_source_of(vidx).is_some() {
            return;
        }
        let v = &mut self.volumes[vidx];
        let current = v.uuids.current & !1;
        let same_generation = pd.says.uuids.as_ref().is_some_and(|u| u.current & !1 == current);
        if !same_generation || v.dirty_bits(node) > 0 || self.conns[cidx].role != Role::Primary {
            return self.reconnect(cx, cidx, "this disk is not UpToDate, there is data that is");
        }
        v.disk = DiskState::UpToDate;
        v.set_flag(DeviceFlags::WAS_UP_TO_DATE, true);
        v.meta.push(Step::SuperBlock);
        self.state_changed = true;
        self.send_states(cx);
        self.end_paused_targets(cx, vidx);
    }

    /// An UpToDate peer that is no neighbour of a Primary any more, if it was one.
    fn stable_peer(&self, vidx: usize) -> Option<usize> {
        let stable = |c: &Connection| {
            let told = c.pds[vidx].says.uuids.as_ref();
            c.keeps_bits() && told.is_some_and(|u| u.uuid_flags.contains(UuidFlags::STABLE))
        };
        self.up_to_date_peer(vidx).filter(|&c| stable(&self.conns[c]))
    }

    /// A Primary that serves its peers' data, with a disk of its own that nothing brings up to date, compares again.
    fn recheck_disk_of_primary(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        let v = &self.volumes[vidx];
        let behind = v.has_disk() && v.disk != DiskState::UpToDate && v.closing.is_none();
        if !behind || self.up_to_date_peer(vidx).is_none() {
            return;
        }
        self.recheck_at = Some(cx.now.plus_ms(limits::RECHECK_MS));
        let syncs = self.conns.iter().any(|c| {
            matches!(c.pds[vidx].repl, ReplState::SyncTarget | ReplState::WFBitMapT)
                && c.pds[vidx].disk >= DiskState::Consistent
        });
        if !syncs {
            self.compare_again(cx, vidx);
        }
    }

    /// Marks towards another neighbour of the Primary are left: the Primary is to say again who is in sync. If it serves its peers'
    /// data, they are.
    fn ask_about_bits(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        let Some(primary) = self.primary_peer().and_then(|node| self.cidx(node)) else { return };
        let asked: Vec<usize> = match self.served_primary(vidx) {
            Some(_) => self.up_conns().filter(|&c| self.conns[c].pds[vidx].disk == DiskState::UpToDate).collect(),
            None => vec![primary],
        };
        let v = &self.volumes[vidx];
        let left = (0..self.conns.len()).any(|c| {
            let both = v.disk == DiskState::UpToDate && self.conns[c].pds[vidx].disk == DiskState::UpToDate;
            both && v.dirty_bits(self.conns[c].node()) > 0 && self.have_common_primary(c, vidx)
        });
        for cidx in asked.into_iter().filter(|_| left) {
            if self.conns[cidx].keeps_bits() {
                self.recheck_at = Some(cx.now.plus_ms(limits::RECHECK_MS));
                self.send_uuids_to(cx, cidx, vidx, UuidFlags::RESYNC, NodeMask::EMPTY);
            }
        }
    }

    /// Peers that were told of bits towards them, which are gone since, hear of that.
    fn tell_cleared_bits(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        for cidx in self.up_conns() {
            // Kernels say nothing of it, and have no use for it (seen: 01, 84-01, mix-01).
            if !self.conns[cidx].pds[vidx].told_bits || !self.conns[cidx].keeps_bits() {
                continue;
            }
            if self.volumes[vidx].dirty_bits(self.conns[cidx].node()) > 0 {
                self.recheck_at = Some(cx.now.plus_ms(limits::RECHECK_MS));
            } else {
                self.send_uuids_to(cx, cidx, vidx, UuidFlags::EMPTY, NodeMask::EMPTY);
            }
        }
    }

    fn has_left_over_bits(&self, cidx: usize, vidx: usize) -> bool {
        let (c, v) = (&self.conns[cidx], &self.volumes[vidx]);
        let quiet = self.conns.iter().all(|c| c.pds[vidx].repl <= ReplState::Established);
        let both = v.disk == DiskState::UpToDate && c.pds[vidx].disk == DiskState::UpToDate;
        let wanted = c.keeps_bits() && !c.pds[vidx].verify.found;
        let third = (0..self.conns.len()).any(|c| c != cidx && self.conns[c].pds[vidx].disk == DiskState::UpToDate);
        let settled = self.have_common_primary(cidx, vidx) && (third || self.served_primary(vidx).is_none());
        let differs = v.dirty_bits(c.node()) > 0 || self.later_peer(vidx) == Some(c.node());
        quiet && both && wanted && differs && !settled
    }

    /// A resync that waited for another one, which has made this disk UpToDate meanwhile.
    fn waits_for_nothing(&self, cidx: usize, vidx: usize) -> bool {
        let paused = self.conns[cidx].pds[vidx].repl == ReplState::PausedSyncT;
        paused && self.volumes[vidx].disk == DiskState::UpToDate && self.sync_source_of(vidx).is_none()
    }

    /// This node and a peer are neighbours of the same Primary, which knows best what they have.
    fn have_common_primary(&self, cidx: usize, vidx: usize) -> bool {
        let Some(primary) = self.primary_peer() else { return false };
        let says = self.conns[cidx].pds[vidx].says.uuids.as_ref();
        says.is_some_and(|u| u.node_mask.contains(primary) && !u.uuid_flags.contains(UuidFlags::STABLE))
    }
}
