//! Connecting to a peer that speaks 8.4, and comparing on a connection that is up (handshake-and-states.md 3.1).

use zea_wire::flags::UuidFlags;
use zea_wire::ids::NodeMask;
use zea_wire::state::{ConnState, DiskState, ReplState, Role, StateWord};

use crate::connection::LinkPhase;
use crate::handshake::Decision;
use crate::resource::{Ctx, Resource};
use crate::twopc::Verdict;

impl Resource {
    /// The peer's P_STATE of a volume was compared: connected as soon as that is so for all of them.
    pub(crate) fn connect_84(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        for vidx in 0..self.volumes.len() {
            self.naming_is_known(cidx, vidx);
        }
        match self.handshake_verdict(cidx) {
            None => {}
            Some(Verdict::Yes) => self.connected(cx, cidx),
            // Closing at once could take from the peer what it has not read, and it would ask again for ever.
            Some(Verdict::No) => self.conns[cidx].link.as_mut().expect("it connects").phase = LinkPhase::Refused,
            Some(Verdict::Retry) => {
                self.drop_link(cx, cidx, ConnState::NetworkFailure, "the state changed while it connected");
            }
        }
    }

    /// P_STATE on a connection that is up may ask for a comparison: the peer became UpToDate by force next to our Inconsistent disk, its
    /// disk is coming up, or it has begun a resync and waits for our part. True if it did.
    pub(crate) fn state_compares_84(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, state: StateWord) -> bool {
        let pd = &self.conns[cidx].pds[vidx];
        let disk = self.volumes[vidx].disk;
        let idle = pd.repl == ReplState::Established && disk >= DiskState::Inconsistent;
        let forced = state.role == Role::Primary
            && (disk, pd.disk, state.disk) == (DiskState::Inconsistent, DiskState::Inconsistent, DiskState::UpToDate);
        let attaches = state.disk == DiskState::Negotiating;
        let begins = [ReplState::StartingSyncS, ReplState::StartingSyncT, ReplState::WFBitMapS, ReplState::WFBitMapT];
        let has_begun = state.conn.repl_state().is_some_and(|repl| begins.contains(&repl));
        if !idle || !(forced || attaches || has_begun) {
            return false;
        }
        let mut real = state;
        if attaches {
            let uuids = pd.says.uuids.as_ref();
            let inconsistent = uuids.is_none_or(|u| u.uuid_flags.contains(UuidFlags::INCONSISTENT));
            real.disk = if inconsistent { DiskState::Inconsistent } else { DiskState::Consistent };
        }
        self.compare_84(cx, cidx, vidx, real, has_begun);
        true
    }

    fn compare_84(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, state: StateWord, has_begun: bool) {
        let sent = self.uuids_for(cidx, vidx, UuidFlags::EMPTY, NodeMask::EMPTY);
        let own = (self.role, self.volumes[vidx].disk);
        let pd = &mut self.conns[cidx].pds[vidx];
        pd.says.state = Some(state);
        pd.sent_uuids = Some(sent);
        pd.sent_state = own;
        let decision = self.compare(cx, cidx, vidx, state);
        match decision {
            Decision::Source { .. } | Decision::Target { .. } => {}
            Decision::Refuse(why) => return self.stand_alone(cx, cidx, &why),
            Decision::Established { .. } if !has_begun => {}
            Decision::Retry | Decision::Established { .. } => {
                let why = "to compare the data again: only one node sees a resync";
                return self.drop_link(cx, cidx, ConnState::NetworkFailure, why);
            }
        }
        self.peer_role(cx, cidx, state.role);
        if !matches!(decision, Decision::Established { .. }) {
            self.mark_unstable_writes(cx, cidx, vidx);
        }
        self.conns[cidx].pds[vidx].decision = Some(decision);
        self.apply_decision(cx, cidx, vidx);
        if !has_begun {
            self.send_uuids_to(cx, cidx, vidx, UuidFlags::EMPTY, NodeMask::EMPTY);
            self.send_state(cx, cidx, vidx);
        }
        self.state_changed = true;
        self.start_bitmap_exchange(cx, cidx, vidx);
    }

    /// What the peer has not confirmed as stable is part of what is resynced.
    pub(crate) fn mark_unstable_writes(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let node = self.conns[cidx].node();
        let unstable = |w: &crate::request::WriteReq| w.vidx == vidx && w.unstable.contains(node);
        let ranges: Vec<(u64, u32)> =
            self.writes.iter().filter(|(_, w)| unstable(w)).map(|(_, w)| (w.req.sector, w.req.len)).collect();
        for (sector, len) in ranges {
            self.mark_missing(cx, cidx, vidx, sector, len);
        }
    }
}
