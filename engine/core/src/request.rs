//! Front-end requests: admission, the write path of a Primary, and the transfer log (wire-protocol.md 10.1).

use std::collections::VecDeque;

use rkyv::{Archive, Deserialize, Serialize};
use zea_wire::flags::DpFlags;
use zea_wire::ids::{BlockId, NodeId, NodeMask};
use zea_wire::packet::{Barrier, BlockAck, Dagtag, Data, Packet, Trim};
use zea_wire::state::{ConnState, DiskState, ReplState, Role};

use crate::activity_log::{self, Get};
use crate::config::Protocol;
use crate::event::Severity;
use crate::interval::IntervalId;
use crate::io::{DiskCmd, DiskError, IoError, Op, Payload, ReqId, Request, Time};
use crate::limits;
use crate::quorum::Gate;
use crate::resource::{Ctx, DiskJob, Resource};
use crate::volume::{Lock, Waiter};

/// The local part of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) enum Local {
    /// There is no local disk.
    None,
    /// Given to the disk.
    Pending,
    /// No space; tried again until the instant.
    NoSpace { until: Time, retry_at: Time },
    /// On the disk.
    Done,
    /// Failed.
    Failed(DiskError),
}

/// A write of the front end, from admission until it left the transfer log.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(crate) struct WriteReq {
    pub(crate) req: Request,
    pub(crate) vidx: usize,
    pub(crate) epoch: u32,
    /// Dagtag behind the last sector.
    pub(crate) dagtag: u64,
    pub(crate) interval: Option<IntervalId>,
    pub(crate) local: Local,
    /// Peers it was sent to.
    pub(crate) sent: NodeMask,
    /// Peers whose answer the completion waits for.
    pub(crate) waits: NodeMask,
    /// Peers that have the data.
    pub(crate) ok: NodeMask,
    /// Peers whose barrier ack is outstanding.
    pub(crate) unstable: NodeMask,
    pub(crate) completed: bool,
    /// It holds references on activity log extents.
    pub(crate) al: bool,
    pub(crate) since: Time,
}

/// A read of the front end.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(crate) struct ReadReq {
    pub(crate) req: Request,
    pub(crate) vidx: usize,
    /// The peer that was asked.
    pub(crate) asked: Option<NodeId>,
    /// Peers that could not answer.
    pub(crate) failed: NodeMask,
}

/// A flush of the front end.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(crate) struct FlushReq {
    pub(crate) id: ReqId,
    pub(crate) vidx: usize,
    pub(crate) local: bool,
    /// Peers whose barrier ack it waits for, and the number of the last such epoch.
    pub(crate) waits: NodeMask,
    pub(crate) epoch: u32,
    pub(crate) failed: bool,
}

impl Resource {
    pub(crate) fn front_end_request(&mut self, cx: &mut Ctx<'_>, req: Request) {
        let Some(vidx) = self.vidx(req.volume) else {
            return cx.complete(req.id, Err(IoError::NoVolume));
        };
        if let Err(e) = self.check_request(vidx, &req) {
            return cx.complete(req.id, Err(e));
        }
        self.note_use(cx, vidx, req.len);
        match self.quorum_gate(vidx) {
            Gate::Open => {}
            Gate::Waits => return self.volumes[vidx].held.push_back(req),
            Gate::Fails => return cx.complete(req.id, Err(IoError::Io)),
        }
        match req.op {
            Op::Read => self.read(cx, vidx, req),
            Op::Flush => self.flush(cx, vidx, req.id),
            Op::Write | Op::Discard | Op::WriteZeroes { .. } => self.write(cx, vidx, req),
        }
    }

    fn check_request(&self, vidx: usize, req: &Request) -> Result<(), IoError> {
        let v = &self.volumes[vidx];
        if self.role != Role::Primary {
            return Err(IoError::NotPrimary);
        }
        if v.closing.is_some() && self.down.is_some() {
            return Err(IoError::NoVolume);
        }
        let waiting = v.held.len() + v.conflict_waiters.len() + v.al_waiters.len();
        if self.writes.len() + self.reads.len() + waiting >= limits::MAX_REQUESTS {
            return Err(IoError::Busy);
        }
        let max = match req.op {
            Op::Flush => return Ok(()),
            Op::Read | Op::Write => self.max_bio_bytes(),
            Op::Discard | Op::WriteZeroes { .. } => limits::MAX_DISCARD_BYTES,
        };
        let end = req.sector.checked_add(u64::from(req.len) / 512);
        let payload_ok = !matches!(req.op, Op::Read | Op::Write) || req.payload.is_some_and(|p| p.len == req.len);
        let ok = req.len > 0
            && req.len.is_multiple_of(512)
            && req.len <= max
            && end.is_some_and(|e| e <= v.size_sectors)
            && payload_ok;
        if ok { Ok(()) } else { Err(IoError::Invalid) }
    }

