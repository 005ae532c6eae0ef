//! What a resource file has to fulfil beyond its syntax.

use std::collections::BTreeMap;
use std::fmt;

use zea_core::limits::{PROTOCOL_MAX, PROTOCOL_MIN};

use super::model::{AfterSb0, AfterSb1, ResourceFile};

/// Highest node id (`ondisk-metadata.md` section 1).
pub const MAX_NODE_ID: u8 = 31;
/// Most volumes of one resource.
pub const MAX_VOLUMES: usize = 64;
/// Highest volume number (DRBD's 16 bit field; -1 means "none" on the wire).
pub const MAX_VOLUME_NR: u16 = 65534;
/// Smallest usable volume: one bitmap page worth of blocks would be pointless below this.
pub const MIN_SIZE_BYTES: u64 = 1 << 20;
/// Largest volume, DRBD's own bound of 1 PiB (`ondisk-metadata.md` section 4).
pub const MAX_SIZE_BYTES: u64 = 1 << 50;
/// Longest name of a resource or node.
pub const MAX_NAME_CHARS: usize = 64;
/// Longest shared secret in bytes (`wire-protocol.md`, cram-hmac).
pub const MAX_SECRET_BYTES: usize = 64;

/// Fewest and most slots of the activity log; a ring of 32 KiB, as every new meta data has, holds no more.
pub const AL_EXTENTS: std::ops::RangeInclusive<u16> = 67..=6433;

/// One step into a resource file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A key of a table.
    Key(&'static str),
    /// An element of an array.
    Index(usize),
}

/// Where in a resource file something is, from the outside in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At(pub Vec<Step>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nr, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if nr == 0 => write!(f, "{key}")?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// Something that a resource file must not say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {help}")]
pub struct Problem {
    /// Where.
    pub at: At,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: String,
}

impl Problem {
    pub(super) fn new(at: &[Step], message: impl Into<String>, help: impl Into<String>) -> Self {
        Problem { at: At(at.to_vec()), message: message.into(), help: help.into() }
    }
}

/// Checks names: they become file names, export names and words on a command line.
///
/// # Errors
/// Why the name cannot be used.
pub fn check_name(name: &str) -> Result<(), String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.chars().count() > MAX_NAME_CHARS {
        return Err(format!("a name has 1 to {MAX_NAME_CHARS} characters"));
    }
    if let Some(wrong) = name.chars().find(|c| !legal(*c)) {
        return Err(format!("{wrong:?} cannot be part of a name: use letters, digits, '.', '_' and '-'"));
    }
    if name.starts_with(['.', '-']) {
        return Err("a name cannot begin with '.' or '-': begin with a letter or a digit".into());
    }
    Ok(())
}

/// The checks of a resource file for a node.
#[derive(Debug, Clone, Copy)]
pub struct Check<'a> {
    pub(super) file: &'a ResourceFile,
}

impl<'a> Check<'a> {
    /// Checks of this file.
    pub fn new(file: &'a ResourceFile) -> Self {
        Check { file }
    }

    /// Everything that can be said without knowing the node.
    ///
    /// # Errors
    /// The first problem in the order of the file.
    pub fn all(self) -> Result<(), Problem> {
        check_name(&self.file.name)
            .map_err(|help| Problem::new(&[Step::Key("name")], "this is no name for a resource", help))?;
        self.net()?;
        self.disk()?;
        self.nodes()?;
        self.volumes()
    }

    /// [`Check::all`], and that the file has this node.
    ///
    /// # Errors
    /// The first problem.
    pub fn for_node(self, own: u8) -> Result<(), Problem> {
        self.all()?;
        if self.file.node(own).is_some() {
            return Ok(());
        }
        let ids: Vec<String> = self.file.nodes.iter().map(|node| node.id.to_string()).collect();
        Err(Problem::new(
            &[Step::Key("node")],
            format!("this daemon is node {own}, and the resource has only nodes {}", ids.join(", ")),
            format!("add an entry with id {own}, or give the resource to the daemon of one of its nodes"),
        ))
    }

