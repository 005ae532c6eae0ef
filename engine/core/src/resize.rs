//! A volume grows while it is in use (handshake-and-states.md 3.3, 6.6, 8). All nodes are asked first, by a two-phase commit, so
//! that all of them have the room; next to a peer that speaks 8.4 sizes are told instead (`dialect/resize.rs`). Then what is new is
//! resynced from the Primary, or from the node that was asked to grow.
//!
//! No volume shrinks. Nothing is written before the super block has the new size: a crash must not take back what was acknowledged.
//! Whoever was away, or died before that, grows when it connects again ([`Resource::grow_to_peer`]).

use rkyv::{Archive, Deserialize, Serialize};
use zea_meta::placement;
use zea_wire::flags::DdsFlags;
use zea_wire::ids::{NodeId, NodeMask, VolumeNr};
use zea_wire::packet::TwopcBody;
use zea_wire::state::{DiskState, ReplState, Role};

use crate::event::{Event, Severity};
use crate::io::{Action, AdminError, AdminTag};
use crate::meta_queue::{Step, Then};
use crate::resource::{Ctx, Resource};
use crate::twopc::{Change, Verdict, ss};
use crate::uuid;

/// What `resize` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct Resize {
    pub(crate) volume: VolumeNr,
    pub(crate) size_sectors: u64,
    /// What is new needs no resync.
    pub(crate) assume_clean: bool,
}

impl Resize {
    /// What P_TWOPC_PREP_RSZ says of it.
    pub(crate) fn body(self) -> TwopcBody {
        let mut dds_flags = DdsFlags::EMPTY;
        dds_flags.set(DdsFlags::NO_RESYNC, self.assume_clean);
        TwopcBody::PrepareResize { user_size: self.size_sectors, dds_flags, undefined: [0; 6] }
    }

    /// Not all nodes can grow; `largest`: what all of those who answered have room for.
    pub(crate) fn refused(self, largest: Option<u64>) -> AdminError {
        let size = self.size_sectors;
        let message = match largest.filter(|largest| *largest < size) {
            Some(largest) => format!("{size} sectors are wanted: the smallest disk of all nodes has {largest}"),
            None => {
                "another node cannot grow now: it is busy with a resync, or not connected to all of them".to_owned()
            }
        };
        AdminError { code: ss::CW_FAILED_BY_PEER, message }
    }

    /// It is agreed; `primaries` have a disk.
    pub(crate) fn agreed(self, primaries: NodeMask) -> Agreed {
        let Resize { size_sectors, assume_clean, .. } = self;
        Agreed { size_sectors, user_size: size_sectors, assume_clean, primaries, parent: None }
    }
}

/// A growth that all nodes have agreed on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Agreed {
    pub(crate) size_sectors: u64,
    /// The wanted size, 0: the largest.
    pub(crate) user_size: u64,
    pub(crate) assume_clean: bool,
    /// Primaries with a disk.
    pub(crate) primaries: NodeMask,
    /// Who asked this node; `None`: it asked itself.
    pub(crate) parent: Option<NodeId>,
}

/// A growth that is being written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct Growth {
    /// The command that asked for it; `None`: another node's.
    pub(crate) asked: Option<AdminTag>,
    /// What is new is to be resynced.
    pub(crate) resync: bool,
    /// The peer speaks 8.4: the sizes are told.
    pub(crate) is_told: bool,
}

impl Resource {
    /// `resize`: answered when this node has grown, and the others were told.
    pub(crate) fn resize(&mut self, cx: &mut Ctx<'_>, tag: AdminTag, wanted: Resize) {
        match self.resize_check(wanted) {
            Ok(None) => cx.reply(tag, Ok(())),
            Ok(Some(vidx)) if self.peer_84().is_some() => {
                let growth = Growth { asked: Some(tag), resync: !wanted.assume_clean, is_told: true };
                self.grow(cx, vidx, wanted.size_sectors, Some(wanted.size_sectors), growth);
            }
            Ok(Some(_)) => self.want(Change::Resize(wanted), Some(tag)),
            Err(error) => cx.reply(tag, Err(error)),
        }
    }

