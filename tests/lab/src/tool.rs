//! Commands of the system.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

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

/// Prepends `timeout`, so that a command ends after this many seconds at the latest.
pub(crate) fn limited(seconds: u32, program: impl AsRef<OsStr>) -> Command {
    let mut limited = command("timeout");
    limited.args(["--kill-after=1", &seconds.to_string()]).arg(program);
    limited
}
