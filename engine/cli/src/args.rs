//! The arguments of `zea`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Parser, Subcommand, ValueEnum};
use zea_wire::packet::rule;

use zea_node::config::{AfterSb0, AfterSb1, DigestName, Size};

use crate::create::{NodeArg, VolumeArg};
use crate::exit;
use crate::instant::Instant;

const ABOUT: &str = "Administers the replicated volumes of a Zea node";

const LONG_ABOUT: &str = "Administers the replicated volumes of a Zea node.

A resource is a set of volumes that is replicated between nodes as one. On each of its nodes a daemon, zead, holds one \
copy. One node at a time is Primary: applications use the volumes there, through NBD. The others are Secondary and \
follow. zea tells the daemon of this node what to do, and shows what it sees.";

const EXAMPLES: &str = "Examples:
  On each of two nodes, make a volume of 256 MiB (the paths may differ):
    zea resource create r0 --node 0=alpha@10.0.0.1:7789 --node 1=bravo@10.0.0.2:7789 \\
        --volume 0=/var/lib/zea/r0.img,size=256M
  On one of them, once, declare its (empty) contents the valid ones, and wait for the copy:
    zea promote r0 --force
    zea wait r0 --for synced --timeout 600
  Use it there:
    zea status r0 --verbose            shows the NBD address
  Move it to the other node:
    zea demote r0                      on the first
    zea promote r0                     on the second";

