//! Devices that hold something, fail, or are full.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use zea_node::api::{Failure, FailureKind, Request, ResourceStatus};

use crate::common::{Cluster, Daemon, VOLUME_BYTES, is_possible, promote};

fn disk_state(status: &ResourceStatus) -> &str {
    &status.devices[0].disk_state
}

fn attach() -> Request {
    Request::Attach { name: "r0".into(), volume: None }
}

/// A program that may lie where only root's search path leads.
fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin");
    command
}

/// Runs a program that makes a device image; false if it is not to be had.
fn made_by(program: &str, args: &[&str], image: &Path) -> bool {
    let run = tool(program).args(args).arg(image).output();
    let result = match run {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(error.to_string()),
    };
    is_possible(program, result)
}

/// Creating on `image` is refused with `found`, and changes no byte.
fn refused(cluster: &Cluster, image: &Path, found: &str) {
    let before = std::fs::read(image).unwrap();
    let failure = create_on(cluster, image, false).expect_err(found);
    assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
    assert!(failure.message.contains(found) && failure.message.contains("--force"), "{failure}");
    assert!(std::fs::read(image).unwrap() == before, "{found}: not a byte changes");
    assert!(cluster.nodes[0].call(&Request::Status { name: Some("r0".into()) }).is_err(), "and nothing was created");
}

fn create_on(cluster: &Cluster, image: &Path, force: bool) -> Result<(), Failure> {
    let mut resource = Box::new(cluster.resource(0));
    image.clone_into(&mut resource.volumes[0].disk);
    resource.volumes[0].size = None;
    cluster.nodes[0].call(&Request::ResourceCreate { resource, secret: None, force }).map(drop)
}

#[test]
fn badinput_disk_foreign_data_is_not_overwritten() {
    let cluster = Cluster::empty(1);
    let dir = cluster.nodes[0].dir();
    let image = |name: &str| -> PathBuf {
        let path = dir.join(name);
        File::create(&path).unwrap().set_len(64 << 20).unwrap();
        path
    };
    let ext4 = image("ext4");
    if made_by("mke2fs", &["-q", "-t", "ext4"], &ext4) {
        refused(&cluster, &ext4, "ext");
    }
    let swap = image("swap");
    if made_by("mkswap", &["-q"], &swap) {
        refused(&cluster, &swap, "swap");
    }
    // An LVM label: in sector 1, with its type.
    let lvm = image("lvm");
    let mut label = b"LABELONE".to_vec();
    label.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0]);
    label.extend(b"LVM2 001");
    File::options().write(true).open(&lvm).unwrap().write_all_at(&label, 512).unwrap();
    refused(&cluster, &lvm, "LVM");
    // With --force it goes.
    create_on(&cluster, &lvm, true).unwrap();
    assert_eq!(disk_state(&cluster.nodes[0].status("r0")), "Inconsistent");
}

#[test]
fn badinput_disk_other_meta_data_is_not_overwritten() {
    let cluster = Cluster::synced(2);
    cluster.nodes[0].nbd().write_pattern(0..10, 1);
    let down = Request::ResourceDelete { name: "r0".into(), wipe_metadata: false };
    cluster.nodes[1].ok(&down);
    let image = cluster.nodes[1].dir().join("r0.img");
    let stranger = Cluster::empty(1);
    // The other node's disk, in the wrong place.
    refused(&stranger, &image, "meta data");
    cluster.create(1, |_| {});
    cluster.nodes.iter().for_each(Daemon::wait_synced);
}

/// A file system of its own size, that can be full.
struct Tiny(tempfile::TempDir);

impl Tiny {
    fn mount(mib: u64) -> Option<Tiny> {
        let dir = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={mib}M")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        let result = rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, options.as_c_str());
        let possible = is_possible("mounting a small file system", result.map_err(|error| error.to_string()));
        // Only what was mounted is unmounted.
        possible.then(|| Tiny(dir))
    }

