//! Bringing a disk up and letting it go: super block, activity log replay, bitmap; detach and failure
//! (ondisk-metadata.md 4, 6, 7; handshake-and-states.md 2.5, 13).

use rkyv::{Archive, Deserialize, Serialize};
use zea_meta::SuperBlockV08;
use zea_meta::activity_log::{self as al_disk, ReplayError};
use zea_meta::flags::{DeviceFlags, PeerFlags};
use zea_meta::placement::{Layout, LayoutParams, Placement};
use zea_meta::superblock::SuperBlock;
use zea_wire::ids::{NodeId, NodeMask};
use zea_wire::state::{DiskState, ReplState, Role};

use crate::activity_log::ActivityLog;
use crate::bitmap::Bitmap;
use crate::connection::Connection;
use crate::event::Severity;
use crate::io::{Action, AdminError, AdminTag, Backing, DiskCmd, DiskError};
use crate::limits;
use crate::meta_queue::{Step, Then};
use crate::resource::{Ctx, DiskJob, Resource};
use crate::stable::mark_unfinished;
use crate::twopc::ss;
use crate::uuid::{self, Uuids};
use crate::volume::Attached;

/// A disk that is coming up.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(crate) struct Attaching {
    backing: Backing,
    reply: AdminTag,
    stage: Stage,
}

#[derive(Debug, Archive, Serialize, Deserialize)]
enum Stage {
    SuperBlock { offset: u64 },
    ActivityLog { sb: Box<SuperBlock>, v08_peer: Option<u8>, layout: Layout },
    Bitmap { attached: Box<Attached>, hot: Hot, next_block: u32, blocks: u32 },
}

/// What the activity log says about the last run.
#[derive(Debug, Archive, Serialize, Deserialize)]
enum Hot {
    Extents(Vec<u32>),
    /// It cannot be read: everything may differ.
    Everything,
}

/// A connected Primary serves another generation.
fn served_elsewhere(conns: &[Connection], vidx: usize, current: u64) -> bool {
    conns.iter().filter(|c| c.is_up() && c.role == Role::Primary).any(|c| {
        let says = &c.pds[vidx].says;
        let told = says.current_uuid.or(says.uuids.as_ref().map(|u| u.current));
        told.is_some_and(|uuid| uuid & !1 != 0 && uuid & !1 != current & !1)
    })
}

/// Why the meta data has not a bitmap slot for each of these nodes, if so.
pub(crate) fn missing_slots(sb: &SuperBlock, nodes: impl IntoIterator<Item = NodeId>) -> Option<String> {
    let mut sb = sb.clone();
    nodes.into_iter().find_map(|node| {
        let error = sb.assign_slot(node.0).err()?;
        Some(format!("no bitmap slot for node {node}: {error}; create the meta data anew with more"))
    })
}

fn refuse(message: impl Into<String>) -> AdminError {
    AdminError { code: 0, message: message.into() }
}

impl Resource {
    /// [`crate::io::Command::Attach`].
    pub(crate) fn attach(&mut self, cx: &mut Ctx<'_>, tag: AdminTag, vidx: usize, backing: Backing) {
        let v = &mut self.volumes[vidx];
        if v.disk != DiskState::Diskless || v.attached.is_some() || v.attaching.is_some() {
            return cx.reply(tag, Err(refuse("the volume has a disk already: detach it first")));
        }
        let sectors = backing.size_bytes / 512;
        let params = match backing.placement {
            Placement::Internal => LayoutParams::internal(sectors, 1),
            p => {
                LayoutParams { placement: p, ..LayoutParams::flex_external(sectors, backing.meta_size_bytes / 512, 1) }
            }
        };
        let offset = match Layout::compute(&params) {
            Ok(layout) => layout.super_block_offset_bytes,
            Err(e) => return cx.reply(tag, Err(refuse(format!("the device cannot hold meta data: {e}")))),
        };
        if !broken!(SkipAttaching) {
            v.disk = DiskState::Attaching;
        }
        v.attaching = Some(Attaching { backing, reply: tag, stage: Stage::SuperBlock { offset } });
        self.state_changed = true;
        self.attach_command(cx, vidx);
    }

