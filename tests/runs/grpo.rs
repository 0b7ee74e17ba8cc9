//! Reinforcement: trained, stopped, killed, resumed, validated, rewarded by a program.

use crate::*;

#[test]
fn reinforcement_is_exactly_on_policy_and_tells_programs_apart() {
    let metrics = metrics(&GRPO, GRPO_STEPS);
    let column =
        |key: &str| metrics.iter().map(|row| row[key].as_f64().unwrap()).collect::<Vec<_>>();
    assert_eq!(column("policy/ratio_max_deviation"), vec![0.0; metrics.len()]);
    assert!(column("policy/learnt_tokens").iter().sum::<f64>() > 0.0);
    assert!(column("reward/pass_rate").iter().any(|rate| (0.05..0.95).contains(rate)));
    assert!(column("reward/solvability_term").iter().any(|&term| term > 0.0));
    assert_eq!(column("reward/infra"), vec![0.0; metrics.len()]);
    for step in 1..=GRPO_STEPS {
        let rollouts =
            fs::read_to_string(GRPO.join(format!("samples/step-{step:06}.jsonl"))).unwrap();
        assert_eq!(rollouts.lines().count(), 12);
        for line in rollouts.lines() {
            let sample: Value = serde_json::from_str(line).unwrap();
            assert_eq!(sample["token_ids"].as_array().unwrap().len() as u64, sample["num_tokens"]);
        }
    }
}

#[test]
fn reinforcement_has_the_same_bits_on_one_thread() {
    let place = Place::new();
    place.write("grpo.toml", &grpo_config());
    done(place.train("grpo --config @grpo.toml --out @run").env("RAYON_NUM_THREADS", "1"));
    assert_equal_runs(&place.path("run"), &GRPO, GRPO_STEPS);
    place.assert_nothing_is_half_made();
}

#[test]
fn reinforcement_killed_and_stopped_resumes_to_the_same_bits() {
    let (place, whole) = (Place::new(), &*GRPO);
    place.write("grpo.toml", &grpo_config());
    let run = place.path("run");
    let command =
        |resume: &str| place.train(&format!("grpo --config @grpo.toml --out @run {resume}"));
    kill(start(&mut command(""), || rows(&run).len() == 1));
    kill(start(&mut command("--resume"), || run.join("samples/step-000002.jsonl").exists()));
    // The log appears when signals are caught already.
    let listens = || run.join("logs/attempt-3.log").exists();
    interrupt(start(&mut command("--resume"), || listens() && rows(&run).len() >= 2));
    done(&mut command("--resume"));
    assert_equal_runs(&run, whole, GRPO_STEPS);
    assert_nothing_is_half_made(&run);
}

#[test]
fn another_task_is_reinforced_by_its_cases_and_goes_on_with_the_prompt_that_it_began_with() {
    let place = Place::new();
    place.write("grpo.toml", &grpo_config());
    let prompt = place.write("prompt.txt", "{{ terms | join(' ') }}");
    let run = |words: &str| {
        let mut command = place.train(&format!("grpo --config @grpo.toml --out @run {words}"));
        command.args(["--set", &format!("prompt='{}'", prompt.display()), "--set"]);
        command.args(["task=next-number", "--set", "reward.kind=test-share", "--set"]);
        command.arg("train.total_steps=1");
        command
    };
    done(&mut run(""));
    let rows = rows(&place.path("run"));
    let value = |key: &str| rows[0][key].as_f64().unwrap();
    let total = value("reward/test_share") + value("reward/format_term");
    assert!((value("reward/mean") - total).abs() < 1e-12, "{rows:?}");
    assert!(!rows[0].contains_key("reward/solvability_term"));
    place.write("prompt.txt", "{{ terms | join(', ') }}");
    expect_mistake(&mut run("--resume"), &["the prompt template is another"]);
}

