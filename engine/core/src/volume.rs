//! A volume on this node: its backing device, meta data in memory, and what waits for it.

use std::collections::VecDeque;

use rkyv::{Archive, Deserialize, Serialize};
use zea_meta::flags::DeviceFlags;
use zea_meta::placement::Layout;
use zea_meta::superblock::SuperBlock;
use zea_wire::ids::{NodeId, NodeMask, VolumeNr};
use zea_wire::state::DiskState;

use crate::activity_log::ActivityLog;
use crate::attach::Attaching;
use crate::bitmap::Bitmap;
use crate::config::VolumeConfig;
use crate::interval::{IntervalId, IntervalSet};
use crate::io::{AdminTag, Backing, Request, Time};
use crate::limits;
use crate::meta_queue::{MetaQueue, Then};
use crate::quorum::{Rule, Standing};
use crate::resync_rate::Use;
use crate::uuid::Uuids;

/// Who holds a range of sectors (wire-protocol.md 11.1a).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) enum Lock {
    /// A write of the front end, until it is on the local disk.
    AppWrite,
    /// A write of a peer, until it is on the local disk. The node that sent it.
    PeerWrite(NodeId),
    /// A resync request that is out: keeps writes of *other* peers away. The source.
    ResyncRequest(NodeId),
    /// Resync data being written: keeps everything away.
    ResyncWrite(NodeId),
    /// A read for a peer, by the source of a resync or by either end of a verify: shared among its kind. The peer.
    ResyncRead(NodeId),
    /// No lock, a mark: a block that was asked for by a verify. `void`: it was written to since.
    Verify {
        /// Whether the comparison has become meaningless.
        void: bool,
    },
}

impl Lock {
    /// Whether a holder of `self` and a newcomer `other` exclude each other.
    pub(crate) fn excludes(self, other: Lock) -> bool {
        use Lock::{AppWrite, PeerWrite, ResyncRead, ResyncRequest, ResyncWrite, Verify};
        match (self, other) {
            (Verify { .. }, _) | (_, Verify { .. }) => false,
            (ResyncRead(_), ResyncRead(_)) => false,
            (ResyncRequest(a), PeerWrite(b)) | (PeerWrite(a), ResyncRequest(b)) => a != b,
            (AppWrite, AppWrite | PeerWrite(_)) | (PeerWrite(_), AppWrite | PeerWrite(_)) => true,
            (AppWrite | PeerWrite(_), ResyncRequest(_) | ResyncRead(_) | ResyncWrite(_)) => true,
            (ResyncRequest(_) | ResyncWrite(_), _) | (ResyncRead(_), _) => true,
        }
    }

    fn writes(self) -> bool {
        matches!(self, Lock::AppWrite | Lock::PeerWrite(_) | Lock::ResyncWrite(_))
    }
}

/// Something that waits for a range or for the activity log.
#[derive(Debug, Clone, Copy, Archive, Serialize, Deserialize)]
pub(crate) enum Waiter {
    /// A front-end write that is not admitted yet.
    Request(Request),
    /// A peer request by index; it has its interval and waits for the activity log, or the other way round.
    Peer(usize),
}

/// The meta data of an attached volume, in memory.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(crate) struct Attached {
    pub(crate) backing: Backing,
    pub(crate) layout: Layout,
    /// Super block; UUIDs live in [`Volume::uuids`] and are merged in when it is written.
    pub(crate) sb: SuperBlock,
    /// On the disk it is v08, about this peer.
    pub(crate) v08_peer: Option<u8>,
    pub(crate) bitmap: Bitmap,
    pub(crate) al: ActivityLog,
}

