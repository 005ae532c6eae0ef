//! Licences, budgets and layers.

use std::path::Path;

use zea_tidy::{licence, tree};

use crate::assert_none;
use crate::graph::{Graph, linked};

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Crates that a write passes through.
const DATA_PATH: [&str; 8] =
    ["zea-wire", "zea-meta", "zea-core", "zea-recorder", "zea-shard", "zea-tcp", "zea-nbd", "zea-ublk"];

/// A data-path crate links fewer crates of others than this.
const BUDGET: usize = 40;

/// What the data path does not know of: runtimes, RPC, the cluster.
const NOT_IN_DATA_PATH: [&str; 6] = ["tokio", "async-std", "smol", "tonic", "hyper", "kube"];

/// What makes a deterministic crate depend on something but its input.
const NOT_IN_DETERMINISTIC: [&str; 6] = ["getrandom", "rand", "mio", "io-uring", "rustix", "socket2"];
const DETERMINISTIC: [&str; 4] = ["zea-wire", "zea-meta", "zea-core", "zea-nbd"];

/// The layers: each crate, and the crates of this repository that it may depend on. Below, nothing knows what is above.
const LAYERS: [(&str, &[&str]); 17] = [
    ("zea-wire", &[]),
    ("zea-meta", &[]),
    ("zea-nbd", &[]),
    ("zea-ublk", &[]),
    ("zea-capture", &["zea-wire"]),
    ("zea-core", &["zea-wire", "zea-meta"]),
    ("zea-recorder", &["zea-core", "zea-wire"]),
    ("zea-tcp", &["zea-wire"]),
    ("zea-shard", &["zea-recorder", "zea-core", "zea-wire", "zea-meta", "zea-nbd", "zea-ublk"]),
    ("zea-node", &["zea-shard", "zea-tcp", "zea-nbd", "zea-ublk", "zea-recorder", "zea-core", "zea-wire", "zea-meta"]),
    ("zea-cli", &["zea-node", "zea-capture", "zea-recorder", "zea-core", "zea-wire", "zea-meta"]),
    ("zea-sim", &["zea-core", "zea-wire", "zea-meta"]),
    ("zea-conformance", &["zea-capture", "zea-core", "zea-meta", "zea-sim", "zea-wire"]),
    ("zea-demo", &[]),
    ("zea-lab", &["zea-capture"]),
    ("zea-bench", &["zea-nbd"]),
    ("zea-tidy", &[]),
];

fn is_one_of(package: &str, names: &[&str]) -> bool {
    let name = package.split(' ').next().unwrap_or_default();
    names.contains(&name)
}

#[test]
fn tidy_every_dependency_has_an_allowed_licence() {
    let graph = Graph::load();
    let complaints: Vec<String> = graph
        .third_party()
        .filter_map(|p| {
            let complaint = match p.licence.as_deref().map(licence::is_allowed) {
                Some(Ok(true)) => return None,
                Some(Ok(false)) => "not allowed".to_owned(),
                Some(Err(e)) => e.to_string(),
                None => "no licence named".to_owned(),
            };
            let named = p.licence.as_deref().unwrap_or("-");
            Some(format!("{} {}: {named}: {complaint}", p.name, p.version))
        })
        .collect();
    assert_none(&complaints);
    assert!(graph.third_party().count() > 20, "the graph was read");
}

#[test]
fn tidy_every_dependency_comes_from_the_registry() {
    let graph = Graph::load();
    let complaints: Vec<String> = graph
        .third_party()
        .filter(|p| p.source.as_deref() != Some(CRATES_IO))
        .map(|p| format!("{} {}: {:?}", p.name, p.version, p.source))
        .collect();
    assert_none(&complaints);
}

#[test]
fn tidy_deny_toml_allows_the_same_licences() {
    let text = tree::read(Path::new("deny.toml")).expect("deny.toml");
    let listed = licence::allowed_by_deny_toml(&text).expect("a list of licences");
    assert_eq!(listed, licence::ALLOWED);
}

#[test]
fn tidy_crates_are_ours_under_our_licence() {
    let graph = Graph::load();
    let complaints: Vec<String> = graph
        .members
        .iter()
        .map(|id| graph.get(id))
        .filter(|p| p.licence.as_deref() != Some("Apache-2.0"))
        .map(|p| format!("{}: {:?}", p.name, p.licence))
        .collect();
    assert_none(&complaints);
}

#[test]
fn tidy_data_path_stays_within_its_budget() {
    let mut complaints = Vec::new();
    for name in DATA_PATH {
        let linked = linked(name);
        println!("{name}: {} of at most {}", linked.len(), BUDGET - 1);
        if linked.len() >= BUDGET {
            complaints.push(format!("{name} links {} crates: {linked:?}", linked.len()));
        }
        let banned = linked.iter().filter(|p| is_one_of(p, &NOT_IN_DATA_PATH));
        complaints.extend(banned.map(|p| format!("{name} links {p}")));
    }
    assert_none(&complaints);
}

#[test]
fn tidy_deterministic_crates_cannot_reach_the_system() {
    let mut complaints = Vec::new();
    for name in DETERMINISTIC {
        let linked = linked(name);
        let banned = linked.iter().filter(|p| is_one_of(p, &NOT_IN_DETERMINISTIC));
        complaints.extend(banned.map(|p| format!("{name} links {p}")));
    }
    assert_none(&complaints);
}

#[test]
fn tidy_dependencies_point_downwards() {
    let graph = Graph::load();
    let mut complaints = Vec::new();
    for id in &graph.members {
        let name = graph.get(id).name.as_str();
        let Some((_, allowed)) = LAYERS.iter().find(|(crate_, _)| *crate_ == name) else {
            complaints.push(format!("{name} has no place in the layers"));
            continue;
        };
        let upwards = graph.own_dependencies(id).into_iter().filter(|dependency| !allowed.contains(dependency));
        complaints.extend(upwards.map(|d| format!("{name} depends on {d}")));
    }
    assert_none(&complaints);
    for (name, _) in LAYERS {
        graph.member(name);
    }
}