/// `zea`.
#[derive(Debug, Parser)]
#[command(name = "zea", version, about = ABOUT, long_about = LONG_ABOUT)]
#[command(after_help = exit::TABLE, after_long_help = format!("{EXAMPLES}\n\n{}", exit::TABLE))]
#[command(subcommand_required = true, arg_required_else_help = true, max_term_width = 100)]
pub struct Args {
    /// Control socket of the daemon: control.sock in its state directory
    #[arg(long, global = true, env = "ZEA_SOCKET", default_value = "/var/lib/zea/control.sock", value_name = "PATH")]
    pub socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create, delete and list resources
    #[command(subcommand)]
    Resource(Resource),
    /// Create the resource of a resource file, or change the one of that name
    ///
    /// While a resource is up only its [net] options can change, in force from the next connect, the speed of resyncs, and
    /// the devices of detached volumes. Everything else changes while it is down. Devices that are not attached get meta data if they
    /// have none.
    #[command(after_help = "Example:\n  zea apply /etc/zea/r0.toml")]
    Apply {
        /// Resource file (docs/reference/resource-file.md)
        file: PathBuf,
        /// Overwrite what is found on a device that gets new meta data
        #[arg(long)]
        force: bool,
    },
    /// Show the state of one resource or of all
    #[command(after_help = "Examples:\n  zea status\n  zea status r0 --verbose\n  zea status --json | jq '.[].role'")]
    Status {
        /// Resource; all if left out
        name: Option<String>,
        /// In the shape of `drbdsetup status --json`, with Zea's own keys
        #[arg(long)]
        json: bool,
        /// Show it again every second until interrupted
        #[arg(long)]
        watch: bool,
        /// Also NBD addresses, backing devices, UUIDs and counters
        #[arg(long, short, conflicts_with = "json")]
        verbose: bool,
    },
    /// Make this node Primary: its volumes can be used here
    #[command(after_help = "Examples:
  zea promote r0
  zea promote r0 --force    the first time, or when the UpToDate copy is lost: what is here becomes the truth")]
    Promote {
        /// Resource
        name: String,
        /// Accept data here that is not known to be UpToDate
        #[arg(long)]
        force: bool,
    },
    /// Make this node Secondary; refused while somebody has a volume open
    Demote {
        /// Resource
        name: String,
    },
    /// Connect to one peer, or to all
    #[command(
        after_help = "Example, after a split brain, on the node whose changes are to go:\n  zea connect r0 bravo --discard-my-data"
    )]
    Connect {
        /// Resource
        name: String,
        /// Peer, by name or node id; all if left out
        peer: Option<String>,
        /// After a split brain: throw away the changes that only this node has
        #[arg(long)]
        discard_my_data: bool,
    },
    /// Disconnect from one peer, or from all, until `zea connect`
    Disconnect {
        /// Resource
        name: String,
        /// Peer, by name or node id; all if left out
        peer: Option<String>,
        /// Do not ask the cluster
        #[arg(long)]
        force: bool,
    },
    /// Attach the backing device of one volume, or of all
    Attach {
        /// Resource
        name: String,
        /// Volume number; all if left out
        volume: Option<u16>,
    },
    /// Detach the backing device of one volume, or of all, until `zea attach`
    Detach {
        /// Resource
        name: String,
        /// Volume number; all if left out
        volume: Option<u16>,
        /// Do not ask the cluster, do not wait for the device
        #[arg(long)]
        force: bool,
    },
    /// Compare volumes with the copies of peers, block by block, while they are in use
    ///
    /// Blocks that differ are marked on both nodes and reported; nothing is overwritten. The result shows in `zea status`
    /// and `zea events`, and with --wait here.
    #[command(after_help = "Examples:
  zea verify r0 --wait
  zea verify r0 bravo --volume 0 --start 0 --stop 2097152    the first GiB, from the begin")]
    Verify {
        /// Resource
        name: String,
        /// Peer, by name or node id; all that are connected if left out
        peer: Option<String>,
        /// Volume number; all if left out
        #[arg(long, value_name = "NR")]
        volume: Option<u16>,
        /// First sector of 512 bytes; where the last verify was interrupted if left out, else 0
        #[arg(long, value_name = "SECTOR")]
        start: Option<u64>,
        /// Sector to stop at; the end if left out
        #[arg(long, value_name = "SECTOR")]
        stop: Option<u64>,
        /// Wait for the end and print what was found; exit code 1 if copies differ
        #[arg(long)]
        wait: bool,
        /// Print what was found as JSON, in KiB
        #[arg(long, requires = "wait")]
        json: bool,
    },
    /// Make a volume larger while it is in use, on all its nodes
    #[command(after_help = "Example:\n  zea resize r0 0 20G")]
    Resize {
        /// Resource
        name: String,
        /// Volume number
        volume: u16,
        /// Its new size, with K, M, G or T as unit
        size: Size,
        /// Do not copy what is new: it is the same on all disks (such as sparse files), or nobody minds
        #[arg(long)]
        assume_clean: bool,
    },
    /// Pause resyncs with one peer, or with all, until `zea resume-sync`; what is written is replicated all the same
    #[command(after_help = "Example:\n  zea pause-sync r0 bravo --volume 0")]
    PauseSync(Resyncs),
    /// Let resyncs go on that `zea pause-sync` has paused on this node
    ResumeSync(Resyncs),
    /// Throw away this node's copy of a volume and fetch all of it from a peer
    Invalidate {
        /// Resource
        name: String,
        /// Volume number
        volume: u16,
    },
    /// Have a peer throw away its copy of a volume and fetch all of it from this node
    InvalidateRemote {
        /// Resource
        name: String,
        /// Peer, by name or node id
        peer: String,
        /// Volume number
        volume: u16,
    },
    /// Show the present state and then every change, until interrupted
    Events {
        /// Resource; all if left out
        name: Option<String>,
        /// One JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Wait until a resource is in a state
    #[command(after_help = "Example:\n  zea wait r0 --for synced --timeout 600")]
    Wait {
        /// Resource
        name: String,
        /// What to wait for
        #[arg(long = "for", value_enum)]
        goal: Goal,
        /// Seconds after which to give up, with exit code 5
        #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=604_800))]
        timeout: u64,
    },
    /// Start a resource: attach its volumes and connect to its peers
    Up {
        /// Resource
        name: String,
    },
    /// Stop a resource: demote, disconnect, detach. It stays down until `zea up`
    Down {
        /// Resource
        name: String,
    },
    /// Show the versions of zea and of the daemon
    Version {
        /// As a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print the DRBD conversation in a recording of the network
    ///
    /// Reads a pcap or pcapng file, such as tcpdump writes, puts its TCP streams together and prints every packet of
    /// the DRBD protocol on both streams of every connection: time, sender, receiver, stream, volume, name, and all its
    /// fields. It needs no daemon. Only connections whose beginning was recorded can be read.
    #[command(after_help = "Examples:
  tcpdump -i eth0 -w r0.pcap 'tcp port 7789'
  zea dissect r0.pcap --skip PING,PING_ACK | less -S
  zea dissect r0.pcap --only UUIDS110,STATE --node 10.0.0.1
  zea dissect r0.pcap --json | jq 'select(.packet == \"P_DATA\") | .fields.sector'

docs/reference/dissect.md explains the columns and the fields.")]
    Dissect(Dissect),
    /// Replay a flight recording: what happened to a resource, step by step
    ///
    /// zead records what the state machine of each resource is told, unless it runs with --flight-recorder off. This gives
    /// the recording to the same state machine again and prints what changes: roles, disks, connections, replication,
    /// UUIDs, and the notices that the log had; at the end of each run the state, as zea status shows it. It needs no
    /// daemon, and changes nothing. A recording holds no data of the volumes, but it holds the shared secret.
    #[command(after_help = "Examples:
  zea replay /var/lib/zea/flight/r0
  zea replay flight/r0 --until 2026-03-01T04:05:06Z
  zea replay flight/r0/000000000007.zeaflt --inputs | less -S
  zea replay flight/r0 --json | jq 'select(.field == \"disk-state\")'

Exit code 1: the recording is damaged or cannot be replayed to its end, or the state machine panicked, as the recorded one did.
docs/reference/flight-recorder.md explains recordings.")]
    Replay(Replay),
}

/// Which resyncs a command is about.
#[derive(Debug, clap::Args)]
pub struct Resyncs {
    /// Resource
    pub name: String,
    /// Peer, by name or node id; all if left out
    pub peer: Option<String>,
    /// Volume number; all if left out
    #[arg(long, value_name = "NR")]
    pub volume: Option<u16>,
}

/// `zea replay`.
#[derive(Debug, clap::Args)]
pub struct Replay {
    /// Recording: the folder of a resource below flight in the daemon's state directory, or one of the files in it
    pub path: PathBuf,
    /// Stop before the first input after this instant, and show the state then
    #[arg(long, value_name = "INSTANT")]
    pub until: Option<Instant>,
    /// Also print each input of the state machine
    #[arg(long)]
    pub inputs: bool,
    /// One JSON object per line
    #[arg(long)]
    pub json: bool,
}

/// `zea dissect`.
#[derive(Debug, clap::Args)]
pub struct Dissect {
    /// Recording: pcap or pcapng, also compressed by gzip
    pub file: PathBuf,
    /// Print only these packets; the prefix P_ may be left out
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', ignore_case = true, value_parser = packet_names(), hide_possible_values = true)]
    pub only: Vec<String>,
    /// Leave out these packets
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', ignore_case = true, value_parser = packet_names(), hide_possible_values = true)]
    pub skip: Vec<String>,
    /// Only what this address sends or receives; may be given several times
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub node: Vec<NodeAddress>,
    /// Count packets by name, stream and sender instead of printing them
    #[arg(long, conflicts_with = "json")]
    pub stats: bool,
    /// One JSON object per line
    #[arg(long)]
    pub json: bool,
}

/// The names of all packets, with and without their prefix.
fn packet_names() -> PossibleValuesParser {
    let names = (0..=u16::MAX).filter_map(rule).map(|rule| rule.name);
    names.map(|name| PossibleValue::new(name).alias(name.trim_start_matches("P_"))).into()
}

/// An address with or without a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeAddress {
    /// The address.
    pub ip: IpAddr,
    /// `None`: any.
    pub port: Option<u16>,
}

