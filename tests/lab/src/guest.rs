//! A guest: a booted kernel that runs scripts.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How long a guest may take to boot, on a machine that is busy with other things.
const BOOT: Duration = Duration::from_secs(180);
/// How long a script may take unless it is given another limit.
const SCRIPT: Duration = Duration::from_secs(180);
/// How long a guest that was killed may take to be gone.
const GONE: Duration = Duration::from_secs(20);
/// Lines of the console that are kept for messages.
const KEPT: usize = 60;
/// Bytes of base64 on one line of the console; its terminal takes 4095.
const LINE: usize = 1000;

/// Marks of the guest's first program.
const READY: &str = "@@READY";
const RESULT: &str = "@@RC ";

/// A booted guest, killed when it is dropped.
#[derive(Debug)]
pub struct Guest {
    name: String,
    child: Child,
    console: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    /// The beginning of a line.
    partial: Vec<u8>,
    /// The last lines that were seen.
    seen: VecDeque<String>,
    /// Scripts that were sent.
    scripts: usize,
}

impl Guest {
    /// Starts the command of a machine and waits until it runs scripts.
    pub(crate) fn boot(name: &str, command: &mut Command) -> Result<Guest> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start guest {name}"))?;
        let console = child.stdin.take();
        let output = child.stdout.take().context("a guest has an output")?;
        let mut guest = Guest {
            name: name.to_owned(),
            child,
            console,
            output: read_chunks(output)?,
            partial: Vec::new(),
            seen: VecDeque::new(),
            scripts: 0,
        };
        let ready = guest.read_until(BOOT, |line| line == READY);
        ready.with_context(|| format!("guest {name} does not boot"))?;
        Ok(guest)
    }

    /// Runs a shell script; returns its output.
    ///
    /// # Errors
    /// It fails, takes longer than three minutes, or the guest dies: with the end of what the console showed.
    pub fn run(&mut self, script: &str) -> Result<String> {
        self.run_within(SCRIPT, script)
    }

    /// As [`Guest::run`], with another limit.
    ///
    /// # Errors
    /// As there.
    pub fn run_within(&mut self, limit: Duration, script: &str) -> Result<String> {
        let (output, code) = self.try_run(limit, script)?;
        ensure!(code == 0, "guest {}: exit code {code} of\n{script}\nwhich said\n{output}", self.name);
        Ok(output)
    }

    /// Runs a shell script; returns its output and its exit code.
    ///
    /// # Errors
    /// It takes longer than `limit`, or the guest dies.
    pub fn try_run(&mut self, limit: Duration, script: &str) -> Result<(String, i32)> {
        self.scripts += 1;
        let mut text = String::new();
        for line in base64(script.as_bytes()).as_bytes().chunks(LINE) {
            text.push_str(std::str::from_utf8(line)?);
            text.push('\n');
        }
        text.push_str(&format!("RUN {}\n", self.scripts));
        let console = self.console.as_mut().context("the console was given away")?;
        console.write_all(text.as_bytes()).with_context(|| format!("guest {} is gone", self.name))?;
        let mark = format!("{RESULT}{} ", self.scripts);
        let output = self.read_until(limit, |line| line.starts_with(&mark));
        let (output, end) = output.with_context(|| format!("guest {}:\n{script}", self.name))?;
        let code = end[mark.len()..].trim().parse().with_context(|| format!("no exit code in {end}"))?;
        Ok((output, code))
    }

    /// Runs a script again and again until it succeeds.
    ///
    /// # Errors
    /// It still fails after `limit`.
    pub fn wait(&mut self, limit: Duration, script: &str) -> Result<()> {
        let loops = limit.as_millis() / 100;
        let repeated = format!(
            "n=0; until ( {script}\n) >/tmp/waited 2>&1; do\nn=$((n + 1)); [ $n -lt {loops} ] || {{ cat /tmp/waited /proc/drbd; exit 1; }}\nsleep 0.1; done"
        );
        // Sleeping in a guest takes longer than asked for.
        self.run_within(limit * 3, &repeated).map(drop)
    }

    /// Kills the machine.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        // Its processes are gone when nobody holds the console any more.
        let begin = Instant::now();
        loop {
            match self.next_line(begin, GONE) {
                Ok(line) => self.see(line),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => bail!("guest {} does not die", self.name),
            }
        }
    }

    /// Gives the console to a person until they end it.
    ///
    /// # Errors
    /// The guest is gone.
    pub(crate) fn talk(&mut self) -> Result<()> {
        let mut console = self.console.take().context("the console was given away")?;
        console.write_all(b"SHELL\n")?;
        // Ends with this process: nothing wakes a thread that reads a terminal.
        thread::Builder::new().name("keys".to_owned()).spawn(move || {
            // Until either side closes.
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut console);
        })?;
        let mut screen = std::io::stdout();
        while let Ok(chunk) = self.output.recv() {
            screen.write_all(&chunk)?;
            screen.flush()?;
        }
        Ok(())
    }

    /// The next line of the console, without its end.
    fn next_line(&mut self, begin: Instant, limit: Duration) -> Result<String, RecvTimeoutError> {
        loop {
            if let Some(end) = self.partial.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.partial.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let chunk = self.output.recv_timeout(limit.saturating_sub(begin.elapsed()))?;
            self.partial.extend_from_slice(&chunk);
        }
    }

    fn see(&mut self, line: String) {
        if self.seen.len() == KEPT {
            self.seen.pop_front();
        }
        self.seen.push_back(line);
    }

    /// Reads lines up to one; returns those before it, and it.
    fn read_until(&mut self, limit: Duration, is_end: impl Fn(&str) -> bool) -> Result<(String, String)> {
        let begin = Instant::now();
        let mut text = String::new();
        loop {
            match self.next_line(begin, limit) {
                Ok(line) if is_end(&line) => return Ok((text, line)),
                Ok(line) => {
                    text.push_str(&line);
                    text.push('\n');
                    self.see(line);
                }
                Err(RecvTimeoutError::Timeout) => bail!("nothing after {limit:?}; the console:\n{}", self.last_lines()),
                Err(RecvTimeoutError::Disconnected) => bail!("the guest died; its console:\n{}", self.last_lines()),
            }
        }
    }

    fn last_lines(&self) -> String {
        self.seen.iter().fold(String::new(), |text, line| text + line + "\n")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
    }
}

/// Reads the console on a thread that ends with the guest.
fn read_chunks(mut output: impl Read + Send + 'static) -> Result<Receiver<Vec<u8>>> {
    let (to, chunks) = mpsc::channel();
    thread::Builder::new().name("console".to_owned()).spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(len) = output.read(&mut buffer) {
            if len == 0 || to.send(buffer[..len].to_vec()).is_err() {
                break;
            }
        }
    })?;
    Ok(chunks)
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..chunk.len()].copy_from_slice(chunk);
        let number = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for digit in 0..4 {
            let value = number >> (18 - 6 * digit) & 63;
            text.push(if digit <= chunk.len() { char::from(DIGITS[value as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lab_scripts_travel_as_base64() {
        assert_eq!(base64(b""), "");
        assert_eq!(base64(b"f"), "Zg==");
        assert_eq!(base64(b"fo"), "Zm8=");
        assert_eq!(base64(b"foobar"), "Zm9vYmFy");
    }
}
