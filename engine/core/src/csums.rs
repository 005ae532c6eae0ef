//! Checksum-based resync (`csums-alg`): the target sends digests of what it has, and gets only what differs
//! (handshake-and-states.md 6.4, wire-protocol.md 11); and the digests that both ends of a link agree on in P_SYNC_PARAM89.
//!
//! The target reads under the lock of its request. A write of the source that arrives meanwhile is part of what the source compares, or
//! comes after that: in both cases the range is equal in the end if it was equal without it.

use rkyv::{Archive, Deserialize, Serialize};
use zea_wire::digest::{Digest, DigestAlg};
use zea_wire::ids::BlockId;
use zea_wire::packet::{AlgName, BlockAck, BlockReq, RsReq, SyncController, SyncParam89};
use zea_wire::state::ConnState;

use crate::config::ResyncOptions;
use crate::connection::{LinkPhase, ResyncReq};
use crate::io::{Action, BufId, DigestTag, DiskError, Payload};
use crate::peer_request::{AckKind, Kind, PeerReq, Stage};
use crate::resource::{Ctx, Resource};

/// The algorithms that both ends of a link told.
#[derive(Debug, Default, Archive, Serialize, Deserialize)]
pub(crate) struct DigestAlgs {
    pub(crate) own: Option<DigestAlg>,
    /// As it came; empty: none.
    pub(crate) peer: String,
}

impl DigestAlgs {
    fn are_equal(&self) -> bool {
        self.own.map_or("", DigestAlg::as_str) == self.peer
    }

    fn how_they_differ(&self, key: &str) -> String {
        let shown = |name: &str| if name.is_empty() { "not set".to_owned() } else { name.to_owned() };
        let (own, peer) = (shown(self.own.map_or("", DigestAlg::as_str)), shown(&self.peer));
        format!("incompatible settings: {key} is {own} here and {peer} there; DRBD 8.4 wants it to be the same")
    }
}

impl Resource {
    // ---- what is agreed on -----------------------------------------------------------------------------------------

    /// P_SYNC_PARAM89 of this node about a volume. What it says of digests counts for this link.
    pub(crate) fn own_sync_param(&mut self, cidx: usize, vidx: usize) -> SyncParam89 {
        let c = &mut self.conns[cidx];
        let (verify, csums) = (c.config.net.verify_alg, c.config.net.csums_alg);
        (c.verify_algs.own, c.csums_algs.own) = (verify, csums);
        let name = |alg: Option<DigestAlg>| alg.and_then(|alg| AlgName::new(alg.as_str())).unwrap_or_default();
        let options = self.volumes.get(vidx).map_or(ResyncOptions::default(), |v| v.config.disk.resync);
        let number = |n: u64, left_out: u32| if n == 0 { left_out } else { u32::try_from(n).unwrap_or(u32::MAX) };
        SyncParam89 {
            resync_rate: number(options.resync_rate_kib, 250),
            verify_alg: name(verify),
            csums_alg: name(csums),
            // Where nothing is configured, the kernel's defaults.
            controller: SyncController {
                c_plan_ahead: options.plan_ahead.unwrap_or(20),
                c_delay_target: options.delay_target,
                c_fill_target: number(options.fill_target_sectors, 100),
                c_max_rate: number(options.max_rate_kib, 102_400),
            },
        }
    }

    /// P_SYNC_PARAM89. 8.4 refuses a peer with other digests when it connects: so does this node, and says why.
    pub(crate) fn sync_param_told(&mut self, cx: &mut Ctx<'_>, cidx: usize, told: &SyncParam89) {
        let c = &mut self.conns[cidx];
        told.verify_alg.as_str().clone_into(&mut c.verify_algs.peer);
        told.csums_alg.as_str().clone_into(&mut c.csums_algs.peer);
        let strict = c.speaks_84() && !c.keeps_bits();
        if !strict || !self.in_phase(cidx, LinkPhase::Connecting) {
            return;
        }
        let c = &self.conns[cidx];
        let both = [("verify-alg", &c.verify_algs), ("csums-alg", &c.csums_algs)];
        let differs = both.into_iter().find(|(_, algs)| !algs.are_equal());
        if let Some(why) = differs.map(|(key, algs)| algs.how_they_differ(key)) {
            self.stand_alone(cx, cidx, &why);
        }
    }

