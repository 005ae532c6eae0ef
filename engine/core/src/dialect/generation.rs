//! Generations on a connection to a peer that speaks 8.4: who begins one, and how the other learns it (handshake-and-states.md 4.1).

use zea_meta::flags::DeviceFlags;
use zea_wire::flags::UuidFlags;
use zea_wire::packet::Uuids110;
use zea_wire::state::{DiskState, Role};

use crate::meta_queue::Step;
use crate::resource::{Ctx, Resource};

impl Resource {
    /// A Primary without a disk of its own names no generation to this peer: the Secondary that has the data begins it, when it sees such
    /// a Primary.
    pub(crate) fn begin_generation_for_peer(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let c = &self.conns[cidx];
        let without_disk = c.pds[vidx].disk < DiskState::Negotiating;
        let serves = c.role == Role::Primary && without_disk && c.is_up() && c.speaks_84();
        let v = &self.volumes[vidx];
        let begun = v.uuids.bitmap[c.node().index()] & !1 != 0;
        if serves && v.disk == DiskState::UpToDate && !begun && !v.new_uuid_running {
            self.new_current_uuid(cx, vidx);
        }
    }

    /// As that Primary: completions wait until the peer has named the new generation. True if it will.
    pub(crate) fn peer_begins_generation(&mut self, vidx: usize) -> bool {
        let own = self.config.node_id;
        let exposed = self.volumes[vidx].exposed_uuid & !1;
        let names = self.peer_84().is_some_and(|c| {
            let pd = &self.conns[c].pds[vidx];
            // It does so once.
            let waits = pd.says.uuids.as_ref().is_some_and(|u| {
                u.current & !1 == exposed && u.bitmap_uuids.get(own).is_none_or(|uuid| uuid & !1 == 0)
            });
            pd.disk == DiskState::UpToDate && waits
        });
        self.volumes[vidx].peer_names_uuid |= names;
        names
    }

    /// Connected: a Primary without a disk has its generation named.
    pub(crate) fn connected_without_disk(&mut self, vidx: usize) {
        let v = &mut self.volumes[vidx];
        v.may_be_named = false;
        if self.role == Role::Primary && v.attached.is_none() {
            self.peer_begins_generation(vidx);
        }
    }

    /// The peer that may have named a generation is back, and tells. If it did not, and is still at the generation of our disk, which was
    /// taken in order and attached again since, nothing was written without that disk.
    pub(crate) fn naming_is_known(&mut self, cidx: usize, vidx: usize) {
        let own = self.config.node_id;
        let Some(u) = self.conns[cidx].pds[vidx].says.uuids.as_ref() else { return };
        let named = u.bitmap_uuids.get(own).is_some_and(|uuid| uuid & !1 != 0);
        let current = u.current;
        let serves = self.serves_data_of(cidx, vidx, u);
        let v = &mut self.volumes[vidx];
        if !v.may_be_named || self.role != Role::Primary {
            return;
        }
        if v.attached.is_none() && serves {
            v.exposed_uuid = current;
            return;
        }
        let equal = current & !1 == v.uuids.current & !1 && !named;
        if equal && v.attached.is_some() && v.disk == DiskState::Outdated && !v.lost_writes() {
            v.disk = DiskState::UpToDate;
            v.set_flag(DeviceFlags::WAS_UP_TO_DATE, true);
            v.meta.push(Step::SuperBlock);
            self.state_changed = true;
        }
    }

    /// Whether the data of a peer is what this Primary without a disk serves (10). It would name the generation, and must not do so
    /// for other data, or if it lacks some of it.
    pub(crate) fn serves_data_of(&self, cidx: usize, vidx: usize, uuids: &Uuids110) -> bool {
        let v = &self.volumes[vidx];
        let node = self.conns[cidx].node();
        let exposed = v.exposed_uuid & !1;
        let named = uuids.bitmap_uuids.get(self.config.node_id).is_some_and(|uuid| uuid & !1 == exposed);
        let same = uuids.current & !1 == exposed || (v.may_be_named && named);
        let lacks = v.exposed_weak.contains(node) || uuids.uuid_flags.contains(UuidFlags::ZEA_LOST_WRITES);
        exposed == 0 || (same && !lacks)
    }

    /// P_UUIDS on a connection that is up.
    pub(crate) fn uuids_told_84(&mut self, cx: &mut Ctx<'_>, vidx: usize, uuids: &Uuids110) {
        if self.role == Role::Primary && self.volumes[vidx].disk != DiskState::UpToDate {
            self.volumes[vidx].exposed_uuid = uuids.current;
            self.generation_of_peer_known(cx, vidx);
        }
    }

    /// The peer that was to name the generation is gone.
    pub(crate) fn generation_stays_unknown(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        self.volumes[vidx].may_be_named |= self.volumes[vidx].peer_names_uuid;
        self.generation_of_peer_known(cx, vidx);
    }

    /// Nothing holds a Primary without a disk back any more.
    fn generation_of_peer_known(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        if std::mem::take(&mut self.volumes[vidx].peer_names_uuid) {
            self.writes_new_uuid(cx, vidx);
            self.release_held(cx, vidx);
        }
    }
}
