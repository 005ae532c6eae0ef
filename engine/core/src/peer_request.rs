//! Work for a peer: what it is, how far it has come, and its writes; acks (wire-protocol.md 10.2, 10.3).

use rkyv::{Archive, Deserialize, Serialize};
use zea_meta::flags::DeviceFlags;
use zea_wire::digest::Digest;
use zea_wire::flags::DpFlags;
use zea_wire::ids::{BlockId, NodeId, VolumeNr};
use zea_wire::packet::{BlockAck, Data, Packet};
use zea_wire::state::{ConnState, DiskState, Role};

use crate::connection::Kept;
use crate::interval::IntervalId;
use crate::io::{BufId, DiskCmd, DiskError, Op, Payload};
use crate::request::write_cmd;
use crate::resource::{Ctx, DiskJob, Resource};
use crate::volume::{Lock, Waiter};

/// What a peer request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// A replicated write.
    Write,
    /// A read for a node without usable data.
    Read,
    /// A resync read for a SyncTarget.
    ResyncRead,
    /// Resync data of a SyncSource, to be written here.
    ResyncWrite,
    /// A read of a SyncTarget of what it has, for the digest that it sends with its request.
    ResyncSum,
    /// A read of the target of a verify, for its digest.
    VerifyTarget,
    /// A read of the source of a verify, for its digest.
    VerifySource,
}

/// How far a peer request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// Waits for its range.
    Range,
    /// Waits for the writes of earlier epochs.
    Epoch,
    /// Waits until the requested dagtag has arrived.
    Dagtag,
    /// Waits for the activity log.
    ActivityLog,
    /// Given to the disk.
    Disk,
    /// Resync data: written, not stable yet.
    Flush,
    /// Read, the digest is being computed.
    Digest,
    /// Resync read: sent, holds its range until the peer wrote it. Read of a verify with 8.4: until the peer compared it.
    Sent,
}

/// A request of a peer.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(crate) struct PeerReq {
    pub(crate) kind: Kind,
    pub(crate) stage: Stage,
    pub(crate) node: NodeId,
    pub(crate) vidx: usize,
    pub(crate) op: Op,
    pub(crate) sector: u64,
    pub(crate) len: u32,
    pub(crate) block_id: BlockId,
    pub(crate) flags: DpFlags,
    pub(crate) payload: Option<Payload>,
    pub(crate) interval: Option<IntervalId>,
    /// Of a resync read: what the target has.
    pub(crate) digest: Option<Digest>,
    /// Of a write: the dagtag behind it. Of a resync read: the dagtag to wait for, of `dagtag_node`.
    pub(crate) dagtag: u64,
    pub(crate) dagtag_node: NodeId,
    /// Of a write: serial number of its epoch on this link.
    pub(crate) epoch: u64,
    /// Of a write: how many arrived before it for the volume.
    pub(crate) serial: u64,
    /// It holds references on activity log extents.
    pub(crate) al: bool,
    /// The connection is gone: finish quietly.
    pub(crate) orphan: bool,
}

impl PeerReq {
    fn lock(&self) -> Lock {
        match self.kind {
            Kind::Write => Lock::PeerWrite(self.node),
            Kind::ResyncWrite => Lock::ResyncWrite(self.node),
            _ => Lock::ResyncRead(self.node),
        }
    }

    pub(crate) fn sectors(&self) -> u64 {
        u64::from(self.len) / 512
    }
}

impl Resource {
    // ---- writes of a peer --------------------------------------------------------------------------------------

