//! What is needed of a configuration file of a recording (`r0.res`).

use std::collections::BTreeMap;

use zea_core::config::{AfterSb0Pri, AfterSb1Pri, NetOptions, Protocol};
use zea_wire::digest::DigestAlg;
use zea_wire::ids::{NodeId, VolumeNr};

/// A statement: words up to a `;` or a block.
#[derive(Debug, Clone, Default)]
struct Statement {
    words: Vec<String>,
    block: Vec<Statement>,
}

/// A volume of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Volume {
    /// The node keeps no disk for it (`disk none`).
    pub diskless: bool,
    /// Option `size`, in sectors.
    pub size_sectors: Option<u64>,
}

/// A node of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its id; in files of 8.4 its place among the nodes.
    pub id: NodeId,
    /// Its address.
    pub ip: [u8; 4],
    /// Its volumes.
    pub volumes: BTreeMap<VolumeNr, Volume>,
}

/// A configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration {
    /// The nodes in the order of the file.
    pub nodes: Vec<Node>,
    /// Options of connections that the core does not know, by name.
    pub net: BTreeMap<String, String>,
}

impl Configuration {
    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Configuration, String> {
        let mut tokens = tokens(text).into_iter();
        let file = statements(&mut tokens);
        let mut configuration = Configuration::default();
        let resource = file.iter().find(|s| s.words.first().is_some_and(|w| w == "resource")).ok_or("no resource")?;
        for part in file.iter().filter(|s| s.words == ["common"]).chain([resource]) {
            for net in part.block.iter().filter(|s| s.words == ["net"]).flat_map(|s| &s.block) {
                if let [name, value] = &net.words[..] {
                    configuration.net.insert(name.clone(), value.clone());
                }
            }
        }
        let mut volumes = volumes(&resource.block, &BTreeMap::new());
        if resource.block.iter().any(|s| s.words.first().is_some_and(|w| w == "device")) {
            // The old way to write a resource of one volume.
            volumes.insert(VolumeNr(0), Volume::default());
        }
        for on in resource.block.iter().filter(|s| s.words.first().is_some_and(|w| w == "on")) {
            let value = |name: &str| on.block.iter().find(|s| s.words[0] == name).and_then(|s| s.words.last());
            let id = match value("node-id") {
                Some(id) => id.parse().map_err(|_| format!("node-id {id}"))?,
                None => configuration.nodes.len() as u8,
            };
            let address = value("address").ok_or("a node without an address")?;
            let ip = address.split(':').next().unwrap_or_default();
            let ip: Vec<u8> = ip.split('.').filter_map(|part| part.parse().ok()).collect();
            configuration.nodes.push(Node {
                name: on.words[1].clone(),
                id: NodeId(id),
                ip: ip.try_into().map_err(|_| format!("address {address}"))?,
                volumes: self::volumes(&on.block, &volumes),
            });
        }
        Ok(configuration)
    }

    /// The node with this name.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.iter().find(|n| n.id == id)
    }

    /// The options of connections as the core takes them; kernel peers do not know Zea's own feature.
    pub fn net_options(&self) -> NetOptions {
        let text = |name: &str| self.net.get(name).cloned();
        let number = |name: &str| self.net.get(name).and_then(|v| v.parse::<u64>().ok());
        let default = NetOptions::default();
        NetOptions {
            protocol: match text("protocol").as_deref() {
                Some("A") => Protocol::A,
                Some("B") => Protocol::B,
                _ => Protocol::C,
            },
            ping_int_ms: number("ping-int").map_or(default.ping_int_ms, |s| s * 1000),
            ping_timeout_ms: number("ping-timeout").map_or(default.ping_timeout_ms, |tenths| tenths * 100),
            use_rle: text("use-rle").as_deref() != Some("no"),
            cram_hmac_alg: text("cram-hmac-alg"),
            verify_alg: text("verify-alg").and_then(|alg| DigestAlg::from_name(&alg)),
            csums_alg: text("csums-alg").and_then(|alg| DigestAlg::from_name(&alg)),
            integrity_alg: text("data-integrity-alg").and_then(|alg| DigestAlg::from_name(&alg)),
            after_sb_0pri: named(AfterSb0Pri::ALL, AfterSb0Pri::as_str, text("after-sb-0pri")),
            after_sb_1pri: named(AfterSb1Pri::ALL, AfterSb1Pri::as_str, text("after-sb-1pri")),
            shared_secret: text("shared-secret").unwrap_or_default(),
            ..default
        }
    }
}

