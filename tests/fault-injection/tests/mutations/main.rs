//! The checks check: for each deliberately broken variant of the core there is a seed, among the first few, that fails with it
//! in the expected way, and passes without it.

use zea_core::mutation::{Mutation, set};
use zea_sim::plan::Fault;
use zea_sim::random::Run;
use zea_sim::report::{Failure, capture};

/// A variant, the kinds of faults that bring it out, within how many seeds, and the checks that may fire.
struct Case {
    mutation: Mutation,
    kinds: &'static [&'static str],
    seeds: u64,
    checks: &'static [&'static str],
}

/// Seeds with these kinds of faults draw quorum.
const WITH_QUORUM: &[&str] = &["isolate"];

fn run(seed: u64, kinds: &[&str], mutation: Option<Mutation>) -> Result<(), Box<Failure>> {
    let number = |kind: &&str| Fault::KINDS.iter().position(|k| k == kind).expect("a kind of fault");
    let quorum = kinds == WITH_QUORUM;
    let run = Run { kinds: kinds.iter().map(number).collect(), quorum, ..Run::of(seed) };
    set(mutation);
    let result = capture(|| run.run());
    set(None);
    result.map(drop)
}

impl Case {
    /// The first seed that shows it.
    fn find(&self) -> (u64, Failure) {
        let mut others = Vec::new();
        for seed in 1..=self.seeds {
            let Err(failure) = run(seed, self.kinds, Some(self.mutation)) else {
                continue;
            };
            let expected = self.checks.iter().any(|check| failure.kind() == format!("[{check}]"));
            if expected && run(seed, self.kinds, None).is_ok() {
                return (seed, *failure);
            }
            others.push((seed, failure.kind()));
        }
        panic!("{} is not found in {} seeds; other failures: {others:?}", self.mutation.name(), self.seeds)
    }
}

fn found(mutation: Mutation, kinds: &'static [&'static str], seeds: u64, checks: &'static [&'static str]) {
    let (seed, failure) = Case { mutation, kinds, seeds, checks }.find();
    println!("{} by seed {seed}: {}", mutation.name(), failure.message);
}

#[test]
fn sim_mutation_ack_early() {
    found(Mutation::AckEarly, &["crash", "cut"], 20, &["durability"]);
}

#[test]
fn sim_mutation_skip_bitmap() {
    found(Mutation::SkipBitmap, &["crash", "cut"], 40, &["bitmap"]);
}

#[test]
fn sim_mutation_skip_activity_log() {
    found(Mutation::SkipActivityLog, &["crash", "slow-disk"], 40, &["uuid-truth", "bitmap"]);
}

#[test]
fn sim_mutation_barrier_ack_before_flush() {
    found(Mutation::BarrierAckBeforeFlush, &["crash"], 30, &["order", "durability"]);
}

#[test]
fn sim_mutation_skip_local_flush() {
    found(Mutation::SkipLocalFlush, &["crash"], 20, &["order"]);
}

#[test]
fn sim_mutation_skip_epoch_wait() {
    found(Mutation::SkipEpochWait, &["crash", "slow-disk"], 200, &["order"]);
}

#[test]
fn sim_mutation_keep_uuid() {
    found(Mutation::KeepUuid, &["crash", "cut"], 20, &["durability", "uuid-truth"]);
}

#[test]
fn sim_mutation_stale_source() {
    found(Mutation::StaleSource, &["cut"], 10, &["durability"]);
}

#[test]
fn sim_mutation_skip_resync() {
    found(Mutation::SkipResync, &["cut"], 10, &["kept-bits"]);
}

#[test]
fn sim_mutation_clear_bits_on_handshake() {
    found(Mutation::ClearBitsOnHandshake, &["crash", "cut"], 20, &["kept-bits"]);
}

#[test]
fn sim_mutation_false_split_brain() {
    found(Mutation::FalseSplitBrain, &["cut"], 10, &["split-brain"]);
}

#[test]
fn sim_mutation_two_primaries() {
    found(Mutation::TwoPrimaries, &["promote"], 10, &["one-primary"]);
}