#[test]
fn a_run_whose_reward_process_fails_keeps_its_steps_and_goes_on_when_it_is_mended() {
    let place = Place::new();
    place.write("grpo.toml", &grpo_config());
    let program = |failure: &str| {
        format!(
            "import json, sys
for number, line in enumerate(sys.stdin):
    asked = json.loads(line)
    assert asked['problem']['problem_id'] and asked['passed'] in (True, False)
    {failure}
    reward = 0.5 if '2 *' in asked['response'] else -asked['num_tokens'] / 100
    print(json.dumps({{'id': asked['id'], 'reward': reward}}), flush=True)
"
        )
    };
    let file = place.write("reward.py", &program("pass"));
    let set = format!("external_reward.command=['python3','{}']", file.display());
    let run = |words: &str| {
        let mut command = place.train(&format!("grpo --config @grpo.toml {words}"));
        command.args(["--set", &set]);
        command
    };
    done(&mut run("--out @whole"));
    let rewarded = fs::read_to_string(place.path("whole/samples/step-000003.jsonl")).unwrap();
    assert!(rewarded.contains("\"external\":0.5"), "{rewarded}");

    // Two prompts a step, six responses each: the third step's answers begin so.
    place.write("reward.py", &program("if number == 30: print('oops', flush=True)"));
    expect_mistake(&mut run("--out @run"), &["step 2 is saved", "reward process", "\"oops\""]);
    assert_eq!(rows(&place.path("run")).len(), 2);
    assert!(checkpoint(&place.path("run"), 2).exists());
    place.write("reward.py", &program("pass"));
    done(&mut run("--out @run --resume"));
    assert_equal_runs(&place.path("run"), &place.path("whole"), GRPO_STEPS);
}

#[test]
fn a_step_run_again_asks_no_reward_again_in_any_round_of_dynamic_sampling() {
    let place = Place::new();
    place.write("grpo.toml", &grpo_config());
    // Of equal rewards nothing can be learnt, so all problems are taken; each start gives others.
    let program = "import json, sys, time
reward = time.time()
for line in sys.stdin:
    print(json.dumps({'id': json.loads(line)['id'], 'reward': reward}), flush=True)
";
    let program = place.write("reward.py", program);
    let run = |words: &str| {
        let mut command = place.train(&format!("grpo --config @grpo.toml --out @run {words}"));
        for set in [
            format!("external_reward.command=['python3','{}']", program.display()).as_str(),
            "rollout.max_rounds=8",
            "rollout.filter_metric=reward",
            "train.total_steps=2",
            "checkpoint.every=100",
        ] {
            command.args(["--set", set]);
        }
        command
    };
    let journal = place.path("run/samples/step-000001.jsonl");
    kill(start(&mut run(""), || rows(&place.path("run")).len() == 1));
    let before = fs::read_to_string(&journal).unwrap();
    assert_eq!(before.lines().count(), 4 * 6, "no problem twice");
    done(&mut run("--resume"));
    assert!(fs::read_to_string(&journal).unwrap() == before);
    for row in metrics(&place.path("run"), 2) {
        assert_eq!(row["rollout/replaced_groups"], 4);
        assert!(!row.contains_key("reward/mean"), "nothing was learnt from: {row:?}");
    }
}

#[test]
fn a_reward_process_ends_with_a_killed_run() {
    let place = Place::new();
    place.write("grpo.toml", &grpo_config());
    let file = place.path("number");
    let program = format!(
        "import os, time
with open('{0}.tmp', 'w') as file: file.write(str(os.getpid()))
os.rename('{0}.tmp', '{0}')
time.sleep(1000)
",
        file.display()
    );
    let program = place.write("reward.py", &program);
    let mut command = place.train("grpo --config @grpo.toml --out @run");
    let set = format!("external_reward.command=['python3','{}']", program.display());
    kill(start(command.args(["--set", &set]), || file.exists()));
    let process = fs::read_to_string(&file).unwrap();
    let is_running = || {
        let stat = fs::read_to_string(format!("/proc/{process}/stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z"))
    };
    let killed = Instant::now();
    while is_running() && killed.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!is_running());
}

