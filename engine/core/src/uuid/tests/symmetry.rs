//! Both nodes decide alone; what they decide must fit together, whatever they have sent.

use proptest::prelude::*;
use zea_wire::flags::UuidFlags;
use zea_wire::ids::{NodeId, NodeMask};
use zea_wire::state::{DiskState, Role};

use super::{A, B, C, D, context};
use crate::uuid::{
    Context, Decision, JUST_CREATED, NO_INFORMATION, NODES, Outcome, Reason, Side, Strategy as Sync, UuidView, compare,
    decide, is_generation, keep_bits,
};

fn uuid() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => prop::sample::select(vec![A, B, C, D, A | 1, B | 1]),
        2 => Just(0),
        1 => Just(JUST_CREATED),
    ]
}

fn flags() -> impl Strategy<Value = UuidFlags> {
    let flag = prop::sample::select(vec![
        UuidFlags::DISCARD_MY_DATA,
        UuidFlags::CRASHED_PRIMARY,
        UuidFlags::STABLE,
        UuidFlags::RECONNECT,
        UuidFlags::PRIMARY_LOST_QUORUM,
        UuidFlags::SYNC_TARGET,
        UuidFlags::ZEA_LOST_WRITES,
        UuidFlags::ZEA_WAS_PRIMARY,
    ]);
    let flags = prop::collection::vec(flag, 0..4);
    flags.prop_map(|flags| UuidFlags(flags.iter().fold(UuidFlags::STABLE.0, |all, f| all ^ f.0)))
}

#[derive(Debug, Clone)]
struct Node {
    view: UuidView,
    disk: DiskState,
    role: Role,
}

impl Node {
    fn side(&self) -> Side<'_> {
        Side { view: &self.view, disk: self.disk, role: self.role }
    }
}

fn node(id: u8) -> impl Strategy<Value = Node> {
    let bitmap_uuid = prop_oneof![6 => uuid(), 1 => Just(NO_INFORMATION)];
    let disk = prop::sample::select(vec![
        DiskState::Inconsistent,
        DiskState::Outdated,
        DiskState::Consistent,
        DiskState::UpToDate,
        DiskState::UpToDate,
    ]);
    let role = prop::sample::select(vec![Role::Primary, Role::Secondary, Role::Secondary]);
    (
        uuid(),
        prop::array::uniform4(bitmap_uuid),
        prop::array::uniform2(uuid()),
        flags(),
        prop_oneof![Just(0u64), 1..4u64],
        disk,
        role,
        prop_oneof![2 => Just(NodeMask::EMPTY), 1 => Just(NodeId(2).mask()), 1 => Just(NodeId(3).mask())],
    )
        .prop_map(move |(current, some_bitmap, some_history, flags, dirty_bits, disk, role, primaries)| {
            let (mut bitmap, mut history) = ([0; NODES], [0; NODES]);
            bitmap[..4].copy_from_slice(&some_bitmap);
            history[..2].copy_from_slice(&some_history);
            let node = NodeId(id);
            let view = UuidView { node, current, bitmap, history, flags, dirty_bits, primaries };
            Node { view, disk, role }
        })
}

fn pair() -> impl Strategy<Value = (Node, Node)> {
    // Equal current UUIDs are where most rules are.
    (node(0), node(1), any::<bool>()).prop_map(|(a, mut b, equal)| {
        if equal {
            b.view.current = a.view.current;
        }
        (a, b)
    })
}

fn cx() -> impl Strategy<Value = Context<'static>> {
    let version = prop_oneof![Just(101), 118..=124u32];
    (version, any::<bool>(), any::<bool>()).prop_map(|(version, a_or_b, resolve)| Context {
        protocol_a_or_b: a_or_b,
        resolve_conflicts: resolve,
        ..context(version)
    })
}

/// Same generation, good data, nobody Primary or asked to discard, nobody marked by a crash.
fn of_a_generation(a: &mut Node, b: &mut Node) {
    b.view.current = a.view.current;
    for node in [a, b] {
        node.role = Role::Secondary;
        node.disk = node.disk.max(DiskState::Consistent);
        node.view.primaries = NodeMask::EMPTY;
        let marks = UuidFlags::ZEA_LOST_WRITES.0 | UuidFlags::ZEA_WAS_PRIMARY.0;
        let ignored = UuidFlags::DISCARD_MY_DATA.0 | UuidFlags::SYNC_TARGET.0 | marks;
        node.view.flags = UuidFlags(node.view.flags.0 & !ignored | UuidFlags::STABLE.0);
    }
}

