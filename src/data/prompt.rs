//! The prompts: the one in which SFT, RL and evaluation show a problem to a model, and the question whether
//! a sample is code.
//!
//! They are Minijinja templates over `problem` and over `messages`. The hash of the template is part of
//! every result, because scores under different prompts cannot be compared.

use crate::base::error::usage;
use crate::base::fs::read_text;
use crate::data::problem::Problem;
use crate::data::sample::Sample;
use crate::tokenizer::{FUEL, one_line};
use anyhow::{Context, Result};
use minijinja::value::{Serde, Value};
use minijinja::{Environment, UndefinedBehavior, context};
use sha2::{Digest, Sha256};
use std::path::Path;

const NAME: &str = "prompt";
/// Every prompt must show these fields; it may leave examples out.
const REQUIRED: [&str; 3] =
    ["problem.description", "problem.input_requirement", "problem.output_requirement"];

/// A template, checked and ready to render.
pub(crate) struct Template {
    environment: Environment<'static>,
    hash: String,
}

impl Template {
    /// Returns the template in a user's `file`, or else the bundled one, with the place that errors name.
    pub(crate) fn open(file: Option<&Path>, bundled: (&str, &str)) -> Result<(Self, String)> {
        match file {
            Some(path) => {
                let place = path.display().to_string();
                Ok((Self::parse(&read_text(path)?, &place)?, place))
            }
            None => Ok((Self::parse(bundled.0, bundled.1)?, bundled.1.to_owned())),
        }
    }

    fn parse(source: &str, place: &str) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        environment.add_template_owned(NAME, source.trim_end().to_owned()).map_err(|e| {
            usage(format!("{place}: the prompt template is malformed: {}", one_line(&e)))
        })?;
        Ok(Self { environment, hash: format!("{:x}", Sha256::digest(source.as_bytes())) })
    }

    /// Returns whether the template uses the variable `name` or a field of it.
    pub(crate) fn uses(&self, name: &str) -> bool {
        let template = self.environment.get_template(NAME);
        let template = template.expect("invariant: added on construction");
        template.undeclared_variables(false).contains(name)
    }

    /// Returns whether the template uses the field `name` of `whole`, or `whole` itself.
    fn shows(&self, whole: &str, name: &str) -> bool {
        let template = self.environment.get_template(NAME);
        let template = template.expect("invariant: added on construction");
        let shown = template.undeclared_variables(true);
        shown.contains(whole) || shown.contains(name)
    }

    pub(crate) fn render(&self, context: Value, what: impl FnOnce() -> String) -> Result<String> {
        let template = self.environment.get_template(NAME);
        let template = template.expect("invariant: added on construction");
        template.render(context).map_err(|e| {
            usage(format!("the prompt template fails on {}: {}", what(), one_line(&e)))
        })
    }

    /// Returns the SHA-256 of the template file, in hex.
    pub(crate) fn hash(&self) -> &str {
        &self.hash
    }
}

/// The prompt that shows a problem and asks for a program.
pub struct GtgPrompt(Template);

impl GtgPrompt {
    /// Returns the bundled prompt.
    pub fn bundled() -> Result<Self> {
        Self::open(None)
    }

    /// Returns the prompt in a user's `file`, or else the bundled one. Refuses a template that does not
    /// show the problem.
    pub fn open(file: Option<&Path>) -> Result<Self> {
        let bundled = (include_str!("../../data/prompts/gtg.txt"), "data/prompts/gtg.txt");
        Self::checked(Template::open(file, bundled)?)
    }

    fn checked((template, place): (Template, String)) -> Result<Self> {
        if let Some(missing) = REQUIRED.iter().find(|name| !template.shows("problem", name)) {
            return Err(usage(format!(
                "{place}: the prompt template does not show {{{{ {missing} }}}}, without which nobody \
                 can know what is asked"
            )));
        }
        Ok(Self(template))
    }

    /// Returns the text of the user's turn for `problem`.
    pub fn render(&self, problem: &Problem) -> Result<String> {
        let shown = shown(problem).context("encoding a problem")?;
        let context = context! { problem => Serde(shown) };
        self.0.render(context, || format!("problem {}", problem.problem_id))
    }

    /// Returns the SHA-256 of the template file, in hex.
    pub fn hash(&self) -> &str {
        self.0.hash()
    }
}

/// Returns a problem as templates see it: an integer that is too long for a number is its digits.
fn shown(problem: &Problem) -> serde_json::Result<serde_json::Value> {
    let mut shown = serde_json::to_value(problem)?;
    for (key, written) in problem.columns.iter() {
        let is_integer = written.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit());
        if is_integer && written.parse::<i64>().is_err() {
            shown[key] = written.to_owned().into();
        }
    }
    Ok(shown)
}

