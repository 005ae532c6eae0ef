//! Online verify: two UpToDate replicas compare digests, block by block, while writes go on (handshake-and-states.md 7,
//! wire-protocol.md 11 and 11.1a).
//!
//! The source (VerifyS) asks for blocks. From its request to the end of its own read a block carries a mark: a write there in that
//! time makes the comparison void, the block is skipped. The target (VerifyT) reads when it has received what the source had
//! (dagtag), and answers with the digest and with what it has received by then; the source waits for that before it reads.
//! So both read the same writes, or the mark tells. 8.4 has no dagtags: there the source asks for nothing that the peer has not
//! confirmed as stable, and the target keeps writes away from what it has read until the result is there, as 8.4 itself does.
//!
//! Nothing is repaired here: differences get bits on both nodes, which a later handshake resyncs (`docs/adr`: keep bits).

mod report;
mod target;

use rkyv::{Archive, Deserialize, Serialize};
use zea_wire::digest::{Digest, DigestAlg};
use zea_wire::features::Features;
use zea_wire::ids::{BlockId, NodeId, VolumeNr};
use zea_wire::packet::{BlockAck, BlockReq, OvResult, OvVerdict, Packet, RsReq};
use zea_wire::state::{ConnState, DiskState, ReplState, Role, StateWord};

use crate::activity_log::extents_of;
use crate::csums::DigestAlgs;
use crate::event::{Severity, VerifyStatus};
use crate::interval::IntervalId;
use crate::io::{AdminError, AdminTag, Time};
use crate::limits;
use crate::peer_request::{Kind, PeerReq, Stage};
use crate::resource::{Ctx, Resource};
use crate::twopc::{Change, ss};
use crate::volume::{Attached, Lock};

pub(crate) use report::Tally;
pub(crate) use target::Target;

/// What is to be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct VerifyPlan {
    pub(crate) peer: NodeId,
    pub(crate) volume: VolumeNr,
    /// First sector, at the begin of a block.
    pub(crate) start: u64,
    /// The first sector that is not compared.
    pub(crate) stop: u64,
    /// Only blocks that are marked out of sync.
    pub(crate) marked: bool,
}

/// Online verify on a peer device.
#[derive(Debug, Default, Archive, Serialize, Deserialize)]
pub(crate) struct Verify {
    /// While this node is VerifyS.
    pub(crate) source: Option<Source>,
    /// While this node is VerifyT.
    pub(crate) target: Option<Target>,
    /// Sector at which the next one begins unless told otherwise: where the last one was interrupted.
    pub(crate) resume: u64,
    /// When marked blocks that the peer ignores are to be compared.
    pub(crate) due: Option<Time>,
    /// Differences were found on this link. Whose copy is right is for a person to say: no resync begins by itself.
    pub(crate) found: bool,
    /// What came of the last one, for observers.
    pub(crate) last: Option<VerifyStatus>,
}

impl Verify {
    /// What is known of the running one.
    pub(crate) fn tally(&self) -> Option<&Tally> {
        self.source.as_ref().map(|s| &s.tally).or(self.target.as_ref().map(|t| &t.tally))
    }
}

/// The running verify of a source.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(crate) struct Source {
    plan: VerifyPlan,
    alg: DigestAlg,
    /// First sector that was not asked for.
    next: u64,
    stop: u64,
    /// At most [`limits::MAX_VERIFY_REQUESTS`].
    asked: Vec<Asked>,
    /// Requests of an earlier verify have smaller ids.
    first_id: BlockId,
    /// The target said that it is VerifyT: from then on Established is the end.
    heard: bool,
    tally: Tally,
    /// Everything is compared; the number of P_PING_ACKs after which the target has all results.
    end_ping: Option<u64>,
}

/// A block that was asked for.
#[derive(Debug, Archive, Serialize, Deserialize)]
struct Asked {
    block_id: BlockId,
    sector: u64,
    len: u32,
    mark: IntervalId,
    /// The target's, once it is here.
    digest: Option<Digest>,
}