    // ---- writes ------------------------------------------------------------------------------------------------

    /// Requests of this volume wait for a state that is expected soon.
    pub(crate) fn holds(&self, vidx: usize) -> bool {
        let v = &self.volumes[vidx];
        v.hold_until.is_some() || matches!(v.disk, DiskState::Attaching | DiskState::Negotiating)
    }

    /// Such a request waits for a new UUID, for bitmaps, for a disk, for a peer that must not miss it, or for the last writes of a former Primary:
    /// that one has acknowledged them, and a read must not miss them.
    pub(crate) fn is_held(&self, vidx: usize, op: Op) -> bool {
        let v = &self.volumes[vidx];
        let early = match op {
            Op::Read => v.peer_writes > 0,
            _ => v.awaits_uuid() || self.tells_former(vidx) || self.bitmaps_hold_writes(vidx),
        };
        let gated = self.quorum_gate(vidx) == Gate::Waits;
        early || gated || v.compare_pending || (!self.has_data(vidx) && self.holds(vidx))
    }

    pub(crate) fn write(&mut self, cx: &mut Ctx<'_>, vidx: usize, req: Request) {
        if self.is_held(vidx, req.op) || !self.volumes[vidx].held.is_empty() {
            self.volumes[vidx].held.push_back(req);
            return;
        }
        if !self.has_data(vidx) || self.quorum_gate(vidx) == Gate::Fails {
            return cx.complete(req.id, Err(IoError::Io));
        }
        if !self.volumes[vidx].conflict_waiters.is_empty() || self.transfer_log.len() >= limits::MAX_TRANSFER_LOG {
            self.volumes[vidx].conflict_waiters.push_back(Waiter::Request(req));
            return;
        }
        self.admit(cx, vidx, req);
    }

    /// Let the requests go that waited for a new UUID or for a disk.
    pub(crate) fn release_held(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        let held: VecDeque<Request> = std::mem::take(&mut self.volumes[vidx].held);
        for req in held {
            self.front_end_request(cx, req);
        }
    }

    /// Range and activity log, then submit; or wait. True if it was submitted or waits for the activity log.
    pub(crate) fn admit(&mut self, cx: &mut Ctx<'_>, vidx: usize, req: Request) -> bool {
        if self.role != Role::Primary {
            // It waited while this node was demoted.
            cx.complete(req.id, Err(IoError::NotPrimary));
            return true;
        }
        let gated = self.quorum_gate(vidx) != Gate::Open;
        if gated || !self.has_data(vidx) || self.tells_former(vidx) || self.bitmaps_hold_writes(vidx) {
            // It waited while the last good disk failed: it waits for the next one, or fails. Or it has to wait for a peer.
            self.write(cx, vidx, req);
            return true;
        }
        // A peer may have been lost while it waited: that one must not know the generation that this belongs to.
        if std::mem::take(&mut self.volumes[vidx].new_uuid_needed) && self.new_current_uuid(cx, vidx) {
            self.volumes[vidx].held.push_back(req);
            return true;
        }
        let sectors = u64::from(req.len) / 512;
        if self.conflict(vidx, req.sector, sectors, Lock::AppWrite) {
            // Whoever comes here is the first that waits: later ones queue behind.
            self.volumes[vidx].conflict_waiters.push_front(Waiter::Request(req));
            return false;
        }
        if self.volumes[vidx].has_disk() && !broken!(SkipActivityLog) && !self.al_get(vidx, req.sector, req.len) {
            self.volumes[vidx].al_waiters.push_back(Waiter::Request(req));
            return true;
        }
        self.submit(cx, vidx, req);
        true
    }

    pub(crate) fn conflict(&self, vidx: usize, sector: u64, sectors: u64, lock: Lock) -> bool {
        self.volumes[vidx].intervals.conflicts(sector, sectors).any(|i| i.kind.excludes(lock))
    }