    /// The read of the present stage.
    fn attach_command(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        let a = self.volumes[vidx].attaching.as_ref().expect("a disk that comes up");
        let (offset_bytes, len) = match &a.stage {
            Stage::SuperBlock { offset } => (*offset, 4096),
            Stage::ActivityLog { layout, .. } => {
                (layout.al_offset_bytes, u32::try_from(layout.al_size_bytes).expect("an activity log ring is small"))
            }
            Stage::Bitmap { attached, next_block, blocks, .. } => {
                let n = (blocks - next_block).min(limits::META_READ_BYTES / 4096);
                (attached.layout.bitmap_offset_bytes + u64::from(*next_block) * 4096, n * 4096)
            }
        };
        self.disk(cx, vidx, DiskJob::Attach, DiskCmd::MetaRead { offset_bytes, len });
    }

    /// A read of the attach came back.
    pub(crate) fn attach_read(&mut self, cx: &mut Ctx<'_>, vidx: usize, result: Result<(), DiskError>, bytes: &[u8]) {
        let Some(mut a) = self.volumes[vidx].attaching.take() else { return };
        let step = match result {
            Err(e) => Err(format!("reading meta data: {e}")),
            Ok(()) => self.attach_step(cx, vidx, &mut a, bytes),
        };
        match step {
            Err(why) => {
                self.volumes[vidx].disk = DiskState::Diskless;
                self.volumes[vidx].closing = Some(None);
                self.state_changed = true;
                cx.reply(a.reply, Err(refuse(why)));
                self.release_held(cx, vidx);
            }
            Ok(false) => {
                self.volumes[vidx].attaching = Some(a);
                self.attach_command(cx, vidx);
            }
            Ok(true) => {
                let reply = a.reply;
                let Stage::Bitmap { attached, hot, .. } = a.stage else { unreachable!("the bitmap is last") };
                self.attach_complete(cx, vidx, reply, *attached, hot);
            }
        }
    }

    /// Digest what was read; true when it was the last part.
    fn attach_step(&mut self, cx: &mut Ctx<'_>, vidx: usize, a: &mut Attaching, bytes: &[u8]) -> Result<bool, String> {
        match &mut a.stage {
            Stage::SuperBlock { .. } => {
                let (sb, v08_peer) = self.decode_super_block(bytes)?;
                let layout = self.layout_of(&a.backing, &sb)?;
                a.stage = Stage::ActivityLog { sb: Box::new(sb), v08_peer, layout };
                Ok(false)
            }
            Stage::ActivityLog { sb, v08_peer, layout } => {
                let (hot, tr_number) = read_activity_log(cx, sb, layout, bytes)?;
                let bits = layout.usable_sectors.min(sized(sb, layout)).div_ceil(8);
                let bitmap = Bitmap::new(bits, sb.bm_max_peers as usize, 12);
                let al_max = al_disk::max_extents(sb.al_stripes, sb.al_stripe_size_4k);
                let extents = self.volumes[vidx].config.disk.al_extents.min(u16::try_from(al_max).unwrap_or(u16::MAX));
                let blocks = bitmap.blocks();
                sb.al_nr_extents = u32::from(extents);
                let attached = Attached {
                    backing: a.backing,
                    layout: *layout,
                    sb: (**sb).clone(),
                    v08_peer: *v08_peer,
                    bitmap,
                    al: ActivityLog::new(extents, tr_number),
                };
                a.stage = Stage::Bitmap { attached: Box::new(attached), hot, next_block: 0, blocks };
                Ok(blocks == 0)
            }
            Stage::Bitmap { attached, next_block, blocks, .. } => {
                for block in bytes.chunks_exact(4096) {
                    attached.bitmap.load_block(*next_block, block.try_into().expect("4096 bytes"));
                    *next_block += 1;
                }
                Ok(next_block >= blocks)
            }
        }
    }

    /// The super block, and of one of DRBD 8.4 the peer that it is about.
    fn decode_super_block(&self, bytes: &[u8]) -> Result<(SuperBlock, Option<u8>), String> {
        if let Ok(old) = SuperBlockV08::decode(bytes) {
            let [peer] = self.conns.as_slice() else {
                return Err("DRBD 8.4 meta data is about one peer: this resource has another number of peers".into());
            };
            let peer = peer.node().0;
            return Ok((SuperBlock::from_v08(&old, self.config.node_id.0, peer), Some(peer)));
        }
        let mut sb = SuperBlock::decode(bytes)
            .map_err(|e| format!("meta data: {e}. Create it first: zea resource create, or drbdmeta create-md"))?;
        if let [peer] = self.conns.as_slice()
            && sb.is_converted()
        {
            sb.claim_converted(peer.node().0);
        }
        Ok((sb, None))
    }

