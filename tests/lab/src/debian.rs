//! Debian packages of other suites than this machine's: downloaded and unpacked, never installed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::tool;

/// Where Debian is, unless this machine's own sources say otherwise.
const MIRROR: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The folder for what is downloaded.
pub(crate) fn cache_folder() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    Ok(cache.context("neither XDG_CACHE_HOME nor HOME is set")?.join("zea/lab"))
}

/// Makes a folder of the cache whole, once: `fill` gets a folder that becomes it. Others wait meanwhile.
pub(crate) fn cached(name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = cache_folder()?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let lock = File::create(cache.join(format!("{name}.lock")))?;
    lock.lock()?;
    let whole = cache.join(name);
    if !whole.is_dir() {
        let work = tempfile::tempdir_in(&cache)?;
        let fresh = work.path().join("fresh");
        fs::create_dir(&fresh)?;
        fill(&fresh)?;
        fs::rename(&fresh, &whole)?;
    }
    Ok(whole)
}

/// Package lists of some suites, in a folder of their own: this machine's are not touched.
pub(crate) struct Suites {
    folder: tempfile::TempDir,
    /// Taken rather than the others.
    target: &'static str,
}

impl Suites {
    /// Downloads the lists.
    pub(crate) fn fetch(suites: &[&str], target: &'static str) -> Result<Suites> {
        let folder = tempfile::tempdir()?;
        for sub in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.path().join(sub))?;
        }
        let mirror = mirror();
        let line = |suite: &&str| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        fs::write(folder.path().join("sources.list"), suites.iter().map(line).collect::<String>())?;
        let suites = Suites { folder, target };
        tool::succeed(suites.apt("apt-get").args(["-q", "update"]))?;
        Ok(suites)
    }

    /// Names of packages that begin like this.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        Ok(tool::succeed(self.apt("apt-cache").args(["pkgnames", prefix]))?.lines().map(str::to_owned).collect())
    }

    /// Downloads packages and unpacks them into a folder; what they need and this machine lacks, too.
    pub(crate) fn unpack(&self, packages: &[&str], into: &Path) -> Result<()> {
        let mut list = self.apt("apt-get");
        list.args(["install", "--print-uris", "-qq", "--no-install-recommends", "-t", self.target]);
        let listed = tool::succeed(list.args(packages))?;
        // 'URI' FILE SIZE HASH, where FILE is NAME_VERSION_ARCHITECTURE.deb.
        let files = listed.lines().filter_map(|line| line.split(' ').nth(1));
        let names: Vec<&str> = files.filter_map(|file| file.split('_').next()).collect();
        self.download(if names.is_empty() { packages } else { &names }, into)
    }

    /// Downloads packages and unpacks them into a folder, without what they need.
    pub(crate) fn download(&self, packages: &[&str], into: &Path) -> Result<()> {
        let downloads = tempfile::tempdir_in(self.folder.path())?;
        let mut download = self.apt("apt-get");
        download.args(["-q", "-t", self.target, "download"]).args(packages).current_dir(downloads.path());
        tool::succeed(&mut download)?;
        for entry in fs::read_dir(downloads.path())? {
            tool::succeed(tool::command("dpkg-deb").arg("-x").arg(entry?.path()).arg(into))?;
        }
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let folder = self.folder.path();
        let mut apt = tool::command(program);
        for (option, value) in [
            ("Dir::Etc::sourcelist", folder.join("sources.list")),
            ("Dir::Etc::sourceparts", PathBuf::from("/dev/null")),
            ("Dir::Etc::preferencesparts", PathBuf::from("/dev/null")),
            ("Dir::State::lists", folder.join("lists")),
            ("Dir::Cache", folder.to_owned()),
        ] {
            apt.arg("-o").arg(format!("{option}={}", value.display()));
        }
        apt.args(["-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=root"]);
        apt
    }
}

/// The mirror that this machine uses.
fn mirror() -> String {
    let lists = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().filter_map(Result::ok);
    let files = lists.map(|entry| entry.path()).chain([PathBuf::from("/etc/apt/sources.list")]);
    let text: String = files.filter_map(|file| fs::read_to_string(file).ok()).collect();
    let uris = text.split_whitespace().filter(|word| word.starts_with("http"));
    uris.map(|uri| uri.trim_end_matches('/')).find(|uri| uri.ends_with("/debian")).unwrap_or(MIRROR).to_owned()
}

/// The name with the highest version number in it.
pub(crate) fn newest(names: Vec<String>, suffix: &str) -> Result<String> {
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    let fitting = names.into_iter().filter(|name| name.ends_with(suffix));
    let best = fitting.max_by_key(|name| numbers(name));
    let best = best.with_context(|| format!("no package ends with {suffix}"))?;
    ensure!(!best.contains("unsigned"), "only {best}");
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lab_newest_package_is_by_number() {
        let names = ["linux-image-6.12.9-cloud", "linux-image-6.12.95-cloud", "linux-image-6.12.95-cloud-dbg"];
        let names = || names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(newest(names(), "-cloud").unwrap(), "linux-image-6.12.95-cloud");
        assert!(newest(names(), "-rt").is_err());
    }
}
