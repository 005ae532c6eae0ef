//! Skipping the initial sync: the administrator says that fresh disks are equal (`new-current-uuid --clear-bitmap`;
//! handshake-and-states.md 4.1, 5.6).

use zea_meta::flags::DeviceFlags;
use zea_wire::flags::UuidFlags;
use zea_wire::ids::{NodeId, NodeMask};
use zea_wire::packet::Uuids110;
use zea_wire::state::{DiskState, ReplState};

use crate::io::{AdminError, AdminTag};
use crate::meta_queue::{Step, Then};
use crate::resource::{Ctx, Resource};
use crate::twopc::ss;
use crate::uuid;

impl Resource {
    /// [`crate::io::Command::NewCurrentUuid`].
    pub(crate) fn skip_initial_sync(&mut self, cx: &mut Ctx<'_>, tag: AdminTag, vidx: usize) {
        let skips = |c: usize| self.conns[c].has_run_lengths() && self.is_fresh_pair(c, vidx);
        let fresh: Vec<usize> = self.up_conns().filter(|&c| skips(c)).collect();
        if fresh.is_empty() || fresh.len() < self.up_conns().count() {
            let message = "the initial sync can be skipped only while this disk and those of all connected peers are as \
                           they were created";
            return cx.reply(tag, Err(AdminError { code: ss::IN_TRANSIENT_STATE, message: message.into() }));
        }
        let random = [cx.uuid(), cx.uuid()];
        let rotate = self.rotate_context(vidx, self.dagtag);
        let v = &mut self.volumes[vidx];
        if v.uuids.rotate_current_into_bitmap(&rotate, NodeMask::EMPTY, random).is_none() {
            v.uuids.set_current(random[0], false);
        }
        let equal = fresh.iter().map(|&cidx| self.conns[cidx].node()).collect();
        self.now_equal_to(vidx, equal, self.config.node_id);
        self.volumes[vidx].meta.push(Step::Then(Then::Reply(tag)));
    }

    /// UUIDs with SKIP_INITIAL_SYNC. False if that makes no sense here.
    pub(crate) fn told_to_skip_initial_sync(&mut self, cidx: usize, vidx: usize, told: &Uuids110) -> bool {
        let v = &self.volumes[vidx];
        let own_is_fresh = v.uuids.current & !1 == uuid::JUST_CREATED && v.disk == DiskState::Inconsistent;
        let c = &self.conns[cidx];
        if !own_is_fresh || c.pds[vidx].repl != ReplState::Established || !c.has_run_lengths() {
            return false;
        }
        // Whoever was there was told the same.
        let (node, current) = (self.conns[cidx].node(), told.current);
        let others = told.bitmap_uuids.iter().filter(|(_, uuid)| *uuid == 0).map(|(node, _)| node);
        let equal = others.filter(|n| *n != self.config.node_id).chain([node]).collect();
        self.volumes[vidx].uuids.set_current(current, false);
        self.now_equal_to(vidx, equal, node);
        true
    }

    /// Neither disk was ever written.
    fn is_fresh_pair(&self, cidx: usize, vidx: usize) -> bool {
        let (v, pd) = (&self.volumes[vidx], &self.conns[cidx].pds[vidx]);
        let fresh = |uuid: u64| uuid & !1 == uuid::JUST_CREATED;
        let inconsistent = [v.disk, pd.disk] == [DiskState::Inconsistent; 2];
        let peer = pd.says.uuids.as_ref().is_some_and(|u| fresh(u.current));
        inconsistent && fresh(v.uuids.current) && peer && pd.repl == ReplState::Established
    }

    fn now_equal_to(&mut self, vidx: usize, nodes: NodeMask, by: NodeId) {
        let v = &mut self.volumes[vidx];
        for node in nodes.iter() {
            v.uuids.bitmap[node.index()] = 0;
            let slot = v.slot(node);
            if let (Some(slot), Some(a)) = (slot, v.attached.as_mut()) {
                a.bitmap.clear_all(slot);
            }
        }
        v.becomes_consistent();
        v.set_flag(DeviceFlags::WAS_UP_TO_DATE, true);
        for step in [Step::Bitmap, Step::SuperBlock, Step::Then(Then::SyncSkipped(by))] {
            v.meta.push(step);
        }
    }

    /// It is stable on this disk. The node that began it tells the others.
    pub(crate) fn sync_skipped(&mut self, cx: &mut Ctx<'_>, vidx: usize, by: NodeId) {
        let began_here = by == self.config.node_id;
        if began_here {
            self.send_uuids(cx, vidx, UuidFlags::SKIP_INITIAL_SYNC, NodeMask::EMPTY);
        }
        self.volumes[vidx].disk = DiskState::UpToDate;
        for cidx in self.up_conns() {
            let equal = self.volumes[vidx].uuids.bitmap[self.conns[cidx].node().index()] == 0;
            if self.conns[cidx].node() == by || (began_here && equal) {
                self.conns[cidx].pds[vidx].disk = DiskState::UpToDate;
            }
        }
        self.state_changed = true;
        self.send_states(cx);
        self.volumes[vidx].told_disk = DiskState::UpToDate;
        self.release_held(cx, vidx);
    }
}