    /// Which volume may get this size now; `None`: it has it.
    pub(crate) fn resize_check(&self, wanted: Resize) -> Result<Option<usize>, AdminError> {
        let refuse = |code, message: String| Err(AdminError { code, message });
        let Resize { volume, size_sectors, .. } = wanted;
        let Some(vidx) = self.vidx(volume) else { return refuse(0, format!("no volume {volume}")) };
        let v = &self.volumes[vidx];
        let Some(a) = v.attached.as_ref().filter(|_| v.has_disk()) else {
            return refuse(ss::NO_LOCAL_DISK, "there is no local disk: ask a node that has one".into());
        };
        if size_sectors < v.size_sectors {
            return refuse(0, format!("it has {} sectors, and no volume shrinks", v.size_sectors));
        }
        if size_sectors == v.size_sectors {
            return Ok(None);
        }
        if let Some((code, why)) = self.cannot_grow(vidx) {
            return refuse(code, why);
        }
        let usable = a.layout.usable_sectors;
        if size_sectors > usable {
            return refuse(0, format!("{size_sectors} sectors are wanted: the disk here has {usable}"));
        }
        for c in self.conns.iter().filter(|c| c.config.net.bitmap) {
            let usable = c.pds[vidx].says.sizes.map_or(0, |sizes| sizes.d_size);
            if size_sectors > usable {
                let node = c.node();
                return refuse(0, format!("{size_sectors} sectors are wanted: the disk of node {node} has {usable}"));
            }
        }
        let elsewhere = |c: &&crate::connection::Connection| {
            c.is_up() && c.role == Role::Primary && usable_disk(c.pds[vidx].disk) && !c.speaks_84()
        };
        match (self.conns.iter().find(elsewhere), self.peer_84()) {
            (Some(primary), _) => {
                refuse(0, format!("node {} is Primary: ask it, since what is new is copied from it", primary.node()))
            }
            (None, Some(peer)) if self.role != Role::Primary && self.conns[peer].role != Role::Primary => {
                refuse(0, "one of the two nodes has to be Primary: from it the new area is copied".into())
            }
            _ => Ok(Some(vidx)),
        }
    }

    /// Why a volume with a disk here cannot grow now: all nodes with a disk have to be there, with nothing else to do.
    fn cannot_grow(&self, vidx: usize) -> Option<(i32, String)> {
        let v = &self.volumes[vidx];
        if v.growing > 0 {
            return Some((ss::RESYNC_RUNNING, "busy: it is growing".into()));
        }
        for c in self.conns.iter().filter(|c| c.config.net.bitmap) {
            let (node, pd) = (c.node(), &c.pds[vidx]);
            if !c.is_up() {
                return Some((ss::NEED_CONNECTION, format!("node {node} is not connected: all have to grow together")));
            }
            if !usable_disk(pd.disk) {
                return Some((ss::NO_REMOTE_DISK, format!("node {node} has no disk ({})", pd.disk)));
            }
            if pd.repl != ReplState::Established {
                return Some((ss::RESYNC_RUNNING, format!("busy with node {node}: {}", pd.repl)));
            }
        }
        let good = v.disk == DiskState::UpToDate || self.peer_84().is_some();
        (!good).then(|| (ss::NO_UP_TO_DATE_DISK, format!("the disk here is {}", v.disk)))
    }

    /// Whether this node can live with a growth that another one asks for.
    pub(crate) fn resize_vote(&self, volume: Option<VolumeNr>, user_size: u64) -> Verdict {
        let Some(vidx) = volume.and_then(|nr| self.vidx(nr)) else { return Verdict::Yes };
        let v = &self.volumes[vidx];
        let shrinks = user_size != 0 && user_size < v.size_sectors;
        match v.has_disk() {
            true if shrinks || self.cannot_grow(vidx).is_some() => Verdict::No,
            _ => Verdict::Yes,
        }
    }

