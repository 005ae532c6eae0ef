//! How a pair of `zead`, or one alone, is set up to be measured: the only place that knows Zea's
//! command line (`docs/reference/zea.md`).

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
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
            ensure!(path.is_file(), "{} does not exist: build it, or name it with {option}", path.display());
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

/// Two `zead` with one volume in protocol C; the first is Primary and exports it over NBD.
#[derive(Debug)]
pub struct ZeaPair([Node; 2]);

impl ZeaPair {
    /// Starts the pair over `backing`, with its state below `directory`, and waits until all of
    /// the volume is up to date on both.
    ///
    /// # Errors
    /// A daemon or a command fails, or the first resync takes longer than five minutes.
    pub fn start(
        programs: &Programs,
        backing: &[PathBuf; 2],
        disk_flushes: bool,
        directory: &Path,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let addresses = [loopback(1)?, loopback(2)?];
        let nodes = [Node::start(programs, 0, directory, interrupt)?, Node::start(programs, 1, directory, interrupt)?];
        for (node, backing) in nodes.iter().zip(backing) {
            node.create(&addresses, backing, disk_flushes, interrupt)?;
        }
        nodes[0].zea(&["promote", RESOURCE, "--force"], interrupt)?;
        nodes[0].zea(&["wait", RESOURCE, "--for", "synced"], interrupt)?;
        Ok(Self(nodes))
    }

    /// # Errors
    /// The pair is not connected and in sync: what was written last was not replicated, and its
    /// cost is not that of a replicated write.
    pub fn check(&self, interrupt: &Interrupt) -> Result<()> {
        let now = ["wait", RESOURCE, "--for", "synced", "--timeout", "0"];
        let outcome = self.0[0].zea(&now, interrupt);
        outcome.map(drop).context("the pair has fallen apart")
    }

    /// The export's URI.
    pub fn uri(&self) -> &str {
        &self.0[0].uri
    }
}

/// One Primary `zead` with one volume and two peers, none of which is there.
#[derive(Debug)]
pub struct ZeaAlone(Node);

impl ZeaAlone {
    /// Starts the daemon over `backing`, with its state below `directory`.
    ///
    /// # Errors
    /// The daemon or a command fails.
    pub fn start(programs: &Programs, backing: &Path, directory: &Path, interrupt: &Interrupt) -> Result<Self> {
        let addresses = [loopback(1)?, loopback(2)?, loopback(3)?];
        let node = Node::start(programs, 0, directory, interrupt)?;
        node.create(&addresses, backing, true, interrupt)?;
        node.zea(&["promote", RESOURCE, "--force"], interrupt)?;
        node.zea(&["wait", RESOURCE, "--for", "uptodate"], interrupt)?;
        Ok(Self(node))
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.0.daemon.pid()
    }

    /// The export's URI.
    pub fn uri(&self) -> &str {
        &self.0.uri
    }
}

#[derive(Debug)]
struct Node {
    zea: PathBuf,
    control: PathBuf,
    uri: String,
    daemon: Daemon,
}

impl Node {
    fn start(programs: &Programs, id: usize, directory: &Path, interrupt: &Interrupt) -> Result<Self> {
        let state = directory.join(format!("node-{id}"));
        std::fs::create_dir_all(&state)?;
        let mut command = Command::new(programs.zead()?);
        command.args(["--node-id", &id.to_string()]);
        command.arg("--state-dir").arg(&state);
        let mut daemon = Daemon::start(&format!("zead-{id}"), &mut command, directory)?;
        let control = state.join("control.sock");
        daemon.wait_until("control socket", interrupt, || UnixStream::connect(&control).is_ok())?;
        let nbd = state.join("nbd.sock");
        Ok(Self {
            zea: programs.zea()?,
            control,
            uri: format!("nbd+unix:///{RESOURCE}/0?socket={}", nbd.display()),
            daemon,
        })
    }

    /// Creates the resource on this node, with meta data at the end of `backing`.
    fn create(
        &self,
        addresses: &[SocketAddr],
        backing: &Path,
        disk_flushes: bool,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let volume = format!("0={}", backing.display());
        let mut arguments = vec!["resource", "create", RESOURCE, "--volume", &volume];
        let nodes = addresses.iter().enumerate();
        let nodes: Vec<String> = nodes.map(|(id, address)| format!("{id}=node-{id}@{address}")).collect();
        for node in &nodes {
            arguments.extend(["--node", node]);
        }
        let flushes = if disk_flushes { "yes" } else { "no" };
        arguments.extend(["--protocol", "C", "--disk-flushes", flushes, "--force"]);
        self.zea(&arguments, interrupt)?;
        Ok(())
    }

    fn zea(&self, arguments: &[&str], interrupt: &Interrupt) -> Result<String> {
        let mut command = Command::new(&self.zea);
        command.arg("--socket").arg(&self.control).args(arguments);
        interrupt.run(&mut command)
    }
}

/// A free port on the loopback address of this number: 127.0.0.NUMBER.
fn loopback(number: u8) -> Result<SocketAddr> {
    let port = free_address()?.port();
    Ok(SocketAddr::new([127, 0, 0, number].into(), port))
}
