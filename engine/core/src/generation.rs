//! Data generations: when a new current UUID is made, what a received one means, and what the loss of a Primary leaves
//! behind (handshake-and-states.md 4, 5.6, 5.7, 8.6).

use zea_meta::flags::DeviceFlags;
use zea_wire::flags::UuidFlags;
use zea_wire::ids::{NodeId, NodeMask};
use zea_wire::packet::{BitmapUuids, CurrentUuid, Packet, Uuids110};
use zea_wire::state::{DiskState, ReplState, Role};

use crate::connection::Connection;
use crate::dialect;
use crate::event::Severity;
use crate::limits;
use crate::meta_queue::{Step, Then};
use crate::resource::{Ctx, Resource};
use crate::twopc::Change;
use crate::uuid::{self, NewDatagen, NodeSlot, RotateContext};

/// What Zea marks of a copy in a generation.
const GENERATION_MARKS: DeviceFlags =
    DeviceFlags(DeviceFlags::ZEA_LOST_WRITES.0 | DeviceFlags::ZEA_WAS_PRIMARY.0 | DeviceFlags::ZEA_BEHIND.0);

impl Resource {
    /// This node is no neighbour of a Primary, or is Primary itself.
    pub(crate) fn is_stable(&self) -> bool {
        self.role == Role::Primary || self.primary_peer().is_none()
    }

    /// P_UUIDS110 about a volume for a peer. A node that is not stable names the Primaries instead of those that are weak.
    pub(crate) fn uuids_for(&self, cidx: usize, vidx: usize, extra: UuidFlags, weak: NodeMask) -> Box<Uuids110> {
        let (c, v) = (&self.conns[cidx], &self.volumes[vidx]);
        let mut flags = extra;
        flags.set(UuidFlags::DISCARD_MY_DATA, c.discard_my_data);
        flags.set(UuidFlags::CRASHED_PRIMARY, v.crashed_primary);
        flags.set(UuidFlags::ZEA_LOST_WRITES, c.keeps_bits() && v.lost_writes());
        flags.set(UuidFlags::ZEA_WAS_PRIMARY, c.keeps_bits() && v.was_primary());
        flags.set(UuidFlags::PRIMARY_LOST_QUORUM, v.lost_quorum());
        flags.set(UuidFlags::INCONSISTENT, v.disk == DiskState::Inconsistent);
        flags.set(UuidFlags::STABLE, self.is_stable());
        flags.set(UuidFlags::RECONNECT, c.was_connected);
        flags.set(UuidFlags::DISKLESS_PRIMARY, self.compares_beside_served_primary(cidx, vidx));
        let asks = flags.contains(UuidFlags::DISKLESS_PRIMARY) && v.disk == DiskState::Outdated;
        flags.set(UuidFlags::RESYNC, asks || extra.contains(UuidFlags::RESYNC));
        let source = self.sync_source_of(vidx);
        flags.set(UuidFlags::SYNC_TARGET, source.is_some_and(|s| s != cidx));
        let mut bitmap_uuids = BitmapUuids::default();
        for n in 0..32 {
            let node = NodeId(n);
            if node != self.config.node_id && v.slot(node).is_some() {
                let uuid = v.uuids.bitmap[usize::from(n)];
                // 0 means "in sync, forget your bits": not while this node is being resynced (5.6).
                bitmap_uuids.set(node, if uuid == 0 && source.is_some() { u64::MAX } else { uuid });
            }
        }
        let authoritative = self.primary_peer().map_or(NodeMask::EMPTY, NodeId::mask);
        let uuids = Uuids110 {
            current: self.shown_uuid(vidx, source.filter(|&s| s != cidx)),
            dirty_bits: v.dirty_bits(c.node()),
            uuid_flags: flags,
            node_mask: if flags.contains(UuidFlags::STABLE) { weak } else { authoritative },
            bitmap_uuids,
            history: self.shown_history(vidx),
        };
        if c.speaks_84() { self.uuids_for_84(cidx, vidx, uuids) } else { Box::new(uuids) }
    }

