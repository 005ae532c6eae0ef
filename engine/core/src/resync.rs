//! Resync: bitmap exchange, requests of the target, the end (handshake-and-states.md 6; wire-protocol.md 11).

use zea_meta::flags::{DeviceFlags, PeerFlags};
use zea_wire::bitmap;
use zea_wire::digest::Digest;
use zea_wire::features::Features;
use zea_wire::flags::UuidFlags;
use zea_wire::ids::{BlockId, NodeId, NodeMask};
use zea_wire::packet::{
    Bitmap, BlockAck, BlockReq, BlockReqDigest, CompressedBitmap, Data, Packet, RsReq, RsReqDigest,
};
use zea_wire::state::{ConnState, DiskState, ReplState, Role};
use zea_wire::vli;

use crate::connection::ResyncReq;
use crate::event::Severity;
use crate::io::{Op, Payload};
use crate::late_bits::LateBits;
use crate::limits;
use crate::meta_queue::{Step, Then};
use crate::peer_request::{AckKind, Kind, PeerReq, Stage};
use crate::resource::{Ctx, Resource};
use crate::served::{Complete, Vouched};
use crate::uuid::UuidView;
use crate::volume::Lock;

impl Resource {
    // ---- bitmap exchange -----------------------------------------------------------------------------------------

    /// The source sends first (6.1).
    pub(crate) fn start_bitmap_exchange(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let total = self.wire_bits(vidx);
        self.conns[cidx].pds[vidx].bitmap_in = (total > 0).then(|| bitmap::Receiver::new(total));
        if self.conns[cidx].pds[vidx].repl == ReplState::WFBitMapS && !self.full_sync_pending(cidx, vidx) {
            self.send_bitmap(cx, cidx, vidx);
        }
    }

    /// The bits towards this peer are all being set and are not stable yet.
    fn full_sync_pending(&self, cidx: usize, vidx: usize) -> bool {
        let node = self.conns[cidx].node();
        self.volumes[vidx]
            .attached
            .as_ref()
            .is_some_and(|a| a.sb.peers[usize::from(node.0)].flags.contains(PeerFlags::FULL_SYNC))
    }

    /// All bits towards a peer are stable: send them if it waits for them.
    pub(crate) fn full_bitmap_stable(&mut self, cx: &mut Ctx<'_>, vidx: usize, node: NodeId) {
        if let Some(cidx) = self.cidx(node)
            && self.conns[cidx].is_up()
        {
            match self.conns[cidx].pds[vidx].repl {
                ReplState::WFBitMapS => self.send_bitmap(cx, cidx, vidx),
                ReplState::StartingSyncS if self.conns[cidx].speaks_84() => self.source_names_resync(cx, cidx, vidx),
                _ => self.full_sync_goes_on(cx, cidx, vidx),
            }
        }
    }

