//! Which of the legal transitions runs have reached, which rules of the UUID comparison, which outcomes of two-phase commits,
//! and which faults they met. What the tables below do not have is a violation. They are those of DRBD 9: nodes that speak 8.4
//! are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use zea_core::event::Status;
use zea_wire::state::{ConnState, DiskState, ReplState, Role};

/// From each state, or for each rule or kind of change, what may follow.
type Table<T> = &'static [(T, &'static [T])];

const ROLES: Table<Role> = &[(Role::Secondary, &[Role::Primary]), (Role::Primary, &[Role::Secondary])];

const CONNECTIONS: Table<ConnState> = {
    use ConnState::{Connected, Connecting, StandAlone, Unconnected};
    &[
        (StandAlone, &[Unconnected, Connecting]),
        (Unconnected, &[StandAlone, Connecting]),
        (Connecting, &[StandAlone, Unconnected, Connected]),
        (Connected, &[StandAlone, Unconnected, Connecting]),
    ]
};

const REPLICATION: Table<ReplState> = {
    use ReplState::{
        Established, Off, PausedSyncS, PausedSyncT, StartingSyncT, SyncSource, SyncTarget, VerifyS, VerifyT, WFBitMapS,
        WFBitMapT,
    };
    &[
        (Off, &[Established, WFBitMapS, WFBitMapT]),
        (
            Established,
            &[
                Off,
                VerifyS,
                VerifyT,
                WFBitMapS,
                WFBitMapT,
                SyncSource,
                SyncTarget,
                PausedSyncS,
                PausedSyncT,
                StartingSyncT,
            ],
        ),
        (StartingSyncT, &[Off, Established, SyncTarget, PausedSyncT]),
        (VerifyS, &[Off, Established]),
        (VerifyT, &[Off, Established]),
        (WFBitMapS, &[Off, Established, SyncSource, PausedSyncS]),
        (WFBitMapT, &[Off, Established, SyncTarget, PausedSyncT]),
        (SyncSource, &[Off, Established, PausedSyncS]),
        (SyncTarget, &[Off, Established, PausedSyncT]),
        (PausedSyncS, &[Off, Established, SyncSource]),
        (PausedSyncT, &[Off, Established, SyncTarget]),
    ]
};

/// The local disk. One input may take a failing disk all the way to Diskless.
const DISKS: Table<DiskState> = {
    use DiskState::{Attaching, Consistent, Detaching, Diskless, Failed, Inconsistent, Outdated, UpToDate};
    &[
        (Diskless, &[Attaching]),
        (Attaching, &[Diskless, Inconsistent, Outdated, UpToDate]),
        (Detaching, &[Diskless, Failed]),
        (Failed, &[Diskless]),
        (Inconsistent, &[Diskless, Detaching, Failed, Outdated, Consistent, UpToDate]),
        (Outdated, &[Diskless, Detaching, Failed, Inconsistent, UpToDate]),
        (Consistent, &[Diskless, Detaching, Failed, Inconsistent, Outdated, UpToDate]),
        (UpToDate, &[Diskless, Detaching, Failed, Inconsistent, Outdated, Consistent]),
    ]
};

/// A peer's disk as this node knows it: what the peer goes through, with steps left out that were not told one by one, or after
/// which this node connected again at once. A negative ack says Failed before the peer does.
const PEER_DISKS: Table<DiskState> = {
    use DiskState::{Attaching, Consistent, DUnknown, Detaching, Diskless, Failed, Inconsistent, Outdated, UpToDate};
    &[
        (DUnknown, &[Diskless, Attaching, Detaching, Failed, Inconsistent, Outdated, Consistent, UpToDate]),
        (Diskless, &[DUnknown, Attaching, Failed]),
        (Attaching, &[DUnknown, Diskless, Failed, Inconsistent, Outdated, UpToDate]),
        (Detaching, &[DUnknown, Diskless, Failed]),
        (Failed, &[DUnknown, Diskless, Attaching, Detaching]),
        (Inconsistent, &[DUnknown, Diskless, Detaching, Failed, Outdated, Consistent, UpToDate]),
        (Outdated, &[DUnknown, Diskless, Detaching, Failed, Inconsistent, Consistent, UpToDate]),
        (Consistent, &[DUnknown, Diskless, Detaching, Failed, Inconsistent, Outdated, UpToDate]),
        (UpToDate, &[DUnknown, Diskless, Detaching, Failed, Inconsistent, Outdated, Consistent]),
    ]
};