    fn layout_of(&self, backing: &Backing, sb: &SuperBlock) -> Result<Layout, String> {
        if sb.bm_bytes_per_bit != 4096 {
            return Err(format!("a bitmap block size of {} bytes is not supported, only 4096", sb.bm_bytes_per_bit));
        }
        let peers = self.conns.iter().filter(|c| c.config.net.bitmap).map(|c| c.node());
        if let Some(why) = missing_slots(sb, peers) {
            return Err(why);
        }
        let params = LayoutParams {
            placement: backing.placement,
            backing_size_sectors: backing.size_bytes / 512,
            md_size_sectors: backing.meta_size_bytes / 512,
            max_peers: sb.bm_max_peers,
            bytes_per_bit: sb.bm_bytes_per_bit,
            al_stripes: sb.al_stripes,
            al_stripe_size_4k: sb.al_stripe_size_4k,
        };
        let layout = Layout::compute(&params).map_err(|e| e.to_string())?;
        layout
            .check(sb, self.config.node_id.0)
            .map_err(|e| format!("meta data does not fit the device or this node: {e}"))?;
        if sb.effective_size_sectors > layout.usable_sectors {
            return Err(format!(
                "the device shrank: the volume has {} sectors, the device holds {}. Nothing was changed",
                sb.effective_size_sectors, layout.usable_sectors
            ));
        }
        Ok(layout)
    }

    fn attach_complete(&mut self, cx: &mut Ctx<'_>, vidx: usize, reply: AdminTag, mut attached: Attached, hot: Hot) {
        let node_ids: Vec<_> = self.conns.iter().filter(|c| c.config.net.bitmap).map(|c| c.node()).collect();
        mark_hot(cx, &mut attached, &hot);
        let sb = &mut attached.sb;
        self.volumes[vidx].claimed_flags = sb.flags;
        sb.node_id = Some(self.config.node_id.0);
        if was_in_use(sb) {
            sb.flags.insert(DeviceFlags::ZEA_LOST_WRITES);
            if sb.flags.contains(DeviceFlags::CRASHED_PRIMARY) {
                sb.flags.insert(DeviceFlags::ZEA_WAS_PRIMARY);
            }
        }
        sb.flags.remove(DeviceFlags::AL_CLEAN);
        let v = &mut self.volumes[vidx];
        v.crashed_primary = sb.flags.contains(DeviceFlags::CRASHED_PRIMARY);
        if self.role == Role::Primary {
            // It writes here from now on: after a crash the activity log counts.
            sb.flags.insert(DeviceFlags::PRIMARY_IND);
            sb.flags.insert(DeviceFlags::CRASHED_PRIMARY);
        }
        v.uuids = uuids_of(sb);
        v.disk = match (sb.flags.contains(DeviceFlags::CONSISTENT), sb.flags.contains(DeviceFlags::WAS_UP_TO_DATE)) {
            (false, _) => DiskState::Inconsistent,
            (true, false) => DiskState::Outdated,
            (true, true) => DiskState::UpToDate,
        };
        let moved_on = v.exposed_uuid != 0 && v.exposed_uuid & !1 != v.uuids.current & !1;
        let was_behind =
            v.left_as.is_some_and(|(was, uuid)| was <= DiskState::Outdated && uuid & !1 == v.uuids.current & !1);
        if (moved_on || v.may_be_named || was_behind || served_elsewhere(&self.conns, vidx, v.uuids.current))
            && v.disk > DiskState::Outdated
        {
            // The data moved on while this disk was away or before, or may have.
            v.disk = DiskState::Outdated;
            sb.flags.remove(DeviceFlags::WAS_UP_TO_DATE);
        }
        v.size_sectors = match sb.effective_size_sectors {
            0 => {
                v.config.size_sectors.map_or(attached.layout.usable_sectors, |u| u.min(attached.layout.usable_sectors))
            }
            size => size,
        };
        if let Some(cap) = &mut v.config.size_sectors {
            // It may have grown since it was configured.
            *cap = v.size_sectors.max(*cap);
        }
        attached.bitmap.resize(v.size_sectors.div_ceil(8));
        v.attached = Some(attached);
        v.attach_reply = Some(reply);
        self.restore_quorum(vidx);
        for node in node_ids {
            self.ensure_slot(cx, vidx, node.0);
        }
        let v = &mut self.volumes[vidx];
        v.meta.push(Step::Bitmap);
        // A full bitmap that was being written when the node died is whole now.
        let a = v.attached.as_ref().expect("set above");
        let full = |n: &NodeId| a.sb.peers[n.index()].flags.contains(PeerFlags::FULL_SYNC);
        (0..32).map(NodeId).filter(full).for_each(|node| v.meta.push(Step::Then(Then::FullSyncWritten(node))));
        v.meta.push(Step::SuperBlock);
        v.meta.push(Step::Then(Then::AttachDone));
        self.state_changed = true;
    }