    fn net(self) -> Result<(), Problem> {
        let net = &self.file.net;
        if net.cram_hmac_alg.is_some() && net.secret_file.is_none() {
            return Err(Problem::new(
                &[Step::Key("net"), Step::Key("cram-hmac-alg")],
                "peers are to be authenticated, but there is no secret",
                "add `secret-file = \"FILE\"` with the shared secret in it (zea resource create: --secret-file FILE)",
            ));
        }
        if net.secret_file.is_some() && net.cram_hmac_alg.is_none() {
            return Err(Problem::new(
                &[Step::Key("net"), Step::Key("secret-file")],
                "there is a secret, but nothing says how to use it",
                "add `cram-hmac-alg = \"sha256\"` (zea resource create: --cram-hmac-alg sha256)",
            ));
        }
        let policies = [("after-sb-0pri", net.after_sb_0pri != AfterSb0::default())];
        let policies = policies.into_iter().chain([("after-sb-1pri", net.after_sb_1pri != AfterSb1::default())]);
        if let Some((key, _)) = policies.into_iter().find(|(_, set)| *set && self.file.nodes.len() > 2) {
            return Err(Problem::new(
                &[Step::Key("net"), Step::Key(key)],
                "policies for a split brain are for two nodes: of three, the third one could be with the victim",
                "leave it out; a split brain is then ended by `zea connect --discard-my-data`",
            ));
        }
        for (key, value, lowest, highest) in [
            ("ping-int-ms", net.ping_int_ms, 100, 120_000),
            ("ping-timeout-ms", net.ping_timeout_ms, 50, 30_000),
            ("timeout-ms", net.timeout_ms, 100, 60_000),
            ("ko-count", u64::from(net.ko_count), 0, 200),
        ] {
            if !(lowest..=highest).contains(&value) {
                return Err(Problem::new(
                    &[Step::Key("net"), Step::Key(key)],
                    format!("{value} is out of range"),
                    format!("choose {lowest} to {highest}"),
                ));
            }
        }
        self.protocol_version()
    }

    /// The versions below 118 are those of DRBD 8.4; headers have volumes from 100 on.
    fn protocol_version(self) -> Result<(), Problem> {
        let Some(version) = self.file.net.protocol_version_max else { return Ok(()) };
        let problem = |message: String, help: &str| {
            Err(Problem::new(&[Step::Key("net"), Step::Key("protocol-version-max")], message, help))
        };
        if !matches!(version, 86..=101 | PROTOCOL_MIN..=PROTOCOL_MAX) {
            let help = format!("choose 86 to 101 or {PROTOCOL_MIN} to {PROTOCOL_MAX}, or leave it out");
            return problem(format!("version {version} of the protocol is not spoken"), &help);
        }
        if version < PROTOCOL_MIN && self.file.nodes.len() > 2 {
            let help = format!("choose {PROTOCOL_MIN} to {PROTOCOL_MAX}, or leave it out");
            return problem(format!("version {version} of the protocol is for two nodes"), &help);
        }
        if version < 100 && self.file.volumes.iter().any(|volume| volume.nr != 0) {
            let help = "choose 100 or more, or keep one volume with the number 0";
            return problem(format!("version {version} of the protocol knows volume 0 only"), help);
        }
        Ok(())
    }

    fn disk(self) -> Result<(), Problem> {
        let slots = self.file.disk.al_extents;
        if AL_EXTENTS.contains(&slots) {
            return self.file.disk.check_resync();
        }
        Err(Problem::new(
            &[Step::Key("disk"), Step::Key("al-extents")],
            format!("an activity log cannot have {slots} extents"),
            format!("choose {} to {}", AL_EXTENTS.start(), AL_EXTENTS.end()),
        ))
    }

