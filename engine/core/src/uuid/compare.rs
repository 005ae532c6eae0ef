//! The rule table of UUID comparison, agreed version 118 and above (reference handshake-and-states.md section 5.3). Below 110 it is
//! [`super::table84`].

use std::fmt;

use zea_wire::flags::UuidFlags;
use zea_wire::ids::NodeId;

use super::after_sb::AfterSplitBrain;
use super::view::UuidView;
use super::{FIRST_OF_9, JUST_CREATED, NODES, PRIMARY, is_generation, is_zero, same};

/// What both nodes know of the connection when they compare.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Exactly one of the two said that it has quorum, which no other group has without what it acknowledged: whether it is this node.
    pub quorate: Option<bool>,
    /// Agreed protocol version: below 110 the rules of 8.4 hold.
    pub agreed_version: u32,
    /// Replication protocol A or B.
    pub protocol_a_or_b: bool,
    /// This node has the RESOLVE_CONFLICTS role; the peer has the opposite.
    pub resolve_conflicts: bool,
    /// While connecting: what this node has sent. Everything is computed from that, so that the peer, who has
    /// nothing else, comes to the same result.
    pub sent: Option<&'a UuidView>,
    /// What is done about a split brain.
    pub after_split_brain: AfterSplitBrain,
}

/// Outcome of the comparison, from this node's point of view (section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Same data.
    NoSync,
    /// Source, the bits tell what differs.
    SourceUseBitmap,
    /// Source, everything may differ.
    SourceSetBitmap,
    /// Source, the bits of my slot for that node tell what differs.
    SourceCopyOtherBitmap(NodeId),
    /// Target, the bits tell what differs.
    TargetUseBitmap,
    /// Target, everything may differ.
    TargetSetBitmap,
    /// Target, the source's bits for that node tell what differs.
    TargetClearBitmap(NodeId),
    /// Source if both nodes are Secondary; a Primary is the source.
    SourceIfBothFailed,
    /// Target if both nodes are Secondary; a Primary is the source.
    TargetIfBothFailed,
    /// Both have changed since a common generation; the bits tell what.
    SplitBrainAutoRecover,
    /// Both have changed since a common generation, long ago.
    SplitBrainDisconnect,
    /// Nothing in common.
    UnrelatedData,
    /// The agreed version is below 91, in which this could be a split brain as well.
    RequiresVersion91,
    /// Something has changed since the UUIDs were sent: try again.
    RetryConnect,
}

impl Strategy {
    /// The name as in DRBD's messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Strategy::NoSync => "no-sync",
            Strategy::SourceUseBitmap => "source-use-bitmap",
            Strategy::SourceSetBitmap => "source-set-bitmap",
            Strategy::SourceCopyOtherBitmap(_) => "source-copy-other-bitmap",
            Strategy::TargetUseBitmap => "target-use-bitmap",
            Strategy::TargetSetBitmap => "target-set-bitmap",
            Strategy::TargetClearBitmap(_) => "target-clear-bitmap",
            Strategy::SourceIfBothFailed => "source-if-both-failed",
            Strategy::TargetIfBothFailed => "target-if-both-failed",
            Strategy::SplitBrainAutoRecover => "split-brain-auto-recover",
            Strategy::SplitBrainDisconnect => "split-brain-disconnect",
            Strategy::UnrelatedData => "unrelated-data",
            Strategy::RequiresVersion91 => "requires-proto-91",
            Strategy::RetryConnect => "retry-connect",
        }
    }

    /// The same from the peer's point of view.
    #[must_use]
    pub fn mirrored(self) -> Self {
        match self {
            Strategy::SourceUseBitmap => Strategy::TargetUseBitmap,
            Strategy::SourceSetBitmap => Strategy::TargetSetBitmap,
            Strategy::SourceCopyOtherBitmap(node) => Strategy::TargetClearBitmap(node),
            Strategy::TargetUseBitmap => Strategy::SourceUseBitmap,
            Strategy::TargetSetBitmap => Strategy::SourceSetBitmap,
            Strategy::TargetClearBitmap(node) => Strategy::SourceCopyOtherBitmap(node),
            Strategy::SourceIfBothFailed => Strategy::TargetIfBothFailed,
            Strategy::TargetIfBothFailed => Strategy::SourceIfBothFailed,
            Strategy::NoSync
            | Strategy::SplitBrainAutoRecover
            | Strategy::SplitBrainDisconnect
            | Strategy::UnrelatedData
            | Strategy::RequiresVersion91
            | Strategy::RetryConnect => self,
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        match self {
            Strategy::SourceCopyOtherBitmap(node) | Strategy::TargetClearBitmap(node) => {
                write!(f, "({node})")
            }
            _ => Ok(()),
        }
    }
}

