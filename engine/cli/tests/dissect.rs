//! `zea dissect` over recordings of kernel DRBD.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn recording(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance/recordings");
    root.join(name).join("capture.pcap.gz")
}

fn dissect(file: &Path, options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zea")).arg("dissect").arg(file).args(options).output().unwrap()
}

/// The output for a recording that is whole.
fn text(name: &str, options: &[&str]) -> String {
    let output = dissect(&recording(name), options);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn cli_dissect_prints_a_conversation_of_9() {
    insta::assert_snapshot!(text("09d-cram-hmac-wrong", &[]));
}

#[test]
fn cli_dissect_prints_a_conversation_of_84() {
    let options = ["--node", "10.99.0.2", "--skip", "P_RS_DATA_REQUEST,RS_DATA_REPLY,rs_write_ack,DATA,WRITE_ACK"];
    let lines = text("84-10a-split-brain-manual", &options);
    insta::assert_snapshot!(lines.lines().take(60).collect::<Vec<_>>().join("\n"));
}

#[test]
fn cli_dissect_counts_packets() {
    let output = dissect(&recording("13-two-primaries"), &["--stats"]);
    assert!(output.status.success(), "{output:?}");
    insta::assert_snapshot!(format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ));
}

#[test]
fn cli_dissect_prints_json_lines() {
    let lines = text("09b-data-integrity", &["--json", "--only", "DATA,UUIDS110"]);
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let data = lines.iter().find(|line| line["packet"] == "P_DATA").unwrap();
    assert_eq!((&data["stream"], &data["volume"]), (&"data".into(), &0.into()));
    assert_eq!(data["payload"], data["payload_announced"]);
    assert_eq!(data["digest"].as_str().unwrap().len(), 8, "crc32c: {data}");
    assert!(data["fields"]["sector"].is_u64() && data["fields"]["dp_flags"].is_string(), "{data}");
    let uuids = lines.iter().find(|line| line["packet"] == "P_UUIDS110").unwrap();
    assert_eq!(uuids["fields"]["bitmap_uuids"].as_array().unwrap().len(), 1, "{uuids}");
}

#[test]
fn cli_dissect_fails_if_something_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cut.pcap.gz");
    let whole = std::fs::read(recording("09d-cram-hmac-wrong")).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let output = dissect(&file, &["--only", "INITIAL_DATA"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(!output.stdout.is_empty(), "what was before is printed");
    let output = dissect(&dir.path().join("none"), &[]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), message.contains("none: No such file")), (Some(1), true), "{message}");
}
