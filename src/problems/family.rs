//! What a family of sequences is: numbers to choose, stories, a program, slips and exact terms.
//!
//! A pattern is a family with its numbers chosen. The terms are computed here in exact integers,
//! apart from the Python program, so that each checks the other.

use super::template::fill;
use crate::base::rng::Stream;
use num_bigint::BigInt;
use rand::seq::SliceRandom;
use std::ops::RangeInclusive;

/// The chosen numbers of a pattern; a family uses the first few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Numbers {
    /// The first number that the story tells.
    pub a: i64,
    pub b: i64,
    pub c: i64,
    pub d: i64,
}

impl Numbers {
    const NAMES: [&'static str; 4] = ["a", "b", "c", "d"];

    fn from_slice(values: &[i64]) -> Self {
        let at = |i: usize| values.get(i).copied().unwrap_or(0);
        Self { a: at(0), b: at(1), c: at(2), d: at(3) }
    }

    /// Returns the first `count` numbers.
    pub fn first(&self, count: usize) -> Vec<i64> {
        [self.a, self.b, self.c, self.d][..count].to_vec()
    }

    fn named(&self, name: &str) -> Option<i64> {
        let place = Self::NAMES.iter().position(|&n| n == name)?;
        Some([self.a, self.b, self.c, self.d][place])
    }

    /// Returns the numbers with the `place`-th one replaced.
    pub fn replaced(&self, place: usize, value: i64) -> Self {
        let mut values = self.first(4);
        values[place] = value;
        Self::from_slice(&values)
    }
}

/// A number that a family leaves open.
pub struct Open {
    /// What the number means in explanations: "the {role} is 3, not 4".
    pub role: &'static str,
    range: RangeInclusive<i64>,
}

/// A plausible mistake: it edits one place of the program, and explains the edit.
pub struct Slip {
    /// The text of the right program at that place.
    pub find: &'static str,
    /// The text of the wrong program there.
    pub replace: &'static str,
    /// A short sentence that names the mistake.
    pub reason: &'static str,
}

/// The way in which an example's output is explained.
pub enum Explain {
    /// The explanation lists the values up to it.
    Values,
    /// The explanation fills a template with the numbers, the input `{n}` and the value `{v}`.
    Formula(&'static str),
    /// A function of the numbers, the input and the value writes the explanation.
    With(fn(Numbers, i64, &BigInt) -> String),
}

enum Terms {
    At(fn(Numbers, i64) -> BigInt),
    List(fn(Numbers, usize) -> Vec<BigInt>),
}

/// A family of sequences, built step by step in `problems::families`.
pub struct Family {
    pub name: &'static str,
    /// The kind of mathematics, for the data card.
    pub kind: &'static str,
    /// The problem input of the first term.
    pub start: i64,
    /// The numbers that the family leaves open.
    pub numbers: Vec<Open>,
    /// The tellings of the problem.
    pub stories: Vec<&'static str>,
    /// The slips that were written for this family.
    pub slips: Vec<Slip>,
    pub explain: Explain,
    /// Whether the family is kept out of training and scored separately.
    pub unseen: bool,
    keep: fn(Numbers) -> bool,
    import: &'static str,
    body: &'static str,
    terms: Terms,
}

impl Family {
    /// Begins a family whose first term belongs to problem input `start`.
    pub fn new(name: &'static str, start: i64) -> Self {
        Self {
            name,
            kind: "",
            start,
            numbers: Vec::new(),
            stories: Vec::new(),
            slips: Vec::new(),
            explain: Explain::Values,
            unseen: false,
            keep: |_| true,
            import: "",
            body: "",
            terms: Terms::List(|_, _| Vec::new()),
        }
    }

    /// Opens the next number, with its role in explanations and the values that it may have.
    pub fn number(mut self, role: &'static str, range: RangeInclusive<i64>) -> Self {
        self.numbers.push(Open { role, range });
        self
    }

    /// Keeps only numbers that fulfil a condition.
    pub fn keep(mut self, condition: fn(Numbers) -> bool) -> Self {
        self.keep = condition;
        self
    }

    /// Returns whether the family makes sense under `numbers`, in or out of their ranges.
    pub fn keeps(&self, numbers: Numbers) -> bool {
        (self.keep)(numbers)
    }

    /// Adds a telling.
    pub fn story(mut self, story: &'static str) -> Self {
        self.stories.push(story);
        self
    }

    /// Names what the program imports from `math`.
    pub fn import(mut self, names: &'static str) -> Self {
        self.import = names;
        self
    }

    /// Gives the program after its first line, which reads `n`.
    pub fn code(mut self, body: &'static str) -> Self {
        self.body = body;
        self
    }

    /// Explains examples by a formula.
    pub fn explain(mut self, formula: &'static str) -> Self {
        self.explain = Explain::Formula(formula);
        self
    }

