//! A program of the user's that is written to and read from without waiting for it.
//!
//! Contract: what is told is taken at once and written by a thread, which the program may keep waiting; its
//! lines are read by another, [`LONGEST_LINE`] bytes of each at most, and [`LINES_AHEAD`] lines before
//! somebody takes them. The program leads a process group, which is killed as a whole when this is dropped;
//! the kernel kills the program itself should this process be killed. Left out: what leaves the group.

use crate::base::error::{Interrupted, usage};
use crate::base::interrupt;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{AccessFlags, Pid, access, getppid};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::{Duration, Instant};

/// A line has at most this many bytes, its end included; a longer one comes in pieces, the first of this
/// length.
pub(crate) const LONGEST_LINE: usize = 1 << 20;
/// At most this many lines are read before somebody takes them.
const LINES_AHEAD: usize = 16;
/// The process looks this often at whether the user wants to stop.
const POLL: Duration = Duration::from_millis(100);

/// Refuses a command whose program does not exist, or which names a script that does not exist.
pub(crate) fn check(command: &[String]) -> Result<()> {
    let [program, arguments @ ..] = command else {
        return Err(usage("no program is named"));
    };
    let can_run = |file: &Path| file.is_file() && access(file, AccessFlags::X_OK).is_ok();
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let is_there = match program.contains('/') {
        true => can_run(Path::new(program)),
        false => std::env::split_paths(&dirs).any(|dir| can_run(&dir.join(program))),
    };
    if !is_there {
        return Err(usage(format!("cannot start {program}: there is no such program")));
    }
    let is_script = |word: &&String| word.ends_with(".py") || word.ends_with(".sh");
    match arguments.iter().filter(is_script).find(|word| !Path::new(word).exists()) {
        Some(script) => Err(usage(format!("{script}: no such file"))),
        None => Ok(()),
    }
}

/// What came from the program within the allowed time.
#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    Line(Vec<u8>),
    Nothing,
    /// The program writes nothing more.
    End,
}

/// The program while it runs.
pub(crate) struct LineProcess {
    child: Child,
    to_write: Sender<Vec<u8>>,
    written: Receiver<()>,
    lines: Receiver<Vec<u8>>,
}

impl LineProcess {
    /// Starts a program with its arguments in the current directory; it shares standard error.
    pub(crate) fn start(command: &[String]) -> Result<Self> {
        let [program, arguments @ ..] = command else {
            return Err(usage("no program is named"));
        };
        let own = Pid::this();
        let die_with_this = move || -> std::io::Result<()> {
            set_pdeathsig(Signal::SIGKILL)?;
            // This process may have been killed before that.
            if getppid() == own { Ok(()) } else { Err(Errno::ESRCH.into()) }
        };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        // Ctrl-C is for the run, which then ends it.
        command.process_group(0);
        // SAFETY: between fork and exec it only makes two system calls with numbers.
        unsafe { command.pre_exec(die_with_this) };
        let mut child =
            command.spawn().map_err(|e| usage(format!("cannot start {program}: {e}")))?;
        let input = child.stdin.take().context("the program has no standard input")?;
        let output = child.stdout.take().context("the program has no standard output")?;
        let (to_write, told) = mpsc::channel();
        let (confirm, written) = mpsc::channel();
        let (heard, lines) = mpsc::sync_channel(LINES_AHEAD);
        std::thread::spawn(move || write(input, &told, &confirm));
        std::thread::spawn(move || read(output, &heard));
        Ok(Self { child, to_write, written, lines })
    }

    /// Has `text` written, after all that was told before.
    pub(crate) fn tell(&self, text: Vec<u8>) {
        // A program may close its standard input and answer all the same.
        let _ = self.to_write.send(text);
    }

    /// Returns whether what [`LineProcess::tell`] was given once is written within `patience`, or never will be.
    pub(crate) fn is_written(&self, patience: Duration) -> Result<bool> {
        Ok(!matches!(receive(&self.written, patience)?, Err(RecvTimeoutError::Timeout)))
    }