impl NodeAddress {
    /// True for this end of a connection.
    #[must_use]
    pub fn is(&self, end: SocketAddr) -> bool {
        self.ip == end.ip() && self.port.is_none_or(|port| port == end.port())
    }
}

impl FromStr for NodeAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<NodeAddress, String> {
        if let Ok(ip) = text.parse() {
            return Ok(NodeAddress { ip, port: None });
        }
        let end: SocketAddr = text.parse().map_err(|_| "not an IP address, alone or with a port".to_owned())?;
        Ok(NodeAddress { ip: end.ip(), port: Some(end.port()) })
    }
}

/// `zea resource …`.
#[derive(Debug, Subcommand)]
pub enum Resource {
    /// Create a resource on this node, with meta data where there is none, and start it
    ///
    /// Run it on every node of the resource, with the same name, nodes and volume numbers. A device that holds
    /// something already is refused unless --force is given.
    #[command(after_help = "Example:
  zea resource create r0 --node 0=alpha@10.0.0.1:7789 --node 1=bravo@10.0.0.2:7789 \\
      --volume 0=/dev/vg/r0 --volume 1=/var/lib/zea/r0.1.img,size=10G")]
    Create(Box<Create>),
    /// Forget a resource; refused while it is Primary or somebody has a volume open
    Delete {
        /// Resource
        name: String,
        /// Also remove the meta data from its devices
        #[arg(long)]
        wipe_metadata: bool,
    },
    /// List the resources that are configured on this node
    List {
        /// As a JSON list
        #[arg(long)]
        json: bool,
    },
}

