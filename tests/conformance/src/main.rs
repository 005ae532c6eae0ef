//! `cargo run -p zea-conformance -- RECORDING NODE [--log]`: one replay, for people.

use std::path::Path;
use std::process::ExitCode;

use zea_conformance::recording::Recording;
use zea_conformance::replay::replay;
use zea_conformance::tables::deviation;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(name), Some(node)) = (args.first(), args.get(1)) else {
        eprintln!("usage: zea-conformance RECORDING NODE [--log]");
        return ExitCode::FAILURE;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings").join(name);
    let recording = match Recording::read(&folder) {
        Ok(recording) if recording.nodes.contains_key(node) => recording,
        Ok(_) => {
            eprintln!("{name}: no node {node}");
            return ExitCode::FAILURE;
        }
        Err(error) => {
            eprintln!("{}: {error}", folder.display());
            return ExitCode::FAILURE;
        }
    };
    let replayed = replay(&recording, node, args.iter().any(|a| a == "--log"));
    for line in replayed.log {
        println!("{line}");
    }
    let mut unexplained = 0;
    for difference in &replayed.differences {
        let why = deviation(&recording.name, difference).map_or("", |d| d.name);
        unexplained += usize::from(why.is_empty());
        println!("{difference}   [{why}]");
    }
    println!("{unexplained} of {} differences are not explained", replayed.differences.len());
    if unexplained == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