    /// Take references on every activity log extent of a range, or none. None either before the super block is true.
    pub(crate) fn al_get(&mut self, vidx: usize, sector: u64, len: u32) -> bool {
        if self.lacks_earlier_writes(vidx) {
            self.volumes[vidx].becomes_inconsistent();
            self.state_changed = true;
        }
        if self.volumes[vidx].overclaims() || self.volumes[vidx].growing > 0 {
            return false;
        }
        let Some(a) = self.volumes[vidx].attached.as_mut() else { return false };
        let got = a.al.try_get_range(activity_log::extents_of(sector, u64::from(len) / 512));
        match got {
            Get::Active => return true,
            // Everything is in use: let the transfer log drain, and try again when a reference is dropped.
            Get::Starving if self.epoch_writes > 0 => self.close_epoch(),
            Get::Starving => {}
            Get::Miss | Get::Pending => self.volumes[vidx].meta.want_al(),
        }
        false
    }

    pub(crate) fn al_put(&mut self, vidx: usize, sector: u64, len: u32) {
        let v = &mut self.volumes[vidx];
        let Some(a) = v.attached.as_mut() else { return };
        a.al.put_range(activity_log::extents_of(sector, u64::from(len) / 512));
        v.retry_waiters |= !v.al_waiters.is_empty();
    }

    /// The write goes to the local disk and to the peers, in this turn.
    fn submit(&mut self, cx: &mut Ctx<'_>, vidx: usize, req: Request) {
        let sectors = u64::from(req.len) / 512;
        let has_disk = self.volumes[vidx].has_disk();
        if self.epoch_writes == 0 {
            self.epoch_since = cx.now;
        }
        self.epoch_writes += 1;
        self.dagtag += sectors;
        let interval = has_disk.then(|| self.volumes[vidx].lock_range(req.sector, sectors, Lock::AppWrite));
        let index = self.writes.insert(WriteReq {
            req,
            vidx,
            epoch: self.epoch,
            dagtag: self.dagtag,
            interval,
            local: if has_disk { Local::Pending } else { Local::None },
            sent: NodeMask::default(),
            waits: NodeMask::default(),
            ok: NodeMask::default(),
            unstable: NodeMask::default(),
            completed: false,
            al: has_disk && !broken!(SkipActivityLog),
            since: cx.now,
        });
        self.transfer_log.push_back(index);
        self.volumes[vidx].written_bytes += u64::from(req.len);
        for cidx in 0..self.conns.len() {
            self.submit_to_peer(cx, cidx, index);
            if !self.conns[cidx].is_up() && self.conns[cidx].ignores_bits {
                // It left while this request waited for its turn.
                self.rename_what_differs(cx, cidx);
            }
        }
        if has_disk {
            self.write_locally(cx, index);
        }
        let ends = self.epoch_writes >= limits::MAX_EPOCH_SIZE || self.waits_for_its_epoch(index);
        if ends && self.may_close_epoch() {
            self.close_epoch();
        }
        self.request_step(cx, index);
    }

    fn write_locally(&mut self, cx: &mut Ctx<'_>, index: usize) {
        let w = &mut self.writes[index];
        w.local = Local::Pending;
        let (req, vidx) = (w.req, w.vidx);
        let fua = req.fua && self.volumes[vidx].config.disk.disk_flushes;
        let cmd = write_cmd(req.op, req.sector, req.len, req.payload, fua);
        self.disk(cx, vidx, DiskJob::Write(index), cmd);
    }

