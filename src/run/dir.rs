//! The run directory: what is in it, and which process owns it.
//!
//! ```text
//! config.toml plan.json env.json   resolved config, derived plan, machine and command line
//! inputs.json                      hashes of the inputs that a resumed run reads again
//! metrics.jsonl events.out.*       see `run::metrics`
//! samples/step-000100.jsonl        what was generated in step 100 and how it was rewarded
//! reference-0123456789abcdef.json  log-probabilities of answers under a reference model (DPO)
//! checkpoints/step-000100/         Hugging Face layout plus `state/`
//! logs/attempt-1.log               one for each start
//! run.lock                         held while a process works here
//! ```
//!
//! Two processes never work in one run directory, and nothing is replaced unless the user asks for it. A
//! directory whose run stopped before its first step counts as unused: the process removes it, and one that
//! a killed process left may be used. A run is resumed only with the same configuration; other settings are
//! another run ([`super::compatibility`]).

use super::checkpoints::{Checkpoints, step_name};
use super::compatibility::{RunConfig, refuse_other_config};
use super::environment::Environment;
use super::inputs::{self, Input};
use super::{SAMPLES, metrics};
use crate::base::error::usage;
use crate::base::fs::{children, write_atomic, write_json};
use crate::base::log;
use crate::config::Resolved;
use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;
use std::cell::Cell;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

const LOCK: &str = "run.lock";
const CONFIG: &str = "config.toml";
/// Holds what `--overwrite` replaces, until the new run has ended a step.
const REPLACED: &str = "codeseq-replaced";

/// What to do with a run that is already in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Refuse to start.
    Refuse,
    /// Replace it by a new run, once that has ended a step.
    Overwrite,
    /// Continue from its latest checkpoint.
    Resume,
}

/// An ending is the last sentence of the error that ends a run: it says what of the run is saved.
#[derive(Debug)]
pub(crate) struct Ending(pub(crate) String);

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Ending {}

impl Ending {
    /// Returns the ending of a run whose last checkpoint is that of `step`.
    pub(crate) fn saved_at(step: u64) -> Self {
        Self(format!("step {step} is saved, and the same command with --resume goes on from it"))
    }
}

/// A run directory. This process owns it until the value is dropped.
pub struct RunDir {
    path: PathBuf,
    /// The directories that were created for the run, innermost first.
    made: Vec<PathBuf>,
    /// The number of steps from one checkpoint to the next.
    save_every: u64,
    /// Whether this process has begun to make steps.
    is_going: Cell<bool>,
    _lock: File,
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if is_used(&self.path) {
            return;
        }
        // A directory that cannot be removed counts as unused all the same.
        if put_back(&self.path).is_ok_and(|was_replaced| !was_replaced) && clear(&self.path).is_ok()
        {
            let _ = fs::remove_file(self.path.join(LOCK));
            let _ = self.made.iter().try_for_each(fs::remove_dir);
        }
    }
}

impl RunDir {
    /// Takes possession of `path` for the run that `config` describes. A run that is overwritten is
    /// restored if the new run ends before its first step.
    pub fn create<C: RunConfig>(
        path: &Path,
        config: &Resolved<C>,
        existing: Existing,
    ) -> Result<Self> {
        let name = path.display();
        if path.join(REPLACED).exists() && !is_used(path) {
            // The process that was about to overwrite it was killed.
            let _lock = lock(path)?;
            put_back(path)?;
        }
        match (contents(path)?, existing) {
            (Contents::Foreign, _) => {
                return Err(usage(format!(
                    "{name} is not empty and not a run directory; choose another with --out"
                )));
            }
            (Contents::Run, Existing::Refuse) => {
                return Err(usage(format!(
                    "{name} already holds a run; continue it with --resume, replace it with \
                     --overwrite, or choose another with --out"
                )));
            }
            (Contents::Nothing, Existing::Resume) if !path.join(CONFIG).exists() => {
                return Err(usage(format!("{name} holds no run to resume; leave out --resume")));
            }
            // A run that was killed before its first step starts again.
            (Contents::Run | Contents::Nothing, Existing::Resume) => {
                refuse_other_config(&path.join(CONFIG), &config.value)?;
            }
            _ => {}
        }
        let missing = path.ancestors().take_while(|dir| *dir != Path::new("") && !dir.exists());
        let made: Vec<PathBuf> = missing.map(Path::to_owned).collect();
        fs::create_dir_all(path)
            .map_err(|e| usage(format!("cannot make the run directory {name}: {e}")))?;
        let lock = lock(path).inspect_err(|_| {
            let _ = made.iter().try_for_each(fs::remove_dir);
        })?;
        // If anything fails from here on, what was created is removed.
        let save_every = config.value.checkpoint().every;
        let is_going = Cell::new(false);
        let run = Self { path: path.to_owned(), made, save_every, is_going, _lock: lock };
        run.begin(&config.to_toml(), existing)?;
        Ok(run)
    }

