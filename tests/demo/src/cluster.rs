//! Three nodes on loopback addresses, driven through the command line like a user would.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::install::Programs;
use crate::nbd_client::Export;
use crate::process::{self, Process, last_lines};
use crate::run::{Look, Run};
use crate::status::{self, Resource};

/// The resource of the demo.
const RESOURCE: &str = "demo";
/// Names of the nodes, in the order of their ids.
const NAMES: [&str; 3] = ["alpha", "bravo", "charlie"];

/// How long a command of `zea` may take.
const COMMAND: Duration = Duration::from_secs(20);
/// How long a daemon may take until it answers.
const START: Duration = Duration::from_secs(10);
/// How long a daemon may take to stop.
const STOP: Duration = Duration::from_secs(25);
/// How long nodes may take to see that one is gone.
const NOTICE: Duration = Duration::from_secs(15);
/// How long a change of role may be refused.
const INSIST: Duration = Duration::from_secs(20);
/// How long a resync may take.
const RESYNC: Duration = Duration::from_secs(60);
/// How often progress is shown.
const SHOW: Duration = Duration::from_secs(1);

/// `zea`'s exit code for what the state of a resource forbids.
const REFUSED: i32 = 3;

/// A node: a daemon, or the place where one was.
#[derive(Debug)]
pub(crate) struct Node {
    id: usize,
    address: SocketAddr,
    directory: PathBuf,
    programs: Programs,
    daemon: Option<Process>,
}

impl Node {
    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        NAMES[self.id]
    }

    /// Its backing device.
    pub(crate) fn image(&self) -> PathBuf {
        self.directory.join("volume.img")
    }

    /// The volume over NBD.
    pub(crate) fn export(&self) -> Export {
        Export { socket: self.directory.join("nbd.sock"), name: format!("{RESOURCE}/0") }
    }

    /// Starts the daemon; returns when it answers.
    pub(crate) fn start(&mut self, run: &Run) -> Result<()> {
        let log = self.directory.join("zead.log");
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = process::command(&self.programs.zead);
        command
            .args(["--node-id", &self.id.to_string(), "--state-dir"])
            .arg(&self.directory)
            .stdout(Stdio::null())
            .stderr(log);
        self.daemon = Some(Process::spawn(&mut command)?);
        run.wait_for(&format!("the daemon of {}", self.name()), START, || {
            self.assert_alive()?;
            let answer = self.ask(run, &["version"])?;
            Ok(if answer.status.success() { Look::Done(()) } else { Look::NotYet(last_lines(&answer.stderr, 1)) })
        })
    }

    /// The process id of the daemon.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Process::id)
    }

    fn assert_alive(&mut self) -> Result<()> {
        let ended = self.daemon.as_mut().map(Process::ended).transpose()?;
        if let Some(Some(status)) = ended {
            let log = std::fs::read_to_string(self.directory.join("zead.log")).unwrap_or_default();
            bail!("the daemon of {} ended ({status}): {}", self.name(), last_lines(&log, 3));
        }
        Ok(())
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.assert_alive()?;
        let mut daemon = self.daemon.take().context("there is no daemon to kill")?;
        daemon.kill()
    }

    /// Stops the daemon in good order.
    pub(crate) fn stop(&mut self, run: &Run) -> Result<()> {
        self.assert_alive()?;
        let mut daemon = self.daemon.take().context("there is no daemon to stop")?;
        daemon.terminate()?;
        let status = daemon.wait(STOP, || run.check())?;
        let status = status.with_context(|| format!("the daemon of {} does not stop", self.name()))?;
        ensure!(status.success(), "the daemon of {} ended with {status}", self.name());
        Ok(())
    }

    fn ask(&self, run: &Run, arguments: &[&str]) -> Result<process::Output> {
        process::output(run, &mut self.zea(arguments), COMMAND)
    }

    fn zea(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = process::command(&self.programs.zea);
        command.arg("--socket").arg(self.directory.join("control.sock")).args(arguments);
        command
    }

    /// Runs a command of `zea` that must work; gives its output.
    pub(crate) fn tell(&self, run: &Run, arguments: &[&str]) -> Result<String> {
        process::succeed(run, &mut self.zea(arguments), COMMAND).with_context(|| format!("on {}", self.name()))
    }

    /// Promotes a node whose data nobody knows to be good.
    pub(crate) fn promote_first(&self, run: &Run) -> Result<()> {
        self.tell(run, &["promote", RESOURCE, "--force"]).map(drop)
    }

    /// Promotes; tries again as long as the state forbids it, because the death of a Primary must be noticed first.
    pub(crate) fn promote(&self, run: &Run) -> Result<()> {
        self.insist(run, "promote")
    }

    /// Demotes; tries again as long as the state forbids it, because the end of a client must be noticed first.
    pub(crate) fn demote(&self, run: &Run) -> Result<()> {
        self.insist(run, "demote")
    }

    fn insist(&self, run: &Run, command: &str) -> Result<()> {
        let what = format!("{command} on {}", self.name());
        run.wait_for(&what, INSIST, || {
            let answer = self.ask(run, &[command, RESOURCE])?;
            let said = last_lines(&answer.stderr, 2);
            match answer.status.code() {
                Some(0) => Ok(Look::Done(())),
                Some(REFUSED) => Ok(Look::NotYet(said)),
                _ => bail!("{}: {said}", answer.status),
            }
        })
    }

    /// Takes the resource down.
    pub(crate) fn down(&self, run: &Run) -> Result<()> {
        self.tell(run, &["down", RESOURCE]).map(drop)
    }

    /// What it sees.
    pub(crate) fn status(&self, run: &Run) -> Result<Resource> {
        status::parse(&self.tell(run, &["status", RESOURCE, "--json"])?)
    }

    /// Usable size of the volume.
    pub(crate) fn size_bytes(&self, run: &Run) -> Result<u64> {
        let status = self.status(run)?;
        let device = status.devices.first().context("the status has no volume")?;
        Ok(device.size * 1024)
    }
}