    fn submit_to_peer(&mut self, cx: &mut Ctx<'_>, cidx: usize, index: usize) {
        let (vidx, req) = (self.writes[index].vidx, self.writes[index].req);
        let node = self.conns[cidx].node();
        let c = &self.conns[cidx];
        if !(c.is_up() && c.pds[vidx].replicates()) {
            let tell =
                c.is_up() && c.pds[vidx].disk == DiskState::Outdated && c.pds[vidx].repl == ReplState::Established;
            self.mark_missing(cx, cidx, vidx, req.sector, req.len);
            self.volumes[vidx].exposed_weak.insert(node);
            if tell {
                self.conns[cidx].pds[vidx].told_out_of_sync = true;
                self.send_out_of_sync(cx, cidx, vidx, req.sector, req.len);
            }
            return;
        }
        self.open_send_epoch(cx, cidx, index);
        // Without UpToDate data here the copies of the peers are all there is: nothing is done before it is written there.
        let own_copy = self.volumes[vidx].disk == DiskState::UpToDate;
        let protocol = if own_copy { self.conns[cidx].write_protocol() } else { Protocol::C };
        let mut flags = self.conns[cidx].wishes(protocol, req.fua);
        let pd = &mut self.conns[cidx].pds[vidx];
        pd.sent_sectors += u64::from(req.len) / 512;
        let data = |dp_flags, seq_num| Data { sector: req.sector, block_id: BlockId(index as u64), seq_num, dp_flags };
        let trim = |dp_flags, seq_num| Trim {
            sector: req.sector,
            block_id: BlockId(index as u64),
            seq_num,
            dp_flags,
            size: req.len,
        };
        let seq = pd.next_seq();
        let (packet, payload) = match req.op {
            Op::Discard => {
                flags.set(DpFlags::DISCARD, true);
                (Packet::Trim(trim(flags, seq)), None)
            }
            Op::WriteZeroes { unmap } => {
                flags.set(DpFlags::ZEROES, true);
                if unmap {
                    flags.set(DpFlags::DISCARD, true);
                }
                (Packet::Zeroes(trim(flags, seq)), None)
            }
            Op::Write | Op::Read | Op::Flush => (Packet::Data(data(flags, seq)), req.payload),
        };
        self.send_payload(cx, cidx, Some(self.volumes[vidx].nr), packet, payload);
        let w = &mut self.writes[index];
        w.sent.insert(node);
        w.unstable.insert(node);
        if protocol == Protocol::A {
            w.ok.insert(node);
        } else {
            w.waits.insert(node);
        }
    }

    /// The barrier of the epoch before, and the dagtag, ahead of a write.
    fn open_send_epoch(&mut self, cx: &mut Ctx<'_>, cidx: usize, index: usize) {
        let w = &self.writes[index];
        let (epoch, end) = (w.epoch, w.dagtag);
        let start = end - u64::from(w.req.len) / 512;
        if self.conns[cidx].send.open.is_some_and(|(nr, _)| nr != epoch) {
            self.send_barrier(cx, cidx);
        }
        self.tell_dagtag(cx, cidx, start);
        let c = &mut self.conns[cidx];
        c.dagtag_sent = Some(end);
        let open = c.send.open.get_or_insert((epoch, 0));
        open.1 += 1;
    }

    /// Tell a peer where this node's writes stand, if the peer does not know.
    pub(crate) fn send_dagtag(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        self.tell_dagtag(cx, cidx, self.dagtag);
    }

    /// Tell also the peers that writes passed by. A node that has just connected knows of those writes, and may be resynced from one of
    /// these peers: that one waits until it knows of them, too (wire-protocol.md 11.1), and no write may come any more that tells.
    pub(crate) fn send_dagtags(&mut self, cx: &mut Ctx<'_>) {
        for cidx in self.up_conns() {
            if self.conns[cidx].keeps_bits() {
                self.send_dagtag(cx, cidx);
            }
        }
    }

    fn tell_dagtag(&mut self, cx: &mut Ctx<'_>, cidx: usize, dagtag: u64) {
        let c = &mut self.conns[cidx];
        if c.dagtag_sent != Some(dagtag) && !c.speaks_84() {
            c.dagtag_sent = Some(dagtag);
            self.send(cx, cidx, None, Packet::Dagtag(Dagtag { dagtag }));
        }
    }

    pub(crate) fn send_barrier(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        let now = cx.now;
        let Some((nr, count)) = self.conns[cidx].send.open.take() else { return };
        self.conns[cidx].send.unacked.push_back((nr, count, now));
        self.send(cx, cidx, None, Packet::Barrier(Barrier { barrier: nr }));
    }

    // ---- completion --------------------------------------------------------------------------------------------

    pub(crate) fn local_write_done(&mut self, cx: &mut Ctx<'_>, index: usize, result: Result<(), DiskError>) {
        let vidx = self.writes[index].vidx;
        match result {
            Ok(()) => self.writes[index].local = Local::Done,
            Err(DiskError::NoSpace) if self.volumes[vidx].disk >= DiskState::Inconsistent => {
                return self.no_space(cx, index);
            }
            Err(DiskError::Unsupported) if self.writes[index].req.op == Op::Discard => {
                // A discard that the device does not know changes nothing: replicas would differ, so write zeroes.
                self.writes[index].req.op = Op::WriteZeroes { unmap: false };
                return self.write_locally(cx, index);
            }
            Err(e) => {
                self.writes[index].local = Local::Failed(e);
                let r = self.writes[index].req;
                self.disk_failed(cx, vidx, &format!("write of {} bytes at sector {}: {e}", r.len, r.sector));
            }
        }
        self.release_interval(index);
        self.request_step(cx, index);
    }