    /// Removes what is in the way, and records the configuration and this attempt.
    fn begin(&self, config_toml: &str, existing: Existing) -> Result<()> {
        let path = &self.path;
        remove_unfinished(path)?;
        if existing == Existing::Overwrite {
            set_aside(path)?;
        }
        write_atomic(&path.join(CONFIG), config_toml.as_bytes())?;
        let logs = path.join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("creating {}", logs.display()))?;
        let attempts = (1u32..).map(|n| logs.join(format!("attempt-{n}.log")));
        let unused = attempts.into_iter().find(|log| !log.exists());
        log::also_to(&unused.expect("invariant: some attempt number is unused"))
    }

    /// Deletes the run that this one replaces, now that this one has ended a step.
    pub fn forget_replaced(&self) -> Result<()> {
        let replaced = self.path.join(REPLACED);
        if replaced.exists() { remove(&replaced) } else { Ok(()) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Records what was derived from the configuration.
    pub fn write_plan(&self, plan: &impl Serialize) -> Result<()> {
        self.write_json("plan.json", plan)
    }

    /// Records the machine, the command line, and the protections of the judge that are in force.
    pub fn write_environment(
        &self,
        command_line: &[String],
        protections: &impl Serialize,
    ) -> Result<()> {
        let environment = json!({
            "command": command_line,
            "environment": Environment::current(),
            "protections": protections,
        });
        self.write_json("env.json", &environment)
    }

    /// Records what the run reads. Refuses to resume with an input that changed since the run began.
    pub(crate) fn record_inputs(&self, inputs: &[Input]) -> Result<()> {
        let goes_on = self.checkpoints().latest()?.is_some();
        inputs::record(&self.path, inputs, goes_on)
    }

    /// Writes a JSON file in the directory, atomically.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        write_json(&self.file(name), value)
    }

    /// Returns the path of the samples of a step.
    pub fn samples(&self, step: u64) -> PathBuf {
        self.path.join(SAMPLES).join(format!("{}.jsonl", step_name(step)))
    }

    /// Records that the run continues without trouble. An error from now on ends its steps.
    pub(crate) fn begin_steps(&self) {
        self.is_going.set(true);
    }

    /// Adds to the error that ends the run what of the run is saved. An error before the first step, one that
    /// keeps the run from continuing, and one that says so itself are returned as they are.
    pub fn ended_by(&self, error: anyhow::Error) -> anyhow::Error {
        if error.is::<Ending>() || !self.is_going.get() || !is_used(&self.path) {
            return error;
        }
        let ending = match self.checkpoints().latest() {
            Ok(Some((step, _))) => Ending::saved_at(step),
            _ => Ending(format!("no step is saved, as checkpoint.every is {}", self.save_every)),
        };
        error.context(ending)
    }

    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints::of(&self.path)
    }
}

enum Contents {
    Nothing,
    Run,
    Foreign,
}

fn contents(path: &Path) -> Result<Contents> {
    if !path.exists() {
        return Ok(Contents::Nothing);
    }
    if !path.is_dir() {
        return Err(usage(format!("{} is a file; --out names a directory", path.display())));
    }
    Ok(if path.join(LOCK).exists() {
        if is_used(path) { Contents::Run } else { Contents::Nothing }
    } else if children(path)?.is_empty() {
        Contents::Nothing
    } else {
        Contents::Foreign
    })
}

/// Returns whether a run has ended a step here.
fn is_used(path: &Path) -> bool {
    let has_rows = |file: PathBuf| fs::metadata(file).is_ok_and(|metadata| metadata.len() > 0);
    has_rows(path.join(metrics::FILE)) || path.join("checkpoints").exists()
}

fn lock(path: &Path) -> Result<File> {
    let file = path.join(LOCK);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&file)
        .with_context(|| format!("opening {}", file.display()))?;
    // A child that is about to start holds its parent's locks until it executes its program.
    let mut attempts = (0..10).map(|attempt| {
        std::thread::sleep(Duration::from_millis(10 * attempt));
        lock.try_lock()
    });
    let is_settled = |result: &Result<_, _>| !matches!(result, Err(TryLockError::WouldBlock));
    match attempts.find(is_settled).unwrap_or(Err(TryLockError::WouldBlock)) {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(usage(format!(
            "another process is working in {}; wait for it or choose another with --out",
            path.display()
        ))),
        Err(TryLockError::Error(e)) => {
            Err(e).with_context(|| format!("locking {}", file.display()))
        }
    }
}

