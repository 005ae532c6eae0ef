//! The node's own UUIDs and how they change (reference handshake-and-states.md sections 4.1 and 5.7).
//!
//! Nothing here writes: every change must be stable in the meta data before a write or packet that depends on it.

use rkyv::{Archive, Deserialize, Serialize};
use zea_wire::ids::{NodeId, NodeMask};
use zea_wire::state::DiskState;

use super::view::UuidView;
use super::{JUST_CREATED, NO_INFORMATION, NODES, PRIMARY, is_generation, is_zero, same};

/// The UUIDs in the v09 meta data.
#[derive(Debug, Clone, PartialEq, Eq, Default, Archive, Serialize, Deserialize)]
pub struct Uuids {
    /// The current generation; bit 0 while it is written to by this node as Primary.
    pub current: u64,
    /// By node: the bitmap slot for it has all changes since that generation; 0: in sync.
    pub bitmap: [u64; NODES],
    /// By node: the dagtag at the end of that generation.
    pub bitmap_dagtag: [u64; NODES],
    /// Older generations, newest first, then zeros.
    pub history: [u64; NODES],
}

/// What this node knows of a node id when it rotates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeSlot {
    /// No such peer is configured.
    Unconfigured {
        /// It owns a bitmap slot in the meta data all the same.
        has_slot: bool,
    },
    /// A configured peer.
    Configured {
        /// Its disk as this node sees it.
        disk: DiskState,
        /// It owns a bitmap slot in the meta data.
        has_slot: bool,
    },
}

/// The surroundings of a rotation.
#[derive(Debug, Clone)]
pub struct RotateContext {
    /// This node.
    pub own: NodeId,
    /// This node is Primary: bit 0 of the current UUID.
    pub primary: bool,
    /// This node's disk is UpToDate.
    pub up_to_date: bool,
    /// All nodes; the own entry is not looked at.
    pub nodes: [NodeSlot; NODES],
    /// Bitmap slots that belong to nobody.
    pub free_slots: usize,
    /// Own dagtag; when a new generation is received, the dagtag last seen from its sender.
    pub dagtag: u64,
}

impl RotateContext {
    /// The nodes that will miss the next generation: everybody but this node, if it is UpToDate, and the peers with a
    /// usable disk.
    pub fn weak_nodes(&self) -> NodeMask {
        let mut strong = NodeMask::EMPTY;
        for (node, slot) in self.peers() {
            let has_disk = |disk: DiskState| {
                disk > DiskState::Failed && disk != DiskState::DUnknown && disk != DiskState::Outdated
            };
            if matches!(slot, NodeSlot::Configured { disk, .. } if has_disk(disk)) {
                strong.insert(node);
            }
        }
        if self.up_to_date {
            strong.insert(self.own);
        }
        !strong
    }

    fn peers(&self) -> impl Iterator<Item = (NodeId, NodeSlot)> + '_ {
        let nodes = (0..).map(NodeId).zip(self.nodes);
        nodes.filter(|(node, _)| *node != self.own)
    }

    /// Does this peer miss what is written now? (Not asked for unconfigured ones: they always do.)
    fn is_absent(disk: DiskState) -> bool {
        disk <= DiskState::DUnknown && disk != DiskState::Negotiating
    }
}

/// What became of a generation that another node has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewDatagen {
    /// Nothing: it is the current one.
    Known,
    /// I am being synced: remember it as the current UUID of the source.
    OfSource,
    /// It is the current one now.
    Adopted {
        /// The nodes that got another bitmap UUID: tell them, and all that are Established.
        bitmap_changed: NodeMask,
    },
}

impl Uuids {
    /// Bit 0 of the current generation: this node is Primary, and was when it was last connected. When the next generation begins,
    /// the bitmap UUIDs tell who was Primary before.
    pub fn mark_primary(&mut self, primary: bool) {
        if is_generation(self.current) && !same(self.current, JUST_CREATED) {
            self.current = (self.current & !PRIMARY) | u64::from(primary);
        }
    }

    /// Remembers a generation; one that is remembered already, or is in use, is left out.
    pub fn push_history(&mut self, uuid: u64) {
        if !is_generation(uuid) || same(uuid, JUST_CREATED) || same(uuid, self.current) {
            return;
        }
        if self.history.iter().all(|entry| is_zero(*entry)) {
            self.history[0] = uuid;
            return;
        }
        let mut known = self.bitmap.iter().chain(&self.history);
        if !known.any(|entry| same(*entry, uuid)) {
            self.history.rotate_right(1);
            self.history[0] = uuid;
        }
    }

