//! One node gives its data up and gets all of it from the other (`invalidate`, and `invalidate-remote` of the kernel): all bits are
//! set on both sides, so no bitmaps are exchanged, and the source names the resync when its bits are stable
//! (handshake-and-states.md 4.1, 8.1).

use zea_meta::flags::DeviceFlags;
use zea_wire::ids::VolumeNr;
use zea_wire::state::{DiskState, ReplState};

use crate::io::{AdminError, AdminTag};
use crate::resource::Resource;
use crate::twopc::{Change, ss};

impl Resource {
    /// `invalidate` next to a peer that speaks 8.4: it is asked, and becomes the source.
    pub(crate) fn invalidate_84(&mut self, tag: AdminTag, volume: VolumeNr) {
        self.want(Change::Invalidate(volume), Some(tag));
    }

    /// Whether this node may ask.
    pub(crate) fn invalidate_check(&self, volume: VolumeNr) -> Result<bool, AdminError> {
        let (cidx, vidx) = (self.peer_84(), self.vidx(volume));
        let Some((cidx, vidx)) = cidx.zip(vidx) else {
            let message = "the peer that the data was to come from is gone: try again".into();
            return Err(AdminError { code: ss::NEED_CONNECTION, message });
        };
        self.full_resync_check(cidx, vidx, false).map(|()| true)
    }

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

    /// The peer agreed to give all its data, if it has not begun to already (P_SYNC_UUID may overtake its answer).
    pub(crate) fn invalidate_agreed(&mut self, volume: VolumeNr) {
        if let Some((cidx, vidx)) = self.peer_84().zip(self.vidx(volume))
            && self.full_resync_check(cidx, vidx, false).is_ok()
        {
            self.full_resync_begins(cidx, vidx, false);
        }
    }

    /// P_SYNC_UUID has come while the answer to `invalidate` is on its way.
    pub(crate) fn sync_uuid_is_the_answer(&mut self, cidx: usize, vidx: usize) {
        let nr = self.volumes[vidx].nr;
        let asked = self.asked_for().is_some_and(|wanted| wanted.change == Change::Invalidate(nr));
        if asked && self.full_resync_check(cidx, vidx, false).is_ok() {
            self.full_resync_begins(cidx, vidx, false);
        }
    }
}