    /// A bitmap slot for a peer; a new one says that everything differs, unless nothing was ever written.
    pub(crate) fn ensure_slot(&mut self, cx: &mut Ctx<'_>, vidx: usize, node: u8) {
        let v = &mut self.volumes[vidx];
        let just_created = v.uuids.current & !1 == uuid::JUST_CREATED;
        let Some(a) = v.attached.as_mut() else { return };
        if a.sb.peers[usize::from(node)].bitmap_index >= 0 {
            return;
        }
        match a.sb.assign_slot(node) {
            Err(e) => cx.notice(Severity::Error, format!("volume {}: no bitmap slot for node {node}: {e}", v.nr)),
            Ok(slot) if !just_created => {
                a.bitmap.set_all(usize::from(slot));
                v.meta.push(Step::Bitmap);
                v.meta.push(Step::SuperBlock);
            }
            Ok(_) => v.meta.push(Step::SuperBlock),
        }
    }

    /// The meta data says that this disk is in use: compare with whoever is connected.
    pub(crate) fn attach_done(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        if let Some(tag) = self.volumes[vidx].attach_reply.take() {
            cx.reply(tag, Ok(()));
        }
        self.state_changed = true;
        if self.up_conns().next().is_none() {
            return self.release_held(cx, vidx);
        }
        self.compare_again(cx, vidx);
    }

    /// Compare this volume with every connected peer, by connecting again. Requests of a Primary wait: those in flight end first.
    pub(crate) fn compare_again(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        self.close_epoch();
        self.volumes[vidx].compare_pending = true;
        self.volumes[vidx].hold_until = Some(cx.now.plus_ms(limits::HOLD_MS));
    }

    /// Nothing is in flight any more: connect again.
    pub(crate) fn compare_step(&mut self, cx: &mut Ctx<'_>) {
        if !self.volumes.iter().any(|v| v.compare_pending) {
            return;
        }
        self.close_epoch();
        if !self.transfer_log.is_empty() || !self.reads.is_empty() || !self.flushes.is_empty() {
            return;
        }
        for v in &mut self.volumes {
            v.compare_pending = false;
        }
        for cidx in self.up_conns() {
            self.reconnect(cx, cidx, "to compare the data again");
        }
    }

    // ---- letting a disk go -------------------------------------------------------------------------------------

