//! The generation that a disk was being resynced to when that ended early. Its node has voted for writes of that generation, and has no good
//! copy of them: whoever it meets next, and who knows nothing of that generation, lacks what was acknowledged in it, and is Outdated. So
//! that of two groups with quorum the later one has what the earlier one acknowledged, also if the node that they share was a target.
//!
//! The super block has it in the bitmap UUID of the own node, which means nothing otherwise.

use zea_wire::ids::NodeMask;
use zea_wire::packet::{CurrentUuid, Packet};
use zea_wire::state::{DiskState, Role};

use crate::meta_queue::Step;
use crate::resource::{Ctx, Resource};

impl Resource {
    /// The generation of the data that this disk is on its way to.
    pub(crate) fn remember_unfinished(&mut self, vidx: usize, generation: u64) {
        let generation = generation & !1;
        if self.counts_votes() && self.unfinished(vidx) != Some(generation) {
            self.store_unfinished(vidx, generation);
        }
    }

    /// As [`Resource::remember_unfinished`], from a source that knows the generation that was the goal before, or has none to do with it.
    pub(crate) fn remember_source(&mut self, cidx: usize, vidx: usize) {
        let Some(source) = self.conns[cidx].pds[vidx].says.uuids.as_ref() else { return };
        let knows = self.unfinished(vidx).is_none_or(|uuid| source.knows(uuid));
        if knows {
            self.remember_unfinished(vidx, source.current);
        }
    }

    /// What is to be told to those who do not know it.
    pub(crate) fn unfinished(&self, vidx: usize) -> Option<u64> {
        let a = self.volumes[vidx].attached.as_ref()?;
        let uuid = a.sb.peers[self.config.node_id.index()].bitmap_uuid;
        (uuid != 0).then_some(uuid)
    }

    /// A peer that knows nothing of that generation does not make this disk UpToDate.
    pub(crate) fn lacks_unfinished(&self, cidx: usize, vidx: usize) -> bool {
        let peer = self.conns[cidx].pds[vidx].says.uuids.as_ref();
        self.unfinished(vidx).is_some_and(|uuid| peer.is_none_or(|peer| !peer.knows(uuid)))
    }

    /// The disk has all of it, or somebody has decided that it is given up.
    pub(crate) fn finish_unfinished(&mut self) {
        for vidx in 0..self.volumes.len() {
            if self.volumes[vidx].disk == DiskState::UpToDate && self.unfinished(vidx).is_some() {
                self.store_unfinished(vidx, 0);
            }
        }
    }

    fn store_unfinished(&mut self, vidx: usize, uuid: u64) {
        let own = self.config.node_id.index();
        let v = &mut self.volumes[vidx];
        if let Some(a) = v.attached.as_mut() {
            a.sb.peers[own].bitmap_uuid = uuid;
            v.meta.push(Step::SuperBlock);
        }
    }

    /// In the handshake with Zea, after the UUIDs.
    pub(crate) fn tell_unfinished(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let c = &self.conns[cidx];
        let tells = self.counts_votes() && self.role == Role::Secondary && c.keeps_bits() && !c.speaks_84();
        if let Some(uuid) = self.unfinished(vidx).filter(|_| tells) {
            self.send_volume(cx, cidx, vidx, Packet::CurrentUuid(CurrentUuid { uuid, weak_nodes: NodeMask::EMPTY }));
        }
    }
}