    /// What this node could give to a volume, in sectors; without a disk it sets no limit.
    pub(crate) fn largest_size(&self, volume: Option<VolumeNr>) -> u64 {
        let vidx = volume.and_then(|nr| self.vidx(nr));
        let attached = vidx.and_then(|vidx| self.volumes[vidx].attached.as_ref());
        attached.map_or(placement::MAX_DEVICE_SECTORS, |a| a.layout.usable_sectors)
    }

    /// The growth is agreed: carry it out.
    pub(crate) fn resize_agreed(
        &mut self,
        cx: &mut Ctx<'_>,
        volume: Option<VolumeNr>,
        agreed: Agreed,
        asked: Option<AdminTag>,
    ) {
        let answer = |cx: &mut Ctx<'_>, result| {
            if let Some(tag) = asked {
                cx.reply(tag, result);
            }
        };
        let vidx = volume.and_then(|nr| self.vidx(nr)).filter(|&v| self.volumes[v].size_sectors < agreed.size_sectors);
        let Some(vidx) = vidx else { return answer(cx, Ok(())) };
        let Some(a) = self.volumes[vidx].attached.as_ref().filter(|_| self.volumes[vidx].has_disk()) else {
            self.grows_without_disk(cx, vidx, agreed.size_sectors);
            let message = "the volume has grown, but the disk here is gone: it grows when it is attached again".into();
            return answer(cx, Err(AdminError { code: ss::NO_LOCAL_DISK, message }));
        };
        if agreed.size_sectors > a.layout.usable_sectors {
            // Not what this node has agreed to. The peers notice that it has not grown when they connect.
            let message = format!("volume {}: the disk here is too small to grow", self.volumes[vidx].nr);
            cx.notice(Severity::Error, message.clone());
            return answer(cx, Err(AdminError { code: ss::NO_LOCAL_DISK, message }));
        }
        let cap = (agreed.user_size > 0).then_some(agreed.user_size);
        self.grow(cx, vidx, agreed.size_sectors, cap, Growth { asked, resync: !agreed.assume_clean, is_told: false });
        if agreed.assume_clean {
            return;
        }
        for cidx in self.up_conns() {
            if !usable_disk(self.conns[cidx].pds[vidx].disk)
                || self.conns[cidx].pds[vidx].repl != ReplState::Established
            {
                continue;
            }
            match self.new_area_goes_to(self.conns[cidx].node(), &agreed) {
                Some(true) => {
                    self.becomes_source(cx, cidx, vidx);
                    self.send_state(cx, cidx, vidx);
                }
                Some(false) => self.conns[cidx].pds[vidx].awaits_source = true,
                None => {}
            }
        }
    }

    /// What is new is copied to a peer, or from it, or neither: from the Primary, else from the node that was asked to grow.
    fn new_area_goes_to(&self, peer: NodeId, agreed: &Agreed) -> Option<bool> {
        let (own, theirs) = (agreed.primaries.contains(self.config.node_id), agreed.primaries.contains(peer));
        match agreed.parent {
            _ if !agreed.primaries.is_empty() => (own != theirs).then_some(own),
            None => Some(true),
            Some(parent) => (parent == peer).then_some(false),
        }
    }

    /// This node has grown, and the peer has, and is the source: the resync of what is new begins.
    pub(crate) fn resync_new_area(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let (c, v) = (&self.conns[cidx], &self.volumes[vidx]);
        let pd = &c.pds[vidx];
        let source = pd.says.state.is_some_and(|state| {
            matches!(state.conn.repl_state(), Some(ReplState::SyncSource | ReplState::PausedSyncS))
        });
        let idle = c.is_up() && pd.repl == ReplState::Established && self.sync_source_of(vidx).is_none();
        if pd.awaits_source && source && idle && v.has_disk() && v.growing == 0 {
            self.conns[cidx].pds[vidx].awaits_source = false;
            self.resync_begin_target(cx, cidx, vidx);
        }
    }

    /// Without a disk the volume is as large as its replicas.
    pub(crate) fn grows_without_disk(&mut self, cx: &mut Ctx<'_>, vidx: usize, size: u64) {
        let v = &mut self.volumes[vidx];
        if size > v.size_sectors {
            v.size_sectors = size;
            cx.out.push(Action::Event(Event::Device {
                volume: v.nr,
                disk: v.disk,
                size_sectors: size,
                quorum: v.standing.has_quorum(),
            }));
        }
    }

    /// The volume gets a new size, up to `cap` if there is one.
    pub(crate) fn grow(&mut self, cx: &mut Ctx<'_>, vidx: usize, size: u64, cap: Option<u64>, growth: Growth) {
        let v = &mut self.volumes[vidx];
        let old = std::mem::replace(&mut v.size_sectors, size);
        assert!(old < size, "no volume shrinks");
        v.config.size_sectors = cap;
        v.growing += 1;
        let a = v.attached.as_mut().expect("a disk grows");
        let bits = size.div_ceil(8);
        a.bitmap.resize(bits);
        if growth.resync {
            for slot in 0..a.bitmap.slots() {
                a.bitmap.set_range(slot, old / 8, bits - 1);
            }
        }
        v.meta.push(Step::Bitmap);
        v.meta.push(Step::SuperBlock);
        v.meta.push(Step::Then(Then::Grown(growth)));
        cx.notice(Severity::Info, format!("volume {}: grows from {old} to {size} sectors", v.nr));
    }

    /// The new size is stable.
    pub(crate) fn grown(&mut self, cx: &mut Ctx<'_>, vidx: usize, growth: Growth) {
        let v = &mut self.volumes[vidx];
        v.growing -= 1;
        v.retry_waiters = true;
        cx.out.push(Action::Event(Event::Device {
            volume: v.nr,
            disk: v.disk,
            size_sectors: v.size_sectors,
            quorum: v.standing.has_quorum(),
        }));
        if growth.is_told {
            return self.tell_growth(cx, vidx, growth);
        }
        if let Some(tag) = growth.asked {
            cx.reply(tag, Ok(()));
        }
        for cidx in 0..self.conns.len() {
            self.resync_new_area(cx, cidx, vidx);
        }
    }

    /// The disk failed before the new size was stable.
    pub(crate) fn growth_failed(&mut self, cx: &mut Ctx<'_>, vidx: usize, growth: Growth) {
        self.volumes[vidx].growing -= 1;
        if let Some(tag) = growth.asked {
            cx.reply(tag, Err(AdminError { code: ss::NO_LOCAL_DISK, message: "the disk failed while it grew".into() }));
        }
    }

    /// Both disks were part of this volume before, with the sizes that they told: the smaller one grows when they connect. Growing is a
    /// matter of all nodes, so that nothing can have been written there while it did not.
    pub(crate) fn grows_when_connected(&self, cidx: usize, vidx: usize) -> bool {
        let (c, v) = (&self.conns[cidx], &self.volumes[vidx]);
        let known = |uuid: u64| uuid & !1 != 0 && uuid & !1 != uuid::JUST_CREATED;
        let theirs = c.pds[vidx].says.uuids.as_ref().is_some_and(|u| known(u.current));
        let sizes = c.pds[vidx].says.sizes.is_some_and(|s| s.c_size > 0 && s.d_size > 0);
        c.keeps_bits()
            && !c.speaks_84()
            && v.has_disk()
            && v.size_sectors > 0
            && known(v.uuids.current)
            && theirs
            && sizes
    }

    /// The peer has grown while this node was away, or died.
    pub(crate) fn grow_to_peer(&mut self, cx: &mut Ctx<'_>, vidx: usize, size: u64) {
        let cap = self.volumes[vidx].config.size_sectors.map(|cap| cap.max(size));
        self.grow(cx, vidx, size, cap, Growth { asked: None, resync: true, is_told: false });
    }
}

pub(crate) fn usable_disk(disk: DiskState) -> bool {
    disk >= DiskState::Inconsistent && disk != DiskState::DUnknown
}
