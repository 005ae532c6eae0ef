//! Child processes that never outlive their owner, and the signal that ends a run early.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How often a child is looked at while it is waited for.
const POLL: Duration = Duration::from_millis(10);
/// How long a daemon may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long a daemon may take to end after it was asked to.
const END_LIMIT: Duration = Duration::from_secs(3);
/// How long a command may take; every measurement is shorter.
const COMMAND_LIMIT: Duration = Duration::from_secs(600);

/// Set by SIGINT, SIGTERM or SIGHUP: the run then ends through its error path, where every child
/// is ended and every temporary directory removed.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches the signals for the rest of this process.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn catch_signals() -> Result<Self> {
        let interrupt = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupt.0))?;
        }
        Ok(interrupt)
    }

    /// # Errors
    /// A signal has come.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.0.load(Ordering::Relaxed), "interrupted by a signal");
        Ok(())
    }

    /// Runs a command to its end and returns what it printed to its standard output, which must
    /// be less than a pipe holds (64 KiB).
    ///
    /// # Errors
    /// The command cannot be started, fails (with what it printed to standard error), takes longer
    /// than ten minutes, or a signal comes meanwhile.
    pub fn run(&self, command: &mut Command) -> Result<String> {
        let text = format!("{command:?}");
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().with_context(|| format!("start {text}"))?;
        let mut child = KillOnDrop(child);
        let deadline = Instant::now() + COMMAND_LIMIT;
        let status = loop {
            if let Some(status) = child.0.try_wait()? {
                break status;
            }
            self.check()?;
            ensure!(Instant::now() < deadline, "{text} does not end");
            sleep(POLL);
        };
        let output = |stream: Option<&mut dyn std::io::Read>| -> Result<String> {
            let mut bytes = Vec::new();
            stream.context("an output was not piped")?.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let printed = output(child.0.stdout.as_mut().map(|stream| stream as _))?;
        let errors = output(child.0.stderr.as_mut().map(|stream| stream as _))?;
        ensure!(status.success(), "{text} failed ({status}):\n{errors}{printed}");
        Ok(printed)
    }
}

#[derive(Debug)]
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Both fail only for a child that has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A daemon that runs until this is dropped: then SIGTERM, and SIGKILL if that does not help.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: KillOnDrop,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`; what it prints goes to `NAME.log` in `directory`.
    ///
    /// # Errors
    /// The log cannot be made or the command not started.
    pub fn start(name: &str, command: &mut Command, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        command.stdout(file.try_clone()?);
        Self::spawn(name, command, log, file)
    }

    /// Starts `command`, which says on its standard output, in one line, where it listens; returns
    /// that line.
    ///
    /// # Errors
    /// The command cannot be started or ends without the line.
    pub fn start_announced(name: &str, command: &mut Command, directory: &Path) -> Result<(Self, String)> {
        let log = directory.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        command.stdout(Stdio::piped());
        let mut daemon = Self::spawn(name, command, log, file)?;
        let stdout = daemon.child.0.stdout.take().context("stdout is piped")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.is_empty() {
            bail!("{} ended before it listened:\n{}", name, daemon.log_text());
        }
        Ok((daemon, line.trim_end().to_owned()))
    }

    fn spawn(name: &str, command: &mut Command, log: PathBuf, file: File) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stderr(file).spawn().with_context(|| format!("start {command:?}"))?;
        Ok(Self { name: name.to_owned(), child: KillOnDrop(child), log })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Waits until `ready` holds; `what` names it in errors.
    ///
    /// # Errors
    /// The daemon ends, it takes longer than thirty seconds, or a signal comes.
    pub fn wait_until(&mut self, what: &str, interrupt: &Interrupt, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + READY_LIMIT;
        while !ready() {
            interrupt.check()?;
            if let Some(status) = self.child.0.try_wait()? {
                bail!("{} ended ({status}):\n{}", self.name, self.log_text());
            }
            ensure!(Instant::now() < deadline, "{}: no {what} after {READY_LIMIT:?}:\n{}", self.name, self.log_text());
            sleep(POLL);
        }
        Ok(())
    }

    fn log_text(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Ok(None) = self.child.0.try_wait() else {
            return;
        };
        // The child is not yet waited for, so its process id is still its own. If it cannot be
        // asked, `KillOnDrop` ends it after this.
        let _ = kill_process(Pid::from_child(&self.child.0), Signal::TERM);
        let deadline = Instant::now() + END_LIMIT;
        while matches!(self.child.0.try_wait(), Ok(None)) && Instant::now() < deadline {
            sleep(POLL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alive(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn bench_daemon_is_ended_on_drop() {
        let directory = tempfile::tempdir().unwrap();
        let daemon = Daemon::start("sleep", Command::new("sleep").arg("60"), directory.path());
        let daemon = daemon.unwrap();
        let pid = daemon.pid();
        assert!(alive(pid));
        drop(daemon);
        assert!(!alive(pid));
    }

    #[test]
    fn bench_daemon_that_ends_early_is_an_error_with_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such device >&2"]);
        let mut daemon = Daemon::start("early", &mut command, directory.path()).unwrap();
        let error = daemon.wait_until("socket", &Interrupt::default(), || false);
        assert!(error.unwrap_err().to_string().contains("no such device"));
        let error = Daemon::start_announced("mute", &mut command, directory.path());
        assert!(error.unwrap_err().to_string().contains("no such device"));
    }

    #[test]
    fn bench_command_failure_and_interrupt_are_errors() {
        let interrupt = Interrupt::default();
        let shell = |text| {
            let mut command = Command::new("sh");
            command.args(["-c", text]);
            command
        };
        assert_eq!(interrupt.run(&mut shell("echo yes")).unwrap(), "yes\n");
        let failed = interrupt.run(&mut shell("echo why >&2; exit 3"));
        assert!(failed.unwrap_err().to_string().contains("why"));
        interrupt.0.store(true, Ordering::Relaxed);
        assert!(interrupt.run(&mut shell("sleep 60")).is_err());
    }
}
