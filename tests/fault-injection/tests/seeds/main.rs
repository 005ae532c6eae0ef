//! Random runs in the test run: seeds that once failed, and seeds that nobody has tried before.
//!
//! `ZEA_SIM_FRESH=2000` runs so many seeds that follow from the commit; without it a fixed range runs, which the core stands.

use std::process::Command;

use zea_sim::plan::Fault;
use zea_sim::random::Run;
use zea_sim::report::capture;
use zea_sim::runner::{self, Plan, Summary, median};

/// A seed with the faults of its plan that made it fail, and what was wrong.
struct Once {
    seed: u64,
    only: &'static [usize],
    wrong: &'static str,
}

const REGRESSIONS: &[Once] = &[
    Once {
        seed: 11,
        only: &[7, 8, 9, 12],
        wrong: "a resync target took the data that was still on its way, after its resync had ended, for a breach of protocol",
    },
    Once { seed: 27, only: &[14, 15], wrong: "the same after a change of the source" },
    Once {
        seed: 118,
        only: &[],
        wrong: "two volumes were synced from different sources at once, and their targets refused each other for good",
    },
    Once { seed: 131, only: &[], wrong: "the same with other sizes" },
    Once {
        seed: 328,
        only: &[8],
        wrong: "a write that waited for space was tried again on a disk that had been given up meanwhile",
    },
    Once { seed: 94, only: &[6, 8, 9], wrong: "a replica that missed a generation was told that its data had split" },
    Once {
        seed: 21_402,
        only: &[0, 1, 2, 3],
        wrong: "with protocol A a write under way when the peer was lost was acknowledged in a generation that the peer had, too",
    },
    Once {
        seed: 30_688,
        only: &[2, 4],
        wrong: "a write waited for space on a disk that was let go, and was marked nowhere",
    },
    Once {
        seed: 30_205,
        only: &[0, 1, 2, 3, 7],
        wrong: "a Primary let its disk go, and with it forgot which node lacked something of a generation that it told to be as good",
    },
    Once {
        seed: 139,
        only: &[1, 2, 3, 8],
        wrong: "a Primary without a disk acknowledged writes of protocol A that its only server never got",
    },
    Once {
        seed: 80,
        only: &[],
        wrong: "a write that waited while the Primary's disk failed was acknowledged with its only copy on a disk in resync",
    },
    Once {
        seed: 1013,
        only: &[1, 5, 6, 7, 8, 11],
        wrong: "a target of a resync wrote before its meta data said that it is one, and came back as a mixture of old and new",
    },
    Once {
        seed: 1616,
        only: &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17],
        wrong: "a Primary that had invalidated its disk took a peer for its source that lacked what another one had",
    },
    Once { seed: 113, only: &[0, 1, 3, 4], wrong: "the same between two nodes that were never Primary" },
    Once {
        seed: 1396,
        only: &[0, 1, 5, 8, 9, 10, 11, 12, 13, 14, 16, 17],
        wrong: "the source of a resync waited for good to hear of writes that had passed it by",
    },
    Once {
        seed: 1437,
        only: &[0, 2, 3],
        wrong: "a peer ack cleared the bits of a write that older resync data had replaced; and a disk in resync was called Consistent \
                when the end of the resync before, whose source was gone, became stable",
    },
    Once {
        seed: 1487,
        only: &[0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 14, 15, 16, 17, 18],
        wrong: "an UpToDate disk with a resync that still waited did not follow the Primary's new generation, whose writes waited for it",
    },
    Once {
        seed: 1733,
        only: &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19],
        wrong: "a Primary without good data left its writes out for a target that it waited for as its source",
    },
    Once {
        seed: 1901,
        only: &[0, 1, 2, 3, 4, 6, 7],
        wrong: "a source at a former generation, whose bits came late, took its target back to that after another resync",
    },
    Once { seed: 1999, only: &[0, 7, 10], wrong: "bits of a peer ack that came long after the resync stayed for good" },
    Once {
        seed: 40_273,
        only: &[1, 2, 4, 6],
        wrong: "the source of a resync, lost when its target had everything, went on in the generation that the target had taken",
    },
    Once {
        seed: 1_979,
        only: &[0, 1, 3, 4, 5, 6],
        wrong: "the disk of a Primary that served a later generation was called UpToDate at the one before",
    },
    Once {
        seed: 1_490,
        only: &[0, 3, 4, 5, 6, 7, 8],
        wrong: "a Primary that waited to be resynced from a target did not write to it, and took it for complete",
    },
    Once {
        seed: 60_173,
        only: &[],
        wrong: "two halves of a split brain refused each other for ever, with always a bystander that was busy",
    },
    Once {
        seed: 60_259,
        only: &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 19],
        wrong: "a source that had died while it marked everything waited for the end of that after its restart",
    },
    Once {
        seed: 61_246,
        only: &[3, 4, 5, 6, 7, 8],
        wrong: "a node followed two Primaries, and gave to each what the other one wrote",
    },
    Once {
        seed: 2092,
        only: &[6, 7, 16],
        wrong: "a Primary let its disk go, lost the last good peer before it was gone, and took that back without the writes it had lost",
    },
    Once {
        seed: 20_677,
        only: &[2, 3, 4, 5, 12],
        wrong: "a write that a lost peer had confirmed, and a resync from one that did not have it yet took away, was called there",
    },
    Once {
        seed: 139,
        only: &[1, 2, 3, 5, 6, 7, 8, 9],
        wrong: "later writes came to a Primary's own disk, attached again and Outdated, before its meta data called it Inconsistent",
    },
    Once {
        seed: 2603,
        only: &[0, 1],
        wrong: "a write of a lost link came to the disk before one of an earlier epoch, which waited for the activity log",
    },
    Once {
        seed: 5_288,
        only: &[0, 2, 3, 4, 5, 6, 7, 8],
        wrong: "a Primary called two nodes in sync while a write was still on its way to one of them, which the other got by a resync",
    },
    Once {
        seed: 6_112,
        only: &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
        wrong: "a target was UpToDate by another source before the bitmap of a Primary that had written past it was there",
    },
    Once {
        seed: 6_892,
        only: &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
        wrong: "a half-open link lost its deadline when the connect transaction of the link before it was aborted",
    },
    Once {
        seed: 1_274,
        only: &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
        wrong: "a node that was resynced itself sent its bits to a target, and resynced more before it had got those of the target",
    },
    Once {
        seed: 21_491,
        only: &[0, 1, 2, 4, 6, 7, 8, 9, 10, 11, 14],
        wrong: "a resync that waited for a source without usable data went on waiting when that one had got some",
    },
    Once {
        seed: 5383,
        only: &[7, 10, 11, 12, 13, 14, 15, 18, 19, 20],
        wrong: "the source of a resync waited for writes of a former Primary that had lost power without having sent them",
    },
    Once {
        seed: 21_553,
        only: &[1, 3, 4, 5, 8, 11, 17, 20, 23],
        wrong: "a node that was invalidated and resynced from an older generation called the newer one its past: a split brain",
    },
    Once {
        seed: 50_712,
        only: &[0, 1, 2, 3, 4, 5],
        wrong: "a write that had waited for the activity log while a peer was lost was acknowledged in a generation that the peer had, too",
    },
    Once {
        seed: 50_371,
        only: &[6, 7, 15],
        wrong: "a disk that was let go in the middle of a Primary's writes, and failed at that, was called UpToDate when it was attached again",
    },
    Once {
        seed: 31_836,
        only: &[0, 1, 2, 3, 8, 9, 11, 13, 16, 17, 18, 19],
        wrong: "a node that gave up its data for two peers with a split brain of their own gave up what it had got of the one for the other",
    },
    Once {
        seed: 30_786,
        only: &[1, 2, 4, 5, 13, 14, 15, 17, 18],
        wrong: "the simulator did not count what a Primary wrote through the source of its own resync, and called a split brain false",
    },
    Once { seed: 22_400, only: &[0, 2, 3, 4, 5, 6, 7, 8, 9, 11], wrong: "the same after a promotion by force" },
    Once {
        seed: 20_662,
        only: &[0, 1, 2, 3, 4, 6, 7, 8, 9],
        wrong: "a Primary began a generation while a peer connected, which never heard of it, and later called the data that both had a split brain",
    },
    Once {
        seed: 102_103,
        only: &[0, 2, 3, 4, 5, 7, 8, 9, 10, 11, 14, 15, 16],
        wrong: "the simulator took a write for known to be on a peer because a later one was, and called a split brain false",
    },
    Once {
        seed: 31_414,
        only: &[1, 2, 4, 5],
        wrong: "the end of a resync lost a link, and with that began another one from an older source that had only waited",
    },
    Once {
        seed: 7104,
        only: &[],
        wrong: "a target that the Primary had written past asked every other source again, and never the Primary",
    },
    Once {
        seed: 120_316,
        only: &[1, 2, 6, 7],
        wrong: "a node that had lost its power long ago was no better than one that lost it now, though both had been equal since",
    },
    Once {
        seed: 120_824,
        only: &[2, 3, 5, 9],
        wrong: "a disk that was detached lost the writes of a peer that had been confirmed, and waited for their turn",
    },
    Once {
        seed: 200_997,
        only: &[0, 1, 2, 3, 4, 6],
        wrong: "with protocol A a Primary that had died was overwritten by a peer that had never got what it had flushed",
    },
    Once {
        seed: 201_844,
        only: &[0, 2, 3, 4, 5, 6, 9, 11, 12, 13, 14],
        wrong: "a target was promoted, and served the data of peers that lacked what its source had: both took over its next generation",
    },
    Once {
        seed: 301_073,
        only: &[0, 1, 2, 4, 5, 7, 8, 11, 12, 13],
        wrong: "the simulator took a write that was on its way when a resync ended for known to be there, and called a split brain false",
    },
    Once {
        seed: 405_010,
        only: &[0, 1, 2, 4, 6, 8, 10, 12, 13, 15],
        wrong: "a read for a resync that had ended waited for writes of a lost Primary, and the disk that was to be detached for the read",
    },
    Once {
        seed: 416_359,
        only: &[0, 1, 3, 4, 5, 6, 7, 10],
        wrong: "the simulator took a resync that had only waited, and lost its link when its target was Consistent, for one that had ended",
    },
    Once {
        seed: 121_997,
        only: &[9, 10, 11, 12],
        wrong: "a disconnect whose peer was lost meanwhile was carried out on the next connection, or never",
    },
    Once {
        seed: 120_923,
        only: &[0, 1, 4, 5],
        wrong: "a Primary told a peer that connected of a generation that its own disk lost with the power: a false split brain",
    },
    Once {
        seed: 420_002,
        only: &[0, 2],
        wrong: "the simulator took a write of protocol A for safe whose peer was not known to be UpToDate yet, and could take over without it",
    },
    Once {
        seed: 500_276,
        only: &[5, 7],
        wrong: "a node that had not noticed that the Primary went on without it was promoted beside later data",
    },
    Once {
        seed: 443_451,
        only: &[4, 5, 12, 13, 14, 15],
        wrong: "a Primary that had died and was back passed for the one that the source of a resync named, and its last write was missing",
    },
    Once {
        seed: 423_027,
        only: &[0, 1, 3, 4, 6, 7, 13, 14],
        wrong: "of three copies that were equal again two still counted as having lost writes",
    },
];

