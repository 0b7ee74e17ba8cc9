//! What is generated and scored with a trained model.

use crate::*;

#[test]
fn generated_log_probabilities_are_those_of_scoring() {
    let (place, model) = (Place::new(), model());
    let tokenizer = Tokenizer::load(&model).unwrap();
    let conversations =
        ["Two?", "How many shoes are n pairs?"].map(|text| vec![Message::new("user", text)]);
    let lines = conversations.iter().map(|messages| format!("{}\n", json!({"messages": messages})));
    place.write("messages.jsonl", &lines.collect::<String>());
    let model = model.display();
    for temperature in ["0", "0.7"] {
        let printed = done(&mut place.train(&format!(
            "generate --model {model} --messages @messages.jsonl --json -n 2 --max-new-tokens 16 \
             --temperature {temperature}"
        )));
        let prompts =
            conversations.iter().map(|messages| tokenizer.encode_prompt(messages).unwrap());
        let prompts: Vec<Vec<u32>> = prompts.flat_map(|prompt| [prompt.clone(), prompt]).collect();
        let generated: Vec<Value> =
            printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(generated.len(), prompts.len());
        let whole = prompts.iter().zip(&generated).map(|(prompt, line)| {
            let output: Vec<u32> = serde_json::from_value(line["output_ids"].clone()).unwrap();
            let input_ids = [prompt.as_slice(), &output].concat();
            format!("{}\n", json!({"input_ids": input_ids}))
        });
        place.write("whole.jsonl", &whole.collect::<String>());
        done(&mut place.train(&format!(
            "score --model {model} --data @whole.jsonl --out @scores.jsonl --temperature {temperature}"
        )));
        let scores = fs::read_to_string(place.path("scores.jsonl")).unwrap();
        for ((line, prompt), generated) in scores.lines().zip(&prompts).zip(&generated) {
            let line: Value = serde_json::from_str(line).unwrap();
            let scored = &line["logprobs"].as_array().unwrap()[prompt.len()..];
            assert_eq!(scored, generated["logprobs"].as_array().unwrap().as_slice());
        }
    }
    place.mistake(&format!("generate --model {model} --messages @whole.jsonl"), &["whole.jsonl:1"]);
    place.assert_nothing_is_half_made();
}

#[test]
fn a_gtg_score_is_written_and_repeats() {
    let place = Place::new();
    place.write("problems.jsonl", &format!("{}\n{}\n", problem(0), problem(1)));
    let model = model();
    let score = |out: &str| -> Value {
        let words = format!(
            "eval gtg --model {} --data @problems.jsonl --rollouts 6 --max-new-tokens 32 \
             --max-sequences 4 --out @{out}",
            model.display()
        );
        assert!(done(&mut place.train(&words)).contains("pass@1"));
        let mut score: Value =
            serde_json::from_str(&fs::read_to_string(place.path(out)).unwrap()).unwrap();
        for key in ["tokens_per_sec", "generation_secs", "judging_secs"] {
            assert!(score.as_object_mut().unwrap().remove(key).unwrap().as_f64().unwrap() >= 0.0);
        }
        score
    };
    let first = score("a.json");
    assert_eq!(first, score("b.json"));
    let pass_at_1 = first["pass_at_1"].as_f64().unwrap();
    assert!((0.05..=1.0).contains(&pass_at_1), "{first}");
    assert_eq!((&first["num_problems"], &first["num_infra"]), (&json!(2), &json!(0)));
    assert!(first["ci95"][0].as_f64().unwrap() <= pass_at_1);
    place.assert_nothing_is_half_made();
    place.mistake(
        &format!("eval gtg --model {} --data @problems.jsonl --max-sequences 0", model.display()),
        &["max_sequences"],
    );
}