fn refuse(code: i32, message: impl Into<String>) -> AdminError {
    AdminError { code, message: message.into() }
}

impl Resource {
    // ---- start -----------------------------------------------------------------------------------------------------

    /// An administrator wants a verify.
    pub(crate) fn verify_command(
        &mut self,
        tag: AdminTag,
        (peer, volume): (NodeId, VolumeNr),
        start: Option<u64>,
        stop: Option<u64>,
    ) -> Result<(), AdminError> {
        let cidx = self.cidx(peer).ok_or_else(|| refuse(0, format!("no peer with node id {peer}")))?;
        let vidx = self.vidx(volume).ok_or_else(|| refuse(0, format!("no volume {volume}")))?;
        let size = self.volumes[vidx].size_sectors;
        let start = start.unwrap_or(self.conns[cidx].pds[vidx].verify.resume);
        let stop = stop.unwrap_or(size).min(size);
        if start >= stop && size > 0 {
            let message = format!("nothing to verify from sector {start} to {stop}: the volume has {size} sectors");
            return Err(refuse(0, message));
        }
        let start = start - start % self.sectors_per_bit(vidx);
        self.want(Change::Verify(VerifyPlan { peer, volume, start, stop, marked: false }), Some(tag));
        Ok(())
    }

    fn sectors_per_bit(&self, vidx: usize) -> u64 {
        self.volumes[vidx].attached.as_ref().map_or(8, |a| a.bitmap.sectors_per_bit())
    }

    /// Whether a verify may begin now, and with which digests.
    pub(crate) fn verify_check(&self, cidx: usize, vidx: usize) -> Result<DigestAlg, AdminError> {
        let (c, v) = (&self.conns[cidx], &self.volumes[vidx]);
        let pd = &c.pds[vidx];
        let name = &c.config.name;
        if !c.is_up() {
            return Err(refuse(ss::NEED_CONNECTION, format!("not connected to {name}")));
        }
        if v.disk != DiskState::UpToDate {
            return Err(refuse(ss::NO_LOCAL_DISK, format!("the local disk is {}, not UpToDate", v.disk)));
        }
        if pd.disk != DiskState::UpToDate {
            return Err(refuse(ss::NO_REMOTE_DISK, format!("the disk of {name} is {}, not UpToDate", pd.disk)));
        }
        if pd.repl != ReplState::Established {
            return Err(refuse(ss::RESYNC_RUNNING, format!("{name} is busy: {}", pd.repl)));
        }
        if v.slot(c.node()).is_none() {
            return Err(refuse(ss::NOT_SUPPORTED, format!("no bitmap is kept for {name}")));
        }
        if !c.has_run_lengths() {
            return Err(refuse(
                ss::NOT_SUPPORTED,
                format!("version {} of the protocol has no verify that says where it begins", c.version()),
            ));
        }
        self.verify_alg(cidx)
    }

    /// The algorithm that both ends use: the one that is configured on either side; two Zea nodes without one use crc32c.
    fn verify_alg(&self, cidx: usize) -> Result<DigestAlg, AdminError> {
        let c = &self.conns[cidx];
        let DigestAlgs { own, peer } = &c.verify_algs;
        let zea = c.keeps_bits();
        let name = &c.config.name;
        match (own, DigestAlg::from_name(peer)) {
            (Some(own), Some(peer)) if *own == peer => Ok(peer),
            (None, Some(peer)) => Ok(peer),
            (_, None) if !peer.is_empty() => {
                Err(refuse(ss::NO_VERIFY_ALG, format!("{name} has verify-alg {peer}, which is not known here")))
            }
            (Some(own), None) if zea => Ok(*own),
            (None, None) if zea => Ok(DigestAlg::Crc32c),
            (_, None) => Err(refuse(ss::NO_VERIFY_ALG, format!("{name} has no verify-alg: configure one there"))),
            (Some(own), Some(_)) => {
                Err(refuse(ss::NO_VERIFY_ALG, format!("verify-alg is {} here and {peer} on {name}", own.as_str())))
            }
        }
    }

