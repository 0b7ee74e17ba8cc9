//! The journal of an evaluation: answers on disk as problems are finished, so that a run that was
//! killed goes on where it was.
//!
//! JSON Lines: first the identity of the run (model, problems, settings), then one line for each
//! finished problem, appended and flushed. A last line without its end, as a kill leaves it, is
//! ignored. The journal goes when the result is written. Left out: log-probabilities.

use crate::base::error::usage;
use crate::base::hex::hex;
use crate::base::jsonl_log::JsonlLog;
use crate::rollout::AttemptSettings;
use crate::rollout::attempt::Answer;
use crate::tasks::Task;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Everything that answers depend on, as names and values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity(Vec<(String, String)>);

/// The version of the lines' format.
const FORMAT: &str = "3";

impl Identity {
    /// What a model's answers depend on: `model` is a hash of its files or a name, `device` where or how it answers.
    pub fn of_model(
        (model, device): (&str, &str),
        task: &dyn Task,
        settings: &AttemptSettings,
    ) -> Result<Self> {
        let mut identity = Self::of_task(task)?;
        identity.extend([
            ("model", model.to_owned()),
            ("device", device.to_owned()),
            ("rollouts", settings.num_samples.to_string()),
            ("temperature", settings.temperature.to_string()),
            ("max_new_tokens", settings.max_new_tokens.to_string()),
            ("stop_ids", format!("{:?}", settings.stop_ids)),
            ("seed", settings.key.to_string()),
        ]);
        Ok(identity)
    }

    /// What the grades of responses that were made elsewhere depend on.
    pub fn of_responses(sha256: &str, task: &dyn Task) -> Result<Self> {
        let mut identity = Self::of_task(task)?;
        identity.extend([("responses", sha256.to_owned())]);
        Ok(identity)
    }

    fn of_task(task: &dyn Task) -> Result<Self> {
        let mut identity = Self(Vec::new());
        identity.extend([
            ("format", FORMAT.to_owned()),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("task", task.name().to_owned()),
            ("preset", task.preset().to_owned()),
            ("problems", hash_of_problems(task)?),
            ("prompt", task.prompt_sha256().to_owned()),
            ("judge", task.grading()?),
        ]);
        Ok(identity)
    }

    fn extend<const N: usize>(&mut self, values: [(&str, String); N]) {
        self.0.extend(values.map(|(name, value)| (name.to_owned(), value)));
    }

    /// The names with their values.
    pub fn to_map(&self) -> BTreeMap<&str, &str> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    /// The first value in which `other` differs, as text.
    fn difference(&self, other: &Self) -> Option<String> {
        let names = |identity: &Self| -> Vec<String> {
            identity.0.iter().map(|(name, _)| name.clone()).collect()
        };
        if names(self) != names(other) {
            return Some("another version of the program".to_owned());
        }
        let mut pairs = self.0.iter().zip(&other.0);
        let ((name, ours), (_, theirs)) = pairs.find(|(ours, theirs)| ours != theirs)?;
        // A hash says nothing to a person.
        Some(match name.as_str() {
            "model" | "prompt" => format!("another {name}"),
            "problems" => "other problems".to_owned(),
            _ => format!("{name} {theirs} (now {ours})"),
        })
    }
}

/// SHA-256 over all problems of a task, in order.
fn hash_of_problems(task: &dyn Task) -> Result<String> {
    let mut hasher = Sha256::new();
    for problem in 0..task.num_problems() {
        hasher.update(task.problem_json(problem)?.get());
        hasher.update("\n");
    }
    Ok(hex(hasher.finalize()))
}

/// Which time of asking which problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// 0 at first.
    pub round: usize,
    /// The problem's place in the list.
    pub problem: usize,
}

/// A finished problem.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    #[serde(flatten)]
    place: Place,
    problem_id: String,
    answers: std::borrow::Cow<'a, [Answer]>,
}

/// An open journal; nobody else may open it meanwhile.
pub struct Journal {
    log: JsonlLog,
    known: HashMap<Place, Vec<Answer>>,
    num_lines: usize,
}

