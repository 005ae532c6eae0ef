//! Commands of the system.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// Folders of system commands that are not in the PATH of a user.
const SYSTEM_FOLDERS: &str = "/usr/sbin:/sbin:/lib/drbd:/usr/lib/drbd";

fn search_path() -> String {
    format!("{}:{SYSTEM_FOLDERS}", std::env::var("PATH").unwrap_or_default())
}

/// Where a command is.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path()).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A command without input, in the C locale.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path()).env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Runs a command to its end; returns its output.
///
/// # Errors
/// It cannot be started, or its exit code is not 0: with all that it said.
pub(crate) fn succeed(command: &mut Command) -> Result<String> {
    let line = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot start {line}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        bail!("{line}: {}: {}{}", output.status, text(&output.stdout), text(&output.stderr));
    }
    Ok(text(&output.stdout))
}

/// A program in the background: killed, whatever it does with other signals, when this is dropped or its thread ends.
#[derive(Debug)]
pub(crate) struct Background(Child);

impl Background {
    /// Starts it; `with` adds arguments and all else. It must not start other programs.
    pub(crate) fn start(program: &str, with: impl FnOnce(&mut Command) -> &mut Command) -> Result<Background> {
        let mut command = command("setpriv");
        command.args(["--pdeathsig", "KILL", program]).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Background(with(&mut command).spawn().with_context(|| format!("cannot start {program}"))?))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // A failure means that it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Prepends `timeout`, so that a command ends after this many seconds at the latest.
pub(crate) fn limited(seconds: u32, program: impl AsRef<OsStr>) -> Command {
    let mut limited = command("timeout");
    limited.args(["--kill-after=1", &seconds.to_string()]).arg(program);
    limited
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn lab_programs_in_the_background_end_also_if_they_ignore_signals() {
        let script = "trap '' TERM INT HUP; echo ready; while :; do :; done";
        let mut shell = Background::start("sh", |sh| sh.args(["-c", script]).stdout(Stdio::piped())).unwrap();
        let mut line = String::new();
        BufReader::new(shell.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let process = std::path::PathBuf::from(format!("/proc/{}", shell.0.id()));
        let begin = Instant::now();
        drop(shell);
        assert!(!process.exists() && begin.elapsed() < Duration::from_secs(10));
    }
}
