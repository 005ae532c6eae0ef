//! Requests that waited for a range or for the activity log, tried again in order.

use crate::limits;
use crate::peer_request::Stage;
use crate::resource::{Ctx, Resource};
use crate::volume::Waiter;

impl Resource {
    /// Try again what waits on a volume, oldest first, if something changed.
    pub(crate) fn retry_waiters(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        if !std::mem::take(&mut self.volumes[vidx].retry_waiters) {
            return;
        }
        // All of them are looked at only where the first may go.
        let v = &self.volumes[vidx];
        if v.peer_writes == 0 && v.held.front().is_some_and(|first| !self.is_held(vidx, first.op)) {
            self.release_held(cx, vidx);
        }
        for pd in self.conns.iter_mut().map(|c| &mut c.pds[vidx]) {
            if let Some(r) = pd.resync.as_mut() {
                r.blocked = false;
            }
        }
        for _ in 0..self.volumes[vidx].al_waiters.len() {
            let Some(waiter) = self.volumes[vidx].al_waiters.pop_front() else { break };
            self.retry(cx, vidx, waiter);
        }
        for _ in 0..self.volumes[vidx].resync_waiters.len() {
            let Some(index) = self.volumes[vidx].resync_waiters.pop_front() else { break };
            self.peer_req_go(cx, index);
        }
        while let Some(waiter) = self.volumes[vidx].conflict_waiters.pop_front() {
            let left = self.volumes[vidx].conflict_waiters.len();
            self.retry(cx, vidx, waiter);
            if self.volumes[vidx].conflict_waiters.len() > left {
                break;
            }
        }
    }

    fn retry(&mut self, cx: &mut Ctx<'_>, vidx: usize, waiter: Waiter) {
        match waiter {
            Waiter::Request(req) => {
                if self.transfer_log.len() >= limits::MAX_TRANSFER_LOG {
                    self.volumes[vidx].conflict_waiters.push_front(waiter);
                } else {
                    self.admit(cx, vidx, req);
                }
            }
            Waiter::Peer(index) => {
                if self.peer_reqs.get(index).is_some_and(|p| matches!(p.stage, Stage::Range | Stage::ActivityLog)) {
                    self.peer_req_advance(cx, index, true);
                }
            }
        }
    }
}
