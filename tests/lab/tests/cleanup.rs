//! Nothing is left behind, however a lab ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use zea_lab::Lab;

/// How long the system may take to end what was killed.
const GONE: Duration = Duration::from_secs(20);

fn can_run(test: &str) -> bool {
    let missing = zea_lab::missing();
    if let Some(why) = &missing {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
        // Past the test harness, which would hide it.
        fs::write("/dev/stderr", format!("SKIPPED {test}: {why}\n")).unwrap();
    }
    missing.is_none()
}

/// Command lines of processes that name a folder.
fn processes_of(folder: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = processes.filter_map(|process| fs::read_to_string(process.path().join("cmdline")).ok());
    lines.filter(|line| line.contains(&*folder.to_string_lossy())).collect()
}

fn wait_until_gone(folder: &Path) {
    let begin = Instant::now();
    while !processes_of(folder).is_empty() {
        assert!(begin.elapsed() < GONE, "still there: {:?}", processes_of(folder));
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn lab_leaves_nothing_behind_after_a_panic() {
    if !can_run("lab_leaves_nothing_behind_after_a_panic") {
        return;
    }
    let mut folder = PathBuf::new();
    let end = catch_unwind(AssertUnwindSafe(|| {
        let mut lab = Lab::new().unwrap();
        folder = lab.folder().to_owned();
        lab.boot(1, 1).unwrap();
        assert!(processes_of(&folder).len() >= 2, "a guest and a recorder");
        panic!("as a scenario that fails");
    }));
    assert!(end.is_err());
    wait_until_gone(&folder);
    assert!(!folder.exists());
}

#[test]
fn lab_leaves_nothing_behind_when_it_is_killed() {
    if !can_run("lab_leaves_nothing_behind_when_it_is_killed") {
        return;
    }
    let mut shell = Command::new(env!("CARGO_BIN_EXE_zea-lab"))
        .arg("shell")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let folder = line.strip_prefix("everything is in ").and_then(|rest| rest.split(';').next()).unwrap();
    let folder = PathBuf::from(folder);
    assert!(processes_of(&folder).len() >= 2, "a guest and a recorder");
    shell.kill().unwrap();
    shell.wait().unwrap();
    wait_until_gone(&folder);
    // Its files go with the next lab at the latest.
    drop(Lab::new().unwrap());
    assert!(!folder.exists());
}
