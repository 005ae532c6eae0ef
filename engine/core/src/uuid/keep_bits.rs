//! Zea's own rule, stricter than the kernel: a set bit of usable data is never ignored.
//!
//! The kernel takes equal UUIDs for equal data and clears the bits, also those that an online verify has just set, or
//! that tell of writes the peer may have missed. Between two Zea nodes (feature ZEA_KEEP_BITS) such bits are resynced.
//! A kernel peer would not mirror that: there the bits stay, and the connection is reported as unverified.

use zea_wire::flags::UuidFlags;
use zea_wire::state::DiskState;

use super::compare::{Context, Rule, Strategy};
use super::decide::{BitmapPrep, Decision, Outcome, Reason, Side, outcome_of};
use super::{is_generation, is_zero, same};

/// Has the last word on a decision. Uses exchanged data only, so both nodes come to mirrored results; `own.view` must
/// be what was sent to the peer.
///
/// * No sync, but a node with Outdated or better data has bits: a bitmap resync. The better disk is the source, of
///   equal disks the only Primary, else the only neighbour of a Primary, else the one that outlived the other in a crash (see
///   below), else the only node with bits, else the lower node id. If the target would be a Primary that serves its
///   data: disconnect. If the reason is a split brain that is overlooked for now: retry.
/// * Likewise without bits, if an Outdated node asks for it and the other one is UpToDate.
/// * Not so between UpToDate neighbours of one Primary that has a good disk: there the bits stay until the Primary settles them.
/// * A node that lost writes in a crash is no source for one at the same generation that did not. With protocols A and B a Primary
///   that died, or a node resynced from it, is the source: what it acknowledged early and flushed need not be anywhere else.
/// * No split brain with a disk without changes of its own, because its resync was interrupted or the other one had all of them, if the
///   other's history is full: a full resync.
/// * With a peer that is not Zea: the strategy stays, the decision is `unverified`.
/// * A strategy that replaces bits of an UpToDate node by others adds the others instead.
#[must_use]
pub fn keep_bits(
    mut decision: Decision,
    cx: &Context<'_>,
    own: &Side<'_>,
    peer: &Side<'_>,
    both_zea: bool,
) -> Decision {
    let own_bits = own.view.dirty_bits > 0;
    match &mut decision.bitmap {
        _ if !own_bits || own.disk != DiskState::UpToDate => {}
        BitmapPrep::CopyFrom { keep_own, .. } => *keep_own = true,
        prep @ BitmapPrep::Clear => *prep = BitmapPrep::Keep,
        BitmapPrep::Keep | BitmapPrep::SetAll => {}
    }

    if both_zea && is_premature(&decision, own, peer) {
        return Decision {
            strategy: Strategy::RetryConnect,
            outcome: Outcome::RetryConnect,
            kept_bits: true,
            ..decision
        };
    }
    let reversed = || {
        better_is_source(&decision, own, peer)
            .or_else(|| discarded_is_target(&decision, own, peer))
            .or_else(|| neighbour_is_no_target(&decision, own, peer))
            .or_else(|| survivor_is_source(&decision, cx, own, peer))
            .or_else(|| unchanged_is_target(&decision, own, peer))
    };
    if both_zea && let Some(reversed) = reversed() {
        return reversed;
    }

    let counts = |side: &Side<'_>| side.has_data() && side.disk > DiskState::Inconsistent && side.view.dirty_bits > 0;
    let asks = both_zea && (asks_for_resync(own, peer) || asks_for_resync(peer, own));
    if decision.strategy != Strategy::NoSync || !(counts(own) || counts(peer) || asks) {
        return decision;
    }
    if !both_zea || !own.has_data() || !peer.has_data() {
        decision.unverified = true;
        return decision;
    }
    decision.kept_bits = true;
    if decision.postponed {
        decision.strategy = Strategy::RetryConnect;
        decision.outcome = Outcome::RetryConnect;
        return decision;
    }
    if have_common_primary(own, peer) {
        return decision;
    }
    let own_is_source = own_is_source(cx, own, peer);
    decision.strategy = if own_is_source { Strategy::SourceUseBitmap } else { Strategy::TargetUseBitmap };
    let target = if own_is_source { peer } else { own };
    decision.outcome =
        if target.is_in_use() { Outcome::Disconnect(Reason::TargetIsPrimary) } else { outcome_of(decision.strategy) };
    decision
}

/// An Outdated disk beside a Primary that serves the data of its peers becomes UpToDate by a resync, and be it of nothing.
fn asks_for_resync(target: &Side<'_>, source: &Side<'_>) -> bool {
    let asks = target.view.flags.contains(UuidFlags::RESYNC) && target.view.flags.contains(UuidFlags::DISKLESS_PRIMARY);
    asks && target.disk == DiskState::Outdated && source.disk == DiskState::UpToDate
}

