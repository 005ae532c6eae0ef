//! The rules of counting, one row each.

use super::Quorum::{All, Majority, Number, Off};
use super::Vote::{Outdated, Present, Quorumless, Unknown, UpToDate};
use super::{Electorate, Quorum, QuorumOptions, Rule, Vote, count};

struct Row {
    what: &'static str,
    quorum: Quorum,
    redundancy: Quorum,
    e: Electorate,
    rule: &'static str,
}

fn row(what: &'static str, quorum: Quorum, votes: &[Vote], rule: &'static str) -> Row {
    let e = Electorate { votes: votes.iter().copied().collect(), had_quorum: true, ..Electorate::default() };
    Row { what, quorum, redundancy: Off, e, rule }
}

impl Row {
    fn had_none(mut self) -> Row {
        self.e.had_quorum = false;
        self
    }

    fn diskless(mut self, here: u32, of: u32) -> Row {
        (self.e.diskless_here, self.e.diskless) = (here, of);
        self
    }

    fn redundancy(mut self, redundancy: Quorum) -> Row {
        self.redundancy = redundancy;
        self
    }

    fn server(mut self) -> Row {
        self.e.quorate_server = true;
        self
    }
}

fn rows() -> Vec<Row> {
    vec![
        row("all three", Majority, &[UpToDate, UpToDate, UpToDate], "votes"),
        row("two of three", Majority, &[UpToDate, UpToDate, Unknown], "votes"),
        row("two of three, one is behind", Majority, &[UpToDate, Present, Unknown], "votes"),
        row("one of three", Majority, &[UpToDate, Unknown, Unknown], "too-few"),
        row("one of two", Majority, &[UpToDate, Unknown], "too-few"),
        row("two of four", Majority, &[UpToDate, UpToDate, Unknown, Unknown], "too-few"),
        row("three of four", Majority, &[UpToDate, Present, Present, Unknown], "votes"),
        row("nobody but the one who is away", Majority, &[Unknown], "too-few"),
        row("a disk that is not UpToDate counts", Majority, &[Present, Present, Unknown], "votes"),
        // all, number
        row("all: all", All, &[UpToDate, UpToDate], "votes"),
        row("all: one is away", All, &[UpToDate, UpToDate, Unknown], "too-few"),
        row("all: the one who is away is Outdated", All, &[UpToDate, UpToDate, Outdated], "last-man-standing"),
        row("number: as many", Number(2), &[UpToDate, Present, Unknown, Unknown, Unknown], "votes"),
        row("number: one less", Number(3), &[UpToDate, Present, Unknown], "too-few"),
        row("number: nobody else can, and still it is too few", Number(2), &[UpToDate, Outdated], "too-few"),
        // last man standing
        row("the others left in order", Majority, &[UpToDate, Outdated, Outdated], "last-man-standing"),
        row("one left in order, one was lost", Majority, &[UpToDate, Outdated, Unknown], "too-few"),
        row("two nodes, the other one is no member", Majority, &[UpToDate, Quorumless], "last-man-standing"),
        row("two are no members, and have met since", Majority, &[UpToDate, Quorumless, Quorumless], "too-few"),
        row("one is no member, one was lost", Majority, &[UpToDate, Quorumless, Unknown], "too-few"),
        row(
            "five: two are no members, one left",
            Majority,
            &[UpToDate, UpToDate, Quorumless, Quorumless, Outdated],
            "too-few",
        ),
        row("who had none knows nothing of others", Majority, &[UpToDate, Quorumless], "too-few").had_none(),
        row("Outdated counts also without", Majority, &[UpToDate, Outdated], "last-man-standing").had_none(),
        // tie-breaker
        row("with the tie-breaker", Majority, &[UpToDate, Unknown], "tie-breaker").diskless(1, 1),
        row("without the tie-breaker", Majority, &[UpToDate, Unknown], "too-few").diskless(0, 1),
        row("the tie-breaker gives nobody quorum anew", Majority, &[UpToDate, Unknown], "too-few")
            .diskless(1, 1)
            .had_none(),
        row("two of four with it", Majority, &[UpToDate, Present, Unknown, Unknown], "tie-breaker").diskless(1, 1),
        row("half of the tie-breakers", Majority, &[UpToDate, Unknown], "too-few").diskless(1, 2),
        row("most of them", Majority, &[UpToDate, Unknown], "tie-breaker").diskless(2, 3),
        row("an odd number has no tie", Majority, &[UpToDate, Unknown, Unknown], "too-few").diskless(1, 1),
        row("two votes are missing", Majority, &[UpToDate, Unknown, Unknown, Unknown], "too-few").diskless(1, 1),
        row("all: there is no tie to break", All, &[UpToDate, Unknown], "too-few").diskless(1, 1),
        // redundancy
        row("redundancy: two UpToDate", Majority, &[UpToDate, UpToDate, Unknown], "votes").redundancy(Number(2)),
        row("redundancy: one of two", Majority, &[UpToDate, Present, Unknown], "redundancy").redundancy(Number(2)),
        row("redundancy: most of three", Majority, &[UpToDate, Present, Present], "redundancy").redundancy(Majority),
        row("redundancy: all", Number(1), &[UpToDate, UpToDate], "votes").redundancy(All),
        row("redundancy beside the tie-breaker", Majority, &[UpToDate, Unknown], "redundancy")
            .diskless(1, 1)
            .redundancy(Number(2)),
        // a node without a disk
        row("a server has it", Majority, &[UpToDate, Unknown], "server").server(),
        row("servers enough, none has told", Majority, &[UpToDate, UpToDate], "votes").had_none(),
    ]
}

#[test]
fn quorum_is_counted_by_these_rules() {
    let mut reached = std::collections::BTreeSet::new();
    for row in rows() {
        let options =
            QuorumOptions { quorum: row.quorum, minimum_redundancy: row.redundancy, ..QuorumOptions::default() };
        let rule = count(&options, &row.e);
        assert_eq!(rule.as_str(), row.rule, "{}", row.what);
        reached.insert(rule.as_str());
    }
    let all = [Rule::Votes, Rule::LastManStanding, Rule::TieBreaker, Rule::Server, Rule::TooFew, Rule::Redundancy];
    assert_eq!(reached.len(), all.len(), "every rule has a row");
}

/// However five nodes are parted, and whatever each knows of the others that is true, two groups never both have a majority.
#[test]
fn quorum_of_a_majority_is_in_one_group_only() {
    let options = QuorumOptions { quorum: Majority, ..QuorumOptions::default() };
    for size in 1..=6_usize {
        for group in 1..size {
            let side = |here: usize| {
                let mut votes = vec![UpToDate; here];
                votes.resize(size, Unknown);
                count(
                    &options,
                    &Electorate { votes: votes.into_iter().collect(), had_quorum: true, ..Electorate::default() },
                )
                .has_quorum()
            };
            assert!(!(side(group) && side(size - group)), "{group} and {} of {size}", size - group);
        }
    }
}
