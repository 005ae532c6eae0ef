//! Checks with real clients against any server: each takes an NBD URI and nothing else of the server.

use std::path::Path;
use std::process::{Command, Output};

/// Runs a client that must be there. `None` means that it is not installed; then the test is skipped, loudly, and with
/// `CI=true` it fails.
pub(crate) fn run(tool: &str, args: &[&str]) -> Option<Output> {
    // A client that hangs is a failure, not an endless test.
    let output = Command::new("timeout").arg("60").arg(tool).args(args).output().expect("timeout(1) runs");
    // What timeout(1) says where the command is not found.
    if output.status.code() == Some(127) {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{tool} is not installed");
        eprintln!("SKIPPED: {tool} is not installed; this check did NOT run");
        return None;
    }
    Some(output)
}

/// Runs a client that has to succeed; its standard output.
pub(crate) fn run_ok(tool: &str, args: &[&str]) -> Option<String> {
    let output = run(tool, args)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {args:?}: {}\n{stdout}\n{stderr}", output.status);
    Some(stdout)
}

/// Runs a client that has to fail; its standard error.
pub(crate) fn run_failing(tool: &str, args: &[&str]) -> Option<String> {
    let output = run(tool, args)?;
    assert!(!output.status.success(), "{tool} {args:?} succeeded");
    assert_ne!(output.status.code(), Some(124), "{tool} {args:?} hung");
    Some(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What `nbdinfo --json` says of one export.
pub(crate) fn nbdinfo(uri: &str) -> Option<serde_json::Value> {
    let text = run_ok("nbdinfo", &["--json", uri])?;
    Some(serde_json::from_str(&text).expect("nbdinfo writes JSON"))
}

/// Copies a file to the export and back through `nbdcopy`, with its own flags for the way there.
/// The content that came back.
pub(crate) fn nbdcopy_roundtrip(uri: &str, file: &Path, flags: &[&str]) -> Option<Vec<u8>> {
    let back = file.with_extension("back");
    run_ok("nbdcopy", &[flags, &[path(file), uri]].concat())?;
    run_ok("nbdcopy", &[uri, path(&back)])?;
    Some(std::fs::read(back).expect("the copy"))
}

/// Writes with random offsets, verifies by checksum, then trims: fio's nbd engine.
pub(crate) fn fio_verify(uri: &str, size_bytes: u64, dir: &Path) -> Option<()> {
    let engines = run_ok("fio", &["--enghelp"])?;
    if !engines.lines().any(|line| line.trim() == "nbd") {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "fio has no nbd engine");
        eprintln!("SKIPPED: fio has no nbd engine; this check did NOT run");
        return None;
    }
    let aux = format!("--aux-path={}", dir.display());
    let size = format!("--size={size_bytes}");
    let uri = format!("--uri={uri}");
    let common = [aux.as_str(), "--ioengine=nbd", uri.as_str(), size.as_str(), "--iodepth=16"];
    let verify = ["--name=verify", "--rw=randwrite", "--bsrange=4k-64k", "--verify=crc32c", "--do_verify=1"];
    run_ok("fio", &[&common[..], &verify, &["--verify_fatal=1", "--fsync=64", "--randseed=1"]].concat())?;
    let mixed = ["--name=mixed", "--rw=randtrimwrite", "--bs=4k"];
    run_ok("fio", &[&common[..], &mixed].concat())?;
    Some(())
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}
