//! Where a node stands: the votes of every volume, what follows when quorum is lost or regained, and the members of the cluster
//! as the last transaction found them (handshake-and-states.md 8.3, 9).

use rkyv::{Archive, Deserialize, Serialize};
use zea_meta::flags::DeviceFlags;
use zea_wire::ids::{NodeId, NodeMask};
use zea_wire::state::{DiskState, Role};

use super::{Electorate, OnNoQuorum, Quorum, Rule, Vote, count};
use crate::connection::Connection;
use crate::event::Severity;
use crate::io::Time;
use crate::limits;
use crate::meta_queue::Step;
use crate::resource::{Ctx, Resource};
use crate::twopc::Change;

/// Where a volume stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) enum Standing {
    /// By this rule there is quorum, or there is none.
    Counted(Rule),
    /// There would be none without a peer that connects again at once.
    Awaited,
    /// A disk that was the last one to have quorum before its node went down has it again.
    Restored,
}

impl Standing {
    pub(crate) fn has_quorum(self) -> bool {
        !matches!(self, Standing::Counted(rule) if !rule.has_quorum())
    }

    /// It rests on the votes of nodes that are connected, whatever those that are away may do.
    fn is_plain(self) -> bool {
        matches!(self, Standing::Counted(Rule::Votes | Rule::Server))
    }
}

/// Who counts as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Now,
    /// Those that connect again are there.
    Awaited,
    /// A peer has parted, and is Outdated by that.
    Without(usize),
    /// Of these nothing is known for sure.
    Silent(NodeMask),
}

/// What a resource knows beside its volumes.
#[derive(Debug, Default, Archive, Serialize, Deserialize)]
pub(crate) struct QuorumState {
    /// The nodes that the last transaction reached.
    pub(crate) members: NodeMask,
    /// Peers that were lost so far, and how many of them when the last transaction began that was committed: those who are left
    /// know of these.
    pub(crate) losses: u32,
    pub(crate) settled: u32,
    /// I/O waits for quorum since then.
    pub(crate) suspended_since: Option<Time>,
    /// It has waited for long enough, or somebody has put an end to it: it fails until there is quorum.
    pub(crate) given_up: bool,
}

impl Resource {
    pub(crate) fn counts_votes(&self) -> bool {
        self.config.quorum.quorum != Quorum::Off
    }

    /// Two groups with quorum have a node in common: what one has acknowledged with protocol C, the other has as well. Of a number that the
    /// administrator chose that may not be so.
    pub(crate) fn quorums_overlap(&self) -> bool {
        let voters = 1 + self.conns.iter().filter(|c| c.config.net.bitmap).count();
        match self.config.quorum.quorum {
            Quorum::Off => false,
            Quorum::Majority | Quorum::All => true,
            Quorum::Number(needed) => 2 * usize::from(needed) > voters,
        }
    }

    /// The nodes with a bitmap slot, and those that are to have one, and what they count for.
    pub(super) fn electorate(&self, vidx: usize, view: View) -> Electorate {
        let v = &self.volumes[vidx];
        let mut e = Electorate { had_quorum: v.standing.has_quorum(), ..Electorate::default() };
        match (v.has_disk(), v.disk) {
            (true, DiskState::UpToDate) => e.votes.add(Vote::UpToDate),
            (true, _) => e.votes.add(Vote::Present),
            // A disk that is coming up, or that was here.
            (false, _) if v.attaching.is_some() || v.left_as.is_some() => e.votes.add(Vote::Present),
            _ => {}
        }
        for node in (0..32).map(NodeId).filter(|node| *node != self.config.node_id) {
            match self.cidx(node) {
                Some(cidx) if !self.conns[cidx].config.net.bitmap => {
                    e.diskless += 1;
                    e.diskless_here += u32::from(self.conns[cidx].is_up() && view != View::Without(cidx));
                }
                Some(cidx) => e.votes.add(self.vote_of(cidx, vidx, view)),
                None if v.slot(node).is_some() => e.votes.add(self.vote_of_absent(node)),
                None => {}
            }
        }
        let serves = |c: &Connection| {
            let pd = &c.pds[vidx];
            c.is_up() && pd.disk == DiskState::UpToDate && pd.says.state.is_some_and(|s| s.quorum)
        };
        e.quorate_server = !v.has_disk() && self.conns.iter().any(serves);
        e
    }

    fn vote_of(&self, cidx: usize, vidx: usize, view: View) -> Vote {
        let c = &self.conns[cidx];
        let pd = &c.pds[vidx];
        match pd.disk {
            _ if view == View::Awaited && c.back_by.is_some() => Vote::UpToDate,
            _ if view == View::Without(cidx) => Vote::Outdated,
            _ if matches!(view, View::Silent(nodes) if nodes.contains(c.node())) => Vote::Unknown,
            DiskState::UpToDate if c.is_up() => Vote::UpToDate,
            _ if c.is_up() => Vote::Present,
            _ if pd.is_behind => Vote::Outdated,
            _ => self.vote_of_absent(c.node()),
        }
    }

