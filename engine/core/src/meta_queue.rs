//! The meta-data writer of a volume: one strictly ordered queue of steps.
//!
//! Order is the whole point: bitmap before the activity log transaction that evicts its extent, bitmap before the super block
//! that says "in sync", super block before the write or packet that depends on a new UUID (ondisk-metadata.md 6, 7).

use std::collections::VecDeque;

use rkyv::{Archive, Deserialize, Serialize};
use zea_meta::flags::DeviceFlags;
use zea_wire::ids::NodeId;

use crate::io::{AdminTag, DiskCmd, DiskError, MetaBlock};
use crate::limits;
use crate::resize::Growth;
use crate::resource::{Ctx, DiskJob, Resource};

/// What happens when everything queued before is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) enum Then {
    /// Primary is written down: writes may begin.
    RoleStable,
    /// The new current UUID is stable: tell the peers, let the held writes go.
    NewUuid,
    /// That this disk is being resynced from this peer, and what of it, is stable: what waits for this number is asked for from now on.
    ResyncBegins(NodeId, u64),
    /// The result of a finished resync from this peer is stable.
    ResyncFinished(NodeId),
    /// Attach is complete.
    AttachDone,
    /// The disk may be closed.
    Detach,
    /// Answer an admin command.
    Reply(AdminTag),
    /// This sync UUID of the resync of this peer is stable.
    SyncUuid(NodeId, u64),
    /// The initial sync is skipped, because this node said so: this disk is UpToDate.
    SyncSkipped(NodeId),
    /// Compare with every connected peer again.
    Compare,
    /// The volume's new size is stable.
    Grown(Growth),
    /// All bits towards this peer are stable: the mark that announced them goes, and a target that waits for them gets them.
    FullSyncWritten(NodeId),
}

/// A step of the queue.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) enum Step {
    /// Write every dirty bitmap block.
    Bitmap,
    /// Collect what the activity log wants and write one transaction, with the bitmap blocks of evicted extents before it.
    ActivityLog,
    /// Make all data writes stable.
    DataFlush,
    /// Write the super block as it is by then.
    SuperBlock,
    /// Continue elsewhere.
    Then(Then),
}

/// What a write of the queue was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) enum MetaJob {
    /// A bitmap block.
    BitmapBlock,
    /// The last bitmap block has been flushed.
    BitmapFlush,
    /// The flush of [`Step::DataFlush`].
    DataFlush,
    /// The activity log block.
    ActivityLog,
    /// The super block.
    SuperBlock,
}

/// See the module.
#[derive(Debug, Default, Archive, Serialize, Deserialize)]
pub(crate) struct MetaQueue {
    steps: VecDeque<Step>,
    /// The front step has begun.
    running: bool,
    /// Bitmap blocks that are still to be written for the front step.
    blocks: VecDeque<u32>,
    outstanding: usize,
    /// The activity log block that goes out after its bitmap blocks.
    al_block: Option<(u64, MetaBlock)>,
    /// Flags of the super block that is being written.
    flags_in_flight: DeviceFlags,
    /// Memory to write the next blocks with.
    #[rkyv(with = rkyv::with::Skip)]
    spare: Vec<MetaBlock>,
    pub(crate) al_writes: u64,
    pub(crate) bm_writes: u64,
}

impl MetaQueue {
    /// Queue a step. Two equal writes in a row are one, if the first has not begun.
    pub(crate) fn push(&mut self, step: Step) {
        let last_is_same = self.steps.back() == Some(&step) && !matches!(step, Step::Then(_));
        if last_is_same && !(self.running && self.steps.len() == 1) {
            return;
        }
        self.steps.push_back(step);
    }

    /// This is to happen when everything queued before is stable.
    pub(crate) fn leads_to(&self, then: Then) -> bool {
        self.steps.contains(&Step::Then(then))
    }

