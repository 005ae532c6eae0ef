//! The options of a resource that are about quorum. Names and defaults are DRBD's, unless the text says otherwise.

use std::fmt;
use std::str::FromStr;

use rkyv::{Archive, Deserialize, Serialize};

/// How many votes it takes: `quorum`, and `quorum-minimum-redundancy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Archive, Serialize, Deserialize)]
pub enum Quorum {
    /// Nobody counts.
    #[default]
    Off,
    /// More than half.
    Majority,
    /// Every one.
    All,
    /// So many, 1 to 32.
    Number(u8),
}

impl Quorum {
    /// The votes that it takes of so many voters.
    pub const fn needed(self, voters: u32) -> u32 {
        match self {
            Quorum::Off => 0,
            Quorum::Majority => voters / 2 + 1,
            Quorum::All => voters,
            Quorum::Number(n) => n as u32,
        }
    }
}

impl fmt::Display for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Quorum::Off => f.write_str("off"),
            Quorum::Majority => f.write_str("majority"),
            Quorum::All => f.write_str("all"),
            Quorum::Number(n) => n.fmt(f),
        }
    }
}

impl FromStr for Quorum {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Quorum::Off),
            "majority" => Ok(Quorum::Majority),
            "all" => Ok(Quorum::All),
            _ => match text.parse() {
                Ok(n @ 1..=32) => Ok(Quorum::Number(n)),
                _ => Err(format!("`{text}` is no number of votes; there are off, majority, all, 1 to 32")),
            },
        }
    }
}

/// What becomes of the I/O of a Primary without quorum: `on-no-quorum`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Archive, Serialize, Deserialize)]
pub enum OnNoQuorum {
    /// It waits until there is quorum again.
    #[default]
    SuspendIo,
    /// It fails.
    IoError,
}

impl OnNoQuorum {
    /// All of them.
    pub const ALL: &[OnNoQuorum] = &[OnNoQuorum::SuspendIo, OnNoQuorum::IoError];

    /// The name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            OnNoQuorum::SuspendIo => "suspend-io",
            OnNoQuorum::IoError => "io-error",
        }
    }
}

/// What a Primary with suspended I/O does when it meets a peer whose data went on without it: `on-suspended-primary-outdated`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Archive, Serialize, Deserialize)]
pub enum OnSuspendedPrimaryOutdated {
    /// It does not connect.
    #[default]
    Disconnect,
    /// Its I/O fails, and it becomes Secondary and is resynced.
    ForceSecondary,
}

impl OnSuspendedPrimaryOutdated {
    /// All of them.
    pub const ALL: &[OnSuspendedPrimaryOutdated] =
        &[OnSuspendedPrimaryOutdated::Disconnect, OnSuspendedPrimaryOutdated::ForceSecondary];

    /// The name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            OnSuspendedPrimaryOutdated::Disconnect => "disconnect",
            OnSuspendedPrimaryOutdated::ForceSecondary => "force-secondary",
        }
    }
}

/// The options, as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Archive, Serialize, Deserialize)]
pub struct QuorumOptions {
    /// Votes that a Primary needs: of all nodes with a disk, that are connected.
    pub quorum: Quorum,
    /// Of these, votes of disks that are UpToDate.
    pub minimum_redundancy: Quorum,
    /// See [`OnNoQuorum`].
    pub on_no_quorum: OnNoQuorum,
    /// See [`OnSuspendedPrimaryOutdated`].
    pub on_suspended_primary_outdated: OnSuspendedPrimaryOutdated,
    /// Suspended I/O fails after this time; 0: never. Not in DRBD.
    pub suspended_io_timeout_ms: u64,
}
