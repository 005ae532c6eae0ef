//! The node that is asked (VerifyT): reads, digests, results; and the part of the reading that both ends share.

use rkyv::{Archive, Deserialize, Serialize};
use zea_wire::digest::{Digest, DigestAlg};
use zea_wire::features::Features;
use zea_wire::ids::BlockId;
use zea_wire::packet::{BlockReq, BlockReqDigest, OvVerdict, Packet, RsReq, RsReqDigest};
use zea_wire::state::{ConnState, DiskState, ReplState, Role};

use super::Tally;
use crate::io::{Action, BufId, DigestTag, DiskError, Payload, Time};
use crate::limits;
use crate::peer_request::{AckKind, Kind, PeerReq, Stage};
use crate::resource::{Ctx, Resource};

/// The running verify of a target.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(super) alg: DigestAlg,
    pub(super) tally: Tally,
    /// The first request tells where it begins.
    begun: bool,
    /// Requests that are not answered.
    open: usize,
    /// When it began.
    since: Time,
}

impl Resource {
    /// The cluster agreed: this node is VerifyT.
    pub(crate) fn verify_begin_target(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        if let Ok(alg) = self.verify_check(cidx, vidx) {
            let pd = &mut self.conns[cidx].pds[vidx];
            pd.repl = ReplState::VerifyT;
            pd.verify.target = Some(Target { alg, tally: Tally::new(0), begun: false, open: 0, since: cx.now });
            self.state_changed = true;
        }
        if !self.conns[cidx].speaks_84() {
            self.send_state(cx, cidx, vidx);
        }
    }

