//! Processes that never keep the demo waiting: each is ended by its own id, each wait has a limit.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::run::Run;

/// How often a wait looks again.
const PAUSE: Duration = Duration::from_millis(5);
/// How long a process that was killed may take to be gone: it may be inside of the kernel, waiting for a device.
const KILLED: Duration = Duration::from_secs(5);
/// Directories of system commands that are not in the PATH of a user.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// PATH with the directories of system commands.
fn search_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    for directory in SYSTEM_DIRECTORIES {
        path.push(":");
        path.push(directory);
    }
    path
}

/// Where a command is.
pub(crate) fn find_tool(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path()).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// How commands that need root are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// This process is root.
    Root,
    /// `sudo -n` works without a question.
    Sudo,
    /// Not at all.
    None,
}

impl Privilege {
    /// What this user may do.
    pub(crate) fn find(run: &Run) -> Privilege {
        if rustix::process::geteuid().is_root() {
            return Privilege::Root;
        }
        let mut sudo = command("sudo");
        sudo.args(["-n", "true"]);
        match output(run, &mut sudo, Duration::from_secs(10)) {
            Ok(output) if output.status.success() => Privilege::Sudo,
            _ => Privilege::None,
        }
    }

    /// A command that runs as root, unless there is no way to.
    pub(crate) fn command(self, program: &str) -> Command {
        match self {
            Privilege::Root | Privilege::None => command(program),
            Privilege::Sudo => {
                let mut sudo = command("sudo");
                sudo.args(["-n", "--", program]);
                sudo
            }
        }
    }
}

/// A command without input, in the C locale, out of reach of the terminal's Ctrl-C: the demo ends it itself.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path()).env("LC_ALL", "C");
    command.stdin(Stdio::null()).process_group(0);
    command
}

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The command line, for messages.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Runs a command to its end, whatever that is.
///
/// # Errors
/// It cannot be started, takes longer than `limit` (then it is killed), or the run is interrupted.
pub(crate) fn output(run: &Run, command: &mut Command, limit: Duration) -> Result<Output> {
    output_checked(command, limit, || run.check())
}

/// As [`output`], when things are taken down: an interruption does not stop that.
pub(crate) fn output_of_cleanup(command: &mut Command, limit: Duration) -> Result<Output> {
    output_checked(command, limit, || Ok(()))
}

/// As [`output`]; an exit code that is not 0 is an error with what the command said.
pub(crate) fn succeed(run: &Run, command: &mut Command, limit: Duration) -> Result<String> {
    success(command, |command| output(run, command, limit))
}

/// As [`succeed`], when things are taken down.
pub(crate) fn succeed_in_cleanup(command: &mut Command, limit: Duration) -> Result<String> {
    success(command, |command| output_of_cleanup(command, limit))
}

fn success(command: &mut Command, run: impl FnOnce(&mut Command) -> Result<Output>) -> Result<String> {
    let output = run(command)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    bail!("{}: {}: {}", line(command), output.status, last_lines(&format!("{}{}", output.stdout, output.stderr), 5))
}

fn output_checked(command: &mut Command, limit: Duration, check: impl Fn() -> Result<()>) -> Result<Output> {
    // Files, not pipes: no reader that could wait for a descriptor which a stray process holds.
    let mut streams = [tempfile::tempfile()?, tempfile::tempfile()?];
    command.stdout(streams[0].try_clone()?).stderr(streams[1].try_clone()?);
    let mut process = Process::spawn(command)?;
    let Some(status) = process.wait(limit, check)? else {
        bail!("{}: still running after {limit:?}", line(command));
    };
    Ok(Output { status, stdout: contents(&mut streams[0])?, stderr: contents(&mut streams[1])? })
}

fn contents(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The end of a text on one line.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("; ")
}

/// A process that is killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts a command.
    pub(crate) fn spawn(command: &mut Command) -> Result<Process> {
        let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Process { child, name })
    }

    /// Its id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end; nothing if it is still there after `limit`.
    pub(crate) fn wait(&mut self, limit: Duration, check: impl Fn() -> Result<()>) -> Result<Option<ExitStatus>> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            check()?;
            if begin.elapsed() >= limit {
                return Ok(None);
            }
            thread::sleep(PAUSE);
        }
    }

    /// Asks it to end (SIGTERM).
    pub(crate) fn terminate(&self) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::TERM)?)
    }

    /// Kills it (SIGKILL) without waiting.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.ended(), Ok(Some(_))) {
            return;
        }
        let gone = self.kill().and_then(|()| self.wait(KILLED, || Ok(()))).is_ok_and(|status| status.is_some());
        if !gone {
            eprintln!("zea-demo: {} (process {}) is killed but not gone", self.name, self.id());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demo_commands_give_their_output_and_code() {
        let run = Run::begin(true).unwrap();
        let mut shell = command("sh");
        shell.args(["-c", "echo out; echo err >&2; exit 3"]);
        let output = output(&run, &mut shell, Duration::from_secs(10)).unwrap();
        assert_eq!((output.status.code(), output.stdout.as_str(), output.stderr.as_str()), (Some(3), "out\n", "err\n"));
        let error = succeed(&run, &mut shell, Duration::from_secs(10)).unwrap_err();
        assert!(error.to_string().contains("out; err"), "{error}");
    }

    #[test]
    fn demo_commands_that_hang_are_killed() {
        let run = Run::begin(true).unwrap();
        let begin = Instant::now();
        let mut sleep = command("sleep");
        let error = output(&run, sleep.arg("60"), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("still running"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn demo_processes_end_with_their_owner() {
        let process = Process::spawn(command("sleep").arg("60")).unwrap();
        let id = process.id();
        drop(process);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn demo_messages_have_the_last_lines() {
        assert_eq!(last_lines("a\n\n b \nc\n", 2), "b; c");
        assert_eq!(last_lines("", 2), "");
    }

    #[test]
    fn demo_tools_are_found() {
        assert!(find_tool("sh").is_some());
        assert!(find_tool("no-such-tool-here").is_none());
    }
}
