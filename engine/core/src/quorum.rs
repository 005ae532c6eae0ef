//! Quorum: whether the nodes that this one is connected to may go on alone (handshake-and-states.md 9).
//!
//! Counting is a pure function of the votes. A node that could be part of another group with quorum is `Unknown`; one that
//! certainly is not is `Outdated` or `Quorumless`.

mod confirm;
mod gate;
mod options;
mod parting;
mod standing;
#[cfg(test)]
mod tests;
mod unfinished;
mod withdraw;

use rkyv::{Archive, Deserialize, Serialize};
use zea_wire::state::DiskState;

pub(crate) use gate::Gate;
pub use options::{OnNoQuorum, OnSuspendedPrimaryOutdated, Quorum, QuorumOptions};
pub(crate) use standing::{QuorumState, Standing};

/// What a voter counts for. A voter is a node with a bitmap slot: it has a disk, or is to have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    /// Here, or connected, with an UpToDate disk.
    UpToDate,
    /// Here, or connected, in any other state.
    Present,
    /// Away, and it said last that its disk is behind: it cannot be promoted.
    Outdated,
    /// Away since before this group had quorum without it, so that it has none.
    Quorumless,
    /// Away, and nothing is known of it.
    Unknown,
}

/// Votes by kind: they are counted after every input, so nothing is allocated for them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Votes([u32; 5]);

impl Votes {
    pub(crate) fn add(&mut self, vote: Vote) {
        self.0[vote as usize] += 1;
    }

    pub(crate) fn of(&self, vote: Vote) -> u32 {
        self.0[vote as usize]
    }

    /// Those of this node and of connected ones.
    pub(crate) fn here(&self) -> u32 {
        self.of(Vote::UpToDate) + self.of(Vote::Present)
    }

    pub(crate) fn all(&self) -> u32 {
        self.0.iter().sum()
    }
}

impl FromIterator<Vote> for Votes {
    fn from_iter<I: IntoIterator<Item = Vote>>(votes: I) -> Votes {
        let mut all = Votes::default();
        votes.into_iter().for_each(|vote| all.add(vote));
        all
    }
}

/// Everything that counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Electorate {
    pub(crate) votes: Votes,
    /// Nodes that keep no disk on purpose, and those of them that are connected: together they break a tie.
    pub(crate) diskless: u32,
    pub(crate) diskless_here: u32,
    /// This node had quorum until now.
    pub(crate) had_quorum: bool,
    /// This node has no disk, and a connected UpToDate peer says that it has quorum.
    pub(crate) quorate_server: bool,
}

/// Why there is quorum, or why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(crate) enum Rule {
    /// Enough votes are here.
    Votes,
    /// Nobody who is away can have quorum, so only those who are here count.
    LastManStanding,
    /// One vote of an even number is missing, and the diskless nodes are on this side.
    TieBreaker,
    /// A node without a disk has the quorum of its server.
    Server,
    /// Too few votes.
    TooFew,
    /// Enough votes, and too few of UpToDate disks (`quorum-minimum-redundancy`).
    Redundancy,
}

impl Rule {
    #[cfg(test)]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Rule::Votes => "votes",
            Rule::LastManStanding => "last-man-standing",
            Rule::TieBreaker => "tie-breaker",
            Rule::Server => "server",
            Rule::TooFew => "too-few",
            Rule::Redundancy => "redundancy",
        }
    }

    pub(crate) const fn has_quorum(self) -> bool {
        !matches!(self, Rule::TooFew | Rule::Redundancy)
    }
}

/// A node that says this of its disk is not promoted.
pub(crate) fn is_behind(disk: DiskState) -> bool {
    matches!(disk, DiskState::Inconsistent | DiskState::Outdated)
}

/// Counts the votes.
pub(crate) fn count(options: &QuorumOptions, e: &Electorate) -> Rule {
    if e.quorate_server {
        return Rule::Server;
    }
    let (up_to_date, outdated) = (e.votes.of(Vote::UpToDate), e.votes.of(Vote::Outdated));
    let here = e.votes.here();
    let (mut unknown, mut quorumless) = (e.votes.of(Vote::Unknown), e.votes.of(Vote::Quorumless));
    if !e.had_quorum {
        // Who has none itself knows nothing of the others'.
        unknown += std::mem::take(&mut quorumless);
    }
    let all = here + outdated + quorumless + unknown;
    if outdated + quorumless + unknown >= options.quorum.needed(all) {
        // Together they may have come to have it since.
        unknown += quorumless;
    }
    let alone = unknown == 0;
    let voters = if alone { here } else { all };
    let needed = options.quorum.needed(voters);
    let redundant = up_to_date >= options.minimum_redundancy.needed(voters);
    let tie_breaks = options.quorum == Quorum::Majority
        && voters.is_multiple_of(2)
        && here + 1 == needed
        && 2 * e.diskless_here > e.diskless
        && e.had_quorum;
    match here {
        0 => Rule::TooFew,
        _ if here < needed && !tie_breaks => Rule::TooFew,
        _ if !redundant => Rule::Redundancy,
        _ if here < needed => Rule::TieBreaker,
        _ if here < options.quorum.needed(all) => Rule::LastManStanding,
        _ => Rule::Votes,
    }
}
