use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use super::*;
use crate::api::{Done, EventAction, EventBody, FailureKind, Listed, StatusReply, Version};
use crate::control::{Client, ClientError};
use crate::fake::{FakeNode, sample_resource};

struct Raw(BufReader<UnixStream>);

impl Raw {
    fn connect(node: &FakeNode) -> Raw {
        let stream = UnixStream::connect(&node.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Raw(BufReader::new(stream))
    }

    fn say(&mut self, bytes: &[u8]) -> String {
        // The server may have closed before all of an endless line is written.
        self.0.get_mut().write_all(bytes).ok();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        answer
    }
}

fn create(node: &FakeNode, dir: &Path, name: &str) -> Result<Done, ClientError> {
    let resource = Box::new(sample_resource(name, dir));
    Client::connect(&node.socket)?.call(&Request::ResourceCreate { resource, secret: None, force: false })
}

fn failure<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Failure {
    match result {
        Err(ClientError::Failure(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

fn status(client: &mut Client) -> StatusReply {
    client.call(&Request::Status { name: None }).unwrap()
}

#[test]
fn control_malformed_requests_leave_the_client_connected() {
    let dir = tempfile::tempdir().unwrap();
    let node = FakeNode::start(dir.path()).unwrap();
    let mut raw = Raw::connect(&node);
    let wrong: [&[u8]; 9] = [
        b"\n",
        b"hello\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b"{\"command\":\"explode\"}\n",
        b"{\"command\":\"promote\"}\n",
        b"{\"command\":\"promote\",\"name\":7,\"force\":true}\n",
        b"\xff\xfe\x00\n",
    ];
    for line in wrong {
        let answer = raw.say(line);
        assert!(answer.contains(r#""kind":"usage""#), "{line:?} {answer}");
    }
    let deep = [b"[".repeat(100_000), b"\n".to_vec()].concat();
    assert!(raw.say(&deep).contains("error"));
    assert!(raw.say(b"{\"command\":\"version\"}\n").contains(r#""node-id":0"#));
}

#[test]
fn control_an_endless_line_is_cut_off_and_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = FakeNode::start(dir.path()).unwrap();
    let mut raw = Raw::connect(&node);
    let answer = raw.say(&vec![b'x'; MAX_REQUEST_BYTES + 10]);
    assert!(answer.contains("at most"), "{answer}");
    let version: Version = Client::connect(&node.socket).unwrap().call(&Request::Version).unwrap();
    assert_eq!(version.pid, std::process::id());
}

#[test]
fn control_too_many_clients_are_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let node = FakeNode::start(dir.path()).unwrap();
    let mut seated: Vec<Client> = (0..MAX_CLIENTS).map(|_| Client::connect(&node.socket).unwrap()).collect();
    for client in &mut seated {
        client.call::<Version>(&Request::Version).unwrap();
    }
    let answer = Raw::connect(&node).say(b"");
    assert!(answer.contains("which is the most"), "{answer}");
    seated.pop();
    // The place is free as soon as the server has noticed.
    let free = (0..100).any(|_| {
        thread::sleep(Duration::from_millis(10));
        Client::connect(&node.socket).unwrap().call::<Version>(&Request::Version).is_ok()
    });
    assert!(free);
}

#[test]
fn control_half_a_request_is_no_request() {
    let dir = tempfile::tempdir().unwrap();
    let node = FakeNode::start(dir.path()).unwrap();
    create(&node, dir.path(), "r0").unwrap();
    let mut raw = Raw::connect(&node);
    raw.0.get_mut().write_all(b"{\"command\":\"resource-delete\",\"name\":\"r0\",\"wipe-metadata\":false}").unwrap();
    drop(raw);
    thread::sleep(Duration::from_millis(50));
    assert_eq!(status(&mut Client::connect(&node.socket).unwrap()).resources.len(), 1);
}

#[test]
fn control_resource_lives_from_create_to_delete() {
    let dir = tempfile::tempdir().unwrap();
    let node = FakeNode::start(dir.path()).unwrap();
    let done = create(&node, dir.path(), "r0").unwrap();
    assert!(done.notes[0].contains("new meta data"), "{done:?}");
    let again = failure(create(&node, dir.path(), "r0"));
    assert_eq!(again.kind, FailureKind::Refused);

    let mut client = Client::connect(&node.socket).unwrap();
    let seen = status(&mut client).resources.remove(0);
    assert_eq!((seen.role.as_str(), seen.devices[0].disk_state.as_str()), ("Secondary", "Inconsistent"));
    assert_eq!(seen.connections[0].connection_state, "Connecting");
    assert!(seen.devices[0].export.starts_with("nbd+unix:///r0/0?socket=/"), "{}", seen.devices[0].export);

    let name = || "r0".to_owned();
    let refused = failure(client.call::<Done>(&Request::Promote { name: name(), force: false }));
    assert_eq!((refused.kind, refused.code), (FailureKind::Refused, -2));
    client.call::<Done>(&Request::Promote { name: name(), force: true }).unwrap();
    let delete = Request::ResourceDelete { name: name(), wipe_metadata: true };
    assert!(failure(client.call::<Done>(&delete)).message.contains("zea demote r0"));

    node.engine.edit("r0", |r0| (r0.devices[0].open, r0.devices[0].open_count) = (true, 2));
    let busy = failure(client.call::<Done>(&Request::Demote { name: name() }));
    assert_eq!((busy.kind, busy.code), (FailureKind::Refused, -12));
    assert!(busy.message.contains("2 NBD clients"), "{busy}");
    assert_eq!(failure(client.call::<Done>(&Request::Down { name: name() })).code, -12);
    node.engine.edit("r0", |r0| (r0.devices[0].open, r0.devices[0].open_count) = (false, 0));

    client.call::<Done>(&Request::Demote { name: name() }).unwrap();
    client.call::<Done>(&delete).unwrap();
    assert_eq!(client.call::<Vec<Listed>>(&Request::ResourceList).unwrap(), []);
    assert!(failure(client.call::<Done>(&delete)).message.contains("No such resource"));
    // The wiped file counts as empty.
    create(&node, dir.path(), "r0").unwrap();
}

#[test]
fn control_intent_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    {
        let node = FakeNode::start(dir.path()).unwrap();
        for name in ["r0", "r1", "r2"] {
            create(&node, dir.path(), name).unwrap();
        }
        let mut client = Client::connect(&node.socket).unwrap();
        let (name, peer) = ("r0".to_owned(), Some("bravo".to_owned()));
        client.call::<Done>(&Request::Disconnect { name: name.clone(), peer, force: false }).unwrap();
        client.call::<Done>(&Request::Detach { name, volume: Some(0), force: false }).unwrap();
        client.call::<Done>(&Request::Down { name: "r1".into() }).unwrap();
        client.call::<Done>(&Request::Promote { name: "r2".into(), force: true }).unwrap();
    }
    let node = FakeNode::start(dir.path()).unwrap();
    let mut client = Client::connect(&node.socket).unwrap();
    let seen = status(&mut client);
    assert_eq!(seen.down, ["r1"]);
    let (r0, r2) = (&seen.resources[0], &seen.resources[1]);
    assert_eq!(r0.connections[0].connection_state, "StandAlone");
    assert_eq!(r0.devices[0].disk_state, "Diskless");
    assert_eq!(r2.role, "Secondary", "never promoted by itself");
    assert_eq!(r2.connections[0].connection_state, "Connecting");
    let down = failure(client.call::<Done>(&Request::Promote { name: "r1".into(), force: false }));
    assert!(down.kind == FailureKind::Refused && down.message.contains("zea up r1"), "{down}");
    client.call::<Done>(&Request::Up { name: "r1".into() }).unwrap();
    assert!(status(&mut client).down.is_empty());
}

#[test]
fn control_a_broken_file_does_not_stop_the_others() {
    let dir = tempfile::tempdir().unwrap();
    {
        let node = FakeNode::start(dir.path()).unwrap();
        create(&node, dir.path(), "r0").unwrap();
    }
    std::fs::write(dir.path().join("resources/r9.toml"), "name = \"r9\"\nvolumes = 1\n").unwrap();
    let node = FakeNode::start(dir.path()).unwrap();
    let mut client = Client::connect(&node.socket).unwrap();
    let seen = status(&mut client);
    assert_eq!((seen.resources.len(), seen.broken.len()), (1, 1));
    assert!(seen.broken[0].error.contains("r9.toml:2:1"), "{}", seen.broken[0].error);
    // Its name is taken, and the answer says by what.
    let refused = failure(create(&node, dir.path(), "r9"));
    assert!(refused.message.contains("r9.toml:2:1") && refused.message.contains("mend the file"), "{refused}");
    let message = failure(client.call::<Done>(&Request::Up { name: "r9".into() })).message;
    assert!(message.contains("r9.toml:2:1"), "{message}");
}

#[test]
fn control_apply_creates_and_changes() {
    let dir = tempfile::tempdir().unwrap();
    let node = FakeNode::start(dir.path()).unwrap();
    let mut client = Client::connect(&node.socket).unwrap();
    let mut apply = |file: &crate::config::ResourceFile, secret: Option<&str>| {
        let secret = secret.map(|text| crate::api::Secret(text.into()));
        client.call::<Done>(&Request::Apply { file: "r0.toml".into(), text: file.to_toml(), secret, force: false })
    };
    let mut file = sample_resource("r0", dir.path());
    apply(&file, None).unwrap();
    assert!(apply(&file, None).unwrap().notes[0].contains("like this already"));
    file.net.protocol = crate::config::Protocol::A;
    assert!(apply(&file, None).unwrap().notes[0].contains("next connect"));
    file.net.cram_hmac_alg = Some(crate::config::Algorithm::Sha256);
    file.net.secret_file = Some("secret".into());
    assert_eq!(failure(apply(&file, None)).kind, FailureKind::Usage);
    apply(&file, Some("hush")).unwrap();
    assert!(apply(&file, Some("hush")).unwrap().notes[0].contains("like this already"));
    assert!(apply(&file, Some("other")).unwrap().notes[0].contains("next connect"));
    file.disk.al_extents = 127;
    let refused = failure(apply(&file, Some("other")));
    assert!(refused.kind == FailureKind::Refused && refused.message.contains("zea down r0"), "{refused}");
    Client::connect(&node.socket).unwrap().call::<Done>(&Request::Down { name: "r0".into() }).unwrap();
    apply(&file, Some("other")).unwrap();
    file.volumes[0].size = Some(crate::config::Size(8 << 20));
    let refused = failure(apply(&file, Some("other")));
    assert!(refused.message.contains("volume 0 has the size 4M and cannot be given another (8M)"), "{refused}");
    let wrong = Request::Apply { file: "x.toml".into(), text: "nam = 1".into(), secret: None, force: false };
    let wrong = failure(Client::connect(&node.socket).unwrap().call::<Done>(&wrong));
    assert!(wrong.kind == FailureKind::Usage && wrong.message.contains("x.toml:1:1"), "{wrong}");
}

#[test]
fn control_two_resources_do_not_share_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let node = FakeNode::start(dir.path()).unwrap();
    create(&node, dir.path(), "r0").unwrap();
    let mut other = sample_resource("r1", dir.path());
    other.volumes[0].disk = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path().join("r0.img"), dir.path().join("link")).unwrap();
    let request = Request::ResourceCreate { resource: Box::new(other), secret: None, force: true };
    let refused = failure(Client::connect(&node.socket).unwrap().call::<Done>(&request));
    assert!(refused.message.contains("belongs to r0"), "{refused}");
    // What was refused leaves no trace.
    create(&node, dir.path(), "r1").unwrap();
}

#[test]
fn control_events_give_the_state_and_then_changes() {
    let dir = tempfile::tempdir().unwrap();
    let node = FakeNode::start(dir.path()).unwrap();
    create(&node, dir.path(), "r0").unwrap();
    let mut listener = Client::connect(&node.socket).unwrap();
    listener.stream(&Request::Events { name: Some("r0".into()) }).unwrap();
    let mut dump = Vec::new();
    while dump.last() != Some(&Event::end_of_dump()) {
        dump.push(listener.next_event().unwrap());
    }
    let lines: Vec<String> = dump.iter().map(Event::to_string).collect();
    assert_eq!(
        lines,
        [
            "exists resource name:r0 role:Secondary suspended:no",
            "exists connection name:r0 peer-node-id:1 conn-name:bravo connection:Connecting role:Unknown",
            "exists device name:r0 volume:0 disk:Inconsistent quorum:yes size:0",
            "exists peer-device name:r0 peer-node-id:1 conn-name:bravo volume:0 replication:Off peer-disk:DUnknown resync-suspended:no",
            "exists -"
        ]
    );
    create(&node, dir.path(), "r1").unwrap();
    let mut client = Client::connect(&node.socket).unwrap();
    client.call::<Done>(&Request::Promote { name: "r0".into(), force: true }).unwrap();
    let change = listener.next_event().unwrap();
    let role = EventBody::Resource { role: Some("Primary".into()), suspended: Some("no".into()) };
    assert_eq!((change.action, change.name.as_str(), change.body), (EventAction::Change, "r0", role));
    drop(listener);
    let mut unknown = Client::connect(&node.socket).unwrap();
    unknown.stream(&Request::Events { name: Some("r7".into()) }).unwrap();
    assert!(failure(unknown.next_event()).message.contains("No such resource"));
}

#[test]
fn control_socket_is_private_and_stale_ones_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    drop(UnixListener::bind(&socket).unwrap());
    let node = FakeNode::start(dir.path()).unwrap();
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let error = bind(&socket, Duration::ZERO).unwrap_err().to_string();
    assert!(error.contains("another daemon"), "{error}");
    drop(node);
    assert!(!socket.exists());
    std::fs::write(&socket, "precious").unwrap();
    assert!(bind(&socket, Duration::ZERO).is_err());
    let long = dir.path().join("x".repeat(120));
    assert!(bind(&long, Duration::ZERO).unwrap_err().to_string().contains("107"));
}

#[test]
fn control_server_stops_also_without_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let node = FakeNode::start(dir.path()).unwrap();
    std::fs::remove_file(&node.socket).unwrap();
    drop(node);
}
