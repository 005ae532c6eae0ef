//! Quorum (rows Q1 to Q10 of the catalogue).

use zea_core::config::{OnNoQuorum, OnSuspendedPrimaryOutdated, Quorum, QuorumOptions};
use zea_core::io::{Command, IoError, Op, ReqId};
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::world::{World, node_id};
use zea_wire::ids::VolumeNr;
use zea_wire::state::{ConnState, DiskState, Role};

const PROMOTE: Command = Command::Promote { force: false };
/// Longer than any time-out that a lost peer is noticed by.
const A_WHILE_MS: u64 = 15_000;

fn majority(on_no_quorum: OnNoQuorum) -> QuorumOptions {
    QuorumOptions { quorum: Quorum::Majority, on_no_quorum, ..QuorumOptions::default() }
}

fn cluster(nodes: usize, quorum: QuorumOptions) -> Cluster {
    Cluster { quorum, ..Cluster::new(nodes) }
}

/// Two nodes with disks, and node 2 without.
fn with_tie_breaker(on_no_quorum: OnNoQuorum) -> World {
    Cluster { diskless: [2].into(), ..cluster(3, majority(on_no_quorum)) }.synced()
}

fn quorum(w: &mut World, ix: usize) -> bool {
    w.refresh(ix);
    w.nodes[ix].device(V0).is_some_and(|d| d.quorum)
}

fn is_open(w: &World, req: ReqId) -> bool {
    !w.outcomes.contains_key(&req)
}

fn no_quorum(w: &mut World, ix: usize) -> String {
    let error = w.command(ix, PROMOTE).expect_err("there is no quorum");
    assert_eq!(error.code, -25, "{error:?}");
    error.message
}

/// The old Primary is Secondary, connects again, and gets what it missed.
fn goes_back(w: &mut World, old: usize) {
    w.must(old, Command::Demote);
    w.rejoin(old);
    w.settle();
    assert!(w.nodes.iter().all(|n| n.notices.iter().all(|text| !text.contains("split brain"))));
}

/// Writes before, between and after the two losses: none is acknowledged without quorum, no generation begins without, and the old
/// Primary is resynced by its bitmap.
#[test]
fn sim_q1_an_isolated_primary_fails_its_writes() {
    for first in [1, 2] {
        let mut w = cluster(3, majority(OnNoQuorum::IoError)).synced();
        w.write_ok(0, 0, 8);
        w.cut(0, first);
        let before = w.write(0, 8, 8);
        assert_eq!(w.wait(before), Ok(()), "two of three go on");
        let generation = w.generation(0);
        w.cut(0, 3 - first);
        let during = w.write(0, 16, 8);
        assert_eq!(w.wait(during), Err(IoError::Io));
        let after = w.write(0, 24, 8);
        assert_eq!(w.wait(after), Err(IoError::Io));
        let read = w.read(0, 0, 8);
        assert_eq!(w.wait(read), Err(IoError::Io), "others may have written since");
        assert!(!quorum(&mut w, 0));
        assert_eq!(w.generation(0), generation, "no generation without quorum");
        w.expect("the others have noticed", |w| w.is_apart(0, 1) && w.is_apart(0, 2) && w.is_connected(1, 2));
        w.must(3 - first, PROMOTE);
        w.write_ok(3 - first, 32, 8);
        goes_back(&mut w, 0);
        assert!(w.received(0, 3 - first) < 1_000, "not a full resync");
    }
}

#[test]
fn sim_q2_an_isolated_primary_suspends_its_writes() {
    let mut w = cluster(3, majority(OnNoQuorum::SuspendIo)).synced();
    w.isolate(0);
    let (write, read, flush) = (w.write(0, 0, 8), w.read(0, 8, 8), w.flush(0));
    w.run_ms(A_WHILE_MS);
    assert!([write, read, flush].iter().all(|req| is_open(&w, *req)), "they wait");
    w.refresh(0);
    assert!(w.nodes[0].status.suspended_quorum);
    // The option counts at once, also for what waits.
    w.must(0, Command::SetQuorumOptions(majority(OnNoQuorum::IoError)));
    for req in [write, read, flush] {
        assert_eq!(w.wait(req), Err(IoError::Io));
    }
    w.refresh(0);
    assert!(!w.nodes[0].status.suspended_quorum);
}