impl Journal {
    /// Where the journal of the result `out` lies: `score.json` has `score.partial.jsonl`.
    pub fn path_for(out: &Path) -> PathBuf {
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let stem = [".json", ".jsonl"].iter().find_map(|end| name.strip_suffix(end));
        out.with_file_name(format!("{}.partial.jsonl", stem.unwrap_or(&name)))
    }

    /// Opens the journal at `path`, or begins one.
    ///
    /// A journal with answers is only continued when asked to (`resume`), and only by the run
    /// that it belongs to.
    pub fn open(path: PathBuf, identity: &Identity, resume: bool) -> Result<Self> {
        let unwritable = |e| usage(format!("cannot write {}: {e}", path.display()));
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new(""))).map_err(unwritable)?;
        let mut log = JsonlLog::open(&path)?;
        log.lock()?;
        let known = read(&path, &log.recover()?, identity, resume)?;
        if known.is_empty() {
            log.clear()?;
            log.append(identity)?;
        }
        Ok(Self { log, num_lines: known.len(), known })
    }

    /// The answers of an earlier run, once.
    pub fn take(&mut self, place: Place) -> Option<Vec<Answer>> {
        self.known.remove(&place)
    }

    /// Writes the answers to one problem to disk.
    pub fn append(&mut self, place: Place, problem_id: &str, answers: &[Answer]) -> Result<()> {
        let line = Line { place, problem_id: problem_id.to_owned(), answers: answers.into() };
        self.log.append(&line)?;
        self.log.sync()?;
        self.num_lines += 1;
        Ok(())
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.log.path()
    }

    /// Finished problems, those of earlier runs included.
    pub fn num_finished(&self) -> usize {
        self.num_lines
    }

    /// Deletes the journal, once the result is written.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_file(self.path())
            .with_context(|| format!("removing {}", self.path().display()))
    }
}

