//! Zea's own rule, stricter than the kernel: a set bit of usable data is never ignored.
//!
//! The kernel takes equal UUIDs for equal data and clears the bits, also those that an online verify has just set, or
//! that tell of writes the peer may have missed. Between two Zea nodes (feature ZEA_KEEP_BITS) such bits are resynced.
//! A kernel peer would not mirror that: there the bits stay, and the connection is reported as unverified.

use zea_wire::flags::UuidFlags;
use zea_wire::state::DiskState;

use super::compare::{Rule, Strategy};
use super::decide::{BitmapPrep, Decision, Outcome, Reason, Side, outcome_of};

/// Has the last word on a decision. Uses exchanged data only, so both nodes come to mirrored results; `own.view` must
/// be what was sent to the peer.
///
/// * No sync, but a node with Outdated or better data has bits: a bitmap resync. The better disk is the source, of
///   equal disks the only Primary, else the only neighbour of a Primary, else the only node with bits, else the lower node id. If the target would be a
///   Primary that serves its data: disconnect. If the reason is a split brain that is overlooked for now: retry.
/// * With a peer that is not Zea: the strategy stays, the decision is `unverified`.
/// * A strategy that replaces bits of an UpToDate node by others adds the others instead.
#[must_use]
pub fn keep_bits(mut decision: Decision, own: &Side<'_>, peer: &Side<'_>, both_zea: bool) -> Decision {
    let own_bits = own.view.dirty_bits > 0;
    match &mut decision.bitmap {
        _ if !own_bits || own.disk != DiskState::UpToDate => {}
        BitmapPrep::CopyFrom { keep_own, .. } => *keep_own = true,
        prep @ BitmapPrep::Clear => *prep = BitmapPrep::Keep,
        BitmapPrep::Keep | BitmapPrep::SetAll => {}
    }

    if both_zea && let Some(reversed) = primary_is_source(&decision, own, peer) {
        return reversed;
    }

    let counts = |side: &Side<'_>| side.has_data() && side.disk > DiskState::Inconsistent && side.view.dirty_bits > 0;
    if decision.strategy != Strategy::NoSync || !(counts(own) || counts(peer)) {
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
    let own_is_source = own_is_source(own, peer);
    decision.strategy = if own_is_source { Strategy::SourceUseBitmap } else { Strategy::TargetUseBitmap };
    let target = if own_is_source { peer } else { own };
    decision.outcome =
        if target.is_in_use() { Outcome::Disconnect(Reason::TargetIsPrimary) } else { outcome_of(decision.strategy) };
    decision
}

/// Left-over bits at the same generation would make a Secondary overwrite an UpToDate Primary, which the kernel refuses. The
/// Primary has that generation whole: it is the source of these blocks.
fn primary_is_source(decision: &Decision, own: &Side<'_>, peer: &Side<'_>) -> Option<Decision> {
    let left_over = matches!(decision.rule, Rule::SyncSourceMissedFinish | Rule::SyncTargetPeerMissedFinish);
    let refused = decision.outcome == Outcome::Disconnect(Reason::TargetIsPrimary);
    let primary = if own.is_primary() { own } else { peer };
    if !left_over || !refused || own.is_primary() == peer.is_primary() || primary.disk != DiskState::UpToDate {
        return None;
    }
    let strategy = if own.is_primary() { Strategy::SourceUseBitmap } else { Strategy::TargetUseBitmap };
    Some(Decision { strategy, outcome: outcome_of(strategy), bitmap: BitmapPrep::Keep, kept_bits: true, ..*decision })
}

fn own_is_source(own: &Side<'_>, peer: &Side<'_>) -> bool {
    let (own_bits, peer_bits) = (own.view.dirty_bits > 0, peer.view.dirty_bits > 0);
    // A neighbour of a live Primary has what that Primary believes it has; it must not be overwritten with less.
    let neighbour = |side: &Side<'_>| !side.view.flags.contains(UuidFlags::STABLE);
    if own.disk != peer.disk {
        own.disk > peer.disk
    } else if own.is_primary() != peer.is_primary() {
        own.is_primary()
    } else if neighbour(own) != neighbour(peer) {
        neighbour(own)
    } else if own_bits != peer_bits {
        own_bits
    } else {
        own.view.node < peer.view.node
    }
}