    /// P_OV_DAGTAG_REQ, P_OV_REQUEST.
    pub(crate) fn verify_request(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, req: RsReq) {
        let size = self.volumes[vidx].size_sectors;
        let inside = req.sector.checked_add(u64::from(req.blksize) / 512).is_some_and(|e| e <= size);
        if !inside || req.blksize == 0 || !req.blksize.is_multiple_of(512) || req.blksize > limits::MAX_RESYNC_BYTES {
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "a verify request outside of the device");
        }
        let has_data = self.volumes[vidx].disk == DiskState::UpToDate;
        let target = self.conns[cidx].pds[vidx].verify.target.as_mut();
        let Some(target) = target.filter(|t| has_data && t.open < limits::MAX_VERIFY_READS) else {
            return self.send_ack(cx, cidx, vidx, req.sector, req.blksize, req.block_id, AckKind::Cancel);
        };
        if !target.begun {
            target.begun = true;
            target.tally = Tally::new(size - req.sector);
        }
        target.open += 1;
        let index = self.new_peer_read(cidx, vidx, Kind::VerifyTarget, req.sector, req.blksize, req.block_id);
        let p = &mut self.peer_reqs[index];
        p.dagtag = req.dagtag;
        p.dagtag_node = req.dagtag_node_id;
        p.stage = Stage::Dagtag;
        self.peer_req_go(cx, index);
    }

    /// A block was read, on either end: its digest is wanted.
    pub(crate) fn verify_read_done(
        &mut self,
        cx: &mut Ctx<'_>,
        index: usize,
        result: Result<(), DiskError>,
        buf: Option<BufId>,
    ) {
        let p = &mut self.peer_reqs[index];
        p.payload = buf.map(|buf| Payload { buf, offset: 0, len: p.len });
        let (kind, vidx, sector, len, block_id) = (p.kind, p.vidx, p.sector, p.len, p.block_id);
        let (node, orphan) = (p.node, p.orphan);
        let cidx = self.cidx(node).filter(|_| !orphan);
        if let Err(e) = result {
            self.disk_failed(cx, vidx, &format!("read of {len} bytes at sector {sector} to verify: {e}"));
            let p = self.verify_read_ends(cx, index);
            return match (cidx, kind) {
                (None, _) => self.orphan_read_ends(cx, &p),
                (Some(cidx), Kind::VerifyTarget) => {
                    self.send_ack(cx, cidx, vidx, sector, len, block_id, AckKind::Cancel);
                }
                (Some(cidx), _) => self.verify_result(cx, cidx, vidx, sector, OvVerdict::Skipped),
            };
        }
        let verify = cidx.map(|c| &self.conns[c].pds[vidx].verify);
        let alg = verify.and_then(|v| match kind {
            Kind::VerifyTarget => v.target.as_ref().map(|t| t.alg),
            _ => v.source.as_ref().map(|s| s.alg),
        });
        match (alg, self.peer_reqs[index].payload) {
            (Some(alg), Some(payload)) => {
                self.peer_reqs[index].stage = Stage::Digest;
                cx.out.push(Action::Digest { tag: DigestTag(index as u64), alg, payload });
            }
            // It was interrupted.
            _ => {
                let p = self.verify_read_ends(cx, index);
                self.orphan_read_ends(cx, &p);
            }
        }
    }

    /// The runtime computed a digest.
    pub(crate) fn digest_done(&mut self, cx: &mut Ctx<'_>, tag: DigestTag, digest: &[u8]) {
        let index = usize::try_from(tag.0).expect("digest tags are slab indices");
        let p = &self.peer_reqs[index];
        match (p.orphan, p.kind) {
            (false, Kind::VerifySource) => self.verify_compare(cx, index, digest),
            (false, Kind::ResyncSum) => self.resync_sum_known(cx, index, digest),
            (false, Kind::ResyncRead) => self.resync_compared(cx, index, digest),
            (false, _) => self.verify_answer(cx, index, digest),
            (true, _) => {
                let p = self.verify_read_ends(cx, index);
                self.orphan_read_ends(cx, &p);
            }
        }
    }

    fn verify_answer(&mut self, cx: &mut Ctx<'_>, index: usize, digest: &[u8]) {
        let p = &self.peer_reqs[index];
        let (node, vidx, sector, blksize, block_id) = (p.node, p.vidx, p.sector, p.len, p.block_id);
        let (Some(cidx), Some(digest)) = (self.cidx(node), Digest::new(digest)) else { return };
        if self.conns[cidx].speaks_84() {
            let p = &mut self.peer_reqs[index];
            p.stage = Stage::Sent;
            if let Some(payload) = p.payload.take() {
                cx.free(payload.buf);
            }
        } else {
            self.verify_read_ends(cx, index);
        }
        if self.role == Role::Primary {
            self.send_dagtag(cx, cidx);
        }
        // Everything that was read has been received by now.
        let (dagtag_node_id, dagtag) = self.resync_dagtag();
        let dependent = self.conns[cidx].link.as_ref().is_some_and(|l| l.has(Features::RESYNC_DAGTAG));
        let packet = if dependent {
            let req = RsReq { sector, block_id, blksize, dagtag_node_id, dagtag };
            Packet::OvDagtagReply(RsReqDigest { req, digest })
        } else {
            Packet::OvReply(BlockReqDigest { req: BlockReq { sector, block_id, blksize, pad: 0 }, digest })
        };
        self.send_volume(cx, cidx, vidx, packet);
    }

    /// A read for a verify is over, one way or the other.
    pub(crate) fn verify_read_ends(&mut self, cx: &mut Ctx<'_>, index: usize) -> PeerReq {
        let p = self.peer_req_end(cx, index);
        if p.kind == Kind::VerifyTarget
            && let Some(cidx) = self.cidx(p.node)
            && let Some(target) = self.conns[cidx].pds[p.vidx].verify.target.as_mut()
        {
            target.open = target.open.saturating_sub(1);
        }
        p
    }

    /// Blocks that were kept until their results came.
    pub(super) fn verify_let_go(
        &mut self,
        cx: &mut Ctx<'_>,
        cidx: usize,
        vidx: usize,
        which: impl Fn(&PeerReq) -> bool,
    ) {
        let node = self.conns[cidx].node();
        let kept = |p: &PeerReq| (p.kind, p.stage, p.node, p.vidx) == (Kind::VerifyTarget, Stage::Sent, node, vidx);
        let indices: Vec<usize> =
            self.peer_reqs.iter().filter(|(_, p)| kept(p) && which(p)).map(|(index, _)| index).collect();
        for index in indices {
            self.verify_read_ends(cx, index);
        }
    }

    pub(crate) fn orphan_read_ends(&mut self, cx: &mut Ctx<'_>, p: &PeerReq) {
        if let Some(cidx) = self.cidx(p.node) {
            self.lost_peer_drained(cx, cidx);
        }
    }

    /// P_OV_RESULT_ID, P_OV_RESULT: what the source found.
    pub(crate) fn verify_told(
        &mut self,
        cx: &mut Ctx<'_>,
        cidx: usize,
        vidx: usize,
        (sector, len): (u64, u32),
        verdict: Option<OvVerdict>,
    ) {
        let size = self.volumes[vidx].size_sectors;
        let inside = sector.checked_add(u64::from(len) / 512).is_some_and(|e| e <= size) && len > 0;
        let Some(verdict) = verdict.filter(|_| inside) else {
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "a verify result that makes no sense");
        };
        self.verify_let_go(cx, cidx, vidx, |p| p.sector == sector);
        let Some(target) = self.conns[cidx].pds[vidx].verify.target.as_mut() else {
            // The end, on the other stream, was faster.
            if verdict == OvVerdict::OutOfSync {
                self.verify_found(cidx, vidx, sector, len);
            }
            return;
        };
        let range = target.tally.note(verdict, sector, u64::from(len) / 512);
        let since = target.since;
        match verdict {
            OvVerdict::OutOfSync => self.verify_found(cidx, vidx, sector, len),
            // A mark that was made meanwhile may be newer than what was compared.
            OvVerdict::InSync if self.conns[cidx].pds[vidx].marked_at.is_none_or(|t| t < since) => {
                let node = self.conns[cidx].node();
                self.volumes[vidx].set_in_sync(node, sector, len);
            }
            OvVerdict::InSync | OvVerdict::Skipped => {}
        }
        self.announce_out_of_sync(cx, cidx, vidx, range);
    }

    /// The source says Established: it is over.
    pub(super) fn verify_target_ends(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        self.verify_let_go(cx, cidx, vidx, |_| true);
        let pd = &mut self.conns[cidx].pds[vidx];
        pd.repl = ReplState::Established;
        if let Some(t) = pd.verify.target.take() {
            self.verify_over(cx, cidx, vidx, t.tally, true);
        }
    }

    /// The block id of a reply or result names what the source asked for; a request without a dagtag depends on nothing.
    pub(crate) fn undated(&self, sector: u64, block_id: BlockId, blksize: u32) -> RsReq {
        RsReq { sector, block_id, blksize, dagtag_node_id: self.config.node_id, dagtag: 0 }
    }
}