/// The rule that decided. Rules without a name of their own carry the one before, as in DRBD's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Own UUIDs have changed since they were sent.
    InitialHandshakeChanged,
    /// Both without data.
    JustCreatedBoth,
    /// I am without data.
    JustCreatedSelf,
    /// The peer is without data.
    JustCreatedPeer,
    /// As source I have missed the end of a resync.
    SyncSourceMissedFinish,
    /// The peer, as source, has missed the end of a resync.
    SyncTargetPeerMissedFinish,
    /// Both were connected before, in this run.
    Reconnected,
    /// One was Primary when it crashed.
    CrashedPrimary,
    /// One lost quorum as Primary.
    LostQuorum,
    /// Both were down.
    BothOff,
    /// The peer has bits since my generation.
    BitmapPeer,
    /// The peer has bits for another node since my generation.
    BitmapPeerOther,
    /// I have bits since the peer's generation.
    BitmapSelf,
    /// I have bits for another node since the peer's generation.
    BitmapSelfOther,
    /// 8.4: the peer, as source, has begun a resync that I have not heard of.
    SyncUuidPeer,
    /// 8.4: as source I have begun a resync that the peer has not heard of.
    SyncUuidSelf,
    /// My generation is in the peer's history.
    HistoryPeer,
    /// The peer's generation is in my history.
    HistorySelf,
    /// Both have bits since the same generation.
    BitmapBoth,
    /// Both histories have something in common.
    HistoryBoth,
    /// Zea only: both seem to be the older one, or both the newer.
    Contradiction,
}