    /// [`crate::io::Command::Detach`].
    pub(crate) fn detach(&mut self, cx: &mut Ctx<'_>, tag: Option<AdminTag>, vidx: usize, force: bool) {
        let answer = |cx: &mut Ctx<'_>, result| {
            if let Some(tag) = tag {
                cx.reply(tag, result);
            }
        };
        let v = &self.volumes[vidx];
        if v.attaching.is_some() || v.closing.is_some() || (v.attached.is_some() && v.disk < DiskState::Inconsistent) {
            return answer(
                cx,
                Err(AdminError { code: ss::IN_TRANSIENT_STATE, message: "the disk is coming up or going away".into() }),
            );
        }
        if v.attached.is_none() {
            return answer(cx, Ok(()));
        }
        if self.role == Role::Primary && self.up_to_date_peer(vidx).is_none() && !force {
            let message =
                "this is the last UpToDate copy that this Primary can reach: connect another one, or use --force";
            return answer(cx, Err(AdminError { code: ss::NO_UP_TO_DATE_DISK, message: message.into() }));
        }
        if self.is_last_data_of_a_primary(vidx) && !force {
            let message = "a Primary would lose its last UpToDate data: attach or connect another disk, or use --force";
            return answer(cx, Err(AdminError { code: ss::NO_UP_TO_DATE_DISK, message: message.into() }));
        }
        self.volumes[vidx].closing = Some(tag);
        self.leave_disk(cx, vidx, DiskState::Detaching);
    }

    /// A connected Primary has no UpToDate disk, and this node knows of none but its own.
    fn is_last_data_of_a_primary(&self, vidx: usize) -> bool {
        let disks_up = || self.conns.iter().filter(|c| c.is_up()).any(|c| c.pds[vidx].disk == DiskState::UpToDate);
        self.volumes[vidx].disk == DiskState::UpToDate && self.primary_peer().is_some() && !disks_up()
    }

    /// Where writes go on without this disk, it is behind from the moment that it is let go, whether or not it hears of them later.
    fn is_left_behind(&self, vidx: usize) -> bool {
        match self.role {
            Role::Primary => self.up_to_date_peer(vidx).is_some(),
            _ => self.primary_peer().is_some(),
        }
    }

    /// No new I/O goes to the disk; what depends on it finds another way.
    fn leave_disk(&mut self, cx: &mut Ctx<'_>, vidx: usize, state: DiskState) {
        let weak = self.not_replicated(vidx);
        let was_good = self.volumes[vidx].disk >= DiskState::Consistent;
        if self.role == Role::Primary && self.volumes[vidx].disk == DiskState::UpToDate {
            // Its bitmap goes with it.
            let marked = |node: &NodeId| self.volumes[vidx].dirty_bits(*node) > 0;
            let lacking = self.conns.iter().map(Connection::node).filter(marked);
            let lacking = lacking.fold(NodeMask::EMPTY, |mask, node| mask | node.mask());
            self.volumes[vidx].lacking |= lacking;
        }
        let left_behind = self.is_left_behind(vidx);
        let v = &mut self.volumes[vidx];
        if v.disk >= DiskState::Inconsistent {
            let left_as = if left_behind { v.disk.min(DiskState::Outdated) } else { v.disk };
            v.left_as = Some((left_as, v.uuids.current));
        }
        v.disk = state;
        // A Primary that served its peers goes on with that; a Secondary has seen no good data here.
        if was_good {
            (v.exposed_uuid, v.exposed_weak) = (v.uuids.current, weak);
        } else if self.role == Role::Secondary && v.attached.is_some() {
            v.exposed_uuid = 0;
        }
        self.state_changed = true;
        for cidx in 0..self.conns.len() {
            self.call_off_resync_reads(cx, cidx, vidx);
            let pd = &mut self.conns[cidx].pds[vidx];
            if pd.repl > ReplState::Established {
                pd.repl = ReplState::Established;
                pd.finishing = false;
                if let Some(r) = pd.resync.take() {
                    for q in r.in_flight.values().filter(|q| !q.answered) {
                        self.volumes[vidx].intervals.remove(q.interval);
                    }
                }
                self.verify_interrupt(cx, cidx, vidx);
            }
        }
        self.volumes[vidx].retry_waiters = true;
        if self.role == Role::Primary {
            self.new_generation_now(cx, vidx);
        }
        self.give_up_space(cx, vidx);
        self.send_states(cx);
    }

    /// The disk failed: I/O goes on without it.
    pub(crate) fn disk_failed(&mut self, cx: &mut Ctx<'_>, vidx: usize, why: &str) {
        let v = &mut self.volumes[vidx];
        if v.attached.is_none() {
            return;
        }
        cx.notice(
            Severity::Error,
            format!("volume {}: {why}: the disk is detached; replace it, then zea attach", v.nr),
        );
        let reply = v.closing.take().flatten();
        let thens = v.meta.abort();
        let unnamed = thens.contains(&Then::NewUuid).then_some(v.uuids.current);
        if v.disk >= DiskState::Consistent {
            v.exposed_uuid = v.uuids.current;
        }
        v.attached = None;
        v.closing = Some(reply);
        v.stable_flags = DeviceFlags::empty();
        (v.new_uuid_running, v.forced) = (false, false);
        self.forget_al_references(vidx);
        if let Some(uuid) = unnamed {
            // The disk may or may not know this generation: the peers must, and then leave it for the next one.
            self.new_exposed_uuid(cx, vidx, uuid);
        }
        self.leave_disk_state(cx, vidx);
        self.meta_aborted(cx, vidx, thens);
    }

    fn leave_disk_state(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        let exposed = self.volumes[vidx].exposed_uuid;
        self.leave_disk(cx, vidx, DiskState::Failed);
        if self.role != Role::Primary {
            self.volumes[vidx].exposed_uuid = exposed;
        }
        let v = &mut self.volumes[vidx];
        v.retry_waiters = true;
        let waiters = std::mem::take(&mut v.al_waiters);
        for waiter in waiters.into_iter().rev() {
            v.conflict_waiters.push_front(waiter);
        }
    }

    /// The activity log went with the disk.
    fn forget_al_references(&mut self, vidx: usize) {
        for (_, w) in self.writes.iter_mut().filter(|(_, w)| w.vidx == vidx) {
            w.al = false;
        }
        for (_, p) in self.peer_reqs.iter_mut().filter(|(_, p)| p.vidx == vidx) {
            p.al = false;
        }
        for k in self.conns.iter_mut().flat_map(|c| c.kept.iter_mut()).filter(|k| k.vidx == vidx) {
            k.al = false;
        }
    }

    /// What waited for meta data that will not be written.
    pub(crate) fn meta_aborted(&mut self, cx: &mut Ctx<'_>, vidx: usize, thens: Vec<Then>) {
        for then in thens {
            match then {
                Then::NewUuid | Then::RoleStable => {
                    self.volumes[vidx].new_uuid_running = false;
                    self.writes_new_uuid(cx, vidx);
                    self.release_held(cx, vidx);
                }
                Then::AttachDone => {
                    if let Some(tag) = self.volumes[vidx].attach_reply.take() {
                        cx.reply(tag, Err(refuse("the disk failed while its meta data was written")));
                    }
                }
                Then::Reply(tag) => cx.reply(tag, Ok(())),
                Then::Grown(growth) => self.growth_failed(cx, vidx, growth),
                Then::Detach
                | Then::Compare
                | Then::ResyncBegins(..)
                | Then::ResyncFinished(_)
                | Then::SyncUuid(..)
                | Then::FullSyncWritten(_)
                | Then::SyncSkipped(_) => {}
            }
        }
    }

    /// Close the disk once nothing is in flight; a disk in order gets its meta data written first.
    pub(crate) fn try_close_disk(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        let v = &self.volumes[vidx];
        if v.closing.is_none() || v.disk_jobs > 0 || !v.meta.is_idle() {
            return;
        }
        if v.attached.is_some() {
            let clean = self.writes.iter().all(|(_, w)| w.vidx != vidx || w.completed)
                && self.peer_reqs.iter().all(|(_, p)| p.vidx != vidx);
            if !clean {
                return;
            }
            let left_behind = self.is_left_behind(vidx);
            for cidx in 0..self.conns.len() {
                self.mark_kept(cx, cidx, vidx);
            }
            self.mark_unstable(vidx);
            let v = &mut self.volumes[vidx];
            if left_behind {
                v.set_flag(DeviceFlags::WAS_UP_TO_DATE, false);
            }
            v.set_flag(DeviceFlags::PRIMARY_IND, false);
            v.set_flag(DeviceFlags::CRASHED_PRIMARY, v.crashed_primary);
            for step in [Step::Bitmap, Step::DataFlush, Step::SuperBlock, Step::Then(Then::Detach)] {
                v.meta.push(step);
            }
            self.meta_pump(cx, vidx);
            return;
        }
        self.disk_closed(cx, vidx);
    }

    /// Nothing refers to the disk any more.
    pub(crate) fn disk_closed(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        self.forget_al_references(vidx);
        let v = &mut self.volumes[vidx];
        v.attached = None;
        v.disk = DiskState::Diskless;
        let reply = v.closing.take().flatten();
        cx.out.push(Action::CloseDisk { volume: v.nr });
        if let Some(tag) = reply {
            cx.reply(tag, Ok(()));
        }
        self.state_changed = true;
        self.volumes[vidx].retry_waiters = true;
        self.send_states(cx);
    }

    /// No Primary writes here any more: after a crash there is nothing to replay.
    pub(crate) fn maybe_clear_primary_ind(&mut self, vidx: usize) {
        let busy = self.role == Role::Primary || self.primary_peer().is_some() || self.has_unsettled_writes();
        let v = &mut self.volumes[vidx];
        if !busy && v.has_disk() && v.set_flag(DeviceFlags::PRIMARY_IND, false) {
            for step in [Step::Bitmap, Step::DataFlush, Step::SuperBlock] {
                v.meta.push(step);
            }
        }
    }

    /// Writes of this node or a peer that may not be on every disk yet: after a crash their extents tell where to look.
    pub(crate) fn has_unsettled_writes(&self) -> bool {
        !self.transfer_log.is_empty() || self.conns.iter().any(|c| !c.kept.is_empty() || c.active_peer_reqs > 0)
    }
}

