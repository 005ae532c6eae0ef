//! `zea resource create`: words of the command line to a resource.

use std::path::PathBuf;
use std::str::FromStr;

use zea_node::api::{Request, Secret};
use zea_node::config::{
    Address, Algorithm, Check, Disk, MetaDisk, Net, Options, Peer, Protocol, ResourceFile, Size, Volume,
    check::check_name,
};
use zea_node::store::read_secret;

use crate::args::{self, Create, YesNo};
use crate::exit::{self, CliError};

/// `--node ID=NAME@ADDRESS:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeArg(Peer);

/// `--volume NR=PATH[,size=SIZE][,meta=PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeArg(Volume);

impl FromStr for NodeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "write ID=NAME@ADDRESS:PORT, such as 0=alpha@10.0.0.1:7789";
        let (id, rest) = text.split_once('=').ok_or(FORM)?;
        let (name, address) = rest.split_once('@').ok_or(FORM)?;
        let id = id.parse().map_err(|_| format!("`{id}` is no node id: {FORM}"))?;
        check_name(name)?;
        let address: Address = address.parse()?;
        Ok(NodeArg(Peer { id, name: name.into(), address }))
    }
}

impl FromStr for VolumeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "write NR=PATH, NR=PATH,size=SIZE or NR=PATH,meta=PATH, such as 0=/dev/vg/r0";
        let (nr, rest) = text.split_once('=').ok_or(FORM)?;
        let nr = nr.parse().map_err(|_| format!("`{nr}` is no volume number: {FORM}"))?;
        let mut words = rest.split(',');
        let disk = absolute(words.next().unwrap_or_default())?;
        let mut volume = Volume { nr, disk, size: None, meta_disk: MetaDisk::Internal, resync_after: None };
        for word in words {
            match word.split_once('=') {
                Some(("size", size)) if volume.size.is_none() => volume.size = Some(size.parse::<Size>()?),
                Some(("meta", "internal")) => {}
                Some(("meta", path)) if volume.meta_disk == MetaDisk::Internal => {
                    volume.meta_disk = MetaDisk::External(absolute(path)?);
                }
                _ => return Err(format!("`{word}` is not understood here: {FORM}")),
            }
        }
        Ok(VolumeArg(volume))
    }
}

/// Paths on the command line count from the user's directory, not from the daemon's.
fn absolute(path: &str) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| format!("`{path}` is no path: {error}"))
}

/// The request for a create line.
pub(crate) fn request(create: Create) -> Result<Request, CliError> {
    let secret = create.secret_file.as_deref().map(read_secret).transpose();
    let secret: Option<Secret> = secret.map_err(|error| CliError::new(exit::USAGE, format!("{error:#}")))?;
    let file = ResourceFile {
        name: create.name,
        net: Net {
            protocol: match create.protocol {
                args::Protocol::A => Protocol::A,
                args::Protocol::B => Protocol::B,
                args::Protocol::C => Protocol::C,
            },
            cram_hmac_alg: create.cram_hmac_alg.map(|algorithm| match algorithm {
                args::Algorithm::Sha1 => Algorithm::Sha1,
                args::Algorithm::Sha256 => Algorithm::Sha256,
            }),
            secret_file: create.secret_file,
            verify_alg: create.verify_alg,
            csums_alg: create.csums_alg,
            data_integrity_alg: create.data_integrity_alg,
            after_sb_0pri: create.after_sb_0pri,
            after_sb_1pri: create.after_sb_1pri,
            protocol_version_max: create.protocol_version_max,
            ..Net::default()
        },
        disk: Disk {
            disk_flushes: create.disk_flushes == YesNo::Yes,
            al_extents: create.al_extents.unwrap_or(Disk::default().al_extents),
            ..Disk::default()
        },
        options: Options::default(),
        nodes: create.nodes.into_iter().map(|node| node.0).collect(),
        volumes: create.volumes.into_iter().map(|volume| volume.0).collect(),
    };
    // The daemon checks again; here a mistake is told even if no daemon runs.
    Check::new(&file).all().map_err(|problem| CliError::new(exit::USAGE, problem.to_string()))?;
    Ok(Request::ResourceCreate { resource: Box::new(file), secret, force: create.force })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cli_reads_nodes() {
        let node: NodeArg = "31=bravo@[fd00::1]:7790".parse().unwrap();
        assert_eq!(
            (node.0.id, node.0.name.as_str(), node.0.address.to_string().as_str()),
            (31, "bravo", "[fd00::1]:7790")
        );
        for wrong in
            ["", "0", "0=alpha", "0=alpha@10.0.0.1", "x=alpha@10.0.0.1:1", "0=al/pha@10.0.0.1:1", "300=a@10.0.0.1:1"]
        {
            assert!(wrong.parse::<NodeArg>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn cli_reads_volumes() {
        let volume: VolumeArg = "3=/dev/vg/r0,size=256M,meta=/dev/vg/md".parse().unwrap();
        assert_eq!(volume.0.size, Some(Size(256 << 20)));
        assert_eq!(volume.0.meta_disk, MetaDisk::External("/dev/vg/md".into()));
        let relative: VolumeArg = "0=r0.img".parse().unwrap();
        assert_eq!(relative.0.disk, std::env::current_dir().unwrap().join("r0.img"));
        for wrong in
            ["", "0", "0=", "x=/a", "0=/a,size", "0=/a,size=1X", "0=/a,size=1M,size=2M", "0=/a,colour=red", "0=/a,"]
        {
            assert!(wrong.parse::<VolumeArg>().is_err(), "{wrong}");
        }
    }
}
