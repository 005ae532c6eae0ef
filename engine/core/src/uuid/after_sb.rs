//! The after-split-brain policies (reference handshake-and-states.md section 5.5).
//!
//! Stricter than the kernel: a Primary never loses its changes, and both disks must be whole.

use zea_wire::state::DiskState;

use super::PRIMARY;
use super::compare::Context;
use super::decide::Side;
use crate::config::{AfterSb0Pri, AfterSb1Pri};

/// The policies of a connection, the same on both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AfterSplitBrain {
    /// While both are Secondary.
    pub no_primary: AfterSb0Pri,
    /// While one is Primary.
    pub one_primary: AfterSb1Pri,
}

/// Whether the own changes are the ones that are kept, and the policy that says so. `None`: nobody's.
pub(super) fn own_is_kept(cx: &Context<'_>, own: &Side<'_>, peer: &Side<'_>) -> Option<(bool, &'static str)> {
    let AfterSplitBrain { no_primary, one_primary } = cx.after_split_brain;
    if [own, peer].iter().any(|side| side.disk < DiskState::Consistent || side.disk == DiskState::DUnknown) {
        return None;
    }
    match (own.is_primary(), peer.is_primary()) {
        (true, true) => None,
        (false, false) => Some((without_primary(cx, no_primary, own, peer)?, no_primary.as_str())),
        (own_is_primary, _) => match one_primary {
            AfterSb1Pri::Disconnect => None,
            AfterSb1Pri::DiscardSecondary => Some((own_is_primary, one_primary.as_str())),
            AfterSb1Pri::Consensus => {
                let kept = without_primary(cx, no_primary, own, peer)?;
                (kept == own_is_primary).then_some((kept, one_primary.as_str()))
            }
        },
    }
}

fn without_primary(cx: &Context<'_>, policy: AfterSb0Pri, own: &Side<'_>, peer: &Side<'_>) -> Option<bool> {
    // Who was Primary already when the two parted.
    let older = |side: &Side<'_>, other: &Side<'_>| side.view.bitmap_towards(other.view.node) & PRIMARY != 0;
    let (own_older, peer_older) = (older(own, peer), older(peer, own));
    let one_older = own_older != peer_older;
    let (own_bits, peer_bits) = (own.view.dirty_bits, peer.view.dirty_bits);
    let tie = !cx.resolve_conflicts;
    let by_zero = match (own_bits, peer_bits) {
        (0, 0) => Some(tie),
        (_, 0) => Some(true),
        (0, _) => Some(false),
        _ => None,
    };
    match policy {
        AfterSb0Pri::Disconnect => None,
        AfterSb0Pri::DiscardLocal => Some(false),
        AfterSb0Pri::DiscardRemote => Some(true),
        AfterSb0Pri::DiscardYoungerPrimary if one_older => Some(own_older),
        AfterSb0Pri::DiscardOlderPrimary if one_older => Some(peer_older),
        AfterSb0Pri::DiscardZeroChanges => by_zero,
        AfterSb0Pri::DiscardYoungerPrimary | AfterSb0Pri::DiscardOlderPrimary | AfterSb0Pri::DiscardLeastChanges => {
            let by_number = if own_bits == peer_bits { tie } else { own_bits > peer_bits };
            Some(by_zero.unwrap_or(by_number))
        }
    }
}
