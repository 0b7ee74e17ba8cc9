//! What the judge promises when things go wrong around it: servers killed at any moment, a busy
//! machine, Pythons that are too old or lack ctypes, long runs.

#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

mod judge_support;

use codeseq::base::error::exit_code;
use codeseq::sandbox::{Case, Judge, Mode, Options, Reason, VerdictKind, verdicts};
use judge_support::{Solved, mix};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn jobs(solved: &[Solved]) -> Vec<(Option<String>, &[Case])> {
    solved.iter().map(|s| (Some(s.code.clone()), &s.cases[..])).collect()
}

fn start(change: impl FnOnce(&mut Options)) -> Judge {
    let mut options = Options { workers: 2, ..Options::default() };
    change(&mut options);
    Judge::start(options).unwrap()
}

fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    text.unwrap_or_default().split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Kills launchers, servers and children in turn while a batch runs, one for every few programs.
fn survives_kills(mode: Mode, programs: usize, programs_a_kill: usize) {
    let judge = start(|options| options.mode = mode);
    let solved = mix(programs);
    let jobs = jobs(&solved);
    let finished = AtomicUsize::new(0);
    let (kinds, kills) = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let (mut kills, mut at) = (0, 0);
            while finished.load(Ordering::Relaxed) < programs {
                std::thread::sleep(Duration::from_micros(500 + kills * 977 % 4_001));
                let launchers = judge.server_pids();
                if finished.load(Ordering::Relaxed) < at || launchers.is_empty() {
                    continue;
                }
                let mut victim = launchers[kills as usize % launchers.len()];
                for _ in 0..kills / 2 % 3 {
                    victim = children(victim).first().copied().unwrap_or(victim);
                }
                if kill(Pid::from_raw(victim as i32), Signal::SIGKILL).is_ok() {
                    kills += 1;
                    at = finished.load(Ordering::Relaxed) + programs_a_kill;
                }
            }
            kills
        });
        let kinds: Vec<_> = jobs
            .chunks(8)
            .flat_map(|chunk| {
                let verdicts = verdicts(&judge, chunk);
                finished.fetch_add(chunk.len(), Ordering::Relaxed);
                verdicts.into_iter().map(|verdict| verdict.kind)
            })
            .collect();
        (kinds, killer.join().unwrap())
    });
    assert!(kills >= 3, "only {kills} kills");
    assert_eq!(kinds.len(), programs);
    // Should two kills hit both attempts at a program, that is the judge's failure and said so, but
    // never a wrong answer.
    assert!(!kinds.iter().any(|kind| matches!(kind, VerdictKind::Fail(_))), "{kinds:?}");
    let infra = kinds.iter().filter(|kind| **kind == VerdictKind::Infra).count();
    assert!(infra * 20 <= programs, "{infra} of {programs} undecided after {kills} kills");
}

#[test]
fn killed_servers_lose_no_verdict() {
    survives_kills(Mode::ForkServer, 400, 16);
}

#[test]
fn killed_one_shot_launchers_lose_no_verdict() {
    survives_kills(Mode::OneShot, 40, 8);
}

#[test]
fn a_judge_that_goes_leaves_no_process_behind() {
    let judge = start(|_| {});
    let solved = mix(8);
    verdicts(&judge, &jobs(&solved));
    let mut all = judge.server_pids();
    let servers: Vec<u32> = all.iter().flat_map(|&pid| children(pid)).collect();
    all.extend(servers);
    assert_eq!(all.len(), 4);
    drop(judge);
    // On a busy machine a process that was killed takes a while to go.
    let is_there = |pid: &&u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !status.is_empty() && !status.contains(") Z ")
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while all.iter().any(|pid| is_there(&pid)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(all.iter().filter(is_there).count(), 0, "{all:?}");
}

#[test]
fn verdicts_do_not_depend_on_load() {
    let solved = mix(64);
    let mut jobs = jobs(&solved);
    let spin = Case { input: "1".into(), output: "1".into() };
    let spin = [spin];
    jobs.push((Some("while True:\n    pass".into()), &spin));
    jobs.push((Some("sum(range(10 ** 7))\nprint(1)".into()), &spin));
    let judge = start(|options| options.limits.cpu_ms_per_case = 1_500);
    let idle: Vec<_> = verdicts(&judge, &jobs).iter().map(|v| v.kind).collect();
    let stop = AtomicBool::new(false);
    let busy: Vec<_> = std::thread::scope(|scope| {
        for _ in 0..4 * std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let kinds = verdicts(&judge, &jobs).iter().map(|v| v.kind).collect();
        stop.store(true, Ordering::Relaxed);
        kinds
    });
    assert_eq!(idle, busy);
    assert_eq!(idle[64], VerdictKind::Fail(Reason::CpuTime));
}

/// Memory, descriptors and processes before and after many programs. `CODESEQ_SOAK` sets how many.
#[test]
fn many_programs_leave_memory_processes_and_descriptors_where_they_were() {
    let count = std::env::var("CODESEQ_SOAK").map_or(600, |n| n.parse().unwrap());
    let judge = start(|_| {});
    let solved = mix(200);
    verdicts(&judge, &jobs(&solved));
    let footprint = || {
        let memory = |pid: u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<i64>().unwrap()
        };
        let servers: Vec<u32> = judge.server_pids().into_iter().flat_map(children).collect();
        let kb: Vec<i64> = servers.iter().map(|&pid| memory(pid)).collect();
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
        (servers, descriptors, kb.iter().sum::<i64>(), memory(std::process::id()))
    };
    let before = footprint();
    for _ in 0..count / solved.len() {
        verdicts(&judge, &jobs(&solved));
    }
    let after = footprint();
    assert_eq!(before.0, after.0, "the same servers");
    // Other tests of this process open files meanwhile.
    assert!(before.1.abs_diff(after.1) < 64, "descriptors: {} then {}", before.1, after.1);
    assert!((after.2 - before.2).abs() < 4_000, "servers: {} kB then {} kB", before.2, after.2);
    eprintln!("{count} programs: {before:?} then {after:?}");
}