/// A deadline ends it, or `down`, or a disconnect by force.
#[test]
fn sim_q2_suspended_writes_end_when_somebody_says_so() {
    let options = QuorumOptions { suspended_io_timeout_ms: 30_000, ..majority(OnNoQuorum::SuspendIo) };
    let mut w = cluster(3, options).synced();
    w.isolate(0);
    let write = w.write(0, 0, 8);
    w.run_ms(A_WHILE_MS);
    assert!(is_open(&w, write));
    assert_eq!(w.wait(write), Err(IoError::Io), "the deadline");
    let late = w.write(0, 8, 8);
    assert_eq!(w.wait(late), Err(IoError::Io), "it fails until there is quorum");
    w.rejoin(0);
    w.expect("quorum", |w| w.nodes[0].device(V0).is_some_and(|d| d.quorum));
    w.write_ok(0, 8, 8);
    for command in [Command::Down, Command::Disconnect { peer: node_id(1), force: true }] {
        let mut w = cluster(3, majority(OnNoQuorum::SuspendIo)).synced();
        w.isolate(0);
        let write = w.write(0, 0, 8);
        w.run_ms(A_WHILE_MS);
        assert!(is_open(&w, write));
        w.must(0, command);
        assert_eq!(w.wait(write), Err(IoError::Io));
    }
}

/// With force-secondary the old Primary gives up as soon as it hears of the new one.
#[test]
fn sim_q3_a_suspended_primary_that_was_replaced_gives_up() {
    let forced = QuorumOptions {
        on_suspended_primary_outdated: OnSuspendedPrimaryOutdated::ForceSecondary,
        ..majority(OnNoQuorum::SuspendIo)
    };
    for writes in [false, true] {
        let mut w = cluster(3, forced).synced();
        w.isolate(0);
        let write = w.write(0, 0, 8);
        w.must(1, PROMOTE);
        if writes {
            w.write_ok(1, 0, 8);
        }
        assert!(is_open(&w, write));
        w.rejoin(0);
        assert_eq!(w.wait(write), Err(IoError::Io));
        w.expect("it is Secondary", |w| w.role(0) == Role::Secondary);
        w.settle();
        w.write_ok(1, 8, 8);
    }
}

/// By default it stays as it is, and says so; nothing is lost or mixed.
#[test]
fn sim_q3_a_suspended_primary_that_was_replaced_stays_alone() {
    let mut w = cluster(3, majority(OnNoQuorum::SuspendIo)).synced();
    w.isolate(0);
    let write = w.write(0, 0, 8);
    w.must(1, PROMOTE);
    w.write_ok(1, 0, 8);
    w.rejoin(0);
    w.expect("they do not connect", |w| w.conn(0, 1) == ConnState::StandAlone);
    assert!(is_open(&w, write));
    w.must(0, Command::Down);
    assert_eq!(w.wait(write), Err(IoError::Io));
}

/// What was held completes once, when quorum is back: by the return of either peer.
#[test]
fn sim_q4_suspended_requests_go_on_when_quorum_is_back() {
    for first in [1, 2] {
        let mut w = cluster(3, majority(OnNoQuorum::SuspendIo)).synced();
        w.others(0).for_each(|other| w.cut(0, other));
        let in_flight = w.write(0, 0, 8);
        w.expect("the loss is noticed", |w| w.is_apart(0, 1) && w.is_apart(0, 2));
        let (held, read) = (w.write(0, 8, 8), w.read(0, 0, 8));
        w.run_ms(A_WHILE_MS);
        assert!([in_flight, held, read].iter().all(|req| is_open(&w, *req)));
        w.heal(0, first);
        for req in [in_flight, held, read] {
            assert_eq!(w.wait(req), Ok(()));
        }
        w.heal(0, 3 - first);
        w.settle();
    }
}

#[test]
fn sim_q5_the_tie_breaker_decides() {
    // The Primary keeps it.
    let mut w = with_tie_breaker(OnNoQuorum::IoError);
    w.isolate(1);
    w.write_ok(0, 0, 8);
    assert!(quorum(&mut w, 0) && !quorum(&mut w, 1));
    no_quorum(&mut w, 1);
    // It moves to the other side, where it gives nobody quorum.
    w.heal(1, 2);
    w.expect("the tie-breaker is on both sides", |w| w.is_connected(1, 2) && w.is_connected(0, 2));
    w.cut(0, 2);
    w.expect("it has moved", |w| w.is_apart(0, 2));
    w.run_ms(A_WHILE_MS);
    let message = no_quorum(&mut w, 1);
    assert!(message.contains("1 of 2 votes") && message.contains("connect node0"), "{message}");
    // The Primary is cut off from both.
    let mut w = with_tie_breaker(OnNoQuorum::IoError);
    w.isolate(0);
    let write = w.write(0, 0, 8);
    assert_eq!(w.wait(write), Err(IoError::Io));
    w.must(1, PROMOTE);
    w.write_ok(1, 8, 8);
    goes_back(&mut w, 0);
}

