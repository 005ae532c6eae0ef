//! Every rule of 8.4 with an example: the snapshot `rules84`. And how UUIDs change in a resync with a sync UUID.

use zea_wire::flags::UuidFlags;
use zea_wire::ids::NodeId;
use zea_wire::state::DiskState;

use super::table::{Node, Table};
use super::{A, B, C, D, context, view};
use crate::uuid::{Context, JUST_CREATED, SYNC_UUID_OFFSET, Strategy, Uuids, compare};

fn n(current: u64) -> Node {
    Node::new(0, current)
}

fn p(current: u64) -> Node {
    Node::new(1, current)
}

const CRASHED: UuidFlags = UuidFlags::CRASHED_PRIMARY;
const LOST: UuidFlags = UuidFlags::ZEA_LOST_WRITES;
const SYNC: u64 = A + SYNC_UUID_OFFSET;

fn equal(t: &mut Table, cx: Context<'_>) {
    t.heading("5.2 rules 10 to 41");
    let fresh = |node: Node| node.disk(DiskState::Inconsistent).bits(9);
    t.row("10", "nobody has data", cx, &fresh(n(4)), &fresh(p(0)));
    t.row("20", "only the peer has data", cx, &fresh(n(4)), &p(A));
    t.row("30", "only I have data", cx, &n(A), &fresh(p(4)));
    let source = n(B).bitmap(1, SYNC).history(&[A]).bits(3);
    t.row("34", "I missed the end of my resync", cx, &source, &p(B).history(&[SYNC, A]));
    t.row("36", "the same without the history", cx, &source, &p(B));
    t.row(
        "35",
        "the peer missed the end of its resync",
        cx,
        &n(B).history(&[SYNC, A]),
        &p(B).bitmap(0, SYNC).history(&[A]),
    );
    t.row("37", "the same without the history", cx, &n(B), &p(B).bitmap(0, SYNC));
    t.row("40", "nothing happened", cx, &n(A), &p(A));
    t.row("40", "bits are left", cx, &n(A).bits(2), &p(A));
    t.row("40", "I crashed", cx, &n(A).flag(CRASHED), &p(A));
    t.row("40", "I crashed and lost writes", cx, &n(A).flag(CRASHED).flag(LOST), &p(A));
    t.row("40", "the peer crashed", cx, &n(A), &p(A).flag(CRASHED));
    t.row("40", "both crashed", cx, &n(A).flag(CRASHED), &p(A).flag(CRASHED));
    let other = Context { resolve_conflicts: false, ..cx };
    t.row("40", "both crashed, the other side", other, &n(A).flag(CRASHED), &p(A).flag(CRASHED));
    t.row("41", "I crashed, the peer is Primary now", cx, &n(A).flag(CRASHED), &p(A).primary());
    t.row("41", "the peer crashed, I am Primary now", cx, &n(A).primary(), &p(A).flag(CRASHED));
}

fn different(t: &mut Table, cx: Context<'_>) {
    t.heading("5.2 rules 50 to 100");
    t.row("50", "the peer has bits since my generation", cx, &n(A), &p(B).bitmap(0, A));
    t.row("51", "I have not heard of its resync", cx, &n(A), &p(B).bitmap(0, SYNC).history(&[A]));
    t.row("60", "I am in its history", cx, &n(A), &p(C).bitmap(0, B).history(&[D, A]));
    t.row("70", "I have bits since its generation", cx, &n(B).bitmap(1, A), &p(A));
    t.row("71", "it has not heard of my resync", cx, &n(B).bitmap(1, SYNC).history(&[A]), &p(A));
    t.row("80", "it is in my history", cx, &n(C).bitmap(1, B).history(&[D, A]), &p(A));
    t.row("90", "both wrote", cx, &n(B).bitmap(1, A), &p(C).bitmap(0, A));
    t.row("100", "both wrote, long ago", cx, &n(B).history(&[A]), &p(C).history(&[D, A]));
    t.row("-", "only three entries back", cx, &n(B).history(&[C, D, A]), &p(A));
    t.row("-", "nothing in common", cx, &n(A), &p(B));
    t.row("-", "each is the other's past", cx, &n(A).bitmap(1, B), &p(B).bitmap(0, A));
    t.heading("5.2 one disk is Inconsistent");
    let bad = |node: Node| node.disk(DiskState::Inconsistent).bits(1);
    t.row("-", "I am, at the same generation", cx, &bad(n(A)), &p(A));
    t.row("-", "the peer is, at the same generation", cx, &n(A), &bad(p(A)));
    t.row("-", "the newer one is", cx, &bad(n(B).bitmap(1, A)), &p(A));
    t.row("-", "one of a split brain is", cx, &bad(n(B).bitmap(1, A)), &p(C).bitmap(0, A));
    t.row("-", "one of an old split brain is", cx, &n(B).history(&[A]), &bad(p(C).history(&[A])));
    t.row("-", "unrelated data stays so", cx, &bad(n(A)), &p(B));
    t.heading("discard-my-data");
    let discard = |node: Node| node.flag(UuidFlags::DISCARD_MY_DATA);
    t.row("-", "after a split brain", cx, &discard(n(B).bitmap(1, A)), &p(C).bitmap(0, A));
    t.row("-", "by the newer one, the other is Primary", cx, &discard(n(B).bitmap(1, A)), &p(A).primary());
}

