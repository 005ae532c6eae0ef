//! Which states and transitions runs have reached, and which faults they met.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use zea_core::event::Status;
use zea_wire::state::{ConnState, DiskState, ReplState, Role};

/// Transitions by kind of object, from and to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Coverage {
    roles: BTreeSet<(Role, Role)>,
    disks: BTreeSet<(DiskState, DiskState)>,
    peer_disks: BTreeSet<(DiskState, DiskState)>,
    conns: BTreeSet<(ConnState, ConnState)>,
    repls: BTreeSet<(ReplState, ReplState)>,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
}

fn add<T: Ord + Copy>(set: &mut BTreeSet<(T, T)>, from: T, to: T) {
    if from != to {
        set.insert((from, to));
    }
}

impl Coverage {
    /// A node's status changed.
    pub fn note(&mut self, before: &Status, now: &Status) {
        add(&mut self.roles, before.role, now.role);
        for (a, b) in before.devices.iter().zip(&now.devices) {
            add(&mut self.disks, a.disk, b.disk);
        }
        for (a, b) in before.connections.iter().zip(&now.connections) {
            add(&mut self.conns, a.conn, b.conn);
            for (p, q) in a.peer_devices.iter().zip(&b.peer_devices) {
                add(&mut self.repls, p.repl, q.repl);
                add(&mut self.peer_disks, p.peer_disk, q.peer_disk);
            }
        }
    }

    /// A fault was injected.
    pub fn fault(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    /// Adds what another run reached.
    pub fn merge(&mut self, other: &Coverage) {
        self.roles.extend(&other.roles);
        self.disks.extend(&other.disks);
        self.peer_disks.extend(&other.peer_disks);
        self.conns.extend(&other.conns);
        self.repls.extend(&other.repls);
        for (kind, count) in &other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
    }
}

fn list<T: fmt::Display + Ord>(f: &mut fmt::Formatter<'_>, name: &str, set: &BTreeSet<(T, T)>) -> fmt::Result {
    let states: BTreeSet<&T> = set.iter().flat_map(|(a, b)| [a, b]).collect();
    let names: Vec<String> = states.iter().map(|s| s.to_string()).collect();
    writeln!(f, "  {name:<11} {:>3} transitions between {} states: {}", set.len(), states.len(), names.join(" "))
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, "role", &self.roles)?;
        list(f, "disk", &self.disks)?;
        list(f, "peer disk", &self.peer_disks)?;
        list(f, "connection", &self.conns)?;
        list(f, "replication", &self.repls)?;
        let faults: Vec<String> = self.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        write!(f, "  faults      {}", faults.join(", "))
    }
}