fn uuids_of(sb: &SuperBlock) -> Uuids {
    let mut uuids = Uuids { current: sb.current_uuid, history: sb.history_uuids, ..Uuids::default() };
    let own = sb.node_id.map(usize::from);
    for (n, peer) in sb.peers.iter().enumerate().filter(|(n, _)| Some(*n) != own) {
        uuids.bitmap[n] = peer.bitmap_uuid;
        uuids.bitmap_dagtag[n] = peer.bitmap_dagtag;
    }
    uuids
}

fn sized(sb: &SuperBlock, layout: &Layout) -> u64 {
    if sb.effective_size_sectors == 0 { layout.usable_sectors } else { sb.effective_size_sectors }
}

/// The last run ended with writes in flight.
fn was_in_use(sb: &SuperBlock) -> bool {
    sb.flags.contains(DeviceFlags::PRIMARY_IND) && !sb.flags.contains(DeviceFlags::AL_CLEAN)
}

/// The hot extents of the last run, and the number of the next transaction.
fn read_activity_log(cx: &mut Ctx<'_>, sb: &SuperBlock, layout: &Layout, bytes: &[u8]) -> Result<(Hot, u32), String> {
    let blocks = bytes.chunks_exact(4096).map(|b| b.try_into().expect("4096 bytes"));
    let extents =
        u32::try_from(layout.usable_sectors.div_ceil(8192)).map_err(|_| "the device is too large".to_owned())?;
    let needed = was_in_use(sb);
    match al_disk::replay(blocks, extents) {
        Ok(hot) => {
            let next = hot.newest_tr_number.map_or(0, |n| n.wrapping_add(1));
            Ok((Hot::Extents(if needed { hot.extents } else { Vec::new() }), next))
        }
        Err(e) if needed => {
            cx.notice(Severity::Error, format!("activity log: {e}: everything is taken as out of sync"));
            Ok((Hot::Everything, 0))
        }
        Err(ReplayError::NoValidBlock) => {
            Err("the activity log has no valid block: this is no usable meta data".to_owned())
        }
        Err(e) => {
            cx.notice(Severity::Warning, format!("activity log: {e}: nothing was being written, it is begun anew"));
            Ok((Hot::Extents(Vec::new()), 0))
        }
    }
}

/// What may have been written when the node died may differ from every peer.
fn mark_hot(cx: &mut Ctx<'_>, attached: &mut Attached, hot: &Hot) {
    let slots = attached.bitmap.slots();
    match hot {
        Hot::Everything => (0..slots).for_each(|slot| {
            attached.bitmap.set_all(slot);
        }),
        Hot::Extents(extents) => {
            if !extents.is_empty() {
                cx.notice(
                    Severity::Info,
                    format!("activity log replayed: {} extents of 4 MiB were in use", extents.len()),
                );
            }
            for &extent in extents {
                if let Some((first, last)) = attached.bitmap.bits_of_extent(extent) {
                    for slot in 0..slots {
                        attached.bitmap.set_range(slot, first, last);
                    }
                }
            }
        }
    }
    for n in 0..32_usize {
        let peer = &mut attached.sb.peers[n];
        if peer.flags.contains(PeerFlags::FULL_SYNC)
            && let Ok(slot) = usize::try_from(peer.bitmap_index)
        {
            attached.bitmap.set_all(slot);
        }
    }
    mark_unfinished(attached);
}
