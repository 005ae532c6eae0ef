//! What a flush has made stable, and resync data that waits for that.
//!
//! Resync data is in no activity log: after a loss of power nothing but the bits tells that it is missing. So a block is
//! called in sync, to its source and to third nodes, only when its data is stable. One flush serves all that was written
//! before it.

use zea_meta::flags::{DeviceFlags, PeerFlags};
use zea_wire::ids::NodeId;
use zea_wire::state::{DiskState, ReplState, Role};

use crate::connection::{Connection, ResyncTarget};
use crate::io::{DiskCmd, DiskError};
use crate::meta_queue::{Step, Then};
use crate::peer_request::{AckKind, Stage};
use crate::resource::{Ctx, DiskJob, Resource};
use crate::volume::{Attached, Volume};

impl Volume {
    /// A flush that covers everything written so far has ended.
    pub(crate) fn is_flushed(&self) -> bool {
        self.flushed == self.written
    }

    /// This disk becomes a mixture of old and new. Nothing is written before the super block says so (`overclaims`).
    pub(crate) fn becomes_inconsistent(&mut self) {
        self.disk = DiskState::Inconsistent;
        self.set_flag(DeviceFlags::CONSISTENT, false);
        self.set_flag(DeviceFlags::WAS_UP_TO_DATE, false);
        self.meta.push(Step::SuperBlock);
    }

    /// This disk becomes such a mixture, and says of whose data.
    pub(crate) fn becomes_target_of(&mut self, source: NodeId) {
        let a = self.attached.as_mut().expect("a target has a disk");
        a.sb.peers[source.index()].flags.insert(PeerFlags::ZEA_SYNC_SOURCE);
        self.becomes_inconsistent();
    }

    /// This disk is a copy again, of whatever it is: no resync is unfinished.
    pub(crate) fn becomes_consistent(&mut self) {
        self.set_flag(DeviceFlags::CONSISTENT, true);
        let Some(a) = self.attached.as_mut() else { return };
        a.sb.peers.iter_mut().for_each(|peer| peer.flags.remove(PeerFlags::ZEA_SYNC_SOURCE));
    }
}

/// Which blocks of an interrupted resync have been replaced is not known, only which ones were still to come: they may differ from
/// every node then, not only from the source.
pub(crate) fn mark_unfinished(attached: &mut Attached) {
    let Attached { sb, bitmap, .. } = attached;
    let slots = |flags| {
        sb.peers.iter().filter(move |p| p.flags.contains(flags)).filter_map(|p| usize::try_from(p.bitmap_index).ok())
    };
    for source in slots(PeerFlags::ZEA_SYNC_SOURCE) {
        slots(PeerFlags::empty()).filter(|slot| *slot != source).for_each(|slot| _ = bitmap.or_slot(source, slot));
    }
}

impl Resource {
    /// This disk is behind and waits to be resynced, and gets what is written now all the same.
    pub(crate) fn lacks_earlier_writes(&self, vidx: usize) -> bool {
        let waits = |c: &Connection| c.pds[vidx].is_sync_target() || c.pds[vidx].repl == ReplState::WFBitMapT;
        self.volumes[vidx].disk == DiskState::Outdated && (self.role == Role::Primary || self.conns.iter().any(waits))
    }

    /// This disk is being resynced. That, and the bits, are stable before the first request: the source forgets what it has
    /// passed on, so that after a loss of power here the bits of this node have to know it. Returns how many there are.
    pub(crate) fn becomes_target(&mut self, cidx: usize, vidx: usize) -> u64 {
        let node = self.conns[cidx].node();
        let sums = self.csums_alg(cidx).is_some();
        let nr = self.next_block_id;
        self.next_block_id += 1;
        let v = &mut self.volumes[vidx];
        if sums {
            // What turns out to be equal has to be stable, too.
            v.meta.push(Step::DataFlush);
        }
        v.meta.push(Step::Bitmap);
        v.becomes_target_of(node);
        v.meta.push(Step::Then(Then::ResyncBegins(node, nr)));
        let dirty = v.dirty_bits(node);
        let pd = &mut self.conns[cidx].pds[vidx];
        pd.repl = ReplState::SyncTarget;
        pd.resync_total_bits = dirty;
        pd.resync = Some(ResyncTarget { begins: Some(nr), ..ResyncTarget::default() });
        self.state_changed = true;
        dirty
    }