    /// Explains examples by a function.
    pub fn explain_with(mut self, explain: fn(Numbers, i64, &BigInt) -> String) -> Self {
        self.explain = Explain::With(explain);
        self
    }

    /// Adds a plausible mistake.
    pub fn slip(mut self, find: &'static str, replace: &'static str, reason: &'static str) -> Self {
        self.slips.push(Slip { find, replace, reason });
        self
    }

    /// Gives each term as a function of the input.
    pub fn at(mut self, term: fn(Numbers, i64) -> BigInt) -> Self {
        self.terms = Terms::At(term);
        self
    }

    /// Gives the first terms as a list.
    pub fn list(mut self, terms: fn(Numbers, usize) -> Vec<BigInt>) -> Self {
        self.terms = Terms::List(terms);
        self
    }

    /// Keeps the family out of all training.
    pub fn unseen(mut self) -> Self {
        self.unseen = true;
        self
    }

    /// Computes the first `count` terms under `numbers`.
    pub fn terms(&self, numbers: Numbers, count: usize) -> Vec<BigInt> {
        match self.terms {
            Terms::At(term) => (0..count as i64).map(|i| term(numbers, self.start + i)).collect(),
            Terms::List(terms) => terms(numbers, count),
        }
    }

    /// Writes the Python program under `numbers`; `edit` changes the template of its body.
    pub fn program(&self, numbers: Numbers, edit: impl Fn(&str) -> String) -> String {
        let import = match self.import {
            "" => String::new(),
            names => format!("from math import {names}\n"),
        };
        let body = fill(&edit(self.body), |name| numbers.named(name).map(|v| v.to_string()));
        format!("{import}n = int(input())\n{body}")
    }

    /// Writes the right Python program under `numbers`.
    pub fn solution(&self, numbers: Numbers) -> String {
        self.program(numbers, str::to_owned)
    }

    /// Returns the program's template after the line that reads `n`.
    pub fn body(&self) -> &'static str {
        self.body
    }

    /// Draws up to `most` choices of the numbers from `stream`.
    pub fn choices(&self, most: usize, stream: &mut Stream) -> Vec<Numbers> {
        let mut choices = vec![Vec::new()];
        for open in &self.numbers {
            choices = choices
                .into_iter()
                .flat_map(|c| open.range.clone().map(move |v| [c.as_slice(), &[v]].concat()))
                .collect();
        }
        let mut choices: Vec<Numbers> = choices
            .iter()
            .map(|values| Numbers::from_slice(values))
            .filter(|&numbers| (self.keep)(numbers))
            .collect();
        choices.shuffle(stream);
        choices.truncate(most);
        choices
    }
}

/// A family with its numbers chosen, and its first terms.
pub struct Pattern<'f> {
    pub family: &'f Family,
    pub numbers: Numbers,
    /// The first [`Pattern::TERMS`] terms.
    pub terms: Vec<BigInt>,
}

impl<'f> Pattern<'f> {
    /// The number of terms that a pattern knows: enough for all tests and for the leak check.
    pub const TERMS: usize = 40;

    /// Chooses `numbers` for `family`.
    pub fn new(family: &'f Family, numbers: Numbers) -> Self {
        Self { family, numbers, terms: family.terms(numbers, Self::TERMS) }
    }

    /// Returns the pattern's unique name: the family's name and the numbers.
    pub fn id(&self) -> String {
        self.values().iter().fold(self.family.name.to_owned(), |id, v| format!("{id}-{v}"))
    }

    /// Returns the chosen numbers in the story's order.
    pub fn values(&self) -> Vec<i64> {
        self.numbers.first(self.family.numbers.len())
    }

    /// Returns the term at problem input `n`, which must be a known one.
    pub fn term(&self, n: i64) -> &BigInt {
        &self.terms[(n - self.family.start) as usize]
    }

    /// Fills a template with the numbers and with what `more` knows.
    pub fn fill(&self, template: &str, more: impl Fn(&str) -> Option<String>) -> String {
        fill(template, |name| match self.numbers.named(name) {
            Some(value) => Some(value.to_string()),
            None => more(name),
        })
    }

    /// Explains why the sequence has its value at `n`.
    pub fn explanation(&self, n: i64) -> String {
        let value = self.term(n);
        match self.family.explain {
            Explain::Formula(template) => self.fill(template, |name| match name {
                "n" => Some(n.to_string()),
                "v" => Some(value.to_string()),
                _ => None,
            }),
            Explain::With(explain) => explain(self.numbers, n, value),
            Explain::Values if n == self.family.start => format!("The first value is {value}."),
            Explain::Values => {
                let from = (n - 3).max(self.family.start);
                let list: Vec<String> = (from..=n).map(|i| self.term(i).to_string()).collect();
                format!("The values go {}.", list.join(", "))
            }
        }
    }
}
