//! The attack suite: every program of `tests/attacks` must get the verdict its first line names, in
//! every mode this machine allows, and leave no trace on the host. Ordinary programs that are easily
//! taken for attacks, or harmed by the defence, stand beside them.
//!
//! `# expect:` gives one or more outcomes (`any`: whatever, but decided and not passed by force);
//! `# cases:` the number of cases (1), `# output:` the expected output ("contained"), `# arch:` the
//! only machine type it is for. Inputs are 7, 8, ... No program may print "ESCAPED". `@NUL@` stands for a zero byte.

#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

use codeseq::sandbox::{Case, Judge, Limits, Mode, Options, Verdict, VerdictKind, verdicts};
use serde_json::json;
use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One suite at a time: each looks at the processes that are left on the host.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Attack {
    name: String,
    expect: Vec<String>,
    cases: Vec<Case>,
    code: String,
}

fn attacks() -> Vec<Attack> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attacks");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let attacks: Vec<Attack> = paths.iter().filter_map(|path| read_attack(path)).collect();
    assert!(attacks.len() >= 100);
    attacks
}

fn read_attack(path: &Path) -> Option<Attack> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut header = HashMap::new();
    let mut rest = text.as_str();
    while let Some((line, after)) = rest.split_once('\n')
        && let Some((key, value)) = line.strip_prefix("# ").and_then(|line| line.split_once(": "))
    {
        header.insert(key, value);
        rest = after;
    }
    if header.get("arch").is_some_and(|arch| *arch != std::env::consts::ARCH) {
        return None;
    }
    let output = header.get("output").copied().unwrap_or("contained");
    let count = header.get("cases").map_or(1, |n| n.parse().unwrap());
    Some(Attack {
        name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
        expect: header["expect"].split('|').map(str::to_owned).collect(),
        cases: (0..count)
            .map(|i| Case { input: (7 + i).to_string(), output: output.to_owned() })
            .collect(),
        code: rest.replace("@NUL@", "\0"),
    })
}

fn limits() -> Limits {
    Limits {
        cpu_ms_per_case: 400,
        cpu_ms_per_program: 1_200,
        wall_secs_per_case: 1,
        ..Limits::default()
    }
}

/// What is wrong with the verdict on an attack, if anything.
fn complaint(attack: &Attack, verdict: &Verdict) -> Option<String> {
    let got = match verdict.kind {
        VerdictKind::Pass => "pass".to_owned(),
        VerdictKind::Fail(reason) => reason.to_string(),
        VerdictKind::Infra => "infra".to_owned(),
    };
    let allowed = attack.expect.iter().any(|e| *e == got || (e == "any" && got != "infra"));
    let escaped =
        verdict.cases.iter().any(|c| c.output.as_deref().unwrap_or("").contains("ESCAPED"));
    (!allowed || escaped).then(|| {
        format!("{}: expected {:?}, got {got}: {:?}", attack.name, attack.expect, verdict.failure)
    })
}