/// `zea resource create`.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// Resource
    pub name: String,
    /// A node of the resource, this one included; once per node
    #[arg(long = "node", required = true, value_name = "ID=NAME@ADDRESS:PORT")]
    pub nodes: Vec<NodeArg>,
    /// A volume and its backing device on this node; once per volume. With size, a file that does not exist is made for it
    #[arg(long = "volume", required = true, value_name = "NR=PATH[,size=SIZE][,meta=PATH]")]
    pub volumes: Vec<VolumeArg>,
    /// When a write is complete: A sent, B received by the peers, C written by the peers
    #[arg(long, default_value = "C", ignore_case = true, value_enum)]
    pub protocol: Protocol,
    /// Authenticate peers with the secret of --secret-file
    #[arg(long, requires = "secret_file", value_enum)]
    pub cram_hmac_alg: Option<Algorithm>,
    /// File with the secret that all nodes share
    #[arg(long, requires = "cram_hmac_alg", value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Digests of online verify: crc32c, md5, sha1, sha224, sha256, sha384 or sha512
    #[arg(long, value_name = "ALGORITHM")]
    pub verify_alg: Option<DigestName>,
    /// Digests of a resync that copies only what differs
    #[arg(long, value_name = "ALGORITHM")]
    pub csums_alg: Option<DigestName>,
    /// Digests of all data between the nodes: what was changed on its way ends the connection
    #[arg(long, value_name = "ALGORITHM")]
    pub data_integrity_alg: Option<DigestName>,
    /// Whose changes are lost after a split brain of two Secondaries
    #[arg(long, default_value = "disconnect", value_name = "POLICY")]
    pub after_sb_0pri: AfterSb0,
    /// Whose changes are lost after a split brain of a Primary and a Secondary: disconnect, consensus or discard-secondary
    #[arg(long, default_value = "disconnect", value_name = "POLICY")]
    pub after_sb_1pri: AfterSb1,
    /// The newest version of the protocol that is offered, to try others: 86 to 101 (two nodes) or 118 to 124
    #[arg(long, value_name = "N")]
    pub protocol_version_max: Option<u32>,
    /// Flush backing devices; no only where they have no volatile write cache
    #[arg(long, default_value = "yes", value_enum)]
    pub disk_flushes: YesNo,
    /// Slots of the activity log
    #[arg(long, value_name = "N")]
    pub al_extents: Option<u16>,
    /// Overwrite what is found on a device that gets new meta data
    #[arg(long)]
    pub force: bool,
}

/// Replication protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub enum Protocol {
    /// Sent.
    A,
    /// Received by the peers.
    B,
    /// Written by the peers.
    C,
}

/// Digest of the peer authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Algorithm {
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
}

/// A switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum YesNo {
    /// On.
    Yes,
    /// Off.
    No,
}