    /// Former generations: the history, and before it the bitmap UUIDs of nodes without a slot, which are not sent as such. A peer
    /// that returns at one of them would not be known otherwise.
    fn shown_history(&self, vidx: usize) -> Vec<u64> {
        let v = &self.volumes[vidx];
        let mut history = Vec::with_capacity(v.uuids.history.len());
        let slotless = (0..32).map(NodeId).filter(|&node| v.slot(node).is_none());
        let hidden = slotless.map(|node| v.uuids.bitmap[node.index()]);
        for uuid in hidden.chain(v.uuids.history) {
            let known = uuid & !1 == v.uuids.current & !1 || history.iter().any(|h| h & !1 == uuid & !1);
            if uuid & !1 != 0 && uuid & !1 != uuid::JUST_CREATED && !known {
                history.push(uuid);
            }
        }
        history.resize(v.uuids.history.len(), 0);
        history
    }

    /// The current UUID to show: of the source while this node is being resynced from elsewhere.
    fn shown_uuid(&self, vidx: usize, source: Option<usize>) -> u64 {
        let resolved = source.and_then(|s| self.conns[s].pds[vidx].says.uuids.as_ref()).map(|u| u.current);
        resolved.unwrap_or(self.volumes[vidx].uuids.current)
    }

    /// The connection over which a volume is being resynced.
    pub(crate) fn sync_source_of(&self, vidx: usize) -> Option<usize> {
        (0..self.conns.len()).find(|&c| self.conns[c].pds[vidx].repl == ReplState::SyncTarget)
    }

    /// Send our UUIDs, or what a diskless node has instead, to every connected peer.
    pub(crate) fn send_uuids(&mut self, cx: &mut Ctx<'_>, vidx: usize, extra: UuidFlags, node_mask: NodeMask) {
        for cidx in self.up_conns() {
            self.send_uuids_to(cx, cidx, vidx, extra, node_mask);
        }
    }

    pub(crate) fn send_uuids_to(
        &mut self,
        cx: &mut Ctx<'_>,
        cidx: usize,
        vidx: usize,
        extra: UuidFlags,
        node_mask: NodeMask,
    ) {
        let c = &self.conns[cidx];
        if c.is_up() && !c.speaks_84() && self.volumes[vidx].names_generation() {
            // All connected peers are told when it is stable.
            return;
        }
        let uuids = self.volumes[vidx].attached.is_some().then(|| self.uuids_for(cidx, vidx, extra, node_mask));
        if let Some(uuids) = &uuids {
            self.conns[cidx].pds[vidx].told_bits = uuids.dirty_bits > 0;
            if uuids.dirty_bits > 0 {
                self.recheck_at.get_or_insert(cx.now.plus_ms(limits::RECHECK_MS));
            }
        }
        let packet = match uuids {
            Some(uuids) if self.conns[cidx].speaks_84() => {
                Packet::Uuids(Box::new(dialect::to_packet(self.conns[cidx].node(), &uuids)))
            }
            Some(uuids) => Packet::Uuids110(uuids),
            None if self.conns[cidx].speaks_84() => return,
            None => Packet::CurrentUuid(self.exposed(cidx, vidx)),
        };
        self.send_volume(cx, cidx, vidx, packet);
    }

    /// The generation that is shown to a peer without an UpToDate disk, and who misses some of it. As long as nothing is
    /// acknowledged in it, whoever may know it already counts as missing what the peer gets.
    pub(crate) fn exposed(&self, cidx: usize, vidx: usize) -> CurrentUuid {
        let v = &self.volumes[vidx];
        let weak_nodes = match self.role {
            Role::Primary if v.former.is_empty() => v.exposed_weak,
            Role::Primary => !self.conns[cidx].node().mask(),
            _ => NodeMask::EMPTY,
        };
        CurrentUuid { uuid: v.exposed_uuid, weak_nodes }
    }

