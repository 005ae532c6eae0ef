//! Every rule with an example, as one readable table: the snapshot `rules`.

use zea_wire::flags::UuidFlags;
use zea_wire::ids::NodeId;
use zea_wire::state::DiskState;

use super::table::{Node, Table};
use super::{A, B, C, D, context, view};
use crate::config::{AfterSb0Pri, AfterSb1Pri};
use crate::uuid::{AfterSplitBrain, Context, NO_INFORMATION, UuidView};

fn n(current: u64) -> Node {
    Node::new(0, current)
}

fn p(current: u64) -> Node {
    Node::new(1, current)
}

const CRASHED: UuidFlags = UuidFlags::CRASHED_PRIMARY;
const RECONNECT: UuidFlags = UuidFlags::RECONNECT;
const QUORUM: UuidFlags = UuidFlags::PRIMARY_LOST_QUORUM;
const DISCARD: UuidFlags = UuidFlags::DISCARD_MY_DATA;
const TARGET: UuidFlags = UuidFlags::SYNC_TARGET;
const LOST: UuidFlags = UuidFlags::ZEA_LOST_WRITES;
const WAS_PRIMARY: UuidFlags = UuidFlags::ZEA_WAS_PRIMARY;

fn just_created(t: &mut Table, cx: Context<'_>) {
    t.heading("5.3 rules 0 to 3");
    let sent = view(0, A);
    let changed = Context { sent: Some(&sent), ..cx };
    t.row("0", "own UUIDs have changed since they were sent", changed, &n(B), &p(A));
    let fresh = |node: Node| node.disk(DiskState::Inconsistent).bits(9);
    t.row("1", "nobody has data", cx, &fresh(n(4)), &fresh(p(4)));
    t.row("1", "0 is as good as 4", cx, &fresh(n(0)), &fresh(p(4)));
    t.row("2", "only the peer has data", cx, &fresh(n(4)), &p(A));
    t.row("3", "only I have data", cx, &n(A), &fresh(p(4)));
}

fn equal(t: &mut Table, cx: Context<'_>) {
    let old = context(119);
    t.heading("5.3 rules 4 to 13: equal current UUIDs");
    let mine = n(B).bitmap(1, A);
    t.row("4", "the source missed the end of a resync", cx, &mine.clone().bits(3), &p(B));
    t.row("4", "the same without bits: nothing", cx, &mine, &p(B));
    t.row("4", "the same without bits, below 124", context(123), &mine, &p(B));
    let theirs = p(B).bitmap(0, A);
    t.row("5", "the peer, as source, missed it", cx, &n(B), &theirs.clone().bits(3));
    t.row("5", "the peer says nothing of my bitmap UUID", cx, &n(B).bitmap(1, NO_INFORMATION), &theirs.bits(3));
    t.row("6", "both were connected in this run", cx, &n(A).flag(RECONNECT), &p(A).flag(RECONNECT));
    let verified = n(A).flag(RECONNECT).bits(2);
    t.row("6", "bits that an online verify has set on both", cx, &verified, &p(A).flag(RECONNECT).bits(2));
    t.row("6", "the same, the peer is Primary", cx, &verified, &p(A).flag(RECONNECT).bits(2).primary());
    t.row("6", "only the peer has bits", cx, &n(A).flag(RECONNECT), &p(A).flag(RECONNECT).bits(2));
    t.row(
        "6",
        "the node with bits is only Outdated",
        cx,
        &n(A).flag(RECONNECT).bits(2).disk(DiskState::Outdated),
        &p(A).flag(RECONNECT),
    );
    t.row("6", "bits, and two that serve data", cx, &verified.clone().primary(), &p(A).flag(RECONNECT).primary());
    let a_or_b = Context { protocol_a_or_b: true, ..cx };
    t.row("7", "only I crashed, protocol A or B", a_or_b, &n(A).flag(CRASHED).bits(4), &p(A).flag(RECONNECT));
    t.row("7", "only the peer crashed, protocol A or B", a_or_b, &n(A).flag(RECONNECT), &p(A).flag(CRASHED).bits(4));
    t.row("8", "only the peer lost quorum", cx, &n(A), &p(A).flag(QUORUM));
    t.row("8", "only I lost quorum", cx, &n(A).flag(QUORUM), &p(A));
    t.row("8", "both lost quorum, RESOLVE_CONFLICTS is mine", cx, &n(A).flag(QUORUM), &p(A).flag(QUORUM));
    let other = Context { resolve_conflicts: false, ..cx };
    t.row("8", "both lost quorum, it is the peer's", other, &n(A).flag(QUORUM), &p(A).flag(QUORUM));
    t.row(
        "8",
        "lost quorum comes before reconnected below 120",
        old,
        &n(A).flag(RECONNECT).flag(QUORUM),
        &p(A).flag(RECONNECT),
    );
    t.row("9", "both were connected in this run, below 120", old, &n(A).flag(RECONNECT), &p(A).flag(RECONNECT));
    t.row("10", "the peer crashed, I survived", cx, &n(A).flag(RECONNECT), &p(A).flag(CRASHED).bits(4));
    t.row("10", "the same below 120", old, &n(A).flag(RECONNECT), &p(A).flag(CRASHED).bits(4));
    t.row("11", "I crashed, the peer survived", cx, &n(A).flag(CRASHED).bits(4), &p(A).flag(RECONNECT));
    t.row("12", "one was restarted", cx, &n(A), &p(A).flag(RECONNECT));
    t.row("12", "one was restarted, the other has bits", cx, &n(A), &p(A).flag(RECONNECT).bits(7));
    t.row("13", "both were down", cx, &n(A | 1), &p(A));
    t.row("13", "both were down, only I crashed", cx, &n(A).flag(CRASHED), &p(A));
    t.row("13", "both were down, only the peer crashed", cx, &n(A), &p(A).flag(CRASHED));
    t.row("13", "both crashed, RESOLVE_CONFLICTS is mine", cx, &n(A).flag(CRASHED), &p(A).flag(CRASHED));
    t.row("13", "both crashed, it is the peer's", other, &n(A).flag(CRASHED), &p(A).flag(CRASHED));
}