fn clear(path: &Path) -> Result<()> {
    children(path)?.iter().filter(|child| !child.ends_with(LOCK)).try_for_each(|c| remove(c))
}

/// Moves everything but the lock aside.
fn set_aside(path: &Path) -> Result<()> {
    let replaced = path.join(REPLACED);
    fs::create_dir(&replaced).with_context(|| format!("creating {}", replaced.display()))?;
    move_children(path, &replaced)
}

/// Undoes [`set_aside`] and removes what has come since. Returns whether there was anything to undo.
fn put_back(path: &Path) -> Result<bool> {
    let replaced = path.join(REPLACED);
    if !replaced.exists() {
        return Ok(false);
    }
    let is_new = |child: &&PathBuf| !child.ends_with(LOCK) && **child != replaced;
    children(path)?.iter().filter(is_new).try_for_each(|child| remove(child))?;
    move_children(&replaced, path)?;
    remove(&replaced)?;
    Ok(true)
}

fn move_children(from: &Path, to: &Path) -> Result<()> {
    let is_moved = |child: &&PathBuf| !child.ends_with(LOCK) && !to.starts_with(child);
    children(from)?.iter().filter(is_moved).try_for_each(|child| {
        let target = to.join(child.file_name().unwrap_or_default());
        fs::rename(child, target).with_context(|| format!("moving {}", child.display()))
    })
}

