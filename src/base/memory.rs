//! Memory: how much the machine has, how much this process holds, and how much it may still take.
//!
//! Contract: every number is in bytes, and `None` where the system does not tell it. What is available is
//! advice for a check before allocating, not a reservation.

use super::error::usage;
use super::human;
use anyhow::Result;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

/// Returns the memory of the machine.
pub fn total() -> Option<u64> {
    kibibytes("/proc/meminfo", "MemTotal:")
}

/// Returns the memory that this process holds now.
pub fn resident() -> Option<u64> {
    kibibytes("/proc/self/status", "VmRSS:")
}

/// Returns the most memory that this process has held.
pub fn peak_resident() -> Option<u64> {
    kibibytes("/proc/self/status", "VmHWM:")
}

/// Returns the memory that this process can still allocate: the smallest of what the machine has available, what
/// the control group leaves, and what the limit on the address space (`ulimit -v`) leaves.
pub fn available() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    // Only anonymous memory counts: the kernel drops cached files when it needs their place.
    let limit = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse::<u64>().ok());
    let used = read("/sys/fs/cgroup/memory.stat").and_then(|text| field(&text, "anon"));
    let group = limit.zip(used).map(|(limit, used)| limit.saturating_sub(used));
    let machine = kibibytes("/proc/meminfo", "MemAvailable:");
    machine.into_iter().chain(group).chain(address_space_left()).min()
}

/// Returns the address space that this process may still map, if it is limited.
fn address_space_left() -> Option<u64> {
    let (limit, _) = getrlimit(Resource::RLIMIT_AS).ok()?;
    let mapped = kibibytes("/proc/self/status", "VmSize:")?;
    (limit != RLIM_INFINITY).then(|| limit.saturating_sub(mapped))
}

/// Refuses work that needs more `bytes` than are available; the message begins with `what`.
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

/// Returns a field of a file that counts in kibibytes.
fn kibibytes(path: &str, name: &str) -> Option<u64> {
    Some(field(&std::fs::read_to_string(path).ok()?, name)? << 10)
}

/// Returns the number behind `name` at the start of a line.
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
    fn this_machine_has_more_memory_than_this_process_holds() {
        let (total, resident, peak) =
            (total().unwrap(), resident().unwrap(), peak_resident().unwrap());
        assert!(0 < resident && resident <= peak && peak < total);
    }

    #[test]
    fn more_than_there_is_is_refused_in_one_line() {
        assert!(check(1, "one byte", "").is_ok());
        let error = check(u64::MAX, "the model", "take a smaller one").unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().starts_with("the model needs"), "{error}");
    }
}