    /// P_DATA, P_TRIM, P_ZEROES.
    #[expect(clippy::too_many_arguments, reason = "the fields of one packet")]
    pub(crate) fn peer_write(
        &mut self,
        cx: &mut Ctx<'_>,
        cidx: usize,
        vidx: usize,
        data: Data,
        op: Op,
        len: u32,
        payload: Option<Payload>,
    ) {
        if let Err(why) = self.check_peer_write(cidx, vidx, data.sector, len) {
            if let Some(p) = payload {
                cx.free(p.buf);
            }
            return self.drop_link(cx, cidx, ConnState::ProtocolError, why);
        }
        self.note_use(cx, vidx, len);
        let node = self.conns[cidx].node();
        let c = &mut self.conns[cidx];
        let flags = c.wishes_of_peer(data.dp_flags);
        let dagtag = c.dagtag_behind(len).expect("checked above");
        c.dagtag_received = Some(dagtag);
        c.pds[vidx].peer_seq = data.seq_num;
        c.pds[vidx].received_sectors += u64::from(len) / 512;
        let epoch = c.recv_base + c.recv.len() as u64 - 1;
        let open = c.recv.back_mut().expect("one epoch is always open");
        open.size += 1;
        open.dagtag = dagtag;
        if !self.volumes[vidx].has_disk() {
            if let Some(p) = payload {
                cx.free(p.buf);
            }
            // Its peer ack will name it all the same.
            let kept = Kept::new(dagtag, vidx, data.sector, len, None);
            self.conns[cidx].kept.push_back(kept);
            return self.send_ack(cx, cidx, vidx, data.sector, len, data.block_id, AckKind::Neg);
        }
        self.conns[cidx].recv.back_mut().expect("one epoch is always open").active += 1;
        let v = &mut self.volumes[vidx];
        let serial = v.peer_writes_arrived;
        v.peer_writes_arrived += 1;
        v.peer_writes += 1;
        let origin = self.conns[cidx].pds[vidx].disk;
        if origin < DiskState::Inconsistent || origin == DiskState::DUnknown {
            // It did not write this itself, whatever disk it has by the time this reaches ours.
            self.volumes[vidx].set_out_of_sync(node, data.sector, len);
        }
        if flags.contains(DpFlags::SEND_RECEIVE_ACK) {
            self.send_ack(cx, cidx, vidx, data.sector, len, data.block_id, AckKind::Received);
        }
        let index = self.peer_reqs.insert(PeerReq {
            kind: Kind::Write,
            stage: Stage::Range,
            node,
            vidx,
            op,
            sector: data.sector,
            len,
            block_id: data.block_id,
            flags,
            payload,
            interval: None,
            digest: None,
            dagtag,
            dagtag_node: node,
            epoch,
            serial,
            al: false,
            orphan: false,
        });
        let c = &mut self.conns[cidx];
        c.active_peer_reqs += 1;
        c.kept.push_back(Kept::new(dagtag, vidx, data.sector, len, Some(index)));
        self.set_primary_ind(cx, vidx);
        self.peer_req_go(cx, index);
        self.dagtag_arrived(cx);
    }

    /// A peer writes here: after a crash the activity log must be replayed. That peer's disk has what no other need have from here on.
    fn set_primary_ind(&mut self, _cx: &mut Ctx<'_>, vidx: usize) {
        let v = &mut self.volumes[vidx];
        if v.set_flag(DeviceFlags::PRIMARY_IND, true) | v.set_flag(DeviceFlags::ZEA_WAS_PRIMARY, false) {
            v.meta.push(crate::meta_queue::Step::SuperBlock);
        }
    }

    /// Carry a peer request as far as it goes.
    pub(crate) fn peer_req_go(&mut self, cx: &mut Ctx<'_>, index: usize) {
        self.peer_req_advance(cx, index, false);
    }

    /// As [`Resource::peer_req_go`]; `first`: it was the first write that waits for a range.
    pub(crate) fn peer_req_advance(&mut self, cx: &mut Ctx<'_>, index: usize, first: bool) {
        loop {
            let p = &self.peer_reqs[index];
            let (vidx, sector, len, sectors, lock) = (p.vidx, p.sector, p.len, p.sectors(), p.lock());
            match p.stage {
                Stage::Range => {
                    if !first
                        && self.peer_reqs[index].kind == Kind::Write
                        && !self.volumes[vidx].conflict_waiters.is_empty()
                    {
                        self.volumes[vidx].conflict_waiters.push_back(Waiter::Peer(index));
                        return;
                    }
                    let kind = self.peer_reqs[index].kind;
                    // What is read for a peer includes every write that arrived before, also one that has no range yet.
                    let reads = !matches!(kind, Kind::Write | Kind::ResyncWrite);
                    let behind = reads && self.queued_write(vidx, sector, sectors);
                    if behind || self.conflict(vidx, sector, sectors, lock) {
                        let v = &mut self.volumes[vidx];
                        match self.peer_reqs[index].kind {
                            // Tried as the first of its queue it stays the first.
                            Kind::Write if first => v.conflict_waiters.push_front(Waiter::Peer(index)),
                            Kind::Write => v.conflict_waiters.push_back(Waiter::Peer(index)),
                            _ => v.resync_waiters.push_back(index),
                        }
                        return;
                    }
                    let id = self.volumes[vidx].lock_range(sector, sectors, lock);
                    let p = &mut self.peer_reqs[index];
                    p.interval = Some(id);
                    p.stage = if p.kind == Kind::Write { Stage::Epoch } else { Stage::Disk };
                    if p.stage == Stage::Disk {
                        return self.peer_req_submit(cx, index);
                    }
                }
                Stage::Epoch => {
                    if !self.epoch_open(index) {
                        return;
                    }
                    self.peer_reqs[index].stage = Stage::ActivityLog;
                }
                Stage::ActivityLog => {
                    if self.volumes[vidx].takes_last_writes() {
                        let marked = self.volumes[vidx].stable_flags.contains(DeviceFlags::PRIMARY_IND);
                        // A Primary without a disk waits for the generation that is being written here.
                        let named = !self.volumes[vidx].new_uuid_running || self.role == Role::Primary;
                        if !marked || !named || !self.al_get(vidx, sector, len) {
                            self.volumes[vidx].al_waiters.push_back(Waiter::Peer(index));
                            return;
                        }
                        self.peer_reqs[index].al = true;
                    }
                    return self.peer_req_submit(cx, index);
                }
                Stage::Dagtag => {
                    if !self.dagtag_reached(index) || !self.may_serve(cx, index) {
                        return;
                    }
                    self.peer_reqs[index].stage = Stage::Range;
                    if let Some(cidx) = self.cidx(self.peer_reqs[index].node) {
                        self.mark_relied_on(cx, cidx);
                    }
                }
                Stage::Disk | Stage::Flush | Stage::Digest | Stage::Sent => return,
            }
        }
    }

