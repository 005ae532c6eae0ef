//! Epochs of a peer's writes: completed, flushed, acked, in order (wire-protocol.md 10.3).

use zea_wire::ids::NodeId;
use zea_wire::packet::{BarrierAck, Packet};
use zea_wire::state::{ConnState, Role};

use crate::connection::RecvEpoch;
use crate::io::{DiskCmd, DiskError, LinkId};
use crate::limits;
use crate::peer_request::Stage;
use crate::resource::{Ctx, DiskJob, Resource};

impl Resource {
    /// Why a peer must not write that.
    pub(crate) fn check_peer_write(&self, cidx: usize, vidx: usize, sector: u64, len: u32) -> Result<(), &'static str> {
        let c = &self.conns[cidx];
        let end = sector.checked_add(u64::from(len) / 512);
        // A commit may come on another way than the writes before it: what was said on theirs counts, too.
        let told = c.pds[vidx].says.state.map(|state| state.role);
        if len == 0 || end.is_none_or(|e| e > self.volumes[vidx].size_sectors) {
            Err("a write outside of the device")
        } else if c.kept.len() >= limits::MAX_PEER_REQUESTS {
            Err("too many writes without a peer ack")
        } else if c.dagtag_behind(len).is_none() {
            Err("a write behind the last dagtag")
        } else if c.role == Role::Secondary && told == Some(Role::Secondary) {
            Err("a write from a Secondary")
        } else {
            Ok(())
        }
    }

    /// P_BARRIER.
    pub(crate) fn barrier(&mut self, cx: &mut Ctx<'_>, cidx: usize, number: u32) {
        let c = &mut self.conns[cidx];
        c.recv.back_mut().expect("one epoch is always open").barrier = Some(number);
        c.recv.push_back(RecvEpoch::default());
        if c.recv.len() > limits::MAX_OPEN_EPOCHS {
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "too many open epochs");
        }
        self.recv_epochs_step(cx, cidx);
    }

    /// A write of the epoch with this serial number has ended.
    pub(crate) fn write_left_epoch(&mut self, cx: &mut Ctx<'_>, cidx: usize, epoch: u64) {
        let c = &mut self.conns[cidx];
        let behind_front = usize::try_from(epoch - c.recv_base).expect("few epochs are open");
        c.recv[behind_front].active -= 1;
        self.recv_epochs_step(cx, cidx);
    }

    /// Finish epochs from the oldest on: all written, flushed, acked.
    pub(crate) fn recv_epochs_step(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        loop {
            let Some(front) = self.conns[cidx].recv.front() else { return };
            let Some(number) = front.barrier else { return };
            if front.active > 0 {
                return;
            }
            match front.flushing {
                Some(0) => {}
                Some(_) => return,
                None => {
                    let n = self.start_epoch_flush(cx, cidx);
                    self.conns[cidx].recv.front_mut().expect("looked at above").flushing = Some(n);
                    if n > 0 {
                        return;
                    }
                }
            }
            let epoch = self.conns[cidx].recv.pop_front().expect("looked at above");
            self.conns[cidx].recv_base += 1;
            let set_size = epoch.size + u32::from(broken!(WrongBarrierAck));
            self.send(cx, cidx, None, Packet::BarrierAck(BarrierAck { barrier: number, set_size }));
            if self.conns[cidx].speaks_84() {
                // No peer ack will follow.
                self.forget_kept(cidx, epoch.dagtag);
            }
            self.release_epoch(cx, cidx);
        }
    }

    /// Flush the backing devices of all volumes; the number of flushes started.
    pub(crate) fn start_epoch_flush(&mut self, cx: &mut Ctx<'_>, cidx: usize) -> u32 {
        let node = self.conns[cidx].node();
        let Some(link) = self.conns[cidx].recv_link else { return 0 };
        let mut n = 0;
        for vidx in 0..self.volumes.len() {
            let v = &self.volumes[vidx];
            if v.takes_last_writes() && v.config.disk.disk_flushes && !broken!(BarrierAckBeforeFlush) {
                self.disk(cx, vidx, DiskJob::EpochFlush(node, link), DiskCmd::Flush);
                n += 1;
            }
        }
        n
    }

    pub(crate) fn epoch_flush_done(
        &mut self,
        cx: &mut Ctx<'_>,
        vidx: usize,
        node: NodeId,
        link: LinkId,
        result: Result<(), DiskError>,
    ) {
        if let Err(e) = result {
            self.disk_failed(cx, vidx, &format!("flush for a peer: {e}"));
        }
        let Some(cidx) = self.cidx(node) else { return };
        if self.conns[cidx].recv_link != Some(link) {
            return;
        }
        if result.is_err() {
            // What was acked as written may be lost: the peer must not take this epoch as stable.
            self.drop_link(cx, cidx, ConnState::NetworkFailure, "the local disk failed to flush");
        }
        if let Some(n) = self.conns[cidx].recv.front_mut().and_then(|e| e.flushing.as_mut()) {
            *n -= 1;
        }
        self.recv_epochs_step(cx, cidx);
    }

    /// The oldest epoch is finished: the writes of the next one may go to the disk.
    pub(crate) fn release_epoch(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        let node = self.conns[cidx].node();
        let mut waiting: Vec<(u64, usize)> = self
            .peer_reqs
            .iter()
            .filter(|(_, p)| p.node == node && p.stage == Stage::Epoch)
            .map(|(i, p)| (p.dagtag, i))
            .collect();
        waiting.sort_unstable();
        for (_, index) in waiting {
            // Without a disk a write ends at once, and may release the next epoch from within.
            if self.peer_reqs.get(index).is_some_and(|p| p.node == node && p.stage == Stage::Epoch) {
                self.peer_req_go(cx, index);
            }
        }
    }
}
