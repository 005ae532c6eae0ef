//! Resyncs that rest: somebody here or on the peer has paused them, or another volume is to be resynced before
//! (handshake-and-states.md 6.8).
//!
//! A paused resync is one that runs, as far as locks, bits and UUIDs are concerned: it asks for nothing more and does not end until
//! no reason is left. Observers and the peer see PausedSyncS and PausedSyncT. Writes are replicated as in one that runs.

use std::fmt;

use zea_wire::ids::{NodeId, VolumeNr};
use zea_wire::state::{DiskState, ReplState, StateWord};

use crate::connection::{Connection, PeerDevice};
use crate::event::PausedBy;
use crate::io::AdminError;
use crate::resource::{Ctx, Resource};

impl PausedBy {
    /// There is a reason.
    pub const fn any(self) -> bool {
        self.user || self.peer || self.dependency
    }
}

/// In the words of `drbdsetup`: `no`, or a list.
impl fmt::Display for PausedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.any() {
            return f.write_str("no");
        }
        let reasons = [(self.user, "user"), (self.peer, "peer"), (self.dependency, "dependency")];
        let mut comma = "";
        for (_, name) in reasons.into_iter().filter(|(is, _)| *is) {
            write!(f, "{comma}{name}")?;
            comma = ",";
        }
        Ok(())
    }
}

impl PeerDevice {
    /// A resync with this peer is not to go on.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused_by.any()
    }

    /// The replication state as observers and the peer see it.
    pub(crate) fn shown_repl(&self) -> ReplState {
        match self.repl {
            ReplState::SyncSource if self.is_paused() => ReplState::PausedSyncS,
            ReplState::SyncTarget if self.is_paused() => ReplState::PausedSyncT,
            repl => repl,
        }
    }
}

impl Resource {
    /// An administrator pauses resyncs of a volume with a peer, or lets them go on. Also one that begins later.
    pub(crate) fn pause_sync(
        &mut self,
        cx: &mut Ctx<'_>,
        peer: NodeId,
        volume: VolumeNr,
        paused: bool,
    ) -> Result<(), AdminError> {
        let refuse = |message| AdminError { code: 0, message };
        let cidx = self.cidx(peer).ok_or_else(|| refuse(format!("no peer with node id {peer}")))?;
        let vidx = self.vidx(volume).ok_or_else(|| refuse(format!("no volume {volume}")))?;
        let before = self.conns[cidx].pds[vidx].paused_by;
        self.pauses_move(cx, cidx, vidx, PausedBy { user: paused, ..before });
        Ok(())
    }

    /// What the peer says of resyncs with this node.
    pub(crate) fn peer_pauses(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, state: StateWord) {
        let before = self.conns[cidx].pds[vidx].paused_by;
        self.pauses_move(cx, cidx, vidx, PausedBy { peer: state.user_isp || state.aftr_isp, ..before });
    }

    pub(crate) fn pauses_move(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, by: PausedBy) {
        let pd = &mut self.conns[cidx].pds[vidx];
        if pd.paused_by == by {
            return;
        }
        let (before, shown) = (pd.paused_by, pd.shown_repl());
        pd.paused_by = by;
        let changed = (before.user, before.dependency) != (by.user, by.dependency) || pd.shown_repl() != shown;
        self.state_changed = true;
        if self.conns[cidx].is_up() && changed {
            self.send_state(cx, cidx, vidx);
        }
        self.look_elsewhere(cx, cidx, vidx);
    }

    /// The source of a resync that rests now is left for one that is not paused.
    fn look_elsewhere(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let pd = &self.conns[cidx].pds[vidx];
        let rests = pd.repl == ReplState::SyncTarget && pd.is_paused() && !pd.finishing;
        let other = |c: &Connection| {
            let pd = &c.pds[vidx];
            c.is_up() && pd.repl == ReplState::PausedSyncT && pd.disk >= DiskState::Consistent && !pd.is_paused()
        };
        if rests && self.conns.iter().any(other) {
            self.reconnect(cx, cidx, "its resync is paused, and another node has the data");
        }
    }
}