/// The answers in a journal's whole lines.
fn read(
    path: &Path,
    content: &[u8],
    identity: &Identity,
    resume: bool,
) -> Result<HashMap<Place, Vec<Answer>>> {
    let lines: Vec<&[u8]> = content.split_inclusive(|&byte| byte == b'\n').collect();
    let mut lines = lines.into_iter().enumerate();
    let damaged = |number: usize, e: serde_json::Error| {
        usage(format!("{}:{}: {e}; delete the journal to start anew", path.display(), number + 1))
    };
    let Some((_, first)) = lines.next() else { return Ok(HashMap::new()) };
    let made_with: Identity = serde_json::from_slice(first).map_err(|e| damaged(0, e))?;
    if lines.len() == 0 {
        return Ok(HashMap::new());
    }
    if let Some(difference) = identity.difference(&made_with) {
        return Err(usage(format!(
            "{} is the journal of a run with {difference}: repeat its settings with --resume, or delete it",
            path.display()
        )));
    }
    let known: HashMap<Place, Vec<Answer>> = lines
        .map(|(number, line)| {
            let line: Line<'_> = serde_json::from_slice(line).map_err(|e| damaged(number, e))?;
            Ok((line.place, line.answers.into_owned()))
        })
        .collect::<Result<_>>()?;
    let path = path.display();
    if !resume {
        return Err(usage(format!(
            "{path} holds {} problems of a run that was stopped: continue it with --resume, or delete it",
            known.len()
        )));
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::base::hash;
    use crate::checkpoint::ModelPlace;
    use crate::sandbox::{Reason, VerdictKind};
    use crate::tasks::tests::{Given, graded};

    fn identity(seed: u64) -> Identity {
        Identity(vec![("model".into(), "abc".into()), ("seed".into(), seed.to_string())])
    }

    fn answers(text: &str) -> Vec<Answer> {
        [VerdictKind::Pass, VerdictKind::Fail(Reason::WrongAnswer), VerdictKind::Infra]
            .map(|kind| Answer {
                text: text.to_owned(),
                num_tokens: 3,
                is_cut: false,
                grade: graded(kind, &[true, false]),
            })
            .to_vec()
    }

    const FIRST: Place = Place { round: 0, problem: 4 };
    const SECOND: Place = Place { round: 1, problem: 4 };

    /// A journal with two finished problems.
    fn written(dir: &Path) -> PathBuf {
        let path = dir.join("x.partial.jsonl");
        let mut journal = Journal::open(path.clone(), &identity(1), false).unwrap();
        journal.append(FIRST, "p4", &answers("a\n\"b\"")).unwrap();
        journal.append(SECOND, "p4", &answers("c")).unwrap();
        path
    }

    #[test]
    fn what_was_written_is_taken_once_and_the_journal_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let mut journal = Journal::open(path.clone(), &identity(1), true).unwrap();
        assert_eq!(journal.num_finished(), 2);
        assert_eq!(journal.take(FIRST), Some(answers("a\n\"b\"")));
        assert_eq!(journal.take(FIRST), None);
        assert_eq!(journal.take(SECOND), Some(answers("c")));
        journal.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_journal_without_a_finished_problem_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.partial.jsonl");
        drop(Journal::open(path.clone(), &identity(1), false).unwrap());
        drop(Journal::open(path.clone(), &identity(2), false).unwrap());
        std::fs::write(&path, "[[\"mod").unwrap();
        drop(Journal::open(path, &identity(3), false).unwrap());
    }

    #[test]
    fn a_journal_is_refused_without_resume_with_other_settings_damaged_or_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let refusal = |seed: u64, resume: bool| {
            let error = Journal::open(path.clone(), &identity(seed), resume).err().unwrap();
            assert_eq!(exit_code(&error), 2);
            error.to_string()
        };
        assert!(refusal(1, false).contains("x.partial.jsonl holds 2 problems"));
        assert!(refusal(9, true).contains("a run with seed 1 (now 9)"));
        let open = Journal::open(path.clone(), &identity(1), true).unwrap();
        assert!(refusal(1, true).contains("in use"));
        drop(open);
        let text = std::fs::read_to_string(&path).unwrap().replacen("problem_id", "problem", 1);
        std::fs::write(&path, text).unwrap();
        assert!(refusal(1, true).contains("x.partial.jsonl:2:"));
    }

    #[test]
    fn a_journal_of_an_older_format_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("old.partial.jsonl");
        let lines = "[[\"version\",\"0.1.0\"],[\"seed\",\"1\"]]\n{\"round\":0,\"problem\":0}\n";
        std::fs::write(&path, lines).unwrap();
        let error = Journal::open(path, &identity(1), true).err().unwrap();
        assert!(error.to_string().contains("another version of the program"), "{error}");
    }

    #[test]
    fn the_problems_and_the_task_are_part_of_a_runs_identity() {
        let identity = |id: &str| {
            let problem = serde_json::json!({"problem_id": id, "tests": []});
            let task = Given(vec![serde_json::from_value(problem).unwrap()]);
            Identity::of_model(("m", "cpu"), &task, &AttemptSettings::default()).unwrap()
        };
        assert_eq!(identity("a").difference(&identity("a")), None);
        assert_eq!(identity("a").difference(&identity("b")).as_deref(), Some("other problems"));
    }

    #[test]
    fn the_weights_are_part_of_a_models_identity() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.safetensors"), "weights").unwrap();
        let hash = || hash::of_files(&ModelPlace::from(dir.path()).files().unwrap()).unwrap();
        let first = hash();
        std::fs::write(dir.path().join("notes.txt"), "of no matter").unwrap();
        assert_eq!(hash(), first);
        std::fs::write(dir.path().join("model.safetensors"), "wEights").unwrap();
        assert_ne!(hash(), first);
    }

    #[test]
    fn the_journal_lies_beside_the_result() {
        let path = |out: &str| Journal::path_for(Path::new(out)).display().to_string();
        assert_eq!(path("a/score.json"), "a/score.partial.jsonl");
        assert_eq!(path("kept.jsonl"), "kept.partial.jsonl");
        assert_eq!(path("score.v1"), "score.v1.partial.jsonl");
    }
}