fn mirrored(cx: Context<'_>) -> Context<'_> {
    Context { resolve_conflicts: !cx.resolve_conflicts, ..cx }
}

/// Both decisions, each by its own node, while connecting or not.
fn both(cx: &Context<'_>, a: &Node, b: &Node, connecting: bool) -> (Decision, Decision) {
    let sent = |node| connecting.then_some(node);
    let at_a = Context { sent: sent(&a.view), ..*cx };
    let at_b = Context { sent: sent(&b.view), ..mirrored(*cx) };
    (decide(&at_a, &a.side(), &b.side()), decide(&at_b, &b.side(), &a.side()))
}

fn fit_together(a: &Decision, b: &Decision) {
    assert_eq!(a.outcome, b.outcome.mirrored());
    assert_eq!(a.strategy, b.strategy.mirrored());
    assert_eq!(a.rule == crate::uuid::Rule::Contradiction, b.rule == crate::uuid::Rule::Contradiction);
    assert_eq!((a.postponed, a.unverified, a.kept_bits), (b.postponed, b.unverified, b.kept_bits));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(768))]

    #[test]
    fn uuid_comparison_is_mirrored((a, b) in pair(), cx in cx()) {
        let (at_a, _) = compare(&cx, &a.view, &b.view);
        let (at_b, _) = compare(&mirrored(cx), &b.view, &a.view);
        prop_assert_eq!(at_a, at_b.mirrored());
    }

    #[test]
    fn uuid_decision_is_mirrored((a, b) in pair(), cx in cx(), connecting: bool) {
        let (at_a, at_b) = both(&cx, &a, &b, connecting);
        fit_together(&at_a, &at_b);
        // The decision never makes good data bad.
        let (source, target) = match at_a.outcome {
            Outcome::Source => (&a, &b),
            Outcome::Target => (&b, &a),
            _ => return Ok(()),
        };
        prop_assert!(
            source.disk > DiskState::Inconsistent
                || target.disk == DiskState::Inconsistent
                || source.view.flags.contains(UuidFlags::SYNC_TARGET)
        );
    }

    #[test]
    fn uuid_bits_are_never_ignored((a, b) in pair(), cx in cx(), connecting: bool, both_zea: bool) {
        let (at_a, at_b) = both(&cx, &a, &b, connecting);
        let final_a = keep_bits(at_a, &cx, &a.side(), &b.side(), both_zea);
        let final_b = keep_bits(at_b, &cx, &b.side(), &a.side(), both_zea);
        fit_together(&final_a, &final_b);

        let has_bits = |node: &Node| node.disk == DiskState::UpToDate && node.view.dirty_bits > 0;
        let common_primary = !(a.view.primaries & b.view.primaries).is_empty();
        if final_a.strategy == Sync::NoSync && (has_bits(&a) || has_bits(&b)) {
            prop_assert_eq!(both_zea, final_a.kept_bits);
            let settled_later = if both_zea { common_primary } else { final_a.unverified };
            prop_assert!(settled_later);
            return Ok(());
        }
        if !final_a.kept_bits {
            prop_assert_eq!((final_a.strategy, final_a.outcome), (at_a.strategy, at_a.outcome));
            return Ok(());
        }
        prop_assert!(both_zea);
        let (source, target) = match final_a.outcome {
            Outcome::Source => (&a, &b),
            Outcome::Target => (&b, &a),
            Outcome::RetryConnect => return Ok(()),
            Outcome::Established => {
                prop_assert!(common_primary);
                return Ok(());
            }
            other => {
                prop_assert!(matches!(other, Outcome::Disconnect(_)));
                return Ok(());
            }
        };
        // Consistent is UpToDate that has not been confirmed. A copy that lost writes in a crash follows one that did not, or with
        // protocols A and B that of the last Primary.
        let lost = |node: &Node| node.view.flags.contains(UuidFlags::ZEA_LOST_WRITES);
        let was_primary = |node: &Node| node.view.flags.contains(UuidFlags::ZEA_WAS_PRIMARY);
        let followed = (lost(target) && !lost(source)) || (cx.protocol_a_or_b && was_primary(source) && !was_primary(target));
        let survived = source.disk == DiskState::Outdated && followed;
        prop_assert!(source.disk >= target.disk || source.disk == DiskState::Consistent || survived);
        prop_assert!(target.role != Role::Primary || target.disk < DiskState::Consistent);
    }

    #[test]
    fn uuid_survivors_are_not_overwritten_by_the_crashed(
        (mut a, mut b) in pair(), cx in cx(), connecting: bool,
    ) {
        // Node 0 died with writes in flight, node 1 did not.
        of_a_generation(&mut a, &mut b);
        a.view.flags.set(UuidFlags::ZEA_LOST_WRITES, true);
        let (at_a, _) = both(&cx, &a, &b, connecting);
        let decided = keep_bits(at_a, &cx, &a.side(), &b.side(), true);
        prop_assert!(decided.outcome != Outcome::Source, "{:?}", decided);
    }

    #[test]
    fn uuid_the_last_primarys_copy_is_not_overwritten_where_it_acknowledged_early(
        (mut a, mut b) in pair(), cx in cx(), connecting: bool, b_lost_writes: bool,
    ) {
        // Node 0 was Primary when it died, or was resynced from it; with protocol A or B.
        of_a_generation(&mut a, &mut b);
        a.view.flags.set(UuidFlags::ZEA_LOST_WRITES, true);
        a.view.flags.set(UuidFlags::ZEA_WAS_PRIMARY, true);
        b.view.flags.set(UuidFlags::ZEA_LOST_WRITES, b_lost_writes);
        let cx = Context { protocol_a_or_b: true, ..cx };
        let (at_a, _) = both(&cx, &a, &b, connecting);
        let decided = keep_bits(at_a, &cx, &a.side(), &b.side(), true);
        prop_assert!(decided.outcome != Outcome::Target, "{:?}", decided);
    }

    #[test]
    fn uuid_an_interrupted_target_is_no_side_of_a_split_brain_for_one_that_forgets((mut a, mut b) in pair(), cx in cx(), connecting: bool) {
        (a.disk, a.role) = (DiskState::Inconsistent, Role::Secondary);
        b.view.history = std::array::from_fn(|n| if is_generation(b.view.history[n]) { b.view.history[n] } else { A + 32 * n as u64 + 2 });
        b.disk = if b.disk == DiskState::DUnknown { DiskState::UpToDate } else { b.disk.max(DiskState::Outdated) };
        let (at_a, at_b) = both(&cx, &a, &b, connecting);
        let decided = keep_bits(at_a, &cx, &a.side(), &b.side(), true);
        prop_assert!(decided.outcome != Outcome::Disconnect(Reason::SplitBrain), "{:?}", decided);
        prop_assert_eq!(decided.outcome.mirrored(), keep_bits(at_b, &cx, &b.side(), &a.side(), true).outcome);
    }

    #[test]
    fn uuid_a_copy_without_changes_is_no_side_of_a_split_brain_for_one_that_forgets((mut a, mut b) in pair(), cx in cx(), connecting: bool) {
        // Node 0 had all of what node 1 had, at a generation that node 1 may have forgotten.
        (a.disk, b.disk, a.role, a.view.primaries) = (DiskState::UpToDate, DiskState::UpToDate, Role::Secondary, NodeMask::EMPTY);
        (a.view.bitmap[b.view.node.index()], b.view.bitmap[a.view.node.index()]) = (0, A);
        b.view.history = std::array::from_fn(|n| if is_generation(b.view.history[n]) { b.view.history[n] } else { A + 32 * n as u64 + 2 });
        let (at_a, at_b) = both(&cx, &a, &b, connecting);
        let decided = keep_bits(at_a, &cx, &a.side(), &b.side(), true);
        prop_assert!(decided.outcome != Outcome::Disconnect(Reason::SplitBrain), "{:?}", decided);
        prop_assert_eq!(decided.outcome.mirrored(), keep_bits(at_b, &cx, &b.side(), &a.side(), true).outcome);
    }

    #[test]
    fn uuid_any_input_is_decided(
        a_current: u64, b_current: u64, a_bitmap: [u64; NODES], b_history: [u64; NODES],
        a_flags: u64, b_flags: u64, a_disk in 0..10u8, b_disk in 0..10u8,
    ) {
        let blank = super::view(0, a_current);
        let a = UuidView { bitmap: a_bitmap, flags: UuidFlags(a_flags), ..blank };
        let blank = super::view(31, b_current);
        let b = UuidView { history: b_history, flags: UuidFlags(b_flags), ..blank };
        let disk = |number| DiskState::from_u8(number).expect("a disk state");
        let a = Node { view: a, disk: disk(a_disk), role: Role::Unknown };
        let b = Node { view: b, disk: disk(b_disk), role: Role::Primary };
        let (at_a, at_b) = both(&context(124), &a, &b, true);
        fit_together(&at_a, &at_b);
    }
}
