//! Daemons that are killed while their configuration changes.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use zea_node::api::{Request, StatusReply};
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
