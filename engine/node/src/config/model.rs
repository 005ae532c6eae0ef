//! What a resource file says. Options that are left out have DRBD's defaults.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zea_core::config::{AfterSb0Pri, AfterSb1Pri};
use zea_wire::digest::DigestAlg;

use super::quorum::Options;
use super::units::{Address, Size};

/// A resource as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ResourceFile {
    /// Its name, the same on all nodes.
    pub name: String,
    /// Options of the connections.
    #[serde(default, skip_serializing_if = "is_default")]
    pub net: Net,
    /// Options of the local disks.
    #[serde(default, skip_serializing_if = "is_default")]
    pub disk: Disk,
    /// Options of the resource.
    #[serde(default, skip_serializing_if = "is_default")]
    pub options: Options,
    /// All nodes of the resource, this one included.
    #[serde(rename = "node")]
    pub nodes: Vec<Peer>,
    /// The volumes.
    #[serde(rename = "volume")]
    pub volumes: Vec<Volume>,
}

/// A node of the resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Peer {
    /// Node id, 0 to 31.
    pub id: u8,
    /// Name, for people.
    pub name: String,
    /// Where it listens.
    pub address: Address,
}

/// A volume and its backing device on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Volume {
    /// Volume number, the same on all nodes.
    pub nr: u16,
    /// Path of the backing device or file.
    pub disk: PathBuf,
    /// Usable size; a backing file that does not exist is made for it. Left out: all of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// Where the meta data lies.
    #[serde(default, skip_serializing_if = "is_default")]
    pub meta_disk: MetaDisk,
    /// The volume that is resynced before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resync_after: Option<u16>,
}

/// Place of a volume's meta data (`ondisk-metadata.md` section 4).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum MetaDisk {
    /// At the end of the backing device: `"internal"`.
    #[default]
    Internal,
    /// On a device or file of its own (flexible external).
    External(PathBuf),
}

impl MetaDisk {
    /// The path of an external meta-data device.
    pub fn path(&self) -> Option<&Path> {
        match self {
            MetaDisk::Internal => None,
            MetaDisk::External(path) => Some(path),
        }
    }
}

impl Serialize for MetaDisk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            MetaDisk::Internal => serializer.serialize_str("internal"),
            MetaDisk::External(path) => path.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for MetaDisk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(if text == "internal" { MetaDisk::Internal } else { MetaDisk::External(text.into()) })
    }
}

/// Replication protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Protocol {
    /// Asynchronous.
    A,
    /// Complete when the peer received it.
    B,
    /// Complete when the peer wrote it.
    #[default]
    C,
}

/// Digest of the peer authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// HMAC with SHA-1.
    Sha1,
    /// HMAC with SHA-256.
    Sha256,
}

impl Algorithm {
    /// The name on the wire and in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::Sha1 => "sha1",
            Algorithm::Sha256 => "sha256",
        }
    }
}

/// A value that a file gives by its name.
macro_rules! by_name {
    ($(#[$doc:meta])* $name:ident($of:ty), $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name(pub $of);

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.0.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <String as serde::Deserialize>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(name: &str) -> Result<Self, String> {
                <$of>::ALL.iter().find(|value| value.as_str() == name).copied().map($name).ok_or_else(|| {
                    let known = <$of>::ALL.iter().map(|value| value.as_str()).collect::<Vec<_>>().join(", ");
                    format!("`{name}` is no {}; there are {known}", $what)
                })
            }
        }
    };
}

pub(super) use by_name;

by_name! {
    /// Digest of blocks, by the name that is on the wire.
    DigestName(DigestAlg), "digest algorithm"
}

by_name! {
    /// Whose changes are lost after a split brain of two Secondaries.
    #[derive(Default)]
    AfterSb0(AfterSb0Pri), "policy of after-sb-0pri"
}

by_name! {
    /// Whose changes are lost after a split brain of a Primary and a Secondary.
    #[derive(Default)]
    AfterSb1(AfterSb1Pri), "policy of after-sb-1pri"
}

