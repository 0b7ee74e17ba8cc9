//! Fine-tuning: trained, stopped, killed, resumed, laid out otherwise.

use crate::*;

#[test]
fn fine_tuning_learns_and_leaves_a_complete_run() {
    let run = &*SFT;
    for file in ["config.toml", "plan.json", "env.json", "logs/attempt-1.log"] {
        assert!(run.join(file).is_file(), "{file}");
    }
    let metrics = metrics(run, SFT_STEPS);
    let loss = |row: &serde_json::Map<String, Value>| row["loss/nll"].as_f64().unwrap();
    assert!(loss(&metrics[0]) > 5.0 && loss(&metrics[SFT_STEPS as usize - 1]) < 0.5);
    // Four problems with two answers each; every row of a step holds some of them.
    let samples = metrics[0]["data/samples"].as_array().unwrap();
    assert!(samples.len() > 1 && samples.iter().all(|n| (1..=8).contains(&n.as_u64().unwrap())));
    let kept: Vec<PathBuf> = [56, SFT_STEPS].map(|step| checkpoint(run, step)).to_vec();
    let mut found: Vec<PathBuf> =
        fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    assert_eq!(found, kept);
}

#[test]
fn a_finished_run_resumes_to_itself_and_a_dry_run_makes_nothing() {
    let place = Place::new();
    place.write("sft.toml", &sft_config().replace(&format!("= {SFT_STEPS}"), "= 2"));
    assert!(done(&mut place.train("sft --config @sft.toml --dry-run")).contains("seq_len = 200"));
    assert!(!place.path("runs").exists());
    let first = done(&mut place.train("sft --config @sft.toml --out @run"));
    assert_eq!(Path::new(first.trim_end()), checkpoint(&place.path("run"), 2));
    assert_eq!(done(&mut place.train("sft --config @sft.toml --out @run --resume")), first);
    assert_eq!(metrics(&place.path("run"), 2).len(), 2);
}

#[test]
fn fine_tuning_has_the_same_bits_on_one_thread() {
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    done(place.train("sft --config @sft.toml --out @run").env("RAYON_NUM_THREADS", "1"));
    assert_equal_runs(&place.path("run"), &SFT, SFT_STEPS);
}

#[test]
fn fine_tuning_stopped_by_ctrl_c_resumes_to_the_same_bits() {
    let (place, whole) = (Place::new(), &*SFT);
    place.write("sft.toml", &sft_config());
    let run = place.path("run");
    interrupt(start(&mut place.train("sft --config @sft.toml --out @run"), || {
        rows(&run).len() >= 3
    }));
    let stopped_at = rows(&run).len() as u64;
    assert!(stopped_at < SFT_STEPS && checkpoint(&run, stopped_at).is_dir());
    place.assert_nothing_is_half_made();
    done(&mut place.train("sft --config @sft.toml --out @run --resume"));
    assert_equal_runs(&run, whole, SFT_STEPS);
}

#[test]
fn fine_tuning_killed_three_times_resumes_to_the_same_bits() {
    let (place, whole) = (Place::new(), &*SFT);
    place.write("sft.toml", &sft_config());
    let run = place.path("run");
    let mut resume = "";
    for (step, later_millis) in [(2, 0), (17, 5), (32, 12)] {
        let mut command = place.train(&format!("sft --config @sft.toml --out @run {resume}"));
        let child = start(&mut command, || rows(&run).len() >= step);
        std::thread::sleep(Duration::from_millis(later_millis));
        kill(child);
        resume = "--resume";
    }
    done(&mut place.train("sft --config @sft.toml --out @run --resume"));
    assert_equal_runs(&run, whole, SFT_STEPS);
    assert_nothing_is_half_made(&run);
}

