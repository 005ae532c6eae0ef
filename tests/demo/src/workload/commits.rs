//! The committing load, from outside: starts, stops and questions its worker.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Store;
use super::worker::{self, Recount, Task};
use crate::journal;
use crate::process::{self, Process, last_lines};
use crate::run::{Look, Run};

/// How long the worker may take to end.
const END: Duration = Duration::from_secs(15);
/// How long a recount may take.
const COUNT: Duration = Duration::from_secs(60);
/// How long the first commit may take.
const BEGIN: Duration = Duration::from_secs(20);

/// Where the load notes what it was promised, and what it has to say.
#[derive(Debug, Clone)]
pub(crate) struct Books {
    journal: PathBuf,
    log: PathBuf,
}

impl Books {
    /// Books in this directory, which is not on the volume.
    pub(crate) fn open(directory: &Path) -> Result<Books> {
        let books = Books { journal: directory.join("journal"), log: directory.join("commits.log") };
        File::create(&books.journal)
            .and_then(|file| file.sync_all())
            .and_then(|()| File::open(directory)?.sync_all())
            .context("cannot create the journal")?;
        Ok(books)
    }

    /// Promises so far.
    pub(crate) fn commits(&self) -> Result<u64> {
        Ok(journal::read(&self.journal)?.len() as u64)
    }

    fn said(&self) -> String {
        last_lines(&std::fs::read_to_string(&self.log).unwrap_or_default(), 3)
    }

    /// Counts the promises that the store keeps.
    pub(crate) fn recount(&self, run: &Run, store: &Store) -> Result<Recount> {
        let text = process::succeed(run, &mut self.worker(Task::Recount, store)?, COUNT)?;
        serde_json::from_str(&text).context("the recount gave something else than counts")
    }

    /// Takes an acknowledged commit away from the store; gives its number.
    pub(crate) fn drop_one(&self, run: &Run, store: &Store) -> Result<u64> {
        let text = process::succeed(run, &mut self.worker(Task::DropOne, store)?, COUNT)?;
        Ok(text.trim().parse()?)
    }

    fn worker(&self, task: Task, store: &Store) -> Result<Command> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = process::command(program);
        command.args(worker::command_line(task, store, &self.journal));
        Ok(command)
    }
}

/// A load that commits.
#[derive(Debug)]
pub(crate) struct CommitLoad {
    process: Process,
    books: Books,
}

impl CommitLoad {
    /// Starts committing; returns after the first commit.
    pub(crate) fn start(run: &Run, store: &Store, books: &Books) -> Result<CommitLoad> {
        let before = books.commits()?;
        let log = File::options().create(true).append(true).open(&books.log)?;
        let mut command = books.worker(Task::Commit, store)?;
        command.stdout(Stdio::null()).stderr(log);
        let mut load = CommitLoad { process: Process::spawn(&mut command)?, books: books.clone() };
        run.wait_for("the first commit", BEGIN, || {
            load.assert_alive()?;
            Ok(match books.commits()? {
                now if now > before => Look::Done(()),
                _ => Look::NotYet("no commit has returned".into()),
            })
        })?;
        Ok(load)
    }

    /// Fails if the load has ended by itself.
    pub(crate) fn assert_alive(&mut self) -> Result<()> {
        match self.process.ended()? {
            None => Ok(()),
            Some(status) => bail!("the committing load ended ({status}): {}", self.books.said()),
        }
    }

    /// Ends the load in good order.
    pub(crate) fn stop(mut self, run: &Run) -> Result<()> {
        self.assert_alive()?;
        self.process.terminate()?;
        let status = self.process.wait(END, || run.check())?;
        let status = status.context("the committing load did not stop")?;
        ensure!(status.success(), "the committing load ended with {status}: {}", self.books.said());
        Ok(())
    }

    /// Waits for the end of a load whose device is gone: it must have failed there, and nowhere else.
    pub(crate) fn wait_broken(mut self, run: &Run) -> Result<()> {
        let status = self.process.wait(END, || run.check())?;
        let status = status.context("the committing load outlives its device")?;
        ensure!(
            status.code() == Some(i32::from(worker::STORE_FAILED)),
            "the committing load ended with {status}: {}",
            self.books.said()
        );
        Ok(())
    }
}
