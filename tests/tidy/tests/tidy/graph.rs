//! The graph of crates as cargo resolves it for this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;
use zea_tidy::tree;

/// A crate, ours or somebody else's.
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) licence: Option<String>,
    /// Where it comes from; `None`: this repository.
    pub(crate) source: Option<String>,
    /// Ids of what it needs to run, without what it needs for its build and tests.
    normal: Vec<String>,
    /// Likewise, for its build.
    build: Vec<String>,
}

pub(crate) struct Graph {
    packages: BTreeMap<String, Package>,
    pub(crate) members: Vec<String>,
}

impl Graph {
    /// Asks cargo, without the network: what is not downloaded is not built here either.
    pub(crate) fn load() -> Graph {
        let args = ["metadata", "--format-version", "1", "--offline", "--filter-platform"];
        let output =
            Command::new(cargo()).args(args).arg(host()).current_dir(tree::root()).output().expect("cargo runs");
        assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        Graph::from_metadata(&metadata)
    }

    fn from_metadata(metadata: &Value) -> Graph {
        let mut packages: BTreeMap<String, Package> =
            list(&metadata["packages"]).map(|p| (text(&p["id"]), package(p))).collect();
        for node in list(&metadata["resolve"]["nodes"]) {
            let package = packages.get_mut(&text(&node["id"])).expect("a package");
            for dependency in list(&node["deps"]) {
                for kind in list(&dependency["dep_kinds"]) {
                    let id = text(&dependency["pkg"]);
                    match kind["kind"].as_str() {
                        None => package.normal.push(id),
                        Some("build") => package.build.push(id),
                        Some(_) => {}
                    }
                }
            }
        }
        let members = list(&metadata["workspace_members"]).map(text).collect();
        Graph { packages, members }
    }

    pub(crate) fn get(&self, id: &str) -> &Package {
        &self.packages[id]
    }

    pub(crate) fn member(&self, name: &str) -> &str {
        let found = self.members.iter().find(|id| self.get(id).name == name);
        found.unwrap_or_else(|| panic!("no crate {name} in the workspace"))
    }

    /// Everybody else's crates.
    pub(crate) fn third_party(&self) -> impl Iterator<Item = &Package> {
        self.packages.values().filter(|p| p.source.is_some())
    }

    /// Crates of this repository that one of them needs directly, to run or to be built.
    pub(crate) fn own_dependencies(&self, id: &str) -> BTreeSet<&str> {
        let package = self.get(id);
        let ids = package.normal.iter().chain(&package.build);
        ids.map(|id| self.get(id)).filter(|p| p.source.is_none()).map(|p| p.name.as_str()).collect()
    }
}

/// Everybody else's crates that end up in a program because of one of ours: without what only runs in the compiler, and without
/// what only the rest of this repository asks for.
pub(crate) fn linked(name: &str) -> BTreeSet<String> {
    let args = ["tree", "--offline", "--edges", "normal,no-proc-macro", "--prefix", "none", "--package", name];
    let output = Command::new(cargo()).args(args).current_dir(tree::root()).output().expect("cargo runs");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    // "name v1.2.3", ours with their folder.
    let foreign = text.lines().filter(|line| !line.is_empty() && !line.contains(" (/"));
    foreign.map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
}

fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

fn package(p: &Value) -> Package {
    Package {
        name: text(&p["name"]),
        version: text(&p["version"]),
        licence: p["license"].as_str().map(str::to_owned),
        source: p["source"].as_str().map(str::to_owned),
        normal: Vec::new(),
        build: Vec::new(),
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().expect("a list").iter()
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

/// The platform of this machine, as rustc names it.
fn host() -> String {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let output = Command::new(rustc).arg("-vV").current_dir(tree::root()).output().expect("rustc runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc names its host").to_owned()
}