    /// Sets the current UUID with bit 0 by role.
    pub fn set_current(&mut self, uuid: u64, primary: bool) {
        self.current = (uuid & !PRIMARY) | u64::from(primary);
    }

    /// Others go on in this generation, and have more of it: what is here gets a name of its own, that nobody else knows.
    pub fn part_from_generation(&mut self, random: u64) {
        self.current = usable(random);
    }

    /// Starts a new generation, `random[0]`, if some node would miss it: each of them, and each in `forced_weak`,
    /// gets the old one as bitmap UUID (`random[1]` if nothing was written before). Gives the nodes that got one;
    /// `None` if nobody needs a new generation, then nothing has changed.
    pub fn rotate_current_into_bitmap(
        &mut self,
        cx: &RotateContext,
        forced_weak: NodeMask,
        random: [u64; 2],
    ) -> Option<NodeMask> {
        let all = self.bitmap.iter().chain(&self.history);
        let nothing_yet = all.into_iter().all(|uuid| is_zero(*uuid));
        let real = !same(self.current, JUST_CREATED) && !is_zero(self.current);
        let previous = if real { self.current } else { usable(random[1]) };

        let mut rotated = self.clone();
        let (changed, needed) = rotated.assign_bitmap_uuids(cx, forced_weak, previous);
        let day_0 = real && nothing_yet;
        if !needed && !day_0 {
            return None;
        }
        rotated.set_current(usable(random[0]), cx.primary);
        if !needed {
            rotated.push_history(previous);
        }
        *self = rotated;
        Some(changed)
    }

    /// Gives `previous` as bitmap UUID to every node that misses the generation after it. Gives the nodes that got it,
    /// and whether one of them has, or could get, a bitmap slot.
    fn assign_bitmap_uuids(&mut self, cx: &RotateContext, forced_weak: NodeMask, previous: u64) -> (NodeMask, bool) {
        let mut changed = NodeMask::EMPTY;
        let mut needed = false;
        let mut free_slots = cx.free_slots;
        for (node, slot) in cx.peers() {
            let n = node.index();
            if !is_zero(self.bitmap[n]) && !same(self.bitmap[n], previous) {
                continue;
            }
            let counts = match slot {
                NodeSlot::Unconfigured { has_slot: true } => true,
                NodeSlot::Unconfigured { has_slot: false } => {
                    let free = free_slots > 0;
                    free_slots = free_slots.saturating_sub(1);
                    free
                }
                NodeSlot::Configured { disk: DiskState::Diskless, has_slot: false } => continue,
                NodeSlot::Configured { disk, .. } => {
                    if !RotateContext::is_absent(disk) && !forced_weak.contains(node) {
                        continue;
                    }
                    true
                }
            };
            needed |= counts;
            self.bitmap[n] = previous;
            self.bitmap_dagtag[n] = cx.dagtag;
            changed.insert(node);
        }
        (changed, needed)
    }

    /// Another node has started the generation `new`, which the nodes in `weak` miss. `being_synced`: SyncTarget,
    /// PausedSyncT or Behind of any node.
    pub fn received_new_datagen(
        &mut self,
        cx: &RotateContext,
        new: u64,
        weak: NodeMask,
        being_synced: bool,
    ) -> NewDatagen {
        if being_synced {
            return NewDatagen::OfSource;
        }
        if same(new, self.current) || !is_generation(new) {
            return NewDatagen::Known;
        }
        let old = self.current;
        let mut bitmap_changed = NodeMask::EMPTY;
        // Stricter than the reference, which asks for UpToDate: also data that is only Consistent is of the old generation.
        if !same(old, JUST_CREATED) {
            (bitmap_changed, _) = self.assign_bitmap_uuids(cx, weak, old);
        }
        let before = self.bitmap;
        self.set_current(new, cx.primary);
        for (node, _) in cx.peers().filter(|(node, _)| !weak.contains(*node)) {
            let n = node.index();
            if !is_zero(self.bitmap[n]) {
                self.bitmap[n] = new;
                bitmap_changed.insert(node);
            }
        }
        before.into_iter().for_each(|uuid| self.push_if_unused(uuid));
        self.push_history(old);
        NewDatagen::Adopted { bitmap_changed }
    }