    /// A peer's write in this range waits for its turn.
    pub(crate) fn queued_write(&self, vidx: usize, sector: u64, sectors: u64) -> bool {
        self.volumes[vidx].conflict_waiters.iter().any(|waiter| match waiter {
            Waiter::Request(_) => false,
            Waiter::Peer(i) => {
                self.peer_reqs.get(*i).is_some_and(|p| p.sector < sector + sectors && sector < p.sector + p.sectors())
            }
        })
    }

    /// All epochs before that of this write are finished.
    fn epoch_open(&self, index: usize) -> bool {
        let p = &self.peer_reqs[index];
        if broken!(SkipEpochWait) {
            return true;
        }
        let Some(cidx) = self.cidx(p.node) else { return true };
        p.epoch == self.conns[cidx].recv_base
    }

    pub(crate) fn peer_req_submit(&mut self, cx: &mut Ctx<'_>, index: usize) {
        let p = &mut self.peer_reqs[index];
        p.stage = Stage::Disk;
        let (vidx, sector, len) = (p.vidx, p.sector, p.len);
        let cmd = match p.kind {
            Kind::Write => {
                let fua = p.flags.contains(DpFlags::FUA) && self.volumes[vidx].config.disk.disk_flushes;
                write_cmd(p.op, sector, len, p.payload, fua)
            }
            Kind::ResyncWrite => write_cmd(Op::Write, sector, len, p.payload, false),
            _ => DiskCmd::ReadNew { sector, len },
        };
        if self.peer_reqs[index].kind == Kind::ResyncWrite {
            let node = self.peer_reqs[index].node;
            for n in 0..self.conns.len() {
                let other = self.conns[n].node();
                if other != node {
                    self.volumes[vidx].set_out_of_sync(other, sector, len);
                }
            }
            self.kept_is_overwritten(vidx, sector, len);
        }
        if !self.volumes[vidx].takes_last_writes() {
            return self.peer_disk_done(cx, index, Err(DiskError::Io(5)), None);
        }
        self.disk(cx, vidx, DiskJob::Peer(index), cmd);
    }

    pub(crate) fn peer_disk_done(
        &mut self,
        cx: &mut Ctx<'_>,
        index: usize,
        result: Result<(), DiskError>,
        buf: Option<BufId>,
    ) {
        match self.peer_reqs[index].kind {
            Kind::Write => self.peer_write_done(cx, index, result),
            Kind::Read | Kind::ResyncRead => self.peer_read_done(cx, index, result, buf),
            Kind::ResyncWrite => self.resync_write_done(cx, index, result),
            Kind::ResyncSum => self.resync_sum_read(cx, index, result, buf),
            Kind::VerifyTarget | Kind::VerifySource => self.verify_read_done(cx, index, result, buf),
        }
    }

    fn peer_write_done(&mut self, cx: &mut Ctx<'_>, index: usize, result: Result<(), DiskError>) {
        if result == Err(DiskError::Unsupported) && self.peer_reqs[index].op == Op::Discard {
            self.peer_reqs[index].op = Op::WriteZeroes { unmap: false };
            let p = &self.peer_reqs[index];
            let (vidx, cmd) = (p.vidx, write_cmd(p.op, p.sector, p.len, None, false));
            return self.disk(cx, vidx, DiskJob::Peer(index), cmd);
        }
        let (vidx, sector, len) = (self.peer_reqs[index].vidx, self.peer_reqs[index].sector, self.peer_reqs[index].len);
        if let Err(e) = result {
            self.disk_failed(cx, vidx, &format!("write of {len} bytes at sector {sector} for a peer: {e}"));
        }
        let p = self.peer_req_end(cx, index);
        let Some(cidx) = self.cidx(p.node) else { return };
        if p.orphan {
            self.write_left_epoch(cx, cidx, p.epoch);
            return self.orphan_done(cx, cidx, &p);
        }
        let at = self.conns[cidx].kept.binary_search_by_key(&p.dagtag, |k| k.dagtag).expect("kept until its peer ack");
        let kept = &mut self.conns[cidx].kept[at];
        kept.active = None;
        kept.al = p.al;
        if p.flags.contains(DpFlags::SEND_WRITE_ACK) || result.is_err() {
            let kind = if result.is_ok() { AckKind::Written } else { AckKind::Neg };
            self.send_ack(cx, cidx, vidx, sector, len, p.block_id, kind);
        }
        self.write_left_epoch(cx, cidx, p.epoch);
    }

