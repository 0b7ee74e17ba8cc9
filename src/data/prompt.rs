//! The GTG prompt: the one text through which SFT, RL and evaluation show a problem to a model.
//!
//! A minijinja template over `problem`. Its hash belongs into every result, because scores under
//! different prompts do not compare.

use crate::base::error::usage;
use crate::base::fs::read_text;
use crate::data::problem::Problem;
use anyhow::Result;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, context};
use sha2::{Digest, Sha256};
use std::path::Path;

const TEMPLATE: &str = "gtg";
/// What every prompt must show; examples may be left out.
const REQUIRED: [&str; 3] =
    ["problem.description", "problem.input_requirement", "problem.output_requirement"];

/// A prompt template, checked and ready to render.
pub struct GtgPrompt {
    environment: Environment<'static>,
    hash: String,
}

impl GtgPrompt {
    /// The prompt that comes with the program.
    pub fn bundled() -> Result<Self> {
        Self::parse(include_str!("../../data/prompts/gtg.txt"), "data/prompts/gtg.txt")
    }

    /// A prompt of the user's own.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::parse(&read_text(path)?, &path.display().to_string())
    }

    fn parse(source: &str, place: &str) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment
            .add_template_owned(TEMPLATE, source.trim_end().to_owned())
            .map_err(|e| usage(format!("{place}: the prompt template is malformed: {e:#}")))?;
        let template = environment.get_template(TEMPLATE).expect("added above");
        let shown = template.undeclared_variables(true);
        let is_shown = |name: &str| shown.contains("problem") || shown.contains(name);
        if let Some(missing) = REQUIRED.iter().find(|name| !is_shown(name)) {
            return Err(usage(format!(
                "{place}: the prompt template does not show {{{{ {missing} }}}}, without which nobody \
                 can know what is asked"
            )));
        }
        Ok(Self { environment, hash: format!("{:x}", Sha256::digest(source.as_bytes())) })
    }

    /// The text that the user's turn holds for `problem`.
    pub fn render(&self, problem: &Problem) -> Result<String> {
        let template = self.environment.get_template(TEMPLATE).expect("added on construction");
        template.render(context! { problem => Serde(problem) }).map_err(|e| {
            usage(format!("the prompt template fails on problem {}: {e:#}", problem.problem_id))
        })
    }

    /// SHA-256 of the template file, in hex.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::problem::Example;

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
    fn a_template_with_an_unknown_name_is_the_users_mistake() {
        let prompt = GtgPrompt::parse("{{ problem }} {{ problem.nonsense }}", "p.txt").unwrap();
        let error = prompt.render(&problem()).unwrap_err();
        assert_eq!(crate::base::error::exit_code(&error), 2);
        assert!(GtgPrompt::parse("{% for %}", "p.txt").is_err());
    }

    #[test]
    fn a_template_that_does_not_ask_is_refused_with_what_is_missing() {
        let missing = |source: &str| GtgPrompt::parse(source, "p.txt").err().unwrap().to_string();
        assert!(missing("Write a program.").contains("p.txt: "));
        assert!(missing("Write a program.").contains("{{ problem.description }}"));
        let story = "{{ problem.description }} {{ problem.input_requirement }}";
        assert!(missing(story).contains("{{ problem.output_requirement }}"));
        let all = "{% set p = problem %}{{ p.description }}";
        assert!(GtgPrompt::parse(all, "p.txt").is_ok());
    }
}