    // ---- a new generation ----------------------------------------------------------------------------------------

    /// What a rotation of the UUIDs has to know.
    pub(crate) fn rotate_context(&self, vidx: usize, dagtag: u64) -> RotateContext {
        let v = &self.volumes[vidx];
        let mut nodes = [NodeSlot::Unconfigured { has_slot: false }; 32];
        for (n, slot) in (0_u8..).zip(nodes.iter_mut()) {
            let has_slot = v.slot(NodeId(n)).is_some();
            *slot = match self.cidx(NodeId(n)) {
                Some(c) => NodeSlot::Configured { disk: self.conns[c].pds[vidx].disk, has_slot },
                None => NodeSlot::Unconfigured { has_slot },
            };
        }
        let used = (0..32).filter(|&n| v.slot(NodeId(n)).is_some()).count();
        RotateContext {
            own: self.config.node_id,
            primary: self.role == Role::Primary,
            up_to_date: v.disk == DiskState::UpToDate,
            nodes,
            free_slots: v.attached.as_ref().map_or(0, |a| a.bitmap.slots().saturating_sub(used)),
            dagtag,
        }
    }

    /// Connected peers with a disk that do not get what is written from now on.
    pub(crate) fn not_replicated(&self, vidx: usize) -> NodeMask {
        let mut weak = NodeMask::EMPTY;
        for c in self.conns.iter().filter(|c| !(c.is_up() && c.pds[vidx].replicates())) {
            weak.insert(c.node());
        }
        weak
    }

    /// The nodes that miss some of what this node has, or will.
    pub(crate) fn weak_nodes(&self, vidx: usize) -> NodeMask {
        self.rotate_context(vidx, self.dagtag).weak_nodes() | self.not_replicated(vidx)
    }

    /// Begin a new generation before anything more is acknowledged.
    pub(crate) fn new_generation_now(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        if self.role == Role::Primary && !self.volumes[vidx].new_uuid_running {
            // Without any data there is nothing to name yet; the first write after that will.
            self.volumes[vidx].new_uuid_needed = !self.has_data(vidx);
            self.new_current_uuid(cx, vidx);
        }
    }

    /// A peer that ignores bits at equal generations has left, and lacks something: what is being written now. So that this is resynced
    /// when it comes back, the data of a Primary are of a new generation before the two compare, as with kernels themselves (7).
    pub(crate) fn rename_what_differs(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        let node = self.conns[cidx].node();
        for vidx in 0..self.volumes.len() {
            if self.volumes[vidx].dirty_bits(node) > 0 {
                self.rename_without(cx, vidx, node);
            }
        }
    }

    /// A kernel of 8.4 has left: it expects that the data of a Primary are of a new generation from then on, whether or not it lacks
    /// something, such as what a verify found (7).
    pub(crate) fn rename_without_84(&mut self, cx: &mut Ctx<'_>, cidx: usize) {
        let node = self.conns[cidx].node();
        for vidx in 0..self.volumes.len() {
            if self.volumes[vidx].slot(node).is_some() {
                self.rename_without(cx, vidx, node);
            }
        }
    }

    fn rename_without(&mut self, cx: &mut Ctx<'_>, vidx: usize, node: NodeId) {
        let v = &self.volumes[vidx];
        let known = v.uuids.bitmap[node.index()] & !1 != 0;
        if v.disk == DiskState::UpToDate && !known {
            self.new_generation_now(cx, vidx);
        }
    }

