//! Circles of files: files that need each other, directly or by way of others, can only be read at once.
//!
//! A file needs another if its code, tests apart, names something that the other defines, by a `use` or by a
//! path. A name that a module file passes on (`pub use`) counts for the file that defines it. One tie is left
//! out: what a module file (`mod.rs`, or `x.rs` beside `x/`) takes from the files of its own folder. A module
//! is made of its parts, and the parts may see what the whole defines, as Rust's privacy has it. Everything
//! else counts: a part that needs its module, parts that need each other, modules that need each other.

use super::{relative, source_files};
use std::collections::{BTreeMap, BTreeSet};

/// Segments of a path, such as `["crate", "ops", "matmul"]`.
type Path = Vec<String>;

/// A source file as far as circles are concerned.
struct Source {
    name: String,
    /// The path of its module without `crate`.
    module: Path,
    /// Paths that its code names.
    uses: Vec<Path>,
    /// Paths whose names it passes on.
    exports: Vec<Path>,
}

/// Files that need each other, with the names that tie them, as text.
pub(crate) fn circles() -> Vec<String> {
    let crate_of_files = Crate::read();
    let ties = crate_of_files.ties();
    let needed = |name: &str| -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut open = vec![name.to_owned()];
        while let Some(file) = open.pop() {
            for next in ties.get(&file).into_iter().flat_map(BTreeMap::keys) {
                if found.insert(next.clone()) {
                    open.push(next.clone());
                }
            }
        }
        found
    };
    let needed: BTreeMap<&String, BTreeSet<String>> =
        ties.keys().map(|name| (name, needed(name))).collect();
    let mut circles = BTreeSet::new();
    for (&name, others) in &needed {
        let is_mutual =
            |other: &&String| needed.get(*other).is_some_and(|back| back.contains(name));
        let circle: BTreeSet<String> = others.iter().filter(is_mutual).cloned().collect();
        if circle.len() > 1 {
            circles.insert(circle);
        }
    }
    circles.iter().map(|circle| describe(circle, &ties)).collect()
}

type Ties = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

fn describe(circle: &BTreeSet<String>, ties: &Ties) -> String {
    let mut text = format!("a circle of {} files:", circle.len());
    for from in circle {
        for (to, names) in ties[from].iter().filter(|(to, _)| circle.contains(*to)) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            text.push_str(&format!("\n  {from} -> {to}: {}", names.join(", ")));
        }
    }
    text
}

/// All files by the path of their module.
struct Crate(BTreeMap<Path, Source>);

impl Crate {
    fn read() -> Self {
        let sources = source_files().into_iter().map(|file| {
            let name = relative(&file);
            let module = module_path(&name);
            let tokens = without_tests(tokens(&std::fs::read_to_string(&file).unwrap()));
            let (uses, exports) = paths(&tokens);
            (module.clone(), Source { name, module, uses, exports })
        });
        Self(sources.collect())
    }

    /// What each file takes from which other.
    fn ties(&self) -> Ties {
        let mut ties = Ties::new();
        for source in self.0.values() {
            let own = ties.entry(source.name.clone()).or_default();
            for (target, name) in source.uses.iter().filter_map(|path| self.find(source, path)) {
                if !target.module.starts_with(&source.module) {
                    own.entry(target.name.clone()).or_default().insert(name);
                }
            }
        }
        ties
    }

    /// The file that defines what `path` means in `source`, and the name there.
    fn find(&self, source: &Source, path: &Path) -> Option<(&Source, String)> {
        let absolute = self.absolute(source, path)?;
        let (target, name) = self.resolve(absolute, 0)?;
        Some((target, name?))
    }

    fn absolute(&self, source: &Source, path: &Path) -> Option<Path> {
        let (first, rest) = path.split_first()?;
        let mut module = source.module.clone();
        match first.as_str() {
            "crate" => return Some(rest.to_vec()),
            "self" => {}
            "super" => {
                module.pop();
                let more = rest.iter().take_while(|segment| *segment == "super").count();
                module.truncate(module.len().saturating_sub(more));
                module.extend_from_slice(&rest[more..]);
                return Some(module);
            }
            _ => {
                // A module that a `use` brought here, or a child.
                let is_alias = |used: &&Path| {
                    used.len() > 1
                        && used.last() == Some(first)
                        && ["crate", "self", "super"].contains(&used[0].as_str())
                };
                for used in source.uses.iter().filter(is_alias) {
                    let mut target = self.absolute(source, used)?;
                    if self.0.contains_key(&target) {
                        target.extend_from_slice(rest);
                        return Some(target);
                    }
                }
                module.push(first.clone());
                if !self.0.contains_key(&module) {
                    return None;
                }
            }
        }
        module.extend_from_slice(rest);
        Some(module)
    }

