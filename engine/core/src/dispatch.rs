//! Packets to their handlers, and P_STATE.

use zea_wire::flags::DpFlags;
use zea_wire::ids::{BlockId, NodeId, VolumeNr};
use zea_wire::packet::{BlockReqDigest, Data, FlushAck, OvVerdict, Packet, Trim};
use zea_wire::state::{ConnState, DiskState, ReplState, Role, StateBits, StateWord};

use crate::connection::{LinkPhase, PeerSays};
use crate::dialect;
use crate::io::{LinkId, Op, Payload};
use crate::limits;
use crate::quorum::is_behind;
use crate::resource::{Ctx, Resource};
use crate::twopc::Verdict;

impl Resource {
    pub(crate) fn packet(
        &mut self,
        cx: &mut Ctx<'_>,
        peer: NodeId,
        link: LinkId,
        volume: Option<VolumeNr>,
        packet: Packet,
        payload: Option<Payload>,
    ) {
        let cidx = self.cidx(peer).filter(|&c| self.conns[c].link.as_ref().is_some_and(|l| l.id == link));
        let Some(cidx) = cidx else {
            // Of a link that is gone.
            if let Some(p) = payload {
                cx.free(p.buf);
            }
            return;
        };
        if packet.stream() == zea_wire::packet::Stream::Control {
            self.heard(cx, cidx);
        }
        let vidx = volume.and_then(|nr| self.vidx(nr));
        let packet = self.connection_packet(cx, cidx, packet, volume);
        match (packet, vidx) {
            (Some(packet), Some(vidx)) => self.volume_packet(cx, cidx, vidx, packet, payload),
            (packet, _) => {
                if let Some(p) = payload {
                    cx.free(p.buf);
                }
                if let Some(packet) = packet {
                    self.unknown_volume(cx, cidx, &packet);
                }
            }
        }
    }

    /// Packets about the connection; gives back what is about a volume.
    fn connection_packet(
        &mut self,
        cx: &mut Ctx<'_>,
        cidx: usize,
        packet: Packet,
        volume: Option<VolumeNr>,
    ) -> Option<Packet> {
        let connecting = !self.conns[cidx].is_up();
        match packet {
            Packet::Ping => self.send(cx, cidx, None, Packet::PingAck),
            Packet::PingAck => self.ping_ack(cx, cidx),
            Packet::ConnectionFeatures(f) => self.features(cx, cidx, &f),
            Packet::AuthChallenge(c) => self.auth_challenge(cx, cidx, &c.challenge),
            Packet::AuthResponse(r) => self.auth_response(cx, cidx, r.response.as_slice()),
            Packet::Protocol(p) => self.protocol(cx, cidx, &p),
            Packet::ProtocolUpdate(_) => self.reconnect(cx, cidx, "the peer's settings changed"),
            Packet::Disconnect => self.refuse_connection(cx, cidx),
            _ if self.in_phase(cidx, LinkPhase::Refused) => {}
            _ if self.conns[cidx].link.as_ref().is_some_and(|l| l.phase < LinkPhase::Connecting) => {
                let why = format!("{} before the connection was set up", packet.name());
                self.drop_link(cx, cidx, ConnState::ProtocolError, &why);
            }
            Packet::TwopcPrepare(r) | Packet::TwopcPrepRsz(r) => self.twopc_prepare(cx, cidx, volume, *r),
            Packet::TwopcCommit(r) => self.twopc_commit_received(cx, cidx, *r),
            Packet::TwopcAbort(r) if broken!(CommitAfterAbort) => self.twopc_commit_received(cx, cidx, *r),
            Packet::TwopcAbort(r) => self.twopc_abort_received(cx, cidx, *r),
            Packet::TwopcYes(r) => self.twopc_reply(cx, cidx, &r, Verdict::Yes),
            Packet::TwopcNo(r) => self.twopc_reply(cx, cidx, &r, Verdict::No),
            Packet::TwopcRetry(r) => self.twopc_reply(cx, cidx, &r, Verdict::Retry),
            Packet::ConnStChgReply(_) | Packet::StateChgReply(_) if connecting => {}
            Packet::ConnStChgReply(r) | Packet::StateChgReply(r) => self.request_replied(cx, cidx, r),
            Packet::SyncParam89(p) => self.sync_param_told(cx, cidx, &p),
            Packet::SyncParam(p) => {
                let own = self.own_sync_param(cidx, volume.and_then(|nr| self.vidx(nr)).unwrap_or(0));
                let told = dialect::from_sync_param(self.conns[cidx].version(), p, own);
                self.sync_param_told(cx, cidx, &told);
            }
            Packet::DelayProbe(_)
            | Packet::UnplugRemote
            | Packet::EnableReplication(_)
            | Packet::EnableReplicationNext(_) => {}
            // The control stream was faster than the commit on the data stream.
            Packet::PeersInSync(_) if connecting => {}
            _ if connecting
                && !matches!(
                    packet,
                    Packet::Sizes(_)
                        | Packet::Uuids(_)
                        | Packet::Uuids110(_)
                        | Packet::CurrentUuid(_)
                        | Packet::State(_)
                ) =>
            {
                let why = format!("{} before the connection was established", packet.name());
                self.drop_link(cx, cidx, ConnState::ProtocolError, &why);
            }
            Packet::State(s) if volume.and_then(|nr| self.vidx(nr)).is_none() => {
                if let Some(role) = s.state.role() {
                    self.peer_role(cx, cidx, role);
                }
            }
            Packet::Dagtag(d) => self.dagtag_told(cx, cidx, d.dagtag),
            Packet::PeerDagtag(d) => self.peer_relies(cx, cidx, d),
            Packet::ConnStChgReq(r) => self.conn_state_requested(cx, cidx, r),
            Packet::Barrier(b) => self.barrier(cx, cidx, b.barrier),
            Packet::BarrierAck(b) => self.barrier_ack(cx, cidx, b),
            Packet::PeerAck(a) => self.peer_ack_received(cx, cidx, a),
            Packet::FlushRequests(f) => {
                let ack = FlushAck { flush_sequence: f.flush_sequence, primary_node_id: self.config.node_id };
                self.send(cx, cidx, None, Packet::FlushRequestsAck(ack));
            }
            other => return Some(other),
        }
        None
    }

