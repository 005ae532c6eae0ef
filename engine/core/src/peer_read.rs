//! Reads for a peer: of a node without usable data, and of a SyncTarget (wire-protocol.md 10.6, 11.1).

use zea_wire::digest::Digest;
use zea_wire::flags::DpFlags;
use zea_wire::ids::BlockId;
use zea_wire::packet::{Data, Packet, RsReq};
use zea_wire::state::{ConnState, DiskState, Role};

use crate::connection::PeerDevice;
use crate::io::{BufId, DiskError, Op, Payload};
use crate::limits;
use crate::peer_request::{AckKind, Kind, PeerReq, Stage};
use crate::resource::{Ctx, Resource};

impl Resource {
    /// P_DATA_REQUEST.
    pub(crate) fn peer_read(
        &mut self,
        cx: &mut Ctx<'_>,
        cidx: usize,
        vidx: usize,
        sector: u64,
        len: u32,
        block_id: BlockId,
    ) {
        let v = &self.volumes[vidx];
        let inside = sector.checked_add(u64::from(len) / 512).is_some_and(|e| e <= v.size_sectors);
        if !inside || len == 0 || len > self.conns[cidx].max_bio_bytes() {
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "a read outside of the device");
        }
        if v.disk != DiskState::UpToDate {
            return self.send_ack(cx, cidx, vidx, sector, len, block_id, AckKind::NegRead);
        }
        let open = || self.peer_reqs.iter().filter(|(_, p)| p.kind == Kind::Read).count();
        if self.peer_reqs.len() >= limits::MAX_PEER_READS && open() >= limits::MAX_PEER_READS {
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "too many reads at once");
        }
        let index = self.new_peer_read(cidx, vidx, Kind::Read, sector, len, block_id);
        self.peer_req_go(cx, index);
    }

    /// P_RS_DATA_REQUEST, P_RS_DAGTAG_REQ and their thin forms.
    pub(crate) fn resync_read(
        &mut self,
        cx: &mut Ctx<'_>,
        cidx: usize,
        vidx: usize,
        req: RsReq,
        digest: Option<Digest>,
    ) {
        let v = &self.volumes[vidx];
        let inside = req.sector.checked_add(u64::from(req.blksize) / 512).is_some_and(|e| e <= v.size_sectors);
        let longest = limits::MAX_RESYNC_BYTES.min(self.conns[cidx].max_bio_bytes());
        if !inside || req.blksize == 0 || req.blksize > longest {
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "a resync request outside of the device");
        }
        let (sector, len, block_id) = (req.sector, req.blksize, req.block_id);
        let open = self.peer_reqs.iter().filter(|(_, p)| p.kind == Kind::ResyncRead && p.vidx == vidx).count();
        if !v.has_disk() || !self.conns[cidx].pds[vidx].is_sync_source() {
            return self.send_ack(cx, cidx, vidx, sector, len, block_id, AckKind::NegResync);
        }
        let puts_off = self.conns[cidx].tells_out_of_sync();
        let most = if puts_off { limits::MAX_RESYNC_READS } else { limits::MAX_RESYNC_READS_AT_ALL };
        if open >= most || self.sync_source_of(vidx).is_some() {
            if !puts_off {
                return self.drop_link(cx, cidx, ConnState::ProtocolError, "too many resync requests at once");
            }
            return self.send_ack(cx, cidx, vidx, sector, len, block_id, AckKind::Cancel);
        }
        let index = self.new_peer_read(cidx, vidx, Kind::ResyncRead, sector, len, block_id);
        let p = &mut self.peer_reqs[index];
        p.digest = digest;
        p.dagtag = req.dagtag;
        p.dagtag_node = req.dagtag_node_id;
        p.stage = Stage::Dagtag;
        self.peer_req_go(cx, index);
    }

    pub(crate) fn new_peer_read(
        &mut self,
        cidx: usize,
        vidx: usize,
        kind: Kind,
        sector: u64,
        len: u32,
        block_id: BlockId,
    ) -> usize {
        let c = &mut self.conns[cidx];
        c.active_peer_reqs += 1;
        self.peer_reqs.insert(PeerReq {
            kind,
            stage: Stage::Range,
            node: c.config.node_id,
            vidx,
            op: Op::Read,
            sector,
            len,
            block_id,
            flags: DpFlags::EMPTY,
            payload: None,
            interval: None,
            digest: None,
            dagtag: 0,
            dagtag_node: self.config.node_id,
            epoch: 0,
            serial: 0,
            al: false,
            orphan: false,
        })
    }

    /// The primary's writes that the target already has are here too (wire-protocol.md 11.1). Of a node that is no Primary on its
    /// present link no more comes: the target may have named writes that it got before that one lost power.
    pub(crate) fn dagtag_reached(&self, index: usize) -> bool {
        let p = &self.peer_reqs[index];
        if p.dagtag == 0 || p.dagtag_node == self.config.node_id {
            return true;
        }
        match self.cidx(p.dagtag_node) {
            Some(c) if self.conns[c].role == Role::Primary => {
                self.conns[c].dagtag_received.is_some_and(|d| d >= p.dagtag)
            }
            _ => true,
        }
    }

    /// P_DAGTAG. The writes behind it are told apart by theirs.
    pub(crate) fn dagtag_told(&mut self, cx: &mut Ctx<'_>, cidx: usize, dagtag: u64) {
        let c = &mut self.conns[cidx];
        if c.dagtag_received.is_some_and(|before| before > dagtag) {
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "a dagtag that goes back");
        }
        c.dagtag_received = Some(dagtag);
        self.dagtag_arrived(cx);
    }

    /// A dagtag advanced, or its sender is gone: resync reads that waited for it.
    pub(crate) fn dagtag_arrived(&mut self, cx: &mut Ctx<'_>) {
        let waits = |pd: &PeerDevice| pd.is_sync_source() || pd.verify.tally().is_some();
        if !self.conns.iter().any(|c| c.pds.iter().any(waits)) {
            return;
        }
        let waiting: Vec<usize> =
            self.peer_reqs.iter().filter(|(_, p)| p.stage == Stage::Dagtag).map(|(i, _)| i).collect();
        for index in waiting {
            self.peer_req_go(cx, index);
        }
    }

    /// This node is the source no more. What waits for a dagtag waits for nothing: nobody tells it when that arrives.
    pub(crate) fn call_off_resync_reads(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let node = self.conns[cidx].node();
        let waits = |p: &PeerReq| {
            (p.kind, p.stage, p.node, p.vidx) == (Kind::ResyncRead, Stage::Dagtag, node, vidx) && !p.orphan
        };
        let waiting: Vec<usize> = self.peer_reqs.iter().filter(|(_, p)| waits(p)).map(|(index, _)| index).collect();
        for index in waiting {
            let p = self.peer_req_end(cx, index);
            self.send_ack(cx, cidx, vidx, p.sector, p.len, p.block_id, AckKind::Cancel);
        }
    }

    pub(crate) fn peer_read_done(
        &mut self,
        cx: &mut Ctx<'_>,
        index: usize,
        result: Result<(), DiskError>,
        buf: Option<BufId>,
    ) {
        let p = &self.peer_reqs[index];
        let (vidx, sector, len, kind, block_id) = (p.vidx, p.sector, p.len, p.kind, p.block_id);
        let cidx = self.cidx(p.node).filter(|_| !p.orphan);
        let Some(cidx) = cidx else {
            if let Some(buf) = buf {
                cx.free(buf);
            }
            let p = self.peer_req_end(cx, index);
            if let Some(cidx) = self.cidx(p.node) {
                self.lost_peer_drained(cx, cidx);
            }
            return;
        };
        if let (Ok(()), Some(buf)) = (result, buf) {
            if self.peer_reqs[index].digest.is_some() {
                return self.resync_compares(cx, cidx, index, buf);
            }
            if kind == Kind::ResyncRead {
                self.mark_unheard(cx, cidx, index);
            }
            let id = if kind == Kind::Read { block_id } else { self.conns[cidx].resync_id(block_id) };
            let data = Data { sector, block_id: id, seq_num: 0, dp_flags: DpFlags::EMPTY };
            let packet = if kind == Kind::Read { Packet::DataReply(data) } else { Packet::RsDataReply(data) };
            let payload = Payload { buf, offset: 0, len };
            self.send_payload(cx, cidx, Some(self.volumes[vidx].nr), packet, Some(payload));
            cx.free(buf);
            self.conns[cidx].pds[vidx].sent_sectors += u64::from(len) / 512;
            if kind == Kind::ResyncRead {
                self.peer_reqs[index].stage = Stage::Sent;
                return;
            }
        } else {
            let e = result.err().unwrap_or(DiskError::Io(5));
            let ack = if kind == Kind::Read { AckKind::NegRead } else { AckKind::NegResync };
            self.send_ack(cx, cidx, vidx, sector, len, block_id, ack);
            self.disk_failed(cx, vidx, &format!("read of {len} bytes at sector {sector} for a peer: {e}"));
        }
        self.peer_req_end(cx, index);
    }
}