    /// The longest beginning of `path` that is a module, and the name behind it; what a module passes on
    /// is followed to where it is defined.
    fn resolve(&self, path: Path, depth: usize) -> Option<(&Source, Option<String>)> {
        let end = (1..=path.len()).rev().find(|&end| self.0.contains_key(&path[..end]))?;
        let module = &self.0[&path[..end]];
        let rest = &path[end..];
        let Some(name) = rest.first() else { return Some((module, None)) };
        let export = module.exports.iter().find(|export| export.last() == Some(name));
        if let Some(mut target) = export.and_then(|export| self.absolute(module, export))
            && depth < 8
        {
            target.extend_from_slice(&rest[1..]);
            return self.resolve(target, depth + 1);
        }
        Some((module, Some(name.clone())))
    }
}

fn module_path(name: &str) -> Path {
    let name = name.trim_start_matches("src/").trim_end_matches(".rs");
    let mut path: Path = name.split('/').map(str::to_owned).collect();
    if path.last().is_some_and(|last| last == "mod" || last == "lib") {
        path.pop();
    }
    path
}

/// Identifiers, `::`, and single other characters; without comments, strings and characters.
fn tokens(text: &str) -> Vec<String> {
    let mut rest = text;
    let mut tokens = Vec::new();
    while let Some(first) = rest.chars().next() {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(hashes) = raw_string(rest) {
            let start = rest.find('"').unwrap() + 1;
            let end = format!("\"{}", "#".repeat(hashes));
            rest[start..].find(&end).map_or(rest.len(), |at| start + at + end.len())
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == '\'' && is_character(rest) {
            quoted(rest, '\'')
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            2
        } else if is_name(first) {
            let length = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            tokens.push(rest[..length].to_owned());
            length
        } else {
            if !first.is_whitespace() {
                tokens.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

/// The number of `#` of a raw string that begins here.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = after.chars().take_while(|&c| c == '#').count();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// Whether this is a character and not a lifetime.
fn is_character(text: &str) -> bool {
    let mut chars = text.chars().skip(1);
    chars.next() == Some('\\') || chars.next() == Some('\'')
}

/// The length of a literal that ends with an unescaped `quote`.
fn quoted(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// Leaves out every item under `#[cfg(test)]`.
fn without_tests(tokens: Vec<String>) -> Vec<String> {
    const ATTRIBUTE: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at..].iter().zip(ATTRIBUTE).filter(|(a, b)| a == b).count() < ATTRIBUTE.len() {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += ATTRIBUTE.len();
        let mut depth = 0;
        while at < tokens.len() {
            let token = tokens[at].as_str();
            at += 1;
            depth += i32::from("{([".contains(token)) - i32::from("})]".contains(token));
            if depth == 0 && (token == ";" || token == "}") {
                break;
            }
        }
    }
    kept
}

/// The paths that code names, and those whose names it passes on by `pub use`.
fn paths(tokens: &[String]) -> (Vec<Path>, Vec<Path>) {
    let (mut uses, mut exports) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at] == "use" {
            let is_export = at > 0 && (tokens[at - 1] == "pub" || tokens[at - 1] == ")");
            at += 1;
            use_tree(
                tokens,
                &mut at,
                Path::new(),
                if is_export { &mut exports } else { &mut uses },
            );
        } else if tokens.get(at + 1).is_some_and(|next| next == "::") {
            let mut path = vec![tokens[at].clone()];
            at += 1;
            while tokens.get(at).is_some_and(|token| token == "::") {
                path.extend(tokens.get(at + 1).cloned());
                at += 2;
            }
            uses.push(path);
        } else {
            at += 1;
        }
    }
    (uses, exports)
}

fn use_tree(tokens: &[String], at: &mut usize, mut prefix: Path, into: &mut Vec<Path>) {
    while let Some(token) = tokens.get(*at) {
        *at += 1;
        match token.as_str() {
            "{" => {
                while tokens.get(*at).is_some_and(|token| token != "}") {
                    use_tree(tokens, at, prefix.clone(), into);
                    *at += usize::from(tokens.get(*at).is_some_and(|token| token == ","));
                }
                *at += 1;
                return;
            }
            "::" => {}
            name => {
                if name != "self" || prefix.is_empty() {
                    prefix.push(name.to_owned());
                }
                if tokens.get(*at).is_none_or(|next| next != "::") {
                    *at += if tokens.get(*at).is_some_and(|next| next == "as") { 2 } else { 0 };
                    into.push(prefix);
                    return;
                }
            }
        }
    }
}

#[test]
fn names_are_read_from_uses_and_paths_but_not_from_comments_strings_and_tests() {
    let text = "use crate::a::{self, B, c::{D, E as F}}; // use crate::no::Comment;\n\
        pub use child::G;\n\
        fn f<'a>(x: &'a str) -> char { other::h(\"crate::no::String\"); '\"' }\n\
        #[cfg(test)]\nmod tests { use crate::no::Test; }\n\
        #[cfg(test)]\npub fn t() { crate::no::Test::new() }\nuse super::last::I;";
    let (uses, exports) = paths(&without_tests(tokens(text)));
    let join = |paths: Vec<Path>| paths.iter().map(|path| path.join("::")).collect::<Vec<_>>();
    let expected = [
        "crate::a",
        "crate::a::B",
        "crate::a::c::D",
        "crate::a::c::E",
        "other::h",
        "super::last::I",
    ];
    assert_eq!(join(uses), expected);
    assert_eq!(join(exports), ["child::G"]);
}