/// Left-over bits at the same generation would make the worse disk the source, which is refused: a Secondary that
/// overwrites an UpToDate Primary, or an interrupted SyncTarget that overwrites good data. The better disk has that
/// generation whole: it is the source of these blocks. So it is beside a Primary that died, with protocols A and B, and was to be a
/// target since: nobody follows what its disk has, and it may have been replaced in part.
fn better_is_source(decision: &Decision, own: &Side<'_>, peer: &Side<'_>) -> Option<Decision> {
    let left_over = matches!(decision.rule, Rule::SyncSourceMissedFinish | Rule::SyncTargetPeerMissedFinish);
    let (source, target) = match outcome_of(decision.strategy) {
        Outcome::Source => (own, peer),
        Outcome::Target => (peer, own),
        _ => return None,
    };
    let died = decision.rule == Rule::CrashedPrimary;
    let discards = target.view.flags.contains(UuidFlags::DISCARD_MY_DATA);
    let better = match decision.outcome {
        Outcome::Disconnect(Reason::TargetIsPrimary) => {
            left_over && target.disk == DiskState::UpToDate && !source.is_primary()
        }
        Outcome::Disconnect(Reason::SourceInconsistent) => left_over || died,
        Outcome::Source | Outcome::Target => {
            died && source.disk == DiskState::Outdated && target.disk >= DiskState::Consistent && !discards
        }
        _ => false,
    };
    let strategy = decision.strategy.mirrored();
    better.then(|| Decision {
        strategy,
        outcome: outcome_of(strategy),
        bitmap: BitmapPrep::Keep,
        kept_bits: true,
        ..*decision
    })
}

/// The administrator gave up the data of the node that would overwrite a Primary. From version 121 on that turns the direction with
/// DRBD, too.
fn discarded_is_target(decision: &Decision, own: &Side<'_>, peer: &Side<'_>) -> Option<Decision> {
    let (source, target) = match outcome_of(decision.strategy) {
        Outcome::Source => (own, peer),
        Outcome::Target => (peer, own),
        _ => return None,
    };
    let discards = |side: &Side<'_>| side.view.flags.contains(UuidFlags::DISCARD_MY_DATA);
    let refused = decision.outcome == Outcome::Disconnect(Reason::TargetIsPrimary);
    let strategy = decision.strategy.mirrored();
    let reverses = refused && discards(source) && !discards(target) && !source.is_primary();
    reverses.then(|| Decision { strategy, outcome: outcome_of(strategy), kept_bits: true, ..*decision })
}

/// Both are UpToDate neighbours of one Primary. It is what they are measured by: it settles their marks
/// (P_PEERS_IN_SYNC), and if it is lost before, they compare again.
fn have_common_primary(own: &Side<'_>, peer: &Side<'_>) -> bool {
    are_equal_neighbours(own, peer) && !serves_them(own, peer)
}

fn are_equal_neighbours(own: &Side<'_>, peer: &Side<'_>) -> bool {
    let up_to_date = own.disk == DiskState::UpToDate && peer.disk == DiskState::UpToDate;
    up_to_date && !(own.view.primaries & peer.view.primaries).is_empty()
}

/// The Primary that a node is connected to has no UpToDate disk, and no marks: these nodes are what it is measured by.
fn serves_them(own: &Side<'_>, peer: &Side<'_>) -> bool {
    [own, peer].iter().any(|side| side.view.flags.contains(UuidFlags::DISKLESS_PRIMARY))
}

/// A node that is being resynced shows its source's generation, but still its own past, or none yet: whether the two have a split
/// brain, or nothing in common, can be told when the resync is over.
fn is_premature(decision: &Decision, own: &Side<'_>, peer: &Side<'_>) -> bool {
    let being_synced = |side: &Side<'_>| side.view.flags.contains(UuidFlags::SYNC_TARGET);
    let apart = matches!(decision.outcome, Outcome::Disconnect(Reason::SplitBrain | Reason::Unrelated));
    apart && (being_synced(own) || being_synced(peer))
}

/// An UpToDate neighbour of a Primary gets what it lacks from that Primary, and from nobody else at the same generation: the
/// other one is the target, or if it is as good, the bits stay for the Primary to settle.
fn neighbour_is_no_target(decision: &Decision, own: &Side<'_>, peer: &Side<'_>) -> Option<Decision> {
    let (source, target) = match decision.outcome {
        Outcome::Source => (own, peer),
        Outcome::Target => (peer, own),
        _ => return None,
    };
    let neighbour = target.disk == DiskState::UpToDate && !target.view.primaries.is_empty();
    let free = !source.is_primary() && !source.view.flags.contains(UuidFlags::DISCARD_MY_DATA);
    let uses_bits = matches!(decision.strategy, Strategy::SourceUseBitmap | Strategy::TargetUseBitmap);
    if !(neighbour && free && uses_bits && same(source.view.current, target.view.current))
        || target.view.flags.contains(UuidFlags::DISCARD_MY_DATA)
        || (are_equal_neighbours(own, peer) && serves_them(own, peer))
    {
        return None;
    }
    let settled_later = have_common_primary(own, peer);
    let strategy = if settled_later { Strategy::NoSync } else { decision.strategy.mirrored() };
    Some(Decision { strategy, outcome: outcome_of(strategy), bitmap: BitmapPrep::Keep, kept_bits: true, ..*decision })
}