/// Rules of the UUID comparison between nodes of this version, with their strategies (`uuid/compare.rs`).
const RULES: Table<&str> = &[
    ("initial-handshake-changed", &["retry-connect"]),
    ("just-created-both", &["no-sync"]),
    ("just-created-self", &["target-set-bitmap"]),
    ("just-created-peer", &["source-set-bitmap"]),
    ("sync-source-missed-finish", &["source-use-bitmap"]),
    ("sync-target-peer-missed-finish", &["target-use-bitmap"]),
    ("reconnected", &["no-sync"]),
    ("crashed-primary", &["source-use-bitmap", "target-use-bitmap"]),
    ("lost-quorum", &["no-sync", "source-if-both-failed", "target-if-both-failed"]),
    ("both-off", &["no-sync", "source-if-both-failed", "target-if-both-failed"]),
    ("bitmap-peer", &["target-use-bitmap"]),
    ("bitmap-peer-other", &["target-clear-bitmap"]),
    ("bitmap-self", &["source-use-bitmap"]),
    ("bitmap-self-other", &["source-copy-other-bitmap"]),
    ("history-peer", &["target-set-bitmap"]),
    ("history-self", &["source-set-bitmap"]),
    ("bitmap-both", &["split-brain-auto-recover"]),
    ("history-both", &["split-brain-disconnect", "unrelated-data"]),
    ("contradiction", &["split-brain-disconnect"]),
];

/// Cluster-wide changes, and what becomes of them.
const CHANGES: Table<&str> = &[
    ("connect", &["commit", "abort"]),
    ("promote", &["commit", "abort"]),
    ("demote", &["commit", "abort"]),
    ("disconnect", &["commit", "abort"]),
    ("empty", &["commit", "abort"]),
    ("full-sync", &["commit", "abort"]),
    ("resize", &["commit", "abort"]),
];

/// What was reached of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reached<T: 'static> {
    kind: &'static str,
    table: Table<T>,
    pairs: BTreeSet<(T, T)>,
}

impl<T: Copy + Ord + fmt::Display> Reached<T> {
    fn new(kind: &'static str, table: Table<T>) -> Reached<T> {
        Reached { kind, table, pairs: BTreeSet::new() }
    }

    fn legal(&self) -> impl Iterator<Item = (T, T)> {
        self.table.iter().flat_map(|(from, all)| all.iter().map(|to| (*from, *to)))
    }

    /// Notes a step.
    ///
    /// # Errors
    /// The table does not have it.
    fn note(&mut self, from: T, to: T) -> Result<(), String> {
        if from == to || self.pairs.contains(&(from, to)) {
            return Ok(());
        }
        if !self.legal().any(|pair| pair == (from, to)) {
            return Err(format!("{}: {from} to {to}", self.kind));
        }
        self.pairs.insert((from, to));
        Ok(())
    }
}

impl<T: Copy + Ord + fmt::Display> fmt::Display for Reached<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let never: Vec<String> =
            self.legal().filter(|pair| !self.pairs.contains(pair)).map(|(a, b)| format!("{a} to {b}")).collect();
        write!(f, "  {:<11} {:>2} of {:>2}", self.kind, self.pairs.len(), self.legal().count())?;
        if !never.is_empty() {
            write!(f, "; never: {}", never.join(", "))?;
        }
        writeln!(f)
    }
}

/// What was reached, by kind of object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    roles: Reached<Role>,
    disks: Reached<DiskState>,
    peer_disks: Reached<DiskState>,
    conns: Reached<ConnState>,
    repls: Reached<ReplState>,
    rules: Reached<&'static str>,
    changes: Reached<&'static str>,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
}

impl Default for Coverage {
    fn default() -> Self {
        Coverage {
            roles: Reached::new("role", ROLES),
            disks: Reached::new("disk", DISKS),
            peer_disks: Reached::new("peer disk", PEER_DISKS),
            conns: Reached::new("connection", CONNECTIONS),
            repls: Reached::new("replication", REPLICATION),
            rules: Reached::new("uuid rule", RULES),
            changes: Reached::new("two-phase", CHANGES),
            faults: BTreeMap::new(),
        }
    }
}