/// As in the kernel: a node that died is no member any more, and the tie-breaker is not needed then (recording 07).
#[test]
fn sim_q5_without_the_tie_breaker_the_last_man_stands() {
    let mut w = with_tie_breaker(OnNoQuorum::IoError);
    w.crash(1, Crash::Power);
    w.expect("it is noticed", |w| w.conn(0, 1) != ConnState::Connected);
    w.write_ok(0, 0, 8);
    w.part(0, 2);
    w.run_ms(A_WHILE_MS);
    w.write_ok(0, 8, 8);
    // Whoever was away, and comes back to the tie-breaker alone, has no quorum.
    w.start(1);
    w.cut(0, 1);
    w.expect("it is with the tie-breaker", |w| w.is_connected(1, 2));
    w.run_ms(A_WHILE_MS);
    no_quorum(&mut w, 1);
    w.rejoin(0);
    w.settle();
}

/// The link between the two breaks, and both see the tie-breaker: the one that is not Primary is Outdated.
#[test]
fn sim_q5_both_see_the_tie_breaker_and_one_goes_on() {
    let mut w = with_tie_breaker(OnNoQuorum::IoError);
    w.part(0, 1);
    w.write_ok(0, 0, 8);
    w.expect("the other one is Outdated", |w| w.disk(1) == DiskState::Outdated);
    w.isolate(0);
    w.run_ms(A_WHILE_MS);
    assert!(w.command(1, PROMOTE).is_err(), "its data is behind");
    w.rejoin(0);
    w.settle();
}

/// The whole cluster loses power: enough of it has to come back.
#[test]
fn sim_q5_a_power_cut_of_the_whole_cluster_leaves_nobody_with_quorum() {
    let mut w = cluster(3, majority(OnNoQuorum::IoError)).synced();
    w.write_ok(0, 0, 8);
    (0..3).for_each(|ix| w.crash(ix, Crash::Power));
    w.start(1);
    w.run_ms(A_WHILE_MS);
    no_quorum(&mut w, 1);
    w.start(2);
    w.expect("two are connected", |w| w.is_connected(1, 2));
    w.expect("quorum", |w| w.nodes[1].device(V0).is_some_and(|d| d.quorum));
    w.must(1, PROMOTE);
    w.read_ok(1, 0, 8);
    w.start(0);
    w.settle();
}

/// The last one that had quorum has it again after its reboot; nobody else could have got it.
#[test]
fn sim_q6_the_last_man_standing_has_quorum_after_a_reboot() {
    let mut w = cluster(3, majority(OnNoQuorum::IoError)).synced();
    for ix in [1, 2] {
        w.must(ix, Command::Down);
        w.expect("it is gone", |w| w.conn(0, ix) != ConnState::Connected);
        w.crash(ix, Crash::Process);
    }
    w.write_ok(0, 0, 8);
    w.run_ms(A_WHILE_MS);
    assert!(quorum(&mut w, 0), "they left in order, and are Outdated");
    w.crash(0, Crash::Power);
    w.start(0);
    w.expect("it has quorum", |w| w.nodes[0].device(V0).is_some_and(|d| d.quorum));
    w.must(0, PROMOTE);
    w.write_ok(0, 8, 8);
    (1..3).for_each(|ix| w.start(ix));
    w.settle();
    // The others could not do without it.
    let mut w = cluster(3, majority(OnNoQuorum::IoError)).synced();
    for ix in [1, 2] {
        w.must(ix, Command::Down);
        w.expect("it is gone", |w| w.conn(0, ix) != ConnState::Connected);
        w.crash(ix, Crash::Process);
    }
    w.write_ok(0, 0, 8);
    w.crash(0, Crash::Power);
    (1..3).for_each(|ix| w.start(ix));
    w.expect("they are connected", |w| w.is_connected(1, 2));
    w.run_ms(A_WHILE_MS);
    assert!(w.command(1, PROMOTE).is_err() && w.command(2, PROMOTE).is_err(), "their data is behind");
}

