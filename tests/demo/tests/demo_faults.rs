//! The demo as a program, small: that it succeeds, that it fails when it must, and that it leaves nothing behind.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;

/// Commands without which nothing is mounted, and the device for it.
const NEEDED: [&str; 8] = ["nbdfuse", "fio", "mkfs.ext4", "e2fsck", "mkfs.xfs", "xfs_repair", "losetup", "mount"];

/// The directory with zead and zea of the same build profile, up to date.
fn programs() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let directory = Path::new(env!("CARGO_BIN_EXE_zea-demo")).parent().unwrap();
        let profile = match directory.file_name().unwrap().to_str().unwrap() {
            "debug" => "dev",
            name => name,
        };
        let status = Command::new(env!("CARGO"))
            .args(["build", "-p", "zea-node", "-p", "zea-cli", "--bins"])
            .args(["--profile", profile, "--target-dir"])
            .arg(directory.parent().unwrap())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(status.success(), "zead and zea cannot be built");
        directory.to_owned()
    })
}

/// A demo in a directory of its own. One at a time, over all processes of a test run: each has limits on how long a
/// machine may take for its steps.
struct Lab {
    directory: tempfile::TempDir,
    _lock: File,
}

impl Lab {
    fn new() -> Lab {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("one-demo-at-a-time");
        let lock = File::create(path).unwrap();
        lock.lock().unwrap();
        Lab { directory: tempfile::tempdir_in("/var/tmp").unwrap(), _lock: lock }
    }

    fn start(&self, options: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_zea-demo"))
            .args(["--json", "--limit-s", "300", "--programs"])
            .arg(programs())
            .arg("--dir")
            .arg(self.directory.path())
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Runs it to its end; gives the exit code, the summary and what else it said.
    fn run(&self, options: &[&str]) -> (Option<i32>, Value, String) {
        let Output { status, stdout, stderr } = self.start(options).wait_with_output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        let stdout = String::from_utf8(stdout).unwrap();
        let last = stdout.lines().last().unwrap_or_default();
        let summary = serde_json::from_str(last).unwrap_or_else(|_| panic!("no summary:\n{stdout}{stderr}"));
        (status.code(), summary, stderr)
    }

    fn is_empty(&self) -> bool {
        std::fs::read_dir(self.directory.path()).unwrap().next().is_none()
    }

    /// Processes and mounts that have to do with this directory.
    fn leftovers(&self) -> Vec<String> {
        let path = self.directory.path().to_str().unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut found: Vec<String> = mounts.lines().filter(|line| line.contains(path)).map(str::to_owned).collect();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            // Processes may end while they are looked at.
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(path) {
                found.push(line);
            }
        }
        found
    }
}

/// True if a volume can be mounted here. Where it cannot, that is said; in CI, root must be able to.
fn can_mount() -> bool {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let has = |name: &str| std::env::split_paths(&path).any(|it| it.join(name).is_file());
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| !has(name)).collect();
    let can = geteuid().is_root() && missing.is_empty() && Path::new("/dev/loop-control").exists();
    if !can {
        println!("SKIPPED: mounting needs root and loop devices; missing commands: {missing:?}");
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!(ci && geteuid().is_root()), "CI as root cannot mount");
    }
    can
}

fn assert_success(code: Option<i32>, summary: &Value, said: &str) {
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(summary["verified"], true, "{said}");
    assert_eq!(summary["replicas_equal"], true, "{said}");
    assert_eq!(summary["lost_commits"], 0, "{said}");
    assert!(summary["commits"].as_u64().unwrap() > 0, "{said}");
    assert!(summary["failover_ms"].as_u64().is_some(), "{said}");
    assert!(summary.get("error").is_none(), "{said}");
}

fn assert_loss_is_noticed(lab: &Lab, code: Option<i32>, summary: &Value, said: &str) {
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(summary["verified"], false, "{said}");
    assert_eq!(summary["replicas_equal"], false, "{said}");
    assert_eq!(summary["lost_commits"], 1, "{said}");
    let error = summary["error"].as_str().unwrap();
    assert!(error.contains("acknowledged commits are lost"), "{said}");
    // The logs are kept, and it says where.
    let logs = summary["logs"].as_str().unwrap();
    assert!(said.contains(logs), "{said}");
    assert!(Path::new(logs).join("bravo/zead.log").is_file(), "{said}");
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[test]
fn demo_on_the_raw_export_loses_nothing() {
    let lab = Lab::new();
    let (code, summary, said) = lab.run(&["--raw", "--size-mib", "64", "--load-ms", "300"]);
    assert_success(code, &summary, &said);
    assert_eq!((summary["frontend"].as_str(), summary["filesystem"].as_str()), (Some("nbd"), Some("none")));
    assert!(lab.is_empty());
}

#[test]
fn demo_on_the_raw_export_notices_a_dropped_commit() {
    let lab = Lab::new();
    let options = ["--raw", "--size-mib", "64", "--load-ms", "300"];
    let (code, summary, said) = lab.run(&[&options[..], &["--drop-one-commit"]].concat());
    assert_loss_is_noticed(&lab, code, &summary, &said);
}

#[test]
fn demo_on_a_mount_loses_nothing() {
    loses_nothing_on("ext4");
}

#[test]
fn demo_on_a_mount_of_xfs_loses_nothing() {
    loses_nothing_on("xfs");
}

fn loses_nothing_on(file_system: &str) {
    if !can_mount() {
        return;
    }
    let lab = Lab::new();
    let (code, summary, said) = lab.run(&["--file-system", file_system, "--size-mib", "64", "--load-ms", "300"]);
    assert_success(code, &summary, &said);
    let used = (summary["frontend"].as_str(), summary["filesystem"].as_str());
    assert_eq!(used, (Some("nbdfuse+loop"), Some(file_system)));
    assert!(summary["fio_blocks_verified"].as_u64().unwrap() > 0, "{said}");
    assert!(lab.is_empty());
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[test]
fn demo_on_a_mount_notices_a_dropped_commit() {
    if !can_mount() {
        return;
    }
    let lab = Lab::new();
    let (code, summary, said) = lab.run(&["--size-mib", "64", "--load-ms", "300", "--drop-one-commit"]);
    assert_loss_is_noticed(&lab, code, &summary, &said);
}

#[test]
fn demo_interrupted_leaves_nothing_behind() {
    let lab = Lab::new();
    let raw = if can_mount() { &[][..] } else { &["--raw"] };
    let options = [raw, &["--size-mib", "64", "--load-ms", "60000"]].concat();
    let demo = lab.start(&options);
    // Until the load runs: then everything is there that must go.
    let begin = Instant::now();
    while !lab.leftovers().iter().any(|it| it.contains("worker commit")) {
        assert!(begin.elapsed() < Duration::from_secs(120), "no load was started");
        thread::sleep(Duration::from_millis(50));
    }
    kill_process(Pid::from_child(&demo), Signal::TERM).unwrap();
    let output = demo.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["verified"], false);
    assert!(summary["error"].as_str().unwrap().contains("interrupted"));
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}
