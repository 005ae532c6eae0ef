//! `zea-demo worker …`: the process that has the store open.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use signal_hook::consts::SIGTERM;

use super::seqlog::SequenceLog;
use super::sqlite::SqliteStore;
use super::{Commits, Store, checksum, payload};
use crate::journal::{self, Journal, Promises};
use crate::nbd_client::Export;

/// Exit code when the store failed: expected of a load whose device dies.
pub(crate) const STORE_FAILED: u8 = 3;
/// Exit code when anything else failed.
pub(crate) const FAILED: u8 = 1;

/// Shortest time from one commit to the next, so that a fast machine does not fill the volume.
const PACE: Duration = Duration::from_millis(2);

/// What a worker does with the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Task {
    /// Commit and note it in the journal, until SIGTERM.
    Commit,
    /// Count the promises of the journal that the store keeps.
    Recount,
    /// Take an acknowledged commit away.
    DropOne,
}

/// The arguments of a worker.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to do
    #[arg(value_enum)]
    task: Task,
    /// The client's journal
    #[arg(long)]
    journal: PathBuf,
    /// SQLite database
    #[arg(long, required_unless_present = "export")]
    database: Option<PathBuf>,
    /// NBD export
    #[arg(long, requires = "socket", conflicts_with = "database")]
    export: Option<String>,
    /// NBD socket
    #[arg(long)]
    socket: Option<PathBuf>,
}

/// The command line of a worker, without the program.
pub(crate) fn command_line(task: Task, store: &Store, journal: &Path) -> Vec<String> {
    let task = task.to_possible_value().map(|value| value.get_name().to_owned());
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut line: Vec<String> = ["worker".to_owned()].into_iter().chain(task).collect();
    line.extend(["--journal".to_owned(), text(journal)]);
    match store {
        Store::Sqlite(path) => line.extend(["--database".to_owned(), text(path)]),
        Store::Seqlog(export) => {
            line.extend(["--export".to_owned(), export.name.clone(), "--socket".to_owned(), text(&export.socket)])
        }
    }
    line
}

/// What a recount found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recount {
    /// Promises in the journal.
    pub(crate) commits: u64,
    /// Promises that the store does not keep: gone, or not what was committed.
    pub(crate) lost: Vec<u64>,
    /// Commits that are there although the client never heard of their end. Each killed primary may leave one.
    pub(crate) unacknowledged: u64,
}

/// Runs a worker; gives its exit code.
pub(crate) fn main(args: &Args) -> u8 {
    let (code, result) = match open(args) {
        Ok(mut store) => match args.task {
            Task::Commit => commit(store.as_mut(), &args.journal),
            Task::Recount => (FAILED, print_recount(store.as_mut(), &args.journal)),
            Task::DropOne => (FAILED, drop_one(store.as_mut(), &args.journal)),
        },
        Err(error) => (FAILED, Err(error)),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error:#}");
            code
        }
    }
}

fn open(args: &Args) -> Result<Box<dyn Commits>> {
    match (&args.database, &args.export, &args.socket) {
        (Some(path), None, _) => Ok(Box::new(SqliteStore::open(path)?)),
        (None, Some(name), Some(socket)) => {
            let export = Export { socket: socket.clone(), name: name.clone() };
            Ok(Box::new(SequenceLog::open(&export)?))
        }
        _ => bail!("one store is needed"),
    }
}

/// Commits until it is told to stop. The code tells whose fault an error is.
fn commit(store: &mut dyn Commits, journal: &Path) -> (u8, Result<()>) {
    let prepared = prepare(store, journal);
    let (stop, mut journal, mut sequence) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return (FAILED, Err(error)),
    };
    while !stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        let bytes = payload(sequence);
        if let Err(error) = store.commit(sequence, &bytes) {
            return (STORE_FAILED, Err(error.context(format!("commit {sequence}"))));
        }
        if let Err(error) = journal.append(sequence, checksum(sequence, &bytes)) {
            return (FAILED, Err(error));
        }
        sequence += 1;
        thread::sleep(PACE.saturating_sub(begin.elapsed()));
    }
    (0, Ok(()))
}

fn prepare(store: &mut dyn Commits, path: &Path) -> Result<(Arc<AtomicBool>, Journal, u64)> {
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGTERM, Arc::clone(&stop)).context("cannot catch SIGTERM")?;
    let journal = Journal::open(path)?;
    let mut sequence = 1 + last(&journal::read(path)?);
    // What a load before this one committed without hearing of it stays as it is.
    while store.find(sequence)?.is_some() {
        sequence += 1;
    }
    Ok((stop, journal, sequence))
}

