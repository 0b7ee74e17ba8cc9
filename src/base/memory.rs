//! How much memory this process may still take.
//!
//! Contract: the smallest of what the machine has available, what its control group leaves, and what
//! the limit on the address space (`ulimit -v`) leaves; `None` where the system says nothing of them. Advice for a check before allocating, not a reservation.

use super::error::usage;
use super::human;
use anyhow::Result;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

/// Bytes that can still be allocated.
pub fn available() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| field(&text, "MemAvailable:"));
    let machine = machine.map(|kibibytes| kibibytes << 10);
    // Only anonymous memory counts: the kernel drops cached files when it needs their place.
    let limit = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse::<u64>().ok());
    let used = read("/sys/fs/cgroup/memory.stat").and_then(|text| field(&text, "anon"));
    let group = limit.zip(used).map(|(limit, used)| limit.saturating_sub(used));
    machine.into_iter().chain(group).chain(address_space_left()).min()
}

/// What this process may still map, where that is limited.
fn address_space_left() -> Option<u64> {
    let (limit, _) = getrlimit(Resource::RLIMIT_AS).ok()?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let mapped = field(&status, "VmSize:")? << 10;
    (limit != RLIM_INFINITY).then(|| limit.saturating_sub(mapped))
}

/// Refuses to start what needs `bytes` where fewer are available; `what` begins the message.
pub fn check(bytes: u64, what: &str, advice: &str) -> Result<()> {
    match available() {
        Some(available) if bytes > available => Err(usage(format!(
            "{what} needs {} of memory, but only {} are available; {advice}",
            human::bytes(bytes),
            human::bytes(available)
        ))),
        _ => Ok(()),
    }
}

/// The number behind `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix([' ', '\t']))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "anon_thp 3\nanon 12\nMemAvailable:   77 kB\n";
        assert_eq!((field(text, "anon"), field(text, "MemAvailable:")), (Some(12), Some(77)));
        assert_eq!(field(text, "file"), None);
    }

    #[test]
    fn more_than_there_is_is_refused_in_one_line() {
        assert!(check(1, "one byte", "").is_ok());
        let error = check(u64::MAX, "the model", "take a smaller one").unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().starts_with("the model needs"), "{error}");
    }
}