    /// The digests of a resync with this peer, if it is based on checksums. Both ends come to the same answer.
    pub(crate) fn csums_alg(&self, cidx: usize) -> Option<DigestAlg> {
        let c = &self.conns[cidx];
        let DigestAlgs { own, peer } = &c.csums_algs;
        if !c.has_checksums() {
            return None;
        }
        match (own, DigestAlg::from_name(peer)) {
            (Some(own), Some(peer)) => (*own == peer).then_some(peer),
            (None, peer) => peer.filter(|_| c.keeps_bits()),
            (own, None) => own.filter(|_| peer.is_empty() && c.keeps_bits()),
        }
    }

    // ---- target ----------------------------------------------------------------------------------------------------

    /// Before a range is asked for: what is there now?
    pub(crate) fn resync_sum(
        &mut self,
        cx: &mut Ctx<'_>,
        cidx: usize,
        vidx: usize,
        serial: u64,
        sector: u64,
        len: u32,
    ) {
        let index = self.new_peer_read(cidx, vidx, Kind::ResyncSum, sector, len, BlockId(serial));
        self.peer_req_submit(cx, index);
    }

    /// The request for which something was read, unless its resync is over.
    fn summed_for(&self, cidx: usize, p: &PeerReq) -> Option<ResyncReq> {
        let resync = self.conns[cidx].pds[p.vidx].resync.as_ref()?;
        resync.in_flight.get(&p.sector).copied().filter(|q| q.serial == p.block_id.0 && !q.answered)
    }

    /// It was read.
    pub(crate) fn resync_sum_read(
        &mut self,
        cx: &mut Ctx<'_>,
        index: usize,
        result: Result<(), DiskError>,
        buf: Option<BufId>,
    ) {
        let p = &mut self.peer_reqs[index];
        p.payload = buf.map(|buf| Payload { buf, offset: 0, len: p.len });
        let (vidx, sector, len) = (p.vidx, p.sector, p.len);
        let p = &self.peer_reqs[index];
        let cidx = self.cidx(p.node).filter(|_| !p.orphan);
        let alg = cidx.filter(|&c| self.summed_for(c, p).is_some()).and_then(|c| self.csums_alg(c));
        if let (Some(alg), Some(payload), Ok(())) = (alg, p.payload, result) {
            self.peer_reqs[index].stage = Stage::Digest;
            return cx.out.push(Action::Digest { tag: DigestTag(index as u64), alg, payload });
        }
        if let Err(e) = result {
            self.disk_failed(cx, vidx, &format!("read of {len} bytes at sector {sector} for a checksum: {e}"));
        }
        let p = self.peer_req_end(cx, index);
        match cidx {
            Some(cidx) => self.resync_ask_summed(cx, cidx, &p, None),
            None => self.orphan_read_ends(cx, &p),
        }
    }

    /// Its digest is here.
    pub(crate) fn resync_sum_known(&mut self, cx: &mut Ctx<'_>, index: usize, digest: &[u8]) {
        let p = self.peer_req_end(cx, index);
        if let Some(cidx) = self.cidx(p.node) {
            self.resync_ask_summed(cx, cidx, &p, Digest::new(digest));
        }
    }

    fn resync_ask_summed(&mut self, cx: &mut Ctx<'_>, cidx: usize, p: &PeerReq, digest: Option<Digest>) {
        if let Some(q) = self.summed_for(cidx, p) {
            let req = BlockReq { sector: p.sector, block_id: q.block_id, blksize: q.len, pad: 0 };
            self.resync_ask(cx, cidx, p.vidx, req, digest);
        }
    }