/// All nodes.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
}

impl Cluster {
    /// Starts the daemons, and makes the resource with a volume of this size on each.
    pub(crate) fn start(run: &Run, directory: &Path, programs: &Programs, size_mib: u32) -> Result<Cluster> {
        let mut cluster = Cluster { nodes: Vec::new() };
        for (id, name) in NAMES.iter().enumerate() {
            let directory = directory.join(name);
            std::fs::create_dir(&directory)?;
            cluster.nodes.push(Node {
                id,
                address: free_address(id)?,
                directory,
                programs: programs.clone(),
                daemon: None,
            });
        }
        for node in &mut cluster.nodes {
            node.start(run)?;
            run.say(format!("{}: zead on {}, process {}", node.name(), node.address, node.pid().unwrap_or_default()));
        }
        cluster.create(run, size_mib)?;
        Ok(cluster)
    }

    fn create(&self, run: &Run, size_mib: u32) -> Result<()> {
        let peers: Vec<String> =
            self.nodes.iter().map(|it| format!("{}={}@{}", it.id, it.name(), it.address)).collect();
        for node in &self.nodes {
            let volume = format!("0={},size={size_mib}M", node.image().display());
            let mut arguments = vec!["resource", "create", RESOURCE, "--volume", &volume];
            arguments.extend(peers.iter().flat_map(|peer| ["--node", peer]));
            node.tell(run, &arguments)?;
        }
        Ok(())
    }

    /// Waits until every node that runs sees everything UpToDate and equal; shows the resyncs meanwhile.
    pub(crate) fn wait_synced(&self, run: &Run) -> Result<Duration> {
        let begin = Instant::now();
        let mut shown = (begin, String::new());
        run.wait_for("the resync", RESYNC, || {
            let statuses: Vec<Resource> = self.nodes.iter().map(|node| node.status(run)).collect::<Result<_>>()?;
            let progress = primary_first(&statuses).find_map(Resource::progress);
            if let Some(text) = progress.filter(|it| shown.0.elapsed() >= SHOW && *it != shown.1) {
                run.say(format!("  {text}"));
                shown = (Instant::now(), text);
            }
            let missing = self.nodes.iter().zip(&statuses).find_map(|(node, status)| {
                let missing = status.not_synced()?;
                Some(format!("{} says that {missing}", node.name()))
            });
            Ok(missing.map_or(Look::Done(begin.elapsed()), Look::NotYet))
        })
    }

    /// Waits until `observer` has noticed that a node is gone and has marked what that node misses; gives that in KiB.
    ///
    /// Without such marks there would be nothing to resync, and the demo would show nothing.
    pub(crate) fn wait_behind(&self, run: &Run, observer: usize, gone: usize) -> Result<u64> {
        let gone = self.nodes[gone].name();
        run.wait_for(&format!("writes that {gone} misses"), NOTICE, || {
            let status = self.nodes[observer].status(run)?;
            let peer = status.peer(gone)?;
            Ok(match (peer.connection_state.as_str(), peer.out_of_sync()) {
                ("Connected", _) => Look::NotYet(format!("{gone} seems to be connected")),
                (_, 0) => Look::NotYet("nothing is out of sync".into()),
                (_, kib) => Look::Done(kib),
            })
        })
    }
}

fn primary_first(statuses: &[Resource]) -> impl Iterator<Item = &Resource> {
    let is_primary = |it: &&Resource| it.role == "Primary";
    let others = statuses.iter().filter(move |it| !is_primary(it));
    statuses.iter().filter(is_primary).chain(others)
}

/// An address of its own for each node, with a port that is free now.
fn free_address(id: usize) -> Result<SocketAddr> {
    let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, u8::try_from(id)? + 1));
    let probe = TcpListener::bind((address, 0)).with_context(|| format!("cannot listen on {address}"))?;
    Ok(probe.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demo_nodes_have_addresses_of_their_own() {
        let addresses: Vec<SocketAddr> = (0..3).map(|id| free_address(id).unwrap()).collect();
        for (id, address) in addresses.iter().enumerate() {
            assert_eq!(address.ip().to_string(), format!("127.0.0.{}", id + 1));
            assert_ne!(address.port(), 0);
        }
    }
}
