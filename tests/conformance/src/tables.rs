//! Where Zea differs on purpose, and what it cannot do yet.

use crate::compare::{Difference, Kind};

/// Something that Zea does differently on purpose.
#[derive(Debug)]
pub struct Deviation {
    /// Its name.
    pub name: &'static str,
    /// Why.
    pub why: &'static str,
    /// Whether a difference in a recording is this.
    covers: fn(&str, &Difference) -> bool,
}

/// A replay that does not pass.
#[derive(Debug)]
pub struct Expected {
    /// How the name of the recording begins.
    pub recording: &'static str,
    /// The node that Zea plays; empty for all.
    pub node: &'static str,
    /// What is missing.
    pub why: &'static str,
}

/// The deviation that explains a difference.
pub fn deviation(recording: &str, difference: &Difference) -> Option<&'static Deviation> {
    DEVIATIONS.iter().find(|d| (d.covers)(recording, difference))
}

/// What is expected of a replay, if it is not to pass.
pub fn expected_failure(recording: &str, node: &str) -> Option<&'static Expected> {
    EXPECTED_FAILURES.iter().find(|e| recording.starts_with(e.recording) && (e.node.is_empty() || e.node == node))
}

/// One of these fields of this packet.
fn is_field(difference: &Difference, packet: &str, names: &[&str]) -> bool {
    let Kind::Field { name, .. } = &difference.kind else { return false };
    difference.packet == packet && names.contains(&name.as_str())
}

/// All bits of a volume: of the recorded disks, or of one that was made smaller.
fn is_all(dirty_bits: &str) -> bool {
    ["4086", "4096"].contains(&dirty_bits)
}

/// See the module.
pub const DEVIATIONS: &[Deviation] = &[
    Deviation {
        name: "offers what it has",
        why: "protocol 100 and above, and node ids also to 8.4, which has none; no resync without replication, one bitmap \
              granularity, no reconciliation by dagtag; and Zea's private feature, which a kernel ignores",
        covers: |_, d| {
            let own = ["protocol_min", "feature_flags", "sender_node_id", "receiver_node_id"];
            is_field(d, "P_CONNECTION_FEATURES", &own)
        },
    },
    Deviation {
        name: "speaks to 8.4 as 9 does",
        why: "the flags QUORUM of a state and INCONSISTENT of UUIDs, and a first generation that follows a random one instead \
              of 4: 9.3.3 sends them to 8.4 in mix-01",
        covers: |_, d| {
            let Kind::Field { name, recorded, own } = &d.kind else { return false };
            let quorum = d.packet == "P_STATE" && name == "flags" && recorded == "0x0" && own == "QUORUM";
            let past = ["bitmap", "history0", "history1"].contains(&name.as_str());
            d.packet == "P_UUIDS" && past && recorded == "0000000000000004"
                || d.packet == "P_UUIDS" && name == "uuid_flags" && recorded == "0x0" && own == "INCONSISTENT"
                || quorum
        },
    },
    Deviation {
        name: "a fresh slot has no bits",
        why: "the bitmap slot of a disk that was never written is empty until a resync is decided; in kernels all its bits are set",
        covers: |_, d| match &d.kind {
            Kind::Field { name, recorded, own } => name == "dirty_bits" && is_all(recorded) && own == "0",
            Kind::Extra(text) => {
                let fresh = text.starts_with("current=0000000000000004 ") && text.contains("dirty_bits=4086");
                d.packet.starts_with("P_UUIDS") && fresh
            }
            _ => false,
        },
    },
    Deviation {
        name: "speaks to 8.4 as 8.4 does",
        why: "what is said while connecting, which packet asks for a role, and no state when a resync begins, of which P_SYNC_UUID \
              tells: 9.3.3 has its own words, which 8.4 takes, too",
        covers: |recording, d| {
            let asks = matches!(d.kind, Kind::Missing(_)) && d.packet == "P_CONN_ST_CHG_REQ"
                || matches!(d.kind, Kind::Extra(_)) && d.packet == "P_STATE_CHG_REQ";
            let connecting = match &d.kind {
                Kind::Field { name, own, .. } => {
                    d.packet == "P_STATE"
                        && (name == "conn" && own == "WFConnection" || name == "peer" && own == "Unknown")
                }
                _ => false,
            };
            let begins =
                matches!(&d.kind, Kind::Missing(text) if d.packet == "P_STATE" && text.contains("conn=SyncSource"));
            recording.starts_with("mix-") && (asks || connecting || begins)
        },
    },
    Deviation {
        name: "in doubt while the Primary is away",
        why: "a Secondary that the Primary has left does not know whether it has the last word: Consistent, where 8.4 stays UpToDate",
        covers: |recording, d| {
            let Kind::Field { name, recorded: theirs, own } = &d.kind else { return false };
            let doubt = name == "disk" && theirs == "UpToDate" && own == "Consistent";
            recording.starts_with("84-") && d.packet == "P_STATE" && doubt
        },
    },
    Deviation {
        name: "marks what a Primary writes on",
        why: "bit 0 of the current UUID says that a Primary writes under it, as 8.4 has it: when two have parted it tells who was \
              Primary before; 9.3.3 sets it only where a Primary begins a generation",
        covers: |_, d| {
            let Kind::Field { name, recorded, own } = &d.kind else { return false };
            let number = |uuid: &str| u64::from_str_radix(uuid, 16);
            let marked = matches!((number(recorded), number(own)), (Ok(theirs), Ok(own)) if own == theirs | 1);
            d.packet == "P_UUIDS110" && name == "current" && marked
        },
    },
    Deviation {
        name: "tells no generation on a link that closes",
        why: "8.4 tells the generation that begins when the connection ends while it is closing it, to nobody who reads it",
        covers: |recording, d| {
            recording.starts_with("84-03a")
                && d.frame == 1389
                && d.packet == "P_UUIDS"
                && matches!(d.kind, Kind::Missing(_))
        },
    },
    Deviation {
        name: "one Primary",
        why: "Zea refuses a peer with allow-two-primaries, since two that write the same block at once may end with different data: \
              nothing is said in 84-13 after the two have told their settings",
        covers: |recording, d| {
            let told = is_field(d, "P_PROTOCOL", &["two_primaries"]);
            recording.starts_with("84-13-") && (told || matches!(d.kind, Kind::Missing(_)))
        },
    },
    Deviation {
        name: "asks once to part",
        why: "when both nodes disconnect at once 8.4 refuses one of them, which asks again, Outdated; Zea takes the other one's wish for its own",
        covers: |recording, d| {
            let again = matches!(&d.kind, Kind::Missing(text) if text.contains("disk=Outdated"));
            recording.starts_with("84-") && d.packet == "P_CONN_ST_CHG_REQ" && again
        },
    },
    Deviation {
        name: "no resync controller",
        why: "replays configure none: Zea asks for as much as its window takes, whatever the recorded resync-rate and c-plan-ahead, and \
              tells the kernel's defaults",
        covers: |_, d| is_field(d, "P_SYNC_PARAM89", &["resync_rate", "c_plan_ahead", "c_fill_target"]),
    },
    Deviation {
        name: "limits of the disk",
        why: "the recorded disks take 255 sectors and have blocks of 512 bytes; Zea takes requests of 1 MiB and \
              prefers 4 KiB",
        covers: |_, d| is_field(d, "P_SIZES", &["max_bio_size", "physical_block_size"]),
    },
    Deviation {
        name: "no latency hint",
        why: "the front ends of Zea do not tell which requests somebody waits for",
        covers: |_, d| {
            let Kind::Field { name, recorded, own } = &d.kind else { return false };
            let without = recorded.replace("RW_SYNC|", "").replace("RW_SYNC", "0x0");
            name == "dp_flags" && without == *own
        },
    },
    Deviation {
        name: "two nodes know it already",
        why: "P_PEERS_IN_SYNC is for third nodes: between the two that have just resynced it says nothing",
        covers: |_, d| {
            let Kind::Missing(text) = &d.kind else { return false };
            let alone = ["mask=0x1 ", "mask=0x2 ", "mask=0x4 "].iter().any(|mask| text.contains(mask));
            d.packet == "P_PEERS_IN_SYNC" && alone
        },
    },
    Deviation {
        name: "to be resynced is Outdated",
        why: "a peer that waits for its resync counts as Outdated at once, in the kernel only when the resync begins: \
              it is behind, and nobody is to take its data for good",
        covers: |_, d| {
            let Kind::Field { name, recorded, own } = &d.kind else { return false };
            d.packet == "P_STATE" && name == "pdsk" && recorded == "Consistent" && own == "Outdated"
        },
    },
    Deviation {
        name: "waits for the end of a bitmap",
        why: "the target answers a plain bitmap when its end was told; the kernel as soon as no bit can follow",
        covers: |_, d| d.packet == "P_BITMAP" && matches!(d.kind, Kind::Late(_)),
    },
    Deviation {
        name: "remembers what it was",
        why: "the target of a resync keeps its own former generation in its history, so that a node that is still there \
              is known",
        covers: |_, d| {
            let Kind::Field { name, recorded, own } = &d.kind else { return false };
            name == "former generations" && recorded.split(' ').all(|uuid| own.contains(uuid))
        },
    },
];