    /// The cluster agreed: this node is VerifyS.
    pub(crate) fn verify_begin(&mut self, cx: &mut Ctx<'_>, plan: VerifyPlan) {
        let (Some(cidx), Some(vidx)) = (self.cidx(plan.peer), self.vidx(plan.volume)) else { return };
        let Ok(alg) = self.verify_check(cidx, vidx) else {
            // Something happened since it was asked for: the target hears that it is over.
            return self.send_state(cx, cidx, vidx);
        };
        let size = self.volumes[vidx].size_sectors;
        let stop = plan.stop.min(size);
        let total = if plan.marked {
            self.volumes[vidx].dirty_bits(plan.peer) * self.sectors_per_bit(vidx)
        } else {
            stop.saturating_sub(plan.start)
        };
        let pd = &mut self.conns[cidx].pds[vidx];
        pd.repl = ReplState::VerifyS;
        pd.verify.source = Some(Source {
            plan,
            alg,
            next: plan.start,
            stop,
            asked: Vec::with_capacity(limits::MAX_VERIFY_REQUESTS),
            first_id: BlockId(self.next_block_id),
            heard: false,
            tally: Tally::new(total),
            end_ping: None,
        });
        self.state_changed = true;
        self.again = true;
        let what = if plan.marked { "blocks that are marked out of sync" } else { "online verify" };
        let text = format!("volume {}: comparing with node {}: {what}, {}", plan.volume, plan.peer, alg.as_str());
        cx.notice(Severity::Info, text);
        if !self.conns[cidx].speaks_84() {
            self.send_state(cx, cidx, vidx);
        }
    }

    // ---- steps -----------------------------------------------------------------------------------------------------

    /// Ends what cannot go on, starts what is due, keeps the window of requests full.
    pub(crate) fn verify_steps(&mut self, cx: &mut Ctx<'_>) {
        for cidx in 0..self.conns.len() {
            for vidx in 0..self.volumes.len() {
                let pd = &self.conns[cidx].pds[vidx];
                let runs = pd.verify.tally().is_some();
                let good = pd.disk == DiskState::UpToDate && self.volumes[vidx].disk == DiskState::UpToDate;
                if runs && !good {
                    self.verify_interrupt(cx, cidx, vidx);
                    self.conns[cidx].pds[vidx].repl = ReplState::Established;
                    self.send_state(cx, cidx, vidx);
                } else if pd.verify.source.is_some() {
                    self.verify_step(cx, cidx, vidx);
                } else if pd.verify.due.is_some_and(|t| cx.now >= t) {
                    self.verify_due(cx, cidx, vidx);
                }
            }
        }
    }

    /// The peer does not look at blocks that are marked here: compare them.
    fn verify_due(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let check = self.verify_check(cidx, vidx);
        let (peer, volume) = (self.conns[cidx].node(), self.volumes[vidx].nr);
        let verify = &mut self.conns[cidx].pds[vidx].verify;
        verify.due = Some(cx.now.plus_ms(limits::VERIFY_RETRY_MS));
        match check {
            Ok(_) => {
                self.want(Change::Verify(VerifyPlan { peer, volume, start: 0, stop: u64::MAX, marked: true }), None)
            }
            Err(e) if matches!(e.code, ss::NO_VERIFY_ALG | ss::NOT_SUPPORTED) => {
                verify.due = None;
                let text = format!("volume {volume}: the unverified blocks cannot be compared with node {peer}: {e}");
                cx.notice(Severity::Warning, text);
            }
            Err(_) => {}
        }
    }