/// The value of this name, or the default.
fn named<T: Copy + Default>(all: &[T], as_str: fn(T) -> &'static str, name: Option<String>) -> T {
    let found = all.iter().find(|value| Some(as_str(**value)) == name.as_deref());
    found.copied().unwrap_or_default()
}

fn volumes(block: &[Statement], inherited: &BTreeMap<VolumeNr, Volume>) -> BTreeMap<VolumeNr, Volume> {
    let mut volumes = inherited.clone();
    for s in block.iter().filter(|s| s.words.first().is_some_and(|w| w == "volume")) {
        let Some(nr) = s.words.get(1).and_then(|w| w.parse().ok()) else { continue };
        let size = s.block.iter().filter(|s| s.words == ["disk"]).flat_map(|s| &s.block);
        let size = size.filter(|s| s.words[0] == "size").find_map(|s| sectors(s.words.last()?));
        let diskless = s.block.iter().any(|s| s.words == ["disk", "none"]);
        volumes.insert(VolumeNr(nr), Volume { diskless, size_sectors: size });
    }
    volumes
}

/// A size with a unit (k, M, G), in sectors.
fn sectors(size: &str) -> Option<u64> {
    bytes(size).map(|bytes| bytes / 512)
}

/// A size with an optional unit (k, m, g), in bytes.
pub fn bytes(size: &str) -> Option<u64> {
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match size[digits.len()..].to_lowercase().as_str() {
        "" => 1,
        "s" => 512,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok().map(|n| n * unit)
}

fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        for (i, part) in line.split('"').enumerate() {
            if i % 2 == 1 {
                tokens.push(part.to_owned());
                continue;
            }
            let spaced = part.replace(';', " ; ").replace('{', " { ").replace('}', " } ");
            tokens.extend(spaced.split_whitespace().map(str::to_owned));
        }
    }
    tokens
}

fn statements(tokens: &mut impl Iterator<Item = String>) -> Vec<Statement> {
    let mut all = Vec::new();
    let mut words = Vec::new();
    while let Some(token) = tokens.next() {
        match token.as_str() {
            "}" => break,
            ";" => all.push(Statement { words: std::mem::take(&mut words), block: Vec::new() }),
            "{" => {
                let block = statements(tokens);
                all.push(Statement { words: std::mem::take(&mut words), block });
            }
            _ => words.push(token),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conformance_configuration_is_read() {
        let text = r#"
            common { net { protocol A; ping-int 2; shared-secret "a b"; } disk { resync-rate 200M; } }
            resource r0 {
              volume 0 { device minor 0; disk /dev/a; disk { size 16M; } }
              on nodea { node-id 0; address 10.99.0.1:7789; }
              on nodec { node-id 2; address 10.99.0.3:7789; volume 0 { disk none; } }
            }"#;
        let read = Configuration::parse(text).unwrap();
        assert_eq!(read.nodes.len(), 2);
        let (a, c) = (&read.nodes[0], &read.nodes[1]);
        assert_eq!((a.id, a.ip), (NodeId(0), [10, 99, 0, 1]));
        assert_eq!(a.volumes[&VolumeNr(0)].size_sectors, Some(32768));
        assert!(c.volumes[&VolumeNr(0)].diskless);
        let net = read.net_options();
        assert_eq!((net.protocol, net.ping_int_ms, net.shared_secret.as_str()), (Protocol::A, 2000, "a b"));
    }
}