    fn send_bitmap(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let c = &self.conns[cidx];
        let (node, use_rle, format) = (c.node(), c.config.net.use_rle && c.has_run_lengths(), c.header_format());
        let v = &self.volumes[vidx];
        let (Some(slot), Some(a)) = (v.slot(node), v.attached.as_ref()) else {
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "no bitmap slot is left for this peer");
        };
        let total = a.bitmap.bits_total();
        let mut sender = bitmap::Sender::new(total, format, 0);
        let mut packets = Vec::new();
        loop {
            match sender.step() {
                bitmap::SendStep::Done => break,
                bitmap::SendStep::EmptyPlain => {
                    packets.push(Packet::Bitmap(Bitmap::default()));
                    sender.sent_plain();
                }
                bitmap::SendStep::Part { bit, word_bit, plain_bytes } => {
                    let first_set = a.bitmap.test(slot, bit);
                    let mut at = bit;
                    let runs = std::iter::from_fn(|| {
                        let (_, len) = (at < total).then(|| a.bitmap.next_run(slot, at)).flatten()?;
                        at += len;
                        Some(len)
                    });
                    match vli::encode_part(runs, first_set, bitmap::max_code_bytes(format)) {
                        Some(part) if use_rle && part.is_worth_it() => {
                            sender.sent_compressed(part.bits);
                            packets.push(Packet::CompressedBitmap(part.part));
                        }
                        _ => {
                            let words = plain_bytes as u64 / 8;
                            let bytes = (0..words)
                                .flat_map(|w| a.bitmap.word64(slot, word_bit / 64 + w).to_le_bytes())
                                .collect();
                            packets.push(Packet::Bitmap(Bitmap { words: bytes }));
                            sender.sent_plain();
                        }
                    }
                }
            }
        }
        for packet in packets {
            self.send_volume(cx, cidx, vidx, packet);
        }
        if total == 0 {
            self.drop_link(cx, cidx, ConnState::ProtocolError, "the volume has no size");
        }
    }

    fn wire_bits(&self, vidx: usize) -> u64 {
        self.volumes[vidx].attached.as_ref().map_or(0, |a| a.bitmap.bits_total())
    }

    /// P_BITMAP: OR it into ours; at its end answer or start.
    pub(crate) fn bitmap_plain(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, part: &Bitmap) {
        self.bitmap_part(cx, cidx, vidx, |receiver, map, slot| {
            for (bit, word) in receiver.plain(part)? {
                map.or_words(slot, bit, [word]);
            }
            Ok(())
        });
    }

    /// P_COMPRESSED_BITMAP: likewise.
    pub(crate) fn bitmap_compressed(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, part: &CompressedBitmap) {
        self.bitmap_part(cx, cidx, vidx, |receiver, map, slot| {
            for run in receiver.compressed(part)? {
                if run.set {
                    map.set_range(slot, run.start, run.start + run.len - 1);
                }
            }
            Ok(())
        });
    }

    fn bitmap_part(
        &mut self,
        cx: &mut Ctx<'_>,
        cidx: usize,
        vidx: usize,
        take: impl FnOnce(&mut bitmap::Receiver, &mut crate::bitmap::Bitmap, usize) -> Result<(), bitmap::BitmapError>,
    ) {
        let node = self.conns[cidx].node();
        let repl = self.conns[cidx].pds[vidx].repl;
        if !matches!(repl, ReplState::WFBitMapS | ReplState::WFBitMapT) {
            return cx.notice(Severity::Info, format!("a bitmap from node {node} in state {repl}: ignored"));
        }
        let v = &mut self.volumes[vidx];
        let (Some(slot), Some(a)) = (v.slot(node), v.attached.as_mut()) else { return };
        let Some(receiver) = self.conns[cidx].pds[vidx].bitmap_in.as_mut() else { return };
        let taken = take(receiver, &mut a.bitmap, slot);
        let done = receiver.is_finished();
        match taken {
            Err(e) => self.drop_link(cx, cidx, ConnState::ProtocolError, &format!("bitmap: {e}")),
            Ok(()) if done => {
                self.conns[cidx].pds[vidx].bitmap_in = None;
                self.bitmap_complete(cx, cidx, vidx);
            }
            Ok(()) => {}
        }
    }

    fn bitmap_complete(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let node = self.conns[cidx].node();
        let dirty = self.volumes[vidx].dirty_bits(node);
        self.volumes[vidx].meta.push(Step::Bitmap);
        self.conns[cidx].pds[vidx].resync_total_bits = dirty;
        self.state_changed = true;
        if self.conns[cidx].speaks_84() {
            if self.conns[cidx].pds[vidx].repl == ReplState::WFBitMapS {
                return self.source_names_resync(cx, cidx, vidx);
            }
            self.conns[cidx].pds[vidx].repl = ReplState::WFSyncUUID;
            return self.send_bitmap(cx, cidx, vidx);
        }
        if self.conns[cidx].pds[vidx].repl == ReplState::WFBitMapS {
            self.becomes_source(cx, cidx, vidx);
        } else {
            self.send_bitmap(cx, cidx, vidx);
            self.conns[cidx].pds[vidx].repl = ReplState::PausedSyncT;
            self.recheck_at = Some(cx.now.plus_ms(limits::RECHECK_MS));
            self.resync_choose_target(cx, vidx);
        }
        self.send_state(cx, cidx, vidx);
    }

    pub(crate) fn becomes_source(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let busy = self.sync_source_of(vidx).is_some();
        let pd = &mut self.conns[cidx].pds[vidx];
        pd.meter.begin(cx.now);
        pd.repl = if busy { ReplState::PausedSyncS } else { ReplState::SyncSource };
        pd.disk = DiskState::Inconsistent;
        self.state_changed = true;
        self.volumes[vidx].retry_waiters = true;
        let node = self.conns[cidx].node();
        let (nr, kib) = (self.volumes[vidx].nr, self.volumes[vidx].dirty_bits(node) * 4);
        cx.notice(Severity::Info, format!("volume {nr}: resync of node {node} begins: {kib} KiB"));
    }

    /// One source at a time, one that is not paused if there is any: the Primary, since what it has written nobody else can make up for, or the peer with the fewest dirty bits
    /// (2.4 no. 6).
    pub(crate) fn resync_choose_target(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        if self.sync_source_of(vidx).is_some() || !self.volumes[vidx].has_disk() {
            return;
        }
        if self.volumes[vidx].disk >= DiskState::Consistent {
            // Resynced from another node meanwhile, even if a Primary has been lost since: what is to be done now shows when they
            // compare again (`waits_for_nothing`).
            return;
        }
        let best = (0..self.conns.len())
            .filter(|&c| self.conns[c].is_up() && self.conns[c].pds[vidx].repl == ReplState::PausedSyncT)
            .filter(|&c| self.conns[c].pds[vidx].disk >= DiskState::Consistent)
            .min_by_key(|&c| {
                let c = &self.conns[c];
                let serves = c.role == Role::Primary && c.pds[vidx].disk == DiskState::UpToDate;
                (c.pds[vidx].is_paused(), !serves, self.volumes[vidx].dirty_bits(c.node()))
            });
        if let Some(cidx) = best {
            self.resync_begin_target(cx, cidx, vidx);
        }
    }

    /// SyncTarget.
    pub(crate) fn resync_begin_target(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let node = self.conns[cidx].node();
        let rotate = self.rotate_context(vidx, self.dagtag);
        let v = &mut self.volumes[vidx];
        if let Some(u) = self.conns[cidx].pds[vidx].says.uuids.as_ref() {
            v.resync_start_uuid = v.uuids.resync_start_target(&rotate, &UuidView::from_packet(node, u));
        }
        let dirty = self.becomes_target(cidx, vidx);
        self.conns[cidx].pds[vidx].meter.begin(cx.now);
        self.stop_being_source(cx, vidx);
        cx.notice(
            Severity::Info,
            format!("volume {}: resync from node {node} begins: {} KiB", self.volumes[vidx].nr, dirty * 4),
        );
        self.send_states(cx);
    }

    /// A node whose own data is being replaced is no source: its targets look for another one, or come back (11.1a).
    fn stop_being_source(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        for cidx in self.up_conns() {
            if self.conns[cidx].pds[vidx].is_sync_source() {
                self.reconnect(cx, cidx, "this node is being resynced itself");
            }
        }
    }

    // ---- requests of the target ------------------------------------------------------------------------------------

    /// Keep the window of requests full, end what is complete.
    pub(crate) fn resync_steps(&mut self, cx: &mut Ctx<'_>) {
        for cidx in 0..self.conns.len() {
            for vidx in 0..self.volumes.len() {
                if self.conns[cidx].pds[vidx].resync.is_some() {
                    self.resync_step(cx, cidx, vidx);
                }
            }
        }
    }

    fn resync_step(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let node = self.conns[cidx].node();
        let Some(slot) = self.volumes[vidx].slot(node) else { return };
        let rests = self.volumes[vidx].overclaims() || self.conns[cidx].pds[vidx].is_paused();
        let window = self.volumes[vidx].config.disk.resync_window_sectors;
        let mut wrapped = false;
        loop {
            let r = self.conns[cidx].pds[vidx].resync.as_ref().expect("checked by the caller");
            let full = r.in_flight_sectors >= window || r.in_flight.len() >= limits::MAX_RESYNC_REQUESTS;
            if full
                || rests
                || r.begins.is_some()
                || r.blocked
                || r.end_ping.is_some()
                || r.retry_at.is_some_and(|t| cx.now < t)
            {
                break;
            }
            let from = r.next_bit;
            let bitmap = &self.volumes[vidx].attached.as_ref().expect("a sync target has a disk").bitmap;
            let Some(first) = next_to_ask_for(bitmap, &r.late, slot, from) else {
                let r = self.conns[cidx].pds[vidx].resync.as_mut().expect("above");
                r.next_bit = 0;
                if wrapped || from == 0 || !r.in_flight.is_empty() {
                    break;
                }
                wrapped = true;
                continue;
            };
            let at_once = r.late.distance(first);
            let Some(paced) = self.may_ask(cx, cidx, vidx) else { break };
            let longest =
                self.longest_request(cidx, vidx).into_iter().chain(at_once).chain(self.paced_bits(vidx, paced)).min();
            let (sector, len, next) = self.resync_range(vidx, slot, first, longest);
            self.conns[cidx].pds[vidx].resync.as_mut().expect("above").next_bit = next;
            self.resync_request(cx, cidx, vidx, sector, len);
        }
        self.resync_end(cx, cidx, vidx);
    }

    /// Adjacent set bits from `first` on, no more than those to which its place is aligned, or than the `longest` request: sector,
    /// bytes, the bit behind.
    fn resync_range(&self, vidx: usize, slot: usize, first: u64, longest: Option<u64>) -> (u64, u32, u64) {
        let v = &self.volumes[vidx];
        let bitmap = &v.attached.as_ref().expect("a sync target has a disk").bitmap;
        let per_bit = bitmap.sectors_per_bit();
        let most = u64::from(limits::MAX_RESYNC_BYTES) / 512 / per_bit;
        let run = bitmap.next_run(slot, first).map_or(1, |(_, len)| len);
        let aligned = 1_u64.checked_shl(first.trailing_zeros()).unwrap_or(most);
        let bits = run.min(most).min(aligned).min(longest.unwrap_or(most));
        let sector = first * per_bit;
        let end = ((first + bits) * per_bit).min(v.size_sectors);
        (sector, u32::try_from((end - sector) * 512).expect("at most 1 MiB"), first + bits)
    }

    /// The longest request of a pace, in blocks; a share of a step is rounded up to what is asked for at once.
    fn paced_bits(&self, vidx: usize, sectors: u64) -> Option<u64> {
        let per_bit = self.volumes[vidx].attached.as_ref()?.bitmap.sectors_per_bit();
        (sectors < u64::from(limits::MAX_RESYNC_BYTES) / 512).then(|| sectors.div_ceil(per_bit).next_power_of_two())
    }

    /// Ask for a range.
    fn resync_request(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, sector: u64, len: u32) {
        let Some((serial, block_id)) = self.resync_take(cidx, vidx, sector, len) else { return };
        if self.csums_alg(cidx).is_some() {
            return self.resync_sum(cx, cidx, vidx, serial, sector, len);
        }
        self.resync_ask(cx, cidx, vidx, BlockReq { sector, block_id, blksize: len, pad: 0 }, None);
    }

    /// Take a range to ask for, unless application I/O is there: the number of the request, and its id on the wire.
    pub(crate) fn resync_take(&mut self, cidx: usize, vidx: usize, sector: u64, len: u32) -> Option<(u64, BlockId)> {
        let node = self.conns[cidx].node();
        let sectors = u64::from(len) / 512;
        if self.conflict(vidx, sector, sectors, Lock::ResyncRequest(node)) {
            let r = self.conns[cidx].pds[vidx].resync.as_mut().expect("checked by the caller");
            // Come back in another pass.
            r.blocked = r.in_flight.is_empty();
            return None;
        }
        let interval = self.volumes[vidx].lock_range(sector, sectors, Lock::ResyncRequest(node));
        let serial = self.next_block_id;
        self.next_block_id += 1;
        let block_id = self.conns[cidx].resync_id(BlockId(serial));
        let r = self.conns[cidx].pds[vidx].resync.as_mut().expect("checked by the caller");
        r.in_flight.insert(sector, ResyncReq { serial, block_id, len, interval, answered: false });
        r.in_flight_sectors += sectors;
        r.pace.asked(sectors);
        Some((serial, block_id))
    }

    /// The request for a range that is taken; `digest`: of what is there now.
    pub(crate) fn resync_ask(
        &mut self,
        cx: &mut Ctx<'_>,
        cidx: usize,
        vidx: usize,
        req: BlockReq,
        digest: Option<Digest>,
    ) {
        if self.role == Role::Primary {
            self.send_dagtag(cx, cidx);
        }
        let BlockReq { sector, block_id, blksize, .. } = req;
        let (dagtag_node_id, dagtag) = self.resync_dagtag();
        let dated = RsReq { sector, block_id, blksize, dagtag_node_id, dagtag };
        let dependent = self.conns[cidx].link.as_ref().is_some_and(|l| l.has(Features::RESYNC_DAGTAG));
        let packet = match (dependent, digest) {
            (true, None) => Packet::RsDagtagReq(dated),
            (true, Some(digest)) => Packet::RsCsumDagtagReq(RsReqDigest { req: dated, digest }),
            (false, None) => Packet::RsDataRequest(req),
            (false, Some(digest)) => Packet::CsumRsRequest(BlockReqDigest { req, digest }),
        };
        self.send_volume(cx, cidx, vidx, packet);
    }

    /// What the source must have received before it reads (wire-protocol.md 11.1).
    pub(crate) fn resync_dagtag(&self) -> (NodeId, u64) {
        let primary = self.conns.iter().find(|c| c.is_up() && c.role == Role::Primary);
        let needed = match self.role {
            Role::Primary => Some((self.config.node_id, self.dagtag)),
            _ => primary.and_then(|c| c.dagtag_received.map(|d| (c.node(), d))),
        };
        // Without a dependency both are 0.
        needed.filter(|(_, dagtag)| *dagtag > 0).unwrap_or_default()
    }

    /// P_RS_DATA_REPLY.
    pub(crate) fn resync_data(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, data: Data, payload: Payload) {
        let fits = self.conns[cidx].pds[vidx]
            .resync
            .as_ref()
            .and_then(|r| r.in_flight.get(&data.sector))
            .is_some_and(|q| !q.answered && q.block_id == data.block_id && q.len == payload.len);
        if self.conns[cidx].pds[vidx].resync.is_none() {
            // Asked for before this resync ended, for instance with the disk: the source waits for an answer.
            cx.free(payload.buf);
            return self.send_ack(cx, cidx, vidx, data.sector, payload.len, data.block_id, AckKind::ResyncFailed);
        }
        if !fits {
            cx.free(payload.buf);
            return self.drop_link(cx, cidx, ConnState::ProtocolError, "resync data that was not asked for");
        }
        let node = self.conns[cidx].node();
        let pd = &mut self.conns[cidx].pds[vidx];
        pd.received_sectors += u64::from(payload.len) / 512;
        let r = pd.resync.as_mut().expect("looked at above");
        r.pace.arrived(u64::from(payload.len) / 512);
        if let Vouched::Asked(id, link) = r.vouched
            && id == data.block_id
        {
            r.vouched = Vouched::Yes(link);
        }
        let q = r.in_flight.get_mut(&data.sector).expect("looked at above");
        q.answered = true;
        let interval = q.interval;
        // The range stays locked: the request's lock becomes the writer's, without a gap.
        self.volumes[vidx].intervals.remove(interval);
        self.conns[cidx].active_peer_reqs += 1;
        let index = self.peer_reqs.insert(PeerReq {
            kind: Kind::ResyncWrite,
            stage: Stage::Range,
            node,
            vidx,
            op: Op::Write,
            sector: data.sector,
            len: payload.len,
            block_id: data.block_id,
            flags: Default::default(),
            payload: Some(payload),
            interval: None,
            digest: None,
            dagtag: 0,
            dagtag_node: node,
            epoch: 0,
            serial: 0,
            al: false,
            orphan: false,
        });
        self.peer_req_go(cx, index);
        self.volumes[vidx].retry_waiters = true;
    }

    /// P_NEG_RS_DREPLY or P_RS_CANCEL: the request is not served, now or never.
    pub(crate) fn resync_not_served(&mut self, cx: &Ctx<'_>, cidx: usize, vidx: usize, ack: BlockAck, failed: bool) {
        let Some(r) = self.conns[cidx].pds[vidx].resync.as_mut() else { return };
        let Some(q) = r.in_flight.remove(&ack.sector) else { return };
        r.in_flight_sectors -= u64::from(q.len) / 512;
        r.failed += u64::from(failed);
        r.retry_at = Some(cx.now.plus_ms(limits::RESYNC_RETRY_MS));
        if !q.answered {
            self.volumes[vidx].intervals.remove(q.interval);
            self.volumes[vidx].retry_waiters = true;
        }
    }

    /// All bits are clear and nothing is out: ping, then finish (6.5).
    fn resync_end(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let node = self.conns[cidx].node();
        let acked = self.conns[cidx].link.as_ref().map_or(0, |l| l.ping_acks);
        let dirty = self.volumes[vidx].dirty_bits(node);
        let pd = &self.conns[cidx].pds[vidx];
        let Some(r) = pd.resync.as_ref() else { return };
        let runs = pd.repl == ReplState::SyncTarget && !pd.is_paused() && !pd.finishing;
        if !runs || r.begins.is_some() || !r.in_flight.is_empty() {
            return;
        }
        if dirty > 0 {
            let r = self.conns[cidx].pds[vidx].resync.as_mut().expect("above");
            r.end_ping = None;
            if r.failed > 0 {
                // The source could not read: try those blocks with a fresh connection, not in a loop.
                return self.drop_link(
                    cx,
                    cidx,
                    ConnState::NetworkFailure,
                    "the resync source could not read some blocks",
                );
            }
            return;
        }
        match r.end_ping {
            None => {
                let (ping, end_writes) = (self.ping(cx, cidx), self.volumes[vidx].peer_writes_arrived);
                if let Some(r) = self.conns[cidx].pds[vidx].resync.as_mut() {
                    (r.end_ping, r.end_writes) = (Some(ping), end_writes);
                }
            }
            Some(_) if self.has_peer_write_before(vidx, r.end_writes) => {}
            Some(ping) if acked >= ping && self.target_is_complete(cidx, vidx) == Complete::NotYet => {
                self.complete_target(cx, cidx, vidx);
            }
            Some(ping) if acked >= ping => self.resync_finish(vidx, cidx),
            Some(_) => {}
        }
    }

    /// A write that the source had made before it sent the last resync data may come after that here: for that long this disk shows
    /// something older next to something newer.
    fn has_peer_write_before(&self, vidx: usize, serial: u64) -> bool {
        let older = |p: &PeerReq| p.kind == Kind::Write && p.vidx == vidx && p.serial < serial;
        self.volumes[vidx].peer_writes > 0 && self.peer_reqs.iter().any(|(_, p)| older(p))
    }

    /// Data and bitmap, then the source's UUIDs, stable; only then UpToDate.
    fn resync_finish(&mut self, vidx: usize, cidx: usize) {
        let node = self.conns[cidx].node();
        if self.serves_peers(vidx) && !self.knows_generation(&self.conns[cidx], vidx) {
            // This node is Primary and has just begun a generation: the source is about to tell its UUIDs of it.
            return;
        }
        let pd = &mut self.conns[cidx].pds[vidx];
        let Some(u) = pd.says.uuids.clone() else { return };
        pd.finishing = true;
        let source_disk = pd.disk;
        // What this node was to give up is gone. Nobody has decided that what is here now, its source's, be given up to another one.
        self.conns.iter_mut().for_each(|c| c.discard_my_data = false);
        let source = UuidView::from_packet(node, &u);
        let complete = self.target_is_complete(cidx, vidx) == Complete::Yes;
        let at_source = self.nodes_at(vidx, source.current);
        let rotate = self.rotate_context(vidx, self.dagtag);
        let v = &mut self.volumes[vidx];
        v.meta.push(Step::DataFlush);
        v.meta.push(Step::Bitmap);
        let start = v.resync_start_uuid;
        if self.conns[cidx].speaks_84() {
            v.uuids.sync_ends_at_target(&source, self.config.node_id, self.role == Role::Primary);
        } else {
            v.uuids.resync_finished_target(&rotate, &source, start, at_source);
        }
        v.becomes_consistent();
        v.set_flag(DeviceFlags::WAS_UP_TO_DATE, source_disk >= DiskState::Consistent && complete);
        v.set_flag(DeviceFlags::CRASHED_PRIMARY, self.role == Role::Primary);
        v.set_flag(DeviceFlags::ZEA_BEHIND, !complete);
        v.set_flag(DeviceFlags::ZEA_LOST_WRITES, u.uuid_flags.contains(UuidFlags::ZEA_LOST_WRITES));
        v.set_flag(DeviceFlags::ZEA_WAS_PRIMARY, u.uuid_flags.contains(UuidFlags::ZEA_WAS_PRIMARY));
        v.crashed_primary = false;
        v.meta.push(Step::SuperBlock);
        v.meta.push(Step::Then(Then::ResyncFinished(node)));
    }

    /// The result is stable: this disk is as good as its source.
    pub(crate) fn resync_finished(&mut self, cx: &mut Ctx<'_>, vidx: usize, node: NodeId) {
        let Some(cidx) = self.cidx(node) else { return };
        if self.volumes[vidx].closing.is_some() {
            // The disk is being let go: what it is, its meta data says.
            return;
        }
        let up = self.conns[cidx].is_up() && self.conns[cidx].pds[vidx].finishing;
        if !up {
            return self.resync_finished_alone(vidx, node);
        }
        let source_disk = self.conns[cidx].pds[vidx].disk;
        let pd = &mut self.conns[cidx].pds[vidx];
        pd.finishing = false;
        let moved_on = pd.says.uuids.as_ref().is_some_and(|u| u.current & !1 != self.volumes[vidx].uuids.current & !1);
        let unnamed = self.serves_peers(vidx) && !self.knows_generation(&self.conns[cidx], vidx);
        if moved_on || unnamed {
            // A new generation began meanwhile: this node has its writes, it lacks the name.
            return self.resync_finish(vidx, cidx);
        }
        let complete = self.target_is_complete(cidx, vidx);
        let pd = &mut self.conns[cidx].pds[vidx];
        if self.volumes[vidx].dirty_bits(node) > 0 || complete == Complete::NotYet {
            // A late P_OUT_OF_SYNC, or the Primary has just connected again: another pass.
            if let Some(r) = pd.resync.as_mut() {
                r.end_ping = None;
            }
            return self.volumes[vidx].becomes_target_of(node);
        }
        pd.resync = None;
        pd.repl = ReplState::Established;
        pd.resync_total_bits = 0;
        let behind = complete == Complete::Behind;
        let v = &mut self.volumes[vidx];
        v.disk = match source_disk {
            _ if behind => DiskState::Outdated,
            DiskState::UpToDate | DiskState::Consistent => source_disk,
            // The source has heard meanwhile that it is behind: so is what came of it.
            _ => DiskState::Outdated,
        };
        let good = v.disk > DiskState::Outdated;
        if (behind && v.set_flag(DeviceFlags::ZEA_BEHIND, true)) | v.set_flag(DeviceFlags::WAS_UP_TO_DATE, good) {
            v.meta.push(Step::SuperBlock);
        }
        self.forget_lost_writes(vidx, Some(node));
        self.state_changed = true;
        cx.notice(Severity::Info, format!("volume {}: resync from node {node} is complete", self.volumes[vidx].nr));
        if self.conns[cidx].speaks_84() {
            self.peer_has_our_uuids(cidx, vidx);
        } else {
            self.send_uuids(cx, vidx, UuidFlags::EMPTY, NodeMask::EMPTY);
        }
        self.end_paused_targets(cx, vidx);
        if behind
            && self.served_primary(vidx).is_none()
            && let Some(primary) = self.primary_peer().and_then(|node| self.cidx(node))
        {
            self.reconnect(cx, primary, "to resync what the Primary wrote meanwhile");
        }
        self.recheck_at = Some(cx.now.plus_ms(limits::RECHECK_MS));
        self.send_states(cx);
        self.await_confirmation(vidx);
        self.writes_new_uuid(cx, vidx);
        if self.volumes[vidx].disk == DiskState::Consistent {
            self.want(crate::twopc::Change::Empty, None);
        }
        self.release_held(cx, vidx);
    }

    /// The source is gone in the meantime. What it had is here, unless it told of later writes (P_OUT_OF_SYNC); whether a Primary goes
    /// on elsewhere is to be asked. A Primary that has begun a generation meanwhile lacks its name: the source may have it.
    fn resync_finished_alone(&mut self, vidx: usize, node: NodeId) {
        let serves = self.serves_peers(vidx);
        let v = &mut self.volumes[vidx];
        let unnamed = serves && v.uuids.current & !1 != v.exposed_uuid & !1;
        let flags = v.attached.as_ref().map_or(DeviceFlags(0), |a| a.sb.flags);
        if !flags.contains(DeviceFlags::CONSISTENT) {
            // Another resync has begun since: this disk is Inconsistent until that one ends.
            return;
        }
        if v.dirty_bits(node) > 0 {
            v.becomes_target_of(node);
        } else if flags.contains(DeviceFlags::WAS_UP_TO_DATE) && !unnamed {
            v.disk = DiskState::Consistent;
            self.want(crate::twopc::Change::Empty, None);
        } else {
            v.disk = DiskState::Outdated;
            if v.set_flag(DeviceFlags::WAS_UP_TO_DATE, false) {
                v.meta.push(Step::SuperBlock);
            }
        }
        self.state_changed = true;
    }

    /// Other sources waited for this node: without bits they are in sync, with bits they go on. A peer that this node has left
    /// behind by its resync must not go on as if it had the same, and what was decided with one that has yet to send its bits, or to get
    /// the last ones of this node, holds no longer.
    pub(crate) fn end_paused_targets(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        let current = self.volumes[vidx].uuids.current;
        let mut again = Vec::new();
        for cidx in self.up_conns() {
            let (pd, node) = (&self.conns[cidx].pds[vidx], self.conns[cidx].node());
            let compared = pd.is_established() || pd.repl == ReplState::WFBitMapT;
            let left_behind =
                compared && pd.disk >= DiskState::Consistent && !self.is_at_generation(node, vidx, current);
            let waits = matches!(pd.repl, ReplState::PausedSyncT | ReplState::WFBitMapS) || pd.is_sync_source();
            if waits || left_behind {
                again.push(cidx);
            }
        }
        // None of them is a source before that: what it has may be older than what this node has got.
        for &cidx in &again {
            let pd = &mut self.conns[cidx].pds[vidx];
            if pd.repl == ReplState::PausedSyncT {
                pd.repl = ReplState::Established;
            }
        }
        for cidx in again {
            // Compare again with what both sides know now.
            self.reconnect(cx, cidx, "to compare after the resync from another node");
        }
    }
}

/// The first set bit from `bit` on that is stable.
fn next_to_ask_for(bitmap: &crate::bitmap::Bitmap, late: &LateBits, slot: usize, bit: u64) -> Option<u64> {
    let first = bitmap.next_set(slot, bit)?;
    match late.behind(first) {
        Some(behind) => next_to_ask_for(bitmap, late, slot, behind),
        None => Some(first),
    }
}
