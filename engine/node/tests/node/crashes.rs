//! Daemons that are killed while their configuration changes.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use zea_node::api::{Request, Secret, StatusReply};
use zea_node::config::{Algorithm, Protocol};
use zea_node::control::Client;

use crate::common::{Cluster, Daemon};

fn status(node: &Daemon) -> StatusReply {
    Client::connect(&node.socket()).unwrap().call(&Request::Status { name: None }).unwrap()
}

/// Sends a request and waits for no answer.
fn send(node: &Daemon, request: &Request) -> UnixStream {
    let mut stream = UnixStream::connect(node.socket()).unwrap();
    let mut line = serde_json::to_vec(request).unwrap();
    line.push(b'\n');
    stream.write_all(&line).unwrap();
    stream
}

#[test]
fn node_killed_while_it_creates_or_deletes_comes_back_whole() {
    let mut cluster = Cluster::empty(1);
    let create = Request::ResourceCreate { resource: Box::new(cluster.resource(0)), secret: None, force: false };
    let delete = Request::ResourceDelete { name: "r0".into(), wipe_metadata: true };
    let (mut there, mut gone) = (0, 0);
    for round in 0..16_u64 {
        let exists = status(&cluster.nodes[0]).resources.len() == 1;
        let _open = send(&cluster.nodes[0], if exists { &delete } else { &create });
        std::thread::sleep(Duration::from_millis(round * 2));
        cluster.nodes[0].kill();
        cluster.nodes[0].restart();
        let reply = status(&cluster.nodes[0]);
        assert!(reply.broken.is_empty(), "round {round}: {reply:?}");
        match reply.resources.as_slice() {
            [resource] => {
                there += 1;
                let disk = &resource.devices[0].disk_state;
                assert!(disk == "Inconsistent" || exists, "round {round}: {disk}");
            }
            [] => gone += 1,
            more => panic!("round {round}: {more:?}"),
        }
        // A deletion that had begun leaves it down.
        if !reply.down.is_empty() {
            cluster.nodes[0].ok(&delete);
        }
    }
    println!("there {there} times, gone {gone} times");
    if status(&cluster.nodes[0]).resources.is_empty() {
        cluster.nodes[0].ok(&create);
    }
    cluster.nodes[0].ok(&Request::Promote { name: "r0".into(), force: true });
    cluster.nodes[0].nbd().write_pattern(0..10, 1);
}

#[test]
fn node_killed_while_its_configuration_changes_has_the_old_or_the_new() {
    let mut cluster = Cluster::empty(1);
    cluster.create(0, |_| {});
    let mut seen = [0; 2];
    for round in 0..10_u64 {
        let mut resource = cluster.resource(0);
        let with_secret = round % 2 == 0;
        if with_secret {
            resource.net.protocol = Protocol::A;
            resource.net.cram_hmac_alg = Some(Algorithm::Sha256);
            resource.net.secret_file = Some("given".into());
        }
        let secret = with_secret.then(|| Secret("hush".into()));
        let apply = Request::Apply { file: "r0.toml".into(), text: resource.to_toml(), secret, force: false };
        let _open = send(&cluster.nodes[0], &apply);
        std::thread::sleep(Duration::from_millis(round * 4));
        cluster.nodes[0].kill();
        cluster.nodes[0].restart();
        let reply = status(&cluster.nodes[0]);
        assert!(reply.broken.is_empty() && reply.resources.len() == 1, "round {round}: {reply:?}");
        let text = std::fs::read_to_string(cluster.nodes[0].dir().join("resources/r0.toml")).unwrap();
        let changed = text.contains("protocol = \"A\"");
        assert_eq!(changed, text.contains("cram-hmac-alg"), "round {round}: half of each\n{text}");
        seen[usize::from(changed)] += 1;
    }
    println!("the one {} times, the other {} times", seen[0], seen[1]);
}