    fn vote_of_absent(&self, node: NodeId) -> Vote {
        if self.quorum.members.contains(node) { Vote::Unknown } else { Vote::Quorumless }
    }

    fn stand(&self, vidx: usize) -> Standing {
        let options = &self.config.quorum;
        let rule = count(options, &self.electorate(vidx, View::Now));
        let v = &self.volumes[vidx];
        let last_one = v.standing == Standing::Restored && v.disk == DiskState::UpToDate;
        match rule.has_quorum() {
            true => Standing::Counted(rule),
            false if last_one && !self.conns.iter().any(|c| c.is_up() && c.config.net.bitmap) => Standing::Restored,
            false if count(options, &self.electorate(vidx, View::Awaited)).has_quorum() => Standing::Awaited,
            false => Standing::Counted(rule),
        }
    }

    /// This Primary would lose quorum by a disconnect in order from this peer.
    pub(crate) fn needs_vote_of(&self, cidx: usize) -> Option<usize> {
        let options = &self.config.quorum;
        let keeps = |v: usize| count(options, &self.electorate(v, View::Without(cidx))).has_quorum();
        let has = |v: usize| self.volumes[v].standing.has_quorum();
        let primary = self.counts_votes() && self.role == Role::Primary;
        (0..self.volumes.len()).find(|v| primary && has(*v) && !keeps(*v))
    }

    /// Count the votes of every volume anew. What follows from it comes with the tail ([`Resource::quorum_step`]); until then nothing
    /// is acknowledged without it.
    pub(crate) fn count_votes(&mut self) {
        for vidx in 0..self.volumes.len() {
            self.volumes[vidx].standing = match self.counts_votes() {
                true => self.stand(vidx),
                false => Standing::Counted(Rule::Votes),
            };
        }
    }

    /// What is known holds for whoever is away: all who are left have been asked since the last loss, and nobody is expected back.
    pub(crate) fn is_sure_of_quorum(&self, vidx: usize) -> bool {
        let settled = || self.quorum.settled == self.quorum.losses && self.conns.iter().all(|c| c.back_by.is_none());
        let standing = self.volumes[vidx].standing;
        standing.is_plain() || (standing.has_quorum() && standing != Standing::Awaited && settled())
    }

    /// Count, and do what a change brings about.
    pub(crate) fn quorum_step(&mut self, cx: &mut Ctx<'_>) {
        self.count_votes();
        self.finish_unfinished();
        let mut changed = false;
        for vidx in 0..self.volumes.len() {
            let now = (self.volumes[vidx].standing.has_quorum(), self.is_sure_of_quorum(vidx));
            let before = std::mem::replace(&mut self.volumes[vidx].told_quorum, now);
            changed |= before != now;
            if before.0 != now.0 {
                self.quorum_changed(cx, vidx, now.0);
            }
        }
        if changed {
            self.quorum_gate_moved(cx);
        }
        self.follow_suspension(cx);
        self.ask_who_is_left();
    }

    fn quorum_changed(&mut self, cx: &mut Ctx<'_>, vidx: usize, has: bool) {
        self.state_changed = true;
        self.again = true;
        if !self.counts_votes() {
            return self.store_members(vidx);
        }
        let lost = !has && self.role == Role::Primary;
        let v = &mut self.volumes[vidx];
        if lost || has {
            v.set_flag(DeviceFlags::PRIMARY_LOST_QUORUM, lost);
        }
        if lost {
            let io = match self.config.quorum.on_no_quorum {
                OnNoQuorum::SuspendIo => "I/O waits",
                OnNoQuorum::IoError => "I/O fails",
            };
            cx.notice(Severity::Error, format!("{}; {io} until then", self.no_quorum_text(vidx)));
        }
        if has && self.role == Role::Primary {
            cx.notice(Severity::Info, format!("volume {}: has quorum", self.volumes[vidx].nr));
            let waits = |w: usize| self.writes[w].vidx == vidx && !self.writes[w].completed;
            if self.volumes[vidx].new_uuid_needed && self.transfer_log.iter().any(|w| waits(*w)) {
                self.new_generation_now(cx, vidx);
            }
        }
        self.store_members(vidx);
        for cidx in self.up_conns() {
            self.send_state(cx, cidx, vidx);
        }
    }

    /// Who is a member, and that there is quorum, goes into the super block.
    fn store_members(&mut self, vidx: usize) {
        let has = self.counts_votes() && self.volumes[vidx].standing.has_quorum();
        let members = self.quorum.members.0;
        let v = &mut self.volumes[vidx];
        let flagged = v.set_flag(DeviceFlags::HAVE_QUORUM, has);
        let Some(a) = v.attached.as_mut() else { return };
        let moved = has && a.sb.members != members;
        if moved {
            a.sb.members = members;
        }
        if flagged || moved {
            v.meta.push(Step::SuperBlock);
        }
    }