    fn nodes(self) -> Result<(), Problem> {
        let nodes = &self.file.nodes;
        if nodes.is_empty() {
            return Err(Problem::new(&[Step::Key("node")], "a resource needs a node", "add a [[node]] table"));
        }
        let (mut ids, mut names, mut addresses) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (index, node) in nodes.iter().enumerate() {
            let at = |key| [Step::Key("node"), Step::Index(index), Step::Key(key)];
            if node.id > MAX_NODE_ID {
                return Err(Problem::new(
                    &at("id"),
                    format!("there is no node id {}", node.id),
                    format!("choose 0 to {MAX_NODE_ID}"),
                ));
            }
            check_name(&node.name).map_err(|help| Problem::new(&at("name"), "this is no name for a node", help))?;
            if node.address.0.port() == 0 {
                return Err(Problem::new(
                    &at("address"),
                    "port 0 cannot be listened on",
                    "name the port, for example 7789",
                ));
            }
            unique(&mut ids, node.id.to_string(), index, &at("id"), "node id", "give every node an id of its own")?;
            unique(&mut names, node.name.clone(), index, &at("name"), "name", "give every node a name of its own")?;
            // Node ids do not travel before the handshake: who calls is known by its IP address (wire-protocol.md 2.1).
            if nodes.len() > 2 && nodes[..index].iter().any(|other| other.address.0.ip() == node.address.0.ip()) {
                return Err(Problem::new(
                    &at("address"),
                    format!("IP address {} is there twice", node.address.0.ip()),
                    "with more than two nodes every node needs an IP address of its own, or the others cannot tell them apart",
                ));
            }
            unique(
                &mut addresses,
                node.address.to_string(),
                index,
                &at("address"),
                "address",
                "give every node an address or a port of its own",
            )?;
        }
        Ok(())
    }

    fn volumes(self) -> Result<(), Problem> {
        let volumes = &self.file.volumes;
        if volumes.is_empty() || volumes.len() > MAX_VOLUMES {
            return Err(Problem::new(
                &[Step::Key("volume")],
                format!("a resource cannot have {} volumes", volumes.len()),
                format!("write 1 to {MAX_VOLUMES} [[volume]] tables"),
            ));
        }
        let (mut numbers, mut paths) = (BTreeMap::new(), BTreeMap::new());
        for (index, volume) in volumes.iter().enumerate() {
            let at = |key| [Step::Key("volume"), Step::Index(index), Step::Key(key)];
            if volume.nr > MAX_VOLUME_NR {
                return Err(Problem::new(
                    &at("nr"),
                    format!("there is no volume number {}", volume.nr),
                    format!("choose 0 to {MAX_VOLUME_NR}"),
                ));
            }
            unique(
                &mut numbers,
                volume.nr.to_string(),
                index,
                &at("nr"),
                "volume number",
                "number the volumes 0, 1, 2, …",
            )?;
            let external = volume.meta_disk.path().map(|path| ("meta-disk", path));
            for (key, path) in [Some(("disk", volume.disk.as_path())), external].into_iter().flatten() {
                if !path.is_absolute() {
                    return Err(Problem::new(
                        &at(key),
                        format!("`{}` is not an absolute path", path.display()),
                        "write the path from the root on: the daemon has a working directory of its own",
                    ));
                }
                unique(
                    &mut paths,
                    path.display().to_string(),
                    index,
                    &at(key),
                    "device",
                    "give every volume a device of its own",
                )?;
            }
            self.volume_size(index)?;
        }
        self.check_resync_order()
    }

    fn volume_size(self, index: usize) -> Result<(), Problem> {
        let Some(size) = self.file.volumes[index].size else {
            return Ok(());
        };
        let at = [Step::Key("volume"), Step::Index(index), Step::Key("size")];
        if !(MIN_SIZE_BYTES..=MAX_SIZE_BYTES).contains(&size.0) {
            return Err(Problem::new(&at, format!("a volume cannot have {size}"), "choose 1M to 1024T"));
        }
        if !size.0.is_multiple_of(4096) {
            return Err(Problem::new(
                &at,
                format!("{size} is not a whole number of 4 KiB blocks"),
                format!("write {}K", size.0.next_multiple_of(4096) / 1024),
            ));
        }
        Ok(())
    }
}

/// Notes `value` at `index`, or says where it was before.
fn unique(
    seen: &mut BTreeMap<String, usize>,
    value: String,
    index: usize,
    at: &[Step; 3],
    what: &str,
    help: &str,
) -> Result<(), Problem> {
    let message = format!("{what} {value} is there twice");
    match (seen.insert(value, index), &at[0]) {
        (None, _) => Ok(()),
        (Some(first), Step::Key(list)) => {
            Err(Problem::new(at, format!("{message}: first in {list} number {}", first + 1), help))
        }
        (Some(_), Step::Index(_)) => unreachable!("lists have a name"),
    }
}
