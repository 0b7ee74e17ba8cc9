//! Runs one program on a server: starts a child, hands it one case after the other, and watches its clocks.
//!
//! The child gets the input of a case when its turn comes, and never more than one. CPU time decides; it is
//! read from the kernel while the child waits for its next case. The limit on wall time is only for
//! programs that sleep. It counts only time in which no thread of the child ran or could have run, so that
//! load changes no verdict. Nothing here waits for a child without watching both clocks, since the child
//! may stop reading and writing at any time. If a case ends the child, or leaves much memory behind, the
//! next case gets a new child.

use super::channel::Channel;
use super::frame::{Frame, Report};
use super::options::Limits;
use super::outcome::{CaseOutcome, Ending, Outcome, ProgramError, Reason};
use super::reply::Exit;
use super::server::Server;
use super::{residue, sys};
use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// If a case takes this many times the wall limit, with waits for cores, the machine is at fault.
const OVERLOAD: u32 = 40;
/// The shortest sleep between two looks at a clock.
const TICK: Duration = Duration::from_millis(1);
/// The longest sleep: a case that lasts is examined this often for whether it sleeps.
const LOOK: Duration = Duration::from_millis(20);
/// A child that used this part of the time since the last look may have waited for a core the rest of it.
const BUSIEST: u32 = 20;
/// A child whose address space grew by this part of the memory limit gets no further case.
const MUCH_MEMORY: u64 = 16;

/// Runs `code` on all inputs. An error is the judge's failure, and the server is then unusable.
pub(crate) fn run_program(
    server: &mut Server,
    code: &str,
    inputs: &[String],
    isolate_cases: bool,
) -> Result<Outcome> {
    let mut run = Run {
        limits: server.limits.clone(),
        cases: Vec::new(),
        spent: Duration::ZERO,
        near: false,
    };
    // Python does the same with a file.
    let code = code.strip_prefix('\u{feff}').unwrap_or(code);
    let isolate_cases = isolate_cases || residue::may_leave(code);
    while run.cases.len() < inputs.len() {
        let rest = &inputs[run.cases.len()..];
        let turn = if isolate_cases { &rest[..1] } else { rest };
        let ended = run.child(server, code, turn)?;
        if ended == Stop::Program {
            let last = run.cases.last().context("a child ran no case")?.clone();
            let last = CaseOutcome { output: Vec::new(), cpu_ms: 0.0, ..last };
            run.cases.resize(inputs.len(), last);
        }
    }
    Ok(Outcome { cases: run.cases, cpu_ms: millis(run.spent), near_limit: run.near })
}

/// Why a child gets no more cases.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// There are no more, or the child ended. Others may run in a new child.
    Child,
    /// The program does not compile, sleeps, or has used up its time: the other cases fail alike.
    Program,
}

/// What ended a case.
enum Event {
    Frame(Frame),
    /// The bytes from the child are no frame.
    Garbage,
    Exit(Exit),
    Limit(Reason),
}

struct Run {
    limits: Limits,
    cases: Vec<CaseOutcome>,
    /// The CPU time of earlier children and of this child's finished cases.
    spent: Duration,
    near: bool,
}

