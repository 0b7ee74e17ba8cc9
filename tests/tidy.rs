//! The mechanical rules of ARCHITECTURE.md, checked on the source text.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

#[path = "tidy/circles.rs"]
mod circles;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Rows of modules from the bottom up. A module imports from rows below its own, and from those
/// listed for it in `SAME_ROW`.
const ROWS: [&[&str]; 10] = [
    &["base"],
    &["cuda", "nodes", "ops", "ranks", "sandbox", "tokenizer"],
    &["config", "data", "model", "objective", "optim"],
    &["checkpoint", "tasks"],
    &["engine", "rewards"],
    &["agents"],
    &["rollout", "trainer"],
    &["eval", "plan", "run"],
    &["bench", "gpu_check", "problems", "report", "serve", "train"],
    &["cli"],
];

const SAME_ROW: [(&str, &str); 2] = [("cuda", "ops"), ("cuda", "ranks")];

/// All files below a directory of the repository.
fn files_below(dir: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, files) } else { files.push(path) }
        }
    }
    let mut files = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), &mut files);
    files.sort();
    files
}

fn source_files() -> Vec<PathBuf> {
    let mut files = files_below("src");
    files.retain(|file| file.extension().is_some_and(|e| e == "rs"));
    files
}

/// A file's path from the root of the repository.
fn relative(file: &Path) -> String {
    file.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_string_lossy().into_owned()
}

fn module_of(file: &Path) -> String {
    relative(file).split('/').nth(1).unwrap().trim_end_matches(".rs").to_owned()
}

fn row_of(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

/// The modules that a file names as `crate::module`.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        for after in line.split("crate::").skip(1) {
            let names =
                after.strip_prefix('{').map_or(vec![after], |list| list.split(',').collect());
            for name in names {
                let name: String =
                    name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if row_of(&name).is_some() {
                    found.push(name);
                }
            }
        }
    }
    found
}

#[test]
fn imports_only_point_down() {
    let mut violations = Vec::new();
    for file in source_files() {
        let module = module_of(&file);
        let Some(row) = row_of(&module) else { continue };
        for import in imports(&std::fs::read_to_string(&file).unwrap()) {
            let is_allowed = import == module
                || row_of(&import).unwrap() < row
                || SAME_ROW.contains(&(module.as_str(), import.as_str()));
            if !is_allowed {
                violations.push(format!("{}: {module} imports {import}", file.display()));
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn no_files_need_each_other() {
    let circles = circles::circles();
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}

#[test]
fn every_module_has_a_row() {
    for file in source_files() {
        let module = module_of(&file);
        assert!(
            ["lib", "main"].contains(&module.as_str()) || row_of(&module).is_some(),
            "{module} is in no row"
        );
    }
}

#[test]
fn every_module_is_on_the_maps() {
    let read = |name: &str| {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
    };
    let (readme, architecture) = (read("README.md"), read("ARCHITECTURE.md"));
    for module in ROWS.concat() {
        assert!(readme.contains(&format!("{module}/")), "README.md does not name src/{module}");
        assert!(architecture.contains(&format!("`{module}`")), "ARCHITECTURE.md: no {module}");
    }
}

#[test]
fn every_link_of_the_documentation_leads_to_a_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "THIRD-PARTY.md"];
    let files = names.map(|name| root.join(name)).into_iter().chain(files_below("docs"));
    for file in files.filter(|file| file.extension().is_some_and(|e| e == "md")) {
        let text = std::fs::read_to_string(&file).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split([')', '#']).next().unwrap()) {
            let is_here = link.is_empty() || link.starts_with("http");
            let target = file.parent().unwrap().join(link);
            assert!(is_here || target.exists(), "{}: nothing at {link}", relative(&file));
        }
    }
}

#[test]
fn every_file_opens_with_what_it_is() {
    for file in source_files() {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//!"), "{} has no opening comment", file.display());
    }
}

#[test]
fn no_file_grows_beyond_one_noun() {
    for file in source_files() {
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 800, "{} has {lines} lines", file.display());
    }
}

#[test]
fn a_file_with_a_shebang_is_executable() {
    let mut found = 0;
    for file in [".ci", "scripts", "tests"].into_iter().flat_map(files_below) {
        if std::fs::read(&file).unwrap().starts_with(b"#!/") {
            let mode = file.metadata().unwrap().permissions().mode();
            assert!(mode & 0o111 == 0o111, "{} is not executable", file.display());
            found += 1;
        }
    }
    assert!(found > 0, "no script was looked at");
}