/// A node that died with writes in flight has lost what its disk had not made stable, and more so the nodes that were
/// resynced from it. At the same generation a copy that lived on has all of it, and is the source; with protocols A and B the last
/// Primary's is.
fn survivor_is_source(decision: &Decision, cx: &Context<'_>, own: &Side<'_>, peer: &Side<'_>) -> Option<Decision> {
    let (source, target) = match decision.outcome {
        Outcome::Source => (own, peer),
        Outcome::Target => (peer, own),
        _ => return None,
    };
    let overwritten = outlives(cx, target, source)
        && same(source.view.current, target.view.current)
        && source.disk >= DiskState::Consistent
        && target.disk >= DiskState::Outdated
        && [source, target].iter().all(|side| may_be_overwritten(side));
    if !overwritten {
        return None;
    }
    let strategy = decision.strategy.mirrored();
    Some(Decision { strategy, outcome: outcome_of(strategy), kept_bits: true, ..*decision })
}

/// An Inconsistent disk has no changes to lose: whose they are was decided when its resync began, and its source has them. Neither has
/// one that says that the other was in sync with its generation, which the other has left since. 8.4 makes the former the target of a
/// full resync always (handshake-and-states.md 5.2). Here both are if their generation may have dropped out of the other's history,
/// which is full: they could not come back otherwise.
fn unchanged_is_target(decision: &Decision, own: &Side<'_>, peer: &Side<'_>) -> Option<Decision> {
    // With nobody's later data that others rely on, and no better a disk.
    let left = |side: &Side<'_>, other: &Side<'_>| {
        let was_equal = is_zero(side.view.bitmap_towards(other.view.node));
        let is_marked = is_generation(other.view.bitmap_towards(side.view.node));
        was_equal && is_marked && side.view.primaries.is_empty() && side.disk <= other.disk
    };
    let unchanged = |side: &Side<'_>, other: &Side<'_>| {
        !side.is_primary() && (side.disk == DiskState::Inconsistent || left(side, other))
    };
    let forgetful = |side: &Side<'_>| side.view.history.iter().all(|uuid| is_generation(*uuid));
    let whole = |side: &Side<'_>| side.has_data() && side.disk > DiskState::Inconsistent && forgetful(side);
    let apart = decision.outcome == Outcome::Disconnect(Reason::SplitBrain);
    let strategy = match (unchanged(own, peer) && whole(peer), unchanged(peer, own) && whole(own)) {
        (true, _) if apart => Strategy::TargetSetBitmap,
        (_, true) if apart => Strategy::SourceSetBitmap,
        _ => return None,
    };
    let (outcome, bitmap) = (outcome_of(strategy), BitmapPrep::SetAll);
    Some(Decision { strategy, outcome, bitmap, kept_bits: true, ..*decision })
}

/// Of two copies of a generation, this one has what the other may have lost in a crash, or, acknowledged early, never got.
fn outlives(cx: &Context<'_>, side: &Side<'_>, other: &Side<'_>) -> bool {
    let usable = |side: &Side<'_>| side.disk >= DiskState::Consistent;
    let was_primary = |side: &Side<'_>| usable(side) && side.view.flags.contains(UuidFlags::ZEA_WAS_PRIMARY);
    let lost_writes = |side: &Side<'_>| side.view.flags.contains(UuidFlags::ZEA_LOST_WRITES);
    if cx.protocol_a_or_b && was_primary(side) != was_primary(other) {
        was_primary(side)
    } else {
        lost_writes(other) && !lost_writes(side)
    }
}

/// Nothing speaks for either direction but what the disks hold.
fn may_be_overwritten(side: &Side<'_>) -> bool {
    let flags = side.view.flags;
    !side.is_primary() && !flags.contains(UuidFlags::SYNC_TARGET) && !flags.contains(UuidFlags::DISCARD_MY_DATA)
}

fn own_is_source(cx: &Context<'_>, own: &Side<'_>, peer: &Side<'_>) -> bool {
    let (own_bits, peer_bits) = (own.view.dirty_bits > 0, peer.view.dirty_bits > 0);
    // Consistent is UpToDate that has not been confirmed yet.
    let rank = |side: &Side<'_>| if side.disk == DiskState::Consistent { DiskState::UpToDate } else { side.disk };
    // A neighbour of a live Primary has what that Primary believes it has; it must not be overwritten with less.
    let neighbour = |side: &Side<'_>| !side.view.flags.contains(UuidFlags::STABLE);
    let survived = |side: &Side<'_>, other: &Side<'_>| {
        let free = may_be_overwritten(other) && !neighbour(other);
        side.disk >= DiskState::Outdated && outlives(cx, side, other) && free
    };
    if survived(own, peer) != survived(peer, own) {
        survived(own, peer)
    } else if rank(own) != rank(peer) {
        rank(own) > rank(peer)
    } else if own.is_primary() != peer.is_primary() {
        own.is_primary()
    } else if neighbour(own) != neighbour(peer) {
        neighbour(own)
    } else if outlives(cx, own, peer) != outlives(cx, peer, own) {
        outlives(cx, own, peer)
    } else if own_bits != peer_bits {
        own_bits
    } else {
        own.view.node < peer.view.node
    }
}
