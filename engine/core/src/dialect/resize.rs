//! A volume grows next to a peer that speaks 8.4 (handshake-and-states.md 3.3, 6.6). Whoever begins tells its sizes with a current
//! size of 0, which wants an answer; the other one grows, too, and answers.

use zea_wire::flags::DdsFlags;
use zea_wire::packet::{Packet, Sizes};
use zea_wire::state::{ConnState, ReplState, Role};

use crate::io::AdminError;
use crate::meta_queue::Step;
use crate::resize::{Growth, usable_disk};
use crate::resource::{Ctx, Resource};
use crate::twopc::ss;

impl Resource {
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
            let growth = Growth { asked: None, resync: !told.dds_flags.contains(DdsFlags::NO_RESYNC), is_told: true };
            return self.grow(cx, vidx, possible, cap, growth);
        }
        if told.c_size != size {
            self.tell_size(cx, cidx, vidx, size, DdsFlags::EMPTY);
        }
        let has_grown = told.c_size == 0 || told.c_size == size;
        if has_grown && std::mem::take(&mut self.conns[cidx].pds[vidx].growth_told) {
            self.resync_what_is_new(cx, cidx, vidx);
        }
    }

    fn sizes_without_disk(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, told: &Sizes) {
        let told_size = [told.c_size, told.u_size, told.d_size].into_iter().find(|sectors| *sectors > 0);
        self.grows_without_disk(cx, vidx, told_size.unwrap_or(0));
        let size = self.volumes[vidx].size_sectors;
        if told.c_size != size {
            self.tell_size(cx, cidx, vidx, size, DdsFlags::EMPTY);
        }
    }

    /// The new size is stable here.
    pub(crate) fn tell_growth(&mut self, cx: &mut Ctx<'_>, vidx: usize, growth: Growth) {
        let peer = self.peer_84();
        if let Some(tag) = growth.asked {
            let lost = "it has grown, but the peer is gone: let the peer grow, too, before it connects again";
            let result = peer.map(drop).ok_or(AdminError { code: ss::NEED_CONNECTION, message: lost.into() });
            cx.reply(tag, result);
        }
        let Some(cidx) = peer else { return };
        if growth.asked.is_some() {
            self.conns[cidx].pds[vidx].growth_told = growth.resync;
            let flags = if growth.resync { DdsFlags::EMPTY } else { DdsFlags::NO_RESYNC };
            return self.tell_size(cx, cidx, vidx, 0, flags);
        }
        self.tell_size(cx, cidx, vidx, self.volumes[vidx].size_sectors, DdsFlags::EMPTY);
        if growth.resync {
            self.resync_what_is_new(cx, cidx, vidx);
        }
    }

    fn tell_size(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, c_size: u64, dds_flags: DdsFlags) {
        let sizes = Sizes { c_size, dds_flags, ..self.own_sizes(cidx, vidx) };
        self.send_volume(cx, cidx, vidx, Packet::Sizes(Box::new(sizes)));
    }

    /// Both have grown: the Primary is the source, else whoever breaks ties.
    fn resync_what_is_new(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let c = &self.conns[cidx];
        let idle = c.pds[vidx].repl == ReplState::Established;
        if !idle || !usable_disk(c.pds[vidx].disk) || !self.volumes[vidx].has_disk() {
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