/// The same with a score of the problems of training every two steps.
fn validated_grpo_config() -> String {
    let problems = INPUTS.join("problems.jsonl").display().to_string();
    grpo_config() + &format!("[validation]\nfiles = ['{problems}']\nevery = 2\nrollouts = 2\n")
}

#[test]
fn the_untrained_model_is_scored_as_step_0() {
    let place = Place::new();
    place.write("grpo.toml", &validated_grpo_config());
    done(&mut place.train("grpo --config @grpo.toml --out @run --set train.total_steps=3"));
    let scored = |row: &serde_json::Map<String, Value>| {
        (row["step"].as_u64().unwrap(), row.contains_key("val/pass_at_1"))
    };
    let scored: Vec<_> = rows(&place.path("run")).iter().map(scored).collect();
    assert_eq!(scored, [(0, true), (1, false), (2, true), (3, true)]);
    let report = done(&mut place.train("report @run"));
    assert!(report.contains("val/pass_at_1"), "{report}");
}

#[test]
fn a_run_stopped_while_it_validates_keeps_the_step_and_scores_it_later() {
    let place = Place::new();
    place.write("grpo.toml", &validated_grpo_config());
    let run = |out: &str| {
        let sets =
            "--set checkpoint.every=100 --set train.total_steps=3 --set validation.rollouts=30";
        place.train(&format!("grpo --config @grpo.toml {sets} --out {out}"))
    };
    done(&mut run("@whole"));
    let stopped = place.path("run");
    // The row of the step, of which the score is a part, appears before the score is known.
    interrupt(start(&mut run("@run"), || rows(&stopped).iter().any(|row| row["step"] == 2)));
    assert!(checkpoint(&stopped, 2).exists() || checkpoint(&stopped, 3).exists());
    done(&mut run("@run --resume"));
    let [whole, resumed] = [place.path("whole"), stopped].map(|run| {
        let mut rows = rows(&run);
        rows.iter_mut().for_each(|row| row.retain(|key, _| !key.starts_with("time/")));
        assert_eq!(rows.iter().filter(|row| row.contains_key("val/pass_at_1")).count(), 3);
        (run, rows)
    });
    assert_eq!(whole.1, resumed.1);
    assert_equal_checkpoints(&whole.0, &resumed.0, 3);
}

#[test]
fn reinforcement_killed_at_two_random_moments_resumes_to_the_same_bits() {
    reinforce_killed_at_random_moments(2, 8);
}

#[test]
#[ignore = "long; .ci/run runs it"]
fn reinforcement_killed_at_twenty_random_moments_resumes_to_the_same_bits() {
    reinforce_killed_at_random_moments(20, 32);
}

fn reinforce_killed_at_random_moments(lives: u64, steps: u64) {
    let place = Place::new();
    place.write("grpo.toml", &grpo_config());
    let words = format!("grpo --config @grpo.toml --set train.total_steps={steps} --out");
    done(&mut place.train(&format!("{words} @whole")));
    let run = place.path("run");
    for life in 1..=lives {
        let resume = if run.join("checkpoints").exists() { "--resume" } else { "--overwrite" };
        let log = run.join(format!("logs/attempt-{life}.log"));
        let step = rows(&run).len() as u64;
        let next = run.join(format!("samples/step-{:06}.jsonl", step + 1));
        let listens = || log.exists() || run.join("logs/attempt-1.log").exists();
        // While it starts, samples and judges; once a step is judged; while it saves; anywhere.
        let (is_reached, millis): (&dyn Fn() -> bool, f32) = match life % 4 {
            0 => (&listens, 400.0),
            1 => (&|| next.exists(), 30.0),
            2 => (&|| rows(&run).len() as u64 > step && is_saving(&run), 4.0),
            _ => (&|| rows(&run).len() as u64 > step, 150.0),
        };
        let child = start(&mut place.train(&format!("{words} @run {resume}")), is_reached);
        std::thread::sleep(Duration::from_secs_f32(rng::uniform(13, life) * millis / 1e3));
        kill(child);
    }
    assert!((rows(&run).len() as u64) < steps, "killed before the end");
    done(&mut place.train(&format!("{words} @run --resume")));
    assert_equal_runs(&run, &place.path("whole"), steps);
    assert_nothing_is_half_made(&run);
}

