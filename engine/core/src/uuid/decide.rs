//! From the strategy to what happens on this connection (reference handshake-and-states.md section 5.4).
//!
//! Left out: reconciliation by dagtag, which this node does not offer.

use zea_wire::flags::UuidFlags;
use zea_wire::ids::NodeId;
use zea_wire::state::{DiskState, Role};

use super::after_sb::own_is_kept;
use super::compare::{Context, Rule, Strategy, compare, other_slot};
use super::view::UuidView;
use super::{FIRST_OF_9, is_generation, same};

/// One of the two nodes.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// Its UUIDs, flags and number of bits, as exchanged.
    pub view: &'a UuidView,
    /// Its disk: the real state, also while it is announced as Negotiating.
    pub disk: DiskState,
    /// Its role.
    pub role: Role,
}

impl Side<'_> {
    pub(super) fn is_primary(&self) -> bool {
        self.role == Role::Primary
    }

    /// The disk has data of some kind.
    pub(super) fn has_data(&self) -> bool {
        self.disk >= DiskState::Inconsistent && self.disk != DiskState::DUnknown
    }

    /// The node must not be overwritten without being asked: it serves this data.
    pub(super) fn is_in_use(&self) -> bool {
        self.is_primary() && self.disk >= DiskState::Consistent
    }

    fn discards(&self) -> bool {
        self.view.flags.contains(UuidFlags::DISCARD_MY_DATA)
    }
}

/// Why there will be no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The data have nothing in common.
    Unrelated,
    /// Both have changed, and nothing says whose changes to give up.
    SplitBrain,
    /// Older versions of the protocol cannot tell an interrupted resync from that.
    NeedsVersion91,
    /// The target would be a Primary that serves its data (`rr-conflict disconnect`).
    TargetIsPrimary,
    /// The source's data is inconsistent and the target's is not.
    SourceInconsistent,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// No resync.
    Established,
    /// Resync to the peer: WFBitMapS.
    Source,
    /// Resync from the peer: WFBitMapT.
    Target,
    /// StandAlone.
    Disconnect(Reason),
    /// Drop the connection and try again.
    RetryConnect,
}

impl Outcome {
    /// The same from the peer's point of view.
    #[must_use]
    pub fn mirrored(self) -> Self {
        match self {
            Outcome::Source => Outcome::Target,
            Outcome::Target => Outcome::Source,
            other => other,
        }
    }
}

/// What to do with the own bits towards the peer before they are exchanged (step 12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitmapPrep {
    /// Leave them.
    Keep,
    /// Set all.
    SetAll,
    /// Clear all: the source knows.
    Clear,
    /// Take the bits of the slot for `node` (of any unallocated slot if it has none, else set all).
    CopyFrom {
        /// Whose slot.
        node: NodeId,
        /// In addition to the set ones, not instead of them.
        keep_own: bool,
    },
}

/// The decision of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// The strategy of the rule table.
    pub by_table: Strategy,
    /// The strategy that is carried out.
    pub strategy: Strategy,
    /// The rule that led to it.
    pub rule: Rule,
    /// What happens.
    pub outcome: Outcome,
    /// What to do with the bitmap first.
    pub bitmap: BitmapPrep,
    /// The policy that ended a split brain: the changes of the target are lost.
    pub policy: Option<&'static str>,
    /// A split brain that is overlooked as long as one side is not stable.
    pub postponed: bool,
    /// Bits remain that this decision takes no notice of: keep and report them.
    pub unverified: bool,
    /// Zea's [`super::keep_bits`] has made this a resync, or a retry.
    pub kept_bits: bool,
}

/// Compares and decides.
pub fn decide(cx: &Context<'_>, own: &Side<'_>, peer: &Side<'_>) -> Decision {
    let (strategy, rule) = compare(cx, own.view, peer.view);
    let own = Side { view: cx.sent.unwrap_or(own.view), ..*own };
    Decider { cx, own: &own, peer, rule }.decide(strategy)
}

struct Decider<'a> {
    cx: &'a Context<'a>,
    own: &'a Side<'a>,
    peer: &'a Side<'a>,
    rule: Rule,
}

