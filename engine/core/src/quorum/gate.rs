//! What a Primary does with I/O while it has no quorum, or is not sure of it.

use zea_wire::state::{Role, StateWord};

use super::{OnNoQuorum, OnSuspendedPrimaryOutdated, Standing};
use crate::event::Severity;
use crate::handshake::Decision;
use crate::io::AdminError;
use crate::resource::{Ctx, Resource};
use crate::twopc::{Change, ss};

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// It goes on.
    Open,
    /// It waits, and is not answered.
    Waits,
    /// It fails.
    Fails,
}

impl Resource {
    /// A volume without quorum stops the I/O of all of them, where it waits (Q9).
    pub(crate) fn quorum_gate(&self, vidx: usize) -> Gate {
        if !self.counts_votes() || broken!(IgnoreQuorum) {
            return Gate::Open;
        }
        let waits = self.config.quorum.on_no_quorum == OnNoQuorum::SuspendIo && !self.quorum.given_up;
        let (has, sure) = (self.volumes[vidx].standing.has_quorum(), self.is_sure_of_quorum(vidx));
        match (has, sure) {
            _ if waits && self.lacks_quorum().is_some() => Gate::Waits,
            (false, _) => Gate::Fails,
            (true, false) if self.quorum.given_up => Gate::Fails,
            (true, false) => Gate::Waits,
            (true, true) => Gate::Open,
        }
    }

    /// The first volume without quorum.
    pub(crate) fn lacks_quorum(&self) -> Option<usize> {
        let counts = self.counts_votes();
        (0..self.volumes.len()).find(|v| counts && !self.volumes[*v].standing.has_quorum())
    }

    /// This Primary's I/O waits for quorum.
    pub(crate) fn suspended_for_quorum(&self) -> bool {
        self.role == Role::Primary && self.quorum.suspended_since.is_some() && !self.quorum.given_up
    }

    /// The gate of some volume has moved: look again at everything that stands before it.
    pub(crate) fn quorum_gate_moved(&mut self, cx: &mut Ctx<'_>) {
        if self.lacks_quorum().is_none() {
            self.quorum.given_up &= (0..self.volumes.len()).any(|v| !self.is_sure_of_quorum(v));
        }
        self.state_changed = true;
        for vidx in 0..self.volumes.len() {
            self.writes_new_uuid(cx, vidx);
            self.retry_flushes(cx, vidx);
            self.volumes[vidx].retry_waiters = true;
            self.release_held(cx, vidx);
        }
    }

    /// Since when I/O waits: of a Primary, as long as it is one.
    pub(crate) fn follow_suspension(&mut self, cx: &Ctx<'_>) {
        let before = self.suspended_for_quorum();
        let primary = self.role == Role::Primary;
        self.quorum.given_up &= primary;
        if primary && self.lacks_quorum().is_some() && self.config.quorum.on_no_quorum == OnNoQuorum::SuspendIo {
            self.quorum.suspended_since.get_or_insert(cx.now);
        } else {
            self.quorum.suspended_since = None;
        }
        self.state_changed |= before != self.suspended_for_quorum();
    }

    /// Somebody puts an end to suspended I/O: it fails until there is quorum again.
    pub(crate) fn give_up_suspended(&mut self, cx: &mut Ctx<'_>) {
        let stuck = (0..self.volumes.len()).any(|vidx| self.quorum_gate(vidx) == Gate::Waits);
        if self.role == Role::Primary && stuck {
            self.quorum.given_up = true;
            self.quorum_gate_moved(cx);
        }
    }

    /// A peer whose vote counts connects again at once.
    pub(crate) fn awaits_votes(&self) -> bool {
        self.volumes.iter().any(|v| v.standing == Standing::Awaited)
    }

    /// No volume may lack quorum; a peer that is expected back does not count.
    pub(crate) fn check_quorum(&self) -> Result<(), AdminError> {
        let lacks = |v: usize| !self.volumes[v].standing.has_quorum() || self.volumes[v].standing == Standing::Awaited;
        match (0..self.volumes.len()).find(|v| self.counts_votes() && lacks(*v)) {
            Some(vidx) => Err(AdminError { code: ss::NO_QUORUM, message: self.no_quorum_text(vidx) }),
            None => Ok(()),
        }
    }

    /// Two nodes do not connect because one of them is Primary and the other's data went on without it. If just one of them has quorum
    /// it is clear which one is right: the other one gives up (`on-suspended-primary-outdated`), or decides for both not to connect.
    pub(crate) fn settle_by_quorum(&mut self, cx: &mut Ctx<'_>, vidx: usize, state: StateWord) -> Option<Decision> {
        let has = self.volumes[vidx].standing.has_quorum();
        if !self.counts_votes() || has == state.quorum {
            return None;
        }
        if has {
            return (state.role == Role::Primary).then_some(Decision::Retry);
        }
        let gives_up = self.config.quorum.on_suspended_primary_outdated == OnSuspendedPrimaryOutdated::ForceSecondary;
        if self.role != Role::Primary || !gives_up {
            return None;
        }
        let text = "others went on without this Primary, which has no quorum: its I/O fails, and it becomes Secondary";
        cx.notice(Severity::Warning, text);
        self.give_up_suspended(cx);
        self.want(Change::Demote, None);
        Some(Decision::Retry)
    }

    /// As [`Resource::settle_by_quorum`], for whatever volume it is clear. True if the connection is to be tried again.
    pub(crate) fn quorum_settles(&mut self, cx: &mut Ctx<'_>, cidx: usize) -> bool {
        let settles = (0..self.volumes.len()).any(|vidx| {
            let state = self.conns[cidx].pds[vidx].says.state;
            state.is_some_and(|state| self.settle_by_quorum(cx, vidx, state).is_some())
        });
        if settles {
            self.conns[cidx].refusal = None;
        }
        settles
    }

    /// This Primary has no quorum and the peer has it: whether they connect is decided here.
    pub(crate) fn decides_alone(&self, cidx: usize) -> bool {
        let peer_has = || self.conns[cidx].pds.iter().any(|pd| pd.says.state.is_some_and(|s| s.quorum));
        self.role == Role::Primary && self.lacks_quorum().is_some() && peer_has()
    }
}