fn assert_contained<'a>(attacks: &[Attack], verdicts: impl Iterator<Item = &'a Verdict>) {
    let complaints: Vec<String> =
        attacks.iter().zip(verdicts).filter_map(|(a, v)| complaint(a, v)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// What the host looks like: files that attacks would leave, sockets on which a Python listens, processes by
/// owner.
#[derive(Debug, PartialEq, Eq)]
struct Host {
    files: BTreeSet<PathBuf>,
    listening: BTreeSet<String>,
    python_processes: BTreeSet<String>,
}

impl Host {
    fn look() -> Self {
        let files = ["/tmp", "/dev/shm", "/", "."]
            .iter()
            .flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten())
            .map(|entry| entry.path())
            .filter(|path| path.to_string_lossy().contains("codeseq-attack"))
            .collect();
        let sockets = ["tcp", "tcp6", "udp", "udp6", "raw"];
        let of_pythons = sockets_of_pythons();
        let listening = sockets
            .iter()
            .flat_map(|kind| {
                let table =
                    std::fs::read_to_string(format!("/proc/net/{kind}")).unwrap_or_default();
                let of_line = |line: &str| {
                    let words: Vec<&str> = line.split_whitespace().collect();
                    let is_listening = words[3] == "0A" && of_pythons.contains(words[9]);
                    is_listening.then(|| format!("{kind} {}", words[1]))
                };
                table.lines().skip(1).filter_map(of_line).collect::<Vec<String>>()
            })
            .collect();
        let python_processes = std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter(|entry| descends_from_us(&entry.file_name().to_string_lossy()))
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        Self { files, listening, python_processes }
    }
}

/// Inodes of the sockets that programs of the judge could hold; other work beside this test may open ports.
fn sockets_of_pythons() -> BTreeSet<String> {
    let entries = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
    let is_python = |process: &PathBuf| {
        let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
        name.starts_with("python")
    };
    let processes = entries("/proc".into()).map(|entry| entry.path()).filter(is_python);
    let links = processes.flat_map(|process| entries(process.join("fd")));
    let targets = links.filter_map(|link| std::fs::read_link(link.path()).ok());
    let inode = |target: PathBuf| {
        let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        Some(inode.to_owned())
    };
    targets.filter_map(inode).collect()
}

fn descends_from_us(pid: &str) -> bool {
    let own = std::process::id().to_string();
    let mut pid = pid.to_owned();
    while pid != "0" && pid != "1" {
        let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else {
            return false;
        };
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        pid = parent.unwrap_or("0").trim().to_owned();
        if pid == own {
            return true;
        }
    }
    false
}

fn judge_all(judge: &Judge, attacks: &[Attack]) -> Vec<Verdict> {
    let jobs: Vec<_> = attacks.iter().map(|a| (Some(a.code.clone()), &a.cases[..])).collect();
    verdicts(judge, &jobs)
}

#[test]
fn attacks_are_contained_and_leave_the_host_and_the_servers_as_they_were() {
    let _alone = alone();
    let attacks = attacks();
    let judge = Judge::start(Options { limits: limits(), ..Options::default() }).unwrap();
    let healthy = judge_all(&judge, &attacks[..4]);
    let (servers, before) = (sorted(judge.server_pids()), Host::look());
    let results = judge_all(&judge, &attacks);
    assert_contained(&attacks, results.iter());
    assert_eq!(before, Host::look());
    assert_eq!(servers, sorted(judge.server_pids()), "no server had to be replaced");
    let again = judge_all(&judge, &attacks[..4]);
    let kinds = |verdicts: &[Verdict]| verdicts.iter().map(|v| v.kind).collect::<Vec<_>>();
    assert_eq!(kinds(&healthy), kinds(&again));
}

fn sorted(mut pids: Vec<u32>) -> Vec<u32> {
    pids.sort_unstable();
    pids
}

#[test]
fn attacks_are_contained_without_namespaces() {
    let _alone = alone();
    let attacks = attacks();
    let options = Options { limits: limits(), namespaces: false, ..Options::default() };
    let judge = Judge::start(options).unwrap();
    assert!(judge.layers().namespaces.is_empty());
    assert_contained(&attacks, judge_all(&judge, &attacks).iter());
}

#[test]
fn attacks_are_contained_with_one_process_a_program() {
    let _alone = alone();
    let attacks = attacks();
    let options = Options { limits: limits(), mode: Mode::OneShot, ..Options::default() };
    let judge = Judge::start(options).unwrap();
    assert_contained(&attacks, judge_all(&judge, &attacks).iter());
}

#[test]
fn attacks_are_contained_for_an_unprivileged_user() {
    by_command(
        "an unprivileged user",
        &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
        |layers| layers.contains("namespaces (user") && layers.contains("seccomp"),
    );
}

#[test]
fn attacks_are_contained_where_user_namespaces_are_off() {
    let off = "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all \
               --inh-caps=-all --no-new-privs \"$0\" \"$@\"";
    by_command(
        "user namespaces off",
        &["unshare", "--user", "--map-root-user", "sh", "-c", off],
        |layers| layers.contains("not available: namespaces") && layers.contains("seccomp"),
    );
}

/// Runs the suite through `train judge` behind `prefix`, where this machine can do that.
fn by_command(what: &str, prefix: &[&str], layers_hold: impl Fn(&str) -> bool) {
    if !nix::unistd::getuid().is_root() {
        eprintln!("SKIPPED: {what}: this test must start as root");
        return;
    }
    let _alone = alone();
    let dir = tempfile::Builder::new().prefix("codeseq-").tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    // The build directory may be closed to other users.
    let train = dir.path().join("train");
    std::fs::copy(env!("CARGO_BIN_EXE_train"), &train).unwrap();
    let attacks = attacks();
    let lines = |row: &dyn Fn(&Attack) -> serde_json::Value| {
        attacks.iter().map(|a| row(a).to_string() + "\n").collect::<String>()
    };
    let problems = lines(&|a| json!({"problem_id": a.name, "tests": a.cases}));
    let solutions = lines(&|a| json!({"problem_id": a.name, "code": a.code}));
    std::fs::write(dir.path().join("problems.jsonl"), problems).unwrap();
    std::fs::write(dir.path().join("solutions.jsonl"), solutions).unwrap();
    let limits = limits();
    let output = Command::new(prefix[0])
        .args(&prefix[1..])
        .arg(&train)
        .args(["judge", "--problems", "problems.jsonl", "--solutions", "solutions.jsonl"])
        .args(["--out", "out.jsonl", "--cpu-ms-per-case", &limits.cpu_ms_per_case.to_string()])
        .args(["--cpu-ms-per-program", &limits.cpu_ms_per_program.to_string()])
        .args(["--wall-secs-per-case", &limits.wall_secs_per_case.to_string()])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() && log.contains("unshare") {
        eprintln!("SKIPPED: {what}: {log}");
        return;
    }
    assert!(output.status.success(), "{log}");
    assert!(layers_hold(&log), "{log}");
    let text = std::fs::read_to_string(dir.path().join("out.jsonl")).unwrap();
    let verdicts: Vec<Verdict> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(verdicts.len(), attacks.len());
    assert_contained(&attacks, verdicts.iter());
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 4, "{left:?}");
    assert!(left.iter().all(|entry| entry.metadata().unwrap().mode() & 0o170_000 == 0o100_000));
}
