//! Running `drbdmeta` on image files.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use zea_meta::Placement;

/// The tool that Debian ships in the package `drbd-utils`.
pub(crate) struct Tool {
    path: PathBuf,
}

/// Format of meta data, as the tool is told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MdFormat {
    V08,
    V09,
}

impl Tool {
    /// Finds the tool. Without it the tests are skipped aloud, or fail where `CI=true`.
    pub(crate) fn find() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path)
            .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
            .map(|folder| folder.join("drbdmeta"))
            .find(|path| path.is_file());
        if found.is_none() {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "drbdmeta is missing: install drbd-utils");
            eprintln!("SKIPPED, nothing was tested: drbdmeta is missing, install drbd-utils");
        }
        found.map(|path| Self { path })
    }

    /// Runs a command on an image, without a minor number and without questions.
    pub(crate) fn run(&self, format: MdFormat, image: &Path, placement: Placement, command: &[&str]) -> Output {
        let format = match format {
            MdFormat::V08 => "v08",
            MdFormat::V09 => "v09",
        };
        let index = match placement {
            Placement::Internal => "internal".to_owned(),
            Placement::FlexExternal => "flex-external".to_owned(),
            Placement::Indexed(index) => index.to_string(),
        };
        Command::new(&self.path)
            .args(["--force", "-", format])
            .arg(image)
            .arg(index)
            .args(command)
            .output()
            .expect("drbdmeta can be started")
    }

    /// Runs a command that must succeed and gives what it printed.
    pub(crate) fn ok(&self, format: MdFormat, image: &Path, placement: Placement, command: &[&str]) -> String {
        let output = self.run(format, image, placement, command);
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "drbdmeta {command:?}: {}\n{stdout}\n{stderr}", output.status);
        stdout.into_owned()
    }
}
