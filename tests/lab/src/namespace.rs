//! A network of its own: a namespace with a bridge, which the guests and programs of this machine are connected to.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::tool;

/// The bridge, and this machine's own interface in the network.
pub(crate) const BRIDGE: &str = "br0";
/// This machine's address in the network.
pub(crate) const HOST: &str = "10.99.0.254";

/// How long the system may take to make a namespace.
const MADE: Duration = Duration::from_secs(60);
/// Likewise, seconds for a command in it.
const COMMAND_S: u32 = 60;

/// The address of a guest by its number from 1 on.
pub(crate) fn guest_address(number: usize) -> String {
    format!("10.99.0.{number}")
}

/// A network namespace. It has no name: it lives as long as a process in it.
#[derive(Debug)]
pub(crate) struct Namespace {
    /// Ends when the pipe to it closes, and that is with this process at the latest.
    anchor: Child,
}

impl Namespace {
    /// Makes a namespace with a bridge.
    ///
    /// # Errors
    /// The system does not allow it.
    pub(crate) fn new() -> Result<Namespace> {
        ensure!(rustix::process::geteuid().is_root(), "a network namespace needs root");
        let mut unshare = tool::command("unshare");
        unshare.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut namespace = Namespace { anchor: unshare.spawn().context("cannot start unshare")? };
        namespace.wait_until_made()?;
        namespace.ip(&format!(
            "link set lo up\nlink add {BRIDGE} type bridge\naddress add {HOST}/24 dev {BRIDGE}\nlink set {BRIDGE} up\n"
        ))?;
        Ok(namespace)
    }

    fn wait_until_made(&mut self) -> Result<()> {
        let of = |who: &str| fs::read_link(PathBuf::from(format!("/proc/{who}/ns/net")));
        let own = of("self")?;
        let begin = Instant::now();
        // It becomes cat when all is done.
        let name = format!("/proc/{}/comm", self.anchor.id());
        while of(&self.anchor.id().to_string()).is_ok_and(|net| net == own)
            || fs::read_to_string(&name).is_ok_and(|name| name.trim() != "cat")
        {
            if let Some(status) = self.anchor.try_wait()? {
                bail!("no network namespace can be made here: unshare: {status}");
            }
            ensure!(begin.elapsed() < MADE, "no network namespace after {MADE:?}");
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// A command that will run in the namespace, and not outlive the thread that starts it. Its arguments follow.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = tool::command("nsenter");
        self.enter(&mut command);
        command.args(["setpriv", "--pdeathsig", "KILL", program]);
        command
    }

    fn enter(&self, command: &mut Command) {
        command.args(["--target", &self.anchor.id().to_string(), "--net", "--"]);
    }

    /// Adds a tap device for a guest.
    pub(crate) fn add_tap(&self, name: &str) -> Result<()> {
        self.ip(&format!("tuntap add {name} mode tap\nlink set {name} master {BRIDGE}\nlink set {name} up\n"))
    }

    /// Pulls the cable of a guest, or plugs it in again.
    pub(crate) fn set_cable(&self, tap: &str, plugged: bool) -> Result<()> {
        let to = if plugged { format!("master {BRIDGE}") } else { "nomaster".to_owned() };
        self.ip(&format!("link set {tap} {to}\n"))
    }

    /// Runs commands of `ip`, one a line.
    fn ip(&self, commands: &str) -> Result<()> {
        let mut ip = tool::limited(COMMAND_S, "nsenter");
        self.enter(&mut ip);
        ip.args(["ip", "-batch", "-"]);
        ip.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = ip.spawn().context("cannot start ip")?;
        child.stdin.take().context("ip has an input")?.write_all(commands.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "ip: {}: {commands}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.anchor.stdin.take());
        // A failure means that it is gone already.
        let _ = self.anchor.kill();
        let _ = self.anchor.wait();
    }
}
