//! Connected nodes whose UpToDate data is of a later generation than another one's. A Primary that has lost a node begins one without it; that
//! node may not have noticed the loss, and still take its own data for the newest. Whoever knows both generations sees which is later.

use zea_wire::ids::NodeId;
use zea_wire::state::DiskState;

use crate::resource::Resource;

impl Resource {
    /// The first peer with later data than this node's UpToDate disk has.
    pub(crate) fn later_peer(&self, vidx: usize) -> Option<NodeId> {
        let v = &self.volumes[vidx];
        let own = v.uuids.current;
        self.conns
            .iter()
            .find(|c| {
                self.both_up_to_date(c.node(), vidx)
                    && c.pds[vidx]
                        .says
                        .uuids
                        .as_ref()
                        .is_some_and(|told| told.knows(own) && !v.uuids.knows(told.current))
            })
            .map(|c| c.node())
    }

    /// The other way round: a peer calls data UpToDate that this disk has left behind.
    pub(crate) fn is_later_than(&self, node: NodeId, vidx: usize) -> bool {
        let v = &self.volumes[vidx];
        let told = self.cidx(node).and_then(|c| self.conns[c].pds[vidx].says.uuids.as_ref());
        self.both_up_to_date(node, vidx)
            && told.is_some_and(|told| v.uuids.knows(told.current) && !told.knows(v.uuids.current))
    }

    fn both_up_to_date(&self, node: NodeId, vidx: usize) -> bool {
        let zea = self.cidx(node).is_some_and(|c| self.conns[c].keeps_bits());
        zea && self.volumes[vidx].disk == DiskState::UpToDate && self.is_up_to_date(node, vidx)
    }
}