impl Decider<'_> {
    fn decide(&self, by_table: Strategy) -> Decision {
        let strategy = self.by_disk_states(by_table);
        let postponed = strategy == Strategy::SplitBrainAutoRecover && !self.both_stable();
        let (strategy, policy) = match strategy {
            // Step 4.
            _ if postponed => (Strategy::NoSync, None),
            Strategy::SplitBrainAutoRecover | Strategy::SplitBrainDisconnect => self.split_brain(strategy),
            other => (other, None),
        };
        let if_both_failed = matches!(strategy, Strategy::SourceIfBothFailed | Strategy::TargetIfBothFailed);
        let strategy = self.discard_my_data(self.if_both_failed(strategy));
        let outcome = self.refuse(strategy, if_both_failed);
        Decision {
            by_table,
            strategy,
            rule: self.rule,
            outcome,
            bitmap: prepare(strategy),
            policy,
            postponed,
            unverified: false,
            kept_bits: false,
        }
    }

    /// Step 2: the same generation, but not in the same state.
    fn by_disk_states(&self, strategy: Strategy) -> Strategy {
        let (own, peer) = (self.own, self.peer);
        if own.disk == peer.disk || !own.has_data() || !peer.has_data() {
            return strategy;
        }
        let inconsistent = |side: &Side<'_>| side.disk == DiskState::Inconsistent;
        let one_inconsistent = inconsistent(own) || inconsistent(peer);
        if self.cx.agreed_version < FIRST_OF_9 {
            return if one_inconsistent { self.inconsistent_is_target(strategy) } else { strategy };
        }
        let no_sync = strategy == Strategy::NoSync;
        let applies = if self.cx.agreed_version >= 119 {
            let failed = matches!(strategy, Strategy::SourceIfBothFailed | Strategy::TargetIfBothFailed);
            let rule = [Rule::Reconnected, Rule::LostQuorum, Rule::BothOff].contains(&self.rule);
            (failed && rule) || (no_sync && one_inconsistent)
        } else {
            (no_sync || self.rule == Rule::BothOff) && one_inconsistent
        };
        if applies { self.better_disk_is_source() } else { strategy }
    }

    /// 8.4, whatever the rule was (5.2): an Inconsistent disk next to a better one is the target, of everything if the rule said so.
    fn inconsistent_is_target(&self, strategy: Strategy) -> Strategy {
        let own_is_source = self.own.disk > self.peer.disk;
        match strategy {
            Strategy::UnrelatedData | Strategy::RequiresVersion91 | Strategy::RetryConnect => strategy,
            Strategy::SourceSetBitmap | Strategy::TargetSetBitmap | Strategy::SplitBrainDisconnect => {
                if own_is_source {
                    Strategy::SourceSetBitmap
                } else {
                    Strategy::TargetSetBitmap
                }
            }
            _ if own_is_source => Strategy::SourceUseBitmap,
            _ => Strategy::TargetUseBitmap,
        }
    }

    fn better_disk_is_source(&self) -> Strategy {
        if self.own.disk > self.peer.disk {
            source_of_sync_target(self.own.view, self.peer.view)
        } else {
            source_of_sync_target(self.peer.view, self.own.view).mirrored()
        }
    }

    fn both_stable(&self) -> bool {
        let stable = |side: &Side<'_>| side.view.flags.contains(UuidFlags::STABLE);
        stable(self.own) && stable(self.peer)
    }

    /// Steps 5 to 8. Policies are for split brains of which the bitmaps know both sides; where one and the administrator contradict
    /// each other, nothing is solved.
    fn split_brain(&self, strategy: Strategy) -> (Strategy, Option<&'static str>) {
        let up_to_date = |side: &Side<'_>| side.disk == DiskState::UpToDate;
        let auto_recover = strategy == Strategy::SplitBrainAutoRecover;
        let connecting = self.cx.sent.is_some();
        let by_policy = if auto_recover && connecting { own_is_kept(self.cx, self.own, self.peer) } else { None };
        let (solved, policy) = match by_policy {
            _ if self.by_quorum().is_some() => (self.by_quorum(), None),
            Some((kept, policy)) => (Some(kept), Some(policy)),
            // On an established connection the disk states decide.
            None if auto_recover && !connecting => (only_one(up_to_date(self.own), up_to_date(self.peer)), None),
            None => (None, None),
        };
        let discard = only_one(self.peer.discards(), self.own.discards());
        let contradicted = policy.is_some() && discard.is_some() && discard != solved;
        let strategy = match (solved.or(discard), auto_recover) {
            _ if contradicted => return (strategy, None),
            (None, _) => strategy,
            (Some(true), true) => Strategy::SourceUseBitmap,
            (Some(true), false) => Strategy::SourceSetBitmap,
            (Some(false), true) => Strategy::TargetUseBitmap,
            (Some(false), false) => Strategy::TargetSetBitmap,
        };
        (strategy, policy)
    }

    /// A Primary that lost quorum has acknowledged nothing since. What it had before is with those who have quorum now, or it was not
    /// acknowledged, either: a generation may have begun that no majority has heard of.
    fn by_quorum(&self) -> Option<bool> {
        let own_has = self.cx.quorate?;
        let loser = if own_has { self.peer } else { self.own };
        loser.view.flags.contains(UuidFlags::PRIMARY_LOST_QUORUM).then_some(own_has)
    }

    /// A crash at both ends: whoever is Primary again by now is the source.
    fn if_both_failed(&self, strategy: Strategy) -> Strategy {
        let own_is_source = match strategy {
            Strategy::SourceIfBothFailed => true,
            Strategy::TargetIfBothFailed => false,
            other => return other,
        };
        match (self.own.is_primary(), self.peer.is_primary()) {
            (true, true) => Strategy::NoSync,
            (false, false) if own_is_source => Strategy::SourceUseBitmap,
            (true, false) => Strategy::SourceUseBitmap,
            (false, true) | (false, false) => Strategy::TargetUseBitmap,
        }
    }

    /// Step 9: a node that gives up its data is no source, if the peer's data is good enough.
    fn discard_my_data(&self, strategy: Strategy) -> Strategy {
        let (source, target) = match outcome_of(strategy) {
            Outcome::Source => (self.own, self.peer),
            Outcome::Target => (self.peer, self.own),
            _ => return strategy,
        };
        let good = target.disk > DiskState::Inconsistent && target.disk != DiskState::DUnknown;
        let reverse = source.discards() && !target.discards() && good;
        if self.cx.agreed_version < 121 || !reverse {
            return strategy;
        }
        match strategy {
            // The other way round no slot of the new source says what differs.
            Strategy::SourceCopyOtherBitmap(_) => Strategy::TargetSetBitmap,
            Strategy::TargetClearBitmap(_) => Strategy::SourceSetBitmap,
            other => other.mirrored(),
        }
    }

    /// Step 10: nobody overwrites data in use, or good data with inconsistent data. The latter is 8.4's rule, kept
    /// here for a source that is not itself being synced.
    fn refuse(&self, strategy: Strategy, if_both_failed: bool) -> Outcome {
        let outcome = outcome_of(strategy);
        let (source, target) = match outcome {
            Outcome::Source => (self.own, self.peer),
            Outcome::Target => (self.peer, self.own),
            _ => return outcome,
        };
        let uses_bits = matches!(strategy, Strategy::SourceUseBitmap | Strategy::TargetUseBitmap);
        let no_bits = source.view.dirty_bits == 0 && target.view.dirty_bits == 0;
        let target_is_good = target.has_data() && target.disk > DiskState::Inconsistent;
        let being_synced = source.view.flags.contains(UuidFlags::SYNC_TARGET);
        if target.is_in_use() && !if_both_failed && !(uses_bits && no_bits) {
            Outcome::Disconnect(Reason::TargetIsPrimary)
        } else if source.disk <= DiskState::Inconsistent && target_is_good && !being_synced {
            Outcome::Disconnect(Reason::SourceInconsistent)
        } else {
            outcome
        }
    }
}