/// What `zea wait` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Goal {
    /// All volumes of this node are UpToDate
    Uptodate,
    /// All peers are connected
    Connected,
    /// All volumes are UpToDate here and on all peers, and nothing is out of sync
    Synced,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    const CREATE: [&str; 9] = [
        "zea",
        "resource",
        "create",
        "r0",
        "--node",
        "0=alpha@127.0.0.1:7789",
        "--volume",
        "0=/dev/vg/r0,size=1G",
        "--force",
    ];

    #[test]
    fn cli_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn cli_reads_a_create_line() {
        let args = Args::try_parse_from(CREATE).unwrap();
        let Command::Resource(Resource::Create(create)) = args.command else { panic!("{args:?}") };
        assert_eq!((create.nodes.len(), create.volumes.len(), create.force), (1, 1, true));
        assert_eq!((create.protocol, create.disk_flushes), (Protocol::C, YesNo::Yes));
    }

    #[test]
    fn cli_reads_a_dissect_line() {
        let line = "zea dissect f.pcap --only p_data,Barrier --node 10.0.0.1 --node [::1]:7789";
        let args = Args::try_parse_from(line.split(' ')).unwrap();
        let Command::Dissect(dissect) = args.command else { panic!("{args:?}") };
        assert_eq!(dissect.only, ["p_data", "Barrier"]);
        assert!(dissect.node[0].is("10.0.0.1:1".parse().unwrap()));
        assert!(dissect.node[1].is("[::1]:7789".parse().unwrap()));
        assert!(!dissect.node[1].is("[::1]:1".parse().unwrap()));
    }

    #[test]
    fn cli_refuses_wrong_lines_with_usage() {
        let with = |more: &[&'static str]| -> Vec<&str> { CREATE.iter().chain(more).copied().collect() };
        for line in [
            vec!["zea", "status", "--json", "--verbose"],
            vec!["zea", "promote"],
            vec!["zea", "demote", "r0", "--force"],
            vec!["zea", "invalidate", "r0"],
            vec!["zea", "invalidate-remote", "r0", "0"],
            vec!["zea", "resize", "r0", "0"],
            vec!["zea", "resize", "r0", "0", "more"],
            vec!["zea", "verify", "r0", "--json"],
            vec!["zea", "verify", "r0", "--start", "-1"],
            vec!["zea", "attach", "r0", "65536"],
            vec!["zea", "wait", "r0"],
            vec!["zea", "wait", "r0", "--for", "ever"],
            vec!["zea", "wait", "r0", "--for", "synced", "--timeout", "-1"],
            vec!["zea", "reboot"],
            vec!["zea", "dissect", "f.pcap", "--only", "DATUM"],
            vec!["zea", "dissect", "f.pcap", "--node", "alpha"],
            vec!["zea", "dissect", "f.pcap", "--stats", "--json"],
            with(&["--protocol", "D"]),
            with(&["--cram-hmac-alg", "sha256"]),
            with(&["--secret-file", "f"]),
            with(&["--verify-alg", "crc64"]),
            with(&["--node", "alpha"]),
            with(&["--volume", "0"]),
            with(&["--disk-flushes", "maybe"]),
        ] {
            let error = Args::try_parse_from(&line).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(exit::USAGE), "{line:?}");
        }
    }

    #[test]
    fn cli_help_tells_exit_codes_and_examples() {
        let help = Args::command().render_long_help().to_string();
        for text in ["Examples:", "zea promote r0 --force", "Exit codes:", "4  the daemon cannot be reached"] {
            assert!(help.contains(text), "{text} in {help}");
        }
    }

    #[test]
    fn cli_reference_page_has_every_command_and_option() {
        let page = include_str!("../../../docs/reference/zea.md");
        let mut todo = vec![(String::from("zea"), Args::command())];
        while let Some((path, command)) = todo.pop() {
            for argument in command.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(page.contains(&format!("--{argument}")), "--{argument} of {path} is not on the page");
            }
            for sub in command.get_subcommands() {
                let path = format!("{path} {}", sub.get_name());
                assert!(sub.has_subcommands() || page.contains(&path), "{path} is not on the page");
                todo.push((path, sub.clone()));
            }
        }
        for (code, text) in exit::TABLE.lines().skip(1).map(|line| line.trim().split_once("  ").unwrap()) {
            assert!(page.contains(&format!("| {code} | {text}")), "exit code {code} is not on the page");
        }
    }
}