/// A volume.
#[derive(Debug, Archive, Serialize, Deserialize)]
pub(crate) struct Volume {
    pub(crate) nr: VolumeNr,
    pub(crate) config: VolumeConfig,
    pub(crate) disk: DiskState,
    pub(crate) attached: Option<Attached>,
    pub(crate) uuids: Uuids,
    /// The UUID of the data that a diskless node shows.
    pub(crate) exposed_uuid: u64,
    /// What the last disk was when it was let go, or became by that, and its current UUID: its meta data may not have been told.
    pub(crate) left_as: Option<(DiskState, u64)>,
    /// Nodes that miss something of that generation.
    pub(crate) exposed_weak: NodeMask,
    /// Generations before the one that this Primary serves, oldest first, since when it has acknowledged nothing: data of one
    /// of them is as good.
    pub(crate) former: Vec<u64>,
    /// Generations after the current one that this Primary has withdrawn ([`Resource::withdraw_generations`](crate::resource::Resource)).
    pub(crate) withdrawn: Vec<u64>,
    /// The last generation that this Primary was in when a peer said that it is, too.
    pub(crate) known_generation: u64,
    /// Nodes that were lost before they confirmed a write that others have: what they hold of such a generation is not as good.
    pub(crate) lacking: NodeMask,
    /// Targets that were lost when they had everything: this generation may be theirs, too. Their bitmap UUIDs do not speak for them.
    pub(crate) may_have_finished: NodeMask,
    /// UpToDate peers that have not told yet that they know the generation of this Primary. Until then nothing is
    /// acknowledged in it, so that it does not matter if all who know it are lost.
    pub(crate) unconfirmed: NodeMask,
    /// Usable size that is agreed, 0: not known.
    pub(crate) size_sectors: u64,
    /// New sizes that are not stable yet: nothing is written meanwhile.
    pub(crate) growing: u32,
    pub(crate) intervals: IntervalSet<Lock>,
    /// [`Lock::Verify`] among them.
    pub(crate) verify_marks: usize,
    /// Writes that wait for a range, strictly in order: a later one must not take what an earlier one waits for.
    pub(crate) conflict_waiters: VecDeque<Waiter>,
    /// Resync reads and writes, and reads, that wait for a range; in any order.
    pub(crate) resync_waiters: VecDeque<usize>,
    /// Waits for an activity log extent, oldest first.
    pub(crate) al_waiters: VecDeque<Waiter>,
    /// Writes of peers that have not ended.
    pub(crate) peer_writes: usize,
    pub(crate) peer_writes_arrived: u64,
    /// Front-end requests that wait for a state: a new UUID, a disk that comes up, the last writes of a former Primary.
    pub(crate) held: VecDeque<Request>,
    pub(crate) meta: MetaQueue,
    pub(crate) standing: Standing,
    /// That there is quorum, and that this is sure, when it was last looked at.
    pub(crate) told_quorum: (bool, bool),
    /// The disk state that the peers were told last.
    pub(crate) told_disk: DiskState,
    /// Device flags that are certainly on the disk.
    pub(crate) stable_flags: DeviceFlags,
    /// Device flags that may be on the disk.
    pub(crate) claimed_flags: DeviceFlags,
    /// Whoever held a write that was acknowledged and not stable is gone: the next flush fails.
    pub(crate) writes_lost: bool,
    /// The next write of a Primary begins a new data generation.
    pub(crate) new_uuid_needed: bool,
    /// The new current UUID that is being written was made by force.
    pub(crate) forced: bool,
    /// This Primary serves a disk that was not good without force.
    pub(crate) by_force: bool,
    /// The last run of this disk ended as Primary without a clean stop.
    pub(crate) crashed_primary: bool,
    /// The current UUID when the running resync began.
    pub(crate) resync_start_uuid: u64,
    /// A new UUID is being written.
    pub(crate) new_uuid_running: bool,
    /// A peer that speaks 8.4 will begin the generation that this Primary without a disk writes.
    pub(crate) peer_names_uuid: bool,
    /// Its connection was lost before it told: it may or may not have begun that generation.
    pub(crate) may_be_named: bool,
    /// An interval left or a transaction committed: look at the waiters.
    pub(crate) retry_waiters: bool,
    /// Local commands in flight.
    pub(crate) disk_jobs: u32,
    /// Writes that have ended, and those of them that a flush has made stable.
    pub(crate) written: u64,
    pub(crate) flushed: u64,
    /// Resync data that no flush has covered: the peer request, and the writes that have to be stable for it.
    pub(crate) resync_unstable: VecDeque<(usize, u64)>,
    /// A flush for it is under way.
    pub(crate) resync_flushing: bool,
    /// Detach was asked for by this admin command; the disk closes when nothing is in flight.
    pub(crate) closing: Option<Option<AdminTag>>,
    /// The disk is coming up.
    pub(crate) attaching: Option<Attaching>,
    /// Attach was asked for by this admin command; its last write is going on.
    pub(crate) attach_reply: Option<AdminTag>,
    /// The volume is to be compared with its peers again once nothing is in flight.
    pub(crate) compare_pending: bool,
    /// Requests wait for a disk or a peer until then.
    pub(crate) hold_until: Option<Time>,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
    /// By applications.
    pub(crate) used: Use,
    /// The volume that is resynced before this one.
    pub(crate) resync_after: Option<VolumeNr>,
}

