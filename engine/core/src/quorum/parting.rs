//! Leaving in order: whoever goes while a Primary stays is Outdated by that, so that it does not count against the Primary
//! (handshake-and-states.md 8.5).

use zea_meta::flags::DeviceFlags;
use zea_wire::ids::NodeId;
use zea_wire::state::{DiskState, Role, StateBits};

use crate::io::AdminError;
use crate::meta_queue::Step;
use crate::resource::{Ctx, Resource};
use crate::twopc::ss;

impl Resource {
    /// Mask and value that the request of a disconnect has beside the connection: the disk that is Outdated by it.
    pub(crate) fn outdated_by_parting(&self, peer: NodeId) -> (StateBits, StateBits) {
        let peer_role = self.cidx(peer).map(|cidx| self.conns[cidx].role);
        match (self.role, peer_role) {
            _ if !self.counts_votes() => (StateBits(0), StateBits(0)),
            (Role::Secondary, Some(Role::Primary)) => (StateBits::DISK, StateBits::of_disk(DiskState::Outdated)),
            (Role::Primary, Some(Role::Secondary)) => (StateBits::PDSK, StateBits::of_pdsk(DiskState::Outdated)),
            _ => (StateBits(0), StateBits(0)),
        }
    }

    /// A disconnect from a peer is agreed. `own`, `theirs`: whose disks are Outdated by it.
    pub(crate) fn part(&mut self, cidx: usize, own: bool, theirs: bool) {
        for vidx in 0..self.volumes.len() {
            let v = &mut self.volumes[vidx];
            if own && self.role == Role::Secondary && v.disk >= DiskState::Consistent {
                v.disk = DiskState::Outdated;
                v.set_flag(DeviceFlags::WAS_UP_TO_DATE, false);
                v.meta.push(Step::SuperBlock);
            }
            let pd = &mut self.conns[cidx].pds[vidx];
            if theirs && pd.disk >= DiskState::Consistent {
                pd.disk = DiskState::Outdated;
                pd.is_behind = true;
            }
        }
        self.state_changed = true;
    }

    /// A Primary does not leave those whose votes it needs.
    pub(crate) fn check_parting(&self, cidx: usize) -> Result<(), AdminError> {
        let Some(vidx) = self.needs_vote_of(cidx) else { return Ok(()) };
        let message = format!(
            "volume {}: the Primary would lose quorum by a disconnect from {}: connect another node, demote it, or use --force",
            self.volumes[vidx].nr, self.conns[cidx].config.name
        );
        Err(AdminError { code: ss::NO_QUORUM, message })
    }

    /// A transaction of a node that this one takes for connected has come over another node: that one has lost the connection.
    pub(crate) fn notice_lost_initiator(&mut self, cx: &mut Ctx<'_>, parent: NodeId, initiator: NodeId) {
        if parent == initiator || !self.counts_votes() {
            return;
        }
        if let Some(cidx) = self.cidx(initiator).filter(|&cidx| self.conns[cidx].is_up()) {
            self.drop_link(cx, cidx, zea_wire::state::ConnState::NetworkFailure, "the peer has lost the connection");
        }
    }
}