#[test]
fn reinforcement_is_on_policy_however_its_work_is_laid_out() {
    let place = Place::new();
    place.write("grpo.toml", &grpo_config());
    for set in ["train.recompute=layer", "rollout.kv_cache_tokens=256"] {
        done(
            &mut place
                .train(&format!("grpo --config @grpo.toml --out @run --overwrite --set {set}")),
        );
        assert_equal_runs(&place.path("run"), &GRPO, GRPO_STEPS);
    }
    let set = "policy.importance_sampling_cap=2.0";
    done(&mut place.train(&format!("grpo --config @grpo.toml --out @capped --set {set}")));
    assert_equal_checkpoints(&place.path("capped"), &GRPO, GRPO_STEPS);

    let ranks = "--set train.ranks=2";
    done(&mut place.train(&format!("grpo --config @grpo.toml --out @two {ranks}")));
    let (two, one) = (metrics(&place.path("two"), GRPO_STEPS), metrics(&GRPO, GRPO_STEPS));
    for row in &two {
        assert_eq!(row["policy/ratio_max_deviation"], 0.0);
        assert_eq!(row["rollout/logprob_diff_max"], 0.0);
    }
    let sampled = |key: &String| key.starts_with("reward/") || key.starts_with("response/");
    for (key, value) in one[0].iter().filter(|(key, _)| sampled(key)) {
        assert_eq!(*value, two[0][key], "{key}: ranks sample what one rank samples");
    }
    let again = place.path("again");
    done(&mut place.train(&format!("grpo --config @grpo.toml --out @again {ranks}")));
    assert_equal_runs(&again, &place.path("two"), GRPO_STEPS);
}

#[test]
fn the_best_and_worst_samples_are_shown_with_their_rewards() {
    let place = Place::new();
    let report = |end: &str| {
        done(&mut place.train(&format!("report {} --samples {end} -n 3", GRPO.display())))
    };
    let (best, worst) = (report("best"), report("worst"));
    assert_eq!(best.matches("\nreward ").count(), 3, "{best}");
    assert!(best.contains(": pass\n") && best.contains(PROGRAMS[0]), "{best}");
    assert!(!worst.contains(": pass\n"), "{worst}");
}

#[test]
fn a_run_whose_reference_model_was_replaced_does_not_go_on() {
    let place = Place::new();
    let reference = place.path("model");
    fs::create_dir(&reference).unwrap();
    for file in fs::read_dir(model()).unwrap().map(|entry| entry.unwrap().path()) {
        if file.is_file() {
            fs::copy(&file, reference.join(file.file_name().unwrap())).unwrap();
        }
    }
    let config = grpo_config().replace(
        &format!("path = '{}'", model().display()),
        &format!("path = '{}'", reference.display()),
    );
    place.write("grpo.toml", &config);
    let words = "grpo --config @grpo.toml --out @run --set policy.kl_coef=0.1";
    let run = place.path("run");
    kill(start(&mut place.train(words), || checkpoint(&run, 1).exists()));
    let trained = checkpoint(&run, 1).join("model.safetensors");
    let weights = reference.join("model.safetensors");
    let first = fs::read(&weights).unwrap();
    fs::copy(&trained, &weights).unwrap();
    expect_mistake(&mut place.train(&format!("{words} --resume")), &["reference model", "began"]);
    fs::write(&weights, first).unwrap();
    done(&mut place.train(&format!("{words} --resume")));
}
