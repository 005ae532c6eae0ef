//! A volume grows while it is in use (handshake-and-states.md 3.3, 6.6). Whoever begins tells its sizes with a current size of 0, which
//! wants an answer; the other one grows, too, and answers. Then what is new is resynced from the Primary.
//!
//! No volume shrinks. Nothing is written before the super block has the new size: a crash must not take back what was acknowledged.

use rkyv::{Archive, Deserialize, Serialize};
use zea_wire::flags::DdsFlags;
use zea_wire::ids::VolumeNr;
use zea_wire::packet::{Packet, Sizes};
use zea_wire::state::{ConnState, DiskState, ReplState, Role};

use crate::event::{Event, Severity};
use crate::io::{Action, AdminError, AdminTag};
use crate::meta_queue::{Step, Then};
use crate::resource::{Ctx, Resource};
use crate::twopc::ss;

/// A growth that is being written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct Growth {
    /// The command that asked for it; `None`: the peer grew before.
    asked: Option<AdminTag>,
    /// What is new is to be resynced.
    resync: bool,
}

impl Resource {
    /// `resize`: answered when this node has grown and the peer was told.
    pub(crate) fn resize(&mut self, cx: &mut Ctx<'_>, tag: AdminTag, volume: VolumeNr, size_sectors: u64) {
        let growth = Growth { asked: Some(tag), resync: true };
        match self.resize_check(volume, size_sectors) {
            Ok(vidx) if self.volumes[vidx].size_sectors == size_sectors => cx.reply(tag, Ok(())),
            Ok(vidx) => self.grow(cx, vidx, size_sectors, Some(size_sectors), growth),
            Err(error) => cx.reply(tag, Err(error)),
        }
    }

    /// Which volume may get this size now.
    fn resize_check(&self, volume: VolumeNr, size_sectors: u64) -> Result<usize, AdminError> {
        let refuse = |code, message: String| Err(AdminError { code, message });
        let Some(vidx) = self.vidx(volume) else { return refuse(0, format!("no volume {volume}")) };
        let Some(cidx) = self.peer_84() else {
            let why = "only next to a connected peer that speaks DRBD 8.4 can a volume grow while it is up";
            return refuse(ss::NEED_CONNECTION, why.into());
        };
        let (v, c) = (&self.volumes[vidx], &self.conns[cidx]);
        let pd = &c.pds[vidx];
        let here = v.attached.as_ref().map_or(0, |a| a.layout.usable_sectors);
        let there = pd.says.sizes.as_ref().map_or(0, |sizes| sizes.d_size);
        if !v.has_disk() {
            refuse(ss::NO_LOCAL_DISK, "there is no local disk".into())
        } else if !usable(pd.disk) {
            refuse(ss::NO_REMOTE_DISK, format!("the peer has no disk ({})", pd.disk))
        } else if pd.repl != ReplState::Established || v.growing > 0 {
            refuse(ss::RESYNC_RUNNING, format!("busy: {}", pd.repl))
        } else if size_sectors < v.size_sectors {
            refuse(0, format!("it has {} sectors, and no volume shrinks", v.size_sectors))
        } else if size_sectors > here.min(there) {
            refuse(0, format!("{size_sectors} sectors are wanted: the disk here has {here}, the peer's {there}"))
        } else if self.role != Role::Primary && c.role != Role::Primary {
            refuse(0, "one of the two nodes has to be Primary: from it the new area is copied".into())
        } else {
            Ok(vidx)
        }
    }

