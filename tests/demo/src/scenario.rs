//! What happens in the demo, and what must be true of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::{Cluster, Node};
use crate::frontend::{Contents, Frontend, Volume};
use crate::install::Programs;
use crate::report::Summary;
use crate::run::Run;
use crate::verify::first_difference;
use crate::workload::commits::{Books, CommitLoad};
use crate::workload::fio::{Completed, FioLoad, Region};

/// Nodes by what happens to them: the Primary that dies,
const FIRST_PRIMARY: usize = 0;
/// and the Secondary that dies, comes back, and takes over: so what it was resynced with is put to use.
const SUCCESSOR: usize = 1;

/// How long the Secondary stays dead after its absence shows.
const ABSENCE: Duration = Duration::from_secs(1);

/// What is to be run.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) programs: Programs,
    pub(crate) frontend: Frontend,
    pub(crate) size_mib: u32,
    /// How long the load runs before each fault.
    pub(crate) load: Duration,
    /// Falsify the surviving volume, which must be noticed.
    pub(crate) drop_one_commit: bool,
}

/// Number of replicas.
pub(crate) const REPLICAS: usize = 3;

/// Runs the demo; the summary has what was found, also after an error.
pub(crate) fn play(run: &Run, options: &Options, directory: &Path, summary: &mut Summary) -> Result<()> {
    let books = Books::open(directory)?;
    let played = Play::begin(run, options, directory, &books, summary).and_then(|mut play| play.all(summary));
    summary.commits = books.commits()?;
    played?;
    summary.verified = true;
    Ok(())
}

/// Dropped in this order: what uses something goes before what it uses.
struct Play<'a> {
    commits: Option<CommitLoad>,
    fio: Option<FioLoad>,
    volume: Option<Volume>,
    cluster: Cluster,
    run: &'a Run,
    options: &'a Options,
    directory: &'a Path,
    books: &'a Books,
}