    pub(crate) fn release_interval(&mut self, index: usize) {
        let vidx = self.writes[index].vidx;
        if let Some(id) = self.writes[index].interval.take() {
            self.volumes[vidx].intervals.remove(id);
            self.volumes[vidx].retry_waiters = true;
        }
    }

    /// The backing device is full. Another UpToDate replica: this disk goes. The last one: wait, bounded, then fail.
    fn no_space(&mut self, cx: &mut Ctx<'_>, index: usize) {
        let vidx = self.writes[index].vidx;
        if self.writes[index].ok.iter().any(|n| self.is_up_to_date(n, vidx)) {
            self.writes[index].local = Local::Failed(DiskError::NoSpace);
            self.disk_failed(cx, vidx, "no space left on the backing device; another replica is UpToDate");
            self.release_interval(index);
            return self.request_step(cx, index);
        }
        let wait_ms = self.volumes[vidx].config.disk.enospc_wait_ms;
        let until = match self.writes[index].local {
            Local::NoSpace { until, .. } => until,
            _ => {
                cx.notice(Severity::Error, format!("volume {}: no space left on the backing device; writes wait up to {wait_ms} ms: free some space", self.volumes[vidx].nr));
                cx.now.plus_ms(wait_ms)
            }
        };
        let until = self.no_space_until(index, until);
        if cx.now >= until {
            self.lacks_space(cx, index);
            return self.request_step(cx, index);
        }
        self.no_space = true;
        self.writes[index].local = Local::NoSpace { until, retry_at: cx.now.plus_ms(100) };
    }

    /// A write has failed on a disk that goes on, or that is let go in order: what it lacks is marked towards everybody.
    fn lacks_space(&mut self, cx: &mut Ctx<'_>, index: usize) {
        self.writes[index].local = Local::Failed(DiskError::NoSpace);
        self.release_interval(index);
        let (vidx, r) = (self.writes[index].vidx, self.writes[index].req);
        for cidx in 0..self.conns.len() {
            self.mark_missing(cx, cidx, vidx, r.sector, r.len);
        }
    }

    fn no_space_until(&self, index: usize, fresh: Time) -> Time {
        let first = self.writes[index].since.plus_ms(self.volumes[self.writes[index].vidx].config.disk.enospc_wait_ms);
        fresh.min(first)
    }

    /// The disk goes: writes that wait for space on it have failed there, and it may go in order.
    pub(crate) fn give_up_space(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        let waiting: Vec<usize> = self
            .writes
            .iter()
            .filter(|(_, w)| w.vidx == vidx && matches!(w.local, Local::NoSpace { .. }))
            .map(|(i, _)| i)
            .collect();
        for &index in &waiting {
            self.lacks_space(cx, index);
        }
        for index in waiting {
            // One that completes may take earlier ones out of the log with it.
            if self.writes.contains(index) {
                self.request_step(cx, index);
            }
        }
    }

    /// Writes that wait for space: try them again.
    pub(crate) fn retry_no_space(&mut self, cx: &mut Ctx<'_>) {
        if !self.no_space {
            return;
        }
        self.no_space = self.next_no_space_retry().is_some();
        let now = cx.now;
        let due: Vec<usize> = self
            .writes
            .iter()
            .filter(|(_, w)| matches!(w.local, Local::NoSpace { retry_at, .. } if retry_at <= now))
            .map(|(i, _)| i)
            .collect();
        for index in due {
            self.write_locally(cx, index);
        }
    }

    pub(crate) fn next_no_space_retry(&self) -> Option<Time> {
        if !self.no_space {
            return None;
        }
        self.writes
            .iter()
            .filter_map(|(_, w)| if let Local::NoSpace { retry_at, .. } = w.local { Some(retry_at) } else { None })
            .min()
    }