    /// P_SIZES on a connection that is up: the peer grows, or answers.
    pub(crate) fn sizes_told(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, told: &Sizes) {
        let v = &self.volumes[vidx];
        let Some(a) = v.attached.as_ref() else { return self.sizes_without_disk(cx, cidx, vidx, told) };
        let size = v.size_sectors;
        let limits = [a.layout.usable_sectors, told.d_size, told.u_size];
        let possible = limits.into_iter().filter(|sectors| *sectors > 0).min().unwrap_or(size);
        if possible < size {
            let why = format!("the peer wants {possible} sectors for a volume that has {size}");
            return self.drop_link(cx, cidx, ConnState::ProtocolError, &why);
        }
        if possible > size {
            let cap = (told.u_size > 0).then_some(told.u_size);
            let growth = Growth { asked: None, resync: !told.dds_flags.contains(DdsFlags::NO_RESYNC) };
            return self.grow(cx, vidx, possible, cap, growth);
        }
        if told.c_size != size {
            self.tell_size(cx, cidx, vidx, size);
        }
        let has_grown = told.c_size == 0 || told.c_size == size;
        if has_grown && std::mem::take(&mut self.conns[cidx].pds[vidx].growth_told) {
            self.resync_what_is_new(cx, cidx, vidx);
        }
    }

    /// Without a disk the volume is as large as the peer's.
    fn sizes_without_disk(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, told: &Sizes) {
        let size = [told.c_size, told.u_size, told.d_size].into_iter().find(|sectors| *sectors > 0);
        let v = &mut self.volumes[vidx];
        let size = size.map_or(v.size_sectors, |size| size.max(v.size_sectors));
        if size > v.size_sectors {
            v.size_sectors = size;
            cx.out.push(Action::Event(Event::Device { volume: v.nr, disk: v.disk, size_sectors: size }));
        }
        if told.c_size != size {
            self.tell_size(cx, cidx, vidx, size);
        }
    }

    /// The volume gets a new size, up to `cap` if there is one.
    fn grow(&mut self, cx: &mut Ctx<'_>, vidx: usize, size: u64, cap: Option<u64>, growth: Growth) {
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
        let size = v.size_sectors;
        cx.out.push(Action::Event(Event::Device { volume: v.nr, disk: v.disk, size_sectors: size }));
        let peer = self.peer_84();
        if let Some(tag) = growth.asked {
            let lost = "it has grown, but the peer is gone: let the peer grow, too, before it connects again";
            let result = peer.map(drop).ok_or(AdminError { code: ss::NEED_CONNECTION, message: lost.into() });
            cx.reply(tag, result);
        }
        let Some(cidx) = peer else { return };
        if growth.asked.is_some() {
            self.conns[cidx].pds[vidx].growth_told = true;
            return self.tell_size(cx, cidx, vidx, 0);
        }
        self.tell_size(cx, cidx, vidx, size);
        if growth.resync {
            self.resync_what_is_new(cx, cidx, vidx);
        }
    }

    /// The disk failed before the new size was stable.
    pub(crate) fn growth_failed(&mut self, cx: &mut Ctx<'_>, vidx: usize, growth: Growth) {
        self.volumes[vidx].growing -= 1;
        if let Some(tag) = growth.asked {
            cx.reply(tag, Err(AdminError { code: ss::NO_LOCAL_DISK, message: "the disk failed while it grew".into() }));
        }
    }

    fn tell_size(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, c_size: u64) {
        let sizes = Sizes { c_size, ..self.own_sizes(vidx) };
        self.send_volume(cx, cidx, vidx, Packet::Sizes(Box::new(sizes)));
    }

    /// Both have grown: the Primary is the source, else whoever breaks ties.
    fn resync_what_is_new(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let c = &self.conns[cidx];
        let idle = c.pds[vidx].repl == ReplState::Established;
        if !idle || !usable(c.pds[vidx].disk) || !self.volumes[vidx].has_disk() {
            return;
        }
        let is_source = match (self.role == Role::Primary, c.role == Role::Primary) {
            (own, peer) if own != peer => own,
            _ => c.link.as_ref().is_some_and(|link| link.resolve_conflicts),
        };
        if is_source {
            // Its disk counts as good until the resync begins, and gets every write: it would not know of the bit of one that it lacks.
            self.conns[cidx].pds[vidx].repl = ReplState::StartingSyncS;
            self.source_names_resync(cx, cidx, vidx);
        } else {
            self.waits_for_sync_uuid(cidx, vidx);
            self.volumes[vidx].meta.push(Step::SuperBlock);
        }
        self.state_changed = true;
    }
}

fn usable(disk: DiskState) -> bool {
    disk >= DiskState::Inconsistent && disk != DiskState::DUnknown
}
