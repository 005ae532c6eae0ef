//! Gives a recording to a core again, step by step.

use std::collections::VecDeque;
use std::fmt;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use zea_core::Resource;
use zea_core::io::{Action, Input, Outbox, Rng, Time};

use crate::bytes::Reader;
use crate::entry::{self, Entry};
use crate::frame;
use crate::links::Links;
use crate::read::{ReadError, Recorded};
use crate::segment::{self, BadSegment, Cause, Header};

/// How a segment follows what was replayed before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// The resource was added.
    Start,
    /// What was before has been overwritten, or is not in this file.
    Middle,
    /// So many inputs of the run are missing.
    Gap(u64),
}

/// How the replay of a run ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The resource was taken away, or its daemon ended in order.
    Ended,
    /// The recording stops: the process was killed, or goes on.
    Stopped,
    /// The end of a segment is damaged or not complete.
    Cut(String),
    /// The core panicked at the next input, as the recorded one must have.
    Panicked(String),
    /// The core did not do what the recorded one did: the program is another one, or the core depends on something else than its
    /// inputs.
    Diverged(String),
    /// A file is not a segment of this version.
    Unreadable(String),
}

/// What a watcher of a replay sees.
#[derive(Debug)]
pub enum Moment<'a> {
    /// A core begins, fresh or from a snapshot.
    Begins {
        /// Header of the segment.
        header: &'a Header,
        /// How it follows.
        how: Begin,
        /// The core.
        core: &'a Resource,
    },
    /// The core is about to get an input.
    Input {
        /// Where it stands.
        step: Step,
        /// What it gets.
        input: &'a Input<'a>,
    },
    /// It had it.
    Done {
        /// Where it stands.
        step: Step,
        /// What it did.
        actions: &'a [Action],
        /// The core.
        core: &'a Resource,
    },
    /// A run ends.
    Ends {
        /// How.
        ending: &'a Ending,
        /// The core in its last state; `None` where that is not known.
        core: Option<&'a Resource>,
    },
}

/// A place in a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Number of the input in its run, from 1.
    pub nr: u64,
    /// The core's time.
    pub at: Time,
    /// The same as nanoseconds since 1970.
    pub wall_ns: u64,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Ended => f.write_str("the resource was taken down in order"),
            Ending::Stopped => f.write_str("the recording stops: the daemon was killed, or is running"),
            Ending::Cut(why) => write!(f, "the recording is cut off: {why}"),
            Ending::Panicked(message) => write!(f, "the core panicked at the next input: {message}"),
            Ending::Diverged(what) => write!(f, "the replay departs from what was recorded: {what}"),
            Ending::Unreadable(why) => f.write_str(why),
        }
    }
}