    fn unknown_volume(&mut self, cx: &mut Ctx<'_>, cidx: usize, packet: &Packet) {
        let tolerated = matches!(
            packet,
            Packet::Sizes(_) | Packet::Uuids(_) | Packet::Uuids110(_) | Packet::State(_) | Packet::CurrentUuid(_)
        );
        if !tolerated {
            let why = format!("{} for a volume that this node does not have", packet.name());
            self.drop_link(cx, cidx, ConnState::ProtocolError, &why);
        }
    }

    fn volume_packet(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, packet: Packet, payload: Option<Payload>) {
        match (packet, payload) {
            (Packet::Data(d), Some(p)) => self.peer_write(cx, cidx, vidx, d, Op::Write, p.len, Some(p)),
            (Packet::DataReply(d), Some(p)) => self.data_reply(cx, cidx, d, p),
            (Packet::RsDataReply(d), Some(p)) => self.resync_data(cx, cidx, vidx, d, p),
            (packet, Some(p)) => {
                cx.free(p.buf);
                let why = format!("{} with a payload", packet.name());
                self.drop_link(cx, cidx, ConnState::ProtocolError, &why);
            }
            (packet, None) => self.plain_volume_packet(cx, cidx, vidx, packet),
        }
    }

    fn plain_volume_packet(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, packet: Packet) {
        match packet {
            Packet::Trim(t) => self.peer_write(cx, cidx, vidx, trim_data(&t), Op::Discard, t.size, None),
            Packet::Zeroes(t) => {
                let op = Op::WriteZeroes { unmap: t.dp_flags.contains(DpFlags::DISCARD) };
                self.peer_write(cx, cidx, vidx, trim_data(&t), op, t.size, None);
            }
            Packet::DataRequest(r) => self.peer_read(cx, cidx, vidx, r.sector, r.blksize, r.block_id),
            Packet::RsDagtagReq(r) | Packet::RsThinDagtagReq(r) => self.resync_read(cx, cidx, vidx, r, None),
            Packet::RsDataRequest(r) | Packet::RsThinReq(r) => {
                let r = self.undated(r.sector, r.block_id, r.blksize);
                self.resync_read(cx, cidx, vidx, r, None);
            }
            Packet::RsCsumDagtagReq(r) => self.resync_read_summed(cx, cidx, vidx, r.req, r.digest),
            Packet::CsumRsRequest(BlockReqDigest { req: r, digest }) => {
                let r = self.undated(r.sector, r.block_id, r.blksize);
                self.resync_read_summed(cx, cidx, vidx, r, digest);
            }
            Packet::RsIsInSync(a) => self.resync_is_in_sync(cx, cidx, vidx, a),
            Packet::WriteAck(a) | Packet::RecvAck(a) => self.write_ack(cx, cidx, a, true),
            Packet::RsWriteAck(a) if a.block_id == BlockId::SYNCER || self.conns[cidx].echoes_ids() => {
                self.resync_written(cx, cidx, vidx, a, true);
            }
            Packet::WriteAckInSync(a) | Packet::RsWriteAck(a) => {
                let node = self.conns[cidx].node();
                self.volumes[vidx].set_in_sync(node, a.sector, a.blksize);
                self.write_ack(cx, cidx, a, true);
            }
            Packet::NegAck(a) if a.block_id == BlockId::SYNCER => self.resync_written(cx, cidx, vidx, a, false),
            Packet::NegAck(a) => self.write_ack(cx, cidx, a, false),
            Packet::NegDreply(a) => self.neg_data_reply(cx, cidx, a),
            Packet::NegRsDreply(a) | Packet::RsCancel(a) | Packet::RsCancelAhead(a)
                if self.conns[cidx].pds[vidx].verify.source.is_some() =>
            {
                self.verify_not_served(cidx, vidx, a);
            }
            Packet::OvDagtagReq(r) => self.verify_request(cx, cidx, vidx, r),
            Packet::OvRequest(r) => {
                let r = self.undated(r.sector, r.block_id, r.blksize);
                self.verify_request(cx, cidx, vidx, r);
            }
            Packet::OvDagtagReply(r) => self.verify_reply(cx, cidx, vidx, r.req, r.digest),
            Packet::OvReply(BlockReqDigest { req: r, digest }) => {
                let r = self.undated(r.sector, r.block_id, r.blksize);
                self.verify_reply(cx, cidx, vidx, r, digest);
            }
            Packet::OvResultId(r) => {
                let verdict = OvVerdict::from_result(r.result);
                self.verify_told(cx, cidx, vidx, (r.sector, r.blksize), verdict);
            }
            Packet::OvResult(r) => {
                let verdict = OvVerdict::from_block_id(r.block_id);
                self.verify_told(cx, cidx, vidx, (r.sector, r.blksize), Some(verdict));
            }
            Packet::NegRsDreply(a) => self.resync_not_served(cx, cidx, vidx, a, true),
            Packet::RsCancel(a) | Packet::RsCancelAhead(a) => self.resync_not_served(cx, cidx, vidx, a, false),
            Packet::RsNegAck(a) => self.resync_written(cx, cidx, vidx, a, false),
            Packet::Bitmap(b) => self.bitmap_plain(cx, cidx, vidx, &b),
            Packet::CompressedBitmap(b) => self.bitmap_compressed(cx, cidx, vidx, &b),
            Packet::PeersInSync(d) => self.peers_in_sync(cx, cidx, vidx, d),
            Packet::OutOfSync(d) => self.out_of_sync(cx, cidx, vidx, d),
            Packet::Sizes(s) => {
                let up = self.conns[cidx].is_up();
                let pd = &mut self.conns[cidx].pds[vidx];
                if !up {
                    // The first packet of a round about this volume: what was decided before is void.
                    pd.says = PeerSays::default();
                    pd.decision = None;
                }
                pd.says.sizes = Some(*s);
                if up && self.conns[cidx].speaks_84() {
                    self.sizes_told(cx, cidx, vidx, &s);
                }
            }
            Packet::StateChgReq(r) => self.state_requested(cx, cidx, vidx, r),
            Packet::SyncUuid(u) => self.sync_uuid_received(cx, cidx, vidx, u),
            Packet::Uuids(u) => {
                let uuids = dialect::from_packet(self.config.node_id, &u);
                self.uuids_received(cx, cidx, vidx, uuids);
            }
            Packet::Uuids110(u) => self.uuids_received(cx, cidx, vidx, u),
            Packet::CurrentUuid(u) => self.current_uuid_received(cx, cidx, vidx, u),
            Packet::State(s) => self.state(cx, cidx, vidx, s.state),
            other => {
                let why = format!("{} was not expected", other.name());
                self.drop_link(cx, cidx, ConnState::ProtocolError, &why);
            }
        }
    }