    /// Take a finished request out of every table.
    pub(crate) fn peer_req_end(&mut self, cx: &mut Ctx<'_>, index: usize) -> PeerReq {
        let p = self.peer_reqs.remove(index);
        let v = &mut self.volumes[p.vidx];
        v.peer_writes -= usize::from(p.kind == Kind::Write);
        v.retry_waiters |= p.kind == Kind::Write;
        if let Some(id) = p.interval {
            v.intervals.remove(id);
            v.retry_waiters = true;
        }
        if let Some(payload) = p.payload
            && !broken!(LeakBuffers)
        {
            cx.free(payload.buf);
        }
        if let Some(cidx) = self.cidx(p.node) {
            self.conns[cidx].active_peer_reqs -= 1;
        }
        p
    }

    /// A write of a connection that is gone has ended: nobody will say who else has it.
    fn orphan_done(&mut self, cx: &mut Ctx<'_>, cidx: usize, p: &PeerReq) {
        if p.kind == Kind::Write {
            self.mark_unconfirmed(cx, p.vidx, p.node, p.sector, p.len);
        }
        if p.al {
            self.al_put(p.vidx, p.sector, p.len);
        }
        self.lost_peer_drained(cx, cidx);
    }

    /// Requests of a link that is gone. Writes that arrived are carried out, so that what was received and what is on the disk are
    /// the same when survivors compare; everything else ends.
    pub(crate) fn peer_reqs_lost_link(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        let node = self.conns[cidx].node();
        let mut mine: Vec<(u64, usize)> =
            self.peer_reqs.iter().filter(|(_, p)| p.node == node && !p.orphan).map(|(i, p)| (p.dagtag, i)).collect();
        mine.sort_unstable();
        for (_, index) in mine {
            self.peer_req_orphaned(cx, index);
        }
    }

    /// Nobody waits for this request any more.
    pub(crate) fn peer_req_orphaned(&mut self, cx: &mut Ctx<'_>, index: usize) {
        let p = &mut self.peer_reqs[index];
        p.orphan = true;
        match (p.kind, p.stage) {
            (Kind::Write, _) | (_, Stage::Disk | Stage::Flush | Stage::Digest) => {}
            _ => {
                let vidx = p.vidx;
                self.volumes[vidx].resync_waiters.retain(|&i| i != index);
                self.peer_req_end(cx, index);
            }
        }
    }

    // ---- acks ------------------------------------------------------------------------------------------------------

    #[expect(clippy::too_many_arguments, reason = "the fields of one packet")]
    pub(crate) fn send_ack(
        &mut self,
        cx: &mut Ctx<'_>,
        cidx: usize,
        vidx: usize,
        sector: u64,
        len: u32,
        block_id: BlockId,
        kind: AckKind,
    ) {
        let seq_num = self.conns[cidx].pds[vidx].next_seq();
        let ack = BlockAck { sector, block_id, blksize: len, seq_num };
        let packet = match kind {
            AckKind::Received => Packet::RecvAck(ack),
            AckKind::Written => Packet::WriteAck(ack),
            AckKind::ResyncWritten => Packet::RsWriteAck(ack),
            AckKind::Neg => Packet::NegAck(ack),
            AckKind::NegRead => Packet::NegDreply(ack),
            AckKind::NegResync => Packet::NegRsDreply(ack),
            AckKind::ResyncFailed if self.conns[cidx].echoes_ids() => Packet::RsNegAck(ack),
            AckKind::ResyncFailed => Packet::NegAck(ack),
            AckKind::Cancel if self.conns[cidx].tells_out_of_sync() => Packet::RsCancel(ack),
            AckKind::Cancel => Packet::NegRsDreply(ack),
            AckKind::InSync => Packet::RsIsInSync(ack),
        };
        let nr: VolumeNr = self.volumes[vidx].nr;
        self.send(cx, cidx, Some(nr), packet);
    }
}

/// The ack-type packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AckKind {
    Received,
    Written,
    ResyncWritten,
    Neg,
    NegRead,
    NegResync,
    ResyncFailed,
    Cancel,
    InSync,
}