/// `Some(true)` for only the first, `Some(false)` for only the second.
fn only_one(first: bool, second: bool) -> Option<bool> {
    (first != second).then_some(first)
}

/// The strategy of `source` when its disk is the better one: a target that is being synced by somebody else is at the
/// generation it had before, which is its bitmap UUID towards the source.
fn source_of_sync_target(source: &UuidView, target: &UuidView) -> Strategy {
    if !target.flags.contains(UuidFlags::SYNC_TARGET) {
        return Strategy::SourceUseBitmap;
    }
    let before = target.bitmap_towards(source.node);
    if !is_generation(before) {
        return Strategy::SourceSetBitmap;
    }
    if same(source.bitmap_towards(target.node), before) {
        return Strategy::SourceUseBitmap;
    }
    let slot = other_slot(source, target.node, before);
    slot.map_or(Strategy::SourceSetBitmap, Strategy::SourceCopyOtherBitmap)
}

pub(super) fn outcome_of(strategy: Strategy) -> Outcome {
    match strategy {
        Strategy::NoSync => Outcome::Established,
        Strategy::SourceUseBitmap
        | Strategy::SourceSetBitmap
        | Strategy::SourceCopyOtherBitmap(_)
        | Strategy::SourceIfBothFailed => Outcome::Source,
        Strategy::TargetUseBitmap
        | Strategy::TargetSetBitmap
        | Strategy::TargetClearBitmap(_)
        | Strategy::TargetIfBothFailed => Outcome::Target,
        Strategy::SplitBrainAutoRecover | Strategy::SplitBrainDisconnect => Outcome::Disconnect(Reason::SplitBrain),
        Strategy::UnrelatedData => Outcome::Disconnect(Reason::Unrelated),
        Strategy::RequiresVersion91 => Outcome::Disconnect(Reason::NeedsVersion91),
        Strategy::RetryConnect => Outcome::RetryConnect,
    }
}

fn prepare(strategy: Strategy) -> BitmapPrep {
    match strategy {
        Strategy::SourceSetBitmap | Strategy::TargetSetBitmap => BitmapPrep::SetAll,
        Strategy::TargetClearBitmap(_) => BitmapPrep::Clear,
        Strategy::SourceCopyOtherBitmap(node) => BitmapPrep::CopyFrom { node, keep_own: false },
        _ => BitmapPrep::Keep,
    }
}