    /// P_STATE.
    fn state(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, bits: StateBits) {
        let version = self.conns[cidx].version();
        let word = match bits.word(version) {
            Ok(word) => word,
            Err(e) => return self.drop_link(cx, cidx, ConnState::ProtocolError, &e.to_string()),
        };
        if !self.conns[cidx].is_up() {
            return self.handshake_state(cx, cidx, vidx, word);
        }
        if word.conn.conn_state() == Some(ConnState::TearDown) && self.conns[cidx].keeps_bits() {
            return self.drop_link(cx, cidx, ConnState::TearDown, "the peer connects again, to compare the data");
        }
        if self.conns[cidx].speaks_84() && self.state_compares_84(cx, cidx, vidx, word) {
            return;
        }
        self.conns[cidx].pds[vidx].is_behind = is_behind(word.disk);
        self.peer_pauses(cx, cidx, vidx, word);
        self.source_sees_state(cx, cidx, vidx, word);
        self.verify_sees_state(cx, cidx, vidx, word);
        self.target_waits_for_bitmap(cx, cidx, vidx, word);
        self.peer_disk(cx, cidx, vidx, word);
        self.peer_role(cx, cidx, word.role);
        self.resync_new_area(cx, cidx, vidx);
        self.begin_generation_for_peer(cx, cidx, vidx);
    }