/// A Primary does not leave the one whose vote it needs; with force it can.
#[test]
fn sim_q6_a_primary_keeps_the_vote_that_it_needs() {
    let mut w = cluster(3, majority(OnNoQuorum::IoError)).synced();
    w.isolate(2);
    let error = w.command(0, Command::Disconnect { peer: node_id(1), force: false }).expect_err("it needs the vote");
    assert_eq!(error.code, -25, "{error:?}");
    w.write_ok(0, 0, 8);
    w.must(0, Command::Disconnect { peer: node_id(1), force: true });
    let write = w.write(0, 8, 8);
    assert_eq!(w.wait(write), Err(IoError::Io));
}

/// Five nodes: those who stayed know that the one who was lost first has no quorum.
#[test]
fn sim_q7_who_was_left_out_counts_for_nothing() {
    let mut w = cluster(5, majority(OnNoQuorum::IoError)).synced();
    w.isolate(4);
    w.write_ok(0, 0, 8);
    w.isolate(3);
    w.write_ok(0, 8, 8);
    // Three of five are here; the two who are not find each other, and are two of five.
    w.heal(3, 4);
    w.expect("they are connected", |w| w.is_connected(3, 4));
    w.run_ms(A_WHILE_MS);
    no_quorum(&mut w, 3);
    w.rejoin(3);
    w.rejoin(4);
    w.settle();
}

/// A chain: whoever sees the Primary only through others is Outdated, in every order of the losses.
#[test]
fn sim_q7_far_away_nodes_are_outdated() {
    for first in [1, 2] {
        let mut w = cluster(5, majority(OnNoQuorum::IoError)).synced();
        w.part(0, first);
        w.part(0, 3 - first);
        w.write_ok(0, 0, 8);
        w.expect("both are Outdated", |w| [1, 2].iter().all(|ix| w.disk(*ix) == DiskState::Outdated));
        w.rejoin(0);
        w.settle();
    }
}

/// The name of a generation is on its way when quorum is lost: whoever did not hear of it is resynced.
#[test]
fn sim_q8_quorum_is_lost_while_a_generation_is_told() {
    for delay_us in (0..2_000).step_by(50) {
        let mut w = cluster(3, majority(OnNoQuorum::SuspendIo)).synced();
        w.part(0, 2);
        let write = w.write(0, 0, 8);
        let at = w.now + delay_us * 1_000;
        while w.step(at) {}
        w.cut(0, 1);
        w.expect("the loss is noticed", |w| w.is_apart(0, 1));
        w.run_ms(A_WHILE_MS);
        w.rejoin(0);
        assert_eq!(w.wait(write), Ok(()));
        w.settle();
        assert!(w.nodes.iter().all(|n| n.notices.iter().all(|text| !text.contains("split brain"))));
    }
}

/// Of two volumes one lacks votes, since one more node has no disk for it: the I/O of both waits.
#[test]
fn sim_q9_one_volume_without_quorum_suspends_all() {
    let options = QuorumOptions { minimum_redundancy: Quorum::Number(2), ..majority(OnNoQuorum::SuspendIo) };
    let mut w = Cluster { volume_sectors: vec![8_192, 8_192], ..cluster(3, options) }.synced();
    let second = VolumeNr(1);
    w.isolate(2);
    w.must(1, Command::Detach { volume: second, force: false });
    w.refresh(0);
    let has = |w: &World, nr| w.nodes[0].device(nr).is_some_and(|d| d.quorum);
    assert!(has(&w, V0) && !has(&w, second));
    let writes = [V0, second].map(|nr| w.submit(0, nr, Op::Write, 0, 8, false));
    w.run_ms(A_WHILE_MS);
    assert!(writes.iter().all(|req| is_open(&w, *req)));
    w.rejoin(2);
    for req in writes {
        assert_eq!(w.wait(req), Ok(()));
    }
}

#[test]
fn sim_q10_quorum_minimum_redundancy_counts_up_to_date_disks() {
    let options = QuorumOptions { minimum_redundancy: Quorum::Number(2), ..majority(OnNoQuorum::IoError) };
    let mut w = cluster(3, options).synced();
    w.write_ok(0, 0, 8);
    w.isolate(2);
    w.write_ok(0, 8, 8);
    w.detach(1);
    let write = w.write(0, 16, 8);
    assert_eq!(w.wait(write), Err(IoError::Io), "two votes, one copy");
    w.refresh(0);
    let why = w.nodes[0].device(V0).and_then(|d| d.no_quorum.clone()).expect("no quorum");
    assert!(why.contains("quorum-minimum-redundancy"), "{why}");
    w.attach(1);
    w.expect("it is UpToDate again", |w| {
        w.disk(1) == DiskState::UpToDate && w.nodes[0].device(V0).is_some_and(|d| d.quorum)
    });
    w.write_ok(0, 16, 8);
    w.rejoin(2);
    w.settle();
}