fn different(t: &mut Table, cx: Context<'_>) {
    t.heading("5.3 rules 14 to 24: different current UUIDs");
    t.row("14", "the peer has bits since my generation", cx, &n(A), &p(B).bitmap(0, A).bits(5));
    t.row("15", "it has bits for node 2 since my generation", cx, &n(A), &p(B).bitmap(2, A));
    t.row("15", "the same, and I have bits", cx, &n(A).bits(6), &p(B).bitmap(2, A));
    t.row("17", "I have bits since the peer's generation", cx, &n(B).bitmap(1, A).bits(5), &p(A));
    t.row("18", "I have bits for node 2 since its generation", cx, &n(B).bitmap(2, A), &p(A));
    t.row("18", "the same, and I have bits for the peer", cx, &n(B).bitmap(2, A).bits(6), &p(A));
    t.row("20", "my generation is in the peer's history", cx, &n(A), &p(C).history(&[B, A]));
    t.row("21", "the peer's generation is in my history", cx, &n(C).history(&[B, A]), &p(A));
    t.row("22", "both have bits since the same generation", cx, &n(B).bitmap(1, A), &p(C).bitmap(0, A));
    t.row("23", "a common past", cx, &n(B).history(&[A]), &p(C).history(&[D, A]));
    t.row("23", "each is in the other's history", cx, &n(B).history(&[C]), &p(C).history(&[B, C]));
    t.row("24", "nothing in common", cx, &n(A), &p(B));
    t.row("24", "zeros are not common", cx, &n(A).bitmap(1, 0), &p(B).bitmap(0, 0));
    t.row(
        "-",
        "ZEA: each has bits since the other's generation (kernel: two targets)",
        cx,
        &n(A).bitmap(1, B),
        &p(B).bitmap(0, A),
    );
}

fn inconsistent(node: Node) -> Node {
    node.disk(DiskState::Inconsistent).bits(8)
}

fn disk_states(t: &mut Table, cx: Context<'_>) {
    t.heading("5.4 step 2: disk states");
    t.row("2", "same generation, I am Inconsistent", cx, &inconsistent(n(A)), &p(A));
    t.row("2", "same generation, the peer is Inconsistent", cx, &n(A), &inconsistent(p(A)));
    let outdated = p(A).disk(DiskState::Outdated);
    t.row(
        "2",
        "crashed, but better than the survivor",
        cx,
        &n(A).flag(CRASHED).bits(1),
        &outdated.clone().flag(RECONNECT),
    );
    t.row(
        "2",
        "the same at 118: only Inconsistent counts",
        context(118),
        &n(A).flag(CRASHED).bits(1),
        &outdated.flag(RECONNECT),
    );
    let syncing = inconsistent(p(A)).flag(TARGET);
    t.row(
        "2",
        "the target syncs from node 2, I know where it was",
        cx,
        &n(A).bitmap(3, B),
        &syncing.clone().bitmap(0, B),
    );
    t.row("2", "the target syncs from node 2, I do not", cx, &n(A), &syncing.bitmap(0, B));
}