#[test]
fn sim_mutation_ignore_votes() {
    found(Mutation::IgnoreVotes, &["crash", "cut"], 20, &["two-phase"]);
}

#[test]
fn sim_mutation_commit_after_abort() {
    found(Mutation::CommitAfterAbort, &["promote", "demote", "isolate"], 40, &["views", "protocol"]);
}

#[test]
fn sim_mutation_skip_peer_states() {
    found(Mutation::SkipPeerStates, &["detach", "invalidate"], 20, &["views"]);
}

#[test]
fn sim_mutation_peer_ack_names_all() {
    found(Mutation::PeerAckNamesAll, &["crash", "cut"], 30, &["durability", "uuid-truth"]);
}

#[test]
fn sim_mutation_read_stale_data() {
    found(Mutation::ReadStaleData, &["detach", "disk"], 20, &["read"]);
}

#[test]
fn sim_mutation_leak_buffers() {
    found(Mutation::LeakBuffers, &["reset"], 5, &["leak"]);
}

#[test]
fn sim_mutation_leak_activity_log() {
    found(Mutation::LeakActivityLog, &["slow-disk"], 60, &["convergence"]);
}

#[test]
fn sim_mutation_verify_ignores_writes() {
    found(Mutation::VerifyIgnoresWrites, &["verify"], 20, &["verify"]);
}

#[test]
fn sim_mutation_skip_events() {
    found(Mutation::SkipEvents, &["reset"], 5, &["events"]);
}

#[test]
fn sim_mutation_complete_twice() {
    found(Mutation::CompleteTwice, &["reset"], 5, &["core"]);
}

#[test]
fn sim_mutation_wrong_barrier_ack() {
    found(Mutation::WrongBarrierAck, &["reset"], 5, &["protocol"]);
}

#[test]
fn sim_mutation_forget_replies() {
    found(Mutation::ForgetReplies, &["demote"], 5, &["stuck"]);
}

#[test]
fn sim_mutation_skip_attaching() {
    found(Mutation::SkipAttaching, &["crash"], 5, &["transition"]);
}

#[test]
fn sim_mutation_stay_prepared() {
    found(Mutation::StayPrepared, &["crash", "cut", "isolate"], 40, &["convergence", "stuck"]);
}

#[test]
fn sim_mutation_ignore_quorum() {
    found(Mutation::IgnoreQuorum, WITH_QUORUM, 40, &["quorum"]);
}

/// Everything is decided by the seed: a core that is not shows in its trace.
#[test]
fn sim_mutation_own_randomness() {
    let hash = || Run::of(1).run().hash;
    assert_eq!(hash(), hash());
    set(Some(Mutation::OwnRandomness));
    assert_ne!(hash(), hash());
    set(None);
}

/// No check that nothing makes fire: each is named above, or found on the simple core of `tests/world`.
#[test]
fn sim_mutations_make_every_check_fire() {
    let checks = include_str!("../../src/checks/mod.rs");
    let tests = [include_str!("main.rs"), include_str!("../world/main.rs")].concat();
    let names = checks.lines().filter_map(|line| line.trim().strip_prefix("Check::")?.split_once(" => \""));
    let names: Vec<&str> = names.map(|(_, rest)| rest.trim_end_matches("\",")).collect();
    assert!(names.len() >= 15, "{names:?}");
    for name in names {
        let fires = tests.contains(&format!("&[\"{name}\"")) || tests.contains(&format!(", \"{name}\"]"));
        assert!(fires || tests.contains(&format!("\"[{name}]\"")), "nothing makes [{name}] fire");
    }
}

/// No variant without a test that finds it: a new one has to be added above.
#[test]
fn sim_mutations_are_all_tried() {
    let tests = include_str!("main.rs");
    for mutation in Mutation::ALL {
        let test = format!("fn sim_mutation_{}()", mutation.name().replace('-', "_"));
        assert!(tests.contains(&test), "{test} is missing");
    }
}