/// Removes files that a killed process had not finished (see `base::fs`).
fn remove_unfinished(path: &Path) -> Result<()> {
    let is_unfinished = |child: &Path| {
        child.file_name().is_some_and(|n| n.to_string_lossy().starts_with("codeseq-"))
    };
    for dir in [path.to_owned(), path.join("checkpoints"), path.join("samples")] {
        if dir.is_dir() {
            children(&dir)?.iter().filter(|c| is_unfinished(c)).try_for_each(|c| remove(c))?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
        .with_context(|| format!("removing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::base::fs::read_text;
    use crate::run::CheckpointConfig;

    const CONFIG_TOML: &str = "seed = 1\n\n[checkpoint]\nevery = 0\n";

    /// A configuration that has only a seed.
    #[derive(Clone, Serialize, serde::Deserialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Seeded {
        seed: u64,
        #[serde(default)]
        checkpoint: CheckpointConfig,
    }

    impl RunConfig for Seeded {
        fn checkpoint(&self) -> &CheckpointConfig {
            &self.checkpoint
        }

        fn unchangeable(&self) -> Self {
            Self { checkpoint: CheckpointConfig::default(), ..self.clone() }
        }
    }

    fn config(seed: u64, sets: &[&str]) -> Resolved<Seeded> {
        let seed = format!("seed={seed}");
        let sets: Vec<String> =
            std::iter::once(seed).chain(sets.iter().map(|&set| set.to_owned())).collect();
        crate::config::load(&[], &sets).unwrap()
    }

    fn create(path: &Path, existing: Existing) -> Result<RunDir> {
        RunDir::create(path, &config(1, &[]), existing)
    }

    fn refusal(result: Result<RunDir>) -> String {
        let error = result.err().unwrap();
        assert_eq!(exit_code(&error), 2);
        format!("{error:#}")
    }

    /// Makes a directory in which a run has ended a step.
    fn used(dir: &Path) -> PathBuf {
        let path = dir.join("run");
        let run = create(&path, Existing::Refuse).unwrap();
        write_atomic(&run.file(metrics::FILE), b"{\"step\":1}\n").unwrap();
        path
    }

    #[test]
    fn a_used_directory_needs_resume_or_overwrite() {
        let dir = tempfile::tempdir().unwrap();
        let path = used(dir.path());
        let text = refusal(create(&path, Existing::Refuse));
        assert!(text.contains("--resume") && text.contains("--overwrite"), "{text}");

        create(&path, Existing::Resume).unwrap();
        assert!(path.join(metrics::FILE).exists() && path.join("logs/attempt-2.log").exists());

        let run = create(&path, Existing::Overwrite).unwrap();
        assert!(!path.join(metrics::FILE).exists() && path.join("logs/attempt-1.log").exists());
        drop(run);
    }

    #[test]
    fn an_error_that_ends_a_run_says_what_is_saved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let config = config(1, &["checkpoint.every=100"]);
        let run = RunDir::create(&path, &config, Existing::Refuse).unwrap();
        let ended = || run.ended_by(usage("the disk is full"));
        assert_eq!(format!("{:#}", ended()), "the disk is full", "there is no step to speak of");
        write_atomic(&run.file(metrics::FILE), b"{\"step\":1}\n").unwrap();
        assert_eq!(format!("{:#}", ended()), "the disk is full", "the same command meets it again");
        run.begin_steps();
        assert_eq!(
            format!("{:#}", ended()),
            "no step is saved, as checkpoint.every is 100: the disk is full"
        );
        fs::create_dir_all(run.checkpoints().step_dir(7)).unwrap();
        let text = format!("{:#}", ended());
        assert!(text.starts_with("step 7 is saved") && text.contains("--resume"), "{text}");
        assert_eq!(exit_code(&ended()), 2);
        let told = usage("the disk is full").context(Ending("step 7 is damaged".to_owned()));
        assert_eq!(format!("{:#}", run.ended_by(told)), "step 7 is damaged: the disk is full");
    }

    #[test]
    fn a_run_that_ends_before_its_first_step_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(create(&dir.path().join("runs/new/run"), Existing::Refuse).unwrap());
        assert!(children(dir.path()).unwrap().is_empty());
        let run = create(&dir.path().join("runs/run"), Existing::Refuse).unwrap();
        write_atomic(&dir.path().join("runs/note"), b"of somebody else").unwrap();
        drop(run);
        assert_eq!(children(&dir.path().join("runs")).unwrap().len(), 1);
    }

    #[test]
    fn an_overwritten_run_comes_back_unless_the_new_one_has_a_step() {
        let dir = tempfile::tempdir().unwrap();
        let path = used(dir.path());
        let row = || read_text(&path.join(metrics::FILE)).unwrap();
        let before = row();
        drop(create(&path, Existing::Overwrite).unwrap());
        assert_eq!(row(), before);
        // The directory is left as by a killed process.
        std::mem::forget(create(&path, Existing::Overwrite).unwrap());
        assert!(!path.join(metrics::FILE).exists());
        let copy = dir.path().join("copy");
        fs::create_dir(&copy).unwrap();
        move_children(&path, &copy).unwrap();
        fs::write(copy.join(LOCK), "").unwrap();
        drop(create(&copy, Existing::Resume).unwrap());
        assert_eq!(read_text(&copy.join(metrics::FILE)).unwrap(), before);

        let run = create(&copy, Existing::Overwrite).unwrap();
        write_atomic(&run.file(metrics::FILE), b"{\"step\":2}\n").unwrap();
        run.forget_replaced().unwrap();
        drop(run);
        assert_eq!(read_text(&copy.join(metrics::FILE)).unwrap(), "{\"step\":2}\n");
        assert!(!copy.join(REPLACED).exists());
    }

    #[test]
    fn a_run_that_was_killed_before_its_first_step_may_be_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let run = create(&path, Existing::Refuse).unwrap();
        let left = dir.path().join("left");
        fs::create_dir(&left).unwrap();
        for child in children(&path).unwrap().iter().filter(|child| child.is_file()) {
            fs::copy(child, left.join(child.file_name().unwrap())).unwrap();
        }
        drop(run);
        create(&left, Existing::Refuse).unwrap();
    }

    #[test]
    fn a_run_that_cannot_begin_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runs/run");
        fs::create_dir_all(path.join(CONFIG)).unwrap();
        fs::write(path.join(LOCK), "").unwrap();
        assert!(create(&path, Existing::Refuse).is_err());
        assert!(children(&path).unwrap().is_empty());
    }

    #[test]
    fn a_directory_of_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        write_atomic(&dir.path().join("thesis.tex"), b"x").unwrap();
        for existing in [Existing::Refuse, Existing::Overwrite, Existing::Resume] {
            assert!(refusal(create(dir.path(), existing)).contains("not a run directory"));
        }
        assert_eq!(children(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn two_runs_never_share_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let first = create(&path, Existing::Refuse).unwrap();
        assert!(refusal(create(&path, Existing::Overwrite)).contains("another process"));
        drop(first);
        create(&path, Existing::Overwrite).unwrap();
    }

    #[test]
    fn resuming_needs_a_run_and_the_same_settings() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("absent");
        assert!(refusal(create(&absent, Existing::Resume)).contains("no run to resume"));
        assert!(!absent.exists());
        let path = used(dir.path());
        let text = refusal(RunDir::create(&path, &config(2, &[]), Existing::Resume));
        assert!(text.contains("seed was 1, is 2"), "{text}");
    }

    #[test]
    fn files_are_the_same_however_they_are_spelled() {
        #[derive(Clone, Serialize, serde::Deserialize, schemars::JsonSchema)]
        struct Reading {
            files: Vec<PathBuf>,
        }
        impl RunConfig for Reading {
            fn checkpoint(&self) -> &CheckpointConfig {
                unreachable!("nothing is saved")
            }

            fn unchangeable(&self) -> Self {
                self.clone()
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let [file, other] = ["a", "b"].map(|name| dir.path().join(name));
        [&file, &other].into_iter().for_each(|file| fs::write(file, "").unwrap());
        let before = dir.path().join(CONFIG);
        fs::write(&before, toml::to_string(&Reading { files: vec![file] }).unwrap()).unwrap();
        let now = |path: PathBuf| refuse_other_config(&before, &Reading { files: vec![path] });
        now(dir.path().join("./a")).unwrap();
        assert!(now(other).unwrap_err().to_string().contains("files was"));
    }

    #[test]
    fn a_run_killed_before_its_first_step_is_resumed_from_the_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        // It is not dropped, since a killed process drops nothing. The lock belongs to the process.
        fs::create_dir(&path).unwrap();
        fs::write(path.join(LOCK), "").unwrap();
        fs::write(path.join(CONFIG), CONFIG_TOML).unwrap();
        let text = refusal(RunDir::create(&path, &config(2, &[]), Existing::Resume));
        assert!(text.contains("seed was 1, is 2"), "{text}");
        create(&path, Existing::Resume).unwrap();
    }

    #[test]
    fn resuming_may_keep_other_checkpoints() {
        let dir = tempfile::tempdir().unwrap();
        let path = used(dir.path());
        let other = ["checkpoint.every=5", "checkpoint.keep_last=2", "checkpoint.keep_every=10"];
        RunDir::create(&path, &config(1, &other), Existing::Resume).unwrap();
    }

    #[test]
    fn a_configuration_that_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = used(dir.path());
        write_atomic(&path.join(CONFIG), b"seed = 1\nsead = 2\n").unwrap();
        let text = refusal(create(&path, Existing::Resume));
        assert!(text.contains("config.toml") && text.contains("`sead`"), "{text}");
    }

    #[test]
    fn retention_keeps_the_last_and_every_mth_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(dir.path());
        assert!(checkpoints.latest().unwrap().is_none());
        for step in [100, 200, 300, 400, 1_000_000] {
            crate::base::fs::write_dir_atomic(&checkpoints.step_dir(step), |_| Ok(())).unwrap();
        }
        fs::create_dir(dir.path().join("checkpoints/codeseq-half")).unwrap();
        checkpoints.retain(2, Some(200)).unwrap();
        let steps: Vec<u64> = checkpoints.list().unwrap().into_iter().map(|(s, _)| s).collect();
        assert_eq!(steps, [200, 400, 1_000_000]);
        assert!(checkpoints.latest().unwrap().unwrap().1.ends_with("step-1000000"));
    }

    #[test]
    fn what_a_killed_process_left_unfinished_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = used(dir.path());
        let left = [path.join("codeseq-a"), path.join("checkpoints/codeseq-b/state")];
        left.iter().for_each(|left| fs::create_dir_all(left).unwrap());
        create(&path, Existing::Resume).unwrap();
        assert!(!left[0].exists() && children(&path.join("checkpoints")).unwrap().is_empty());
        assert!(path.join(metrics::FILE).exists());
    }

    #[test]
    fn records_lie_where_the_contract_says() {
        let dir = tempfile::tempdir().unwrap();
        let run = create(dir.path(), Existing::Refuse).unwrap();
        run.write_plan(&json!({"steps": 3})).unwrap();
        run.write_environment(&["train".into(), "sft".into()], &["landlock"]).unwrap();
        let env: serde_json::Value =
            serde_json::from_str(&read_text(&run.file("env.json")).unwrap()).unwrap();
        assert_eq!(env["command"][1], "sft");
        assert!(env["environment"]["cores"].as_u64().unwrap() > 0);
        assert!(run.samples(7).ends_with("samples/step-000007.jsonl"));
        assert_eq!(read_text(&run.file(CONFIG)).unwrap(), CONFIG_TOML);
    }
}