fn split_brain(t: &mut Table, cx: Context<'_>) {
    t.heading("5.4 steps 4 to 8: split brain");
    let (own, peer) = (n(B).bitmap(1, A).bits(2), p(C).bitmap(0, A).bits(3));
    let unstable = own.clone().flag(UuidFlags::STABLE);
    t.row("4", "one side is not stable", cx, &unstable, &peer);
    t.row("4", "one side is not stable, no bits", cx, &unstable.bits(0), &peer.clone().bits(0));
    t.row_at(
        "5.6",
        "on an established connection, by disk states",
        cx,
        &own.clone().disk(DiskState::Consistent),
        &peer,
    );
    policies(t, cx, &own, &peer);
    t.row("7", "the peer gives up its data", cx, &own, &peer.clone().flag(DISCARD));
    t.row("7", "I give up mine", cx, &own.clone().flag(DISCARD), &peer);
    t.row("7", "both do: nothing is solved", cx, &own.flag(DISCARD), &peer.flag(DISCARD));
    let (own, peer) = (n(B).history(&[A]), p(C).history(&[A]).flag(DISCARD));
    t.row("7", "long ago: full sync", cx, &own, &peer);
}

fn policies(t: &mut Table, cx: Context<'_>, own: &Node, peer: &Node) {
    let by = |no_primary, one_primary| Context { after_split_brain: AfterSplitBrain { no_primary, one_primary }, ..cx };
    let zero = by(AfterSb0Pri::DiscardZeroChanges, AfterSb1Pri::Consensus);
    let (own_older, peer_older) = (own.clone().bitmap(1, A | 1), peer.clone().bitmap(0, A | 1));
    t.row("6", "discard-zero-changes, both changed something", zero, own, peer);
    t.row("6", "discard-zero-changes, I changed nothing", zero, &own.clone().bits(0), peer);
    t.row("6", "discard-zero-changes, nobody changed anything", zero, &own.clone().bits(0), &peer.clone().bits(0));
    t.row(
        "6",
        "discard-zero-changes, but it is Outdated",
        zero,
        &own.clone().bits(0),
        &peer.clone().disk(DiskState::Outdated),
    );
    t.row("6", "consensus, the Secondary changed nothing", zero, &own.clone().primary(), &peer.clone().bits(0));
    t.row("6", "consensus, the Primary changed nothing", zero, &own.clone().primary().bits(0), peer);
    for policy in
        [AfterSb0Pri::DiscardLeastChanges, AfterSb0Pri::DiscardYoungerPrimary, AfterSb0Pri::DiscardOlderPrimary]
    {
        let cx = by(policy, AfterSb1Pri::Disconnect);
        let row = |t: &mut Table, what: &str, own: &Node, peer: &Node| {
            t.row("6", &format!("{}, {what}", policy.as_str()), cx, own, peer);
        };
        row(t, "I changed less", own, peer);
        row(t, "I was Primary before", &own_older, peer);
        row(t, "the peer was Primary before", own, &peer_older);
        row(t, "one is Primary now", &own.clone().primary(), peer);
    }
    let secondary = by(AfterSb0Pri::Disconnect, AfterSb1Pri::DiscardSecondary);
    t.row("6", "discard-secondary, none is Primary", secondary, own, peer);
    t.row("6", "discard-secondary, I am Primary", secondary, &own.clone().primary(), peer);
    t.row("6", "discard-secondary, the peer is Primary", secondary, own, &peer.clone().primary());
    let local = by(AfterSb0Pri::DiscardLocal, AfterSb1Pri::Disconnect);
    t.row("6", "discard-local and the peer gives up its data, too", local, own, &peer.clone().flag(DISCARD));
    let (own, peer) = (n(B).history(&[A]), p(C).history(&[A]));
    t.row(
        "6",
        "discard-least-changes, long ago",
        by(AfterSb0Pri::DiscardLeastChanges, AfterSb1Pri::Disconnect),
        &own,
        &peer,
    );
}