    /// P_WRITE_ACK, P_RECV_ACK, P_NEG_ACK for a write of ours.
    pub(crate) fn write_ack(&mut self, cx: &mut Ctx<'_>, cidx: usize, ack: BlockAck, ok: bool) {
        let node = self.conns[cidx].node();
        let index = usize::try_from(ack.block_id.0).unwrap_or(usize::MAX);
        let fits = self.writes.get(index).is_some_and(|w| {
            w.req.sector == ack.sector && w.req.len == ack.blksize && w.sent.contains(node) && w.unstable.contains(node)
        });
        if !fits {
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "ack for a write that was not sent");
        }
        if ok && !self.ack_is_enough(cidx, &self.writes[index]) {
            return;
        }
        let w = &mut self.writes[index];
        w.waits.remove(node);
        if ok {
            w.ok.insert(node);
        } else {
            w.ok.remove(node);
            let (vidx, sector, len) = (w.vidx, w.req.sector, w.req.len);
            // Its disk is gone. Its P_STATE is on the way, or was here first: no new generation may begin there.
            let pd = &mut self.conns[cidx].pds[vidx];
            if pd.disk >= DiskState::Inconsistent {
                pd.disk = DiskState::Failed;
                self.peer_disk_gone(cx, cidx, vidx);
            }
            self.confirmed_by(cx, vidx, node);
            self.state_changed = true;
            self.mark_missing(cx, cidx, vidx, sector, len);
            self.new_generation_now(cx, vidx);
        }
        self.request_step(cx, index);
    }

    /// Requests that waited for a new UUID to be stable complete.
    pub(crate) fn writes_new_uuid(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        let log: Vec<usize> = self.transfer_log.iter().copied().collect();
        for index in log {
            if self.writes.contains(index) && self.writes[index].vidx == vidx {
                self.request_step(cx, index);
            }
        }
    }

    /// Complete a request to the front end once every part is there, and let the log go.
    pub(crate) fn request_step(&mut self, cx: &mut Ctx<'_>, index: usize) {
        let gate = self.quorum_gate(self.writes[index].vidx);
        let w = &mut self.writes[index];
        let local_over = !matches!(w.local, Local::Pending | Local::NoSpace { .. });
        // A write that lost a replica is acknowledged only under a UUID that the lost replica does not have.
        let v = &self.volumes[w.vidx];
        let generation_ok = !v.awaits_uuid() && v.unconfirmed.is_empty();
        let answered = w.waits.is_empty() || broken!(AckEarly);
        let over = local_over && answered && !w.completed;
        let fails = gate == Gate::Fails;
        if over && (fails || (generation_ok && gate == Gate::Open && self.is_confirmed(cx, index))) {
            let w = &mut self.writes[index];
            let v = &self.volumes[w.vidx];
            w.completed = true;
            let (id, vidx, local, ok) = (w.req.id, w.vidx, w.local, w.ok);
            let here = local == Local::Done && v.disk == DiskState::UpToDate;
            // What only a disk has that is being resynced is nowhere: its data is not good yet.
            let on_peers = ok.iter().any(|node| self.is_up_to_date(node, vidx));
            let result = match local {
                _ if fails => Err(IoError::Io),
                _ if here || (on_peers && self.generation_is_kept(vidx)) => Ok(()),
                Local::Failed(DiskError::NoSpace) => Err(IoError::NoSpace),
                _ => Err(IoError::Io),
            };
            if result.is_ok() {
                self.volumes[vidx].former.clear();
            }
            cx.complete(id, result);
        }
        self.trim_transfer_log(cx);
    }

    /// Requests leave the transfer log in order, when they are completed and stable everywhere.
    pub(crate) fn trim_transfer_log(&mut self, cx: &mut Ctx<'_>) {
        while let Some(&index) = self.transfer_log.front() {
            let w = &self.writes[index];
            if !w.completed || !w.unstable.is_empty() {
                break;
            }
            self.transfer_log.pop_front();
            let w = self.writes.remove(index);
            if w.al && !broken!(LeakActivityLog) {
                self.al_put(w.vidx, w.req.sector, w.req.len);
            }
            let full = limits::MAX_TRANSFER_LOG - 1;
            if self.transfer_log.len() == full {
                self.volumes[w.vidx].retry_waiters = true;
            }
            self.collect_peer_ack(cx, &w);
            if self.transfer_log.is_empty() {
                // The last of a former Primary.
                (0..self.volumes.len()).for_each(|vidx| self.maybe_clear_primary_ind(vidx));
            }
        }
    }
}

/// The disk command of a write-like operation.
pub(crate) fn write_cmd(op: Op, sector: u64, len: u32, payload: Option<Payload>, fua: bool) -> DiskCmd {
    match (op, payload) {
        (Op::Discard, _) => DiskCmd::Discard { sector, len },
        (Op::WriteZeroes { unmap }, _) => DiskCmd::WriteZeroes { sector, len, unmap },
        (_, Some(payload)) => DiskCmd::Write { sector, payload, fua },
        (_, None) => unreachable!("a write has a payload: checked at admission"),
    }
}
