//! Tells which programs may leave something behind in the interpreter.
//!
//! The cases of a program share a process, since that is fast, and what programs usually change is restored
//! between cases. The rest (threads with their stacks, signal handlers, builtins, warning filters,
//! descriptors, ...) is not worth restoring: a program that names it gets a process for each case. If a
//! program hides the name (`getattr(sys, "mod" + "ules")`), it spoils only its own cases.

/// Returns whether a case of this program could change what its next case finds.
pub(crate) fn may_leave(code: &str) -> bool {
    let is_part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    code.split(|c| !is_part_of_name(c)).any(|word| NAMES.contains(&word))
}

const NAMES: &[&str] = &[
    // Threads: their stacks are freed some time after they end.
    "threading",
    "_thread",
    "concurrent",
    // Modules that have a state.
    "fileinput",
    "gc",
    "importlib",
    "linecache",
    "locale",
    "logging",
    "resource",
    "signal",
    "warnings",
    // What all modules share.
    "__builtins__",
    "__globals__",
    "__self__",
    "__subclasses__",
    "builtins",
    "delattr",
    "environ",
    "finalize",
    "modules",
    "putenv",
    "setattr",
    "vars",
    // Settings.
    "BasicContext",
    "DefaultContext",
    "ExtendedContext",
    "breakpointhook",
    "displayhook",
    "excepthook",
    "meta_path",
    "path_hooks",
    "register_error",
    "set_asyncgen_hooks",
    "setfirstweekday",
    "setswitchinterval",
    "tracebacklimit",
    "tzset",
    "unraisablehook",
    // Descriptors.
    "closerange",
    "dup",
    "dup2",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_count_and_parts_of_names_do_not() {
        assert!(may_leave("import threading\n"));
        assert!(may_leave("print.__self__.sum = None"));
        assert!(may_leave("from gc import disable"));
        for code in ["", "from math import gcd\nprint(gcd(4, 6))", "threadings = 1\nd.environment"]
        {
            assert!(!may_leave(code), "{code}");
        }
    }
}
