//! The table of examples: two nodes in short notation, and what they lead to.

use std::fmt::Write;

use zea_wire::flags::UuidFlags;
use zea_wire::ids::NodeId;
use zea_wire::state::{DiskState, Role};

use super::{A, B, C, D, view};
use crate::uuid::{BitmapPrep, Context, Decision, JUST_CREATED, NO_INFORMATION, Side, UuidView, decide, keep_bits};

#[derive(Debug, Clone)]
pub(super) struct Node {
    view: UuidView,
    disk: DiskState,
    role: Role,
}

impl Node {
    pub(super) fn new(id: u8, current: u64) -> Self {
        Node { view: view(id, current), disk: DiskState::UpToDate, role: Role::Secondary }
    }

    pub(super) fn bitmap(mut self, towards: u8, uuid: u64) -> Self {
        self.view.bitmap[usize::from(towards)] = uuid;
        self
    }

    pub(super) fn history(mut self, uuids: &[u64]) -> Self {
        self.view.history[..uuids.len()].copy_from_slice(uuids);
        self
    }

    pub(super) fn flag(mut self, flag: UuidFlags) -> Self {
        self.view.flags = UuidFlags(self.view.flags.0 ^ flag.0);
        self
    }

    pub(super) fn bits(mut self, bits: u64) -> Self {
        self.view.dirty_bits = bits;
        self
    }

    pub(super) fn disk(mut self, disk: DiskState) -> Self {
        self.disk = disk;
        self
    }

    pub(super) fn primary(mut self) -> Self {
        self.role = Role::Primary;
        self
    }

    pub(super) fn neighbour_of(mut self, primary: u8) -> Self {
        self.view.flags.set(UuidFlags::STABLE, false);
        self.view.primaries = NodeId(primary).mask();
        self
    }

    fn side(&self) -> Side<'_> {
        Side { view: &self.view, disk: self.disk, role: self.role }
    }

    fn describe(&self) -> String {
        let mut text = format!("current {}", name(self.view.current));
        let bitmap = self.view.bitmap.iter().enumerate().filter(|(_, uuid)| **uuid != 0);
        for (node, uuid) in bitmap {
            write!(text, " bitmap[{node}] {}", name(*uuid)).expect("a string");
        }
        for uuid in self.view.history.iter().take_while(|uuid| **uuid != 0) {
            write!(text, " history {}", name(*uuid)).expect("a string");
        }
        if self.view.dirty_bits > 0 {
            write!(text, " bits {}", self.view.dirty_bits).expect("a string");
        }
        for (flag, flag_name) in FLAGS {
            if self.view.flags.contains(flag) {
                write!(text, " {flag_name}").expect("a string");
            }
        }
        if !self.view.flags.contains(UuidFlags::STABLE) {
            text.push_str(" not-STABLE");
        }
        for primary in self.view.primaries.iter() {
            write!(text, " neighbour of Primary {primary}").expect("a string");
        }
        if self.disk != DiskState::UpToDate {
            write!(text, " {}", self.disk).expect("a string");
        }
        if self.role == Role::Primary {
            text.push_str(" Primary");
        }
        text
    }
}

const FLAGS: [(UuidFlags, &str); 7] = [
    (UuidFlags::DISCARD_MY_DATA, "DISCARD_MY_DATA"),
    (UuidFlags::CRASHED_PRIMARY, "CRASHED_PRIMARY"),
    (UuidFlags::RECONNECT, "RECONNECT"),
    (UuidFlags::PRIMARY_LOST_QUORUM, "PRIMARY_LOST_QUORUM"),
    (UuidFlags::SYNC_TARGET, "SYNC_TARGET"),
    (UuidFlags::ZEA_LOST_WRITES, "LOST_WRITES"),
    (UuidFlags::ZEA_WAS_PRIMARY, "WAS_PRIMARY"),
];

fn name(uuid: u64) -> String {
    let letter = match uuid & !1 {
        A => "A",
        B => "B",
        C => "C",
        D => "D",
        0 => "0",
        _ if uuid == NO_INFORMATION => return "-".to_string(),
        JUST_CREATED => "4",
        other => return format!("{other:x}"),
    };
    let primary = if uuid & 1 == 1 { "'" } else { "" };
    format!("{letter}{primary}")
}

fn outcome(decision: &Decision) -> String {
    let mut text = format!("{:?}", decision.outcome);
    match decision.bitmap {
        BitmapPrep::Keep => {}
        BitmapPrep::SetAll => text.push_str(", set all bits"),
        BitmapPrep::Clear => text.push_str(", clear bits"),
        BitmapPrep::CopyFrom { node, keep_own: false } => {
            write!(text, ", copy slot of {node}").expect("a string");
        }
        BitmapPrep::CopyFrom { node, keep_own: true } => {
            write!(text, ", add slot of {node}").expect("a string");
        }
    }
    if decision.postponed {
        text.push_str(", postponed");
    }
    if decision.unverified {
        text.push_str(", unverified");
    }
    text
}

/// The table as text.
pub(super) struct Table {
    pub(super) text: String,
}

impl Table {
    pub(super) fn heading(&mut self, text: &str) {
        writeln!(self.text, "\n## {text}").expect("a string");
    }

    pub(super) fn row(&mut self, number: &str, what: &str, cx: Context<'_>, own: &Node, peer: &Node) {
        let connecting = Context { sent: cx.sent.or(Some(&own.view)), ..cx };
        self.row_at(number, what, connecting, own, peer);
    }

    pub(super) fn row_at(&mut self, number: &str, what: &str, cx: Context<'_>, own: &Node, peer: &Node) {
        let decision = decide(&cx, &own.side(), &peer.side());
        let kernel_peer = keep_bits(decision, &cx, &own.side(), &peer.side(), false);
        let zea_peer = keep_bits(decision, &cx, &own.side(), &peer.side(), true);
        let mut line = |label: &str, text: &str| {
            writeln!(self.text, "     {label:<6} {text}").expect("a string");
        };
        line("own", &own.describe());
        line("peer", &peer.describe());
        line("->", &format!("{} by rule {}", decision.strategy, decision.rule));
        line("", &outcome(&kernel_peer));
        if zea_peer != kernel_peer {
            let text = format!("{}: {}", zea_peer.strategy, outcome(&zea_peer));
            line("ZEA", &text);
        }
        let head = format!("\n{number:>4} {what} [{}]\n", cx.agreed_version);
        let at = self.text.rfind("     own ").expect("just written");
        self.text.insert_str(at, &head);
    }
}
