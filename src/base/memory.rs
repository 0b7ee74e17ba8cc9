//! How much memory this process may still take.

use std::fs::read_to_string;

/// Bytes that the machine and the process's control group (version 2) have left; `None` where the
/// system does not say.
pub fn available_bytes() -> Option<u64> {
    let of_machine = of_meminfo(&read_to_string("/proc/meminfo").ok()?)?;
    Some(of_group().map_or(of_machine, |of_group| of_machine.min(of_group)))
}

fn of_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kibibytes << 10)
}

/// What the group's limit leaves; file caches count as taken, which is on the safe side.
fn of_group() -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse().ok()
    };
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       2048 kB\nMemAvailable:       1024 kB\n";
        assert_eq!(of_meminfo(text), Some(1 << 20));
        assert_eq!(of_meminfo("MemTotal: 1 kB\n"), None);
    }
}
