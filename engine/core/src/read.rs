//! Front-end reads: from the local disk, or from a peer when there is none in order (wire-protocol.md 10.6).

use zea_wire::ids::{BlockId, NodeId, NodeMask};
use zea_wire::packet::{BlockAck, BlockReq, Data, Packet};
use zea_wire::state::{ConnState, DiskState};

use crate::io::{Action, DiskCmd, DiskError, IoError, Payload, Request};
use crate::request::ReadReq;
use crate::resource::{Ctx, DiskJob, Resource};

impl Resource {
    pub(crate) fn read(&mut self, cx: &mut Ctx<'_>, vidx: usize, req: Request) {
        if self.is_held(vidx, req.op) {
            self.volumes[vidx].held.push_back(req);
            return;
        }
        let index = self.reads.insert(ReadReq { req, vidx, asked: None, failed: NodeMask::default() });
        self.read_go(cx, index);
    }

    /// Send a read to the local disk, or to a peer that has not failed yet.
    pub(crate) fn read_go(&mut self, cx: &mut Ctx<'_>, index: usize) {
        let r = &self.reads[index];
        let (vidx, req) = (r.vidx, r.req);
        let payload = req.payload.expect("checked at admission");
        let stale = broken!(ReadStaleData) && self.volumes[vidx].has_disk();
        if self.volumes[vidx].disk == DiskState::UpToDate || stale {
            self.volumes[vidx].read_bytes += u64::from(req.len);
            return self.disk(cx, vidx, DiskJob::Read(index), DiskCmd::Read { sector: req.sector, payload });
        }
        let failed = r.failed;
        let peer = (0..self.conns.len()).find(|&c| {
            let c = &self.conns[c];
            c.is_up() && c.pds[vidx].disk == DiskState::UpToDate && !failed.contains(c.node())
        });
        let Some(cidx) = peer else {
            let r = self.reads.remove(index);
            return cx.complete(r.req.id, Err(IoError::Io));
        };
        self.reads[index].asked = Some(self.conns[cidx].node());
        let packet = Packet::DataRequest(BlockReq {
            sector: req.sector,
            block_id: BlockId(index as u64),
            blksize: req.len,
            pad: 0,
        });
        self.send_volume(cx, cidx, vidx, packet);
    }

    pub(crate) fn local_read_done(&mut self, cx: &mut Ctx<'_>, index: usize, result: Result<(), DiskError>) {
        if let Err(e) = result {
            let vidx = self.reads[index].vidx;
            let (sector, len) = (self.reads[index].req.sector, self.reads[index].req.len);
            self.disk_failed(cx, vidx, &format!("read of {len} bytes at sector {sector}: {e}"));
            return self.read_go(cx, index);
        }
        let r = self.reads.remove(index);
        cx.complete(r.req.id, Ok(()));
    }

    /// P_DATA_REPLY: the data of a read that a peer serves.
    pub(crate) fn data_reply(&mut self, cx: &mut Ctx<'_>, cidx: usize, data: Data, payload: Payload) {
        let node = self.conns[cidx].node();
        let index = usize::try_from(data.block_id.0).unwrap_or(usize::MAX);
        let fits = self
            .reads
            .get(index)
            .is_some_and(|r| r.asked == Some(node) && r.req.sector == data.sector && r.req.len == payload.len);
        if !fits {
            cx.free(payload.buf);
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "P_DATA_REPLY to a read that was not asked for");
        }
        let r = self.reads.remove(index);
        cx.out.push(Action::Copy { from: payload, to: r.req.payload.expect("checked at admission") });
        cx.free(payload.buf);
        cx.complete(r.req.id, Ok(()));
    }

    /// P_NEG_DREPLY: that peer cannot serve the read.
    pub(crate) fn neg_data_reply(&mut self, cx: &mut Ctx<'_>, cidx: usize, ack: BlockAck) {
        let node = self.conns[cidx].node();
        let index = usize::try_from(ack.block_id.0).unwrap_or(usize::MAX);
        if self.reads.get(index).is_some_and(|r| r.asked == Some(node)) {
            self.reads[index].failed.insert(node);
            self.reads[index].asked = None;
            self.read_go(cx, index);
        }
    }

    /// Ask elsewhere what this peer was asked for.
    pub(crate) fn reads_lost_peer(&mut self, cx: &mut Ctx<'_>, node: NodeId) {
        let lost: Vec<usize> = self.reads.iter().filter(|(_, r)| r.asked == Some(node)).map(|(i, _)| i).collect();
        for index in lost {
            self.reads[index].asked = None;
            self.read_go(cx, index);
        }
    }
}
