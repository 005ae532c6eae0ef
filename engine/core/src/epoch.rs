//! Epochs and peer acks of a Primary: what is stable where, and who is told (wire-protocol.md 10.1, 10.5).

use zea_wire::ids::NodeId;
use zea_wire::packet::{BarrierAck, Packet, PeerAck};
use zea_wire::state::{ConnState, DiskState, Role};

use crate::config::Protocol;
use crate::connection::Connection;
use crate::limits;
use crate::request::{Local, WriteReq};
use crate::resource::{Ctx, PendingPeerAck, Resource};

impl Resource {
    /// New writes join the next epoch.
    pub(crate) fn close_epoch(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        self.epoch_writes = 0;
    }

    /// No peer has too many unacked barriers: nobody asked for this end, so it can wait.
    pub(crate) fn may_close_epoch(&self) -> bool {
        self.conns.iter().all(|c| c.send.unacked.len() < limits::MAX_UNACKED_BARRIERS)
    }

    /// Close an epoch that is old enough, and send the barriers of epochs that are closed.
    pub(crate) fn epochs_step(&mut self, cx: &mut Ctx<'_>) {
        if self.epoch_writes > 0 && cx.now >= self.epoch_since.plus_ms(limits::EPOCH_AGE_MS) && self.may_close_epoch() {
            self.close_epoch();
        }
        for cidx in 0..self.conns.len() {
            if self.conns[cidx].send.open.is_some_and(|(nr, _)| nr != self.epoch) {
                self.send_barrier(cx, cidx);
            }
        }
        let more_may_come =
            |p: PendingPeerAck| self.role == Role::Primary && cx.now < p.since.plus_ms(limits::PEER_ACK_DELAY_MS);
        if self.peer_ack.is_some_and(|p| !more_may_come(p)) {
            self.send_peer_ack(cx);
        }
    }

    /// P_BARRIER_ACK.
    pub(crate) fn barrier_ack(&mut self, cx: &mut Ctx<'_>, cidx: usize, ack: BarrierAck) {
        let node = self.conns[cidx].node();
        match self.conns[cidx].send.unacked.pop_front() {
            Some((nr, count, _)) if nr == ack.barrier && count == ack.set_size => {}
            _ => {
                return self.drop_link(
                    cx,
                    cidx,
                    ConnState::ProtocolError,
                    "P_BARRIER_ACK does not fit the oldest epoch",
                );
            }
        }
        let mut acked = Vec::new();
        for &index in &self.transfer_log {
            let w = &mut self.writes[index];
            if w.epoch == ack.barrier && w.sent.contains(node) {
                w.unstable.remove(node);
                if w.waits.contains(node) {
                    w.waits.remove(node);
                    w.ok.insert(node);
                }
                acked.push(index);
            } else if w.epoch.wrapping_sub(ack.barrier) as i32 > 0 {
                break;
            }
        }
        for index in acked {
            if self.writes.contains(index) {
                self.request_step(cx, index);
            }
        }
        self.flushes_heard(cx, node, Some(ack.barrier));
    }

    pub(crate) fn collect_peer_ack(&mut self, cx: &mut Ctx<'_>, w: &WriteReq) {
        if w.sent.is_empty() {
            return;
        }
        let mut mask = w.ok;
        if w.local == Local::Done {
            mask.insert(self.config.node_id);
        }
        if self.peer_ack.is_some_and(|p| p.mask != mask || p.sent != w.sent) {
            self.send_peer_ack(cx);
        }
        let now = cx.now;
        let first = w.dagtag - u64::from(w.req.len) / 512;
        let p = self.peer_ack.get_or_insert(PendingPeerAck {
            mask,
            sent: w.sent,
            first_dagtag: first,
            last_dagtag: 0,
            since: now,
        });
        p.last_dagtag = w.dagtag;
        if p.last_dagtag - p.first_dagtag >= limits::PEER_ACK_WINDOW_SECTORS {
            self.send_peer_ack(cx);
        }
    }

    /// Tell every peer that got the writes who has them (wire-protocol.md 10.5).
    pub(crate) fn send_peer_ack(&mut self, cx: &mut Ctx<'_>) {
        let Some(p) = self.peer_ack.take() else { return };
        for cidx in self.up_conns() {
            if p.sent.contains(self.conns[cidx].node()) && !self.conns[cidx].speaks_84() {
                self.send(cx, cidx, None, Packet::PeerAck(PeerAck { mask: p.mask, dagtag: p.last_dagtag }));
            }
        }
    }

    /// The own UpToDate disk, or another connected UpToDate peer, is known to have a write that this node has not confirmed.
    fn is_held_elsewhere(&self, w: &WriteReq, node: NodeId) -> bool {
        // A disk that is being let go has it, too, and can be attached again.
        let has = matches!(self.volumes[w.vidx].disk, DiskState::UpToDate | DiskState::Detaching);
        let here = w.local == Local::Done && has;
        let confirmed = |c: &Connection| {
            let acked = c.config.net.protocol != Protocol::A && w.ok.contains(c.node());
            w.sent.contains(c.node()) && (acked || !w.unstable.contains(c.node()))
        };
        here || self.conns.iter().any(|c| c.node() != node && self.is_up_to_date(c.node(), w.vidx) && confirmed(c))
    }

    /// A peer is gone: what it has not confirmed as stable is out of sync; what waited for it goes on. One that ignores bits at equal
    /// generations does not meet the same one again.
    pub(crate) fn writes_lost_peer(&mut self, cx: &mut Ctx<'_>, node: NodeId, ignores_bits: bool) {
        self.close_epoch();
        if let Some(p) = self.peer_ack.as_mut() {
            // Peer acks speak of writes sent on this link only.
            p.sent.remove(node);
        }
        let log: Vec<usize> = self.transfer_log.iter().copied().collect();
        for vidx in 0..self.volumes.len() {
            let known = self.volumes[vidx].uuids.bitmap[node.index()] & !1 != 0;
            let unstable = log.iter().map(|&index| &self.writes[index]);
            let mut unstable = unstable.filter(|w| w.vidx == vidx && w.unstable.contains(node));
            let differs = ignores_bits && !known && unstable.clone().next().is_some();
            // With protocol A also what waits for others only: it will be acknowledged when this peer may lack it.
            let waits = unstable.clone().any(|w| w.waits.contains(node) || !w.completed);
            let lacks = unstable.any(|w| self.is_held_elsewhere(w, node));
            if lacks {
                self.volumes[vidx].lacking.insert(node);
            }
            if waits || differs || (lacks && self.serves_peers(vidx)) {
                self.new_generation_now(cx, vidx);
            }
        }
        for &index in &log {
            let w = &mut self.writes[index];
            w.sent.remove(node);
            let (vidx, sector, len) = (w.vidx, w.req.sector, w.req.len);
            let confirmed = !w.unstable.contains(node);
            if confirmed && (w.unstable.is_empty() || !w.ok.contains(node)) {
                continue;
            }
            // Also what it has confirmed: it may be resynced now from a peer that does not have it yet.
            w.unstable.remove(node);
            w.waits.remove(node);
            w.ok.remove(node);
            let here = w.local == Local::Done && self.volumes[vidx].disk == DiskState::UpToDate;
            self.volumes[vidx].writes_lost |= !confirmed && w.completed && !here && w.ok.is_empty();
            if !broken!(SkipBitmap) {
                self.volumes[vidx].set_out_of_sync(node, sector, len);
            }
        }
        for index in log {
            if self.writes.contains(index) {
                self.request_step(cx, index);
            }
        }
        self.flushes_heard(cx, node, None);
        self.reads_lost_peer(cx, node);
    }
}