/// The question whether a conversation is code.
pub struct CodePrompt(Template);

impl CodePrompt {
    /// Returns the question in a user's `file`, or else the bundled one.
    pub fn open(file: Option<&Path>) -> Result<Self> {
        let bundled = (include_str!("../../data/prompts/is_code.txt"), "data/prompts/is_code.txt");
        Self::checked(Template::open(file, bundled)?)
    }

    fn checked((template, place): (Template, String)) -> Result<Self> {
        if !template.uses("messages") {
            return Err(usage(format!(
                "{place}: the prompt template does not use `messages`: every question would be the same"
            )));
        }
        Ok(Self(template))
    }

    /// Returns the text of the user's turn for `sample`.
    pub fn render(&self, sample: &Sample) -> Result<String> {
        let context = context! { messages => Serde(&sample.messages) };
        self.0.render(context, || format!("sample {}", sample.id.as_deref().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::columns::Columns;
    use crate::data::problem::Example;
    use crate::data::sample::Message;

    fn parsed<T>(source: &str, checked: fn((Template, String)) -> Result<T>) -> Result<T> {
        checked((Template::parse(source, "p.txt")?, "p.txt".to_owned()))
    }

    fn problem() -> Problem {
        let example = |input: &str, output: &str| Example {
            input: input.to_owned(),
            output: output.to_owned(),
            explanation: "2 + 3 = 5.".to_owned(),
        };
        Problem {
            problem_id: "p".to_owned(),
            description: "A <story>.".to_owned(),
            input_requirement: "One integer n.".to_owned(),
            output_requirement: "One integer.".to_owned(),
            examples: vec![example("1", "5"), example("2", "8")],
            tests: Vec::new(),
            terms: Vec::new(),
            offset: 0,
            solvability: None,
            family: None,
            columns: Columns::default(),
        }
    }

    #[test]
    fn the_bundled_prompt_shows_the_problem_and_is_short() {
        let text = GtgPrompt::bundled().unwrap().render(&problem()).unwrap();
        assert!(text.starts_with("A <story>.\nInput: One integer n.\nOutput: One integer.\n"));
        assert!(text.contains("\nExample: 1 -> 5. 2 + 3 = 5.\nExample: 2 -> 8. 2 + 3 = 5.\n"));
        assert!(text.split_whitespace().count() < 70, "{text}");
    }

    #[test]
    fn the_question_shows_the_beginning_of_each_turn() {
        let long = "x".repeat(3000);
        let messages = vec![Message::new("user", "<Why?>"), Message::new("assistant", &long)];
        let text = CodePrompt::open(None)
            .unwrap()
            .render(&Sample { messages, ..Sample::default() })
            .unwrap();
        assert!(
            text.contains(&format!("\nuser: <Why?>\nassistant: {}\n", &long[..2000])),
            "{text}"
        );
        assert!(text.ends_with("yes or no."), "{text}");
    }

    #[test]
    fn a_template_with_an_unknown_name_is_the_users_mistake() {
        let prompt = parsed("{{ problem }} {{ problem.nonsense }}", GtgPrompt::checked).unwrap();
        let error = prompt.render(&problem()).unwrap_err();
        assert_eq!(crate::base::error::exit_code(&error), 2);
    }

    #[test]
    fn a_template_that_does_not_compile_is_named_in_one_line() {
        let errors = [
            parsed("a\n{% for %}\nb", GtgPrompt::checked).err().unwrap().to_string(),
            parsed("a\n{{ messages[ }}\nb", CodePrompt::checked).err().unwrap().to_string(),
        ];
        for error in errors {
            assert!(error.starts_with("p.txt: the prompt template is malformed"), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn a_question_that_does_not_show_the_conversation_is_refused() {
        let error = parsed("Is this code?", CodePrompt::checked).err().unwrap().to_string();
        assert!(error.contains("p.txt") && error.contains("`messages`"), "{error}");
    }

    #[test]
    fn a_template_that_does_not_ask_is_refused_with_what_is_missing() {
        let missing = |source: &str| parsed(source, GtgPrompt::checked).err().unwrap().to_string();
        assert!(missing("Write a program.").contains("p.txt: "));
        assert!(missing("Write a program.").contains("{{ problem.description }}"));
        let story = "{{ problem.description }} {{ problem.input_requirement }}";
        assert!(missing(story).contains("{{ problem.output_requirement }}"));
        let all = "{% set p = problem %}{{ p.description }}";
        assert!(parsed(all, GtgPrompt::checked).is_ok());
    }
}