    /// The peer's disk changed.
    fn peer_disk(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, word: StateWord) {
        let has = |d: DiskState| d >= DiskState::Inconsistent && d != DiskState::DUnknown;
        let zea = self.conns[cidx].keeps_bits();
        let pd = &mut self.conns[cidx].pds[vidx];
        if zea && pd.disk == DiskState::Failed && has(word.disk) {
            // From before it failed: a negative ack was faster. After the next attach Zea connects again.
            return;
        }
        let crossed = zea && word.disk == DiskState::UpToDate && pd.told_out_of_sync;
        let strange = word.disk == DiskState::UpToDate && self.became_something_else(cidx, vidx);
        let pd = &mut self.conns[cidx].pds[vidx];
        let (old, new) = (pd.disk, if crossed || strange { DiskState::Outdated } else { word.disk });
        pd.says.state = Some(word);
        if strange {
            self.reconnect(cx, cidx, "its data is not what this Primary serves");
        }
        if old == new {
            return;
        }
        let pd = &mut self.conns[cidx].pds[vidx];
        pd.disk = new;
        self.state_changed = true;
        let node = self.conns[cidx].node();
        if new == DiskState::UpToDate {
            self.volumes[vidx].exposed_weak.remove(node);
            self.volumes[vidx].lacking.remove(node);
            self.recheck_at = Some(cx.now.plus_ms(limits::RECHECK_MS));
        } else {
            self.confirmed_by(cx, vidx, node);
        }
        if has(old) && !has(new) {
            self.peer_disk_gone(cx, cidx, vidx);
            if self.role == Role::Primary {
                self.volumes[vidx].new_uuid_needed = true;
            }
        }
        // A resync that only waits, and not for another one, waits for a source with usable data.
        let rests = |repl: ReplState| repl <= ReplState::Established || repl == ReplState::PausedSyncT;
        let idle = self.conns.iter().all(|c| rests(c.pds[vidx].repl));
        let own = self.volumes[vidx].disk;
        let worse = matches!(own, DiskState::Inconsistent | DiskState::Outdated);
        if new == DiskState::UpToDate && worse && idle && self.conns[cidx].is_up() {
            if self.compares_here(cidx) {
                self.compare_here(cx, cidx, vidx);
            } else {
                self.reconnect(cx, cidx, "to resync from it: its disk became UpToDate");
            }
        }
    }

    /// Nothing can be moved to or from this disk any more.
    pub(crate) fn peer_disk_gone(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        self.volumes[vidx].retry_waiters = true;
        let pd = &mut self.conns[cidx].pds[vidx];
        if pd.repl > ReplState::Established {
            pd.repl = ReplState::Established;
            self.drop_resync(vidx, cidx);
            self.verify_interrupt(cx, cidx, vidx);
        }
    }

    /// Our resync from this peer ends without a result.
    pub(crate) fn drop_resync(&mut self, vidx: usize, cidx: usize) {
        let pd = &mut self.conns[cidx].pds[vidx];
        pd.finishing = false;
        if let Some(r) = pd.resync.take() {
            for q in r.in_flight.values().filter(|q| !q.answered) {
                self.volumes[vidx].intervals.remove(q.interval);
            }
            self.volumes[vidx].retry_waiters = true;
        }
    }
}

fn trim_data(t: &Trim) -> Data {
    Data { sector: t.sector, block_id: t.block_id, seq_num: t.seq_num, dp_flags: t.dp_flags }
}
