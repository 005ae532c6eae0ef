//! Volumes that are resynced one after the other (`resync-after`, handshake-and-states.md 6.8).
//!
//! A resync of a volume rests while the one that it comes after is being resynced, or is paused, with any connected peer. The peer is told
//! (aftr_isp), so it does not matter on which node the order is configured.

use zea_wire::ids::VolumeNr;
use zea_wire::state::ReplState;

use crate::connection::{Connection, PeerDevice};
use crate::event::PausedBy;
use crate::io::AdminError;
use crate::resource::{Ctx, Resource};

/// A resync of it is wanted, or runs.
fn is_syncing(pd: &PeerDevice) -> bool {
    use ReplState::{
        PausedSyncS, PausedSyncT, StartingSyncS, StartingSyncT, SyncSource, SyncTarget, WFBitMapS, WFBitMapT,
        WFSyncUUID,
    };
    let wanted = matches!(pd.repl, StartingSyncS | StartingSyncT | WFBitMapS | WFBitMapT | WFSyncUUID);
    wanted || matches!(pd.repl, SyncSource | SyncTarget | PausedSyncS | PausedSyncT) || pd.is_paused()
}

impl Resource {
    /// An administrator gives the order of two volumes, or takes it back.
    pub(crate) fn set_resync_after(&mut self, volume: VolumeNr, after: Option<VolumeNr>) -> Result<(), AdminError> {
        let refuse = |message| Err(AdminError { code: 0, message });
        let Some(vidx) = self.vidx(volume) else { return refuse(format!("no volume {volume}")) };
        let mut before = after;
        while let Some(nr) = before {
            if nr == volume {
                return refuse(format!("volume {volume} would be resynced after itself"));
            }
            before = self.vidx(nr).and_then(|v| self.volumes[v].resync_after);
        }
        self.volumes[vidx].resync_after = after;
        self.again = true;
        self.state_changed = true;
        Ok(())
    }

    /// Volumes begin to wait for others, and end. No order goes round in circles.
    pub(crate) fn resync_after_step(&mut self, cx: &mut Ctx<'_>) {
        for vidx in 0..self.volumes.len() {
            let after = self.volumes[vidx].resync_after.and_then(|nr| self.vidx(nr));
            let busy = |c: &Connection, other: usize| c.is_up() && is_syncing(&c.pds[other]);
            let dependency = after.is_some_and(|other| self.conns.iter().any(|c| busy(c, other)));
            for cidx in 0..self.conns.len() {
                let by = self.conns[cidx].pds[vidx].paused_by;
                if by.dependency != dependency {
                    self.again = true;
                    self.pauses_move(cx, cidx, vidx, PausedBy { dependency, ..by });
                }
            }
        }
    }
}