impl Rule {
    /// The name as in DRBD's messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Rule::InitialHandshakeChanged => "initial-handshake-changed",
            Rule::JustCreatedBoth => "just-created-both",
            Rule::JustCreatedSelf => "just-created-self",
            Rule::JustCreatedPeer => "just-created-peer",
            Rule::SyncSourceMissedFinish => "sync-source-missed-finish",
            Rule::SyncTargetPeerMissedFinish => "sync-target-peer-missed-finish",
            Rule::Reconnected => "reconnected",
            Rule::CrashedPrimary => "crashed-primary",
            Rule::LostQuorum => "lost-quorum",
            Rule::BothOff => "both-off",
            Rule::BitmapPeer => "bitmap-peer",
            Rule::BitmapPeerOther => "bitmap-peer-other",
            Rule::BitmapSelf => "bitmap-self",
            Rule::BitmapSelfOther => "bitmap-self-other",
            Rule::SyncUuidPeer => "sync-uuid-peer",
            Rule::SyncUuidSelf => "sync-uuid-self",
            Rule::HistoryPeer => "history-peer",
            Rule::HistorySelf => "history-self",
            Rule::BitmapBoth => "bitmap-both",
            Rule::HistoryBoth => "history-both",
            Rule::Contradiction => "contradiction",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Compares the own UUIDs with the peer's.
///
/// Stricter than the kernel: the first rule that matches here and the first one that matches at the peer may
/// contradict each other (both hold the other's generation in a bitmap slot). The kernel then makes both target; here
/// that is [`Rule::Contradiction`], a split brain.
pub fn compare(cx: &Context<'_>, own: &UuidView, peer: &UuidView) -> (Strategy, Rule) {
    if let Some(sent) = cx.sent {
        let told = |flags: UuidFlags| flags.0 & !UuidFlags::INCONSISTENT.0;
        let unchanged = sent.current == own.current
            && sent.bitmap_towards(peer.node) == own.bitmap_towards(peer.node)
            && told(sent.flags) == told(own.flags);
        if !unchanged {
            return (Strategy::RetryConnect, Rule::InitialHandshakeChanged);
        }
    }
    let own = cx.sent.unwrap_or(own);
    let (strategy, rule) = table(cx, own, peer);
    let peers_cx = Context { resolve_conflicts: !cx.resolve_conflicts, ..*cx };
    let (peers_strategy, _) = table(&peers_cx, peer, own);
    if peers_strategy == strategy.mirrored() {
        (strategy, rule)
    } else {
        (Strategy::SplitBrainDisconnect, Rule::Contradiction)
    }
}

fn table(cx: &Context<'_>, own: &UuidView, peer: &UuidView) -> (Strategy, Rule) {
    if cx.agreed_version < FIRST_OF_9 {
        return super::table84::table(cx, own, peer);
    }
    let (me, you) = (generation(own.current), generation(peer.current));
    match (me == JUST_CREATED, you == JUST_CREATED) {
        (true, true) => (Strategy::NoSync, Rule::JustCreatedBoth),
        (true, false) => (Strategy::TargetSetBitmap, Rule::JustCreatedSelf),
        (false, true) => (Strategy::SourceSetBitmap, Rule::JustCreatedPeer),
        (false, false) if me == you => equal_current(cx, own, peer),
        (false, false) => different_current(own, peer),
    }
}

/// The current UUID without the Primary bit; 0, as old versions wrote it, counts as just created.
pub(super) fn generation(current: u64) -> u64 {
    match current & !PRIMARY {
        0 => JUST_CREATED,
        uuid => uuid,
    }
}

/// Rules 4 to 13. The first two are for handshakes, between nodes of which none is being synced (section 5.6).
fn equal_current(cx: &Context<'_>, own: &UuidView, peer: &UuidView) -> (Strategy, Rule) {
    let syncing = own.flags.contains(UuidFlags::SYNC_TARGET) || peer.flags.contains(UuidFlags::SYNC_TARGET);
    let missed = |source: &UuidView, target: &UuidView| {
        let bitmap = source.bitmap_towards(target.node);
        let bits_set = own.dirty_bits > 0 || peer.dirty_bits > 0;
        cx.sent.is_some()
            && !syncing
            && is_generation(bitmap)
            && !same(bitmap, own.current)
            && is_zero(target.bitmap_towards(source.node))
            && (bits_set || cx.agreed_version < 124)
    };
    if missed(own, peer) {
        return (Strategy::SourceUseBitmap, Rule::SyncSourceMissedFinish);
    }
    if missed(peer, own) {
        return (Strategy::TargetUseBitmap, Rule::SyncTargetPeerMissedFinish);
    }

    let both = |flag: UuidFlags| (own.flags.contains(flag), peer.flags.contains(flag));
    let reconnect = both(UuidFlags::RECONNECT);
    let crashed = both(UuidFlags::CRASHED_PRIMARY);
    if reconnect == (true, true) && cx.agreed_version >= 120 {
        return (Strategy::NoSync, Rule::Reconnected);
    }
    if cx.agreed_version >= 121 && cx.protocol_a_or_b {
        match crashed {
            (true, false) => return (Strategy::SourceUseBitmap, Rule::CrashedPrimary),
            (false, true) => return (Strategy::TargetUseBitmap, Rule::CrashedPrimary),
            _ => {}
        }
    }
    match both(UuidFlags::PRIMARY_LOST_QUORUM) {
        (false, false) => {}
        (true, false) => return (Strategy::SourceIfBothFailed, Rule::LostQuorum),
        (false, true) => return (Strategy::TargetIfBothFailed, Rule::LostQuorum),
        (true, true) if cx.resolve_conflicts => {
            return (Strategy::SourceIfBothFailed, Rule::LostQuorum);
        }
        (true, true) => return (Strategy::TargetIfBothFailed, Rule::LostQuorum),
    }
    let rule = if cx.agreed_version < 120 { Rule::Reconnected } else { Rule::LostQuorum };
    match (reconnect, crashed) {
        ((true, true), _) => (Strategy::NoSync, rule),
        ((true, false), (_, true)) => (Strategy::SourceIfBothFailed, rule),
        ((false, true), (true, _)) => (Strategy::TargetIfBothFailed, rule),
        ((true, false) | (false, true), _) => (Strategy::NoSync, rule),
        ((false, false), crashed) => (both_off(cx, crashed), Rule::BothOff),
    }
}

/// Rule 13.
fn both_off(cx: &Context<'_>, crashed: (bool, bool)) -> Strategy {
    match crashed {
        (true, true) if cx.resolve_conflicts => Strategy::TargetIfBothFailed,
        (true, _) => Strategy::SourceIfBothFailed,
        (false, true) => Strategy::TargetIfBothFailed,
        (false, false) => Strategy::NoSync,
    }
}

/// Rules 14 to 24.
fn different_current(own: &UuidView, peer: &UuidView) -> (Strategy, Rule) {
    let mine = own.bitmap_towards(peer.node);
    let theirs = peer.bitmap_towards(own.node);
    if same(own.current, theirs) {
        return (Strategy::TargetUseBitmap, Rule::BitmapPeer);
    }
    if let Some(node) = other_slot(peer, own.node, own.current) {
        return (Strategy::TargetClearBitmap(node), Rule::BitmapPeerOther);
    }
    if same(mine, peer.current) {
        return (Strategy::SourceUseBitmap, Rule::BitmapSelf);
    }
    if let Some(node) = other_slot(own, peer.node, peer.current) {
        return (Strategy::SourceCopyOtherBitmap(node), Rule::BitmapSelfOther);
    }
    let in_history = |view: &UuidView, uuid| view.history.iter().any(|entry| same(*entry, uuid));
    match (in_history(peer, own.current), in_history(own, peer.current)) {
        (true, false) => return (Strategy::TargetSetBitmap, Rule::HistoryPeer),
        (false, true) => return (Strategy::SourceSetBitmap, Rule::HistorySelf),
        _ => {}
    }
    if same(mine, theirs) {
        return (Strategy::SplitBrainAutoRecover, Rule::BitmapBoth);
    }
    if own.history.iter().any(|uuid| in_history(peer, *uuid)) {
        return (Strategy::SplitBrainDisconnect, Rule::HistoryBoth);
    }
    (Strategy::UnrelatedData, Rule::HistoryBoth)
}

/// The lowest third node for which `view` has bits since the generation `uuid`.
pub(super) fn other_slot(view: &UuidView, other: NodeId, uuid: u64) -> Option<NodeId> {
    let third = (0..NODES as u8).map(NodeId).filter(|node| *node != view.node && *node != other);
    third.into_iter().find(|node| same(view.bitmap_towards(*node), uuid))
}