impl Run {
    /// Runs cases in a new child until it ends or none are left.
    fn child(&mut self, server: &mut Server, code: &str, inputs: &[String]) -> Result<Stop> {
        let kills_before = server.memory_kills();
        let (child, _) = server.start_child()?;
        let mut channel = Channel::new(child.channel)?;
        channel.send(&(code.len() as u32).to_le_bytes());
        channel.send(code.as_bytes());
        let much_memory =
            server.fresh_space(child.pid) + (self.limits.memory_mb << 20) / MUCH_MEMORY;
        let mut clock = sys::cpu_time(child.pid).unwrap_or_default();
        let mut stop = Stop::Child;
        let mut exit = None;
        for (turn, input) in inputs.iter().enumerate() {
            server.output.set_len(0)?;
            server.input.set_len(0)?;
            server.input.write_all_at(input.as_bytes(), 0)?;
            if !self.limits.raw_input && !input.is_empty() && !input.ends_with('\n') {
                server.input.write_all_at(b"\n", input.len() as u64)?;
            }
            channel.send(b"R");
            let event = self.watch(server, child.pid, &mut channel, clock)?;
            let now = match &event {
                Event::Exit(exit) => exit.cpu,
                _ => sys::cpu_time(child.pid).unwrap_or(clock),
            };
            let used = now.saturating_sub(clock);
            clock = now;
            self.spent += used;
            let ended = !matches!(event, Event::Frame(_));
            // Other cases would fail alike: the program does not compile, or it sleeps.
            let hopeless =
                matches!(event, Event::Frame(Frame::Syntax(_)) | Event::Limit(Reason::WallTime));
            if let Event::Exit(e) = &event {
                exit = Some(*e);
            }
            let oom = matches!(event, Event::Exit(_)) && server.memory_kills() > kills_before;
            let mut case = self.judge_case(server, event, used, oom)?;
            case.cpu_ms = millis(used);
            self.cases.push(case);
            if self.spent >= Duration::from_millis(self.limits.cpu_ms_per_program)
                && turn + 1 < inputs.len()
            {
                let ending = Ending::Failed(Reason::CpuTime);
                self.cases.push(CaseOutcome::failed(ending, None, &self.program_cpu_text()));
                stop = Stop::Program;
                break;
            }
            if hopeless {
                stop = Stop::Program;
            }
            let is_swollen = || sys::address_space(child.pid).is_some_and(|now| now > much_memory);
            if ended || hopeless || (turn + 1 < inputs.len() && is_swollen()) {
                break;
            }
        }
        let exit = match exit {
            Some(exit) => exit,
            None => {
                sys::kill(child.pidfd.as_fd());
                server.exit()?
            }
        };
        let memory_kb = self.limits.memory_mb << 10;
        self.near |= self.spent * 2 >= Duration::from_millis(self.limits.cpu_ms_per_program)
            || exit.peak_kb * 2 >= memory_kb;
        Ok(stop)
    }

    /// Waits for the end of a case; `start` is the CPU clock at its start.
    fn watch(
        &mut self,
        server: &mut Server,
        pid: libc::pid_t,
        channel: &mut Channel,
        start: Duration,
    ) -> Result<Event> {
        let case_limit = Duration::from_millis(self.limits.cpu_ms_per_case);
        let program_left =
            Duration::from_millis(self.limits.cpu_ms_per_program).saturating_sub(self.spent);
        let cpu_limit = case_limit.min(program_left);
        let wall_limit = Duration::from_secs(self.limits.wall_secs_per_case);
        let began = Instant::now();
        let mut slept = Duration::ZERO;
        let (mut looked, mut cpu_then) = (began, Duration::ZERO);
        let mut pause = cpu_limit.min(LOOK);
        loop {
            match channel.next() {
                // The child answered what it has not read yet.
                Ok(Some(_)) if channel.has_unsent() => return Ok(Event::Garbage),
                Ok(Some(frame)) => return Ok(Event::Frame(frame)),
                Ok(None) => {}
                Err(_) => return Ok(Event::Garbage),
            }
            let (is_ready, ended) = wait_for(server, channel, pause.max(TICK))?;
            if is_ready && channel.advance() {
                continue;
            }
            if ended {
                return Ok(Event::Exit(server.exit()?));
            }
            let cpu = sys::cpu_time(pid).map_or(Duration::ZERO, |now| now.saturating_sub(start));
            if cpu >= cpu_limit {
                return Ok(Event::Limit(Reason::CpuTime));
            }
            let since = looked.elapsed();
            if since >= LOOK {
                if !sys::wants_core(pid) && (cpu - cpu_then) * BUSIEST < since {
                    // Beyond that, it was this process that slept.
                    slept += since.min(LOOK * 2);
                }
                (looked, cpu_then) = (Instant::now(), cpu);
            }
            self.near |= slept * 2 >= wall_limit;
            if slept >= wall_limit {
                return Ok(Event::Limit(Reason::WallTime));
            }
            if began.elapsed() > wall_limit * OVERLOAD {
                bail!(
                    "the machine is overloaded: a case did not end in {:?}",
                    wall_limit * OVERLOAD
                );
            }
            pause = (cpu_limit - cpu).min(LOOK);
        }
    }