    /// A disk comes up whose node was the last one with quorum when it went down.
    pub(crate) fn restore_quorum(&mut self, vidx: usize) {
        let own = self.config.node_id.mask();
        let v = &mut self.volumes[vidx];
        let Some(a) = &v.attached else { return };
        let flags = DeviceFlags::HAVE_QUORUM | DeviceFlags::WAS_UP_TO_DATE;
        if a.sb.flags.contains(flags) && a.sb.members == own.0 && v.disk == DiskState::UpToDate {
            v.standing = Standing::Restored;
            self.quorum.members = own;
        }
    }

    // ---- members ---------------------------------------------------------------------------------------------------

    /// A transaction that began after so many losses has reached these nodes, and all of them know by now.
    pub(crate) fn members_agreed(&mut self, reached: NodeMask, losses: u32) {
        let own = self.config.node_id;
        if losses == self.quorum.losses {
            self.quorum.settled = losses;
        }
        let before = self.quorum.members;
        // A cluster of kernels that splits is told the other side.
        self.quorum.members = if reached.contains(own) { reached } else { before.without(reached) };
        self.quorum.members.insert(own);
        // Whoever is only away to connect again may have met others meanwhile.
        for c in self.conns.iter().filter(|c| c.back_by.is_some() && before.contains(c.node())) {
            self.quorum.members.insert(c.node());
        }
        if self.quorum.members != before && self.counts_votes() {
            (0..self.volumes.len()).for_each(|vidx| self.store_members(vidx));
        }
    }

    /// A peer is gone. One that said that it connects again is waited for.
    pub(crate) fn quorum_lost_peer(&mut self, cx: &Ctx<'_>, cidx: usize, comes_back: bool) {
        if !self.counts_votes() {
            return;
        }
        if comes_back {
            self.conns[cidx].back_by = Some(cx.now.plus_ms(limits::PRIMARY_BACK_MS));
        } else {
            self.quorum.losses = self.quorum.losses.wrapping_add(1);
        }
        self.count_votes();
    }

    /// It has left in order: it is not expected back.
    pub(crate) fn quorum_parted(&mut self, cidx: usize) {
        if self.conns[cidx].back_by.take().is_some() {
            self.quorum.losses = self.quorum.losses.wrapping_add(1);
        }
    }

    /// Those who are left have to know who is not: a Primary asks them, or whoever notices where there is none.
    fn ask_who_is_left(&mut self) {
        let asks = self.role == Role::Primary || self.primary_peer().is_none();
        let unsettled = self.quorum.settled != self.quorum.losses;
        if unsettled && asks && self.volumes.iter().any(|v| v.standing.has_quorum()) {
            self.want(Change::Empty, None);
        }
    }

    /// Peers that stay away although they said that they would be back, and I/O that has waited for too long.
    pub(crate) fn quorum_timers(&mut self, cx: &mut Ctx<'_>) {
        for cidx in 0..self.conns.len() {
            if self.conns[cidx].back_by.is_some_and(|t| cx.now >= t) {
                self.quorum_parted(cidx);
            }
        }
        if self.suspension_ends().is_some_and(|t| cx.now >= t) {
            let ms = self.config.quorum.suspended_io_timeout_ms;
            cx.notice(Severity::Error, format!("I/O has waited for quorum for {ms} ms: it fails from now on"));
            self.give_up_suspended(cx);
        }
    }

    fn suspension_ends(&self) -> Option<Time> {
        let ms = self.config.quorum.suspended_io_timeout_ms;
        let since = self.quorum.suspended_since.filter(|_| ms > 0 && !self.quorum.given_up)?;
        Some(since.plus_ms(ms))
    }

    pub(crate) fn next_quorum_timer(&self) -> Option<Time> {
        self.conns.iter().filter_map(|c| c.back_by).chain(self.suspension_ends()).min()
    }

    /// How many votes are missing, whose, and what to do.
    pub(crate) fn no_quorum_text(&self, vidx: usize) -> String {
        let (options, e) = (&self.config.quorum, self.electorate(vidx, View::Now));
        let here = e.votes.here();
        let needed = options.quorum.needed(e.votes.all());
        let away = self.conns.iter().filter(|c| !c.is_up() && c.config.net.bitmap);
        let names: Vec<&str> = away.map(|c| c.config.name.as_str()).collect();
        let nr = self.volumes[vidx].nr;
        if self.volumes[vidx].standing == Standing::Counted(Rule::Redundancy) {
            let text = "of the nodes that are connected too few are UpToDate (quorum-minimum-redundancy)";
            return format!("volume {nr}: no quorum: {text}: wait for a resync, or connect another one");
        }
        let away = if names.is_empty() { "other nodes".to_owned() } else { names.join(", ") };
        format!("volume {nr}: no quorum: {here} of {needed} votes that are needed; connect {away}")
    }
}