    /// P_RS_IS_IN_SYNC: the source has the same.
    pub(crate) fn resync_is_in_sync(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, ack: BlockAck) {
        let echoes_ids = self.conns[cidx].echoes_ids();
        let node = self.conns[cidx].node();
        let Some(r) = self.conns[cidx].pds[vidx].resync.as_mut() else { return };
        let q = r.in_flight.get(&ack.sector).copied();
        let fits = |q: &ResyncReq| q.len == ack.blksize && (!echoes_ids || q.block_id == ack.block_id);
        let Some(q) = q.filter(|q| !q.answered && fits(q)) else {
            let why = "an answer to a checksum that was not sent";
            return self.drop_link(cx, cidx, ConnState::ProtocolError, why);
        };
        r.in_flight.remove(&ack.sector);
        r.in_flight_sectors -= u64::from(q.len) / 512;
        r.pace.arrived(u64::from(q.len) / 512);
        let v = &mut self.volumes[vidx];
        v.intervals.remove(q.interval);
        v.retry_waiters = true;
        v.set_in_sync(node, ack.sector, q.len);
        self.note_moved(cx, cidx, vidx, q.len);
        self.maybe_peers_in_sync(cx, vidx, ack.sector);
    }

    // ---- source ----------------------------------------------------------------------------------------------------

    /// P_CSUM_RS_REQUEST, P_RS_CSUM_DAGTAG_REQ.
    pub(crate) fn resync_read_summed(
        &mut self,
        cx: &mut Ctx<'_>,
        cidx: usize,
        vidx: usize,
        req: RsReq,
        digest: Digest,
    ) {
        if self.csums_alg(cidx).is_none() {
            let why = "a resync request with a checksum, and no csums-alg was agreed on";
            return self.drop_link(cx, cidx, ConnState::ProtocolError, why);
        }
        self.resync_read(cx, cidx, vidx, req, Some(digest));
    }

    /// The source has read what the target sent a digest of.
    pub(crate) fn resync_compares(&mut self, cx: &mut Ctx<'_>, cidx: usize, index: usize, buf: BufId) {
        let alg = self.csums_alg(cidx);
        let p = &mut self.peer_reqs[index];
        let payload = Payload { buf, offset: 0, len: p.len };
        (p.payload, p.stage) = (Some(payload), Stage::Digest);
        let Some(alg) = alg else {
            // P_SYNC_PARAM89 came after the request.
            self.peer_req_end(cx, index);
            let why = "csums-alg was changed while a resync request with a checksum was under way";
            return self.drop_link(cx, cidx, ConnState::ProtocolError, why);
        };
        cx.out.push(Action::Digest { tag: DigestTag(index as u64), alg, payload });
    }

    /// The digest of the source's own data: equal, or the data are sent.
    pub(crate) fn resync_compared(&mut self, cx: &mut Ctx<'_>, index: usize, digest: &[u8]) {
        let p = &mut self.peer_reqs[index];
        let theirs = p.digest.take().expect("it was sent");
        let (node, vidx, sector, len, block_id) = (p.node, p.vidx, p.sector, p.len, p.block_id);
        let Some(cidx) = self.cidx(node) else { return };
        if theirs.as_slice().len() != digest.len() {
            self.peer_req_end(cx, index);
            let why = "a resync request with another kind of checksum";
            return self.drop_link(cx, cidx, ConnState::ProtocolError, why);
        }
        // The word that they are equal would overtake the marks, on the control stream.
        if theirs.as_slice() != digest || self.mark_unheard(cx, cidx, index) {
            let buf = self.peer_reqs[index].payload.take().map(|payload| payload.buf);
            return self.peer_read_done(cx, index, Ok(()), buf);
        }
        self.peer_req_end(cx, index);
        self.volumes[vidx].set_in_sync(node, sector, len);
        self.note_moved(cx, cidx, vidx, len);
        let id = self.conns[cidx].resync_id(block_id);
        self.send_ack(cx, cidx, vidx, sector, len, id, AckKind::InSync);
        self.maybe_peers_in_sync(cx, vidx, sector);
    }
}