impl Volume {
    pub(crate) fn new(config: VolumeConfig) -> Self {
        Volume {
            nr: config.volume,
            config,
            disk: DiskState::Diskless,
            attached: None,
            uuids: Uuids::default(),
            exposed_uuid: 0,
            left_as: None,
            exposed_weak: NodeMask::EMPTY,
            former: Vec::new(),
            withdrawn: Vec::new(),
            known_generation: 0,
            lacking: NodeMask::EMPTY,
            may_have_finished: NodeMask::EMPTY,
            unconfirmed: NodeMask::EMPTY,
            size_sectors: 0,
            growing: 0,
            intervals: IntervalSet::new(
                2 * limits::MAX_TRANSFER_LOG + limits::MAX_VERIFY_READS + limits::MAX_PEER_READS,
            ),
            verify_marks: 0,
            conflict_waiters: VecDeque::new(),
            resync_waiters: VecDeque::new(),
            al_waiters: VecDeque::new(),
            peer_writes: 0,
            peer_writes_arrived: 0,
            held: VecDeque::new(),
            meta: MetaQueue::default(),
            standing: Standing::Counted(Rule::TooFew),
            told_quorum: (false, false),
            told_disk: DiskState::Diskless,
            stable_flags: DeviceFlags::empty(),
            claimed_flags: DeviceFlags::empty(),
            writes_lost: false,
            new_uuid_needed: false,
            forced: false,
            by_force: false,
            crashed_primary: false,
            resync_start_uuid: 0,
            new_uuid_running: false,
            peer_names_uuid: false,
            may_be_named: false,
            retry_waiters: false,
            disk_jobs: 0,
            written: 0,
            flushed: 0,
            resync_unstable: VecDeque::new(),
            resync_flushing: false,
            closing: None,
            attaching: None,
            attach_reply: None,
            compare_pending: false,
            hold_until: None,
            read_bytes: 0,
            written_bytes: 0,
            used: Use::default(),
            resync_after: None,
        }
    }

    /// The local disk takes writes.
    pub(crate) fn has_disk(&self) -> bool {
        self.disk >= DiskState::Inconsistent && self.disk != DiskState::DUnknown && self.attached.is_some()
    }

    /// Likewise, or it still takes those of peers that came before it was to be let go: they may have been acknowledged already.
    pub(crate) fn takes_last_writes(&self) -> bool {
        self.has_disk() || (self.disk == DiskState::Detaching && self.attached.is_some())
    }

    /// The generation of this disk is being written to it, and a loss of power would take it back: nobody hears of it before, since
    /// one who has it would be ahead of the node that began it.
    pub(crate) fn names_generation(&self) -> bool {
        self.meta.leads_to(Then::NewUuid)
    }

    /// Nothing may be acknowledged: the generation that it belongs to has no name yet that is stable.
    pub(crate) fn awaits_uuid(&self) -> bool {
        self.new_uuid_running || self.peer_names_uuid
    }

    /// Bitmap slot towards a node, if one is allocated.
    pub(crate) fn slot(&self, node: NodeId) -> Option<usize> {
        let sb = &self.attached.as_ref()?.sb;
        usize::try_from(sb.peers[usize::from(node.0)].bitmap_index).ok()
    }

    /// Number of bits set towards a node; 0 without a slot.
    pub(crate) fn dirty_bits(&self, node: NodeId) -> u64 {
        match (self.slot(node), &self.attached) {
            (Some(slot), Some(a)) => a.bitmap.count(slot),
            _ => 0,
        }
    }

    /// Mark a range out of sync towards a node.
    pub(crate) fn set_out_of_sync(&mut self, node: NodeId, sector: u64, len_bytes: u32) {
        if let Some(slot) = self.slot(node)
            && let Some(a) = self.attached.as_mut()
            && let Some((first, last)) = a.bitmap.bits_touched(sector, u64::from(len_bytes) / 512)
        {
            a.bitmap.set_range(slot, first, last);
        }
    }

    /// Take a range that no one excludes. The population is bounded by the limits on requests.
    pub(crate) fn lock_range(&mut self, sector: u64, sectors: u64, lock: Lock) -> IntervalId {
        if lock.writes() {
            self.void_verify(sector, sectors);
        }
        self.intervals.insert(sector, sectors, lock, 0).expect("as many ranges as requests are admitted")
    }

