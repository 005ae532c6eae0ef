//! One node gives its data up and gets all of it from the other (`invalidate`, and `invalidate-remote` of the kernel): all bits are
//! set on both sides, so no bitmaps are exchanged, and the source names the resync when its bits are stable
//! (handshake-and-states.md 4.1, 8.1).

use zea_meta::flags::DeviceFlags;
use zea_wire::state::{DiskState, ReplState};

use crate::full_sync::FullSync;
use crate::io::AdminError;
use crate::resource::Resource;
use crate::twopc::{Change, ss};

impl Resource {
    /// Whether everything may be copied now, from this node or to it.
    pub(crate) fn full_resync_check(&self, cidx: usize, vidx: usize, as_source: bool) -> Result<(), AdminError> {
        let (pd, v) = (&self.conns[cidx].pds[vidx], &self.volumes[vidx]);
        let peer_has_disk = pd.disk >= DiskState::Inconsistent && pd.disk != DiskState::DUnknown;
        let (source, target_has_disk) = if as_source { (v.disk, peer_has_disk) } else { (pd.disk, v.has_disk()) };
        let (code, message) = if pd.repl != ReplState::Established {
            (ss::RESYNC_RUNNING, format!("busy: {}", pd.repl))
        } else if source != DiskState::UpToDate || !target_has_disk {
            (ss::NO_UP_TO_DATE_DISK, format!("there are no UpToDate data to copy from ({source})"))
        } else if v.slot(self.conns[cidx].node()).is_none() {
            (ss::NOT_SUPPORTED, "no bitmap is kept for the peer".into())
        } else {
            return Ok(());
        };
        Err(AdminError { code, message })
    }

    /// Both agreed.
    pub(crate) fn full_resync_begins(&mut self, cidx: usize, vidx: usize, as_source: bool) {
        let node = self.conns[cidx].node();
        if as_source {
            let pd = &mut self.conns[cidx].pds[vidx];
            (pd.repl, pd.disk) = (ReplState::StartingSyncS, DiskState::Inconsistent);
            self.set_full_bitmap(vidx, node);
        } else {
            self.waits_for_sync_uuid(cidx, vidx);
            self.set_full_bitmap(vidx, node);
        }
        self.state_changed = true;
    }

    /// This disk is to be resynced from the peer, which names the resync. The caller writes the super block.
    pub(crate) fn waits_for_sync_uuid(&mut self, cidx: usize, vidx: usize) {
        self.conns[cidx].pds[vidx].repl = ReplState::WFSyncUUID;
        let weak = self.not_replicated(vidx);
        let v = &mut self.volumes[vidx];
        if v.disk == DiskState::UpToDate {
            (v.exposed_uuid, v.exposed_weak) = (v.uuids.current, weak);
        }
        v.disk = DiskState::Inconsistent;
        v.told_disk = DiskState::Inconsistent;
        v.set_flag(DeviceFlags::CONSISTENT, false);
        v.set_flag(DeviceFlags::WAS_UP_TO_DATE, false);
    }

    /// P_SYNC_UUID has come while the answer to `invalidate` is on its way.
    pub(crate) fn sync_uuid_is_the_answer(&mut self, cidx: usize, vidx: usize) {
        let plan = FullSync { peer: self.conns[cidx].node(), volume: self.volumes[vidx].nr, as_source: false };
        let asked = self.asked_for().is_some_and(|wanted| wanted.change == Change::FullSync(plan));
        if asked && self.full_resync_check(cidx, vidx, false).is_ok() {
            self.full_resync_begins(cidx, vidx, false);
        }
    }
}