/// Other Pythons on this machine, such as a version manager's.
fn pythons() -> Vec<(u32, PathBuf)> {
    let mut found = Vec::new();
    for minor in 6..=15 {
        let name = format!("python3.{minor}");
        let mut places: Vec<PathBuf> = std::env::var_os("PATH")
            .iter()
            .flat_map(|path| std::env::split_paths(path).collect::<Vec<_>>())
            .collect();
        let root = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
        let root = root.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pyenv")));
        for version in root.iter().flat_map(|r| std::fs::read_dir(r.join("versions"))).flatten() {
            places.insert(0, version.unwrap().path().join("bin"));
        }
        let works = |path: &PathBuf| {
            let arguments =
                ["-c", "import sys; sys.exit(sys.version_info[:2] != (3, int(sys.argv[1])))"];
            let output = Command::new(path).args(arguments).arg(minor.to_string()).output();
            output.is_ok_and(|output| output.status.success())
        };
        found
            .extend(places.iter().map(|dir| dir.join(&name)).find(works).map(|path| (minor, path)));
    }
    found
}

#[test]
fn every_supported_python_here_judges_alike_and_older_ones_are_refused() {
    let solved = mix(16);
    let pythons = pythons();
    assert!(pythons.iter().any(|(minor, _)| *minor >= 9), "no Python to judge with was found");
    for (minor, path) in pythons {
        let result = Judge::start(Options { python: Some(path.clone()), ..Options::default() });
        if minor < 9 {
            let error = result.err().unwrap();
            assert_eq!(exit_code(&error), 2);
            assert!(error.to_string().contains("lowest supported version is 3.9"), "{error}");
            continue;
        }
        let judge = result.unwrap();
        assert_eq!(judge.layers().mode, "fork_server");
        assert!(judge.layers().python.starts_with(&format!("3.{minor}.")));
        for verdict in verdicts(&judge, &jobs(&solved)) {
            assert_eq!(verdict.kind, VerdictKind::Pass, "{}: {verdict:?}", path.display());
        }
        eprintln!("judged with Python 3.{minor}");
    }
}

#[test]
fn a_missing_python_is_the_users_mistake() {
    let missing = Options { python: Some("/no/such/python".into()), ..Options::default() };
    let error = Judge::start(missing).err().unwrap();
    assert_eq!(exit_code(&error), 2);
    assert!(error.to_string().contains("/no/such/python"), "{error}");
}

#[test]
fn a_python_without_ctypes_judges_one_process_a_program() {
    let dir = tempfile::Builder::new().prefix("codeseq-").tempdir().unwrap();
    let Some(python) = python_without_ctypes(dir.path()) else {
        eprintln!("SKIPPED: no Python here can be copied without ctypes");
        return;
    };
    let judge = Judge::start(Options { python: Some(python), ..Options::default() }).unwrap();
    assert_eq!(judge.layers().mode, "one_shot");
    assert!(judge.layers().seccomp || judge.layers().landlock_abi > 0);
    let solved = mix(16);
    for verdict in verdicts(&judge, &jobs(&solved)) {
        assert_eq!(verdict.kind, VerdictKind::Pass, "{verdict:?}");
    }
    let cases = [Case { input: "1".into(), output: "contained".into() }];
    let attacks = [
        "import os\nos.fork()",
        "import os\nos.kill(1, 9)",
        "open('/tmp/codeseq-attack', 'w')",
        "open('/etc/passwd')",
        "import _socket\n_socket.socket()",
        "import os\nos.execv('/bin/sh', ['sh'])",
    ];
    let attacks: Vec<_> =
        attacks.iter().map(|code| (Some((*code).to_owned()), &cases[..])).collect();
    for (verdict, attack) in verdicts(&judge, &attacks).iter().zip(&attacks) {
        assert!(matches!(verdict.kind, VerdictKind::Fail(_)), "{attack:?}: {verdict:?}");
    }
    assert!(!Path::new("/tmp/codeseq-attack").exists());
}

/// A copy of the system's Python in `dir`, whose ctypes is gone.
fn python_without_ctypes(dir: &Path) -> Option<PathBuf> {
    let script = r"
import os, shutil, sys, sysconfig
base = os.path.realpath(getattr(sys, '_base_executable', sys.executable))
library = sysconfig.get_path('stdlib')
name = 'python%d.%d' % sys.version_info[:2]
os.makedirs(sys.argv[1] + '/bin')
shutil.copy(base, sys.argv[1] + '/bin/' + name)
skip = shutil.ignore_patterns('test', 'tests', '__pycache__', 'site-packages', 'dist-packages', 'config-*', 'idlelib', 'ctypes', '_ctypes*')
shutil.copytree(library, sys.argv[1] + '/lib/' + name, ignore=skip, symlinks=False)
print(sys.argv[1] + '/bin/' + name)
";
    let output = Command::new("python3").args(["-c", script]).arg(dir).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    let check = Command::new(&path).args(["-S", "-c", "import json"]).output().ok()?;
    check.status.success().then_some(path)
}