    fn verify_step(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let window = self.volumes[vidx].config.disk.resync_window_sectors / self.sectors_per_bit(vidx);
        let window = limits::MAX_VERIFY_REQUESTS.min(usize::try_from(window.max(1)).unwrap_or(usize::MAX));
        let behind = loop {
            let s = self.conns[cidx].pds[vidx].verify.source.as_ref().expect("checked by the caller");
            if s.asked.len() >= window {
                break false;
            }
            let Some((sector, len)) = self.verify_next(cidx, vidx) else { break true };
            self.verify_ask(cx, cidx, vidx, sector, len);
        };
        let s = self.conns[cidx].pds[vidx].verify.source.as_ref().expect("above");
        if !behind || !s.asked.is_empty() {
            return;
        }
        let acked = self.conns[cidx].link.as_ref().map_or(0, |l| l.ping_acks);
        match s.end_ping {
            // Results go the way of the pings: its answer means that the target has them all.
            None => {
                let ping = self.ping(cx, cidx);
                if let Some(s) = self.conns[cidx].pds[vidx].verify.source.as_mut() {
                    s.end_ping = Some(ping);
                }
            }
            Some(ping) if acked >= ping => self.verify_finish(cx, cidx, vidx),
            Some(_) => {}
        }
    }

    /// The next block to ask for, and its bytes.
    fn verify_next(&mut self, cidx: usize, vidx: usize) -> Option<(u64, u32)> {
        let per_bit = self.sectors_per_bit(vidx);
        let v = &self.volumes[vidx];
        let slot = v.slot(self.conns[cidx].node())?;
        let s = self.conns[cidx].pds[vidx].verify.source.as_mut()?;
        let sector = if s.plan.marked {
            v.attached.as_ref()?.bitmap.next_set(slot, s.next.div_ceil(per_bit))? * per_bit
        } else {
            s.next
        };
        if sector >= s.stop {
            return None;
        }
        s.next = sector + per_bit;
        let end = s.next.min(v.size_sectors);
        Some((sector, u32::try_from((end - sector) * 512).expect("one block")))
    }

    fn verify_ask(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, sector: u64, len: u32) {
        let node = self.conns[cidx].node();
        let sectors = u64::from(len) / 512;
        let busy = self.conflict(vidx, sector, sectors, Lock::ResyncRead(node))
            || self.queued_write(vidx, sector, sectors)
            || self.unstable_there(cidx, vidx, sector, sectors);
        if busy && !broken!(VerifyIgnoresWrites) {
            let s = self.conns[cidx].pds[vidx].verify.source.as_mut().expect("checked by the caller");
            s.tally.skip(sectors);
            return;
        }
        let mark = self.volumes[vidx].lock_range(sector, sectors, Lock::Verify { void: false });
        self.volumes[vidx].verify_marks += 1;
        let block_id = self.conns[cidx].resync_id(BlockId(self.next_block_id));
        self.next_block_id += 1;
        if self.role == Role::Primary {
            self.send_dagtag(cx, cidx);
        }
        let (dagtag_node_id, dagtag) = self.resync_dagtag();
        let s = self.conns[cidx].pds[vidx].verify.source.as_mut().expect("checked by the caller");
        s.asked.push(Asked { block_id, sector, len, mark, digest: None });
        let dependent = self.conns[cidx].link.as_ref().is_some_and(|l| l.has(Features::RESYNC_DAGTAG));
        let packet = if dependent {
            Packet::OvDagtagReq(RsReq { sector, block_id, blksize: len, dagtag_node_id, dagtag })
        } else {
            Packet::OvRequest(BlockReq { sector, block_id, blksize: len, pad: 0 })
        };
        self.send_volume(cx, cidx, vidx, packet);
    }

    /// The peer knows no dagtags, and may read before a write that it has received earlier.
    fn unstable_there(&self, cidx: usize, vidx: usize, sector: u64, sectors: u64) -> bool {
        let (c, v) = (&self.conns[cidx], &self.volumes[vidx]);
        let in_use = |a: &Attached| extents_of(sector, sectors).any(|extent| a.al.refs(extent) > 0);
        if !c.speaks_84() || !v.attached.as_ref().is_some_and(in_use) {
            return false;
        }
        self.writes.iter().any(|(_, w)| {
            let (begin, end) = (w.req.sector, w.req.sector + u64::from(w.req.len) / 512);
            w.vidx == vidx && begin < sector + sectors && sector < end && w.unstable.contains(c.node())
        })
    }