    /// A file without space of its own, of `bytes`.
    fn thin_file(&self, bytes: u64) -> PathBuf {
        let path = self.0.path().join("r0.img");
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    fn filler(&self) -> PathBuf {
        self.0.path().join("filler")
    }

    /// Leaves `bytes` free.
    fn fill(&self, bytes: u64) {
        let stat = rustix::fs::statvfs(self.0.path()).unwrap();
        let file = File::create(self.filler()).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, stat.f_bavail * stat.f_frsize - bytes).unwrap();
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn badinput_disk_full_the_last_good_disk_waits_for_space() {
    let Some(tiny) = Tiny::mount(40) else { return };
    let cluster = Cluster::empty(1);
    let image = tiny.thin_file(64 << 20);
    create_on(&cluster, &image, false).unwrap();
    let node = &cluster.nodes[0];
    node.ok(&promote(true));
    let mut client = node.nbd();
    client.write_pattern(0..100, 1);
    tiny.fill(1 << 20);
    let (mut writer, mut reader) = (node.nbd(), node.nbd());
    let begin = Instant::now();
    let writing = std::thread::spawn(move || writer.write_pattern(2000..3000, 2));
    node.wait_log("no space left on the backing device");
    reader.check_pattern(0..100, 1);
    assert!(!writing.is_finished(), "writes wait");
    assert_eq!(disk_state(&node.status("r0")), "UpToDate", "the last good disk stays");
    std::thread::sleep(Duration::from_secs(1));
    tiny.free();
    writing.join().expect("written once there is space");
    assert!(begin.elapsed() < Duration::from_secs(20));
    client.check_pattern(2000..3000, 2);
    client.check_pattern(0..100, 1);
    let said = node.log().lines().filter(|line| line.contains("no space left")).count();
    assert!(said <= 3, "said once, not {said} times");
}

#[test]
fn badinput_disk_full_with_a_good_peer_goes_on_without_it() {
    let Some(tiny) = Tiny::mount(40) else { return };
    let cluster = Cluster::empty(2);
    cluster.create(0, |resource| resource.volumes[0].disk = tiny.thin_file(32 << 20));
    cluster.create(1, |_| {});
    cluster.nodes[0].ok(&promote(true));
    cluster.nodes.iter().for_each(Daemon::wait_synced);
    let node = &cluster.nodes[0];
    let mut client = node.nbd();
    client.write_pattern(0..50, 1);
    tiny.fill(1 << 20);
    // More than there is.
    client.write_pattern(1000..3000, 2);
    node.wait("detached", |status| disk_state(status) == "Diskless");
    client.check_pattern(0..50, 1);
    client.check_pattern(1000..3000, 2);
    tiny.free();
    node.ok(&attach());
    node.wait_synced();
    client.check_pattern(1000..3000, 2);
}

/// A loop device that is cut short later: what lies behind its new end cannot be read or written any more.
struct Failing {
    device: PathBuf,
    file: PathBuf,
}

impl Failing {
    fn make(dir: &Path) -> Option<Failing> {
        let file = dir.join("failing.img");
        File::create(&file).unwrap().set_len(VOLUME_BYTES + (8 << 20)).unwrap();
        let made = losetup().args(["-f", "--show"]).arg(&file).output();
        let result = match &made {
            Ok(output) if output.status.success() => Ok(()),
            other => Err(format!("{other:?}")),
        };
        is_possible("making a loop device", result)
            .then(|| Failing { device: String::from_utf8_lossy(&made.unwrap().stdout).trim().into(), file })
    }

    fn fail(&self) {
        File::options().write(true).open(&self.file).unwrap().set_len(1 << 20).unwrap();
        assert!(losetup().arg("-c").arg(&self.device).status().unwrap().success());
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        losetup().arg("-d").arg(&self.device).status().ok();
    }
}

fn losetup() -> Command {
    tool("losetup")
}

/// Node `bad` gets a disk that fails under load; the client of node 0 notices nothing.
fn fails(bad: u8) {
    let cluster = Cluster::empty(2);
    let Some(failing) = Failing::make(cluster.nodes[usize::from(bad)].dir()) else { return };
    for id in 0..2 {
        cluster.create(id, |resource| {
            if id == bad {
                resource.volumes[0].disk.clone_from(&failing.device);
            }
        });
    }
    cluster.nodes[0].ok(&promote(true));
    cluster.nodes.iter().for_each(Daemon::wait_synced);
    let mut client = cluster.nodes[0].nbd();
    client.write_pattern(0..500, 1);
    failing.fail();
    client.write_pattern(500..1000, 2);
    client.check_pattern(0..500, 1);
    client.check_pattern(500..1000, 2);
    let node = &cluster.nodes[usize::from(bad)];
    node.wait("detached", |status| disk_state(status) == "Diskless");
    node.wait_log("the disk is detached");
    let refused = node.call(&attach()).unwrap_err();
    assert!(refused.message.contains("meta data"), "{refused}");
}

#[test]
fn badinput_disk_failing_below_a_primary_is_detached() {
    fails(0);
}

#[test]
fn badinput_disk_failing_below_a_secondary_is_detached() {
    fails(1);
}