    /// Nothing is queued or in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.steps.is_empty() && self.outstanding == 0
    }

    /// A step waits to begin.
    pub(crate) fn can_begin(&self) -> bool {
        !self.running && !self.steps.is_empty()
    }

    /// A step of this kind is queued and has not begun.
    fn is_queued(&self, step: &Step) -> bool {
        self.steps.iter().skip(usize::from(self.running)).any(|s| s == step)
    }

    /// Ask for an activity log transaction, once.
    pub(crate) fn want_al(&mut self) {
        if !self.is_queued(&Step::ActivityLog) {
            self.steps.push_back(Step::ActivityLog);
        }
    }

    /// Forget everything that has not been given to the disk; the disk failed.
    pub(crate) fn abort(&mut self) -> Vec<Then> {
        self.blocks.clear();
        self.al_block = None;
        self.running = false;
        self.steps.drain(..).filter_map(|s| if let Step::Then(t) = s { Some(t) } else { None }).collect()
    }

    fn block(&mut self) -> MetaBlock {
        self.spare.pop().unwrap_or_else(|| Box::new([0; 4096]))
    }
}

impl Resource {
    /// Carry the queue of a volume on as far as it goes without waiting.
    pub(crate) fn meta_pump(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        loop {
            let q = &mut self.volumes[vidx].meta;
            if q.running {
                self.meta_write_blocks(cx, vidx);
                self.meta_al_block(cx, vidx);
                return;
            }
            let Some(step) = q.steps.front().cloned() else { return };
            if self.volumes[vidx].attached.is_none() {
                let thens = self.volumes[vidx].meta.abort();
                self.meta_aborted(cx, vidx, thens);
                return;
            }
            match step {
                Step::Then(then) => {
                    self.volumes[vidx].meta.steps.pop_front();
                    self.meta_then(cx, vidx, then);
                }
                Step::Bitmap => {
                    let v = &mut self.volumes[vidx];
                    let a = v.attached.as_mut().expect("attached: checked above");
                    v.meta.blocks.extend(a.bitmap.dirty_blocks());
                    if v.meta.blocks.is_empty() {
                        v.meta.steps.pop_front();
                    } else {
                        v.meta.running = true;
                    }
                }
                Step::DataFlush => {
                    let q = &mut self.volumes[vidx].meta;
                    q.running = true;
                    q.outstanding += 1;
                    self.disk(cx, vidx, DiskJob::Meta(MetaJob::DataFlush), DiskCmd::Flush);
                }
                Step::SuperBlock => {
                    self.volumes[vidx].meta.running = true;
                    self.meta_super_block(cx, vidx);
                }
                Step::ActivityLog => self.meta_begin_al(cx, vidx),
            }
        }
    }

    /// Begin an activity log transaction: the data and the bitmap blocks of what it evicts become stable first. Without that a loss of
    /// power could take writes that neither the log nor a bit tells of (DRBD's transaction carries a flush of the device).
    fn meta_begin_al(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        let v = &mut self.volumes[vidx];
        let a = v.attached.as_mut().expect("attached: checked by the pump");
        let Some(tx) = a.al.prepare_transaction() else {
            v.meta.steps.pop_front();
            return;
        };
        for extent in tx.evicted() {
            for block in a.bitmap.blocks_of_extent(*extent) {
                if a.bitmap.is_dirty_range(block..block + 1) && !v.meta.blocks.contains(&block) {
                    v.meta.blocks.push_back(block);
                }
            }
        }
        let mut block = v.meta.block();
        crate::al_encode::encode(&tx, &mut block);
        let index = zea_meta::activity_log::slot_block(tx.tr_number, a.sb.al_stripes, a.sb.al_stripe_size_4k);
        let offset = a.layout.al_offset_bytes + u64::from(index) * 4096;
        v.meta.al_block = Some((offset, block));
        v.meta.running = true;
        // Bitmap blocks are followed by a flush anyway.
        let flush = !tx.evicted().is_empty() && v.meta.blocks.is_empty() && !v.is_flushed();
        if flush && v.config.disk.disk_flushes {
            v.meta.outstanding += 1;
            self.disk(cx, vidx, DiskJob::Meta(MetaJob::BitmapFlush), DiskCmd::Flush);
        }
    }