    // ---- answers ---------------------------------------------------------------------------------------------------

    /// P_OV_DAGTAG_REPLY, P_OV_REPLY: the target's digest. Read here, too, as soon as this node has what the target had.
    pub(crate) fn verify_reply(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, req: RsReq, digest: Digest) {
        let Some(s) = self.conns[cidx].pds[vidx].verify.source.as_mut() else { return };
        let asked = s.asked.iter_mut().find(|a| (a.block_id, a.sector) == (req.block_id, req.sector));
        let Some(asked) = asked.filter(|a| a.digest.is_none() && a.len == req.blksize) else {
            if req.block_id < s.first_id || req.block_id == BlockId::SYNCER {
                return;
            }
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "a verify reply that was not asked for");
        };
        asked.digest = Some(digest);
        let mark = asked.mark;
        if self.is_void(vidx, mark) {
            return self.verify_result(cx, cidx, vidx, req.sector, OvVerdict::Skipped);
        }
        let from_sender = req.dagtag_node_id == self.conns[cidx].node();
        let index = self.new_peer_read(cidx, vidx, Kind::VerifySource, req.sector, req.blksize, req.block_id);
        let p = &mut self.peer_reqs[index];
        // What the sender of the reply had written itself came before it, on the same stream.
        p.dagtag = if from_sender { 0 } else { req.dagtag };
        p.dagtag_node = req.dagtag_node_id;
        p.stage = Stage::Dagtag;
        self.peer_req_go(cx, index);
    }

    /// P_RS_CANCEL, P_NEG_RS_DREPLY: the target does not answer this one.
    pub(crate) fn verify_not_served(&mut self, cidx: usize, vidx: usize, ack: BlockAck) {
        let Some(s) = self.conns[cidx].pds[vidx].verify.source.as_mut() else { return };
        if let Some(at) = s.asked.iter().position(|a| a.sector == ack.sector && a.digest.is_none()) {
            let asked = s.asked.swap_remove(at);
            s.tally.skip(u64::from(asked.len) / 512);
            self.remove_mark(vidx, asked.mark);
        }
    }

    /// The digest of this node's own data is here.
    pub(crate) fn verify_compare(&mut self, cx: &mut Ctx<'_>, index: usize, digest: &[u8]) {
        let p = self.peer_req_end(cx, index);
        let Some(cidx) = self.cidx(p.node) else { return };
        let Some(s) = self.conns[cidx].pds[p.vidx].verify.source.as_ref() else { return };
        let Some(asked) = s.asked.iter().find(|a| a.sector == p.sector) else { return };
        let theirs = asked.digest.as_ref().expect("read after the reply").as_slice();
        if theirs.len() != digest.len() {
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "a verify reply with another kind of digest");
        }
        let verdict = match theirs == digest {
            _ if self.is_void(p.vidx, asked.mark) => OvVerdict::Skipped,
            true => OvVerdict::InSync,
            false => OvVerdict::OutOfSync,
        };
        self.verify_result(cx, cidx, p.vidx, p.sector, verdict);
    }

    /// A block is done: bits here, the result to the target.
    pub(crate) fn verify_result(
        &mut self,
        cx: &mut Ctx<'_>,
        cidx: usize,
        vidx: usize,
        sector: u64,
        verdict: OvVerdict,
    ) {
        let node = self.conns[cidx].node();
        let echoes_ids = self.conns[cidx].echoes_ids();
        let Some(s) = self.conns[cidx].pds[vidx].verify.source.as_mut() else { return };
        let Some(at) = s.asked.iter().position(|a| a.sector == sector) else { return };
        let Asked { block_id, len, mark, .. } = s.asked.swap_remove(at);
        let range = s.tally.note(verdict, sector, u64::from(len) / 512);
        self.remove_mark(vidx, mark);
        match verdict {
            OvVerdict::InSync => {
                self.volumes[vidx].set_in_sync(node, sector, len);
            }
            OvVerdict::OutOfSync => self.verify_found(cidx, vidx, sector, len),
            OvVerdict::Skipped => {}
        }
        self.announce_out_of_sync(cx, cidx, vidx, range);
        let seq_num = self.conns[cidx].pds[vidx].next_seq();
        let packet = if echoes_ids {
            Packet::OvResultId(OvResult { sector, block_id, blksize: len, seq_num, result: verdict.result() })
        } else {
            Packet::OvResult(BlockAck { sector, block_id: verdict.block_id(), blksize: len, seq_num })
        };
        self.send_volume(cx, cidx, vidx, packet);
    }

    /// Different data: a bit, and no resync that begins by itself.
    fn verify_found(&mut self, cidx: usize, vidx: usize, sector: u64, len: u32) {
        let node = self.conns[cidx].node();
        self.volumes[vidx].set_out_of_sync(node, sector, len);
        self.conns[cidx].pds[vidx].verify.found = true;
    }

    fn is_void(&self, vidx: usize, mark: IntervalId) -> bool {
        let kind = self.volumes[vidx].intervals.get(mark).map(|i| i.kind);
        kind != Some(Lock::Verify { void: false })
    }

    fn remove_mark(&mut self, vidx: usize, mark: IntervalId) {
        if self.volumes[vidx].intervals.remove(mark).is_some() {
            self.volumes[vidx].verify_marks -= 1;
        }
    }

    // ---- the end ---------------------------------------------------------------------------------------------------

    fn verify_finish(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let pd = &mut self.conns[cidx].pds[vidx];
        pd.repl = ReplState::Established;
        let Some(s) = pd.verify.source.take() else { return };
        if s.plan.marked {
            pd.unverified = s.tally.skipped > 0;
            pd.verify.due = pd.unverified.then(|| cx.now.plus_ms(limits::RECHECK_MS));
        } else {
            pd.verify.resume = 0;
        }
        self.verify_over(cx, cidx, vidx, s.tally, true);
        self.send_state(cx, cidx, vidx);
    }

    /// The link, a disk or the peer ends it before its time.
    pub(crate) fn verify_interrupt(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        self.verify_let_go(cx, cidx, vidx, |_| true);
        let verify = &mut self.conns[cidx].pds[vidx].verify;
        let target = verify.target.take();
        let tally = match verify.source.take() {
            Some(s) => {
                if !s.plan.marked {
                    verify.resume = s.asked.iter().map(|a| a.sector).min().unwrap_or(s.next);
                }
                for asked in &s.asked {
                    self.remove_mark(vidx, asked.mark);
                }
                self.verify_forget_reads(cx, cidx, vidx);
                s.tally
            }
            None => match target {
                Some(t) => t.tally,
                None => return,
            },
        };
        self.verify_over(cx, cidx, vidx, tally, false);
    }

    /// What is being read for a verify that is over is for no later one.
    fn verify_forget_reads(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let node = self.conns[cidx].node();
        let of_it = |p: &PeerReq| (p.kind, p.node, p.vidx, p.orphan) == (Kind::VerifySource, node, vidx, false);
        let reads: Vec<usize> = self.peer_reqs.iter().filter(|(_, p)| of_it(p)).map(|(index, _)| index).collect();
        for index in reads {
            self.peer_req_orphaned(cx, index);
        }
    }

    /// P_STATE of the other end of a verify.
    pub(crate) fn verify_sees_state(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, state: StateWord) {
        let repl = state.conn.repl_state();
        let pd = &mut self.conns[cidx].pds[vidx];
        if let Some(s) = pd.verify.source.as_mut() {
            s.heard |= repl == Some(ReplState::VerifyT);
            if s.heard && repl == Some(ReplState::Established) {
                pd.repl = ReplState::Established;
                self.verify_interrupt(cx, cidx, vidx);
            }
        } else if pd.verify.target.is_some() && repl == Some(ReplState::Established) {
            self.verify_target_ends(cx, cidx, vidx);
        }
    }
}