#[test]
fn fine_tuning_on_a_mixture_killed_resumes_to_the_same_bits() {
    let place = Place::new();
    let rows_file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/data/rows.parquet");
    let sources = format!(
        "max_empty = 1\nmix_by = 'tokens'\npack_ahead = 4\ncache_dir = 'cache'\n\
         [data.sources.tulu]\npaths = ['{rows_file}']\nweight = 5\n\
         [data.sources.codeseq]\npaths = ['{}/samples.jsonl']\n",
        INPUTS.display()
    );
    let files = format!("files = ['{}/samples.jsonl']\nmax_length = 200\n", INPUTS.display());
    let config = sft_config().replace(&files, &format!("max_length = 200\n{sources}"));
    place.write("sft.toml", &config);
    let stats = done(&mut place.train("data stats --config @sft.toml"));
    assert!(stats.contains("tulu: 2 of 3 samples kept (1 nothing to learn)"), "{stats}");
    assert!(stats.contains("% full"), "{stats}");

    done(&mut place.train("sft --config @sft.toml --out @whole"));
    let run = place.path("run");
    let mut command = place.train("sft --config @sft.toml --out @run");
    kill(start(&mut command, || rows(&run).len() >= 20));
    done(&mut place.train("sft --config @sft.toml --out @run --resume"));
    assert_equal_runs(&run, &place.path("whole"), SFT_STEPS);
    let tokens =
        |key: &str| metrics(&run, SFT_STEPS).iter().map(|r| r[key].as_f64().unwrap()).sum();
    let [tulu, codeseq]: [f64; 2] = ["data/tokens_tulu", "data/tokens_codeseq"].map(tokens);
    assert!((tulu / codeseq - 5.0).abs() < 0.2, "{tulu} : {codeseq}");
}

#[test]
fn fine_tuning_killed_at_two_random_moments_resumes_to_the_same_bits() {
    fine_tune_killed_at_random_moments(2);
}

#[test]
#[ignore = "long; .ci/run runs it"]
fn fine_tuning_killed_at_twenty_random_moments_resumes_to_the_same_bits() {
    fine_tune_killed_at_random_moments(20);
}

fn fine_tune_killed_at_random_moments(lives: u64) {
    let (place, whole) = (Place::new(), &*SFT);
    place.write("sft.toml", &sft_config());
    let run = place.path("run");
    for life in 1..=lives {
        let resume = if run.join("checkpoints").exists() { "--resume" } else { "--overwrite" };
        let words = format!("sft --config @sft.toml --out @run --set checkpoint.every=1 {resume}");
        let log = run.join(format!("logs/attempt-{life}.log"));
        // Every other one while a checkpoint is being written, after a few steps.
        let steps = rows(&run).len() as u64 + life % 3;
        let is_reached = || match life % 2 {
            0 => log.exists() || run.join("logs/attempt-1.log").exists(),
            _ => rows(&run).len() as u64 >= steps && is_saving(&run),
        };
        let child = start(&mut place.train(&words), is_reached);
        let millis = if life % 2 == 0 { 60.0 } else { 4.0 };
        let later = f64::from(rng::uniform(11, life)) * millis / 1e3;
        std::thread::sleep(Duration::from_secs_f64(later));
        kill(child);
    }
    done(&mut place.train("sft --config @sft.toml --out @run --set checkpoint.every=1 --resume"));
    assert_equal_runs(&run, whole, SFT_STEPS);
    assert_nothing_is_half_made(&run);
}

#[test]
fn a_full_disk_leaves_the_checkpoint_before_it() {
    let (place, whole) = (Place::new(), &*SFT);
    place.write("sft.toml", &sft_config());
    let run = place.path("run");
    let words = "sft --config @sft.toml --out @run";
    kill(start(&mut place.train(words), || checkpoint(&run, 8).exists()));
    let weights = fs::metadata(checkpoint(&run, 8).join("model.safetensors")).unwrap().len();
    let kept: Vec<String> = step_names(&run);

    let mut full = place.train(&format!("{words} --resume"));
    // No file may grow beyond the weights: the moments are twice as long.
    // SAFETY: both calls are system calls that a new process may make before it starts.
    unsafe {
        full.pre_exec(move || {
            signal(Signal::SIGXFSZ, SigHandler::SigIgn)?;
            Ok(setrlimit(Resource::RLIMIT_FSIZE, weights + 1000, weights + 1000)?)
        });
    }
    let output = full.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let last = kept.last().unwrap().trim_start_matches("step-").trim_start_matches('0');
    for part in ["optimizer.safetensors", &format!("step {last} is saved"), "--resume"] {
        assert!(stderr(&output).contains(part), "{part} is not in {}", stderr(&output));
    }
    assert_eq!(step_names(&run), kept);
    place.assert_nothing_is_half_made();

    done(&mut place.train(&format!("{words} --resume")));
    assert_equal_runs(&run, whole, SFT_STEPS);
}

/// The names of a run's checkpoints.
fn step_names(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join("checkpoints")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("step-")).collect();
    names.sort();
    names
}