    /// Make a new current UUID if some node misses data. True if it is being written: writes wait until it is stable.
    pub(crate) fn new_current_uuid(&mut self, cx: &mut Ctx<'_>, vidx: usize) -> bool {
        if self.counts_votes() && !self.volumes[vidx].standing.has_quorum() {
            // Nothing is acknowledged meanwhile, and another group may begin the next one.
            self.volumes[vidx].new_uuid_needed = true;
            return false;
        }
        let random = [cx.uuid(), cx.uuid()];
        let rotate = self.rotate_context(vidx, self.dagtag);
        let forced = self.not_replicated(vidx);
        if self.volumes[vidx].disk != DiskState::UpToDate {
            // Without a disk, or with one that is behind: the generation is that of the peers' data, if one has any.
            if self.peer_84().is_some() {
                return self.peer_begins_generation(vidx);
            }
            if self.up_to_date_peer(vidx).is_some() {
                self.new_exposed_uuid(cx, vidx, random[0] | 1);
            }
            return false;
        }
        let v = &mut self.volumes[vidx];
        for node in std::mem::take(&mut v.may_have_finished).iter() {
            v.uuids.retire_bitmap_uuid(node);
        }
        let before = v.uuids.current;
        if broken!(KeepUuid) || v.uuids.rotate_current_into_bitmap(&rotate, forced, random).is_none() {
            return false;
        }
        // Who is at one of those lacks what is written from now on.
        std::mem::take(&mut v.withdrawn).into_iter().for_each(|uuid| v.uuids.push_history(uuid));
        self.begin_generation(vidx, before);
        true
    }

    /// The current UUID is new: before it is stable and told nothing is acknowledged.
    pub(crate) fn begin_generation(&mut self, vidx: usize, before: u64) {
        let v = &mut self.volumes[vidx];
        v.leave_generation(before);
        v.set_flag(GENERATION_MARKS, false);
        v.new_uuid_running = true;
        v.meta.push(Step::SuperBlock);
        v.meta.push(Step::Then(Then::NewUuid));
    }

    /// A Primary without a disk: its peers keep the new UUID for it (5.8).
    pub(crate) fn new_exposed_uuid(&mut self, cx: &mut Ctx<'_>, vidx: usize, fresh: u64) {
        self.close_epoch();
        let weak = self.rotate_context(vidx, self.dagtag).weak_nodes()
            | self.not_replicated(vidx)
            | self.config.node_id.mask();
        let v = &mut self.volumes[vidx];
        v.leave_generation(v.exposed_uuid);
        (v.exposed_uuid, v.exposed_weak) = (fresh, weak);
        for cidx in self.up_conns() {
            if self.conns[cidx].pds[vidx].repl >= ReplState::Established && !self.conns[cidx].speaks_84() {
                let packet = Packet::CurrentUuid(CurrentUuid { uuid: fresh, weak_nodes: weak });
                self.send_volume(cx, cidx, vidx, packet);
            }
        }
        self.await_confirmation(vidx);
    }

    /// Nothing is acknowledged before the UpToDate peers have told that they know the generation of this Primary.
    pub(crate) fn await_confirmation(&mut self, vidx: usize) {
        let mut unconfirmed = NodeMask::EMPTY;
        if self.role == Role::Primary {
            let up_to_date = self.conns.iter().filter(|c| c.is_up() && c.pds[vidx].disk == DiskState::UpToDate);
            for c in up_to_date.filter(|c| !self.knows_generation(c, vidx)) {
                unconfirmed.insert(c.node());
            }
        }
        self.volumes[vidx].unconfirmed = unconfirmed;
    }

    /// A peer has told that it is at the generation of this Primary. One that is not Zea does not answer in every case: it is
    /// taken to know what it was sent.
    pub(crate) fn knows_generation(&self, c: &Connection, vidx: usize) -> bool {
        let served = self.volumes[vidx].served_uuid() & !1;
        let answers = served != 0 && c.keeps_bits();
        !answers || c.pds[vidx].says.uuids.as_ref().is_some_and(|u| u.current & !1 == served)
    }