    fn meta_super_block(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        let v = &mut self.volumes[vidx];
        let sb = v.super_block().expect("attached: checked by the pump");
        v.meta.flags_in_flight = sb.flags;
        // Until it is written, only what both versions have is certain.
        v.stable_flags = DeviceFlags(v.stable_flags.bits() & sb.flags.bits());
        v.claimed_flags.insert(sb.flags);
        let a = v.attached.as_ref().expect("attached");
        let (offset, v08_peer) = (a.layout.super_block_offset_bytes, a.v08_peer);
        let mut block = v.meta.block();
        match v08_peer {
            Some(peer) => sb.to_v08(peer).encode(&mut block),
            None => sb.encode(&mut block),
        }
        v.meta.outstanding += 1;
        self.disk(
            cx,
            vidx,
            DiskJob::Meta(MetaJob::SuperBlock),
            DiskCmd::MetaWrite { offset_bytes: offset, block, sync: true },
        );
    }

    /// Give bitmap blocks to the disk while there is room, then what comes behind them.
    fn meta_write_blocks(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        while self.volumes[vidx].meta.outstanding < limits::BITMAP_WRITES_IN_FLIGHT {
            let v = &mut self.volumes[vidx];
            let Some(index) = v.meta.blocks.pop_front() else { break };
            let mut block = v.meta.block();
            let a = v.attached.as_mut().expect("attached while blocks are queued");
            a.bitmap.encode_block(index, &mut block);
            a.bitmap.mark_clean(index);
            let offset_bytes = a.layout.bitmap_offset_bytes + u64::from(index) * 4096;
            v.meta.outstanding += 1;
            v.meta.bm_writes += 1;
            let cmd = DiskCmd::MetaWrite { offset_bytes, block, sync: false };
            self.disk(cx, vidx, DiskJob::Meta(MetaJob::BitmapBlock), cmd);
        }
    }

    /// A write of the queue came back.
    pub(crate) fn meta_done(
        &mut self,
        cx: &mut Ctx<'_>,
        vidx: usize,
        job: MetaJob,
        result: Result<(), DiskError>,
        block: Option<MetaBlock>,
    ) {
        let q = &mut self.volumes[vidx].meta;
        q.outstanding -= 1;
        q.spare.extend(block);
        q.spare.truncate(limits::BITMAP_WRITES_IN_FLIGHT);
        if let Err(e) = result {
            // Meta-data errors always detach (handshake-and-states.md 13).
            self.disk_failed(cx, vidx, &format!("meta data: {e}"));
            return;
        }
        let q = &mut self.volumes[vidx].meta;
        if !q.running || q.outstanding > 0 || (job == MetaJob::BitmapBlock && !q.blocks.is_empty()) {
            return;
        }
        match job {
            MetaJob::BitmapBlock => {
                q.outstanding += 1;
                self.disk(cx, vidx, DiskJob::Meta(MetaJob::BitmapFlush), DiskCmd::Flush);
            }
            MetaJob::BitmapFlush if q.al_block.is_some() => {}
            MetaJob::ActivityLog => {
                q.al_writes += 1;
                self.meta_step_done(vidx);
                let v = &mut self.volumes[vidx];
                v.attached.as_mut().expect("attached").al.committed();
                v.retry_waiters = true;
            }
            MetaJob::SuperBlock => {
                self.meta_step_done(vidx);
                let v = &mut self.volumes[vidx];
                v.stable_flags = v.meta.flags_in_flight;
                v.claimed_flags = v.stable_flags;
                v.retry_waiters = true;
            }
            MetaJob::BitmapFlush | MetaJob::DataFlush => self.meta_step_done(vidx),
        }
        self.meta_al_block(cx, vidx);
    }

    fn meta_step_done(&mut self, vidx: usize) {
        let q = &mut self.volumes[vidx].meta;
        q.running = false;
        q.steps.pop_front();
    }

    /// The bitmap blocks of evicted extents are stable: the transaction itself.
    fn meta_al_block(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        let q = &mut self.volumes[vidx].meta;
        if q.outstanding > 0 || !q.blocks.is_empty() {
            return;
        }
        if let Some((offset_bytes, block)) = q.al_block.take() {
            q.outstanding += 1;
            let cmd = DiskCmd::MetaWrite { offset_bytes, block, sync: true };
            self.disk(cx, vidx, DiskJob::Meta(MetaJob::ActivityLog), cmd);
        }
    }
}
