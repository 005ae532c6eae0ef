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
    /// Starts the pair, with these options, over `backing`, with its state below `directory`, and waits until all of
    /// the volume is up to date on both.
    ///
    /// # Errors
    /// A daemon or a command fails, or the first resync takes longer than five minutes.
    pub fn start(
        programs: &Programs,
        daemon: &[&str],
        backing: &[PathBuf; 2],
        disk_flushes: bool,
        directory: &Path,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let addresses = [loopback(1)?, loopback(2)?];
        let node = |id| Node::start(programs, daemon, id, directory, interrupt);
        let nodes = [node(0)?, node(1)?];
        for (node, backing) in nodes.iter().zip(backing) {
            node.create(&addresses, backing, disk_flushes, interrupt)?;
        }
        nodes[0].zea(&["promote", RESOURCE, "--force"], interrupt)?;
        let pair = Self(nodes);
        pair.wait_synced(interrupt)?;
        Ok(pair)
    }

    /// Waits until all of the volume is up to date on both.
    ///
    /// # Errors
    /// That takes longer than five minutes.
    pub fn wait_synced(&self, interrupt: &Interrupt) -> Result<()> {
        self.0[0].zea(&["wait", RESOURCE, "--for", "synced"], interrupt).map(drop)
    }

    /// Lets the Secondary throw its copy away and fetch all of it again.
    ///
    /// # Errors
    /// It refuses.
    pub fn invalidate(&self, interrupt: &Interrupt) -> Result<()> {
        self.0[1].zea(&["invalidate", RESOURCE, "0"], interrupt).map(drop)
    }

    /// KiB that the Secondary lacks.
    ///
    /// # Errors
    /// The Primary does not say.
    pub fn out_of_sync_kib(&self, interrupt: &Interrupt) -> Result<u64> {
        let status = self.status(interrupt)?;
        let missing = &status[0]["connections"][0]["peer_devices"][0]["out-of-sync"];
        missing.as_u64().context("no count of missing blocks in the status")
    }

    fn status(&self, interrupt: &Interrupt) -> Result<serde_json::Value> {
        let status = self.0[0].zea(&["status", RESOURCE, "--json"], interrupt)?;
        Ok(serde_json::from_str(&status)?)
    }

    /// # Errors
    /// The pair is not connected and in sync: what was written last was not replicated, and its
    /// cost is not that of a replicated write.
    pub fn check(&self, interrupt: &Interrupt) -> Result<()> {
        let now = ["wait", RESOURCE, "--for", "synced", "--timeout", "0"];
        let outcome = self.0[0].zea(&now, interrupt);
        outcome.map(drop).context("the pair has fallen apart")
    }

    /// Time of processors that both daemons have used, in nanoseconds.
    ///
    /// # Errors
    /// A daemon has ended.
    pub fn cpu_ns(&self) -> Result<u64> {
        let both = self.0.iter().map(|node| cpu_ns(node.daemon.pid()));
        both.sum()
    }

    /// Writes of 4 KiB that the Primary has taken since it started.
    ///
    /// # Errors
    /// It does not say.
    pub fn writes(&self, interrupt: &Interrupt) -> Result<u64> {
        let status = self.status(interrupt)?;
        let kib = status[0]["devices"][0]["written"].as_u64().context("no count of writes in the status")?;
        Ok(kib / 4)
    }

    /// The export's URI.
    pub fn uri(&self) -> &str {
        &self.0[0].uri
    }
}

/// What the kernel counted for all threads of a process.
fn cpu_ns(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = match std::fs::read_to_string(thread?.path().join("schedstat")) {
            // A thread that served a command has ended.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => continue,
            text => text?,
        };
        let used = text.split(' ').next().and_then(|first| first.parse::<u64>().ok());
        sum += used.context("schedstat has no time")?;
    }
    Ok(sum)
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
        let node = Node::start(programs, &[], 0, directory, interrupt)?;
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
    fn start(programs: &Programs, daemon: &[&str], id: usize, directory: &Path, interrupt: &Interrupt) -> Result<Self> {
        let state = directory.join(format!("node-{id}"));
        std::fs::create_dir_all(&state)?;
        let mut command = Command::new(programs.zead()?);
        command.args(["--node-id", &id.to_string()]);
        command.arg("--state-dir").arg(&state).args(daemon);
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