    /// Somebody knows the generation that this Primary serves, or nothing depends on that.
    pub(crate) fn generation_is_kept(&self, vidx: usize) -> bool {
        let v = &self.volumes[vidx];
        v.former.is_empty()
            || v.disk == DiskState::UpToDate
            || self.conns.iter().any(|c| c.is_up() && self.knows_generation(c, vidx))
    }

    /// A peer knows the generation of this Primary, or does not count any more: what waited for it goes on.
    pub(crate) fn confirmed_by(&mut self, cx: &mut Ctx<'_>, vidx: usize, node: NodeId) {
        let unconfirmed = &mut self.volumes[vidx].unconfirmed;
        if unconfirmed.contains(node) {
            unconfirmed.remove(node);
            self.writes_new_uuid(cx, vidx);
        }
    }

    /// The new UUID is stable. One made by force is nobody else's: kernels are to compare themselves with it, so they get it without the
    /// mark of a new generation, and before the state (seen: 01 f59-f61).
    pub(crate) fn new_uuid_stable(&mut self, cx: &mut Ctx<'_>, vidx: usize) {
        self.volumes[vidx].new_uuid_running = false;
        self.volumes[vidx].retry_waiters = true;
        self.close_epoch();
        let weak = self.weak_nodes(vidx);
        let forced = std::mem::take(&mut self.volumes[vidx].forced);
        for cidx in self.up_conns() {
            if forced && self.compares_here(cidx) {
                self.send_uuids_to(cx, cidx, vidx, UuidFlags::EMPTY, weak);
                self.send_state(cx, cidx, vidx);
            } else {
                self.send_uuids_to(cx, cidx, vidx, UuidFlags::NEW_DATAGEN, weak);
            }
        }
        self.await_confirmation(vidx);
        if !self.volumes[vidx].has_disk() {
            // The disk was let go meanwhile, and knows this generation: what is written now is of the next one.
            self.new_generation_now(cx, vidx);
        }
        self.writes_new_uuid(cx, vidx);
        self.release_held(cx, vidx);
    }

    // ---- received UUIDs ------------------------------------------------------------------------------------------

    /// P_UUIDS110.
    pub(crate) fn uuids_received(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, uuids: Box<Uuids110>) {
        let new_datagen = uuids.uuid_flags.contains(UuidFlags::NEW_DATAGEN);
        let asks = uuids.uuid_flags.contains(UuidFlags::RESYNC);
        let skips = uuids.uuid_flags.contains(UuidFlags::SKIP_INITIAL_SYNC);
        let (current, weak) = (uuids.current, uuids.node_mask);
        let up = self.conns[cidx].is_up();
        let done = up && skips && self.told_to_skip_initial_sync(cidx, vidx, &uuids);
        if up && !done && self.conns[cidx].speaks_84() {
            self.uuids_told_84(cx, vidx, &uuids);
        }
        self.conns[cidx].pds[vidx].says.uuids = Some(uuids);
        if !up || done {
            return;
        }
        if self.knows_generation(&self.conns[cidx], vidx) {
            self.volumes[vidx].known_generation = self.volumes[vidx].served_uuid() & !1;
            self.confirmed_by(cx, vidx, self.conns[cidx].node());
        }
        if self.volumes[vidx].attached.is_none() {
            if self.role == Role::Secondary && self.conns[cidx].pds[vidx].disk == DiskState::UpToDate {
                self.volumes[vidx].exposed_uuid = current;
            }
            return;
        }
        if new_datagen {
            return self.new_datagen(cx, cidx, vidx, current, weak);
        }
        if self.volumes[vidx].disk == DiskState::Outdated {
            self.recheck_at.get_or_insert(cx.now.plus_ms(limits::RECHECK_MS));
        }
        self.source_finished(vidx, cidx);
        self.forget_lost_writes(vidx, None);
        if asks && self.conns[cidx].keeps_bits() {
            self.tell_all_in_sync(cx, vidx);
        }
    }