    /// Remembers a former bitmap UUID, unless a slot still has it.
    fn push_if_unused(&mut self, uuid: u64) {
        if !self.bitmap.iter().any(|entry| same(*entry, uuid)) {
            self.push_history(uuid);
        }
    }

    /// A resync from `source` begins. Gives the UUID to remember as its start, for
    /// [`Uuids::resync_finished_target`]. At the initial sync the current UUID becomes the source's bitmap UUID towards
    /// this node, so that an interrupted one can go on.
    pub fn resync_start_target(&mut self, cx: &RotateContext, source: &UuidView) -> u64 {
        let start = self.current;
        if !same(start, JUST_CREATED) && !is_zero(start) {
            self.assign_bitmap_uuids(cx, NodeMask::EMPTY, start);
            return start;
        }
        let towards_me = source.bitmap_towards(cx.own);
        if is_generation(towards_me) {
            self.set_current(towards_me, cx.primary);
        }
        start
    }

    /// The resync from `source` is done: same generation, same past. `at_source`: the nodes known to be at the
    /// source's current UUID. Gives the nodes that are Outdated from here on.
    pub fn resync_finished_target(
        &mut self,
        cx: &RotateContext,
        source: &UuidView,
        start: u64,
        at_source: NodeMask,
    ) -> NodeMask {
        let (old_current, old_bitmap, old_history) = (self.current, self.bitmap, self.history);
        self.set_current(source.current, cx.primary);
        let mut outdated = NodeMask::EMPTY;
        for (node, _) in cx.peers() {
            let n = node.index();
            let missing = source.bitmap[n];
            if node == source.node || is_zero(missing) {
                self.bitmap[n] = 0;
            } else if missing == NO_INFORMATION {
                // Stricter than the reference: what the source knows nothing of is not in sync.
            } else if at_source.contains(node) {
                self.bitmap[n] = 0;
            } else if is_generation(self.bitmap[n]) {
                // Stricter than the reference: the slot has recorded everything since that older generation, this resync
                // included. The node went on with the source since, if what it is said to have is news here.
                let known = |uuid: &u64| same(*uuid, missing);
                if !old_history.iter().chain(&old_bitmap).chain([&old_current]).any(known) {
                    self.bitmap[n] = missing & !PRIMARY;
                    self.bitmap_dagtag[n] = cx.dagtag;
                }
                outdated.insert(node);
            } else {
                self.bitmap[n] = start & !PRIMARY;
                self.bitmap_dagtag[n] = cx.dagtag;
                outdated.insert(node);
            }
        }
        let past = source.history.iter().rev().chain(&source.bitmap);
        past.for_each(|uuid| self.push_history(*uuid));
        // Whoever goes back to a generation of its own past (it was invalidated) is not ahead of the one that it leaves.
        let went_back = old_history.iter().chain(&old_bitmap).any(|uuid| same(*uuid, source.current));
        let left = |uuid: u64| went_back && same(uuid, old_current);
        old_bitmap.into_iter().filter(|uuid| !left(*uuid)).for_each(|uuid| self.push_if_unused(uuid));
        if !went_back {
            self.push_history(old_current);
        }
        outdated
    }

    /// This node is at this generation, or has been at it.
    pub fn knows(&self, generation: u64) -> bool {
        self.bitmap.iter().chain(&self.history).chain([&self.current]).any(|uuid| same(*uuid, generation))
    }

    /// Back to the first of `former`, the generations that led to the current one, oldest first.
    pub fn go_back(&mut self, former: &[u64]) {
        let Some(&first) = former.first() else { return };
        let undone = |uuid: &u64| former.iter().any(|former| same(*uuid, *former));
        self.bitmap.iter_mut().filter(|uuid| undone(uuid)).for_each(|uuid| *uuid = 0);
        self.set_current(first, self.current & PRIMARY != 0);
    }

    /// The bitmap UUID towards `node` is not needed any more: the resync to it has ended, or it has connected without
    /// one at the same generation.
    pub fn retire_bitmap_uuid(&mut self, node: NodeId) {
        let old = std::mem::take(&mut self.bitmap[node.index()]);
        self.push_history(old);
    }
}

/// A random number that names a generation.
pub(super) fn usable(random: u64) -> u64 {
    if is_generation(random) && !same(random, JUST_CREATED) { random } else { 1 << 63 }
}
