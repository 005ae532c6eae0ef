//! Comparing data on a connection that is up, as kernels do and expect it (handshake-and-states.md 5.6). Two Zea nodes
//! connect again instead (`docs/adr/0005-compare-by-reconnecting.md`); for 8.4 see `dialect/handshake.rs`.

use zea_wire::flags::UuidFlags;
use zea_wire::ids::NodeMask;
use zea_wire::state::{DiskState, ReplState, StateWord};

use crate::handshake::Decision;
use crate::resource::{Ctx, Resource};

impl Resource {
    /// The peer is a kernel that speaks 9.
    pub(crate) fn compares_here(&self, cidx: usize) -> bool {
        !self.conns[cidx].keeps_bits() && !self.conns[cidx].speaks_84()
    }

    /// Tell every connected peer that this node is Primary. A kernel compares itself with a disk that is UpToDate by force as soon as it
    /// hears of that: its UUIDs go first.
    pub(crate) fn tell_role(&mut self, cx: &mut Ctx<'_>) {
        for cidx in self.up_conns() {
            for vidx in 0..self.volumes.len() {
                if !(self.volumes[vidx].forced && self.compares_here(cidx)) {
                    self.send_state(cx, cidx, vidx);
                }
            }
        }
        for v in self.volumes.iter_mut().filter(|v| v.forced) {
            v.told_disk = v.disk;
        }
    }

    fn decide_here(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, state: StateWord) -> Decision {
        let sent = self.uuids_for(cidx, vidx, UuidFlags::EMPTY, NodeMask::EMPTY);
        let now = (self.role, self.volumes[vidx].disk);
        let pd = &mut self.conns[cidx].pds[vidx];
        (pd.sent_uuids, pd.sent_state) = (Some(sent), now);
        self.compare(cx, cidx, vidx, state)
    }

    /// The disk of a kernel peer has become UpToDate, and this one is not (seen: 01 f61-f69).
    pub(crate) fn compare_here(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let Some(state) = self.conns[cidx].pds[vidx].says.state else { return };
        match self.decide_here(cx, cidx, vidx, state) {
            Decision::Target { full } => {
                self.wait_for_bitmap_as_target(cx, cidx, vidx, full);
                self.state_changed = true;
                self.send_uuids_to(cx, cidx, vidx, UuidFlags::EMPTY, NodeMask::EMPTY);
                self.send_state(cx, cidx, vidx);
                self.start_bitmap_exchange(cx, cidx, vidx);
            }
            _ => self.reconnect(cx, cidx, "to resync from it: its disk became UpToDate"),
        }
    }

    /// A kernel peer has compared its data with this node's, and waits for the bitmap.
    pub(crate) fn target_waits_for_bitmap(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, state: StateWord) {
        let waits = state.conn.repl_state() == Some(ReplState::WFBitMapT);
        let idle = self.conns[cidx].pds[vidx].repl == ReplState::Established;
        if !waits || !idle || self.volumes[vidx].disk != DiskState::UpToDate || !self.compares_here(cidx) {
            return;
        }
        match self.decide_here(cx, cidx, vidx, state) {
            Decision::Source { full, copy_from } => {
                self.mark_unstable_writes(cx, cidx, vidx);
                self.wait_for_bitmap_as_source(cidx, vidx, full, copy_from);
                self.state_changed = true;
                self.start_bitmap_exchange(cx, cidx, vidx);
            }
            _ => self.reconnect(cx, cidx, "it wants a resync that this node has no reason for"),
        }
    }
}
