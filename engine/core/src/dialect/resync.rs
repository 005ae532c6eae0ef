//! The begin of a resync between nodes that share a sync UUID (handshake-and-states.md 4.1, 6.1, 6.3).

use zea_wire::flags::UuidFlags;
use zea_wire::ids::{NodeId, NodeMask};
use zea_wire::packet::{BitmapUuids, Packet, Uuid};
use zea_wire::state::{ReplState, Role};

use crate::event::Severity;
use crate::meta_queue::{Step, Then};
use crate::resource::{Ctx, Resource};

impl Resource {
    /// Both bitmaps are one: the source names the resync, and begins when that name is stable.
    pub(crate) fn source_names_resync(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let node = self.conns[cidx].node();
        let random = cx.uuid();
        let told = self.conns[cidx].pds[vidx].says.uuids.as_ref().map_or(0, |u| u.current);
        let v = &mut self.volumes[vidx];
        let uuid = v.uuids.sync_begins_at_source(node, told, random);
        v.meta.push(Step::SuperBlock);
        v.meta.push(Step::Then(Then::SyncUuid(node, uuid)));
    }

    /// The sync UUID is stable: P_SYNC_UUID, and this node is SyncSource.
    pub(crate) fn sync_uuid_stable(&mut self, cx: &mut Ctx<'_>, vidx: usize, node: NodeId, uuid: u64) {
        let Some(cidx) = self.cidx(node).filter(|&c| self.conns[c].is_up()) else { return };
        let (pd, v) = (&self.conns[cidx].pds[vidx], &self.volumes[vidx]);
        let exchanged = pd.repl == ReplState::WFBitMapS && pd.bitmap_in.is_none();
        let named = exchanged || pd.repl == ReplState::StartingSyncS;
        // It may be the one of a connection that is gone.
        if !named || !v.has_disk() || v.uuids.bitmap[node.index()] != uuid {
            return;
        }
        self.send_volume(cx, cidx, vidx, Packet::SyncUuid(Uuid { uuid }));
        self.becomes_source(cx, cidx, vidx);
    }

    /// P_SYNC_UUID: the source has begun, this node is SyncTarget.
    pub(crate) fn sync_uuid_received(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, packet: Uuid) {
        self.sync_uuid_is_the_answer(cidx, vidx);
        if self.conns[cidx].pds[vidx].repl != ReplState::WFSyncUUID || !self.volumes[vidx].has_disk() {
            return cx.notice(Severity::Info, "a sync UUID that this node does not wait for: ignored");
        }
        let node = self.conns[cidx].node();
        let primary = self.role == Role::Primary;
        let v = &mut self.volumes[vidx];
        v.uuids.sync_begins_at_target(node, packet.uuid, primary);
        let dirty = self.becomes_target(cidx, vidx);
        self.conns[cidx].pds[vidx].meter.begin(cx.now);
        // The source takes it for Inconsistent by itself, and 8.4 does not tell (seen: 84-10a f1370-f1372).
        let v = &mut self.volumes[vidx];
        v.told_disk = v.disk;
        let text = format!("volume {}: resync from node {node} begins: {} KiB", self.volumes[vidx].nr, dirty * 4);
        cx.notice(Severity::Info, text);
    }

    /// A resync is over: source and target have the same UUIDs, which neither tells.
    pub(crate) fn peer_has_our_uuids(&mut self, cidx: usize, vidx: usize) {
        let (own, node) = (self.config.node_id, self.conns[cidx].node());
        let v = &mut self.volumes[vidx];
        if v.uuids.bitmap[node.index()] != 0 {
            v.uuids.retire_bitmap_uuid(node);
            v.meta.push(Step::SuperBlock);
        }
        let mut same = self.uuids_for(cidx, vidx, UuidFlags::EMPTY, NodeMask::EMPTY);
        same.bitmap_uuids = BitmapUuids::from_iter([(own, 0)]);
        same.dirty_bits = 0;
        self.conns[cidx].pds[vidx].says.uuids = Some(same);
    }

    /// The link is lost while this node is the source: a target that has everything may have taken our generation without having told.
    /// What is written from now on must be of another one, also if that makes the next resync a full one. With 9 the bitmap UUID stays
    /// until something is written: if nothing is, the next handshake tells.
    pub(crate) fn target_may_have_finished(&mut self, cidx: usize, vidx: usize) {
        let c = &self.conns[cidx];
        let complete = c.pds[vidx].is_sync_source() && self.volumes[vidx].dirty_bits(c.node()) == 0;
        if complete && c.speaks_84() {
            self.peer_has_our_uuids(cidx, vidx);
        } else if complete {
            let node = c.node();
            self.volumes[vidx].may_have_finished.insert(node);
        }
    }

    /// The longest resync request for this peer in bitmap blocks: 8.4 stays below what the source takes at once (6.4).
    pub(crate) fn longest_request(&self, cidx: usize, vidx: usize) -> Option<u64> {
        let c = &self.conns[cidx];
        let limit = c.pds[vidx].says.sizes.as_ref().filter(|_| c.speaks_84())?.max_bio_size;
        Some((u64::from(limit.min(c.max_bio_bytes())) / 4096).max(1))
    }
}