/// `[net]`: options of all connections of the resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Net {
    /// Replication protocol.
    pub protocol: Protocol,
    /// Authenticate peers with the secret of `secret-file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cram_hmac_alg: Option<Algorithm>,
    /// File with the shared secret, relative to the directory of the resource file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// Digests of online verify. Left out: what the peer has, or crc32c with another Zea node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify_alg: Option<DigestName>,
    /// Digests of a resync in which blocks that are equal are not copied. Left out: what another Zea node has, else none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub csums_alg: Option<DigestName>,
    /// Digests of all data between the nodes; a packet of which it is wrong ends the connection. The same on all nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_integrity_alg: Option<DigestName>,
    /// Whose changes are lost after a split brain of two Secondaries. Only with two nodes, as the next one.
    #[serde(skip_serializing_if = "is_default")]
    pub after_sb_0pri: AfterSb0,
    /// Whose changes are lost after a split brain of a Primary and a Secondary.
    #[serde(skip_serializing_if = "is_default")]
    pub after_sb_1pri: AfterSb1,
    /// Idle time after which a peer is pinged.
    pub ping_int_ms: u64,
    /// Time a peer has to answer a ping.
    pub ping_timeout_ms: u64,
    /// A peer that makes no progress for `ko-count` times this is given up.
    pub timeout_ms: u64,
    /// See `timeout_ms`; 0: never.
    pub ko_count: u32,
    /// Send bitmaps as run lengths where that is shorter.
    pub use_rle: bool,
    /// The newest version of the protocol that is offered. Left out: all that is spoken from 100 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol_version_max: Option<u32>,
}

impl Default for Net {
    fn default() -> Self {
        Net {
            protocol: Protocol::C,
            cram_hmac_alg: None,
            secret_file: None,
            verify_alg: None,
            csums_alg: None,
            data_integrity_alg: None,
            after_sb_0pri: AfterSb0::default(),
            after_sb_1pri: AfterSb1::default(),
            ping_int_ms: 10_000,
            ping_timeout_ms: 500,
            timeout_ms: 6_000,
            ko_count: 7,
            use_rle: true,
            protocol_version_max: None,
        }
    }
}

/// `[disk]`: options of the local disks of the resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Disk {
    /// Slots of the activity log.
    pub al_extents: u16,
    /// Flush the backing device at epoch ends. Off only for devices without a volatile write cache.
    pub disk_flushes: bool,
    /// A resync never takes more per second. Left out: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub c_max_rate: Option<Size>,
    /// No more while an application uses the volume; 0: its I/O makes no difference.
    pub c_min_rate: Size,
    /// So much is on its way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub c_fill_target: Option<Size>,
    /// Tenths of a second over which DRBD's controller corrects what it misses; 0: `resync-rate`. Left out: no controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub c_plan_ahead: Option<u32>,
    /// Tenths of a second for which a request is to be on its way, where `c-fill-target` is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub c_delay_target: Option<u32>,
    /// The fixed rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resync_rate: Option<Size>,
}

/// Unless somebody says otherwise an application goes first. DRBD's 250 KiB/s would take months for a large disk that is never idle.
const C_MIN_RATE: Size = Size(40 << 20);

impl Default for Disk {
    fn default() -> Self {
        Disk {
            al_extents: 6433,
            disk_flushes: true,
            c_max_rate: None,
            c_min_rate: C_MIN_RATE,
            c_fill_target: None,
            c_plan_ahead: None,
            c_delay_target: None,
            resync_rate: None,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl ResourceFile {
    /// The text form.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a resource file has only strings, numbers and tables")
    }

    /// The entry of a node.
    pub fn node(&self, id: u8) -> Option<&Peer> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// All nodes but this one.
    pub fn peers(&self, own: u8) -> impl Iterator<Item = &Peer> {
        self.nodes.iter().filter(move |node| node.id != own)
    }

    /// The entry of a volume.
    pub fn volume(&self, nr: u16) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.nr == nr)
    }
}