    /// P_CURRENT_UUID: of a node without a disk.
    pub(crate) fn current_uuid_received(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, packet: CurrentUuid) {
        let says = &mut self.conns[cidx].pds[vidx].says;
        let before = says.current_uuid.replace(packet.uuid);
        says.former.extend(before.filter(|_| says.former.len() < limits::MAX_FORMER_GENERATIONS).map(|u| u & !1));
        says.weak_nodes = packet.weak_nodes;
        let c = &self.conns[cidx];
        if c.is_up() && c.role == Role::Primary && self.volumes[vidx].disk == DiskState::UpToDate {
            self.new_datagen(cx, cidx, vidx, packet.uuid, packet.weak_nodes);
        }
    }

    /// The sender began a new generation (5.7). A disk that is behind, and that it leaves out, has no part in it.
    fn new_datagen(&mut self, cx: &mut Ctx<'_>, cidx: usize, vidx: usize, current: u64, weak: NodeMask) {
        let behind = self.volumes[vidx].disk < DiskState::Consistent && self.conns[cidx].keeps_bits();
        if behind && weak.contains(self.config.node_id) {
            return;
        }
        if self.follow_generation(vidx, cidx, current, weak) {
            self.send_uuids(cx, vidx, UuidFlags::EMPTY, NodeMask::EMPTY);
        } else if self.volumes[vidx].disk == DiskState::Inconsistent {
            self.remember_unfinished(vidx, current);
        }
    }

    /// Take over a generation that a peer began. True if this node was at another one.
    pub(crate) fn follow_generation(&mut self, vidx: usize, cidx: usize, current: u64, weak: NodeMask) -> bool {
        // A resync that still waits, although this disk has become good from another source, does not count.
        let being_synced =
            self.volumes[vidx].disk < DiskState::Consistent && self.conns.iter().any(|c| c.pds[vidx].is_sync_target());
        let rotate = self.rotate_context(vidx, self.conns[cidx].dagtag_received.unwrap_or(0));
        let v = &mut self.volumes[vidx];
        if !v.has_disk() || v.disk == DiskState::Inconsistent {
            return false;
        }
        let had_no_past = matches!(v.uuids.current & !1, 0 | uuid::JUST_CREATED);
        let adopted =
            matches!(v.uuids.received_new_datagen(&rotate, current, weak, being_synced), NewDatagen::Adopted { .. });
        if adopted {
            if had_no_past && let Some(told) = &self.conns[cidx].pds[vidx].says.uuids {
                // Whoever is at an older generation of that node's is at an older one of this one's, too.
                let past = told.history.iter().rev().copied().chain(told.bitmap_uuids.iter().map(|(_, uuid)| uuid));
                past.for_each(|uuid| v.uuids.push_history(uuid));
            }
            v.set_flag(GENERATION_MARKS, false);
            v.meta.push(Step::SuperBlock);
        }
        adopted
    }

    /// The target's UUIDs say that it finished: it has our generation and no bits.
    fn source_finished(&mut self, vidx: usize, cidx: usize) {
        let own = self.config.node_id;
        let c = &self.conns[cidx];
        let node = usize::from(c.node().0);
        let Some(u) = c.pds[vidx].says.uuids.as_ref() else { return };
        let equal = u.current & !1 == self.volumes[vidx].uuids.current & !1;
        let finished = equal && u.bitmap_uuids.get(own) == Some(0) && !u.uuid_flags.contains(UuidFlags::SYNC_TARGET);
        let v = &mut self.volumes[vidx];
        if finished && v.uuids.bitmap[node] != 0 && v.dirty_bits(NodeId(node as u8)) == 0 {
            v.uuids.retire_bitmap_uuid(NodeId(node as u8));
            v.meta.push(Step::SuperBlock);
        }
    }

    // ---- the loss of a Primary -----------------------------------------------------------------------------------