    /// Returns the next line, if there is one within `patience`.
    pub(crate) fn line(&self, patience: Duration) -> Result<Heard> {
        Ok(match receive(&self.lines, patience)? {
            Ok(line) => Heard::Line(line),
            Err(RecvTimeoutError::Timeout) => Heard::Nothing,
            Err(RecvTimeoutError::Disconnected) => Heard::End,
        })
    }

    /// Returns a line, if one has arrived already.
    pub(crate) fn waiting_line(&self) -> Option<Vec<u8>> {
        self.lines.try_recv().ok()
    }
}

impl Drop for LineProcess {
    fn drop(&mut self) {
        // Not waited for yet, it still has its number.
        if let Ok(group) = i32::try_from(self.child.id()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

/// Waits until something comes, `patience` is over, or the user wants to stop, which is an error.
fn receive<T>(from: &Receiver<T>, patience: Duration) -> Result<Result<T, RecvTimeoutError>> {
    let started = Instant::now();
    loop {
        if interrupt::requested() {
            return Err(Interrupted.into());
        }
        let left = patience.saturating_sub(started.elapsed());
        match from.recv_timeout(POLL.min(left)) {
            Err(RecvTimeoutError::Timeout) if !left.is_zero() => {}
            found => return Ok(found),
        }
    }
}

/// Writes until there is nothing more to tell, or nobody reads it.
fn write(mut input: ChildStdin, told: &Receiver<Vec<u8>>, confirm: &Sender<()>) {
    for text in told {
        if input.write_all(&text).is_err() || confirm.send(()).is_err() {
            break;
        }
    }
}

/// Reads until the program writes nothing more, or nobody takes its lines.
fn read(output: ChildStdout, heard: &SyncSender<Vec<u8>>) {
    let mut output = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        let found = output.by_ref().take(LONGEST_LINE as u64).read_until(b'\n', &mut line);
        if !matches!(found, Ok(1..)) || heard.send(line).is_err() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(script: &str) -> LineProcess {
        LineProcess::start(&["sh", "-c", script].map(str::to_owned)).unwrap()
    }

    #[test]
    fn a_line_without_end_comes_in_pieces_and_is_not_read_ahead() {
        let process = started("exec tr '\\0' x < /dev/zero");
        let line = process.line(Duration::from_secs(60)).unwrap();
        assert_eq!(line, Heard::Line(vec![b'x'; LONGEST_LINE]));
    }

    #[test]
    fn a_program_or_a_script_that_is_not_there_is_named_before_it_is_started() {
        let check =
            |words: &[&str]| check(&words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>());
        check(&["sh", "-c", "true"]).unwrap();
        check(&["/bin/sh"]).unwrap();
        for (words, named) in [
            (&["no-such-program"][..], "no-such-program"),
            (&["./gone/reward"], "./gone/reward"),
            (&["sh", "-e", "gone.sh"], "gone.sh: no such file"),
        ] {
            let error = check(words).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn its_children_end_with_it() {
        let process = started("sleep 1000 & echo $!; wait");
        let Heard::Line(line) = process.line(Duration::from_secs(60)).unwrap() else {
            panic!("it says the number of its child");
        };
        let child = String::from_utf8(line).unwrap().trim().to_owned();
        let is_running = || {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat"));
            stat.is_ok_and(|stat| !stat.contains(") Z"))
        };
        assert!(is_running());
        drop(process);
        let started = Instant::now();
        while is_running() && started.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!is_running());
    }

    #[test]
    fn telling_waits_for_nobody() {
        let process = started("exec sleep 1000");
        process.tell(vec![b'x'; 1 << 20]);
        assert!(!process.is_written(Duration::from_millis(50)).unwrap());
        let process = started("exec true");
        process.tell(vec![b'x'; 1 << 20]);
        assert!(process.is_written(Duration::from_secs(60)).unwrap(), "nobody will read it");
    }
}
