//! How UUIDs change in a resync with a peer that speaks 8.4 (reference handshake-and-states.md section 4.1): source and target share
//! a sync UUID, so that an interrupted resync goes on from the bits.

use zea_wire::ids::NodeId;

use super::rotate::{Uuids, usable};
use super::view::UuidView;
use super::{JUST_CREATED, NODES, SYNC_UUID_OFFSET, is_generation, same};

impl Uuids {
    /// A resync of `target`, which is at the generation `current`, begins, this node is the source. Gives the sync UUID: it becomes
    /// the bitmap UUID, and P_SYNC_UUID tells it. It is made of `random` where no older generation is known.
    pub fn sync_begins_at_source(&mut self, target: NodeId, current: u64, random: u64) -> u64 {
        let n = target.index();
        let newest = self.history[0];
        if same(newest, current) && same(newest.wrapping_add(SYNC_UUID_OFFSET), self.bitmap[n]) {
            // It never heard of the resync that was begun before: begin that one again.
            self.bitmap[n] = newest;
            self.history.rotate_left(1);
            self.history[NODES - 1] = 0;
        }
        let old = self.bitmap[n];
        let known = is_generation(old) && !same(old, JUST_CREATED);
        let sync = usable(if known { old.wrapping_add(SYNC_UUID_OFFSET) } else { random });
        self.bitmap[n] = sync;
        self.pass(old);
        sync
    }

    /// P_SYNC_UUID of `source`: the data here is of no generation of its own until the resync ends.
    pub fn sync_begins_at_target(&mut self, source: NodeId, sync: u64, primary: bool) {
        self.set_current(sync, primary);
        self.bitmap[source.index()] = 0;
    }

    /// The resync from `source` is complete: its generation, and its past with the sync UUID in front.
    pub fn sync_ends_at_target(&mut self, source: &UuidView, own: NodeId, primary: bool) {
        let sync = self.current;
        self.set_current(source.current, primary);
        self.bitmap[source.node.index()] = 0;
        let past = source.history.iter().rev().copied();
        for uuid in past.chain([source.bitmap_towards(own), sync]) {
            self.pass(uuid);
        }
    }

    /// The newest entry of the history. It is there also if slots of other nodes have the same UUID, since 8.4 looks at two entries
    /// and their order.
    fn pass(&mut self, uuid: u64) {
        if !is_generation(uuid) || same(uuid, JUST_CREATED) || same(uuid, self.current) {
            return;
        }
        let at = self.history.iter().position(|entry| same(*entry, uuid)).unwrap_or(self.history.len() - 1);
        self.history[..=at].rotate_right(1);
        self.history[0] = uuid;
    }
}