#[test]
fn sim_seeds_that_failed_once_pass() {
    let mut failed = Vec::new();
    for Once { seed, only, wrong } in REGRESSIONS {
        let run = Run { only: Some(only.to_vec()), ..Run::of(*seed) };
        if let Err(failure) = capture(|| run.run()) {
            failed.push(format!("seed {seed} ({wrong}): {}", failure.message));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// The first of the seeds that belong to this commit.
fn first_seed_of_commit() -> u64 {
    let output = Command::new("git").args(["rev-parse", "HEAD"]).output().expect("git tells the commit");
    let commit = String::from_utf8(output.stdout).expect("a hash is text");
    u64::from_str_radix(&commit[..12], 16).expect("a hash is a number")
}

fn report(summary: &Summary) {
    println!("{}", summary.coverage);
    println!(
        "{} passed, {} failed; a seed has a median of {} core inputs and {} faults; {:.1} seeds/s",
        summary.passed,
        summary.failed.len(),
        median(&summary.inputs),
        median(&summary.faults),
        summary.rate()
    );
    let failed: Vec<String> = summary.failed.iter().map(|(seed, f)| format!("seed {seed}: {}", f.message)).collect();
    assert!(failed.is_empty(), "reproduce with cargo sim --seed S --seeds 1\n{}", failed.join("\n"));
    assert!(median(&summary.inputs) >= 5_000, "a seed has too little work");
    assert!(median(&summary.faults) >= 10, "a seed has too few faults");
}

#[test]
fn sim_seeds_pass() {
    let fresh = std::env::var("ZEA_SIM_FRESH").ok().map(|n| n.parse::<u64>().expect("a number of seeds"));
    let plan = match fresh {
        Some(seeds) => Plan::new(first_seed_of_commit(), seeds),
        None => {
            println!("the fixed seeds: set ZEA_SIM_FRESH to run those of the commit");
            Plan::new(1, 300)
        }
    };
    report(&runner::run(&plan, || {}, |_, _, _| {}));
}

/// Seeds with quorum and isolated nodes.
const QUORUM_REGRESSIONS: &[(u64, &str)] = &[
    (1, "a generation in which nothing was acknowledged made a split brain of a Primary that had lost quorum"),
    (20, "a Primary withdrew a generation that a peer had taken over, and refused that peer for good"),
    (
        23,
        "who was just created and followed a generation had no past, and was unrelated to a resync that had been interrupted",
    ),
    (55, "with a number of votes that two groups can have, one group's writes were given up"),
    (202, "with protocol A, one group's writes were given up"),
    (283, "a target voted for a write, and was resynced by a node that lacked it"),
    (366, "a peer that was to connect again was taken for one without quorum, and this node for the last man standing"),
];

#[test]
fn sim_quorum_seeds_that_failed_once_pass() {
    let isolate = Fault::KINDS.iter().position(|k| *k == "isolate").expect("a kind of fault");
    for (seed, wrong) in QUORUM_REGRESSIONS {
        let run = Run { quorum: true, kinds: vec![isolate], ..Run::of(*seed) };
        if let Err(failed) = capture(|| run.run()) {
            panic!("seed {seed} fails again ({wrong}): {}", failed.message);
        }
    }
}

#[test]
fn sim_quorum_seeds_pass() {
    report(&runner::run(&Plan { quorum: true, ..Plan::new(1, 40) }, || {}, |_, _, _| {}));
}

#[test]
fn sim_84_seeds_pass() {
    let stands = ["pause", "clock-jump", "slow-disk", "slow-stream", "stall", "cut", "reset"];
    let number = |kind: &&str| Fault::KINDS.iter().position(|k| k == kind).expect("a kind of fault");
    let kinds = stands.iter().map(number).collect();
    let plan = Plan { nodes: Some(2), protocol: 101, kinds, ..Plan::new(101, 60) };
    report(&runner::run(&plan, || {}, |_, _, _| {}));
}

/// Without a word for a write that is not sent.
#[test]
fn sim_84_old_versions_seeds_pass() {
    let stands = ["pause", "clock-jump", "slow-disk", "slow-stream", "stall", "cut", "reset"];
    let number = |kind: &&str| Fault::KINDS.iter().position(|k| k == kind).expect("a kind of fault");
    let kinds: Vec<usize> = stands.iter().map(number).collect();
    for (protocol, first) in [(99, 200), (95, 300), (94, 400)] {
        let plan = Plan { nodes: Some(2), protocol, kinds: kinds.clone(), ..Plan::new(first, 15) };
        report(&runner::run(&plan, || {}, |_, _, _| {}));
    }
}
