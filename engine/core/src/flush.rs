//! Front-end flushes: stable here and on every connected UpToDate protocol-C peer (design.md section 3).

use zea_wire::ids::{NodeId, NodeMask};
use zea_wire::state::DiskState;

use crate::config::Protocol;
use crate::io::{DiskCmd, DiskError, IoError, ReqId};
use crate::quorum::Gate;
use crate::request::FlushReq;
use crate::resource::{Ctx, DiskJob, Resource};

impl Resource {
    pub(crate) fn flush(&mut self, cx: &mut Ctx<'_>, vidx: usize, id: ReqId) {
        let epoch = self.epoch;
        if self.epoch_writes > 0 {
            self.close_epoch();
        }
        let mut waits = NodeMask::default();
        // Without UpToDate data here, it is the peers that make it stable, whatever the protocol.
        let only_peers = self.volumes[vidx].disk != DiskState::UpToDate;
        for c in self.conns.iter().filter(|c| c.is_up() && c.pds[vidx].disk == DiskState::UpToDate) {
            let counts = only_peers || (self.config.flush_waits_for_peers && c.config.net.protocol == Protocol::C);
            let pending = c.send.open.is_some() || !c.send.unacked.is_empty();
            if counts && pending {
                waits.insert(c.node());
            }
        }
        let local = self.volumes[vidx].has_disk() && self.volumes[vidx].config.disk.disk_flushes;
        let local = local && !broken!(SkipLocalFlush);
        let index = self.flushes.insert(FlushReq { id, vidx, local, waits, epoch, failed: !self.has_data(vidx) });
        if local {
            self.disk(cx, vidx, DiskJob::Flush(index), DiskCmd::Flush);
        }
        self.flush_step(cx, index);
    }

    pub(crate) fn local_flush_done(
        &mut self,
        cx: &mut Ctx<'_>,
        vidx: usize,
        index: usize,
        result: Result<(), DiskError>,
    ) {
        self.flushes[index].local = false;
        if let Err(e) = result {
            self.disk_failed(cx, vidx, &format!("flush: {e}"));
            self.flushes[index].failed |= !self.has_data(vidx);
        }
        self.flush_step(cx, index);
    }

    /// A peer acked a barrier, or is gone (`None`).
    pub(crate) fn flushes_heard(&mut self, cx: &mut Ctx<'_>, node: NodeId, barrier: Option<u32>) {
        let heard: Vec<usize> = self
            .flushes
            .iter()
            .filter(|(_, f)| f.waits.contains(node) && barrier.is_none_or(|b| b.wrapping_sub(f.epoch) as i32 >= 0))
            .map(|(i, _)| i)
            .collect();
        for index in heard {
            self.flushes[index].waits.remove(node);
            self.flush_step(cx, index);
        }
        // An epoch without a barrier of its own: everything that was sent is acked.
        if let Some(cidx) = self.cidx(node)
            && self.conns[cidx].send.open.is_none()
            && self.conns[cidx].send.unacked.is_empty()
        {
            let idle: Vec<usize> =
                self.flushes.iter().filter(|(_, f)| f.waits.contains(node)).map(|(i, _)| i).collect();
            for index in idle {
                self.flushes[index].waits.remove(node);
                self.flush_step(cx, index);
            }
        }
    }

    /// Quorum is lost or regained: flushes that waited for that go on.
    pub(crate) fn retry_flushes(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        let mine: Vec<usize> = self.flushes.iter().filter(|(_, f)| f.vidx == vidx).map(|(i, _)| i).collect();
        mine.into_iter().for_each(|index| self.flush_step(cx, index));
    }

    fn flush_step(&mut self, cx: &mut Ctx<'_>, index: usize) {
        let f = &self.flushes[index];
        let gate = self.quorum_gate(f.vidx);
        if !f.local && f.waits.is_empty() && gate != Gate::Waits {
            let f = self.flushes.remove(index);
            let lost = std::mem::take(&mut self.volumes[f.vidx].writes_lost);
            cx.complete(f.id, if f.failed || lost || gate == Gate::Fails { Err(IoError::Io) } else { Ok(()) });
        }
    }
}
