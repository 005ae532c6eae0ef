//! `zea wait`: looks at the status until it is as wanted, with a bar while a resync runs.

use std::thread;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use zea_node::api::{ConnectionStatus, Request, ResourceStatus, StatusReply};
use zea_node::control::Client;

use crate::args::Goal;
use crate::exit::{self, CliError};

/// How often the status is looked at.
const INTERVAL: Duration = Duration::from_millis(200);

/// Waits until `goal` is reached.
pub(crate) fn wait(client: &mut Client, name: &str, goal: Goal, timeout: Duration) -> Result<(), CliError> {
    let begin = Instant::now();
    let mut bar = Bar::default();
    loop {
        let resource = status(client, name)?;
        let Err(reason) = judge(goal, &resource) else {
            bar.finish();
            return Ok(());
        };
        if begin.elapsed() >= timeout {
            bar.finish();
            let seconds = timeout.as_secs();
            return Err(CliError::new(exit::TIMEOUT, format!("{name}: after {seconds} s still not there: {reason}")));
        }
        bar.show(&resource);
        thread::sleep(INTERVAL.min(timeout.saturating_sub(begin.elapsed())));
    }
}

/// The state of a resource that is up.
pub(crate) fn status(client: &mut Client, name: &str) -> Result<ResourceStatus, CliError> {
    let reply: StatusReply = client.call(&Request::Status { name: Some(name.to_owned()) })?;
    let down = || CliError::new(exit::REFUSED, format!("{name} is down: bring it up with `zea up {name}`"));
    reply.resources.into_iter().next().ok_or_else(down)
}

/// `Err` says what is still missing.
fn judge(goal: Goal, resource: &ResourceStatus) -> Result<(), String> {
    match goal {
        Goal::Uptodate => up_to_date(resource),
        Goal::Connected => connected(resource),
        Goal::Synced => {
            up_to_date(resource)?;
            connected(resource)?;
            resource.connections.iter().try_for_each(|connection| synced(&resource.name, connection))
        }
    }
}

fn up_to_date(resource: &ResourceStatus) -> Result<(), String> {
    match resource.devices.iter().find(|device| device.disk_state != "UpToDate") {
        None => Ok(()),
        Some(device) => Err(format!("{}/{} is {}", resource.name, device.volume, device.disk_state)),
    }
}

fn connected(resource: &ResourceStatus) -> Result<(), String> {
    match resource.connections.iter().find(|connection| connection.connection_state != "Connected") {
        None => Ok(()),
        Some(ConnectionStatus { name, connection_state, last_error, .. }) => {
            let why = last_error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
            let hint = if connection_state == "StandAlone" {
                format!("; `zea connect {} {name}` tries again", resource.name)
            } else {
                String::new()
            };
            Err(format!("the connection to {name} is {connection_state}{why}{hint}"))
        }
    }
}

fn synced(resource: &str, connection: &ConnectionStatus) -> Result<(), String> {
    let behind = connection.peer_devices.iter().find(|peer_device| {
        peer_device.peer_disk_state != "UpToDate"
            || peer_device.replication_state != "Established"
            || peer_device.out_of_sync != 0
    });
    match behind {
        None => Ok(()),
        Some(peer_device) => Err(format!(
            "{resource}/{} on {} is {}, replication {}, {} out of sync",
            peer_device.volume,
            connection.name,
            peer_device.peer_disk_state,
            peer_device.replication_state,
            HumanBytes(peer_device.out_of_sync * 1024)
        )),
    }
}

/// The bar, while there is something to show. Indicatif draws on a terminal only.
#[derive(Default)]
pub(crate) struct Bar(Option<ProgressBar>);

impl Bar {
    pub(crate) fn show(&mut self, resource: &ResourceStatus) {
        let Some((done, total)) = progress(resource) else {
            return self.finish();
        };
        let bar = self.0.get_or_insert_with(|| {
            let what = if verifies(resource) { "verify" } else { "resync" };
            let template = "{prefix} {bar:40} {percent}% of {total_bytes}, {binary_bytes_per_sec}, {eta} left";
            let style = ProgressStyle::with_template(template).expect("the template is well formed");
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
            // What was done before the bar says nothing of how fast it goes.
            bar.set_position(done);
            bar.reset_eta();
            bar.set_draw_target(ProgressDrawTarget::stderr());
            bar.with_style(style).with_prefix(what)
        });
        bar.set_length(total);
        bar.set_position(done);
    }

    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

/// An online verify runs.
pub(crate) fn verifies(resource: &ResourceStatus) -> bool {
    let mut peer_devices = resource.connections.iter().flat_map(|connection| &connection.peer_devices);
    peer_devices.any(|it| it.has_online_verify_details)
}

/// Bytes that are resynced or verified and bytes that are to be, over all that runs.
fn progress(resource: &ResourceStatus) -> Option<(u64, u64)> {
    let peer_devices = resource.connections.iter().flat_map(|connection| &connection.peer_devices);
    let one = |total_sectors: u64, percent: f64| ((total_sectors * 512) as f64 * percent / 100.0) as u64;
    peer_devices
        .filter_map(|it| Some((it.rs_total?, it.percent_resync_done?)))
        .map(|(total, percent)| (one(total, percent), total * 512))
        .reduce(|all, one| (all.0 + one.0, all.1 + one.1))
}
