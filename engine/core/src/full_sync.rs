//! `invalidate` and `invalidate-remote`: one node gives its data up and gets all of it again (handshake-and-states.md 4.1, 8.1).
//!
//! A node alone decides what becomes of its own disk, so that an `invalidate` among Zea nodes is nobody else's concern: the disk is
//! Inconsistent, and the node compares again (`docs/adr/0005-compare-by-reconnecting.md`). What a peer is to give up it is asked for, in
//! a transaction, and may refuse. Kernels begin the resync on the connection that is up, without bitmaps, since all bits are set on
//! both sides; so does 8.4 ([`crate::dialect`]).

use rkyv::{Archive, Deserialize, Serialize};
use zea_wire::ids::{NodeId, VolumeNr};
use zea_wire::packet::{TwopcBody, TwopcRequest};
use zea_wire::state::{DiskState, ReplState, Role, StateBits};

use crate::connection::Connection;
use crate::event::Severity;
use crate::io::{AdminError, AdminTag};
use crate::meta_queue::{Step, Then};
use crate::resource::{Ctx, Resource};
use crate::twopc::{Change, Verdict, ss};

/// A resync of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) struct FullSync {
    pub(crate) peer: NodeId,
    pub(crate) volume: VolumeNr,
    /// From this node to the peer, else the other way round.
    pub(crate) as_source: bool,
}

impl FullSync {
    /// What this node wants to be, in a request.
    pub(crate) fn wanted(self) -> ReplState {
        if self.as_source { ReplState::StartingSyncS } else { ReplState::StartingSyncT }
    }
}

/// What the initiator of a transaction wants to be in a resync of everything with its target, if it is one of those.
pub(crate) fn starts_full_sync(request: &TwopcRequest) -> Option<ReplState> {
    let TwopcBody::Prepare { mask, val } = request.body else { return None };
    let repl = val.conn().filter(|_| mask.names(StateBits::CONN))?.repl_state()?;
    matches!(repl, ReplState::StartingSyncS | ReplState::StartingSyncT).then_some(repl)
}

fn refuse(code: i32, message: impl Into<String>) -> AdminError {
    AdminError { code, message: message.into() }
}

impl Resource {
    /// Throw the local data away: this node becomes the target of a full resync.
    pub(crate) fn invalidate(&mut self, cx: &mut Ctx<'_>, tag: AdminTag, volume: VolumeNr) {
        let checked = self.vidx(volume).ok_or_else(|| refuse(0, format!("no volume {volume}")));
        let checked = checked.and_then(|vidx| self.may_give_up(vidx).map(|source| (vidx, source)));
        match checked {
            Err(e) => cx.reply(tag, Err(e)),
            Ok((_, source)) if self.conns[source].speaks_84() || self.compares_here(source) => {
                let peer = self.conns[source].node();
                self.want(Change::FullSync(FullSync { peer, volume, as_source: false }), Some(tag));
            }
            Ok((vidx, _)) => {
                self.give_up_data(vidx);
                let v = &mut self.volumes[vidx];
                v.meta.push(Step::Then(Then::Reply(tag)));
                v.meta.push(Step::Then(Then::Compare));
            }
        }
    }

    /// Have a peer throw its data away, which gets this node's.
    pub(crate) fn invalidate_remote(&mut self, peer: NodeId, volume: VolumeNr, tag: AdminTag) {
        self.want(Change::FullSync(FullSync { peer, volume, as_source: true }), Some(tag));
    }

    /// Whether the data here can be spared; a peer that has it.
    fn may_give_up(&self, vidx: usize) -> Result<usize, AdminError> {
        let up_to_date = |c: &Connection| c.is_up() && c.pds[vidx].disk == DiskState::UpToDate;
        let primary = self.conns.iter().position(|c| c.role == Role::Primary && up_to_date(c));
        let Some(source) = primary.or(self.up_to_date_peer(vidx)).filter(|_| self.volumes[vidx].has_disk()) else {
            let why = "needs a local disk and a connected UpToDate peer to copy from";
            return Err(refuse(ss::NO_UP_TO_DATE_DISK, why));
        };
        if self.volumes[vidx].disk == DiskState::UpToDate && !self.has_copy(vidx) {
            let why = "no UpToDate peer has told yet that it knows the generation of this disk: try again";
            return Err(refuse(ss::IN_TRANSIENT_STATE, why));
        }
        Ok(source)
    }

    /// An UpToDate peer has what this UpToDate disk has, under the same name. One that is lost before it knows the name would be taken
    /// for older than what is left here.
    fn has_copy(&self, vidx: usize) -> bool {
        let up_to_date = |c: &&Connection| c.is_up() && c.pds[vidx].disk == DiskState::UpToDate;
        self.conns.iter().filter(up_to_date).any(|c| self.knows_generation(c, vidx))
    }

    /// Nothing here counts any more, towards anybody.
    fn give_up_data(&mut self, vidx: usize) {
        let weak = self.not_replicated(vidx);
        let v = &mut self.volumes[vidx];
        if v.disk == DiskState::UpToDate {
            (v.exposed_uuid, v.exposed_weak) = (v.uuids.current, weak);
        }
        v.becomes_inconsistent();
        let peers: Vec<NodeId> = self.conns.iter().map(Connection::node).collect();
        for node in peers {
            self.set_full_bitmap(vidx, node);
        }
        self.state_changed = true;
    }

