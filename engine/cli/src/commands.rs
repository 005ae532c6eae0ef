//! From arguments to requests, and from answers to output.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use zea_node::api::{Done, Listed, Request, StatusReply, Version};
use zea_node::config;
use zea_node::control::Client;
use zea_node::store::{read_bounded, read_secret};

use crate::args::{Args, Command, Resource, Resyncs};
use crate::exit::{self, CliError};
use crate::{create, dissect, verify, view, wait};

/// How often `status --watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Clears a terminal.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Carries out a command line.
pub(crate) fn run(args: Args) -> Result<(), CliError> {
    let socket = args.socket;
    let request = match args.command {
        Command::Status { name, json, watch, verbose } => return status(&socket, name, json, watch, verbose),
        Command::Events { name, json } => return events(&socket, name, json),
        Command::Wait { name, goal, timeout } => {
            return wait::wait(&mut Client::connect(&socket)?, &name, goal, Duration::from_secs(timeout));
        }
        Command::Verify { name, peer, volume, start, stop, wait, json } => {
            let request = Request::Verify { name: name.clone(), peer, volume, start, stop };
            return verify::verify(&mut Client::connect(&socket)?, &name, &request, wait, json);
        }
        Command::Version { json } => return version(&socket, json),
        Command::Dissect(line) => return dissect::dissect(&line),
        Command::Replay(line) => return crate::replay::replay(&line),
        Command::Resource(Resource::List { json }) => return list(&socket, json),
        Command::Resource(Resource::Create(line)) => create::request(*line)?,
        Command::Resource(Resource::Delete { name, wipe_metadata }) => Request::ResourceDelete { name, wipe_metadata },
        Command::Apply { file, force } => apply(&file, force)?,
        Command::Promote { name, force } => Request::Promote { name, force },
        Command::Demote { name } => Request::Demote { name },
        Command::Connect { name, peer, discard_my_data } => Request::Connect { name, peer, discard_my_data },
        Command::Disconnect { name, peer, force } => Request::Disconnect { name, peer, force },
        Command::Attach { name, volume } => Request::Attach { name, volume },
        Command::Detach { name, volume, force } => Request::Detach { name, volume, force },
        Command::Resize { name, volume, size, assume_clean } => Request::Resize { name, volume, size, assume_clean },
        Command::PauseSync(Resyncs { name, peer, volume }) => Request::PauseSync { name, peer, volume },
        Command::ResumeSync(Resyncs { name, peer, volume }) => Request::ResumeSync { name, peer, volume },
        Command::Invalidate { name, volume } => Request::Invalidate { name, volume },
        Command::InvalidateRemote { name, peer, volume } => Request::InvalidateRemote { name, peer, volume },
        Command::Up { name } => Request::Up { name },
        Command::Down { name } => Request::Down { name },
    };
    let done: Done = Client::connect(&socket)?.call(&request)?;
    done.notes.iter().for_each(|note| eprintln!("{note}"));
    Ok(())
}

/// Reads a resource file here, where its mistakes and its secret file are at hand.
fn apply(file: &Path, force: bool) -> Result<Request, CliError> {
    let usage = |message: String| CliError::new(exit::USAGE, message);
    let text = read_bounded(file, config::load::MAX_FILE_BYTES).map_err(|error| usage(format!("{error:#}")))?;
    let parsed = config::parse(file, &text, None).map_err(|error| usage(error.to_string()))?;
    let beside = |secret: &Path| file.parent().unwrap_or(Path::new("")).join(secret);
    let secret = parsed.net.secret_file.as_deref().map(|path| read_secret(&beside(path))).transpose();
    let secret =
        secret.map_err(|error| usage(config::load::bad_secret(file, &text, format!("{error:#}")).to_string()))?;
    Ok(Request::Apply { file: file.display().to_string(), text, secret, force })
}

fn print(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn status(socket: &Path, name: Option<String>, json: bool, watch: bool, verbose: bool) -> Result<(), CliError> {
    let mut client = Client::connect(socket)?;
    let clear = watch && !json && std::io::stdout().is_terminal();
    let request = Request::Status { name };
    loop {
        let reply: StatusReply = client.call(&request)?;
        let text = if json { view::json(&reply.resources)? } else { view::status(&reply, verbose) };
        print(&format!("{}{text}", if clear { CLEAR } else { "" }))?;
        if !watch {
            return Ok(());
        }
        thread::sleep(WATCH_INTERVAL);
    }
}

fn events(socket: &Path, name: Option<String>, json: bool) -> Result<(), CliError> {
    let mut client = Client::connect(socket)?;
    client.stream(&Request::Events { name })?;
    loop {
        let event = client.next_event()?;
        let line = if json { view::json_line(&event)? } else { event.to_string() };
        print(&format!("{line}\n"))?;
    }
}

fn list(socket: &Path, json: bool) -> Result<(), CliError> {
    let listed: Vec<Listed> = Client::connect(socket)?.call(&Request::ResourceList)?;
    print(&if json { view::json(&listed)? } else { view::list(&listed) })
}

fn version(socket: &Path, json: bool) -> Result<(), CliError> {
    let zea = env!("CARGO_PKG_VERSION");
    if json {
        let daemon: Version = Client::connect(socket)?.call(&Request::Version)?;
        return print(&view::json(&serde_json::json!({"zea": zea, "zead": daemon}))?);
    }
    print(&format!("zea {zea}\n"))?;
    let daemon: Version = Client::connect(socket)?.call(&Request::Version)?;
    let Version { version, node_id, pid, ready } = daemon;
    let starting = if ready { "" } else { ", still starting resources" };
    print(&format!("zead {version}, node {node_id}, pid {pid}{starting}\n"))
}