    /// Turns what happened into the outcome of the case.
    fn judge_case(
        &mut self,
        server: &Server,
        event: Event,
        used: Duration,
        oom: bool,
    ) -> Result<CaseOutcome> {
        let limit = Duration::from_millis(self.limits.cpu_ms_per_case);
        self.near |= used * 2 >= limit;
        let printed = server.output.metadata()?.len();
        let cap = self.limits.output_bytes as u64;
        self.near |= printed * 2 >= cap;
        let mut output = vec![0; printed.min(cap) as usize];
        server.output.read_exact_at(&mut output, 0).context("reading a case's output")?;
        let memory = format!("more than {} MB of memory", self.limits.memory_mb);
        let (ending, error) = match event {
            _ if oom => {
                fail(Reason::Memory, None, &format!("{memory}: ended by the control group"))
            }
            Event::Limit(reason @ Reason::WallTime) => {
                let text = format!("slept for {} s", self.limits.wall_secs_per_case);
                fail(reason, None, &text)
            }
            _ if used >= limit => {
                let text = format!("more than {} ms of CPU time", self.limits.cpu_ms_per_case);
                fail(Reason::CpuTime, None, &text)
            }
            Event::Limit(reason) => fail(reason, None, &self.program_cpu_text()),
            _ if printed > cap => {
                fail(Reason::OutputLimit, None, &format!("more than {cap} bytes of output"))
            }
            Event::Frame(Frame::Done) => (Ending::Finished, None),
            Event::Frame(Frame::Syntax(report)) => explain(Reason::SyntaxError, &report),
            Event::Frame(Frame::Memory(report)) => {
                fail(Reason::Memory, report.line, &format!("{} ({memory})", report.text()))
            }
            Event::Frame(Frame::Error(report)) => explain(reason_of(&report), &report),
            Event::Frame(Frame::Hello(_)) | Event::Garbage => {
                fail(Reason::Forbidden, None, "the program wrote to the judge's channel")
            }
            Event::Exit(exit) => return self.by_exit(exit, output),
        };
        Ok(CaseOutcome { ending, output, error, cpu_ms: 0.0 })
    }

    fn program_cpu_text(&self) -> String {
        format!("more than {} ms of CPU time in all cases together", self.limits.cpu_ms_per_program)
    }

    /// Returns the outcome of a case whose child ended without a message: its status says why.
    fn by_exit(&self, exit: Exit, output: Vec<u8>) -> Result<CaseOutcome> {
        use nix::libc::{WEXITSTATUS, WIFEXITED, WTERMSIG};
        let (ending, error) = if WIFEXITED(exit.status) {
            match WEXITSTATUS(exit.status) {
                0 => (Ending::Finished, None),
                code => fail(Reason::RuntimeError, None, &format!("exited with code {code}")),
            }
        } else {
            match WTERMSIG(exit.status) {
                libc::SIGSYS => fail(Reason::Forbidden, None, "ended for a forbidden system call"),
                libc::SIGXCPU => {
                    let text = format!("more than {} s of CPU time", self.limits.cpu_secs());
                    fail(Reason::CpuTime, None, &text)
                }
                // Nothing in the sandbox can send this signal, and the limits were not reached.
                libc::SIGKILL => bail!("something outside the judge ended a child"),
                signal => {
                    let name = nix::sys::signal::Signal::try_from(signal)
                        .map_or_else(|_| format!("signal {signal}"), |s| s.as_str().to_owned());
                    fail(Reason::Killed, None, &format!("ended by {name}"))
                }
            }
        };
        Ok(CaseOutcome { ending, output, error, cpu_ms: 0.0 })
    }
}

/// Waits until there is something to do on the channel, or the server reports the child's end.
fn wait_for(server: &Server, channel: &Channel, wait: Duration) -> Result<(bool, bool)> {
    let mut fds = vec![PollFd::new(server.control.as_fd(), PollFlags::POLLIN)];
    fds.extend(channel.poll_fd());
    match ppoll(&mut fds, Some(TimeSpec::from(wait)), None) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    let woken = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
    Ok((fds.get(1).is_some_and(woken), woken(&fds[0])))
}

/// Returns the reason of a failure. What the sandbox refuses reaches the program as one of these
/// exceptions.
fn reason_of(report: &Report) -> Reason {
    let refused_call = report.message.starts_with("[Errno 1] ");
    let refused_import =
        report.kind == "ModuleNotFoundError" && report.message.contains("is refused in the judge");
    let refused_locale = report.kind == "Error" && report.message == "unsupported locale setting";
    if refused_call || refused_import || refused_locale {
        Reason::Forbidden
    } else if report.kind == "OSError" && report.message.starts_with("[Errno 27]") {
        Reason::OutputLimit
    } else {
        Reason::RuntimeError
    }
}

fn fail(reason: Reason, line: Option<u32>, text: &str) -> (Ending, Option<ProgramError>) {
    (Ending::Failed(reason), Some(ProgramError { line, message: text.to_owned() }))
}

fn explain(reason: Reason, report: &Report) -> (Ending, Option<ProgramError>) {
    fail(reason, report.line, &report.text())
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