#[test]
fn ranks_share_a_run_and_another_number_of_them_resumes_it() {
    let (place, whole) = (Place::new(), &*SFT);
    place.write("sft.toml", &sft_config());
    let of_two = "--set train.ranks=2 --set train.gradient_accumulation=1";
    for out in ["a", "b"] {
        done(&mut place.train(&format!("sft --config @sft.toml --out @{out} {of_two}")));
    }
    let (a, b) = (place.path("a"), place.path("b"));
    assert_equal_runs(&a, &b, SFT_STEPS);
    for (two, one) in metrics(&a, SFT_STEPS).iter().zip(metrics(whole, SFT_STEPS)).take(10) {
        assert_eq!(two["data/tokens"], one["data/tokens"]);
        let [two, one] = [two, &one].map(|row| row["loss/nll"].as_f64().unwrap());
        assert!((two - one).abs() < 1e-4 * one, "{two} is not {one}");
    }

    let killed = place.path("killed");
    let words = format!("sft --config @sft.toml --out @killed {of_two}");
    kill(start(&mut place.train(&words), || rows(&killed).len() >= 20));
    done(&mut place.train(&format!("{words} --resume")));
    assert_equal_runs(&killed, &a, SFT_STEPS);

    let run = place.path("run");
    let words = "sft --config @sft.toml --out @run";
    interrupt(start(&mut place.train(&format!("{words} {of_two}")), || rows(&run).len() >= 3));
    place.mistake(&format!("{words} --resume --set train.ranks=2"), &["was 2 rows", "is 4"]);
    done(&mut place.train(&format!("{words} --resume")));
    let last = &metrics(&run, SFT_STEPS)[SFT_STEPS as usize - 1];
    assert!(last["loss/nll"].as_f64().unwrap() < 0.5);
}

#[test]
fn a_run_that_diverges_stops_with_a_diagnosis_and_keeps_its_weights() {
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    let output = place
        .train("sft --config @sft.toml --out @run")
        .args(["--set", "optim.lr=1e30", "--set", "train.max_nonfinite_steps=3"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    for part in ["the loss is", "train.max_nonfinite_steps = 3", "samples", "optim.lr"] {
        assert!(stderr(&output).contains(part), "{part} is not in {}", stderr(&output));
    }
    let run = place.path("run");
    let rows = rows(&run);
    let skipped: Vec<f64> = rows.iter().map(|row| row["optim/skipped"].as_f64().unwrap()).collect();
    assert!(skipped.len() > 3 && skipped[skipped.len() - 3..] == [1.0; 3], "{skipped:?}");
    assert!(checkpoint(&run, rows.len() as u64).join("model.safetensors").is_file());
}

#[test]
fn a_run_on_gpus_is_planned_anywhere_and_a_cpu_refuses_their_numbers() {
    let place = Place::new();
    place.write("sft.toml", &sft_config());
    let words = "sft --config @sft.toml --out @run --set train.";
    place.mistake(&format!("{words}precision=bf16"), &["train.precision is bf16", "f32"]);
    place.mistake(&format!("{words}device=gpu"), &["train.device=gpu", "unknown value"]);
    let dry = format!("{words}device=cuda --dry-run --set plan.gpu_memory_gb=1e-3");
    place.mistake(&dry, &["device cuda", "heads of 8 elements"]);
    let model = place.write("gpu.json", &gpu_shape().to_string());
    let dry = format!("{dry} --set model.init={:?}", model.display().to_string());
    let plan = done(&mut place.train(&dry));
    assert!(plan.contains("on 24 GB (RTX 3090/4090, A10, L4)"), "{plan}");
    assert!(plan.contains("does not fit") && plan.contains("activations"), "{plan}");
    assert!(plan.contains("device = \"cuda\"") && plan.contains("moments = \"f32\""), "{plan}");
}

#[test]
fn what_has_a_default_need_not_be_given() {
    let place = Place::new();
    let inputs = INPUTS.display();
    let config = format!(
        "[model]
init = '{inputs}/model.json'
tokenizer = '{inputs}/tokenizer'
[data]
files = ['{inputs}/samples.jsonl']
max_length = 200
[train]
total_steps = 1
seq_len = 200
"
    );
    place.write("sft.toml", &config);
    done(&mut place.train("sft --config @sft.toml --out @run"));
    place.write("empty.toml", "");
    let missing = ["`model`", "`data.max_length`", "`train.total_steps`", "`train.seq_len`"];
    place.mistake("sft --config @empty.toml", &missing);
}
