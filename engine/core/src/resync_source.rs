//! The source of a resync: what its target tells it (wire-protocol.md 11.1, handshake-and-states.md 6.5).

use zea_meta::flags::DeviceFlags;
use zea_wire::packet::{BlockAck, BlockDesc};
use zea_wire::state::{ConnState, DiskState, ReplState, Role, StateWord};

use crate::event::Severity;
use crate::limits;
use crate::meta_queue::Step;
use crate::peer_request::{Kind, Stage};
use crate::resource::{Ctx, Resource};

impl Resource {
    /// P_RS_WRITE_ACK: the target has it.
    pub(crate) fn resync_written(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, ack: BlockAck, ok: bool) {
        let node = self.conns[cidx].node();
        let found = self
            .peer_reqs
            .iter()
            .find(|(_, p)| {
                (p.kind, p.stage) == (Kind::ResyncRead, Stage::Sent)
                    && p.node == node
                    && p.vidx == vidx
                    && self.conns[cidx].resync_id(p.block_id) == ack.block_id
                    && p.sector == ack.sector
            })
            .map(|(i, _)| i);
        let Some(index) = found else {
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "ack for a resync reply that was not sent");
        };
        let p = self.peer_req_end(cx, index);
        if ok {
            self.volumes[vidx].set_in_sync(node, p.sector, p.len);
            self.note_moved(cx, cidx, vidx, p.len);
            self.maybe_peers_in_sync(cx, vidx, p.sector);
        }
    }

    /// P_STATE of a target that says Established: the resync is over here too.
    pub(crate) fn source_sees_state(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, state: StateWord) {
        let node = self.conns[cidx].node();
        let repl = state.conn.repl_state();
        let pd = &mut self.conns[cidx].pds[vidx];
        if pd.is_sync_source() && repl == Some(ReplState::Established) {
            pd.repl = ReplState::Established;
            pd.disk = state.disk;
            pd.resync_total_bits = 0;
            self.state_changed = true;
            self.call_off_resync_reads(cx, cidx, vidx);
            let end = if state.disk > DiskState::Inconsistent { "is complete" } else { "ended: its disk is gone" };
            cx.notice(Severity::Info, format!("volume {}: resync of node {node} {end}", self.volumes[vidx].nr));
            self.volumes[vidx].meta.push(Step::Bitmap);
            if self.conns[cidx].speaks_84() && self.volumes[vidx].dirty_bits(node) == 0 {
                self.peer_has_our_uuids(cidx, vidx);
            }
            self.forget_lost_writes(vidx, None);
            self.tell_all_in_sync(cx, vidx);
            self.recheck_at = Some(cx.now.plus_ms(limits::RECHECK_MS));
            let v = &mut self.volumes[vidx];
            if v.disk == DiskState::UpToDate && state.disk == DiskState::UpToDate && v.crashed_primary {
                v.crashed_primary = false;
                v.meta.push(Step::SuperBlock);
            }
            if self.conns[cidx].keeps_bits() && !self.conns[cidx].speaks_84() {
                self.send_state(cx, cidx, vidx);
            }
        }
    }

    /// P_OUT_OF_SYNC: the sender wrote there and did not send it.
    pub(crate) fn out_of_sync(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, desc: BlockDesc) {
        let v = &self.volumes[vidx];
        let inside = desc.sector.checked_add(u64::from(desc.blksize) / 512).is_some_and(|e| e <= v.size_sectors)
            && desc.blksize > 0;
        if !inside {
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "out-of-sync area outside of the device");
        }
        let before = v.dirty_bits(self.conns[cidx].node());
        self.mark_missing(cx, cidx, vidx, desc.sector, desc.blksize);
        if self.volumes[vidx].dirty_bits(self.conns[cidx].node()) > before {
            self.late_bits_told(cidx, vidx, desc.sector, desc.blksize);
        }
        let pd = &self.conns[cidx].pds[vidx];
        let from_primary = self.conns[cidx].role == Role::Primary && pd.is_established();
        let v = &mut self.volumes[vidx];
        if from_primary && v.disk == DiskState::UpToDate {
            // It did not know yet that this disk has become UpToDate: now it is not.
            v.disk = DiskState::Outdated;
            v.set_flag(DeviceFlags::WAS_UP_TO_DATE, false);
            v.meta.push(Step::SuperBlock);
            self.state_changed = true;
            self.reconnect(cx, cidx, "the Primary wrote without this node");
        }
    }
}