impl<'a> Play<'a> {
    /// Three equal replicas.
    fn begin(
        run: &'a Run,
        options: &'a Options,
        directory: &'a Path,
        books: &'a Books,
        summary: &mut Summary,
    ) -> Result<Play<'a>> {
        let cluster = Cluster::start(run, directory, &options.programs, options.size_mib)?;
        let primary = &cluster.nodes[FIRST_PRIMARY];
        run.say(format!("{}: Primary of a {} MiB volume; first sync to the others", primary.name(), options.size_mib));
        primary.promote_first(run)?;
        let sync = cluster.wait_synced(run)?;
        summary.initial_sync_ms = Some(millis(sync));
        run.say(format!("all {REPLICAS} replicas are UpToDate after {}", seconds(sync)));
        Ok(Play { commits: None, fio: None, volume: None, cluster, run, options, directory, books })
    }

    fn all(&mut self, summary: &mut Summary) -> Result<()> {
        self.start_load()?;
        self.lose_the_secondary(summary)?;
        let completed = self.lose_the_primary(summary)?;
        self.examine(completed.as_ref(), summary)?;
        self.bring_back_the_primary(summary)?;
        self.compare(summary)
    }

    fn node(&self, id: usize) -> &Node {
        &self.cluster.nodes[id]
    }

    fn volume(&mut self) -> Result<&mut Volume> {
        self.volume.as_mut().context("no volume is open")
    }

    fn open(&self, id: usize, contents: Contents) -> Result<Volume> {
        let node = self.node(id);
        let directory: PathBuf = self.directory.join(format!("use-on-{}", node.name()));
        let frontend = self.options.frontend;
        frontend
            .open(self.run, &node.export(), &directory, contents)
            .with_context(|| format!("cannot use the volume on {}", node.name()))
    }

    fn region(&self, volume: &Volume) -> Option<Region> {
        let mount_point = volume.mount_point()?;
        let half = u64::from(self.options.size_mib) << 19;
        Some(Region::new(&mount_point, self.directory, half))
    }

    fn start_load(&mut self) -> Result<()> {
        let run = self.run;
        let volume = self.volume.insert(self.open(FIRST_PRIMARY, Contents::New)?);
        match (self.options.frontend.file_system(), volume.mount_point()) {
            (Some(kind), Some(path)) => run.say(format!("{} is mounted at {}", kind.name(), path.display())),
            _ => run.say("the raw export is open"),
        }
        let store = volume.store();
        let region = self.volume.as_ref().and_then(|it| self.region(it));
        if let Some(region) = &region {
            run.say("fio lays out its files");
            region.lay_out(run)?;
        }
        self.commits = Some(CommitLoad::start(run, &store, self.books)?);
        self.fio = region.map(|region| region.start()).transpose()?;
        run.say(match self.fio {
            Some(_) => "load: SQLite commits in a loop, fio writes random blocks with checksums",
            None => "load: checksummed log entries, each followed by FLUSH",
        });
        run.pause(self.options.load)?;
        self.assert_load()
    }

    fn assert_load(&mut self) -> Result<()> {
        if let Some(commits) = &mut self.commits {
            commits.assert_alive()?;
        }
        if let Some(fio) = &mut self.fio
            && fio.is_done()?
        {
            self.run.say("  fio is through with its region; the commits go on");
        }
        Ok(())
    }

    fn lose_the_secondary(&mut self, summary: &mut Summary) -> Result<()> {
        let run = self.run;
        let name = self.node(SUCCESSOR).name();
        run.say(format!("kill -9 {name} (Secondary) under load"));
        self.cluster.nodes[SUCCESSOR].kill()?;
        self.cluster.wait_behind(run, FIRST_PRIMARY, SUCCESSOR)?;
        run.pause(ABSENCE)?;
        self.assert_load()?;
        let behind = self.cluster.wait_behind(run, FIRST_PRIMARY, SUCCESSOR)?;
        run.say(format!("{name} misses {behind} KiB by now; it starts again"));
        let resync = self.restart(SUCCESSOR)?;
        summary.secondary_resync_ms = Some(millis(resync));
        self.assert_load()
    }

    /// Starts a node again and waits until all are UpToDate.
    fn restart(&mut self, id: usize) -> Result<Duration> {
        let begin = Instant::now();
        self.cluster.nodes[id].start(self.run)?;
        self.cluster.wait_synced(self.run)?;
        self.run.say(format!(
            "{} is UpToDate again {} after its start, and so are the others",
            self.node(id).name(),
            seconds(begin.elapsed())
        ));
        Ok(begin.elapsed())
    }

    /// Gives what fio had completed.
    fn lose_the_primary(&mut self, summary: &mut Summary) -> Result<Option<Completed>> {
        let run = self.run;
        run.pause(self.options.load)?;
        self.assert_load()?;
        let mut dead = self.volume.take().context("no volume is open")?;
        let name = self.node(FIRST_PRIMARY).name();
        run.say(format!("kill -9 {name} (Primary) under load, after {} commits", self.books.commits()?));
        let begin = Instant::now();
        self.cluster.nodes[FIRST_PRIMARY].kill()?;
        dead.cut_off()?;
        self.node(SUCCESSOR).promote(run)?;
        summary.promote_ms = Some(millis(begin.elapsed()));
        self.volume = Some(self.open(SUCCESSOR, Contents::Existing)?);
        let failover = begin.elapsed();
        summary.failover_ms = Some(millis(failover));
        run.say(format!(
            "{} is Primary, the volume is in use there {} after the kill",
            self.node(SUCCESSOR).name(),
            seconds(failover)
        ));
        let commits = self.commits.take().context("nothing commits")?;
        commits.wait_broken(run)?;
        let completed = self.fio.take().map(|fio| fio.wait_broken(run)).transpose()?;
        drop(dead);
        Ok(completed)
    }

    /// Everything that was promised must be on the survivor.
    fn examine(&mut self, completed: Option<&Completed>, summary: &mut Summary) -> Result<()> {
        let run = self.run;
        let volume = self.volume()?;
        volume.fsck(run)?;
        let store = volume.store();
        if let Some(kind) = self.options.frontend.file_system() {
            run.say(format!("{} finds nothing", kind.checker().0));
        }
        if self.options.drop_one_commit {
            let victim = self.books.drop_one(run, &store)?;
            run.say(format!("taking commit {victim} away, as was asked for"));
        }
        self.recount(1, summary)?;
        let Some(completed) = completed else {
            return Ok(());
        };
        ensure!(completed.blocks() > 0, "fio completed nothing: there is nothing to verify");
        let volume = self.volume.as_ref().context("no volume is open")?;
        let region = self.region(volume).context("fio has no place")?;
        let blocks = region.verify(run, completed)?;
        summary.fio_blocks_verified = Some(blocks);
        run.say(format!("fio verified all {blocks} blocks that were complete at the kill"));
        Ok(())
    }

    /// Counts the journal's promises on the volume. Each Primary that died may leave one commit that nobody heard of.
    fn recount(&mut self, deaths: u64, summary: &mut Summary) -> Result<()> {
        let store = self.volume()?.store();
        let recount = self.books.recount(self.run, &store)?;
        summary.lost_commits = Some(recount.lost.len() as u64);
        summary.unacknowledged_commits = recount.unacknowledged;
        if let Some(first) = recount.lost.first() {
            bail!("{} of {} acknowledged commits are lost, the first is {first}", recount.lost.len(), recount.commits);
        }
        ensure!(recount.commits > 0, "nothing was committed");
        ensure!(
            recount.unacknowledged <= deaths,
            "{} commits are there that were never acknowledged",
            recount.unacknowledged
        );
        self.run.say(format!("all {} acknowledged commits are there", recount.commits));
        Ok(())
    }

    fn bring_back_the_primary(&mut self, summary: &mut Summary) -> Result<()> {
        let run = self.run;
        let store = self.volume()?.store();
        self.commits = Some(CommitLoad::start(run, &store, self.books)?);
        let name = self.node(FIRST_PRIMARY).name();
        let behind = self.cluster.wait_behind(run, SUCCESSOR, FIRST_PRIMARY)?;
        run.say(format!("commits go on; {name} misses {behind} KiB; it starts again"));
        let resync = self.restart(FIRST_PRIMARY)?;
        summary.primary_resync_ms = Some(millis(resync));
        self.assert_load()?;
        let commits = self.commits.take().context("nothing commits")?;
        commits.stop(run)?;
        self.volume()?.fsck(run)?;
        self.recount(1, summary)
    }

    /// Ends everything in good order and compares what is left.
    fn compare(&mut self, summary: &mut Summary) -> Result<()> {
        let run = self.run;
        self.volume.take().context("no volume is open")?.close().context("letting go of the volume")?;
        self.node(SUCCESSOR).demote(run)?;
        self.cluster.wait_synced(run)?;
        let size = self.node(SUCCESSOR).size_bytes(run)?;
        for node in &mut self.cluster.nodes {
            node.down(run)?;
        }
        for node in &mut self.cluster.nodes {
            node.stop(run)?;
        }
        let images: Vec<PathBuf> = self.cluster.nodes.iter().map(Node::image).collect();
        if let Some(difference) = first_difference(run, &images, size)? {
            bail!("the replicas are not equal: {difference}");
        }
        summary.replicas_equal = true;
        run.say(format!("the {} replicas are equal in all their {size} bytes", images.len()));
        Ok(())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}