impl Coverage {
    /// A node's status changed.
    ///
    /// # Errors
    /// A transition that is not legal.
    pub fn note(&mut self, before: &Status, now: &Status) -> Result<(), String> {
        self.roles.note(before.role, now.role)?;
        for a in &before.devices {
            if let Some(b) = now.devices.iter().find(|b| b.volume == a.volume) {
                self.disks.note(a.disk, b.disk)?;
            }
        }
        for a in &before.connections {
            let Some(b) = now.connections.iter().find(|b| b.peer == a.peer) else { continue };
            self.conns.note(a.conn, b.conn)?;
            for p in &a.peer_devices {
                if let Some(q) = b.peer_devices.iter().find(|q| q.volume == p.volume) {
                    self.repls.note(p.repl, q.repl)?;
                    self.peer_disks.note(p.peer_disk, q.peer_disk)?;
                }
            }
        }
        Ok(())
    }

    /// A node told that it compared two replicas: "…: STRATEGY by rule RULE".
    ///
    /// # Errors
    /// The rule does not lead to this strategy.
    pub fn compared(&mut self, notice: &str) -> Result<(), String> {
        let Some((before, rule)) = notice.rsplit_once(" by rule ") else { return Ok(()) };
        let strategy = before.rsplit(' ').next().unwrap_or_default();
        let known = self.rules.legal().find(|pair| *pair == (rule, strategy));
        match known {
            Some((rule, strategy)) => self.rules.note(rule, strategy),
            None => Err(format!("uuid rule: {rule} to {strategy}")),
        }
    }

    /// A cluster-wide change was committed or aborted.
    pub fn decided(&mut self, change: &'static str, commits: bool) {
        self.changes.note(change, if commits { "commit" } else { "abort" }).expect("the table has all of them");
    }

    /// A fault was injected.
    pub fn fault(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    /// Adds what another run reached.
    pub fn merge(&mut self, other: &Coverage) {
        self.roles.pairs.extend(&other.roles.pairs);
        self.disks.pairs.extend(&other.disks.pairs);
        self.peer_disks.pairs.extend(&other.peer_disks.pairs);
        self.conns.pairs.extend(&other.conns.pairs);
        self.repls.pairs.extend(&other.repls.pairs);
        self.rules.pairs.extend(&other.rules.pairs);
        self.changes.pairs.extend(&other.changes.pairs);
        for (kind, count) in &other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}{}", self.roles, self.disks, self.peer_disks, self.conns)?;
        write!(f, "{}{}{}", self.repls, self.rules, self.changes)?;
        let faults: Vec<String> = self.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        write!(f, "  faults      {}", faults.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sim_coverage_knows_what_is_legal_and_what_was_never_reached() {
        let mut coverage = Coverage::default();
        assert_eq!(coverage.roles.note(Role::Secondary, Role::Primary), Ok(()));
        assert_eq!(coverage.disks.note(DiskState::UpToDate, DiskState::UpToDate), Ok(()));
        let refused = coverage.disks.note(DiskState::Diskless, DiskState::UpToDate);
        assert_eq!(refused, Err("disk: Diskless to UpToDate".into()));
        let compared = |text: &str| Coverage::default().compared(text);
        assert_eq!(compared("volume 0: compared with node 1: no-sync by rule both-off"), Ok(()));
        assert_eq!(compared("volume 0: something else"), Ok(()));
        assert!(compared("volume 0: compared with node 1: no-sync by rule bitmap-self").is_err());
        coverage.decided("connect", false);
        let text = coverage.to_string();
        assert!(text.contains("role         1 of  2; never: Primary to Secondary"), "{text}");
        assert!(text.contains("two-phase    1 of 14; never: connect to commit"), "{text}");
        let mut merged = Coverage::default();
        merged.merge(&coverage);
        assert_eq!(merged, coverage);
    }

    /// Every rule of the comparison stands in the table, under its name.
    #[test]
    fn sim_coverage_has_every_rule_of_the_comparison() {
        let source = include_str!("../../../engine/core/src/uuid/compare.rs");
        let names = source.lines().filter_map(|line| line.trim().strip_prefix("Rule::")?.split_once(" => \""));
        let names = names.filter_map(|(_, rest)| rest.split('"').next());
        // Those of the table for 8.4 alone are no part of it.
        let names: BTreeSet<&str> = names.filter(|name| !name.starts_with("sync-uuid-")).collect();
        let table: BTreeSet<&str> = RULES.iter().map(|(rule, _)| *rule).collect();
        assert_eq!(names, table);
    }
}