fn keeping_bits(t: &mut Table, cx: Context<'_>) {
    t.heading("ZEA: between two Zea nodes");
    let (lost, survivor) = (n(A).flag(LOST).bits(9), p(A).bits(1));
    t.row("ZEA", "I lost writes in a crash, the peer did not", cx, &lost, &survivor);
    t.row("ZEA", "the same with an unconfirmed survivor", cx, &lost, &survivor.clone().disk(DiskState::Consistent));
    t.row("ZEA", "I crashed as Primary, the peer was shut down in order", cx, &lost.clone().flag(CRASHED), &p(A));
    t.row("ZEA", "but I am Primary again", cx, &lost.clone().primary(), &survivor);
    t.row("ZEA", "both lost writes", cx, &lost, &survivor.clone().flag(LOST));
    let a_or_b = Context { protocol_a_or_b: true, ..cx };
    let last_primary = n(A).flag(LOST).flag(WAS_PRIMARY).bits(9);
    t.row("ZEA", "I died as Primary, with protocol C", cx, &last_primary, &survivor);
    t.row("ZEA", "the same with protocols A and B", a_or_b, &last_primary, &survivor);
    t.row(
        "ZEA",
        "the same, and the peer has missed the end of my resync",
        a_or_b,
        &last_primary,
        &survivor.clone().bitmap(0, B),
    );
    let target_since = inconsistent(last_primary.clone()).flag(CRASHED);
    t.row("ZEA", "the same, but I was a target since, and am Inconsistent", a_or_b, &target_since, &p(A));
    let outdated = last_primary.clone().flag(CRASHED).disk(DiskState::Outdated);
    t.row("ZEA", "the same, but I am Outdated", a_or_b, &outdated, &survivor);
    t.row("ZEA", "the same, but the peer is Primary", a_or_b, &last_primary, &survivor.clone().primary());
    let neighbour = |node: Node| node.neighbour_of(2).bits(4);
    t.row("ZEA", "both are neighbours of one Primary: it will settle the bits", cx, &neighbour(n(A)), &neighbour(p(A)));
    t.row("ZEA", "I missed the end of a resync, and am Inconsistent", cx, &inconsistent(n(A)).bitmap(1, B), &p(A));
}

fn refusals(t: &mut Table, cx: Context<'_>) {
    t.heading("5.4 steps 9 and 10, and what Primary means");
    let (source, target) = (n(B).bitmap(1, A).bits(5), p(A));
    t.row("9", "the source gives up its data", cx, &source.clone().flag(DISCARD), &target);
    t.row("9", "the same below 121", context(120), &source.clone().flag(DISCARD), &target);
    t.row(
        "9",
        "but the target is Inconsistent",
        cx,
        &source.clone().flag(DISCARD),
        &target.clone().disk(DiskState::Inconsistent),
    );
    t.row("9", "reversed copy-other: full sync", cx, &n(B).bitmap(2, A).flag(DISCARD), &target);
    t.row("10", "the target serves its data", cx, &source, &target.clone().primary());
    t.row("10", "the target serves its data, nothing to sync", cx, &source.clone().bits(0), &target.clone().primary());
    t.row(
        "10",
        "the target is Primary on other nodes' data",
        cx,
        &source,
        &target.clone().primary().disk(DiskState::Inconsistent),
    );
    t.row(
        "10",
        "8.4, ZEA: the source is Inconsistent, the target is not",
        cx,
        &source.clone().disk(DiskState::Inconsistent),
        &target,
    );
    t.row("10", "it is being synced itself: later", cx, &source.disk(DiskState::Inconsistent).flag(TARGET), &target);
    let (crashed, survivor) = (n(A).flag(CRASHED).bits(1), p(A).flag(RECONNECT));
    t.row("-", "if-both-failed: the survivor is Primary", cx, &crashed, &survivor.clone().primary());
    t.row("-", "if-both-failed: I am Primary again", cx, &crashed.clone().primary(), &survivor);
    t.row("-", "if-both-failed: both are", cx, &crashed.clone().primary(), &survivor.clone().primary());
    t.row("-", "if-both-failed: both are, no bits", cx, &crashed.bits(0).primary(), &survivor.primary());
}

#[test]
fn uuid_rules() {
    let mut table = Table {
        text: "UUID comparison and decision, by the rules of handshake-and-states.md 5.3 and 5.4.\n\
               Node 0 decides about node 1; both are UpToDate, Secondary, STABLE unless said otherwise; [agreed version].\n\
               A to D are generations, A' has the Primary bit, - is \"no information\".\n\
               ZEA: the last word between two Zea nodes (keep_bits), where it differs from what happens with a kernel peer.\n"
            .to_string(),
    };
    let cx = context(124);
    just_created(&mut table, cx);
    equal(&mut table, cx);
    different(&mut table, cx);
    disk_states(&mut table, cx);
    split_brain(&mut table, cx);
    refusals(&mut table, cx);
    keeping_bits(&mut table, cx);
    insta::assert_snapshot!("rules", table.text);
}

#[test]
fn uuid_view_of_a_packet() {
    let packet = zea_wire::packet::Uuids110 {
        current: B,
        dirty_bits: 7,
        uuid_flags: UuidFlags::STABLE,
        bitmap_uuids: [(NodeId(2), A), (NodeId(5), 0)].into_iter().collect(),
        history: (1..40).collect(),
        ..Default::default()
    };
    let view = UuidView::from_packet(NodeId(1), &packet);
    assert_eq!((view.current, view.dirty_bits), (B, 7));
    let towards = |node| view.bitmap_towards(NodeId(node));
    assert_eq!((towards(2), towards(5), towards(0)), (A, 0, NO_INFORMATION));
    assert_eq!((view.history[0], view.history[31]), (1, 32));
}