    /// Something happens to these sectors: what a verify is about to find out about them means nothing.
    pub(crate) fn void_verify(&mut self, sector: u64, sectors: u64) {
        if self.verify_marks == 0 || broken!(VerifyIgnoresWrites) {
            return;
        }
        let good = |set: &IntervalSet<Lock>| {
            let mut marks = set.conflicts(sector, sectors).filter(|i| i.kind == Lock::Verify { void: false });
            marks.next().map(|i| i.id)
        };
        while let Some(id) = good(&self.intervals) {
            self.intervals.set_kind(id, Lock::Verify { void: true });
        }
    }

    /// Mark a range in sync towards a node: only blocks that it covers whole.
    pub(crate) fn set_in_sync(&mut self, node: NodeId, sector: u64, len_bytes: u32) -> u64 {
        let size = self.size_sectors;
        if let Some(slot) = self.slot(node)
            && let Some(a) = self.attached.as_mut()
            && let Some((first, last)) = a.bitmap.bits_covered(sector, u64::from(len_bytes) / 512, size)
        {
            return a.bitmap.clear_range(slot, first, last);
        }
        0
    }

    /// A bit towards `node` is set in the range.
    pub(crate) fn any_out_of_sync(&self, node: NodeId, sector: u64, len_bytes: u32) -> bool {
        match (self.slot(node), &self.attached) {
            (Some(slot), Some(a)) => {
                let touched = a.bitmap.bits_touched(sector, u64::from(len_bytes) / 512);
                touched.is_some_and(|(first, last)| a.bitmap.any_in_range(slot, first, last))
            }
            _ => false,
        }
    }

    /// The generation that a Primary serves: of its disk, or of its peers' data.
    pub(crate) fn served_uuid(&self) -> u64 {
        if self.disk == DiskState::UpToDate { self.uuids.current } else { self.exposed_uuid }
    }

    /// A new generation begins after this one, in which nothing is acknowledged yet.
    pub(crate) fn leave_generation(&mut self, uuid: u64) {
        if self.former.len() == limits::MAX_FORMER_GENERATIONS {
            self.former.remove(0);
        }
        if uuid != 0 {
            self.former.push(uuid & !1);
        }
    }

    /// The current UUID, as it is shown to peers: of the disk, or of the data that a diskless node shows.
    pub(crate) fn current_uuid(&self) -> u64 {
        if self.attached.is_some() { self.uuids.current } else { self.exposed_uuid }
    }

    /// This node died while writes of this generation were in flight: acknowledged ones may be missing here.
    pub(crate) fn lost_writes(&self) -> bool {
        self.attached.as_ref().is_some_and(|a| a.sb.flags.contains(DeviceFlags::ZEA_LOST_WRITES))
    }

    /// This is the disk of a Primary that died in this generation, or was resynced from it.
    pub(crate) fn was_primary(&self) -> bool {
        self.attached.as_ref().is_some_and(|a| a.sb.flags.contains(DeviceFlags::ZEA_WAS_PRIMARY))
    }

    /// This node was Primary when it lost quorum, and has not had it since.
    pub(crate) fn lost_quorum(&self) -> bool {
        self.attached.as_ref().is_some_and(|a| a.sb.flags.contains(DeviceFlags::PRIMARY_LOST_QUORUM))
    }

    /// Set or clear a device flag of the super block. True if it changed.
    pub(crate) fn set_flag(&mut self, flag: DeviceFlags, on: bool) -> bool {
        let Some(a) = self.attached.as_mut() else { return false };
        let before = a.sb.flags;
        if on {
            a.sb.flags.insert(flag);
        } else {
            a.sb.flags.remove(flag);
        }
        before != a.sb.flags
    }

    /// The super block on the disk may still call good what is not. Nothing is written meanwhile: after a crash a mixture of old
    /// and new would pass for data.
    pub(crate) fn overclaims(&self) -> bool {
        let good = DeviceFlags::CONSISTENT | DeviceFlags::WAS_UP_TO_DATE;
        self.attached.as_ref().is_some_and(|a| self.claimed_flags.bits() & !a.sb.flags.bits() & good.bits() != 0)
    }

    /// The super block with the UUIDs of now.
    pub(crate) fn super_block(&self) -> Option<SuperBlock> {
        let a = self.attached.as_ref()?;
        let mut sb = a.sb.clone();
        sb.current_uuid = self.uuids.current;
        sb.history_uuids = self.uuids.history;
        sb.effective_size_sectors = self.size_sectors;
        let own = sb.node_id.map(usize::from);
        for (n, peer) in sb.peers.iter_mut().enumerate().filter(|(n, _)| Some(*n) != own) {
            peer.bitmap_uuid = self.uuids.bitmap[n];
            peer.bitmap_dagtag = self.uuids.bitmap_dagtag[n];
        }
        Some(sb)
    }
}