    /// A Primary vanished: until the survivors have talked, this node's data is only Consistent (2.4 no. 20).
    pub(crate) fn primary_lost(&mut self) {
        if self.role == Role::Primary || self.primary_peer().is_some() {
            return;
        }
        for v in self.volumes.iter_mut().filter(|v| v.disk == DiskState::UpToDate) {
            v.disk = DiskState::Consistent;
        }
        self.state_changed = true;
        self.primary_back_by = None;
        self.want(Change::Empty, None);
    }

    /// A Primary leaves in order, in most cases to come back at once: no reason yet to ask around whether it is still there.
    pub(crate) fn primary_away(&mut self, cx: &Ctx<'_>) {
        if self.role == Role::Primary || self.primary_peer().is_some() {
            return;
        }
        for v in self.volumes.iter_mut().filter(|v| v.disk == DiskState::UpToDate) {
            v.disk = DiskState::Consistent;
        }
        self.primary_back_by = Some(cx.now.plus_ms(limits::PRIMARY_BACK_MS));
        // The others hear of it in this turn.
        self.again = true;
    }

    /// It has been waited for long enough.
    pub(crate) fn primary_stays_away(&mut self, cx: &mut Ctx<'_>) {
        if self.primary_back_by.is_none_or(|t| cx.now < t) {
            return;
        }
        self.primary_back_by = None;
        let unsure = self.volumes.iter().any(|v| v.disk == DiskState::Consistent);
        if unsure && self.role == Role::Secondary && self.primary_peer().is_none() {
            self.want(Change::Empty, None);
        }
        self.reconcile(cx);
    }

    /// Survivors of a Primary may hold different last writes of it. Those are marked in the bitmaps; a new handshake compares
    /// and resyncs them (`docs/adr`: keep bits).
    pub(crate) fn reconcile(&mut self, cx: &mut Ctx<'_>) {
        // One that is only away settles what is marked here when it is back.
        let Some(lost) = self.lost_primary.filter(|_| self.primary_back_by.is_none()) else { return };
        let drained = self.cidx(lost).is_none_or(|c| self.conns[c].active_peer_reqs == 0);
        if !drained {
            return;
        }
        self.lost_primary = None;
        for cidx in self.up_conns() {
            let node = self.conns[cidx].node();
            let dirty = (0..self.volumes.len())
                .any(|v| self.conns[cidx].pds[v].is_established() && self.volumes[v].dirty_bits(node) > 0);
            if dirty && self.conns[cidx].keeps_bits() && self.conns[cidx].is_up() {
                cx.notice(
                    Severity::Info,
                    format!("comparing with node {node}: the last writes of node {lost} may differ"),
                );
                self.reconnect(cx, cidx, "to compare the last writes of a lost Primary");
            }
        }
    }

    /// A transaction told who is Primary: data that may be behind an unreachable Primary is Outdated, other data is good.
    pub(crate) fn members_learned(&mut self, cx: &mut Ctx<'_>, primaries: NodeMask) {
        let hidden = primaries & !self.reachable();
        let mut changed = false;
        for vidx in 0..self.volumes.len() {
            let syncing = self.sync_source_of(vidx).is_some();
            let v = &mut self.volumes[vidx];
            if self.primary_back_by.is_some() && v.disk == DiskState::Consistent {
                continue;
            }
            if !hidden.is_empty()
                && self.role == Role::Secondary
                && matches!(v.disk, DiskState::Consistent | DiskState::UpToDate)
            {
                v.disk = DiskState::Outdated;
                v.set_flag(DeviceFlags::WAS_UP_TO_DATE, false);
                v.meta.push(Step::SuperBlock);
                changed = true;
            } else if hidden.is_empty() && v.disk == DiskState::Consistent && !syncing {
                v.disk = DiskState::UpToDate;
                changed = true;
            }
        }
        if changed {
            self.state_changed = true;
            self.send_states(cx);
        }
    }
}