/// Replays everything, oldest first. `watch` sees every moment and can break off.
///
/// # Errors
/// A file cannot be read. What is wrong inside of one is a [`Moment::Ends`].
pub fn replay(recorded: &Recorded, mut watch: impl FnMut(Moment<'_>) -> ControlFlow<()>) -> Result<(), ReadError> {
    let mut run: Option<Run> = None;
    for segment in recorded.segments() {
        let (name, bytes) = segment?;
        if play_segment(&mut run, &name, &bytes, &mut watch).is_break() {
            return Ok(());
        }
    }
    let _ = end(&mut run, &mut watch);
    Ok(())
}

type Watch<'a> = &'a mut dyn FnMut(Moment<'_>) -> ControlFlow<()>;

/// A core that is being replayed.
struct Run {
    header: Header,
    links: Links,
    core: Resource,
    /// Inputs that it had.
    inputs: u64,
    last: Time,
    /// Why it cannot go on.
    ending: Option<Ending>,
}

/// Tells how the run ended that was going on.
fn end(run: &mut Option<Run>, watch: Watch<'_>) -> ControlFlow<()> {
    let Some(run) = run.take() else { return ControlFlow::Continue(()) };
    let ending = run.ending.as_ref().unwrap_or(&Ending::Stopped);
    // What a core looks like in the middle of an input is nobody's business.
    let whole = !matches!(ending, Ending::Panicked(_) | Ending::Diverged(_));
    watch(Moment::Ends { ending, core: whole.then_some(&run.core) })
}

fn play_segment(run: &mut Option<Run>, name: &str, bytes: &[u8], watch: Watch<'_>) -> ControlFlow<()> {
    let mut rest = Reader(bytes);
    let (header, snapshot) = match segment::get_header(&mut rest).and_then(|h| Ok((h, segment::whole(&mut rest)?))) {
        Ok(found) => found,
        Err(bad) => {
            end(run, watch)?;
            return watch(Moment::Ends { ending: &unreadable(name, &bad), core: None });
        }
    };
    match run.as_mut().filter(|run| run.goes_on_in(&header)) {
        Some(run) => {
            run.compare(snapshot);
            run.last = header.at;
            run.header = header;
        }
        None => {
            let same_run = run.as_ref().filter(|run| run.header.run == header.run);
            let how = match (same_run, header.cause) {
                (Some(run), _) => Begin::Gap(header.inputs.saturating_sub(run.inputs)),
                (None, Cause::Start) => Begin::Start,
                (None, _) => Begin::Middle,
            };
            end(run, watch)?;
            let core = match Resource::from_snapshot(snapshot) {
                Ok(core) => core,
                Err(e) => {
                    let ending = Ending::Unreadable(format!("{name}: {e}"));
                    return watch(Moment::Ends { ending: &ending, core: None });
                }
            };
            watch(Moment::Begins { header: &header, how, core: &core })?;
            let (inputs, last, links) = (header.inputs, header.at, Links::new(header.links.clone()));
            *run = Some(Run { header, links, core, inputs, last, ending: None });
        }
    }
    let run = run.as_mut().expect("set above");
    run.play(name, rest, watch)
}

fn unreadable(name: &str, bad: &BadSegment) -> Ending {
    Ending::Unreadable(match bad {
        BadSegment::Foreign => format!("{name} is no recording"),
        BadSegment::Cut(cut) => format!("{name} has no beginning: {cut}"),
        BadSegment::Version(version) => {
            format!("{name} was recorded by version {version}: use the zea of that version")
        }
    })
}

impl Run {
    /// The segment begins where this run stands.
    fn goes_on_in(&self, header: &Header) -> bool {
        header.run == self.header.run && header.inputs == self.inputs && self.ending.is_none()
    }

    /// The core has to be in the state that the next segment begins with.
    fn compare(&mut self, snapshot: &[u8]) {
        let mut own = Vec::new();
        if self.core.snapshot(snapshot.len(), &mut own).is_err() || own != snapshot {
            let what = format!("after input {} its state is not the one that was recorded", self.inputs);
            self.ending = Some(Ending::Diverged(what));
        }
    }

    /// Replays the frames of a segment.
    fn play(&mut self, name: &str, mut rest: Reader<'_>, watch: Watch<'_>) -> ControlFlow<()> {
        while self.ending.is_none() {
            match frame::next(&mut rest) {
                None => break,
                Some(Ok(body)) => self.play_frame(name, Reader(body), watch)?,
                Some(Err(cut)) => {
                    self.ending = Some(Ending::Cut(format!("{name}, behind input {}: {cut}", self.inputs)))
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Replays the entries of a frame.
    fn play_frame(&mut self, name: &str, mut entries: Reader<'_>, watch: Watch<'_>) -> ControlFlow<()> {
        while self.ending.is_none() && !entries.0.is_empty() {
            // How a packet is encoded depends on the inputs before it.
            match entry::get(&mut entries, &self.links) {
                Ok(Entry::Input { since, input, words }) => self.give(since, input, words, watch)?,
                Ok(Entry::End) => self.ending = Some(Ending::Ended),
                Err(e) => self.ending = Some(Ending::Diverged(format!("{name}, behind input {}: {e}", self.inputs))),
            }
        }
        ControlFlow::Continue(())
    }

    /// Gives one input to the core.
    fn give(&mut self, since: u64, input: Input<'_>, words: VecDeque<u64>, watch: Watch<'_>) -> ControlFlow<()> {
        self.last = Time(self.last.0.saturating_add(since));
        self.inputs += 1;
        let step = Step { nr: self.inputs, at: self.last, wall_ns: self.header.wall_ns(self.last) };
        watch(Moment::Input { step, input: &input })?;
        let (mut actions, core) = (Outbox::new(), &mut self.core);
        let mut rng = Words { words, missing: false };
        let done = catch_unwind(AssertUnwindSafe(|| {
            core.handle(step.at, &mut rng, input, &mut actions);
            core.check_invariants();
        }));
        let missing = rng.missing;
        if missing || !rng.words.is_empty() {
            let which = if missing { "more" } else { "fewer" };
            self.ending = Some(Ending::Diverged(format!("input {} drew {which} random numbers", step.nr)));
            return ControlFlow::Continue(());
        }
        if let Err(panic) = done {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            self.ending = Some(Ending::Panicked(text.unwrap_or("without a message").to_owned()));
            return ControlFlow::Continue(());
        }
        actions.iter().for_each(|action| self.links.follow(action));
        watch(Moment::Done { step, actions: &actions, core: &self.core })
    }
}

/// The random numbers of one input.
struct Words {
    words: VecDeque<u64>,
    missing: bool,
}

impl Rng for Words {
    fn next_u64(&mut self) -> u64 {
        self.words.pop_front().unwrap_or_else(|| {
            self.missing = true;
            // Not one that is asked for again and again.
            0x1234_5678_9abc_def0
        })
    }
}
