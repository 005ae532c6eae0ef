//! What the demo needs: Debian packages, if it may install them, and the programs of this workspace.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::frontend::FileSystem;
use crate::process::{self, Privilege, find_tool, last_lines};
use crate::run::Run;

/// A command, and the packages that may have it: releases differ.
type Tool = (&'static str, &'static [&'static str]);

/// Commands for the front end with any file system.
const TOOLS: [Tool; 4] = [
    ("nbdfuse", &["nbdfuse", "libnbd-bin"]),
    ("fio", &["fio"]),
    ("losetup", &["mount", "util-linux"]),
    ("mount", &["mount"]),
];

/// How long apt may take.
const APT: Duration = Duration::from_secs(300);

/// The programs that the demo shows.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) zead: PathBuf,
    pub(crate) zea: PathBuf,
}

impl Programs {
    /// Programs that are built already.
    pub(crate) fn in_directory(directory: &Path) -> Result<Programs> {
        let find = |name: &str| {
            let path = directory.join(name);
            ensure!(path.is_file(), "{} is not there", path.display());
            Ok(std::path::absolute(path)?)
        };
        Ok(Programs { zead: find("zead")?, zea: find("zea")? })
    }

    /// Builds them, in the workspace and the target directory that this program comes from.
    pub(crate) fn build(run: &Run) -> Result<Programs> {
        run.say("building zead and zea");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .args(["build", "--release", "-p", "zea-node", "-p", "zea-cli"])
            .args(["--bins", "--message-format=json-render-diagnostics"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if let Some(target) = target_directory() {
            command.arg("--target-dir").arg(target);
        }
        let mut child = command.spawn().context("cannot start cargo")?;
        let messages = child.stdout.take().context("cargo has no output")?;
        let built = executables(BufReader::new(messages));
        let status = child.wait()?;
        run.check()?;
        ensure!(status.success(), "cargo could not build zead and zea");
        let (zead, zea) = built?;
        Ok(Programs { zead: zead.context("cargo built no zead")?, zea: zea.context("cargo built no zea")? })
    }
}

/// The target directory that this program lies in.
fn target_directory() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let target = program.parent()?.parent()?;
    target.join("CACHEDIR.TAG").is_file().then(|| target.to_owned())
}

/// A message of cargo, as far as it matters.
#[derive(Debug, Deserialize)]
struct Message {
    executable: Option<PathBuf>,
}

/// Paths of zead and zea from cargo's messages.
fn executables(messages: impl BufRead) -> Result<(Option<PathBuf>, Option<PathBuf>)> {
    let (mut zead, mut zea) = (None, None);
    for line in messages.lines() {
        let message: Option<Message> = serde_json::from_str(&line?).ok();
        let Some(path) = message.and_then(|it| it.executable) else {
            continue;
        };
        match path.file_name().and_then(|name| name.to_str()) {
            Some("zead") => zead = Some(path),
            Some("zea") => zea = Some(path),
            _ => {}
        }
    }
    Ok((zead, zea))
}

fn missing(file_system: FileSystem) -> Vec<Tool> {
    TOOLS.into_iter().chain(file_system.tools()).filter(|(name, _)| find_tool(name).is_none()).collect()
}

fn names(tools: &[Tool]) -> Vec<&'static str> {
    tools.iter().map(|(name, _)| *name).collect()
}

/// Names of the commands that are missing for the front end with this file system.
pub(crate) fn missing_tools(file_system: FileSystem) -> Vec<&'static str> {
    names(&missing(file_system))
}

/// Installs what is missing, without any question. What is still missing afterwards is up to [`missing_tools`].
pub(crate) fn install_tools(run: &Run, privilege: Privilege, file_system: FileSystem) -> Result<()> {
    let missing = missing(file_system);
    let names = names(&missing).join(", ");
    if missing.is_empty() {
        return Ok(());
    }
    if privilege == Privilege::None {
        bail!("{names} cannot be installed without root");
    }
    ensure!(find_tool("apt-get").is_some(), "there is no apt-get");
    run.say(format!("installing {names} with apt-get"));
    // Without fresh lists there may still be packages in the old ones.
    if let Err(error) = apt(run, privilege, &["update", "-q"]) {
        run.say(format!("  {error:#}; going on with the lists that are here"));
    }
    let packages = packages(&missing, |name| is_known(run, name));
    ensure!(!packages.is_empty(), "apt knows no package with {names}");
    let mut arguments = vec!["install", "-y", "-q", "--no-install-recommends"];
    arguments.extend(packages);
    apt(run, privilege, &arguments)
}

fn apt(run: &Run, privilege: Privilege, arguments: &[&str]) -> Result<()> {
    let mut command = privilege.command("env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(["-o", "DPkg::Lock::Timeout=60"]).args(arguments);
    let output = process::output(run, &mut command, APT)?;
    ensure!(output.status.success(), "apt-get {}: {}", arguments[0], last_lines(&output.stderr, 2));
    Ok(())
}

fn is_known(run: &Run, package: &str) -> bool {
    let mut command = process::command("apt-cache");
    command.args(["show", "--no-all-versions", package]);
    process::output(run, &mut command, Duration::from_secs(30)).is_ok_and(|output| output.status.success())
}

/// For each missing command the first package that apt knows.
fn packages(missing: &[Tool], is_known: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut packages: Vec<&str> =
        missing.iter().filter_map(|(_, candidates)| candidates.iter().copied().find(|name| is_known(name))).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demo_packages_are_the_first_that_are_known() {
        let bookworm = |name: &str| name != "nbdfuse";
        let missing = [TOOLS.as_slice(), &FileSystem::Ext4.tools()].concat();
        assert_eq!(packages(&missing, bookworm), ["e2fsprogs", "fio", "libnbd-bin", "mount"]);
        assert_eq!(packages(&FileSystem::Xfs.tools(), |_| true), ["xfsprogs"]);
        assert_eq!(packages(&TOOLS[..1], |_| true), ["nbdfuse"]);
        assert!(packages(&missing, |_| false).is_empty());
        assert!(packages(&[], |_| true).is_empty());
    }

    #[test]
    fn demo_programs_are_taken_from_the_messages_of_cargo() {
        let messages = r#"{"reason":"compiler-artifact","executable":null}
{"reason":"compiler-artifact","executable":"/t/release/zead","target":{"name":"zead"}}
no json
{"reason":"compiler-artifact","executable":"/t/release/zea"}
{"reason":"build-finished","success":true}
"#;
        let (zead, zea) = executables(messages.as_bytes()).unwrap();
        assert_eq!(zead.unwrap(), Path::new("/t/release/zead"));
        assert_eq!(zea.unwrap(), Path::new("/t/release/zea"));
        assert_eq!(executables(&b""[..]).unwrap(), (None, None));
    }

    #[test]
    fn demo_programs_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Programs::in_directory(dir.path()).is_err());
        for name in ["zead", "zea"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert!(Programs::in_directory(dir.path()).is_ok());
    }
}