/// Promotion by force works without quorum, and serves nothing until there is some.
#[test]
fn sim_q_promotion_needs_quorum() {
    let mut w = cluster(3, majority(OnNoQuorum::IoError)).synced();
    w.must(0, Command::Demote);
    w.isolate(1);
    let message = no_quorum(&mut w, 1);
    assert!(message.contains("1 of 2 votes") && message.contains("node0, node2"), "{message}");
    w.must(2, PROMOTE);
    w.write_ok(2, 0, 8);
    w.must(1, Command::Promote { force: true });
    let write = w.write(1, 0, 8);
    assert_eq!(w.wait(write), Err(IoError::Io));
}

/// The vote of a node that gets no writes: it counts for a write only if the node was there after the write began. So nothing is
/// acknowledged between the loss of its connection and the moment in which that is noticed.
#[test]
fn sim_q_a_vote_that_is_lost_and_not_missed_yet_does_not_count() {
    let mut w = cluster(3, majority(OnNoQuorum::IoError)).synced();
    w.detach(1);
    w.isolate(2);
    w.write_ok(0, 0, 8);
    // Silently: nothing is reset.
    w.stall(0, 1);
    w.stall(1, 0);
    let write = w.write(0, 8, 8);
    w.run_ms(100);
    assert!(w.conn(0, 1) == ConnState::Connected && is_open(&w, write), "nobody has noticed, and it waits");
    assert_eq!(w.wait(write), Err(IoError::Io));
}

/// A Primary begins a generation without the node that it has lost, and loses the other one before that hears of it. Those two go on from
/// the generation before, which is no split brain: nothing was acknowledged in the one that only the old Primary knows.
#[test]
fn sim_q8_a_generation_that_nobody_else_knows_is_withdrawn() {
    for alone in [false, true] {
        let mut w = cluster(3, majority(OnNoQuorum::IoError)).synced();
        w.write_ok(0, 0, 8);
        let before = w.generation(0);
        w.stall(0, 1);
        w.stall(1, 0);
        w.cut(0, 2);
        let write = w.write(0, 8, 8);
        while w.generation(0) == before {
            w.run_ms(1);
        }
        assert_eq!(w.wait(write), Err(IoError::Io));
        w.cut(0, 1);
        w.expect("it is noticed", |w| w.is_apart(0, 1) && w.is_apart(0, 2) && w.is_connected(1, 2));
        w.must(1, PROMOTE);
        w.write_ok(1, 16, 8);
        if alone {
            // Whom the old Primary meets has no quorum, either.
            w.isolate(1);
            w.heal(0, 2);
            w.run_ms(A_WHILE_MS);
            w.heal(1, 2);
        }
        goes_back(&mut w, 0);
    }
}

/// The target of a resync votes for a write whose only good copy is the Primary's. Whoever it meets after that lacks the write, and is
/// Outdated by its word, also after its power was cut.
#[test]
fn sim_q_the_target_of_a_resync_keeps_its_word() {
    for crashes in [false, true] {
        let mut w = cluster(3, majority(OnNoQuorum::IoError)).synced();
        w.isolate(1);
        for sector in (0..32_768).step_by(1024) {
            w.write_ok(0, sector, 1024);
        }
        w.slow_disk(1, V0, 100);
        w.heal(0, 1);
        w.expect("a resync runs", |w| w.disk(1) == DiskState::Inconsistent);
        w.part(0, 2);
        w.write_ok(0, 0, 8);
        assert_eq!(w.disk(1), DiskState::Inconsistent, "the resync has not ended");
        w.part(0, 1);
        if crashes {
            w.crash(1, Crash::Power);
            w.start(1);
        }
        w.heal(1, 2);
        w.expect("they are connected", |w| w.is_connected(1, 2));
        w.run_ms(A_WHILE_MS);
        assert_eq!(w.disk(2), DiskState::Outdated);
        for ix in [1, 2] {
            w.command(ix, PROMOTE).expect_err("no good disk");
        }
        w.heal_all();
        w.settle();
    }
}