    /// The meta data says that the resync goes on: ask.
    pub(crate) fn resync_begins(&mut self, vidx: usize, node: NodeId, nr: u64) {
        let Some(cidx) = self.cidx(node) else { return };
        if let Some(r) = self.conns[cidx].pds[vidx].resync.as_mut()
            && r.begins == Some(nr)
        {
            r.begins = None;
        }
        self.late_bits_stable(cidx, vidx, nr);
    }

    /// A flush has ended that was given to the disk after so many writes.
    pub(crate) fn flush_ended(&mut self, cx: &mut Ctx<'_>, vidx: usize, written: u64, job: DiskJob, ok: bool) {
        if ok {
            let v = &mut self.volumes[vidx];
            v.flushed = v.flushed.max(written);
        }
        self.volumes[vidx].resync_flushing &= !matches!(job, DiskJob::ResyncFlush);
        while let Some((index, _)) = self.volumes[vidx].resync_unstable.pop_front_if(|(_, nr)| *nr <= written) {
            let result = if ok { Ok(()) } else { Err(DiskError::Io(5)) };
            self.resync_write_over(cx, index, result);
        }
        self.flush_resync_data(cx, vidx);
    }

    /// Resync data is on the disk. With a write cache it waits for a flush.
    pub(crate) fn resync_write_done(&mut self, cx: &mut Ctx<'_>, index: usize, result: Result<(), DiskError>) {
        let vidx = self.peer_reqs[index].vidx;
        let v = &mut self.volumes[vidx];
        if result.is_err() || !v.config.disk.disk_flushes {
            return self.resync_write_over(cx, index, result);
        }
        v.resync_unstable.push_back((index, v.written));
        self.peer_reqs[index].stage = Stage::Flush;
        self.flush_resync_data(cx, vidx);
    }

    /// The flush that was for resync data alone.
    pub(crate) fn resync_flush_done(&mut self, cx: &mut Ctx<'_>, vidx: usize, result: Result<(), DiskError>) {
        if let Err(e) = result {
            self.disk_failed(cx, vidx, &format!("flush of resync data: {e}"));
        }
    }

    /// Resync data is stable, or failed.
    fn resync_write_over(&mut self, cx: &mut Ctx<'_>, index: usize, result: Result<(), DiskError>) {
        let p = self.peer_req_end(cx, index);
        let (vidx, sector, len) = (p.vidx, p.sector, p.len);
        if let Err(e) = result {
            self.disk_failed(cx, vidx, &format!("resync write of {len} bytes at sector {sector}: {e}"));
        }
        let Some(cidx) = self.cidx(p.node) else { return };
        if p.orphan {
            return self.lost_peer_drained(cx, cidx);
        }
        if let Some(r) = self.conns[cidx].pds[vidx].resync.as_mut()
            && let Some(q) = r.in_flight.remove(&p.sector)
        {
            r.in_flight_sectors -= u64::from(q.len) / 512;
            r.failed += u64::from(result.is_err());
        }
        if result.is_err() {
            return self.send_ack(cx, cidx, vidx, sector, len, p.block_id, AckKind::ResyncFailed);
        }
        self.volumes[vidx].set_in_sync(p.node, sector, len);
        self.note_moved(cx, cidx, vidx, len);
        self.send_ack(cx, cidx, vidx, sector, len, p.block_id, AckKind::ResyncWritten);
        self.maybe_peers_in_sync(cx, vidx, sector);
    }

    fn flush_resync_data(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        let v = &mut self.volumes[vidx];
        if v.resync_flushing || v.resync_unstable.is_empty() {
            return;
        }
        if v.attached.is_some() {
            v.resync_flushing = true;
            return self.disk(cx, vidx, DiskJob::ResyncFlush, DiskCmd::Flush);
        }
        for (index, _) in std::mem::take(&mut v.resync_unstable) {
            self.resync_write_over(cx, index, Err(DiskError::Io(5)));
        }
    }
}