fn last(promises: &Promises) -> u64 {
    promises.last_key_value().map_or(0, |(sequence, _)| *sequence)
}

fn print_recount(store: &mut dyn Commits, journal: &Path) -> Result<()> {
    let recount = recount(store, &journal::read(journal)?)?;
    println!("{}", serde_json::to_string(&recount)?);
    Ok(())
}

fn recount(store: &mut dyn Commits, promises: &Promises) -> Result<Recount> {
    store.check()?;
    let mut recount = Recount::default();
    for (&sequence, &promised) in promises {
        recount.commits += 1;
        if store.find(sequence)? != Some(promised) {
            recount.lost.push(sequence);
        }
    }
    for sequence in (1..=last(promises) + 1).filter(|it| !promises.contains_key(it)) {
        if let Some(found) = store.find(sequence)? {
            let wanted = checksum(sequence, &payload(sequence));
            ensure!(found == wanted, "commit {sequence} was never acknowledged, and is not whole");
            recount.unacknowledged += 1;
        }
    }
    Ok(recount)
}

fn drop_one(store: &mut dyn Commits, journal: &Path) -> Result<()> {
    let promises = journal::read(journal)?;
    let victim = promises.keys().nth(promises.len() / 2);
    let victim = *victim.context("nothing was committed yet")?;
    store.remove(victim)?;
    println!("{victim}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn store_in(dir: &Path) -> SqliteStore {
        SqliteStore::open(&dir.join("db")).unwrap()
    }

    fn fill(store: &mut SqliteStore, journal: &Path, numbers: impl IntoIterator<Item = u64>) {
        let mut journal = Journal::open(journal).unwrap();
        for sequence in numbers {
            let bytes = payload(sequence);
            store.commit(sequence, &bytes).unwrap();
            journal.append(sequence, checksum(sequence, &bytes)).unwrap();
        }
    }

    #[test]
    fn demo_recount_finds_what_was_promised() {
        let dir = tempfile::tempdir().unwrap();
        let journal = dir.path().join("journal");
        let mut store = store_in(dir.path());
        fill(&mut store, &journal, 1..=20);
        // Committed, but its acknowledgement was lost; then the load went on.
        store.commit(21, &payload(21)).unwrap();
        fill(&mut store, &journal, 22..=30);
        drop(store);
        let promises = journal::read(&journal).unwrap();
        let recount = recount(&mut store_in(dir.path()), &promises).unwrap();
        let wanted = Recount { commits: 29, lost: Vec::new(), unacknowledged: 1 };
        assert_eq!(recount, wanted);
    }

    #[test]
    fn demo_recount_finds_what_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let journal = dir.path().join("journal");
        let mut store = store_in(dir.path());
        fill(&mut store, &journal, 1..=20);
        drop_one(&mut store, &journal).unwrap();
        store.remove(3).unwrap();
        store.commit(3, b"something else").unwrap();
        let promises = journal::read(&journal).unwrap();
        let found = recount(&mut store, &promises).unwrap();
        assert_eq!((found.commits, found.lost), (20, vec![3, 11]));
        // What nobody promised must still be whole.
        store.commit(21, b"half of it").unwrap();
        assert!(recount(&mut store, &promises).is_err());
    }

    #[test]
    fn demo_loads_go_on_behind_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let journal = dir.path().join("journal");
        let mut store = store_in(dir.path());
        assert_eq!(prepare(&mut store, &journal).unwrap().2, 1);
        fill(&mut store, &journal, 1..=5);
        assert_eq!(prepare(&mut store, &journal).unwrap().2, 6);
        store.commit(6, &payload(6)).unwrap();
        assert_eq!(prepare(&mut store, &journal).unwrap().2, 7);
    }

    #[test]
    fn demo_workers_understand_their_command_line() {
        let sqlite = Store::Sqlite("/m/db".into());
        let export = Export { socket: "/s".into(), name: "r0/0".into() };
        for store in [sqlite, Store::Seqlog(export)] {
            for task in [Task::Commit, Task::Recount, Task::DropOne] {
                // The word `worker` is in the place of the program's name.
                let line = command_line(task, &store, Path::new("/j"));
                let args = Line::try_parse_from(&line).unwrap().args;
                assert_eq!((args.task, args.journal.as_path()), (task, Path::new("/j")));
                assert_eq!(args.database.is_some(), matches!(store, Store::Sqlite(_)));
            }
        }
        assert!(Line::try_parse_from(["worker", "commit", "--journal", "/j"]).is_err());
    }
}
