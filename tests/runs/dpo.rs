//! Preferences: pairs made of a run's samples, learnt, stopped, killed and resumed.

use crate::*;

const DPO_STEPS: u64 = 6;

/// Pairs of the responses of the reinforcement run.
static PAIRS: LazyLock<PathBuf> = LazyLock::new(|| {
    let pairs = INPUTS.join("pairs.jsonl");
    let mut command = train(&INPUTS);
    command.args(["data", "pairs", "--per-problem", "3", "--problems"]);
    command.arg(INPUTS.join("problems.jsonl")).arg("--responses").arg(GRPO.join("samples"));
    let printed = done(command.arg("--out").arg(&pairs));
    assert!(printed.contains("problems with a pair"), "{printed}");
    pairs
});

/// A run over them that nothing disturbed.
static DPO: LazyLock<PathBuf> = LazyLock::new(|| undisturbed("dpo", &dpo_config()));

fn dpo_config() -> String {
    format!(
        "seed = 2
model.path = '{}'
[data]
files = ['{}']
max_length = 200
[optim]
lr = 2e-3
weight_decay = 0.0
[train]
total_steps = {DPO_STEPS}
pairs_per_step = 4
seq_len = 300
[checkpoint]
every = 1
",
        model().display(),
        PAIRS.display()
    )
}

/// What `command` prints; it makes the run in `place` anew or goes on with it.
fn dpo(place: &Place, words: &str) -> std::process::Command {
    place.write("dpo.toml", &dpo_config());
    place.train(&format!("dpo --config @dpo.toml --out @run {words}"))
}

#[test]
fn pairs_of_a_runs_samples_prefer_what_passed() {
    let text = fs::read_to_string(&*PAIRS).unwrap();
    let pairs: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!pairs.is_empty());
    for pair in &pairs {
        let said = |side: &str| pair[side][0]["content"].as_str().unwrap().to_owned();
        assert!(said("chosen").contains(PROGRAMS[0]), "{pair}");
        assert!(!said("rejected").contains(PROGRAMS[0]), "{pair}");
        assert!(pair["prompt"][0]["content"].as_str().unwrap().contains("pairs of shoes"));
    }
}

#[test]
fn preferences_are_learnt_beside_the_model_that_training_starts_from() {
    let metrics = metrics(&DPO, DPO_STEPS);
    let value = |row: usize, key: &str| metrics[row][key].as_f64().unwrap();
    assert!((value(0, "loss/preference") - 2f64.ln()).abs() < 1e-6, "both models are one at first");
    let last = DPO_STEPS as usize - 1;
    assert!(value(last, "loss/preference") < 0.6 && value(last, "reward/margin") > 0.0);
    assert!(value(last, "reward/accuracy") > 0.9);
}

#[test]
fn preferences_killed_and_stopped_resume_to_the_same_bits() {
    let (place, whole) = (Place::new(), &*DPO);
    let run = place.path("run");
    kill(start(&mut dpo(&place, ""), || rows(&run).len() >= 2));
    let listens = || run.join("logs/attempt-2.log").exists() && rows(&run).len() >= 3;
    interrupt(start(&mut dpo(&place, "--resume"), listens));
    done(&mut dpo(&place, "--resume"));
    assert_equal_runs(&run, whole, DPO_STEPS);
    place.assert_nothing_is_half_made();
}

#[test]
fn reference_log_probabilities_are_computed_once_and_known_by_content() {
    let place = Place::new();
    let stored = || -> Vec<PathBuf> {
        let mut files = everything_below(&place.path("run"));
        files.retain(|file| file.file_name().unwrap().to_string_lossy().starts_with("reference-"));
        files
    };
    done(&mut dpo(&place, "--set train.total_steps=1"));
    let [first] = stored().try_into().unwrap();
    let text = fs::read_to_string(&first).unwrap();
    // What was lost is computed anew from the model that training started from.
    fs::write(&first, "{").unwrap();
    done(&mut dpo(&place, "--set train.total_steps=1 --resume"));
    assert_eq!(fs::read_to_string(&first).unwrap(), text);
    let fewer = place.path("fewer.jsonl");
    let lines = fs::read_to_string(&*PAIRS).unwrap();
    fs::write(&fewer, lines.lines().next().unwrap().to_owned() + "\n").unwrap();
    let set =
        format!("--overwrite --set train.total_steps=1 --set data.files=['{}']", fewer.display());
    done(&mut dpo(&place, &set));
    let [other] = stored().try_into().unwrap();
    assert_ne!(other, first);
}

#[test]
fn ranks_and_rows_of_preferences_change_nothing_but_rounding() {
    let place = Place::new();
    done(&mut dpo(&place, "--set train.ranks=2 --set train.seq_len=200"));
    let key = "loss/preference";
    let distance = |(a, b): (&serde_json::Map<String, Value>, &serde_json::Map<String, Value>)| {
        (a[key].as_f64().unwrap() - b[key].as_f64().unwrap()).abs()
    };
    let (ours, whole) = (rows(&place.path("run")), rows(&DPO));
    assert!(ours.iter().zip(&whole).map(distance).all(|distance| distance < 1e-3));
}

#[test]
fn mistakes_in_pairs_and_their_configuration_are_named() {
    let place = Place::new();
    place.write("dpo.toml", &dpo_config());
    let lacking = place.write("lacking.jsonl", "{\"prompt\": [], \"chosen\": []}\n");
    for (set, part) in [
        ("loss.beta=0", "loss.beta"),
        ("loss={kind=\"ipo\",label_smoothing=0.1}", "no labels to smooth"),
        ("train.pairs_per_step=0", "train.pairs_per_step"),
        ("train.seq_len=199", "data.max_length is 200"),
        ("data.max_length=3", "none of them within data.max_length = 3"),
        (&format!("data.files=['{}']", lacking.display()), "lacking.jsonl:1"),
    ] {
        place.mistake(&format!("dpo --config @dpo.toml --out @run --set {set}"), &[part]);
    }
    let problems = INPUTS.join("problems.jsonl").display().to_string();
    let samples = GRPO.join("samples").display().to_string();
    let pairs = |words: &str| {
        format!("data pairs --problems {problems} --responses {samples} --out @p.jsonl {words}")
    };
    place.mistake(&pairs("--max-length-ratio 0.5"), &["--max-length-ratio"]);
    place.mistake(&pairs("--max-tokens 1"), &["no pair can be made"]);
    let other = place.write("other.jsonl", &lines(&[problem(9)]));
    let words = pairs("").replace(&problems, &other.display().to_string());
    place.mistake(&words, &["step-000001.jsonl:1", "is in none of --problems"]);
}
