//! A generation without an acknowledged write, which its Primary began just before it lost quorum, is withdrawn: the others may go on from the
//! one before it, and that they did is no split brain.

use zea_wire::state::{DiskState, Role};

use crate::meta_queue::Step;
use crate::resource::{Ctx, Resource};

impl Resource {
    /// Before this Primary shows its generation to anybody, or gives up its role. What it wrote meanwhile is marked, and is undone or
    /// confirmed by a resync. A peer that has taken over the generation resyncs this node by the bits that it has for the one before.
    pub(crate) fn withdraw_generations(&mut self) {
        for vidx in 0..self.volumes.len() {
            let own = self.role == Role::Primary && self.counts_votes() && !self.volumes[vidx].standing.has_quorum();
            let v = &mut self.volumes[vidx];
            let known = v.known_generation == v.uuids.current & !1;
            if !own || known || v.disk != DiskState::UpToDate || v.new_uuid_running || v.former.is_empty() {
                continue;
            }
            let last = v.former.iter().position(|uuid| *uuid == v.known_generation).unwrap_or(0);
            v.withdrawn = [&v.former[last + 1..], &[v.uuids.current & !1]].concat();
            v.uuids.go_back(&v.former[last..]);
            v.former.clear();
            v.new_uuid_needed = true;
            v.meta.push(Step::SuperBlock);
        }
    }

    /// A peer has taken over a generation that this Primary has withdrawn: both go on in it. True if so.
    pub(crate) fn takes_up_generation(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) -> bool {
        let current = self.conns[cidx].pds[vidx].says.uuids.as_ref().map_or(0, |u| u.current & !1);
        let rotate = self.rotate_context(vidx, self.dagtag);
        let weak = self.not_replicated(vidx).without(self.conns[cidx].node().mask());
        let v = &mut self.volumes[vidx];
        let before = v.uuids.current;
        let takes = self.role == Role::Primary && !v.new_uuid_running && v.withdrawn.contains(&current);
        if !takes || v.uuids.rotate_current_into_bitmap(&rotate, weak, [current, cx.uuid()]).is_none() {
            return false;
        }
        v.withdrawn.clear();
        v.known_generation = current;
        self.begin_generation(vidx, before);
        true
    }
}
