//! The rule table of 8.4, for agreed versions below 110 (reference handshake-and-states.md section 5.2): one peer, one bitmap UUID,
//! two entries of history.

use zea_wire::flags::UuidFlags;

use super::compare::{Context, Rule, Strategy, generation};
use super::view::UuidView;
use super::{JUST_CREATED, SYNC_UUID_OFFSET, is_zero, same};

/// The UUIDs of one node as 8.4 has them.
struct Four {
    current: u64,
    bitmap: u64,
    history: [u64; 2],
}

impl Four {
    fn of(view: &UuidView, other: &UuidView) -> Four {
        let bitmap = view.bitmap_towards(other.node);
        Four {
            current: generation(view.current),
            bitmap: if is_zero(bitmap) { 0 } else { bitmap },
            history: [view.history[0], view.history[1]],
        }
    }

    fn has_passed(&self, uuid: u64) -> bool {
        self.history.iter().any(|entry| same(*entry, uuid))
    }

    /// This node, as source, gave itself a sync UUID that the other one, at this UUID, has not heard of (rules 51 and 71).
    fn began_resync_of(&self, uuid: u64) -> bool {
        same(uuid, self.history[0]) && same(self.history[0].wrapping_add(SYNC_UUID_OFFSET), self.bitmap)
    }
}

/// The first version in which a resync may be found that only one node has seen begin or end (rules 34 to 37, 51, 71).
const FIRST_WITH_MISSED_RESYNCS: u32 = 91;

pub(super) fn table(cx: &Context<'_>, own: &UuidView, peer: &UuidView) -> (Strategy, Rule) {
    use Rule::{SyncSourceMissedFinish, SyncTargetPeerMissedFinish, SyncUuidPeer, SyncUuidSelf};
    let (strategy, rule) = table_from_91(cx, own, peer);
    let missed = matches!(rule, SyncSourceMissedFinish | SyncTargetPeerMissedFinish | SyncUuidPeer | SyncUuidSelf);
    let known = cx.agreed_version >= FIRST_WITH_MISSED_RESYNCS || !missed;
    (if known { strategy } else { Strategy::RequiresVersion91 }, rule)
}

fn table_from_91(cx: &Context<'_>, own: &UuidView, peer: &UuidView) -> (Strategy, Rule) {
    let (me, you) = (Four::of(own, peer), Four::of(peer, own));
    match (me.current == JUST_CREATED, you.current == JUST_CREATED) {
        (true, true) => (Strategy::NoSync, Rule::JustCreatedBoth),
        (true, false) => (Strategy::TargetSetBitmap, Rule::JustCreatedSelf),
        (false, true) => (Strategy::SourceSetBitmap, Rule::JustCreatedPeer),
        (false, false) if me.current == you.current => equal_current(cx, [own, peer], &me, &you),
        (false, false) => different_current(&me, &you),
    }
}

/// Rules 34 to 41. Whoever is Primary again after a crash is the source: that is what the strategies "if both failed" do.
fn equal_current(cx: &Context<'_>, views: [&UuidView; 2], me: &Four, you: &Four) -> (Strategy, Rule) {
    match (me.bitmap == 0, you.bitmap == 0) {
        (false, true) => return (Strategy::SourceUseBitmap, Rule::SyncSourceMissedFinish),
        (true, false) => return (Strategy::TargetUseBitmap, Rule::SyncTargetPeerMissedFinish),
        _ => {}
    }
    let strategy = match views.map(|view| view.flags.contains(UuidFlags::CRASHED_PRIMARY)) {
        [false, false] => Strategy::NoSync,
        [true, true] if cx.resolve_conflicts => Strategy::TargetIfBothFailed,
        [true, _] => Strategy::SourceIfBothFailed,
        [false, true] => Strategy::TargetIfBothFailed,
    };
    (strategy, Rule::BothOff)
}

/// Rules 50 to 100.
fn different_current(me: &Four, you: &Four) -> (Strategy, Rule) {
    if same(me.current, you.bitmap) {
        (Strategy::TargetUseBitmap, Rule::BitmapPeer)
    } else if you.began_resync_of(me.current) {
        (Strategy::TargetUseBitmap, Rule::SyncUuidPeer)
    } else if you.has_passed(me.current) {
        (Strategy::TargetSetBitmap, Rule::HistoryPeer)
    } else if same(me.bitmap, you.current) {
        (Strategy::SourceUseBitmap, Rule::BitmapSelf)
    } else if me.began_resync_of(you.current) {
        (Strategy::SourceUseBitmap, Rule::SyncUuidSelf)
    } else if me.has_passed(you.current) {
        (Strategy::SourceSetBitmap, Rule::HistorySelf)
    } else if same(me.bitmap, you.bitmap) {
        (Strategy::SplitBrainAutoRecover, Rule::BitmapBoth)
    } else if me.history.iter().any(|uuid| you.has_passed(*uuid)) {
        (Strategy::SplitBrainDisconnect, Rule::HistoryBoth)
    } else {
        (Strategy::UnrelatedData, Rule::HistoryBoth)
    }
}