/// See the module.
pub const EXPECTED_FAILURES: &[Expected] = &[
    Expected { recording: "04-", node: "nodea", why: "no automatic promotion when the device is opened" },
    Expected {
        recording: "05-",
        node: "",
        why: "three nodes: transactions that cross, paused resyncs, P_FLUSH_FORWARD, and when P_PEERS_IN_SYNC is sent",
    },
    Expected { recording: "06-", node: "", why: "no quorum" },
    Expected { recording: "07-", node: "", why: "no quorum, no tie-breaker; and set bits are kept (docs/adr/0002)" },
    Expected { recording: "07b-", node: "", why: "no quorum; UUIDs of a Primary without a disk" },
    Expected { recording: "08-", node: "nodeb", why: "set bits are kept (docs/adr/0002)" },
    Expected {
        recording: "09b-",
        node: "",
        why: "what was sent, and what is out of sync, when a wrong digest ends a link",
    },
    Expected { recording: "09c-", node: "", why: "options that are changed later: `drbdadm adjust` is not replayed" },
    Expected { recording: "09d-", node: "", why: "options that are changed later: `drbdadm adjust` is not replayed" },
    Expected { recording: "09e-", node: "", why: "no thin resync" },
    Expected { recording: "10b-", node: "nodeb", why: "a generation begins with a write, not with a promotion" },
    Expected { recording: "12-", node: "", why: "no volume is added to a connection that is up" },
    Expected { recording: "13-", node: "", why: "no two primaries" },
    Expected { recording: "14-", node: "nodea", why: "no resync without replication" },
    Expected { recording: "14-", node: "nodeb", why: "replays have no resync-rate, which makes requests short" },
    Expected {
        recording: "15-",
        node: "",
        why: "attach and detach are no transactions; attach connects again (docs/adr/0005)",
    },
    Expected { recording: "16-", node: "", why: "no Ahead and Behind" },
];
