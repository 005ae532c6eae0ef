//! How long a disk counts as one that lost writes ([`DeviceFlags::ZEA_LOST_WRITES`]). A copy that lived on may have what it lacks, and
//! is the source then (`uuid/keep_bits.rs`). When every copy there is has become equal none has more; a mark that stayed would make
//! a copy that lives on from then on count no more than one that loses writes later. Likewise [`DeviceFlags::ZEA_WAS_PRIMARY`]: with
//! protocols A and B the disk of the last Primary is the source, until all have what it has.

use zea_meta::flags::DeviceFlags;
use zea_wire::ids::NodeId;
use zea_wire::state::DiskState;

use crate::connection::Connection;
use crate::meta_queue::Step;
use crate::resource::Resource;

impl Resource {
    /// Forgets that this disk lost writes if all others are connected and equal to it. `source`: the one that it has just been resynced
    /// from, which may not have told yet that nothing is marked there.
    pub(crate) fn forget_lost_writes(&mut self, vidx: usize, source: Option<NodeId>) {
        let v = &self.volumes[vidx];
        let copies = (0..32).map(NodeId).filter(|&node| node != self.config.node_id && v.slot(node).is_some());
        let equal = |node: NodeId| {
            self.cidx(node).is_some_and(|c| self.is_equal_copy(&self.conns[c], vidx, source == Some(node)))
        };
        let all_equal = v.disk == DiskState::UpToDate && copies.into_iter().all(equal);
        let marks = DeviceFlags::ZEA_LOST_WRITES | DeviceFlags::ZEA_WAS_PRIMARY;
        if all_equal && self.volumes[vidx].set_flag(marks, false) {
            self.volumes[vidx].meta.push(Step::SuperBlock);
        }
    }

    fn is_equal_copy(&self, c: &Connection, vidx: usize, resynced_from: bool) -> bool {
        let (v, pd) = (&self.volumes[vidx], &c.pds[vidx]);
        let usable = c.is_up() && c.keeps_bits() && pd.is_established() && pd.disk == DiskState::UpToDate;
        let told = pd.says.uuids.as_ref().filter(|u| u.current & !1 == v.uuids.current & !1);
        usable && v.dirty_bits(c.node()) == 0 && told.is_some_and(|u| resynced_from || u.dirty_bits == 0)
    }
}
