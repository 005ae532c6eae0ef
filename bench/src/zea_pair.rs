//! How a pair of `zead`, or one alone, is set up to be measured: the only place that knows Zea's
//! command line and its resource file.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::{Daemon, Interrupt};
use crate::qemu_pair::free_address;

const RESOURCE: &str = "r0";

/// Zea's two programs.
#[derive(Debug, clap::Args)]
pub struct Programs {
    /// The daemon [default: zead beside this program]
    #[arg(long)]
    zead: Option<PathBuf>,
    /// The command line [default: zea beside this program]
    #[arg(long)]
    zea: Option<PathBuf>,
}

impl Programs {
    /// # Errors
    /// One of the two is not there.
    pub fn check(&self) -> Result<()> {
        for (option, path) in [("--zead", self.zead()?), ("--zea", self.zea()?)] {
            ensure!(
                path.is_file(),
                "{} does not exist: build it, or name it with {option}",
                path.display()
            );
        }
        Ok(())
    }

    fn zead(&self) -> Result<PathBuf> {
        beside_us(self.zead.as_deref(), "zead")
    }

    fn zea(&self) -> Result<PathBuf> {
        beside_us(self.zea.as_deref(), "zea")
    }
}

fn beside_us(given: Option<&Path>, name: &str) -> Result<PathBuf> {
    match given {
        Some(path) => Ok(path.to_owned()),
        None => Ok(std::env::current_exe()?.with_file_name(name)),
    }
}

/// Two `zead` with one volume in protocol C, the first of them primary with an NBD export on a
/// Unix socket.
#[derive(Debug)]
pub struct ZeaPair {
    uri: String,
    _nodes: [Node; 2],
}

impl ZeaPair {
    /// Starts the pair over `backing`, with its state below `directory`, and makes it ready:
    /// connected, both disks up to date.
    ///
    /// # Errors
    /// A daemon or command fails, or the pair does not get ready.
    pub fn start(
        programs: &Programs,
        backing: &[PathBuf; 2],
        disk_flushes: bool,
        directory: &Path,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let addresses = [loopback(1)?, loopback(2)?];
        let start = |id: usize| -> Result<Node> {
            let resource = resource_file(&addresses, &backing[id], disk_flushes);
            let directory = directory.join(format!("node-{id}"));
            Node::start(
                programs,
                id,
                addresses[id],
                &resource,
                &directory,
                interrupt,
            )
        };
        let mut nodes = [start(0)?, start(1)?];
        for node in &nodes {
            node.zea(&["resource", "up", RESOURCE], interrupt)?;
        }
        // Both backings hold the same bytes, so there is nothing to copy first.
        nodes[0].wait_for_status("Connected", interrupt)?;
        nodes[0].zea(
            &["resource", "new-current-uuid", "--clear-bitmap", RESOURCE],
            interrupt,
        )?;
        nodes[0].zea(&["resource", "primary", RESOURCE], interrupt)?;
        let socket = directory.join("nbd.sock");
        let path = socket.to_str().context("the socket's path is not UTF-8")?;
        nodes[0].zea(&["export", "nbd", RESOURCE, "--socket", path], interrupt)?;
        Ok(Self {
            uri: format!("nbd+unix:///{RESOURCE}/0?socket={path}"),
            _nodes: nodes,
        })
    }

    /// The export's URI.
    pub fn uri(&self) -> &str {
        &self.uri
    }
}

/// One `zead` with one volume and two peers, none of which is there.
#[derive(Debug)]
pub struct ZeaAlone(Node);

impl ZeaAlone {
    /// Starts the daemon over `backing`, with its state in `directory`, and brings the volume up.
    ///
    /// # Errors
    /// The daemon or a command fails.
    pub fn start(
        programs: &Programs,
        backing: &Path,
        directory: &Path,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let addresses = [loopback(1)?, loopback(2)?, loopback(3)?];
        let resource = resource_file(&addresses, backing, true);
        let node = Node::start(programs, 0, addresses[0], &resource, directory, interrupt)?;
        node.zea(&["resource", "up", RESOURCE], interrupt)?;
        Ok(Self(node))
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.0.daemon.pid()
    }
}

#[derive(Debug)]
struct Node {
    zea: PathBuf,
    control: PathBuf,
    daemon: Daemon,
}

impl Node {
    /// Starts a daemon and creates the resource on it, with its meta data.
    fn start(
        programs: &Programs,
        id: usize,
        listen: SocketAddr,
        resource: &str,
        directory: &Path,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let mut command = Command::new(programs.zead()?);
        command.args(["--node-id", &id.to_string()]);
        command.arg("--state-dir").arg(directory);
        command.args(["--listen", &listen.to_string()]);
        let mut daemon = Daemon::start("zead", &mut command, directory)?;
        let control = directory.join("control.sock");
        daemon.wait_until("control socket", interrupt, || control.exists())?;
        let node = Self {
            zea: programs.zea()?,
            control,
            daemon,
        };
        let file = directory.join("resource.toml");
        std::fs::write(&file, resource)?;
        let file = file.to_str().context("the state's path is not UTF-8")?;
        node.zea(&["resource", "create", file], interrupt)?;
        Ok(node)
    }

    fn zea(&self, arguments: &[&str], interrupt: &Interrupt) -> Result<String> {
        let mut command = Command::new(&self.zea);
        command.arg("--socket").arg(&self.control).args(arguments);
        interrupt.run(&mut command)
    }

    fn wait_for_status(&mut self, wanted: &str, interrupt: &Interrupt) -> Result<()> {
        let (zea, control) = (&self.zea, &self.control);
        let shows = || {
            let mut command = Command::new(zea);
            command
                .arg("--socket")
                .arg(control)
                .args(["status", RESOURCE]);
            let status = interrupt.run(&mut command);
            status.is_ok_and(|status| status.contains(wanted))
        };
        self.daemon.wait_until(wanted, interrupt, shows)
    }
}

/// The resource as the node that keeps its data on `backing` sees it.
fn resource_file(addresses: &[SocketAddr], backing: &Path, disk_flushes: bool) -> String {
    let mut text = format!(
        "name = \"{RESOURCE}\"\n\n[net]\nprotocol = \"C\"\n\n[disk]\ndisk-flushes = {disk_flushes}\n"
    );
    for (id, address) in addresses.iter().enumerate() {
        write!(
            text,
            "\n[[node]]\nid = {id}\nname = \"n{id}\"\naddress = \"{address}\"\n"
        )
        .expect("a String takes all text");
    }
    write!(
        text,
        "\n[[volume]]\nnr = 0\ndisk = \"{}\"\n",
        backing.display()
    )
    .expect("a String takes all text");
    text
}

/// A free port on the loopback address of this number: 127.0.0.NUMBER.
fn loopback(number: u8) -> Result<SocketAddr> {
    Ok(SocketAddr::new(
        [127, 0, 0, number].into(),
        free_address()?.port(),
    ))
}
