//! A Zea node on this machine, in the network of a lab.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::namespace::Namespace;
use crate::tool;

/// How long the daemon may take to listen.
const STARTED: Duration = Duration::from_secs(90);
/// Seconds for a command.
const COMMAND_S: u32 = 180;

/// The folder with zead and zea of the same build profile, up to date.
pub(crate) fn programs() -> Result<&'static Path> {
    static FOLDER: OnceLock<Result<PathBuf>> = OnceLock::new();
    FOLDER.get_or_init(build).as_deref().map_err(|error| anyhow::anyhow!("{error:#}"))
}

fn build() -> Result<PathBuf> {
    // A test lies one folder below the programs.
    let own = std::env::current_exe()?;
    let folder = own.parent().context("a program lies in a folder")?;
    let folder = if folder.ends_with("deps") { folder.parent().context("deps lies in a folder")? } else { folder };
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "-q", "-p", "zea-node", "-p", "zea-cli", "--bins", "--profile", profile, "--target-dir"]);
    cargo.arg(folder.parent().context("a target folder")?).current_dir(env!("CARGO_MANIFEST_DIR"));
    ensure!(cargo.status()?.success(), "zead and zea cannot be built");
    Ok(folder.to_owned())
}

/// A running zead, killed when it is dropped.
#[derive(Debug)]
pub struct Zead {
    child: Child,
    state: PathBuf,
    disk: PathBuf,
}

impl Zead {
    /// Starts the daemon as node 0, with its state in `folder`.
    pub(crate) fn start(namespace: &Namespace, folder: &Path) -> Result<Zead> {
        let state = folder.join("zead");
        let log = File::options().create(true).append(true).open(folder.join("zead.log"))?;
        let program = programs()?.join("zead");
        let mut command = namespace.command(&program.to_string_lossy());
        command.args(["--node-id", "0", "--state-dir"]).arg(&state).stderr(log);
        let child = command.spawn().context("cannot start zead")?;
        let mut zead = Zead { child, state, disk: folder.join("zead.img") };
        let begin = Instant::now();
        while zead.zea("version").is_err() {
            let ended = zead.child.try_wait()?;
            ensure!(ended.is_none() && begin.elapsed() < STARTED, "zead does not start: {}", zead.log()?);
            thread::sleep(Duration::from_millis(20));
        }
        Ok(zead)
    }

    /// Runs `zea` with these words; returns what it printed.
    ///
    /// # Errors
    /// It fails: with what it said.
    pub fn zea(&self, line: &str) -> Result<String> {
        let mut zea = tool::limited(COMMAND_S, programs()?.join("zea"));
        tool::succeed(zea.args(line.split_whitespace()).env("ZEA_SOCKET", self.state.join("control.sock")))
    }

    /// What `zea status --json` says of the only resource.
    pub fn status(&self) -> Result<serde_json::Value> {
        let list: serde_json::Value = serde_json::from_str(&self.zea("status --json")?)?;
        Ok(list[0].clone())
    }

    /// Waits until the status of the only resource is as wanted.
    ///
    /// # Errors
    /// It is not after `limit`: with the status and the end of the log.
    pub fn wait(&self, limit: Duration, wanted: impl Fn(&serde_json::Value) -> bool) -> Result<()> {
        let begin = Instant::now();
        loop {
            let status = self.status()?;
            if wanted(&status) {
                return Ok(());
            }
            ensure!(begin.elapsed() < limit, "after {limit:?}: {status:#}\n{}", self.log()?);
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the daemon logged.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.state.with_file_name("zead.log"))?)
    }

    /// The image of its only volume.
    #[must_use]
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// The address of its only volume as an NBD export.
    #[must_use]
    pub fn nbd(&self) -> String {
        format!("nbd+unix:///r0/0?socket={}", self.state.join("nbd.sock").display())
    }

    /// Kills it (SIGKILL).
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Zead {
    fn drop(&mut self) {
        // A failure means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