#[test]
fn uuid_84_rules() {
    let text = "Reference handshake-and-states.md 5.2: agreed version below 110. Node 0 is \"own\", node 1 the peer; A to D are\n\
                generations, 10000000000a0 is the sync UUID of a resync from A.\n"
        .to_string();
    let mut table = Table { text };
    equal(&mut table, context(101));
    different(&mut table, context(101));
    insta::assert_snapshot!("rules84", table.text);
}

/// Where 8.4 asks for 91, so does this node.
#[test]
fn uuid_84_below_91_a_resync_that_one_node_has_not_seen_is_refused() {
    let mut text = [String::new(), String::new()];
    for (text, version) in text.iter_mut().zip([90, 91]) {
        let mut table = Table { text: String::new() };
        equal(&mut table, context(version));
        different(&mut table, context(version));
        *text = table.text.replace(&format!("[{version}]"), "");
    }
    let [old, new] = text;
    let rows = |text: &str| text.split("\n\n").map(str::to_owned).collect::<Vec<_>>();
    let (old, new) = (rows(&old), rows(&new));
    assert_eq!(old.len(), new.len());
    for (old, new) in old.iter().zip(&new) {
        let missed = ["34", "35", "36", "37", "51", "71"].iter().any(|rule| new.trim_start().starts_with(rule));
        assert_eq!(old.contains("requires-proto-91"), missed, "{old}");
        assert!(missed || old == new, "{old} instead of {new}");
    }
}

const SOURCE: NodeId = NodeId(0);
const TARGET: NodeId = NodeId(1);

/// What a node tells the other.
fn told(node: NodeId, other: NodeId, uuids: &Uuids) -> crate::uuid::UuidView {
    let mut view = view(node.0, uuids.current);
    view.bitmap[other.index()] = uuids.bitmap[other.index()];
    view.history[..2].copy_from_slice(&uuids.history[..2]);
    view
}

#[test]
fn uuid_84_a_resync_ends_with_equal_uuids_wherever_it_was_interrupted() {
    let before = (Uuids { current: A, ..Uuids::default() }, Uuids { current: B | 1, ..Uuids::default() });
    for lost in 0..4 {
        let (mut target, mut source) = before.clone();
        source.bitmap[1] = A;
        // P_SYNC_UUID is lost so many times.
        let mut sync = 0;
        for _ in 0..=lost {
            sync = source.sync_begins_at_source(TARGET, target.current, D);
            let (own, peer) = (told(SOURCE, TARGET, &source), told(TARGET, SOURCE, &target));
            assert_eq!(compare(&context(101), &own, &peer).0, Strategy::SourceUseBitmap, "lost {lost}");
        }
        assert_eq!(sync, SYNC);
        target.sync_begins_at_target(SOURCE, sync, false);
        let (own, peer) = (told(SOURCE, TARGET, &source), told(TARGET, SOURCE, &target));
        assert_eq!(compare(&context(101), &own, &peer).0, Strategy::SourceUseBitmap);
        target.sync_ends_at_target(&own, TARGET, false);
        let peer = told(TARGET, SOURCE, &target);
        assert_eq!(
            compare(&context(101), &own, &peer).0,
            Strategy::SourceUseBitmap,
            "the source has not heard of the end"
        );
        source.retire_bitmap_uuid(TARGET);
        assert_eq!((source.current & !1, source.history[..2].to_vec()), (target.current, target.history[..2].to_vec()));
        assert_eq!(target.history[..3], [SYNC, A, 0]);
    }
}

#[test]
fn uuid_84_a_sync_uuid_is_random_where_nothing_was_before() {
    for old in [0, JUST_CREATED] {
        let mut source = Uuids { current: B | 1, ..Uuids::default() };
        source.bitmap[1] = old;
        assert_eq!(source.sync_begins_at_source(TARGET, JUST_CREATED, D), D);
        assert_eq!((source.bitmap[1], source.history[0]), (D, 0));
    }
}