    // ---- the transaction -------------------------------------------------------------------------------------------

    /// Whether this node may ask for it.
    pub(crate) fn full_sync_check(&self, plan: FullSync) -> Result<(), AdminError> {
        let cidx = self.cidx(plan.peer).ok_or_else(|| refuse(0, format!("no peer with node id {}", plan.peer)))?;
        let vidx = self.vidx(plan.volume).ok_or_else(|| refuse(0, format!("no volume {}", plan.volume)))?;
        if !self.conns[cidx].is_up() {
            let name = &self.conns[cidx].config.name;
            return Err(refuse(ss::NEED_CONNECTION, format!("not connected to {name}")));
        }
        self.full_resync_check(cidx, vidx, plan.as_source)
    }

    /// A peer asks for it.
    pub(crate) fn full_sync_vote(&self, cidx: usize, volume: Option<VolumeNr>, wanted: ReplState) -> Verdict {
        let Some(vidx) = volume.and_then(|nr| self.vidx(nr)) else { return Verdict::No };
        let as_source = wanted == ReplState::StartingSyncT;
        let agrees = self.full_resync_check(cidx, vidx, as_source).is_ok();
        if agrees && (as_source || self.may_give_up(vidx).is_ok()) { Verdict::Yes } else { Verdict::No }
    }

    /// The commit is about to be sent. A kernel hears first that its peer begins to give its data up (seen: 14 f276, f278).
    pub(crate) fn full_sync_announced(&mut self, cx: &mut Ctx<'_>, plan: FullSync) {
        if let Some((cidx, vidx)) = self.full_sync_fits(plan).filter(|(c, _)| self.compares_here(*c) && !plan.as_source)
        {
            self.full_sync_begins(cx, cidx, vidx, false);
        }
    }

    /// The peer agreed that its data is replaced, or to give them.
    pub(crate) fn full_sync_agreed(&mut self, cx: &mut Ctx<'_>, plan: FullSync) {
        let Some((cidx, vidx)) = self.full_sync_fits(plan) else { return };
        if self.conns[cidx].speaks_84() {
            self.full_resync_begins(cidx, vidx, plan.as_source);
        } else if self.compares_here(cidx) {
            self.full_sync_begins(cx, cidx, vidx, plan.as_source);
        }
    }

    fn full_sync_fits(&self, plan: FullSync) -> Option<(usize, usize)> {
        let (cidx, vidx) = (self.cidx(plan.peer)?, self.vidx(plan.volume)?);
        self.full_resync_check(cidx, vidx, plan.as_source).ok().map(|()| (cidx, vidx))
    }

    /// The transaction of a peer is committed. What has been promised may not be possible any more: the disk may have failed.
    pub(crate) fn full_sync_by_peer(
        &mut self,
        cx: &mut Ctx<'_>,
        cidx: usize,
        volume: Option<VolumeNr>,
        wanted: ReplState,
    ) {
        let Some(vidx) = volume.and_then(|nr| self.vidx(nr)) else { return };
        if self.full_sync_vote(cidx, volume, wanted) != Verdict::Yes {
            let text = format!("volume {}: no longer fit for the resync that a peer wanted", self.volumes[vidx].nr);
            return cx.notice(Severity::Warning, text);
        }
        if !self.conns[cidx].keeps_bits() {
            return self.full_sync_begins(cx, cidx, vidx, wanted == ReplState::StartingSyncT);
        }
        let (nr, name) = (self.volumes[vidx].nr, &self.conns[cidx].config.name);
        cx.notice(Severity::Warning, format!("volume {nr}: {name} has this node throw its data away"));
        self.give_up_data(vidx);
        self.volumes[vidx].meta.push(Step::Then(Then::Compare));
    }

    /// With a kernel that speaks 9 on the other side: its bits are being set, too. The source waits for nothing, since the target's bits are
    /// stable before it asks. A kernel calls a target Outdated until then.
    fn full_sync_begins(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, as_source: bool) {
        if as_source {
            self.set_full_bitmap(vidx, self.conns[cidx].node());
            self.becomes_source(cx, cidx, vidx);
            return self.send_state(cx, cidx, vidx);
        }
        self.give_up_data(vidx);
        self.conns[cidx].pds[vidx].repl = ReplState::StartingSyncT;
        self.volumes[vidx].disk = DiskState::Outdated;
        self.send_state(cx, cidx, vidx);
        let v = &mut self.volumes[vidx];
        (v.disk, v.told_disk) = (DiskState::Inconsistent, DiskState::Inconsistent);
    }

    /// All bits are stable here: ask.
    pub(crate) fn full_sync_goes_on(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize) {
        let begins = self.conns[cidx].pds[vidx].repl == ReplState::StartingSyncT && self.sync_source_of(vidx).is_none();
        if begins {
            self.resync_begin_target(cx, cidx, vidx);
        }
    }
}
